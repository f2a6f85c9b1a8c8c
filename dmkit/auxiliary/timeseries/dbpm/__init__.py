"""DBPM finds the bad positive pairs of contrastive learning, noisy and faulty ones, by the losses that each
had so far, and lowers their weight, without a parameter or a pass more: Lan, Yan, Hong and Feng, *Towards
Enhancing Time Series Contrastive Learning: A Dynamic Bad Pair Mining Approach*, ICLR 2024, arXiv 2302.03357.

Sample i of N has in epoch e the loss M_ie, of its two views; noisy pairs share noise that is easily aligned,
faulty ones have lost their pattern. At the start of epoch e, after the warm-up, and frozen until its end:

    m_i = 1/e Σ_{e' < e} M_ie'                                                                     (1)
    μ = 1/N Σ_i m_i,   σ² = 1/N Σ_i (m_i - μ)²                                                     (2)
    noisy: m_i ≤ μ - β_np σ,   faulty: m_i ≥ μ + β_fp σ                                            (3)
    T(L) = exp(-(L - μ)² / 2σ²) / (σ √2π)                                                          (4)
    loss of a batch = 1/B Σ_i w_i L_i,   w_i = T(L_i) of bad pairs without gradient, 1 of others   (5)

(4) is a density, above 1 where σ < 0.4, and so is clipped at 1 by default. The released code has another (1),
m_i = 1/e Σ_{e' < e} (1 + e')/E M_ie' of E epochs in all (`history="code"`).

    miner = BadPairMiner(num_samples=len(x), warmup_epochs=8, beta_np=1.0, beta_fp=1.0)
    miner.start_epoch(epoch)
    losses = nt_xent(u, v)                                    # or any other loss of shape (B,)
    (miner.weights(indices, losses) * losses).mean().backward()

`miner` has (1) to (5); `losses` NT-Xent; `views` and `pairs` where two views come from; `networks` and
`learning` the learners SimCLR and TS-TCC as tasks of the trainer; `probing` what is measured.
"""

from .learning import TSTCC, SimCLR, pretrain
from .losses import nt_xent
from .miner import BadPairMiner
from .networks import Encoder, Forecaster, Projector
from .pairs import AugmentedPairs, ContaminatedPairs, sines
from .probing import detection, linear_probe
from .views import Chain, Jitter, MagnitudeWarp, Permutation, Scaling, TimeShift

__all__ = [
    "TSTCC",
    "AugmentedPairs",
    "BadPairMiner",
    "Chain",
    "ContaminatedPairs",
    "Encoder",
    "Forecaster",
    "Jitter",
    "MagnitudeWarp",
    "Permutation",
    "Projector",
    "Scaling",
    "SimCLR",
    "TimeShift",
    "detection",
    "linear_probe",
    "nt_xent",
    "pretrain",
    "sines",
]
