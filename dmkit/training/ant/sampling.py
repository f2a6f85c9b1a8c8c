"""Batches with an equal share of every cluster of timesteps, and the losses of the clusters.

Position p of the global batch (all processes together) belongs to cluster p mod k, so that each process has
its share of each; the B mod k positions left over go to different clusters drawn at random. Within its
cluster a timestep is uniform. With L_i the mean loss of the batch's items in cluster i, the named losses are

    equal   L_i / k              as in ANT's code: Σ is the mean over clusters, whatever their lengths
    size    L_i |I_i| / T        Σ has the expectation of the plain loss of uniform timesteps
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import unknown_name
from ..trainer import Step
from .clustering import TimestepClusters

WEIGHTINGS = ("equal", "size")


@dataclass(frozen=True)
class ClusteredTimesteps:
    """The timesteps of this process's part of a micro-batch.

    Attributes:
        timesteps: (B,) int64.
        slots: (B,) int64, the cluster of each, counted among the trained ones.
        divisors: (k,) what the sum of a cluster's item losses is divided by, so that the mean over processes
            is the loss of the global batch.
    """

    timesteps: Tensor
    slots: Tensor
    divisors: Tensor

    def losses(self, errors: Tensor) -> Tensor:
        """Per-item losses (B,) -> the losses of the clusters (k,); 0 for one without items here."""
        return errors.new_zeros(len(self.divisors)).index_add(0, self.slots, errors) / self.divisors

    def rows(self, slot: int) -> Tensor:
        """The items of one cluster, as indices."""
        return (self.slots == slot).nonzero().squeeze(1)


class ClusterTimestepSampler:
    """Draws timesteps by cluster.

    Args:
        clusters: the intervals.
        weighting: "equal" or "size", see above.
        only: the clusters to train; all by default. One alone makes the dedicated model of the negative
            transfer gap.

    Raises:
        ValueError: another weighting, or a cluster that does not exist.
    """

    def __init__(
        self, clusters: TimestepClusters, *, weighting: str = "equal", only: Sequence[int] | None = None
    ):
        if weighting not in WEIGHTINGS:
            raise unknown_name("cluster weighting", weighting, WEIGHTINGS)
        self.trained = list(range(len(clusters)) if only is None else only)
        if not self.trained or any(not 0 <= i < len(clusters) for i in self.trained):
            raise ValueError(f"There are clusters 0 to {len(clusters) - 1}, not {self.trained}.")
        self.clusters, self.weighting = clusters, weighting
        self.names = [f"cluster_{i}" for i in self.trained]
        self._starts = torch.tensor([clusters.starts[i] for i in self.trained])
        self._sizes = torch.tensor([clusters.sizes[i] for i in self.trained])
        shares = torch.ones(len(self.trained)) if weighting == "equal" else self._sizes.float()
        self._weights = shares / shares.sum()

    def settings(self) -> dict[str, Any]:
        """What must not change between a run and its continuation."""
        return {
            "clusters": list(self.clusters.starts),
            "cluster_weighting": self.weighting,
            "trained_clusters": self.trained,
        }

    def __call__(self, count: int, step: Step) -> ClusteredTimesteps:
        """Timesteps for this process's `count` items.

        Raises:
            ValueError: a global batch with fewer items than clusters.
        """
        k, total = len(self.trained), count * step.world
        if total < k:
            raise ValueError(f"A batch of {total} cannot hold {k} clusters; give at least {k} examples.")
        uniform = step.draws.uniform((count,))
        device = uniform.device
        slots = torch.arange(total, device=device) % k
        if left := total % k:
            order = torch.randperm(k, generator=step.draws.generator, device=device)
            slots[total - left :] = order[:left]
        counts = torch.bincount(slots, minlength=k)
        mine = slots[step.rank * count : (step.rank + 1) * count]
        sizes = self._sizes.to(device)[mine]
        offset = (uniform * sizes).long().minimum(sizes - 1)  # the product may round up to the size
        return ClusteredTimesteps(
            timesteps=self._starts.to(device)[mine] + offset,
            slots=mine,
            divisors=counts / (self._weights.to(device) * step.world),
        )
