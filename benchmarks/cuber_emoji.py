"""The shipped `emoji` model learns a second set of subjects: what does it forget of the first?

New are 24 subjects that it has never seen (a sheep, a violin, ...), each in both styles, on all eight
backgrounds, large or small in a corner: 2,000 scenes to train on, 256 others held out. Trained by
`scripts/train_text_to_image.py`, 120 steps of 16 scenes, AdamW, rate 0.0003, constant: plainly, and with
`--continual gpm|trgp|cuber --old_dataset_name emoji`, which looks at 256 scenes of the first set.

Loss: of 256 held-out scenes of each set, the same two noises every time. Old subjects seen: by
`emoji-evaluator`, in 100 images of held-out captions of the first set, DDIM, 10 steps, guidance 4. Old scenes
are for the network without the new scale matrices, new ones for the network with them.

    python benchmarks/cuber_emoji.py        (a quarter of an hour on a core)
"""

from __future__ import annotations

import atexit
import json
import random
import sys
import tempfile
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from _results import RESULTS, Cells
from _tables import few, head, number, table
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch.utils.data import DataLoader

from dmkit import data, zoo
from dmkit.auxiliary.continual.cuber import GPM
from dmkit.auxiliary.continual.cuber.finetuning import MEMORY, ContinualArguments
from dmkit.data import scenes
from dmkit.data.emoji import Art
from dmkit.evaluation import load_evaluator, quality
from dmkit.schedulers.registry import build
from dmkit.training.arguments import TrainingArguments
from dmkit.training.caching import CachedTensors, encode_dataset
from dmkit.training.denoising import TextToImageTask
from dmkit.training.randomness import Draws
from dmkit.training.trainer import Step

NEW = (
    *("sheep", "horse", "wolf", "bat", "eagle", "parrot", "hedgehog", "kangaroo", "lobster", "squid"),
    *("dolphin", "swan", "spider", "croissant", "pretzel", "taxi", "violin", "saxophone", "banjo"),
    *("microscope", "telescope", "axe", "shield", "toolbox"),
)
METHODS = ("fine-tuning", "gpm", "trgp", "cuber")
NAMES = {"fine-tuning": "fine-tuning", "gpm": "GPM", "trgp": "TRGP", "cuber": "CUBER, ε₂ = 0"}
SEEDS, STEPS, BATCH, RATE, OLD = (0, 1, 2), 120, 16, 3e-4, 256
TRAINED, HELD_OUT, JUDGED = 2000, 256, 100
SAMPLE_STEPS, GUIDANCE = 10, 4.0
ABOUT = {"what": " ".join(__doc__.split("\n    python")[0].split("\n\n", 1)[1].split())}


# The second set


@cache
def room() -> Path:
    """A folder for what is made here, with the new drawings as `data.load` reads them; it goes with the
    process.
    """
    keep = tempfile.TemporaryDirectory()
    atexit.register(keep.cleanup)
    dice = random.Random("new subjects")
    studio = scenes.Studio({vendor: Art.load(vendor) for vendor in scenes.STYLES.values()})
    for split, count in {"train": TRAINED, "test": HELD_OUT}.items():
        folder = Path(keep.name) / "new" / split
        folder.mkdir(parents=True)
        lines = []
        for k in range(count):
            things = (scenes.Thing(dice.choice(NEW)),)
            style, background = dice.choice(tuple(scenes.STYLES)), dice.choice(tuple(scenes.BACKGROUNDS))
            place = dice.choice(scenes.PLACES) if dice.random() < 0.25 else None
            scene = scenes.Scene(things, style, background, place)
            pixels = studio.draw(scene).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / f"{k:04d}.png")
            lines.append(json.dumps({"file_name": f"{k:04d}.png", "text": scenes.caption(scene, dice)}))
        (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return Path(keep.name)


@cache
def held_out(kind: str) -> data.ImageDataset:
    """256 captioned scenes of the first set ("old") or of the second ("new")."""
    source = "emoji" if kind == "old" else str(room() / "new")
    return data.load(source, split="test", resolution=32).select(range(HELD_OUT))


# Training


def train(method: str, seed: int, folder: Path) -> None:
    flags: dict[str, Any] = {
        "pretrained_model_name_or_path": zoo.path("emoji"),
        "dataset_name": room() / "new",
        "cache_dir": room() / "cache",
        "output_dir": folder,
        "seed": seed,
        "max_train_steps": STEPS,
        "train_batch_size": BATCH,
        "learning_rate": RATE,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "adam_beta1": 0.9,
        "snr_gamma": 5.0,
        "checkpointing_steps": 0,
        "save_images_epochs": 0,
        "save_model_epochs": 0,
        "report_to": "none",
    }
    if method != "fine-tuning":
        flags |= {"continual": method, "old_dataset_name": "emoji", "old_examples": OLD}
    script().main([str(part) for name, value in flags.items() for part in (f"--{name}", value)])


@cache
def script() -> Any:
    sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
    import train_text_to_image

    return train_text_to_image


# Measuring


def pipeline(folder: Path, unet: Any = None) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet = (unet or pipe.unet).eval()
    return pipe


@cache
def encoded(kind: str) -> CachedTensors:
    pipe = pipeline(zoo.path("emoji"))
    return encode_dataset(held_out(kind), pipe.vae, pipe.text_encoder, pipe.tokenizer, room() / kind)


@torch.no_grad()
def loss(pipe: StableDiffusionPipeline, kind: str) -> float:
    """Of the held-out scenes, each at two noises that are the same every time; no caption is dropped."""
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    task = TextToImageTask(pipe, scheduler, snr_gamma=5.0, caption_dropout=0.0)
    found = []
    for repeat in range(2):
        for k, batch in enumerate(DataLoader(encoded(kind), batch_size=64)):
            here = Step(k, "main", Draws(1, 100 * repeat + k, rank=0, world=1))
            found.append(float(task.training_step(batch, here)["loss"]))
    return mean(found)


@cache
def judge() -> Any:
    return load_evaluator()


def figures(old: StableDiffusionPipeline, new: StableDiffusionPipeline) -> dict[str, float]:
    """What both networks are worth, each on its set."""
    seen = quality(
        old,
        build("ddim", old.scheduler.config),
        SAMPLE_STEPS,
        JUDGED,
        None,
        metrics=("concepts",),
        seed=1_000_000,
        prompt=held_out("old").captions[:JUDGED],
        evaluator=judge(),
        guidance_scale=GUIDANCE,
    )
    return {
        "old_loss": loss(old, "old"),
        "new_loss": loss(new, "new"),
        "old_subjects_seen": seen["concepts_subject"],
    }


def shipped() -> dict[str, Any]:
    pipe = pipeline(zoo.path("emoji"))
    return figures(pipe, pipe)


def learned(method: str, seed: int) -> dict[str, Any]:
    """Fine-tunes and measures."""
    folder = room() / f"{method}-{seed}"
    train(method, seed, folder)
    new = pipeline(folder)
    memory = folder / MEMORY
    if (memory / "unet").is_dir():
        old = pipeline(folder, UNet2DConditionModel.from_pretrained(memory / "unet"))
    else:
        old = new
    found: dict[str, Any] = figures(old, new)
    if memory.is_dir():
        learner = GPM.load(memory, old.unet)
        found["pool_share"] = mean(pool.shape[1] / pool.shape[0] for pool in learner.pools.values())
        kinds = [learner.regimes(name, 1)[0] for name in learner.layers]
        found["layers_by_regime"] = [kinds.count(k) for k in (1, 2, 3)]
        found["kept_mb"] = sum(path.stat().st_size for path in memory.glob("continual.*")) / 1e6
    return found


def agreeing() -> dict[str, int]:
    """How many layers are in regime 3 as CUBER turns to the new scenes."""
    pipe, training = pipeline(zoo.path("emoji")), TrainingArguments(output_dir="unused", learning_rate=RATE)
    flags = ContinualArguments(continual="cuber", old_dataset_name="emoji", old_examples=OLD)
    task = TextToImageTask(pipe, DDPMScheduler.from_config(pipe.scheduler.config), snr_gamma=5.0)
    learner = flags.learner(pipe.unet, training)
    images = {"old": data.load("emoji"), "new": data.load(str(room() / "new"), resolution=32)}
    batches = {}
    for kind, some in images.items():
        chosen = some.select(flags.some(some))
        parts = pipe.vae, pipe.text_encoder, pipe.tokenizer
        batches[kind] = DataLoader(
            encode_dataset(chosen, *parts, room() / f"looked at, {kind}"), batch_size=128
        )
    learner.begin_task(task)
    learner.end_task(batches["old"])
    _, rule = learner.begin_task(task, batches["new"])
    return {"layers": len(learner.layers), "in regime 3": sum(map(len, rule.still_open().values()))}


# The table and the plot

COLUMNS = {
    "old_loss": "loss, old",
    "new_loss": "loss, new",
    "old_subjects_seen": "old subjects seen",
    "kept_mb": "memory, MB",
}


def runs_of(cells: dict[str, Any], method: str) -> list[dict[str, Any]]:
    return [cells[key] for seed in SEEDS if (key := f"{method}/seed={seed}") in cells]


def render(content: dict[str, Any]) -> str:
    cells = content["cells"]
    text = head(content, "CUBER, TRGP and GPM on `emoji`")
    rows = []
    found = {"shipped": [cells["shipped"]]} | {NAMES[m]: runs_of(cells, m) for m in METHODS}
    for name, runs in found.items():
        if runs:
            figures = [few([run[key] for run in runs]) if key in runs[0] else "" for key in COLUMNS]
            rows.append([name, len(runs), *figures])
    text += table(["", "runs", *COLUMNS.values()], rows) + "\n"
    rows = []
    for method in METHODS[1:]:
        for run in runs_of(cells, method)[:1]:
            rows.append([NAMES[method], number(run["pool_share"]), number(run["layers_by_regime"])])
    if rows:
        text += table(["seed 0", "share of directions protected", "layers in regime 1 / 2 / 3"], rows) + "\n"
    if "agreeing" in cells:
        text += f"As CUBER turns to the new scenes: {number(cells['agreeing'])}.\n\n"
    draw(cells)
    return text + "![What is forgotten over what is learned](cuber_emoji.png)\n"


def draw(cells: dict[str, Any]) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    start = cells["shipped"]
    for method in METHODS:
        if not (runs := runs_of(cells, method)):
            continue
        gained = [100 * (1 - run["new_loss"] / start["new_loss"]) for run in runs]
        lost = [100 * (run["old_loss"] / start["old_loss"] - 1) for run in runs]
        axes[0].plot(gained, lost, "o", label=NAMES[method])
        axes[1].plot(gained, [100 * run["old_subjects_seen"] for run in runs], "o", label=NAMES[method])
    axes[0].plot(0, 0, "k*", label="shipped")
    axes[1].plot(0, 100 * start["old_subjects_seen"], "k*", label="shipped")
    axes[0].set(ylabel="loss of old scenes rises by, %")
    axes[1].set(ylabel="old subjects seen, %")
    for axis in axes:
        axis.set(xlabel="loss of new scenes falls by, %")
    axes[0].legend(fontsize=8)
    figure.savefig(RESULTS / "cuber_emoji.png", dpi=110)
    plt.close(figure)


def main() -> None:
    torch.set_num_threads(1)
    cells = Cells("cuber_emoji", ABOUT)
    cells.once("shipped", shipped)
    cells.once("agreeing", agreeing)
    runs = [(method, seed) for seed in SEEDS for method in METHODS if method != "trgp"]
    for method, seed in (*runs, *(("trgp", seed) for seed in SEEDS)):
        cells.once(f"{method}/seed={seed}", lambda method=method, seed=seed: learned(method, seed))


if __name__ == "__main__":
    main()
