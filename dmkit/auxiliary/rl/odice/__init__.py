"""Learns to act from recorded transitions by a value function, whose gradient at the next state is projected
so that it cannot cancel the one at the present state, and by weighted behaviour cloning: Mao et al., *ODICE:
Revealing the Mystery of Distribution Correction Estimation via Orthogonal-gradient Update*, ICLR 2024, arXiv
2402.00348.

    min_V (1-λ) E[V(s)] + λ E[f*(δ)],    δ = r + γ V(s') - V(s)
    policy: weights ω(δ) = f*'(δ) of the recorded actions

The projection is `dmkit.training.rules.OrthogonalProjection`, which serves any two losses.
"""

from .agent import Agent, evaluate, normalized_score
from .data import Episodes, Transitions
from .divergences import DIVERGENCES, Divergence, f_conjugate
from .networks import ActionValueNetwork, GaussianPolicy, ValueNetwork
from .tasks import IQLTask, ODICETask, PolicyTask

__all__ = [
    "DIVERGENCES",
    "ActionValueNetwork",
    "Agent",
    "Divergence",
    "Episodes",
    "GaussianPolicy",
    "IQLTask",
    "ODICETask",
    "PolicyTask",
    "Transitions",
    "ValueNetwork",
    "evaluate",
    "f_conjugate",
    "normalized_score",
]
