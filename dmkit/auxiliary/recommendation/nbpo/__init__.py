"""Trains a recommender from clicks, and gives every pair of user and item a learnt probability that a liked
item was not clicked, so that sampled negatives which may be likes push less: Yu and Qin, *Sampler Design for
Implicit Feedback Data by Noisy-label Robust Learning*, SIGIR 2020, arXiv 2007.07204.

    score R, p = σ(R) that the user likes the item;    g, γ = σ(g) that a like goes unclicked
    P(clicked) = (1 - γ) p,    P(not clicked) = (1 - p) + γ p

R and g are both low-rank: R = U_u·V_i, g = P_u·Q_i. Items are ranked by R alone.
"""

from .interactions import Interactions, k_core, read_interactions, split
from .losses import BPOLoss, BPRLoss, NBPOLoss
from .models import FlipModel, MatrixFactorization
from .ranking import evaluate_ranking
from .recommender import Recommender
from .samplers import AdaptiveOversampler, DynamicNegativeSampler, UniformNegativeSampler

__all__ = [
    "AdaptiveOversampler",
    "BPOLoss",
    "BPRLoss",
    "DynamicNegativeSampler",
    "FlipModel",
    "Interactions",
    "MatrixFactorization",
    "NBPOLoss",
    "Recommender",
    "UniformNegativeSampler",
    "evaluate_ranking",
    "k_core",
    "read_interactions",
    "split",
]
