"""Feasibility (3), and the three questions that it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from scipy.optimize import nnls

from ....errors import unknown_name
from .bases import MODES, Bases, Sources
from .graphons import adjacency, averaged, estimate, pooled
from .matching import gromov_wasserstein, monotone, product

LEVEL, DRAWS = 0.95, 60  # the quantile of self-distances that a distance may reach, and how many are drawn
EXHAUSTIVE = 2000  # subsets, beyond which `select_pretraining` is greedy
HEAVY = 1e4  # weight of Σ α = 1 in least squares


@dataclass(frozen=True)
class Feasibility:
    """How near mixtures come to a target.

    Attributes:
        distance: d of the best mixture, an upper bound of the minimum.
        weights: α by name.
        mode: of the bases.
        mean_distance: d of the uniform mixture.
        plan: T (r, s) of the best.
        history: d after each pair of steps, from the best start.
        floor: d between two halves of the target's graphs; NaN where there is one graph only.
        limit: what d the target has to itself by chance, see `self_distance`; NaN where `floor` is.
        density: share of pairs of nodes that are joined in the target, averaged over its graphs.
    """

    distance: float
    weights: dict[str, float]
    mode: str
    mean_distance: float
    plan: np.ndarray = field(repr=False)
    history: tuple[float, ...] = field(repr=False)
    floor: float = math.nan
    limit: float = math.nan
    density: float = math.nan

    @property
    def feasibility(self) -> float:
        """-d: the higher, the better."""
        return -self.distance

    @property
    def feasible(self) -> bool | None:
        """Whether the target cannot be told from a mixture: d is within `limit`; None where that is not
        known.
        """
        return None if math.isnan(self.limit) else self.distance <= self.limit


def weights_for(graphons: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The α of (1) for which Σ α_k B_k is nearest to a matrix (r, r): least squares on the simplex.

    With a plan T fixed, (2) is that for the matrix r² T D Tᵀ, since ∂d²/∂α_k of (4) is then 0 in α.
    """
    columns = graphons.reshape(len(graphons), -1).T
    rows = np.vstack([columns, np.full(len(graphons), HEAVY)])
    found = nnls(rows, np.append(target.ravel(), HEAVY))[0]
    return found / found.sum()


def fit(bases: Bases, target: np.ndarray, steps: int = 30, tolerance: float = 1e-9) -> Feasibility:
    """min_α d(f(α), D) by turns: the best α for a plan, then the best plan for α; d never rises.

    Args:
        bases: K graphons (r, r).
        target: D (s, s).
        steps: pairs of steps from each of three starts, at most.
        tolerance: of d² between two pairs, to stop at.
    """
    uniform = np.full(len(bases.names), 1 / len(bases.names))
    C = bases.mixture(uniform)
    plain = gromov_wasserstein(C, target)
    best: tuple[float, np.ndarray, np.ndarray, tuple[float, ...]] | None = None
    from_product = gromov_wasserstein(C, target, [product(C, target)])
    for plan in (monotone(C, target), plain.plan, from_product.plan):
        history: list[float] = []
        for _ in range(steps):
            alpha = weights_for(bases.graphons, len(C) ** 2 * plan @ target @ plan.T)
            match = gromov_wasserstein(bases.mixture(alpha), target, [plan])
            plan = match.plan
            history.append(match.distance)
            if len(history) > 1 and history[-2] ** 2 - history[-1] ** 2 < tolerance:
                break
        if best is None or history[-1] < best[0]:
            best = history[-1], alpha, plan, tuple(history)
    assert best is not None
    distance, alpha, plan, kept = best
    if plain.distance < distance:
        distance, alpha, plan = plain.distance, uniform, plain.plan
    named = dict(zip(bases.names, alpha.tolist(), strict=True))
    return Feasibility(distance, named, bases.mode, plain.distance, plan, kept)


def noise_floor(graphs: Sequence[Any], resolution: int = 32, normalize: bool = False) -> float:
    """d between the graphons of every other graph and of the rest; NaN for a single graph."""
    if len(graphs) < 2:
        return math.nan
    steps = np.stack([pooled(graph, resolution) for graph in graphs])
    one, two = (averaged(steps[k::2], normalize) for k in (0, 1))
    return gromov_wasserstein(one, two).distance


def self_distance(
    graphs: Sequence[Any],
    resolution: int = 32,
    normalize: bool = False,
    *,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> float:
    """The quantile of d between two sets of as many graphs, both drawn with replacement from these.

    A mixture of estimates and an estimate of the target are two such sets if the one can generate the
    other, and if there are as many graphs on either side.

    Args:
        graphs, resolution, normalize: as for `estimate`.
        level: of the quantile, in [0, 1].
        draws: pairs of sets, at least 1.
        seed: of the draws.

    Returns:
        d, and NaN for a single graph.
    """
    if len(graphs) < 2:
        return math.nan
    steps, rng = np.stack([pooled(graph, resolution) for graph in graphs]), np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        chosen = rng.integers(len(steps), size=(2, len(steps)))
        one, two = (averaged(steps[rows], normalize) for rows in chosen)
        found.append(gromov_wasserstein(one, two).distance)
    return float(np.quantile(found, level))


def _about(target: Sequence[Any], resolution: int, normalize: bool, seed: int = 0) -> dict[str, float]:
    return {
        "floor": noise_floor(target, resolution, normalize),
        "limit": self_distance(target, resolution, normalize, seed=seed),
        "density": density(target),
    }


def density(graphs: Sequence[Any]) -> float:
    """The mean share of pairs of nodes that are joined."""
    found = [adjacency(graph) for graph in graphs]
    return float(np.mean([a.sum() / max(1, a.shape[0] * (a.shape[0] - 1)) for a in found]))


def _all_bases(sources: Sources | Bases, mode: str, count: int, **options: Any) -> list[Bases]:
    if isinstance(sources, Bases):
        return [sources]
    if mode != "best":
        if mode not in MODES:
            raise unknown_name("mode", mode, ("best", *MODES))
        return [Bases.of(sources, mode, count=count, **options)]
    total = sum(map(len, sources.values()))
    modes = [m for m in MODES if m != "domain" or len(sources) > 1]
    return [Bases.of(sources, m, count=min(count, total), **options) for m in modes]


def _judge(
    bases: Sequence[Bases], target: Sequence[Any], resolution: int, steps: int, normalize: bool, seed: int
) -> Feasibility:
    D = estimate(target, resolution, normalize)
    best = min((fit(one, D, steps) for one in bases), key=lambda found: found.distance)
    return Feasibility(**{**vars(best), **_about(target, resolution, normalize, seed)})


def feasibility(
    sources: Sources | Bases,
    target: Sequence[Any],
    *,
    mode: str = "best",
    resolution: int = 32,
    count: int = 5,
    steps: int = 30,
    normalize: bool = False,
    seed: int = 0,
) -> Feasibility:
    """Whether pre-training on some graphs can help others.

    Args:
        sources: graphs to pre-train on by domain, each as for `adjacency`; or bases that are there already,
            whose mode and `normalize` then count.
        target: graphs to come.
        mode: one of `Bases.of`, or "best": the least distance of all.
        resolution, count, normalize: as for `Bases.of`.
        seed: of clusters, and of the draws of `self_distance`.
        steps: as for `fit`.

    Raises:
        ValueError: no graph, and what `Bases.of` refuses.

    Warns:
        UserWarning: what `estimate` warns of, above all degrees whose order does not find the graphon.
    """
    options = {"resolution": resolution, "normalize": normalize, "seed": seed}
    bases = _all_bases(sources, mode, count, **options)
    return _judge(bases, target, resolution, steps, bases[0].normalize, seed)


@dataclass(frozen=True)
class Choice:
    """A subset of the candidates, and how near it comes."""

    names: tuple[str, ...]
    found: Feasibility


def select_pretraining(
    candidates: Sources,
    target: Sequence[Any],
    budget: int = 2,
    *,
    resolution: int = 32,
    steps: int = 30,
    normalize: bool = False,
) -> list[Choice]:
    """What to pre-train on: subsets of `budget` candidates, the nearest to the target first.

    Each candidate is one graphon. Beyond 2,000 subsets one candidate after another is added, each time the
    one that brings the mixture nearest; then there is one choice. Look at `found.feasible`, too: the first of
    a ranking may still be far.

    Args:
        candidates: graphs by name.
        target, resolution, steps, normalize: as for `feasibility`.
        budget: candidates of a subset.

    Raises:
        ValueError: a budget below 1 or above the candidates.
    """
    if not 1 <= budget <= len(candidates):
        raise ValueError(f"budget is {budget}; there are {len(candidates)} candidates.")
    graphons = {name: estimate(graphs, resolution, normalize) for name, graphs in candidates.items()}
    D = estimate(target, resolution, normalize)
    about = _about(target, resolution, normalize)

    def judged(names: tuple[str, ...]) -> Choice:
        bases = Bases("domain", names, np.stack([graphons[name] for name in names]), normalize)
        return Choice(names, Feasibility(**{**vars(fit(bases, D, steps)), **about}))

    if math.comb(len(candidates), budget) <= EXHAUSTIVE:
        choices = [judged(names) for names in combinations(candidates, budget)]
        return sorted(choices, key=lambda choice: choice.found.distance)
    chosen: tuple[str, ...] = ()
    for _ in range(budget):
        more = [judged((*chosen, name)) for name in candidates if name not in chosen]
        best = min(more, key=lambda choice: choice.found.distance)
        chosen = best.names
    return [best]


def scope(
    sources: Sources | Bases,
    targets: Mapping[str, Sequence[Any]],
    *,
    mode: str = "best",
    resolution: int = 32,
    count: int = 5,
    steps: int = 30,
    normalize: bool = False,
    seed: int = 0,
) -> dict[str, Feasibility]:
    """What a model that was pre-trained on these graphs is for: targets by name, the nearest first.

    Args:
        sources, mode, resolution, count, steps, normalize, seed: as for `feasibility`.
        targets: sets of graphs by name.

    Raises:
        ValueError: as for `feasibility`.
    """
    options = {"resolution": resolution, "normalize": normalize, "seed": seed}
    bases = _all_bases(sources, mode, count, **options)
    found = {
        name: _judge(bases, graphs, resolution, steps, bases[0].normalize, seed)
        for name, graphs in targets.items()
    }
    return dict(sorted(found.items(), key=lambda item: item[1].distance))
