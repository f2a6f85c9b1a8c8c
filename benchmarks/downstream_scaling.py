"""Downstream scaling laws where the law is known, BLEU of a generated translation task, and the Fréchet
distance of a diffusion model over the images that it has seen.

    python benchmarks/downstream_scaling.py        (twenty minutes on a core)

In the task a "pre-training" of D tokens, Zipf over 20,000 words, teaches the words that it meets,
"fine-tuning" meets 60 more, and 400 sentences of 15 words are translated word by word; a word never met is
copied. `aligned`: every word has another translation, and meeting it teaches it. `misaligned`: half of all
words are cognates, right when copied, and half of all words are false friends, for which pre-training
teaches something wrong instead. The budgets of one seed are checkpoints of one pre-training.

For `frechet` a UNet of 0.6 M weights learns Fashion-MNIST at 16x16, each image seen once: AdamW 1e-3 after 50
steps of warm-up, batches of 32, averaged weights. At six checkpoints the Fréchet distance
(EfficientNet-Lite0, not FID) of 500 samples, 10 DDIM steps, to 5,000 test images. The power law of
the first checkpoints of all seeds predicts the last one.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from functools import cache
from typing import Any

import numpy as np
import torch
from _results import RESULTS, Cells
from _tables import few, head, number, table

from dmkit import data, metrics
from dmkit.auxiliary.scaling.downstream_scaling import Fit, LogLaw, PowerLaw, diagnose, fit
from dmkit.auxiliary.scaling.downstream_scaling.laws import Law
from dmkit.sampling import sample_batch
from dmkit.training.arguments import TrainingArguments
from dmkit.training.denoising import DenoisingTask
from dmkit.training.trainer import Trainer

WORDS, SENTENCES, LENGTH, TUNING = 20_000, 400, 15, 60
BUDGETS = [100 * 2**k for k in range(9)]
REPEATS, SEEDS = range(3), 3
DATA = np.array([1e8, 3e8, 1e9, 3e9, 1e10, 3e10, 1e11])
LAWS: dict[str, tuple[Law, Any, dict[str, float]]] = {
    "log": (LogLaw(), lambda D: (-2.0 + 0.35 * np.log(D)) ** 1.9, {"alpha": 0.35, "beta": 1.9}),
    "power": (PowerLaw(), lambda D: 1.2 + 50 / D**0.2, {"E": 1.2, "alpha": 0.2}),
}
DESIGNS = {"4 points": (4, 1), "4 points, 3 seeds": (4, 3), "7 points": (7, 1)}
NOISY = [
    *(("log", "4 points", sd) for sd in (0.005, 0.01, 0.02)),
    ("log", "4 points, 3 seeds", 0.01),
    ("log", "7 points", 0.01),
    ("power", "4 points, 3 seeds", 0.01),
    ("power", "7 points", 0.01),
]
CURVES, DRAWS = 200, 200
STEPS, BATCH, SAMPLES, FRECHET = (53, 79, 119, 178, 267, 400), 32, 500, "frechet_efficientnet_lite0"
IMAGES = [BATCH * step for step in STEPS]
MEDIANS = {0.005: 0.04, 0.01: 0.10, 0.02: 0.15}
ABOUT = {
    "what": "Laws fitted to the smallest D and checked on the larger ones: BLEU of a generated translation "
    "task, noisy curves of known laws, and the Fréchet distance of a diffusion model over images seen.",
    "task": "3 repeats of 3 seeds each; BLEU of torchmetrics' SacreBLEUScore, tokenize 'none'",
    "noisy": f"{CURVES} curves of log-normal noise for each row, intervals of {DRAWS} draws at 95 %; 4 "
    "points are checked on the 3 larger D, 7 points at ten times the largest",
    "frechet": f"a UNet on Fashion-MNIST at 16x16, {SAMPLES} samples a checkpoint, 3 seeds",
}


# -- the task


def translate(aligned: bool, random: np.random.Generator) -> list[float]:
    """BLEU after each budget of one pre-training."""
    from torchmetrics.text import SacreBLEUScore

    zipf = 1 / np.arange(1, WORDS + 1)
    zipf /= zipf.sum()
    words = np.arange(WORDS)
    right, learned = random.permutation(WORDS), random.permutation(WORDS)
    if aligned:
        learned = right
    else:
        right = np.where(random.random(WORDS) < 0.5, words, right)  # cognates
        learned = np.where(random.random(WORDS) < 0.5, learned, words)  # false friends
    met = random.choice(WORDS, BUDGETS[-1], p=zipf)
    tuned = np.isin(words, random.choice(WORDS, TUNING, p=zipf))
    sentences = random.choice(WORDS, (SENTENCES, LENGTH), p=zipf)

    def text(mapping: np.ndarray) -> list[str]:
        return [" ".join(f"w{word}" for word in mapping[sentence]) for sentence in sentences]

    truth = [[sentence] for sentence in text(right)]
    scores = []
    for budget in BUDGETS:
        known = np.isin(words, met[:budget])
        bleu = SacreBLEUScore(tokenize="none")
        bleu.update(text(np.where(tuned, right, np.where(known, learned, words))), truth)
        scores.append(100 * float(bleu.compute()))
    return scores


def task(aligned: bool, repeat: int) -> dict[str, Any]:
    """Scores of three seeds a budget, the law of the four smallest, and what simpler ways to go on
    predict.
    """
    runs = [translate(aligned, np.random.default_rng([repeat, seed])) for seed in range(SEEDS)]
    D, y = BUDGETS * SEEDS, [score for run in runs for score in run]
    early = fit(LogLaw(), D, y, first=4)
    means = [statistics.mean(scores) for scores in zip(*runs, strict=True)]
    x, held = np.log(BUDGETS), np.log(means[4:])
    line = np.polyfit(x[:4], means[:4], 1)
    power = np.polyfit(x[:4], np.log(means[:4]), 1)
    others = {
        "line in log D": np.log(np.polyval(line, x[4:]).clip(1e-9)),
        "power law": np.polyval(power, x[4:]),
        "last score": np.full(len(held), math.log(means[3])),
    }
    diagnosis = diagnose(D, y)
    lower, upper = early.interval(BUDGETS[4:], measured=True)
    inside = [float(a <= b <= c) for a, b, c in zip(lower, np.exp(held), upper, strict=True)]
    return {
        "scores": means,
        "coefficients": early.coefficients,
        "held out": early.held_out(BUDGETS[4:], means[4:]),
        "inside": inside,
        "others": {name: np.abs(value - held).tolist() for name, value in others.items()},
        "status": diagnosis.status,
        "reason": diagnosis.reason,
    }


# -- noisy curves of known laws


def noisy(name: str, design: str, sd: float) -> dict[str, Any]:
    """How often intervals hold the truth, and the largest error on larger D."""
    law, curve, true = LAWS[name]
    points, seeds = DESIGNS[design]
    D = np.tile(DATA[:points], seeds)
    ahead = DATA[points:] if points < len(DATA) else DATA[-1:] * 10
    errors, holds = [], {key: 0 for key in (*true, "law")}
    for index in range(CURVES):
        random = np.random.default_rng([index, points, seeds])
        found = fit(law, D, curve(D) * np.exp(sd * random.standard_normal(len(D))))
        errors.append(found.held_out(ahead, curve(ahead))["max"])
        coefficients, values = intervals(found, ahead[-1])
        for key, value in {**true, "law": curve(ahead[-1])}.items():
            lower, upper = {**coefficients, "law": values}[key]
            holds[key] += bool(lower <= value <= upper)
    return {
        "median": statistics.median(errors),
        "max": max(errors),
        "coverage": {key: count / CURVES for key, count in holds.items()},
    }


def intervals(found: Fit, at: float) -> tuple[dict[str, Any], tuple[float, float]]:
    """Of the coefficients and of the law at one D."""
    lower, upper = found.interval(at, draws=DRAWS)
    return found.coefficient_intervals(draws=DRAWS), (float(lower), float(upper))


def tolerances() -> dict[str, Any]:
    """What SciPy's default tolerance finds in A, α and β themselves on noiseless points, and the fit here."""
    from scipy.optimize import minimize

    _, curve, _ = LAWS["log"]
    log_y = np.log(curve(DATA[:4]))
    x = np.log(DATA[:4])
    centre = float(x.mean())

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        a, alpha, beta = theta
        u = a + alpha * (x - centre)
        if u.min() <= 1e-6:
            return 1e3, np.zeros(3)
        residual = beta * np.log(u) - log_y
        slopes = np.stack([beta / u, beta * (x - centre) / u, np.log(u)], axis=1)
        return float((residual**2).sum() / 2), residual @ slopes

    rows = {}
    for name, options in {"default": {}, "tight": {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000}}.items():
        begin = time.process_time()
        ends = [
            minimize(objective, (a, alpha, beta), jac=True, method="L-BFGS-B",
                     bounds=[(None, None), (0, None), (1e-3, 10)], options=options)
            for a in (0.5, 3.0, 8.0) for alpha in (0.1, 0.4, 1.0) for beta in (0.5, 1.5, 3.0, 5.0)
        ]  # fmt: skip
        best = min(ends, key=lambda end: end.fun)
        seconds = time.process_time() - begin
        rows[f"A, alpha, beta, {name}"] = {"alpha": best.x[1], "beta": best.x[2], "seconds": seconds}
    begin = time.process_time()
    found = fit(LogLaw(), DATA, curve(DATA), first=4).coefficients
    rows["here"] = {
        "alpha": found["alpha"],
        "beta": found["beta"],
        "seconds": time.process_time() - begin,
    }
    return rows


# -- a diffusion model


@cache
def reference() -> metrics.FeatureSet:
    images = data.load("fashion-mnist", split="test", resolution=16)
    rows = torch.stack([images[k]["images"] for k in range(5000)])
    return metrics.describe(rows, metrics.EfficientNetLite0(), keep_features=False)


def distance(images: Any) -> float:
    found = metrics.evaluate_images(images, reference(), metrics.EfficientNetLite0(), ("frechet",))
    return round(found[FRECHET], 2)


def real() -> float:
    """What as many real images have."""
    images = data.load("fashion-mnist", split="train", resolution=16)
    return distance(torch.stack([images[k]["images"] for k in range(SAMPLES)]))


def frechet(seed: int) -> list[float]:
    """The distance at every checkpoint of one training."""
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

    torch.manual_seed(seed)
    network = UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        attention_head_dim=32,
        norm_num_groups=8,
    )
    found = []
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            seed=seed,
            train_batch_size=BATCH,
            max_train_steps=STEPS[-1],
            learning_rate=1e-3,
            lr_scheduler="constant_with_warmup",
            lr_warmup_steps=50,
            use_ema=True,
            ema_max_decay=0.98,
            report_to="none",
            checkpointing_steps=0,
            save_images_epochs=0,
            save_model_epochs=0,
        )
        images = data.load("fashion-mnist", split="train", resolution=16)
        trainer = Trainer(DenoisingTask(network, DDPMScheduler()), images, arguments)
        for step in STEPS:
            trainer.max_steps = step
            trainer.train()
            with trainer.averaged() as modules:
                starts = range(1_000_000 * seed, 1_000_000 * seed + SAMPLES, 100)
                batches = (
                    sample_batch(modules["unet"], DDIMScheduler(), 10, range(k, k + 100)).clamp(-1, 1)
                    for k in starts
                )
                found.append(distance(batches))
    return found


def last_from_first(curves: list[list[float]], first: int) -> dict[str, Any]:
    """The last checkpoint's mean distance, from the first ones of all seeds."""
    early = fit(PowerLaw(), IMAGES * len(curves), [y for curve in curves for y in curve], first=first)
    means = [statistics.mean(values) for values in zip(*curves, strict=True)]
    lower, upper = early.interval(IMAGES[-1])
    line = np.polyfit(np.log(IMAGES[:first]), np.log(means[:first]), 1)
    predicted = {
        "law": float(np.exp(early.log_value(IMAGES[-1]))),
        "law without a floor": float(np.exp(np.polyval(line, math.log(IMAGES[-1])))),
        "last distance": means[first - 1],
    }
    return {
        "ahead": STEPS[-1] / STEPS[first - 1],
        "coefficients": early.coefficients,
        "interval": [float(lower), float(upper)],
        "predicted": predicted,
        "error": {name: value / means[-1] - 1 for name, value in predicted.items()},
    }


# -- tables


def bars(cells: dict[str, Any]) -> dict[str, Any]:
    aligned, misaligned = (of(cells, f"task/{kind}/") for kind in ("aligned", "misaligned"))
    # Up to 16 times the largest fitted D, 800.
    near = [max(abs(e) for e in one["held out"]["log_errors"][:4]) for one in aligned]
    beta = [one["coefficients"]["beta"] for one in aligned]
    ratio = statistics.mean(one["held out"]["huber"] for one in misaligned) / statistics.mean(
        one["held out"]["huber"] for one in aligned
    )
    statuses = [[one["status"] for one in kind] for kind in (aligned, misaligned)]
    found = {
        "aligned: largest log error up to 16 x the fitted D, mean ≤ 0.10": [
            near,
            statistics.mean(near) <= 0.1,
        ],
        "aligned: β, mean in [1.5, 4.5]": [beta, 1.5 <= statistics.mean(beta) <= 4.5],
        "misaligned / aligned mean Huber loss held out ≥ 5": [ratio, ratio >= 5],
        "aligned is `improving`, all repeats": [
            statuses[0].count("improving"),
            {"improving"} == set(statuses[0]),
        ],
        "misaligned is `misaligned`, all repeats": [
            statuses[1].count("misaligned"),
            {"misaligned"} == set(statuses[1]),
        ],
    }
    bridge = last_from_first(of(cells, "frechet/"), 4)
    error = abs(bridge["error"]["law"])
    found["Fréchet distance: the first 4 predict the last within 10 %"] = [error, error <= 0.1]
    for sd, most in MEDIANS.items():
        median = cells[f"noisy/log/4 points/{sd}"]["median"]
        found[f"noise {sd}: median of the largest log error ≤ {most}"] = [median, median <= most]
    return found


def of(cells: dict[str, Any], start: str) -> list[Any]:
    return [figures for key, figures in cells.items() if key.startswith(start)]


def render(content: dict[str, Any]) -> str:
    cells = content["cells"]
    text = head(content, "Downstream scaling laws")
    text += "## Translation: log errors held out, by D over the largest fitted D\n\n"
    times = ["2 x", "4 x", "8 x", "16 x", "32 x"]
    rows = []
    for kind in ("aligned", "misaligned"):
        runs = of(cells, f"task/{kind}/")
        errors = {"log law": [[abs(e) for e in one["held out"]["log_errors"]] for one in runs]}
        for name in runs[0]["others"]:
            errors[name] = [one["others"][name] for one in runs]
        rows += [[kind, name, *map(few, zip(*e, strict=True))] for name, e in errors.items()]
    text += table(["", "", *times], rows)
    inside = [statistics.mean(one["inside"]) for one in of(cells, "task/aligned/")]
    text += f"\nAligned scores inside the interval for a new measurement: {few(inside)}.\n"
    text += "\n## What the guide says\n\n"
    rows = [
        [k, c["status"], c["reason"], number(c["coefficients"])] for k, c in cells.items() if k[:4] == "task"
    ]
    text += table(["", "status", "reason", "coefficients of the first 4"], rows)
    text += "\n## Noisy curves of a known law\n\n"
    rows = []
    for law, design, sd in NOISY:
        one = cells[f"noisy/{law}/{design}/{sd}"]
        rows.append([law, design, sd, number(one["median"]), number(one["max"]), number(one["coverage"])])
    text += table(
        ["law", "fitted to", "noise", "median error", "largest error", "intervals of 95 % hold"], rows
    )
    text += "\n## Noiseless points of exponent 0.35 and β = 1.9\n\n"
    text += table(
        ["L-BFGS in", "exponent", "β", "seconds"],
        [
            [k, f"{v['alpha']:.9f}", f"{v['beta']:.8f}", number(v["seconds"])]
            for k, v in cells["tolerances"].items()
        ],
    )
    curves = of(cells, "frechet/")
    text += "\n## Fréchet distance over images seen\n\n"
    rows = [[f"{d:,}", few(values)] for d, values in zip(IMAGES, zip(*curves, strict=True), strict=True)]
    text += table(["images", f"distance, {len(curves)} seeds"], rows)
    text += f"\nAs many real images: {cells['real images']:.1f}.\n\n"
    rows = []
    for first in range(3, len(IMAGES)):
        one = last_from_first(curves, first)
        errors = [f"{100 * error:+.1f} %" for error in one["error"].values()]
        law = f"{one['predicted']['law']:.1f} [{', '.join(f'{end:.1f}' for end in one['interval'])}]"
        rows.append([f"{first}, {one['ahead']:.2g} x", law, *errors, number(one["coefficients"])])
    header = ["from the first, ahead", "the last by the law", "error", "without a floor", "as it was"]
    text += table([*header, "coefficients"], rows)
    text += "\n## Bars\n\n" + table(
        ["", "measured", "met"], [[k, number(v[0]), number(v[1])] for k, v in bars(cells).items()]
    )
    draw(cells)
    return text + "\n![BLEU over data](downstream_scaling.png)\n"


def draw(cells: dict[str, Any]) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    grid = np.geomspace(BUDGETS[0], BUDGETS[-1], 60)
    for axis, kind in zip(axes[:2], ("aligned", "misaligned"), strict=True):
        for index, one in enumerate(of(cells, f"task/{kind}/")):
            colour = f"C{index}"
            axis.plot(BUDGETS[:4], one["scores"][:4], "o", color=colour, ms=5)
            axis.plot(BUDGETS[4:], one["scores"][4:], "o", color=colour, ms=5, mfc="none")
            c = one["coefficients"]
            law = (c["log_A"] + c["alpha"] * np.log(grid)) ** c["beta"]
            axis.plot(grid, law, color=colour, lw=1)
        axis.set(title=kind, xscale="log", xlabel="tokens of pre-training", ylabel="BLEU")
    curves, grid = of(cells, "frechet/"), np.geomspace(IMAGES[0], IMAGES[-1], 60)
    for index, curve in enumerate(curves):
        axes[2].plot(IMAGES[:4], curve[:4], "o", color=f"C{index}", ms=5)
        axes[2].plot(IMAGES[4:], curve[4:], "o", color=f"C{index}", ms=5, mfc="none")
    early = fit(PowerLaw(), IMAGES * len(curves), [y for curve in curves for y in curve], first=4)
    axes[2].plot(grid, np.exp(early.log_value(grid)), color="black", lw=1)
    axes[2].fill_between(grid, *early.interval(grid), color="black", alpha=0.12, lw=0)
    axes[2].set(title="a diffusion model", xscale="log", xlabel="images seen", ylabel="Fréchet distance")
    figure.suptitle("laws of the four smallest D (full points); hollow: held out", fontsize=10)
    figure.savefig(RESULTS / "downstream_scaling.png", dpi=110)
    plt.close(figure)


def main() -> None:
    torch.set_num_threads(1)
    cells = Cells("downstream_scaling", ABOUT)
    cells.once("tolerances", tolerances)
    for repeat in REPEATS:
        for kind in ("aligned", "misaligned"):
            cells.once(f"task/{kind}/{repeat}", lambda k=kind, r=repeat: task(k == "aligned", r))
    for law, design, sd in NOISY:
        cells.once(f"noisy/{law}/{design}/{sd}", lambda a=law, b=design, c=sd: noisy(a, b, c))
    cells.once("real images", real)
    for seed in range(SEEDS):
        cells.once(f"frechet/{seed}", lambda k=seed: frechet(k))


if __name__ == "__main__":
    main()
