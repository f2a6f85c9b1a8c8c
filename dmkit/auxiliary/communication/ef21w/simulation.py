"""EF21 and EF21-W on workers that are rows of a tensor.

    u_i = C(∇fᵢ(x)/(n wᵢ) - gᵢ),   gᵢ ← gᵢ + uᵢ,   g ← g + Σ wᵢ uᵢ,   x ← x - γ g                    (4)

EF21 has wᵢ = 1/n, EF21-W wᵢ = Lᵢ/Σ L. Where C(cv) = c C(v) for c > 0, as TopK and RandK have it, both are the
same iteration: gᵢ of one is gᵢ/(n wᵢ) of the other. Only then do the weights matter that C is not such a map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ....training.communication import Compressor
from ....training.communication.compressors import FLOAT_BITS


class Round(NamedTuple):
    """Where the method is.

    Attributes:
        x: (d,).
        own: (n, d), gᵢ; without feedback what the workers sent.
        average: (d,), g = Σ wᵢ gᵢ, along which the next step goes.
        bits: sent by all workers so far.
    """

    x: Tensor
    own: Tensor
    average: Tensor
    bits: int


def worker_weights(weights: Sequence[float] | Tensor | None, n: int) -> Tensor:
    """(n,) float64 of sum 1; equal by default.

    Raises:
        ValueError: not n positive numbers.
    """
    if weights is None:
        return torch.full((n,), 1 / n, dtype=torch.float64)
    w = torch.as_tensor(weights, dtype=torch.float64)
    if w.shape != (n,) or not (w > 0).all() or not w.isfinite().all():
        raise ValueError(f"weights are {n} positive numbers, one a worker, not {w.tolist()}.")
    return w / w.sum()


def ef21(
    gradients: Callable[[Tensor], Tensor],
    x0: Tensor,
    compressor: Compressor,
    step: float,
    *,
    weights: Sequence[float] | Tensor | None = None,
    participation: float | Sequence[float] = 1.0,
    feedback: bool = True,
    generator: torch.Generator | None = None,
) -> Iterator[Round]:
    """Rounds of (4) without end; the first is the start, x⁰ and gᵢ⁰ = ∇fᵢ(x⁰)/(n wᵢ), sent in full.

        for at in itertools.islice(ef21(...), 1001): ...      # x⁰ to x¹⁰⁰⁰

    Args:
        gradients: x (d,) -> (n, d), each worker's gradient, exact or of a mini-batch; called once a round.
        x0: (d,), the start.
        compressor: C.
        step: γ; see `theory.step_size`.
        weights: of the workers, up to a factor; equal (EF21) by default, Lᵢ for EF21-W.
        participation: probability that a worker takes part in a round, or one each. Who does not sends
            nothing and keeps gᵢ.
        feedback: without it the workers remember nothing, and x moves along Σ wᵢ C(∇fᵢ(x)/(n wᵢ)): the
            baseline that need not converge.
        generator: draws absences and what the compressor draws.

    Raises:
        ValueError: weights or probabilities that do not fit the workers, or a step that is not positive.
    """
    if not step > 0:
        raise ValueError(f"The step size must be positive, not {step}.")
    start = gradients(x0)
    n, d = start.shape
    w = worker_weights(weights, n).to(start)
    chances = torch.as_tensor(participation, dtype=torch.float64).expand(n)
    if not ((chances > 0) & (chances <= 1)).all():
        raise ValueError(f"Workers take part with probabilities in (0, 1], not {participation}.")
    scale, everyone = 1 / (n * w)[:, None], bool((chances == 1).all())

    def send(vectors: Tensor) -> tuple[Tensor, int]:
        sent = compressor(vectors, generator)
        if everyone:
            return sent, n * compressor.bits(d)
        here = torch.rand(n, generator=generator, dtype=torch.float64) < chances
        return sent * here[:, None], int(here.sum()) * compressor.bits(d)

    def rounds() -> Iterator[Round]:
        x = x0
        own, bits = (scale * start, n * d * FLOAT_BITS) if feedback else send(scale * start)
        average = w @ own
        while True:
            yield Round(x, own, average, bits)
            x = x - step * average
            here = scale * gradients(x)
            if feedback:
                u, cost = send(here - own)
                own, average = own + u, average + w @ u  # the server's g, from what was sent
            else:
                own, cost = send(here)
                average = w @ own
            bits += cost

    return rounds()
