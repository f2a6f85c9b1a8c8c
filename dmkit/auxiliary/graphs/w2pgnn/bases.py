"""The graphons whose mixtures pre-training can generate (1)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse
from scipy.sparse.csgraph import shortest_path

from ...._files import atomic_folder, load_json, save_json
from ....errors import FileFormatError, MissingExtraError, unknown_name
from .graphons import adjacency, estimate

MODES = ("integr", "domain", "topo")
FORMAT = 1
Sources = Mapping[str, Sequence[Any]]


def statistics(graph: Any) -> np.ndarray:
    """Mean and deviation of degrees, density, mean closeness, degree assortativity (0 where all degrees are
    equal), transitivity, and mean clustering of a graph.
    """
    a = adjacency(graph)
    a = (a != 0).astype(float) - sparse.diags_array((a.diagonal() != 0).astype(float))
    n, degrees = a.shape[0], a.sum(axis=1)
    far = shortest_path(a, unweighted=True)
    reached = np.isfinite(far)
    others, total = reached.sum(1) - 1, np.where(reached, far, 0).sum(1)
    closeness = others**2 / np.maximum(total, 1) / max(1, n - 1)  # of a node's own component, by its size
    i, j = a.nonzero()
    ends = degrees[i], degrees[j]
    assortativity = np.corrcoef(*ends)[0, 1] if len(i) and ends[0].std() > 0 else 0.0
    triangles, pairs = ((a @ a) * a).sum(axis=1), degrees * (degrees - 1)
    return np.array(
        [
            degrees.mean(),
            degrees.std(),
            degrees.mean() / max(1, n - 1),
            closeness.mean(),
            assortativity,
            triangles.sum() / max(1.0, pairs.sum()),
            (triangles / np.maximum(pairs, 1)).mean(),
        ]
    )


def clusters(graphs: Sequence[Any], count: int, seed: int = 0) -> np.ndarray:
    """(n,) the cluster of each graph, by k-means on standardised statistics; only those with a graph.

    Raises:
        ValueError: more clusters than graphs.
        MissingExtraError: scikit-learn is not installed.
    """
    if not 1 <= count <= len(graphs):
        raise ValueError(f"{count} clusters of {len(graphs)} graphs.")
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise MissingExtraError("scikit-learn", "metrics") from None
    table = np.stack([statistics(graph) for graph in graphs])
    table = (table - table.mean(0)) / np.where(table.std(0) > 0, table.std(0), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # graphs that are all alike make fewer clusters
        found = KMeans(count, n_init=10, random_state=seed).fit_predict(table)
    return np.unique(found, return_inverse=True)[1]


@dataclass(frozen=True)
class Bases:
    """Graphons by name.

    Attributes:
        mode: how graphs were put together.
        names: of the graphons: "all", a domain, or a cluster's number.
        graphons: (K, r, r) float64.
        normalize: whether each is divided by its mean.
    """

    mode: str
    names: tuple[str, ...]
    graphons: np.ndarray
    normalize: bool = False

    @classmethod
    def of(
        cls,
        sources: Sources,
        mode: str = "domain",
        *,
        resolution: int = 32,
        count: int = 5,
        normalize: bool = False,
        seed: int = 0,
    ) -> Bases:
        """Estimates them.

        Args:
            sources: graphs to pre-train on by domain.
            mode: "integr": one of all graphs; "domain": one a domain; "topo": one a cluster.
            resolution, normalize: as for `estimate`.
            count: clusters of "topo".
            seed: of the clusters.

        Raises:
            ValueError: an unknown mode, no domain, "domain" with fewer than two, or more clusters than
                graphs.
        """
        if mode not in MODES:
            raise unknown_name("mode", mode, MODES)
        if not sources:
            raise ValueError("There are no domains of graphs to make bases of.")
        if mode == "domain" and len(sources) < 2:
            raise ValueError("Mode 'domain' of 1 domain: it needs 2.")
        groups = dict(sources)
        if mode != "domain":
            everything = [graph for graphs in sources.values() for graph in graphs]
            groups = {"all": everything}
        if mode == "topo":
            label = clusters(everything, count, seed)
            chosen = {
                c: [g for g, one in zip(everything, label, strict=True) if one == c] for c in set(label)
            }
            groups = {f"cluster {c}": chosen[c] for c in sorted(chosen)}
        graphons = np.stack([estimate(graphs, resolution, normalize) for graphs in groups.values()])
        return cls(mode, tuple(groups), graphons, normalize)

    def mixture(self, weights: np.ndarray) -> np.ndarray:
        """f(α) of (1)."""
        return np.tensordot(weights, self.graphons, 1)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes `bases.safetensors` and `config.json` into a folder, which is replaced."""
        with atomic_folder(folder) as draft:
            save_file({"graphons": self.graphons}, draft / "bases.safetensors")
            about = {"mode": self.mode, "names": list(self.names), "normalize": self.normalize}
            save_json(draft / "config.json", {"format": FORMAT, **about})

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> Bases:
        """Reads what `save_pretrained` wrote.

        Raises:
            FileFormatError: missing, damaged or foreign files.
        """
        about = load_json(Path(folder) / "config.json")
        try:
            graphons = load_file(Path(folder) / "bases.safetensors")["graphons"]
            if about["format"] != FORMAT:
                raise ValueError(f"format {about['format']}")
            if graphons.ndim != 3 or len(graphons) != len(about["names"]) or not np.isfinite(graphons).all():
                raise ValueError(f"graphons {graphons.shape} for {len(about['names'])} names")
            return cls(about["mode"], tuple(about["names"]), graphons, bool(about["normalize"]))
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise FileFormatError(f"{folder} holds no bases: {error!r}") from error
