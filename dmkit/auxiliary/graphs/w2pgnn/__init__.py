"""W2PGNN tells before any training whether pre-training on some graphs can help others: sets of graphs become
graphons, and what mixtures of the one kind come how near to the other is the answer: Cao et al., *When to
Pre-Train Graph Neural Networks? From Data Generation Perspective!*, KDD 2023, arXiv 2303.16458.

A graphon is a symmetric step function, r x r numbers in [0, 1]. B_1 ... B_K are those of the graphs to
pre-train on, D that of the graphs to come:

    generator space:  f(α) = Σ_k α_k B_k,   α ≥ 0, Σ_k α_k = 1                                    (1)
    d(C, D)² = min_T Σ_ijkl (C_ik - D_jl)² T_ij T_kl,   T with uniform marginals                   (2)
    feasibility = - min_α d(f(α), D)                                                              (3)
    for T of the minimum:  ∂d²/∂C = 2 C ∘ ppᵀ - 2 T D Tᵀ,   ∂d²/∂α_k = <∂d²/∂C, B_k>               (4)

Bases are one graphon of everything ("integr"), one a domain ("domain"), or one a cluster of graphs that are
alike in statistics ("topo"); the best of them counts.

    feasibility({"molecules": graphs, "citations": others}, target)       one pair
    select_pretraining(candidates, target, budget=2)                      what to pre-train on
    scope(bases, {"proteins": graphs, ...})                               what a pre-trained model is for

`graphons` estimates and samples, `matching` has (2) and (4), `bases` (1), `judging` (3) and the three calls,
`transferring` measures what pre-training was worth.
"""

from .bases import Bases, statistics
from .graphons import ego_graphs, estimate, graphon, sample
from .judging import (
    Choice,
    Feasibility,
    feasibility,
    fit,
    noise_floor,
    scope,
    select_pretraining,
    self_distance,
)
from .matching import Match, gradient, gromov_wasserstein

__all__ = [
    "Bases",
    "Choice",
    "Feasibility",
    "Match",
    "ego_graphs",
    "estimate",
    "feasibility",
    "fit",
    "gradient",
    "graphon",
    "gromov_wasserstein",
    "noise_floor",
    "sample",
    "scope",
    "select_pretraining",
    "self_distance",
    "statistics",
]
