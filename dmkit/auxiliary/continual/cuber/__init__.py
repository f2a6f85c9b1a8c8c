"""Learns task after task without keeping their data: weights move only where old tasks do not look, or, where
an old task agrees with the new one, to the good of both, with GPM and TRGP as special cases: Lin, Yang,
Fan and Zhang, *Beyond Not-Forgetting: Continual Learning with Backward Knowledge Transfer*, NeurIPS 2022,
arXiv 2211.00789.

GPM: Saha, Garg and Roy, ICLR 2021, arXiv:2103.09762. TRGP: Lin, Yang, Fan and
Zhang, ICLR 2022, arXiv:2202.02931.

    from dmkit.auxiliary.continual.cuber import CUBER, learn

    learner = CUBER(model, energy=0.97, eps2=0.2)
    for rows in tasks:
        learn(ClassificationTask(model), rows, arguments, learner)
    with learner.use_task(0):
        ...

Layer l has the matrix W (out, d) of `dmkit.training.subspaces`, and one orthonormal pool O (d, r). A task j
owns some of the pool's columns, its subspace S_j with basis B_j; so a union of subspaces is a union of column
numbers, and its projector is exact. Before task t, with G its gradient and g_j the one that task j ended on:

    sufficient projection   |G B_j| >= ε₁ |G|
    positive correlation    <g_j, G> >= ε₂ |g_j| |G|
    regime                  1: not the first;  2: the first only;  3: both

    W̃ = W + Σ_{j in 2, 3} W B_j (Q_j - I) B_j'       Q_j = I at the start, learned and kept with task t
    minimise L_t(W̃) + λ Σ_{j in 3} |(W - W_start) B_j|_F                                               (3)
    with ΔW = ΔW - ΔW P P',  P the columns of all tasks in regimes 1 and 2

In every step a task of regime 3 whose g_j no longer agrees with the gradient of L_t falls to regime 2.
GPM has regime 1 only; TRGP has no regime 3.

The paper subtracts a sum of projections; where subspaces overlap that takes a direction away twice, so the
union is used here.
"""

from .gpm import GPM
from .related import CUBER, TRGP
from .training import learn

__all__ = ["CUBER", "GPM", "TRGP", "learn"]
