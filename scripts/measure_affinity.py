"""Measures how alike the gradients of different timesteps are, for `--ant_cost affinity`.

    python scripts/measure_affinity.py outputs/fashion --dataset fashion-mnist --plot affinity.png \\
        --checkpoint outputs/fashion/checkpoint-4000/unet --checkpoint outputs/fashion/checkpoint-8000/unet

The mean over the checkpoints is written; without any, the model's own denoiser is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from diffusers import DDPMScheduler, StableDiffusionPipeline
from torch.utils.data import DataLoader, Dataset

from dmkit import data, zoo
from dmkit.training.ant.affinity import Affinity, task_affinity
from dmkit.training.ant.clustering import affinity_cost, best_intervals
from dmkit.training.ant.plots import plot_affinity
from dmkit.training.caching import encode_dataset
from dmkit.training.denoising import DenoisingTask, TextToImageTask


def denoising_task(pipe: Any, images: Any, cache: Path) -> tuple[DenoisingTask, Dataset]:
    """The task that the pipeline's denoiser was trained on, and its examples."""
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    if not isinstance(pipe, StableDiffusionPipeline):
        return DenoisingTask(pipe.unet, scheduler), images
    rows = encode_dataset(images, pipe.vae, pipe.text_encoder, pipe.tokenizer, cache)
    return TextToImageTask(pipe, scheduler), rows


def main(
    model: Annotated[str, typer.Argument(help="A pipeline: folder, zoo name or hub id.")],
    dataset: Annotated[str, typer.Option(help="A data set of dmkit.data, or a folder.")],
    output: Annotated[Path, typer.Option(help="Where the affinity goes.")] = Path("affinity.safetensors"),
    checkpoint: Annotated[list[Path] | None, typer.Option(help="Folder of a denoiser; repeatable.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A picture of the affinity, PNG.")] = None,
    clusters: Annotated[int, typer.Option(help="Clusters to print and to draw.")] = 5,
    resolution: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 32,
    num_images: Annotated[int, typer.Option(help="Images that gradients are summed over.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Images at a time, at most half of them.")] = 100,
    group_size: Annotated[int, typer.Option(help="Timesteps in a group.")] = 10,
    caption_column: Annotated[str, typer.Option(help="Where folders keep captions.")] = "text",
    cache_dir: Annotated[Path, typer.Option(help="Where encoded images are kept.")] = Path("outputs/cache"),
    seed: Annotated[int, typer.Option(help="Of images and noise.")] = 0,
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = zoo.load(model, torch_dtype=torch.float32)
    images = data.load(dataset, split="train", resolution=resolution, caption_column=caption_column)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:num_images]
    task, rows = denoising_task(pipe, images.select(chosen.tolist()), cache_dir / "affinity")
    task.prepare(torch.device(device))
    if len(rows) < 2:
        raise ValueError(f"An affinity compares two halves of the images, but {dataset} gave {len(rows)}.")
    batch_size = min(batch_size, len(rows) // 2)
    batches = [
        {key: value.to(device) for key, value in batch.items() if isinstance(value, torch.Tensor)}
        for batch in DataLoader(rows, batch_size=batch_size)
    ]
    found = []
    for folder in checkpoint or [None]:
        unet = pipe.unet if folder is None else type(pipe.unet).from_pretrained(folder, use_safetensors=True)
        task.modules["unet"] = unet.to(device).requires_grad_(True)
        found.append(task_affinity(task, batches, group_size=group_size, seed=seed))
    affinity = Affinity.mean(found)
    affinity.save(output)
    intervals = best_intervals(affinity_cost(affinity.full()), clusters)
    print(f"{output}: {clusters} clusters start at {', '.join(map(str, intervals.starts))}")
    if plot is not None:
        plot_affinity(affinity, plot, intervals)


if __name__ == "__main__":
    typer.run(main)
