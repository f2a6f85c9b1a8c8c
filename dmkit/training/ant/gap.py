"""Negative transfer between noise levels (Go et al. 2023, section 3).

    NTG(J) = F(θ_J inside the interval J, the joint θ elsewhere) - F(θ everywhere)

for a score F of which lower is better. θ_J is trained on the timesteps of J alone; NTG < 0 is negative
transfer: the joint training has harmed J.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..randomness import Draws
from ..trainer import Step
from .clustering import TimestepClusters

if TYPE_CHECKING:
    from ..denoising import DenoisingTask


class IntervalExperts(nn.Module):
    """A denoiser that asks another network in some clusters of timesteps; assign it to `pipe.unet`.

    Args:
        joint: the network everywhere else.
        experts: networks of the same signature, by cluster.
        clusters: the intervals.

    Raises:
        ValueError: an expert for a cluster that does not exist.
    """

    def __init__(self, joint: nn.Module, experts: Mapping[int, nn.Module], clusters: TimestepClusters):
        super().__init__()
        if unknown := [i for i in experts if not 0 <= i < len(clusters)]:
            raise ValueError(f"There are clusters 0 to {len(clusters) - 1}, not {unknown}.")
        self.joint, self.clusters = joint, clusters
        self.experts = nn.ModuleDict({str(i): expert for i, expert in experts.items()})

    @property
    def config(self) -> Any:
        return self.joint.config

    @property
    def dtype(self) -> torch.dtype:
        return next(self.joint.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.joint.parameters()).device

    def forward(self, sample: Tensor, timestep: float | Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the joint network's.

        Raises:
            ValueError: timesteps of several clusters in one call.
        """
        timesteps = torch.as_tensor(timestep).reshape(-1)
        found = self.clusters.assign(timesteps).unique().tolist()
        if len(found) > 1:
            raise ValueError(f"One call must stay in one cluster of timesteps, not in {found}.")
        network = dict(self.experts).get(str(found[0]), self.joint)
        return network(sample, timestep, *args, **kwargs)


def negative_transfer_gap(
    score: Callable[[nn.Module], float],
    joint: nn.Module,
    experts: Mapping[int, nn.Module],
    clusters: TimestepClusters,
) -> dict[int, float]:
    """NTG of each cluster that has an expert; below 0 is negative transfer.

    Args:
        score: of a denoiser, lower is better, for example a Fréchet distance of samples; its seeds must not
            change between calls.
        joint: the network trained on all timesteps.
        experts: networks trained on their cluster alone.
        clusters: the intervals.
    """
    base = score(joint)
    return {i: score(IntervalExperts(joint, {i: expert}, clusters)) - base for i, expert in experts.items()}


@torch.no_grad()
def cluster_losses(
    task: DenoisingTask, batches: Iterable[Mapping[str, Any]], clusters: TimestepClusters, *, seed: int = 0
) -> list[float]:
    """The task's mean loss in each cluster; NTG with L_J(θ_J) - L_J(θ) for F needs no samples.

    Args:
        task: with the network to measure; it is put in eval mode and back.
        batches: as the task is trained on; best not those.
        clusters: the intervals. The timesteps of a batch are spread evenly over each.
        seed: of the noise, which is the same for every cluster.
    """
    network = task.modules["unet"]
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    totals, items = torch.zeros(len(clusters), dtype=torch.float64), 0
    for number, batch in enumerate(batches):
        count = len(next(iter(batch.values())))
        items += count
        for i, (start, size) in enumerate(zip(clusters.starts, clusters.sizes, strict=True)):
            step = Step(0, "main", Draws(seed, number, rank=0, world=1, device=device))
            timesteps = start + torch.arange(count, device=device) * size // count
            totals[i] += task.errors(task.examples(batch, step, timesteps)).sum().double().cpu()
    network.train(training)
    return (totals / items).tolist()
