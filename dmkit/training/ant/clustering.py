"""Timesteps in intervals that agree: the interval clustering of ANT (Go et al. 2023, arXiv 2306.00354).

Minimise Σ_i C(l_i, r_i) over cuts of 0 … T-1 into k intervals, exactly, by the dynamic programme of Nielsen
and Nock,

    D_1[i] = C(0, i),    D_j[i] = min over l of D_(j-1)[l-1] + C(l, i)

in O(k T²) time, with one of three costs, c = (l + r) // 2 (for `timestep` the real midpoint):

    timestep   Σ (t - c)²  = n (n² - 1) / 12 for n timesteps
    snr        Σ |λ_c - λ_t|^p,  λ = ln SNR
    affinity  -Σ A[c, t]
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
)
from torch import Tensor

from ..._files import load_json, save_json
from ...errors import FileFormatError

FORMAT = 1
FLOWS = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMatchLCMScheduler)


@dataclass(frozen=True)
class TimestepClusters:
    """Intervals that cover 0 … num_timesteps - 1.

    Attributes:
        starts: the first timestep of each, rising from 0.
        num_timesteps: T.

    Raises:
        ValueError: starts that do not begin with 0, do not rise, or reach T.
    """

    starts: tuple[int, ...]
    num_timesteps: int

    def __post_init__(self) -> None:
        edges = (*self.starts, self.num_timesteps)
        if not self.starts or self.starts[0] != 0 or any(a >= b for a, b in pairwise(edges)):
            raise ValueError(
                f"Clusters must start at 0 and rise below {self.num_timesteps}, not {list(self.starts)}."
            )

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """The first and last timestep of each."""
        return [(a, b - 1) for a, b in pairwise((*self.starts, self.num_timesteps))]

    @property
    def sizes(self) -> list[int]:
        return [last - first + 1 for first, last in self.bounds]

    def assign(self, timesteps: Tensor) -> Tensor:
        """The cluster (int64, shaped like `timesteps`) of each timestep.

        Raises:
            ValueError: a timestep outside [0, T).
        """
        if timesteps.numel() and not (timesteps.min() >= 0 and timesteps.max() < self.num_timesteps):
            raise ValueError(f"Timesteps must lie in [0, {self.num_timesteps}).")
        edges = torch.tensor(self.starts[1:], device=timesteps.device)
        return torch.bucketize(timesteps, edges, right=True)

    def save(self, path: Path) -> None:
        """Writes JSON."""
        save_json(path, {"format": FORMAT, "starts": self.starts, "num_timesteps": self.num_timesteps})

    @classmethod
    def load(cls, path: Path) -> TimestepClusters:
        """
        Raises:
            FileFormatError: a file that `save` did not write.
        """
        content = load_json(path)
        if content.get("format") != FORMAT:
            raise FileFormatError(f"{path} has format {content.get('format')}; this version reads {FORMAT}.")
        try:
            return cls(tuple(map(int, content["starts"])), int(content["num_timesteps"]))
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path} does not hold timestep clusters: {error!r}") from error


def log_snr(scheduler: Any) -> np.ndarray:
    """λ_t = ln SNR_t of a schedule, float64 (T,), by rising noise.

    ᾱ gives ln ᾱ / (1 - ᾱ), the σ of flow matching 2 ln (1 - σ) / σ. Where it is infinite (zero terminal SNR,
    σ of 0 or 1) it is the nearest finite one.

    Raises:
        TypeError: a scheduler with neither `alphas_cumprod` nor flow-matching sigmas.
    """
    if (flow := _flow(scheduler)) is not None:
        sigmas = np.sort(flow.sigmas[: flow.config.num_train_timesteps].double().numpy())
        signal, noise = (1 - sigmas) ** 2, sigmas**2
    elif getattr(scheduler, "alphas_cumprod", None) is not None:
        signal = scheduler.alphas_cumprod.double().cpu().numpy()
        noise = 1 - signal
    else:
        raise TypeError(
            f"{type(scheduler).__name__} has neither alphas_cumprod nor flow-matching sigmas; compute its "
            "log-SNR and give that to snr_cost."
        )
    with np.errstate(divide="ignore"):
        ratio = np.log(signal) - np.log(noise)
    finite = np.flatnonzero(np.isfinite(ratio))
    return np.interp(np.arange(len(ratio)), finite, ratio[finite])


def _flow(scheduler: Any) -> Any:
    """A scheduler whose sigmas are the training grid of flow matching, whatever `set_timesteps` has made of
    the given one since; None for another kind of schedule.
    """
    if isinstance(scheduler, FLOWS):
        return type(scheduler).from_config(scheduler.config)
    config: Any = getattr(scheduler, "config", {})
    if not config.get("use_flow_sigmas", False):
        return None
    # Multistep solvers with flow sigmas have an ᾱ too, which they do not use.
    shift = 1.0 if config.get("use_dynamic_shifting") else config.flow_shift
    return FlowMatchEulerDiscreteScheduler(config.num_train_timesteps, shift=shift)


def timestep_cost(num_timesteps: int) -> np.ndarray:
    """C (T, T) of the timesteps themselves; its optimum are uniform cuts. Only l <= r has a meaning."""
    t = np.arange(num_timesteps)
    n = (t[None] - t[:, None] + 1).astype(np.float64)
    return n * (n**2 - 1) / 12


def snr_cost(ratio: np.ndarray, power: float = 2.0) -> np.ndarray:
    """C (T, T) of log-SNRs (T,); power 2 by default, 1 for the absolute deviations of ANT's released code.

    Raises:
        ValueError: log-SNRs that are not finite or not (T,).
    """
    ratio = np.asarray(ratio, dtype=np.float64)
    if ratio.ndim != 1 or not np.isfinite(ratio).all():
        raise ValueError(f"Log-SNRs must be finite and of shape (T,), not {ratio.shape}.")
    return _cost_around_centre(np.abs(ratio[:, None] - ratio[None]) ** power)


def affinity_cost(affinity: np.ndarray) -> np.ndarray:
    """C (T, T) of a task affinity (T, T), as `dmkit.training.ant.affinity` measures it.

    Raises:
        ValueError: an affinity that is not square or not finite.
    """
    affinity = np.asarray(affinity, dtype=np.float64)
    if affinity.ndim != 2 or affinity.shape[0] != affinity.shape[1] or not np.isfinite(affinity).all():
        raise ValueError(f"An affinity must be finite and square, not {affinity.shape}.")
    return _cost_around_centre(-affinity)


def _cost_around_centre(distance: np.ndarray) -> np.ndarray:
    """C(l, r) = Σ_{t = l … r} distance[(l + r) // 2, t], from sums along the rows."""
    t = np.arange(len(distance))
    sums = np.pad(np.cumsum(distance, axis=1), ((0, 0), (1, 0)))
    centre = (t[:, None] + t[None]) // 2
    return sums[centre, t[None] + 1] - sums[centre, t[:, None]]


def best_intervals(
    cost: np.ndarray, num_clusters: int, *, min_size: int = 1, max_size: int | None = None
) -> TimestepClusters:
    """The k intervals of least total cost; of equal ones that with the earliest cuts from the end.

    Args:
        cost: C (T, T), read for l <= r.
        num_clusters: k in [1, T].
        min_size: timesteps in an interval at least.
        max_size: timesteps in an interval at most; no limit by default.

    Raises:
        ValueError: numbers for which there are no such intervals.
    """
    total = len(cost)
    largest = total if max_size is None else max_size
    if not 1 <= num_clusters <= total:
        raise ValueError(f"{total} timesteps make 1 to {total} clusters, not {num_clusters}.")
    if min_size < 1 or min_size * num_clusters > total or largest * num_clusters < total:
        raise ValueError(
            f"{num_clusters} clusters of {min_size} to {largest} timesteps cannot cover {total} of them."
        )
    t = np.arange(total)
    size = t[None] - t[:, None] + 1
    cost = np.where((size >= min_size) & (size <= largest), cost, np.inf)
    best = cost[0]  # D_1[i]
    cuts = []
    for _ in range(num_clusters - 1):
        candidates = np.concatenate([[np.inf], best[:-1]])[:, None] + cost  # D_(j-1)[l-1] + C(l, i)
        cuts.append(candidates.argmin(axis=0))
        best = candidates.min(axis=0)
    starts, last = [], total - 1
    for cut in reversed(cuts):
        starts.append(int(cut[last]))
        last = starts[-1] - 1
    return TimestepClusters((0, *reversed(starts)), total)
