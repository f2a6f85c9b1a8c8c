"""NBPO beside BPO, BPR, other samplers and a constant flip probability: MovieLens, and clicks of known truth.

"movielens": every rating is a click; users and items with 20 of each other, 80/10/10 % of each user's clicks
for training, validation and test. Factors of 50, 4 sampled items, batches of 5000, sums, SGD 0.02, 30 epochs.
The weight decay of the scores is 0.5 or 1 (the authors' two), for each method the better by F1@5 of the
validation set with seed 0; AOBPR and DNS take BPR's. That of the flips is 1. All 1,283 films are ranked,
training clicks left out.

"generated": 300 users, 200 items, 20 likes of each user, half of them clicked. SGD 0.05, batches of 500,
decay 0.3, 60 epochs. AUC: do the figures tell hidden likes from other items without a click?

Everywhere the checkpoint of the best F1@5 on the validation set is the one that is measured.

    python benchmarks/nbpo.py [movielens] [generated]     (about five CPU minutes)
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from _results import RESULTS, Cells
from _tables import few, head, seed_dots, table

from dmkit.auxiliary.recommendation.nbpo import Recommender, evaluate_ranking
from dmkit.auxiliary.recommendation.nbpo.generating import Generated, generate
from dmkit.auxiliary.recommendation.nbpo.interactions import Split
from dmkit.auxiliary.recommendation.nbpo.training import Arguments, read_parts, train
from dmkit.training.arguments import TrainingArguments

SEEDS = (0, 1, 2)
KS = (2, 5, 10, 20)
DECAYS = (0.5, 1.0)
METHODS: dict[str, dict[str, Any]] = {
    "BPR": {"objective": "bpr"},
    "BPR, AOBPR's sampler": {"objective": "bpr", "sampler": "adaptive"},
    "BPR, DNS": {"objective": "bpr", "sampler": "dynamic"},
    "BPO": {"objective": "bpo"},
    "NBPO": {"objective": "nbpo"},
    "NBPO, constant 0.5": {"objective": "nbpo", "flip_constant": 0.5},
    "NBPO-o": {"objective": "nbpo-o"},
}
TUNED_WITH = {"BPR, AOBPR's sampler": "BPR", "BPR, DNS": "BPR"}
GENERATED = ("BPR", "BPO", "NBPO", "NBPO, constant 0.5", "NBPO-o")


def training(folder: str, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "optimizer": "sgd",
        "max_grad_norm": 0.0,
        "save_images_epochs": 0,
        "save_model_epochs": 0,
        "report_to": "none",
    }
    return TrainingArguments(output_dir=folder, **{**settings, **changes})


def beliefs(recommender: Recommender) -> dict[str, dict[str, float]]:
    """Mean and deviation of the flip probability over all pairs with and without a click."""
    size = recommender.seen
    users = torch.arange(size.num_users)
    items = torch.arange(size.num_items).expand(len(users), -1)
    flips, clicked = recommender.flip_probability(users, items), size.dense(users)
    return {
        name: {"mean": round(float(flips[mask].mean()), 3), "std": round(float(flips[mask].std()), 3)}
        for name, mask in (("clicked", clicked), ("unclicked", ~clicked))
    }


def measure(parts: Split, method: str, seed: int, **settings: Any) -> tuple[dict[str, Any], Recommender]:
    """One training: its figures on the validation and the test set, and what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        recommender, step = train(
            parts, Arguments(**METHODS[method]), training(folder, seed=seed, **settings)
        )
    figures: dict[str, Any] = {"step": step}
    for name, wanted in (("validation", parts.validation), ("test", parts.test)):
        found = evaluate_ranking(recommender.scores.all_scores, [parts.train], wanted, KS)
        figures[name] = {key: round(value, 5) for key, value in found.items() if key[0] in "FNR"}
    if recommender.flip is not None and not isinstance(recommender.flip, float):
        figures["flips"] = beliefs(recommender)
    return figures, recommender


# MovieLens


@cache
def films() -> Split:
    return read_parts(Arguments(data="movielens", k_core=20))[0]


def movielens(method: str, decay: float, seed: int) -> dict[str, Any]:
    settings = {
        "train_batch_size": 5000,
        "num_epochs": 30,
        "learning_rate": 0.02,
        "checkpointing_steps": 55,
    }
    return measure(films(), method, seed, sgd_weight_decay=decay, **settings)[0]


def decay_of(cells: Mapping[str, Any], method: str) -> float:
    """The weight decay that is the better one for a method."""
    method = TUNED_WITH.get(method, method)
    return max(DECAYS, key=lambda d: cells[f"movielens/{method}/decay={d}/seed=0"]["validation"]["F1@5"])


def of_films(cells: Mapping[str, Any], method: str) -> list[dict[str, Any]]:
    if any(f"movielens/{TUNED_WITH.get(method, method)}/decay={d}/seed=0" not in cells for d in DECAYS):
        return []
    keys = (f"movielens/{method}/decay={decay_of(cells, method)}/seed={seed}" for seed in SEEDS)
    return [cells[key] for key in keys if key in cells]


# Known truth


@cache
def truth(seed: int) -> Generated:
    return generate(torch.Generator().manual_seed(seed))


def generated(method: str, seed: int) -> dict[str, Any]:
    from sklearn.metrics import roc_auc_score

    parts, likes = truth(seed)
    settings = {
        "train_batch_size": 500,
        "num_epochs": 60,
        "learning_rate": 0.05,
        "sgd_weight_decay": 0.3,
        "checkpointing_steps": 30,
    }
    figures, recommender = measure(parts, method, seed, **settings)
    users = torch.arange(likes.num_users)
    items = torch.arange(likes.num_items).expand(len(users), -1)
    unclicked = ~parts.train.dense(users)
    hidden = likes.dense(users)[unclicked]
    looks = {"score": recommender.predict(users, items)}
    if recommender.flip is not None:
        looks["posterior"] = recommender.posterior_positive(users, items)
        if not isinstance(recommender.flip, float):
            looks["flip"] = recommender.flip_probability(users, items)
    figures["auc"] = {k: round(float(roc_auc_score(hidden, v[unclicked])), 4) for k, v in looks.items()}
    return figures


def of_truth(cells: Mapping[str, Any], method: str) -> list[dict[str, Any]]:
    keys = (f"generated/{method}/seed={seed}" for seed in SEEDS)
    return [cells[key] for key in keys if key in cells]


# The page


def bars(cells: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What should come out, and whether it did."""
    found: dict[str, float] = {}

    def test(method: str, key: str) -> float:
        return mean(f["test"][key] for f in of_films(cells, method))

    def auc(method: str, key: str) -> float:
        return mean(f["auc"][key] for f in of_truth(cells, method))

    if all(len(of_films(cells, name)) == len(SEEDS) for name in METHODS):
        found["MovieLens: F1@5 of NBPO at least BPO's"] = test("NBPO", "F1@5") - test("BPO", "F1@5")
        found["MovieLens: F1@2 of NBPO at least BPO's"] = test("NBPO", "F1@2") - test("BPO", "F1@2")
        found["MovieLens: F1@2 of NBPO at least BPR's"] = test("NBPO", "F1@2") - test("BPR", "F1@2")
    if all(len(of_truth(cells, name)) == len(SEEDS) for name in GENERATED):
        found["generated: AUC of NBPO's flip probability below 0.5"] = 0.5 - auc("NBPO", "flip")
        found["generated: AUC of NBPO-o's posterior at least 0.85"] = auc("NBPO-o", "posterior") - 0.85
        found["generated: AUC of the score at least 0.75, each method"] = (
            min(auc(name, "score") for name in GENERATED) - 0.75
        )
    return {name: {"margin": round(by, 4), "met": by >= 0} for name, by in found.items()}


def draw(content: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cells = content["cells"]
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
    for axis, title, get, key in (
        (axes[0], "MovieLens, test", of_films, "F1@5"),
        (axes[1], "known truth, hidden likes", of_truth, "NDCG@10"),
    ):
        groups = {name: [f["test"][key] for f in get(cells, name)] for name in METHODS}
        seed_dots(axis, {name: values for name, values in groups.items() if values}, title, key)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def render(content: dict[str, Any]) -> str:
    """The results as Markdown; draws their picture."""
    cells = content["cells"]
    draw(content, RESULTS / "nbpo.png")
    text = head(content, "NBPO")
    rows = []
    keys = ("F1@2", "F1@5", "F1@10", "NDCG@5", "NDCG@10")
    for name in METHODS:
        if runs := of_films(cells, name):
            flips = [
                " ± ".join(f"{mean(f['flips'][kind][part] for f in runs):.2f}" for part in ("mean", "std"))
                if "flips" in runs[0]
                else ""
                for kind in ("clicked", "unclicked")
            ]
            figures = [few([f["test"][key] for f in runs]) for key in keys]
            rows.append([name, len(runs), decay_of(cells, name), *figures, *flips])
    header = ["", "seeds", "decay", *keys, "flip probability, clicked", "and unclicked"]
    text += "## MovieLens, test set\n\n" + table(header, rows) + "\n"
    rows = []
    for name in GENERATED:
        if runs := of_truth(cells, name):
            figures = [few([f["test"][key] for f in runs]) for key in ("F1@5", "NDCG@10")]
            looks = [
                few([f["auc"][key] for f in runs]) if key in runs[0]["auc"] else ""
                for key in ("score", "posterior", "flip")
            ]
            rows.append([name, len(runs), *figures, *looks])
    header = ["", "seeds", "F1@5", "NDCG@10", "AUC of the score", "AUC of the posterior", "AUC of the flip"]
    text += "## Known truth, hidden likes\n\n" + table(header, rows) + "\n"
    rows = [[name, f["margin"], "yes" if f["met"] else "no"] for name, f in bars(cells).items()]
    text += table(["bar", "margin", "met"], rows)
    return text + "\n![test figures of every method](nbpo.png)\n"


def main() -> None:
    chosen = sys.argv[1:] or ["generated", "movielens"]
    torch.set_num_threads(1)
    cells = Cells("nbpo", {"what": __doc__.strip().splitlines()[0]})
    if "generated" in chosen:
        for seed in SEEDS:
            for name in GENERATED:
                cells.once(f"generated/{name}/seed={seed}", lambda m=name, n=seed: generated(m, n))  # type: ignore[misc]
    if "movielens" in chosen:
        for seed in SEEDS:
            for name in METHODS:
                tuned = seed > 0 or name in TUNED_WITH
                for decay in (decay_of(cells.read(), name),) if tuned else DECAYS:
                    cells.once(
                        f"movielens/{name}/decay={decay}/seed={seed}",
                        lambda m=name, d=decay, n=seed: movielens(m, d, n),  # type: ignore[misc]
                    )


if __name__ == "__main__":
    main()
