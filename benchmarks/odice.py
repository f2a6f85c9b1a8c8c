"""O-DICE beside the semi-gradient, the true gradient, IQL and behaviour cloning: a grid, and the pendulum.

"grid": 10x10 squares, start in one corner, a goal of reward 100 in the opposite one, discount 0.95; 60 walks
of at most 60 steps are recorded, half of all moves by chance, half right or up; the upper triangle is closed.
Values are a table; Adam 1.0, falling to 0 over 1000 steps, batches of 256. The figure is the exact discounted
value, from the start, of the recorded actions weighed by ω; the reward counts 1 in it.

"pendulum": 80 recorded episodes of `Pendulum-v1`, by a swing-up controller disturbed at four rates. V 64-64
with LayerNorm, policy 128-128, one V, Adam 4e-4, batches of 256, 4000 steps, 20 episodes rolled out. The
score is 0 for chance and 100 for the undisturbed controller. "disturbed": the same, while 30 % of all
stretches of 5 steps have a random torque, so that the agent is in states which it would not come to.

"few": the same from 8 episodes, two of each rate.

    python benchmarks/odice.py [grid] [pendulum] [few] [--seeds 0 1 2]     (a quarter of an hour on a core)
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from _results import RESULTS, Cells
from _tables import few, head, seed_dots, table
from torch import Tensor

from dmkit.auxiliary.rl.odice import (
    Episodes,
    GaussianPolicy,
    ODICETask,
    Transitions,
    ValueNetwork,
    evaluate,
    normalized_score,
)
from dmkit.auxiliary.rl.odice.collecting import collect, make_pendulum, pendulum, swing_up
from dmkit.auxiliary.rl.odice.data import as_it_is
from dmkit.auxiliary.rl.odice.training import Arguments, prepare, train
from dmkit.training.arguments import TrainingArguments
from dmkit.training.rules import OrthogonalProjection
from dmkit.training.trainer import Trainer

SEEDS = (0, 1, 2)
SIDE, DISCOUNT, REWARD = 10, 0.95, 100.0
LAMBDAS = (0.6,)
UPDATES = ("orthogonal", "semi", "true")
NAMES = {"orthogonal": "O-DICE", "semi": "semi-gradient", "true": "true gradient"}
LEARNERS: dict[str, dict[str, Any]] = {
    "O-DICE": {"learner": "odice"},
    "semi-gradient": {"learner": "sdice"},
    "true gradient": {"learner": "true"},
    "IQL": {"learner": "iql"},
    "behaviour cloning": {"learner": "bc"},
}
RELU = {
    "O-DICE, λ 0.6, relu": {"learner": "odice", "lam": 0.6, "weight": "relu"},
    "semi-gradient, λ 0.6, relu": {"learner": "sdice", "lam": 0.6, "weight": "relu"},
}
# What is learned from which recordings: the number of episodes, and learners.
TASKS: dict[str, tuple[int, dict[str, dict[str, Any]]]] = {
    "pendulum": (80, {**LEARNERS, **RELU}),
    "few": (8, {name: LEARNERS[name] for name in ("O-DICE", "semi-gradient")}),
}


def training(folder: str, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "adam_beta1": 0.9,
        "adam_weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "checkpointing_steps": 0,
        "save_images_epochs": 0,
        "save_model_epochs": 0,
        "report_to": "none",
    }
    return TrainingArguments(output_dir=folder, **{**settings, **changes})


# The grid

MOVES = torch.tensor([[1, 0], [0, 1], [-1, 0], [0, -1]])  # right, up, left, down


def move(places: Tensor, moves: Tensor) -> Tensor:
    """Where a move ends: beyond the edge, and into the upper triangle, it ends where it began."""
    after = (places + MOVES[moves]).clamp(0, SIDE - 1)
    blocked = after[..., 1] > after[..., 0]
    return torch.where(blocked[..., None], places, after)


def number(places: Tensor) -> Tensor:
    return places[..., 0] * SIDE + places[..., 1]


@cache
def walks(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers of squares, the moves, and the squares after them."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(60):
        place = torch.zeros(2, dtype=torch.int64)
        for _ in range(60):
            chance = bool(torch.rand((), generator=generator) < 0.5)
            step = torch.randint(4 if chance else 2, (), generator=generator)
            after = move(place, step)
            rows.append((number(place), step, number(after)))
            place = after
            if int(number(place)) == SIDE * SIDE - 1:
                break
    states, moves, after = (torch.stack(column) for column in zip(*rows, strict=True))
    return states, moves, after


def value_of(weights: Tensor, seed: int) -> float:
    """The discounted value from the start of the recorded moves weighed so, by the grid's equations."""
    states, moves, _ = walks(seed)
    table_ = torch.zeros(SIDE * SIDE, 4, dtype=torch.float64)
    table_.index_put_((states, moves), weights.double(), accumulate=True)
    total = table_.sum(1, keepdim=True)
    policy = torch.where(total > 0, table_ / total.clamp(min=1e-300), 0.25)
    every = torch.arange(SIDE * SIDE)
    places = torch.stack([every // SIDE, every % SIDE], dim=1)
    P, gain = torch.zeros(SIDE * SIDE, SIDE * SIDE, dtype=torch.float64), torch.zeros(SIDE * SIDE).double()
    goal = SIDE * SIDE - 1
    for k in range(4):
        after = number(move(places, torch.full((SIDE * SIDE,), k)))
        P[every, after] += policy[:, k] * (after != goal)
        gain += policy[:, k] * (after == goal)
    P[goal], gain[goal] = 0, 0
    return float(torch.linalg.solve(torch.eye(SIDE * SIDE).double() - DISCOUNT * P, gain)[0])


def grid(update: str, lam: float, seed: int) -> dict[str, float]:
    states, moves, after = walks(seed)
    squares = torch.eye(SIDE * SIDE)
    ended = after == SIDE * SIDE - 1
    # The policy is the table of weights; the task's own one has nothing to learn here.
    data = Transitions(squares[states], torch.zeros(len(moves), 1), REWARD * ended, squares[after], ended)
    torch.manual_seed(seed)
    task = ODICETask(
        ValueNetwork(SIDE * SIDE, hidden=(), layer_norm=False),
        GaussianPolicy(SIDE * SIDE, 1, hidden=()),
        lam=lam,
        discount=DISCOUNT,
        update=update,
        tau=0.05,
    )
    rule = task.rule()
    with tempfile.TemporaryDirectory() as folder:
        given = training(
            folder,
            seed=seed,
            train_batch_size=256,
            max_train_steps=1000,
            learning_rate=1.0,
            lr_scheduler="linear",
        )
        Trainer(task, data, given, rule=rule, collate_fn=as_it_is).train()
    with torch.no_grad():
        _, delta, _ = task.residuals(data.columns)
    figures = {"value": round(value_of(task.weights(delta)[0], seed), 4)}
    if isinstance(rule, OrthogonalProjection):
        figures["cosine"] = round(rule.cosine, 4)
    return figures


# The pendulum


@cache
def recordings(count: int) -> Episodes:
    return pendulum(count)


def rolled_out(act: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Scores and lowest returns of 20 episodes left alone, and of 20 disturbed ones."""
    about = recordings(80).about
    ends = (about["random_return"], about["reference_return"])
    returns = evaluate(act, make_pendulum, 20, seed=20_000)
    disturbed = collect(make_pendulum, act, 20, rates=(0.3,), seed=1).returns()
    return {
        "score": round(normalized_score(returns, *ends), 2),
        "worst": round(float(returns.min()), 1),
        "disturbed": round(normalized_score(disturbed, *ends), 2),
        "disturbed_worst": round(float(disturbed.min()), 1),
    }


def swing(count: int, settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    given = Arguments(value_hidden=[64, 64], policy_hidden=[128, 128], twin=False, **settings)
    episodes = recordings(count)
    with tempfile.TemporaryDirectory() as folder:
        steps = training(folder, seed=seed, train_batch_size=256, max_train_steps=4000, learning_rate=4e-4)
        agent, task = train(episodes, given, steps)
    figures = rolled_out(agent.act)
    if isinstance(task, ODICETask):
        transitions, *_ = prepare(given, episodes)
        with torch.no_grad():
            value, forward, _ = task.residuals(transitions.columns)
        weights = task.weights(forward)
        figures |= {
            "mean_value": round(float(value.mean()), 1),
            "mean_weight": round(float(weights.mean()), 3),
            "zero_weights": round(float((weights == 0).float().mean()), 3),
        }
    return figures


def found(cells: Mapping[str, Any], prefix: str) -> list[dict[str, float]]:
    runs = (cells.get(f"{prefix}/seed={seed}") for seed in SEEDS)
    return [run for run in runs if run is not None]


def of(cells: Mapping[str, Any], prefix: str, key: str) -> list[float]:
    return [run[key] for run in found(cells, prefix)]


# The page


def bars(cells: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What should come out, and whether it did."""
    margins: dict[str, float] = {}
    for lam in LAMBDAS:
        values = {update: of(cells, f"grid/{update}/lam={lam}", "value") for update in UPDATES}
        if all(len(v) == len(SEEDS) for v in values.values()):
            margins[f"grid, λ {lam}: O-DICE at least 0.40"] = mean(values["orthogonal"]) - 0.40
            margins[f"grid, λ {lam}: true gradient at most 0.32"] = 0.32 - mean(values["true"])
    scores = {name: of(cells, f"pendulum/{name}", "score") for name in LEARNERS}
    if all(len(values) == len(SEEDS) for values in scores.values()):
        means = {name: mean(values) for name, values in scores.items()}
        margins["pendulum: O-DICE at least 85"] = means["O-DICE"] - 85
        margins["pendulum: 60 above behaviour cloning"] = means["O-DICE"] - means["behaviour cloning"] - 60
        margins["pendulum: 60 above the true gradient"] = means["O-DICE"] - means["true gradient"] - 60
        margins["pendulum: within 5 of the semi-gradient"] = 5 - abs(means["O-DICE"] - means["semi-gradient"])
    return {name: {"margin": round(by, 3), "met": by >= 0} for name, by in margins.items()}


def draw(content: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cells = content["cells"]
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
    grids = {
        f"{NAMES[u]}, λ {lam}": of(cells, f"grid/{u}/lam={lam}", "value") for lam in LAMBDAS for u in UPDATES
    }
    swings = {name: of(cells, f"pendulum/{name}", "score") for name in TASKS["pendulum"][1]}
    swings |= {f"{name}, 8 episodes": of(cells, f"few/{name}", "score") for name in TASKS["few"][1]}
    for axis, title, groups, label in (
        (axes[0], "grid", grids, "value of the start"),
        (axes[1], "pendulum", swings, "normalised score"),
    ):
        seed_dots(axis, {name: values for name, values in groups.items() if values}, title, label)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def render(content: dict[str, Any]) -> str:
    """The results as Markdown; draws their picture."""
    cells = content["cells"]
    draw(content, RESULTS / "odice.png")
    text = head(content, "O-DICE")
    rows = []
    for update in UPDATES:
        values = [of(cells, f"grid/{update}/lam={lam}", "value") for lam in LAMBDAS]
        if all(values):
            rows.append([NAMES[update], len(values[0]), *(few(v) for v in values)])
    if known := of(cells, "grid/cloning", "value"):
        rows.append(["behaviour cloning", len(known), *[few(known)] * len(LAMBDAS)])
    if known := of(cells, "grid/optimum", "value"):
        rows.append(["the best there is", len(known), *[few(known)] * len(LAMBDAS)])
    text += "## Grid: value of the start\n\n"
    text += table(["", "seeds", *(f"λ {lam}" for lam in LAMBDAS)], rows) + "\n"
    titles = {"pendulum": "Pendulum, 80 episodes", "few": "Pendulum, 8 episodes"}
    figures = {
        "score": "score",
        "worst": "lowest return of 20",
        "disturbed": "score, disturbed",
        "disturbed_worst": "lowest of 20",
        "mean_value": "mean V",
        "mean_weight": "mean weight",
        "zero_weights": "share of zero weights",
    }
    for task, (_, learners) in TASKS.items():
        rows = []
        for name in ("controller", *learners):
            if runs := found(cells, f"{task}/{name}"):
                rows.append(
                    [name, len(runs), *(few([r[k] for r in runs]) if k in runs[0] else "" for k in figures)]
                )
        text += f"## {titles[task]}\n\n" + table(["", "seeds", *figures.values()], rows) + "\n"
    rows = [[name, f["margin"], "yes" if f["met"] else "no"] for name, f in bars(cells).items()]
    text += table(["bar", "margin", "met"], rows)
    return text + "\n![every run](odice.png)\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["grid", *TASKS])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    cells = Cells("odice", {"what": __doc__.strip().splitlines()[0]})
    for part, seed in product(given.parts, given.seeds):
        measure(cells, part, seed)


def measure(cells: Cells, part: str, seed: int) -> None:
    """All cells of a part and a seed."""
    if part == "grid":
        steps = len(walks(seed)[0])
        cells.once(
            f"grid/cloning/seed={seed}", lambda: {"value": round(value_of(torch.ones(steps), seed), 4)}
        )
        # 18 moves, of which the last one is paid.
        cells.once(f"grid/optimum/seed={seed}", lambda: {"value": round(DISCOUNT ** (2 * SIDE - 3), 4)})
        for lam, update in product(LAMBDAS, UPDATES):
            cells.once(f"grid/{update}/lam={lam}/seed={seed}", partial(grid, update, lam, seed))
        return
    count, learners = TASKS[part]
    if part == "pendulum":
        cells.once("pendulum/controller/seed=0", lambda: rolled_out(swing_up))
    for name, settings in learners.items():
        cells.once(f"{part}/{name}/seed={seed}", partial(swing, count, settings, seed))


if __name__ == "__main__":
    main()
