"""Trainings that rules are tested with: losses in conflict, and a tiny denoiser with clusters. Run as a
script it trains every case, for the test of several processes.
"""

import sys
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import save_file
from torch import nn

from dmkit.training.ant.clustering import TimestepClusters
from dmkit.training.ant.sampling import ClusterTimestepSampler
from dmkit.training.arguments import TrainingArguments
from dmkit.training.denoising import DenoisingTask
from dmkit.training.rules import GradientRule, NashMTL, PCGrad, UncertaintyWeighting, sum_losses
from dmkit.training.trainer import Task, Trainer

CLUSTERS = TimestepClusters((0, 100, 400), 1000)


def rules(num_losses: int) -> dict[str, GradientRule]:
    """Every rule, fresh, some with steps on which they hold their weights."""
    return {
        "sum": sum_losses,
        "uw": UncertaintyWeighting(num_losses),
        "pcgrad": PCGrad(),
        "pcgrad, held": PCGrad(update_every=2),
        "nash": NashMTL(update_every=2),
    }


class Points(torch.utils.data.Dataset):
    """Images of one grey, which are also the points of `Tug`."""

    def __len__(self):
        return 60

    def __getitem__(self, i):
        return {"images": torch.full((1, 8, 8), i / 30 - 1)}


class Rope(nn.Module):
    def __init__(self):
        super().__init__()
        # Above the plane of the targets, or there would be no Nash solution.
        self.place = nn.Parameter(torch.tensor([0.3, -0.2, 0.5]))

    def forward(self):
        return self.place


class Tug(Task):
    """Three losses that pull a point apart, two of them in conflict, each by its own measure of the data."""

    TARGETS = torch.tensor([[1.0, 0.0, 0.2], [-1.0, 0.3, 0.2], [0.5, 2.0, -0.3]])
    SCALES = (1.0, 3.0, 0.1)

    def __init__(self):
        self.modules = {"rope": Rope()}

    def training_step(self, batch, step):
        x = batch["images"].mean(dim=(1, 2, 3))[:, None]
        place = self.modules["rope"]()
        return {
            f"pull_{i}": scale * (place - target * (1 + 0.3 * x)).pow(2).sum(1).mean()
            for i, (target, scale) in enumerate(zip(self.TARGETS, self.SCALES, strict=True))
        }

    def save(self, folder, modules):
        save_file(modules["rope"].state_dict(), folder / "rope.safetensors")


def tiny_task(**settings) -> DenoisingTask:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    settings = {"sampler": ClusterTimestepSampler(CLUSTERS), **settings}
    return DenoisingTask(unet, DDPMScheduler(), sample_steps=2, num_samples=4, **settings)


def trainer(task: Task, rule, folder: Path, **changes) -> Trainer:
    arguments = {
        "output_dir": str(folder),
        "train_batch_size": 10,
        "max_train_steps": 3,
        "learning_rate": 1e-2,
        "lr_warmup_steps": 2,
        "adam_epsilon": 1e-6,  # a gradient of rounding noise must not become a whole step
        "max_grad_norm": 0.5,
        "checkpointing_steps": 0,
        "save_images_epochs": 0,
        "report_to": "none",
    }
    return Trainer(task, Points(), TrainingArguments(**{**arguments, **changes}), rule=rule)


def record_gradients(run: Trainer) -> list[torch.Tensor]:
    """A list that training fills with each step's unclipped gradient; the rule's own parameters come last."""
    seen, clip = [], run._clip

    def recording_clip(phase):
        trained = (p for group in run.optimizers[phase].param_groups for p in group["params"])
        seen.append(torch.cat([p.grad.flatten() for p in trained if p.grad is not None]))
        return clip(phase)

    run._clip = recording_clip
    return seen


def train_all(folder: Path, batch_size: int) -> None:
    """Every rule on both tasks, in two micro-batches a step; the gradients are written to `folder`."""
    gradients = {}
    for task_type in (Tug, tiny_task):
        for name, rule in rules(3).items():
            run = trainer(
                task_type(),
                rule,
                folder / "run",
                train_batch_size=batch_size,
                gradient_accumulation_steps=2,
            )
            run.accelerator.end_training = lambda: None  # it would close the process group for the next
            seen = record_gradients(run)
            run.train()
            gradients[f"{task_type.__name__} {name}"] = torch.stack(seen)
    if run.accelerator.is_main_process:
        save_file(gradients, folder / "gradients.safetensors")


if __name__ == "__main__":
    train_all(Path(sys.argv[1]), int(sys.argv[2]))
