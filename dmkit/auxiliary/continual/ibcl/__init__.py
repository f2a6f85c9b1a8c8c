"""Turns any preference over the tasks learned so far into a model without training: a few Gaussian posteriors
a task are kept, and a preference is a combination of them: Lu, Caprio, Eaton and Lee, *IBCL: Zero-shot Model
Generation for Task Trade-offs in Continual Learning*, 2023, arXiv 2310.02995.

Task i has m posteriors q_i^j = N(μ, diag σ²), each trained from that of the task before:

    q_i^j = argmax E_q[log p(D_i | θ)] - KL(q || q_{i-1}^j),   q_0^j = N(0, s_j² I)          (algorithm 1)
    W₂²(q, q') = |μ - μ'|² + |σ - σ'|²;  within `discard_threshold` of a kept one, that stands for it
    q_w = Σ_k Σ_j (w_k / m) q_k^j,   w on the simplex                                        (1, algorithm 2)
    HDR_α(q) = {θ : q(θ) >= q_α},   the smallest region of probability 1 - α

(1) is a mixture. The released code interpolates moments instead, μ_w = Σ β μ and σ_w = Σ β σ, and that is
what trades tasks off in the measurements: a draw from the mixture is near one of its components. Both are
here, by name. α is the probability outside the region, as in the paper; the released code has it reversed.

That models of q_w trade tasks off well is a heuristic. Nothing in the theory links q_w to the posterior of a
mixture of the tasks, and no Pareto optimality is claimed.
"""

from .gaussians import Gaussian, distance
from .learner import IBCL
from .selecting import Selection, select

__all__ = ["IBCL", "Gaussian", "Selection", "distance", "select"]
