"""Two hospitals that are made: a rhythm that is slower and slow waves that are stronger in illness, under
coloured noise, through topographies that the hospitals share in part.

    x_c(t) = 0.3 (r_c sin φ(t) + A s_c w(t)) + n_c(t)

n has the power 1/f in the source and 1/f^0.8 in the target, deviation 1. The rhythm is of 10 ± 0.5 Hz
(normal) or 8 ± 0.7 Hz (abnormal), the slow wave w of 1.5 to 4 Hz with A = 0.5 or 1. r and s are random over
channels, the same for both hospitals but for 35 %. In the target the rhythm is 0.3 Hz slower and drifts by up
to 0.5 Hz within a recording. Every channel of a recording is then standardised.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from ....errors import unknown_name
from ....training.randomness import derive_seed
from .recordings import Recordings
from .signal import Signal

HOSPITALS = ("source", "target")
STRENGTH, OWN = 0.3, 0.35
RHYTHM, SPREAD, SLOW = (10.0, 8.0), (0.5, 0.7), (0.5, 1.0)
SHIFT, DRIFT, EXPONENT = (0.0, -0.3), (0.0, 0.5), (1.0, 0.8)


def hospital(
    name: str,
    recordings: int,
    seed: int = 0,
    *,
    seconds: float = 4.0,
    abnormal: float = 0.5,
    disagree: bool = False,
    signal: Signal | None = None,
) -> Recordings:
    """Recordings of one hospital, one a participant.

    Args:
        name: "source" or "target".
        recordings: how many.
        seed: of the recordings; topographies are always the same.
        seconds: of each.
        abnormal: share of that class.
        disagree: the hospital calls abnormal what others call normal, for transfer that must harm.
        signal: channels and rate; 21 channels at 100 Hz by default.

    Raises:
        ValueError: an unknown hospital, or values out of range.
    """
    if name not in HOSPITALS:
        raise unknown_name("hospital", name, HOSPITALS)
    if recordings < 1 or not 0 <= abnormal <= 1 or not seconds > 0:
        raise ValueError(f"{recordings} recordings of {seconds} s with a share of {abnormal} cannot be made.")
    signal, which = signal or Signal(), HOSPITALS.index(name)
    generator = torch.Generator().manual_seed(derive_seed(seed, which, 13))
    y = (torch.arange(recordings) < round(abnormal * recordings)).long()
    y = y[torch.randperm(recordings, generator=generator)]
    x = _made(y, which, signal, round(seconds * signal.sfreq), generator)
    x = (x - x.mean(2, keepdim=True)) / x.std(2, keepdim=True)
    labels = (1 - y if disagree else y).tolist()
    return Recordings(list(x), labels, [f"{name}-{seed}-{k}" for k in range(recordings)], signal)


def _made(y: Tensor, which: int, signal: Signal, times: int, generator: Generator) -> Tensor:
    rhythm, slow = _topographies(len(signal.ch_names), which)
    t = torch.arange(times) / signal.sfreq

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    f = torch.tensor(RHYTHM)[y] + torch.tensor(SPREAD)[y] * normal(len(y)) + SHIFT[which]
    drift = DRIFT[which] * (2 * uniform(len(y)) - 1) / t[-1]
    cycles = f[:, None] * t + drift[:, None] * t * t / 2 + uniform(len(y), 1)
    waves = 1.5 + 2.5 * uniform(len(y), 1)
    w = torch.tensor(SLOW)[y][:, None] * (2 * math.pi * (waves * t + uniform(len(y), 1))).sin()
    made = rhythm[:, None] * (2 * math.pi * cycles).sin()[:, None] + slow[:, None] * w[:, None]
    return STRENGTH * made + coloured(normal(len(y), len(signal.ch_names), times), EXPONENT[which])


def coloured(noise: Tensor, exponent: float) -> Tensor:
    """White noise (..., T) filtered to a power of 1/f^exponent, without a mean, deviation 1."""
    spectrum = torch.fft.rfft(noise)
    k = torch.arange(spectrum.shape[-1]).clamp(min=1)
    spectrum = spectrum * k.pow(-exponent / 2)
    spectrum[..., 0] = 0
    x = torch.fft.irfft(spectrum, noise.shape[-1])
    return x / x.std(-1, keepdim=True)


def _topographies(channels: int, which: int) -> Tensor:
    """(2, channels), mean square 1: shared, and the hospital's own part."""
    generator = torch.Generator().manual_seed(derive_seed(2023, 14))
    shared, *own = torch.randn(3, 2, channels, generator=generator)
    mixed = (1 - OWN) * shared + OWN * own[which]
    return mixed / mixed.square().mean(1, keepdim=True).sqrt()
