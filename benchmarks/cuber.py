"""CUBER beside TRGP, GPM and fine-tuning: digits in permuted order of pixels, related tasks, an image model.

"permuted": five tasks of scikit-learn's digits, another order of pixels in each; MLP 64-100-100-10 without
bias, one head, SGD 0.06 (scale matrices 0.005), batch 16, 40 epochs, 300 examples, energy 0.97.
"alternating": two orders in turn, 60 new examples in each task, 120 epochs. Accuracies in per cent.

Bars, of means over the seeds of "permuted", for CUBER with eps2 = 0.2: ACC at least GPM's + 4, at least
fine-tuning's + 25 and within 1 of TRGP's; BWT at least GPM's + 5.

"bridge": the denoiser of the zoo's `emoji` is fine-tuned on scenes with compositions that it has never seen,
all of them of one style turned upside down, so that there is something to learn. Its pool is measured on
scenes of its own training; denoising losses of held-out scenes of both sets, before and after.

    python benchmarks/cuber.py [digits] [bridge]       (about six and eight minutes on a core)

The bridge is measured anew for another state of `emoji` if its cells are removed from the JSON.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from _results import RESULTS, Cells
from _tables import few, head, spread, table
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from dmkit.auxiliary.continual._streams import permuted_digits
from dmkit.auxiliary.continual.cuber import CUBER, GPM, learn
from dmkit.auxiliary.continual.cuber.training import Arguments, build_learner, run
from dmkit.training.arguments import TrainingArguments
from dmkit.training.classifying import ClassificationTask
from dmkit.training.networks import MLP
from dmkit.training.trainer import Trainer

SEEDS = (0, 1, 2, 3, 4)
METHODS: dict[str, dict[str, Any]] = {
    "fine-tuning": {"learner": "finetune"},
    "GPM": {"learner": "gpm"},
    "TRGP": {"learner": "trgp"},
    "CUBER, eps2 0.2": {"learner": "cuber", "eps2": 0.2},
    "CUBER, eps2 0": {"learner": "cuber", "eps2": 0.0},
}
STREAMS: dict[str, dict[str, Any]] = {
    "permuted": {"examples": 300, "num_epochs": 40, "seeds": (0, 1, 2)},
    "alternating": {"examples": 60, "num_epochs": 120, "seeds": SEEDS},
}
PUBLISHED = {"permuted": "MNIST, ten tasks: GPM 93.9 / -3, TRGP 96.3 / -0.8, CUBER 97.3 / -0.02"}
REGIMES = ("CUBER, eps2 0.2", "CUBER, eps2 0")
BRIDGE = ("fine-tuning", "GPM", "CUBER, eps2 0")
STEPS, BATCH, RATE, HELD_OUT = 200, 32, 2e-4, 256


def training(folder: str, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "checkpointing_steps": 0,
        "save_images_epochs": 0,
        "save_model_epochs": 0,
        "report_to": "none",
    }
    return TrainingArguments(output_dir=folder, **{**settings, **changes})


def on_digits(folder: str, stream: str, seed: int) -> TrainingArguments:
    return training(
        folder,
        seed=seed,
        train_batch_size=16,
        num_epochs=STREAMS[stream]["num_epochs"],
        learning_rate=0.06,
        optimizer="sgd",
        max_grad_norm=0.0,
    )


def digits(method: str, stream: str, seed: int) -> dict[str, Any]:
    """One run through a stream."""
    given = Arguments(stream=stream, examples=STREAMS[stream]["examples"], **METHODS[method])
    with tempfile.TemporaryDirectory() as folder:
        found = run(given, on_digits(folder, stream, seed))
    return {key: found[key] for key in ("ACC", "BWT", "kept_numbers", "accuracies")}


def opened(rule: Any) -> int:
    """Pairs of a layer and an old task that are in regime 3 now."""
    return sum(map(len, rule.still_open().values())) if hasattr(rule, "still_open") else 0


def regimes(method: str, stream: str, seed: int) -> dict[str, Any]:
    """A run that counts the pairs of a layer and an old task in regime 3 as tasks start and end."""
    given = Arguments(stream=stream, examples=STREAMS[stream]["examples"], **METHODS[method])
    torch.manual_seed(seed)
    model = MLP([64, *given.hidden, 10], bias=False)
    learner: Any = build_learner(given, model)
    counts = {"pairs": 0, "related": 0, "regime 3 at the start": 0, "regime 3 at the end": 0}
    tasks = permuted_digits(given.tasks, given.examples, seed, alternating=stream == "alternating")
    for t, rows in enumerate(data.rows() for data in tasks):
        task, batches = ClassificationTask(model), list(DataLoader(rows, batch_size=128))
        guarded, rule = learner.begin_task(task, batches)
        at_start = opened(rule)
        with tempfile.TemporaryDirectory() as folder:
            Trainer(guarded, rows, on_digits(folder, stream, seed), rule=rule).train()
        counts["regime 3 at the start"] += at_start
        counts["regime 3 at the end"] += opened(rule)
        learner.end_task(batches)
        counts["pairs"] += t * len(learner.layers)
        counts["related"] += sum(len(found) for found in learner.tasks[t].regimes.values())
    return counts


def of(cells: Mapping[str, Any], stream: str, method: str, key: str) -> list[float]:
    prefix = f"{stream}/{method}/seed="
    return [figures[key] for name, figures in cells.items() if name.startswith(prefix)]


def summarise(cells: Cells) -> None:
    """Whether the bars are met."""
    known = cells.read()
    acc = {name: mean(of(known, "permuted", name, "ACC")) for name in METHODS}
    bwt = {name: mean(of(known, "permuted", name, "BWT")) for name in METHODS}
    cuber = "CUBER, eps2 0.2"
    bars = {
        "ACC >= GPM + 4": acc[cuber] - acc["GPM"] - 4,
        "ACC >= fine-tuning + 25": acc[cuber] - acc["fine-tuning"] - 25,
        "ACC within 1 of TRGP": 1 - abs(acc[cuber] - acc["TRGP"]),
        "BWT >= GPM + 5": bwt[cuber] - bwt["GPM"] - 5,
    }
    cells.record("bars", {name: {"margin": round(by, 2), "met": by >= 0} for name, by in bars.items()})


# The bridge


@cache
def scenes(kind: str, split: str) -> Any:
    """Encoded scenes: of the model's own kind, or the same drawings upside down under their captions."""
    from diffusers import StableDiffusionPipeline

    from dmkit import data, zoo
    from dmkit.training.caching import CachedTensors, encode_images, encode_prompts

    pipe = StableDiffusionPipeline.from_pretrained(zoo.path("emoji"), torch_dtype=torch.float32)
    count = {"train": 2048, "test": HELD_OUT}[split]
    source = data.load("emoji", split="test" if split == "test" else "train")
    chosen = source.select(range(count))
    captions = list(chosen.captions)
    if kind == "new":
        turned = chosen.images_uint8().flip(-2)
        chosen = data.ImageDataset(turned, name="emoji", split=split, channels=3, resolution=32)
        captions = [f"{caption}, upside down" for caption in captions]
    latents = encode_images(chosen, pipe.vae)
    words = {"embeddings": encode_prompts(captions, pipe.text_encoder, pipe.tokenizer)}
    return CachedTensors({**latents, **words})


def losses(task: Any) -> dict[str, float]:
    """The mean denoising loss of held-out scenes of both kinds, at the same noises every time."""
    from dmkit.training.randomness import Draws
    from dmkit.training.trainer import Step

    found = {}
    for kind in ("old", "new"):
        values: list[Tensor] = []
        for repeat in range(4):
            for k, batch in enumerate(DataLoader(scenes(kind, "test"), batch_size=64)):
                draws = Draws(1, 100 * repeat + k, rank=0, world=1)
                with torch.no_grad():
                    values.append(task.training_step(batch, Step(k, "main", draws))["loss"])
        found[kind] = round(float(torch.stack(values).mean()), 5)
    return found


def denoiser() -> Callable[[], Any]:
    """The shipped denoiser: makes a task of it, as often as it is called."""
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    from dmkit import zoo
    from dmkit.training.denoising import TextToImageTask

    pipe = StableDiffusionPipeline.from_pretrained(zoo.path("emoji"), torch_dtype=torch.float32)
    pipe.unet.eval()
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    return lambda: TextToImageTask(pipe, scheduler, snr_gamma=5.0)


def some(kind: str) -> list[Any]:
    """256 scenes, in batches."""
    return list(DataLoader(Subset(scenes(kind, "train"), range(256)), batch_size=64))


def knowing(method: str, task: Callable[[], Any]) -> Any:
    """A learner whose first task is behind the model: only what it looked at is measured."""
    unet = task().modules["unet"]
    if method == "GPM":
        learner = GPM(unet, energy=0.97)
    else:
        learner = CUBER(unet, energy=0.97, eps2=0.0, scale_learning_rate=RATE / 10, check="ema")
    learner.begin_task(task())
    learner.end_task(some("old"))
    return learner


def bridge_start() -> dict[str, int]:
    """How many layers are in regime 3 when CUBER with eps2 = 0 turns to the new scenes."""
    task = denoiser()
    learner = knowing("CUBER", task)
    _, rule = learner.begin_task(task(), some("new"))
    return {"pairs": len(learner.layers), "regime 3 at the start": opened(rule)}


def bridge(method: str, seed: int) -> dict[str, Any]:
    """Fine-tunes the shipped denoiser on the new scenes."""
    task = denoiser()
    before = losses(task())
    learner = None if method == "fine-tuning" else knowing(method, task)
    unet = task().modules["unet"]
    with tempfile.TemporaryDirectory() as folder:
        given = training(
            folder,
            seed=seed,
            train_batch_size=BATCH,
            max_train_steps=STEPS,
            learning_rate=RATE,
            adam_beta1=0.9,
        )
        learn(task(), scenes("new", "train"), given, learner, examples=256)
    unet.eval()
    after = {"old": losses(task())["old"]}
    if learner is None:
        after["new"] = losses(task())["new"]
    else:
        with learner.use_task(1):
            after["new"] = losses(task())["new"]
    figures: dict[str, Any] = {"before": before, "after": after}
    if learner is not None:
        ranks = [learner.subspace(name, 0).shape for name in learner.layers]
        figures["pool_share"] = round(mean(r / d for d, r in ranks), 3)
        kinds = [learner.regimes(name, 1)[0] for name in learner.layers]
        figures["layers_by_regime"] = {str(k): kinds.count(k) for k in (1, 2, 3)}
        figures["kept_numbers"] = learner.memory_numel()
    return figures


# The page


def draw(content: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cells = content["cells"]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6))
    for axis, stream in zip(axes, STREAMS, strict=False):
        for name in METHODS:
            runs = of(cells, stream, name, "accuracies")
            if runs:
                first = [mean(run[t][0] for run in runs) for t in range(5)]
                axis.plot(range(1, 6), first, marker="o", label=name)
        axis.set(
            title=f"first task, {stream}", xlabel="tasks learned", ylabel="accuracy, %", xticks=range(1, 6)
        )
    axes[0].legend(fontsize=8)
    for name in BRIDGE:
        runs = [c for key, c in cells.items() if key.startswith(f"bridge/{name}/")]
        if runs:
            forgotten = [100 * (c["after"]["old"] / c["before"]["old"] - 1) for c in runs]
            gained = [100 * (1 - c["after"]["new"] / c["before"]["new"]) for c in runs]
            axes[2].scatter(gained, forgotten, label=name)
    axes[2].set(
        title="emoji", xlabel="loss of new scenes falls by, %", ylabel="loss of old scenes rises by, %"
    )
    axes[2].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def render(content: dict[str, Any]) -> str:
    """The results as Markdown; draws their picture."""
    cells = content["cells"]
    draw(content, RESULTS / "cuber.png")
    text = head(content, "CUBER, TRGP and GPM")
    for stream in STREAMS:
        rows = []
        for name in METHODS:
            if acc := of(cells, stream, name, "ACC"):
                bwt = of(cells, stream, name, "BWT")
                kept = few([float(v) for v in of(cells, stream, name, "kept_numbers")])
                rows.append([name, len(acc), spread(acc), spread(bwt), kept])
        text += f"## {stream}\n\n" + table(["", "seeds", "ACC, %", "BWT", "numbers kept"], rows) + "\n"
        if stream in PUBLISHED:
            text += f"The paper, on {PUBLISHED[stream]}.\n\n"
    if "bars" in cells:
        rows = [[name, f["margin"], "yes" if f["met"] else "no"] for name, f in cells["bars"].items()]
        text += table(["bar", "margin", "met"], rows) + "\n"
    text += "## Regimes: pairs of a layer and an old task, over a run\n\n"
    counts = {key.split("/", 1)[1]: f for key, f in cells.items() if key.startswith("regimes/")}
    names = ("pairs", "related", "regime 3 at the start", "regime 3 at the end")
    text += table(["", *names], [[key, *(f.get(name, "") for name in names)] for key, f in counts.items()])
    text += "\n"
    rows = []
    for key, f in cells.items():
        if key.startswith("bridge/"):
            ends = [f"{f['before'][k]:.4f} → {f['after'][k]:.4f}" for k in ("old", "new")]
            regimes = " / ".join(map(str, f.get("layers_by_regime", {}).values()))
            rows.append([key.split("/", 1)[1], *ends, f.get("pool_share", ""), regimes])
    if rows:
        text += "## emoji: denoising loss of held-out scenes\n\n"
        text += table(["", "old scenes", "new scenes", "share of directions kept", "regimes 1 / 2 / 3"], rows)
    return text + "\n![accuracy of the first task, and the denoiser](cuber.png)\n"


def main() -> None:
    parts = sys.argv[1:] or ["digits", "bridge"]
    torch.set_num_threads(1)
    cells = Cells("cuber", {"what": __doc__.strip().splitlines()[0]})
    if "digits" in parts:
        for stream, kind in STREAMS.items():
            for seed in kind["seeds"]:
                for method in METHODS:
                    cells.once(
                        f"{stream}/{method}/seed={seed}",
                        lambda m=method, s=stream, n=seed: digits(m, s, n),  # type: ignore[misc]
                    )
        for stream in STREAMS:
            for method in REGIMES:
                cells.once(
                    f"regimes/{stream}/{method}/seed=0",
                    lambda m=method, s=stream: regimes(m, s, 0),  # type: ignore[misc]
                )
        summarise(cells)
    if "bridge" in parts:
        cells.once("regimes/bridge/CUBER, eps2 0", bridge_start)
        for method in BRIDGE:
            for seed in (0, 1, 2):
                cells.once(f"bridge/{method}/seed={seed}", lambda m=method, n=seed: bridge(m, n))  # type: ignore[misc]


if __name__ == "__main__":
    main()
