"""Pictures of task affinity and negative transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import MissingExtraError
from .affinity import Affinity
from .clustering import TimestepClusters


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "metrics") from error
    return Figure(figsize=(width, height), layout="constrained")


def plot_affinity(affinity: Affinity, path: Path, clusters: TimestepClusters | None = None) -> None:
    """The matrix of cosines over timesteps, with the clusters' borders where they are given.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = _figure(5, 4.2)
    axes = figure.subplots()
    last = affinity.num_timesteps
    image = axes.imshow(
        affinity.cosines, origin="lower", extent=(0, last, 0, last), vmin=-1, vmax=1, cmap="RdBu"
    )
    figure.colorbar(image, label="cosine of gradients")
    for start in clusters.starts[1:] if clusters else ():
        axes.axvline(start, color="black", linewidth=0.8)
        axes.axhline(start, color="black", linewidth=0.8)
    axes.set(xlabel="timestep", ylabel="timestep")
    figure.savefig(path, dpi=150, format="png")


def plot_gap(
    gaps: Mapping[str, Sequence[float]], clusters: TimestepClusters, path: Path, what: str = "score"
) -> None:
    """Bars of the negative transfer gap in each cluster, one group of bars a training.

    Args:
        gaps: a gap for each cluster, by the name of the training.
        clusters: the intervals.
        path: a PNG.
        what: the score that the gap is of.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = _figure(7, 3.5)
    axes = figure.subplots()
    width = 0.8 / len(gaps)
    for n, (name, values) in enumerate(gaps.items()):
        axes.bar(
            [i + (n - (len(gaps) - 1) / 2) * width for i in range(len(values))], values, width, label=name
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(clusters)), [f"{first}-{last}" for first, last in clusters.bounds])
    axes.set(xlabel="timesteps", ylabel=f"gap of {what}\n(below 0: negative transfer)")
    axes.legend()
    figure.savefig(path, dpi=150, format="png")
