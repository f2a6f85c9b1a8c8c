"""The steps that are safe, and what they promise.

Richtárik, Gasanov and Burlachenko, *Error Feedback Reloaded: From Quadratic to Arithmetic Mean of Smoothness
Constants*, ICLR 2024 (arXiv:2402.10774). f = (1/n) Σ fᵢ is L-smooth, fᵢ is Lᵢ-smooth, the compressor has
E‖C(v) - v‖² ≤ (1 - α) ‖v‖². With

    θ = 1 - √(1-α),   β = (1-α)/θ,   ξ = √(β/θ) = √(1-α)/(1 - √(1-α))                              (1)
    L_AM = (1/n) Σ Lᵢ,   L_QM = √((1/n) Σ Lᵢ²),   L ≤ L_AM ≤ L_QM ≤ √n L_AM                       (2)

EF21 descends for γ ≤ 1/(L + L_QM ξ) (2021) and already for γ ≤ 1/(L + L_AM ξ) (2024):

    E‖∇f(x̂_T)‖² ≤ 2 (f(x⁰) - f*)/(γT) + G⁰/(θT),   x̂_T one of the first T iterates at random       (3)

Why. For any positive weights with Σ wᵢ = 1 let G = (1/n²) Σ ‖gᵢ - ∇fᵢ‖²/wᵢ. Jensen gives ‖g - ∇f‖² ≤ G, and
contraction E G⁺ ≤ (1-θ) G + β Λ² ‖x⁺ - x‖² with Λ² = (1/n²) Σ Lᵢ²/wᵢ. wᵢ = 1/n makes Λ = L_QM; least is
Λ = L_AM, at wᵢ ∝ Lᵢ. Last, (γ/2θ) G is added to f(x⁺) ≤ f - (γ/2) ‖∇f‖² - (1/(2γ) - L/2) ‖x⁺ - x‖² + (γ/2) G.
The weights are in the proof only; the method EF21-W has them too, with the same γ and
G⁰ = Σ wᵢ ‖gᵢ⁰ - ∇fᵢ/(n wᵢ)‖².
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Mean = Literal["arithmetic", "quadratic", "clones"]
MEANS: tuple[Mean, ...] = ("arithmetic", "quadratic", "clones")


def theta(alpha: float) -> float:
    """θ of (1) for α in (0, 1].

    Raises:
        ValueError: α out of range.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"A compressor's alpha is in (0, 1], not {alpha}.")
    return 1 - math.sqrt(1 - alpha)


def beta(alpha: float) -> float:
    """β of (1)."""
    return (1 - theta(alpha)) ** 2 / theta(alpha)


def xi(alpha: float) -> float:
    """ξ of (1), below 2/α; 0 without compression."""
    return 1 / theta(alpha) - 1


def means(each: Sequence[float]) -> tuple[float, float]:
    """L_AM and L_QM of (2).

    Args:
        each: Lᵢ, one a worker: a sequence of numbers, or a tensor or array of one dimension.

    Raises:
        ValueError: no constants, or some that are not positive numbers.
    """
    each = [float(constant) for constant in each]  # a tensor has no truth, and no end to its digits
    if not each or not all(0 < constant < math.inf for constant in each):
        raise ValueError(f"Smoothness constants are positive numbers, one a worker, not {list(each)}.")
    return math.fsum(each) / len(each), math.hypot(*each) / math.sqrt(len(each))


def effective_constant(each: Sequence[float], weights: Sequence[float]) -> float:
    """Λ, which takes the place of L_AM if the weights come from estimates of the Lᵢ: valid whatever they are.

    Args:
        each: the true Lᵢ.
        weights: as many positive numbers, up to a factor.
    """
    means(each), means(weights)  # both must be positive
    if len(each) != len(weights):
        raise ValueError(f"{len(weights)} weights for {len(each)} workers.")
    total = math.fsum(weights)
    return math.hypot(*(c / math.sqrt(w / total) for c, w in zip(each, weights, strict=True))) / len(each)


def clone_counts(each: Sequence[float]) -> list[int]:
    """Nᵢ = ⌈Lᵢ/L_AM⌉: copies of worker i, at most 2n in all, after which L_QM is at most √2 L_AM.

    Each copy has fᵢ N/(n Nᵢ), N = Σ Nᵢ. It was the first way to the arithmetic mean, and a thought only.
    """
    arithmetic, _ = means(each)
    return [math.ceil(constant / arithmetic - 1e-12) for constant in each]


def step_size(smoothness: float, each: Sequence[float], alpha: float, mean: Mean = "arithmetic") -> float:
    """γ.

    Args:
        smoothness: L.
        each: Lᵢ, one a worker; a tensor too.
        alpha: of the compressor; see `effective_alpha`.
        mean: "arithmetic" (2024, for EF21 and EF21-W alike), "quadratic" (2021), or "clones", √2 L_AM.

    Raises:
        ValueError: an unknown mean or constants out of range.
    """
    if mean not in MEANS:
        raise ValueError(f"mean is one of {', '.join(MEANS)}; not {mean!r}.")
    if not 0 < smoothness < math.inf:
        raise ValueError(f"The smoothness constant is a positive number, not {smoothness}.")
    arithmetic, quadratic = means(each)
    constant = {"arithmetic": arithmetic, "quadratic": quadratic, "clones": math.sqrt(2) * arithmetic}[mean]
    return 1 / (float(smoothness) + constant * xi(alpha))


def pl_step_size(smoothness: float, each: Sequence[float], alpha: float, mu: float) -> float:
    """γ for which f(x_t) - f* ≤ (1 - γμ)^t (f(x⁰) - f* + γ G⁰/θ), where ‖∇f‖² ≥ 2μ (f - f*).

    γ = min{1/(L + √2 L_AM ξ), θ/(2μ)}.
    """
    if not mu > 0:
        raise ValueError(f"mu is a positive number, not {mu}.")
    return min(step_size(smoothness, each, alpha, "clones"), theta(alpha) / (2 * mu))


def effective_alpha(
    alpha: float, participation: float | Sequence[float] = 1.0, stochastic: bool = False
) -> float:
    """The α to use where workers are absent at times or have noisy gradients.

    Worker i takes part with probability pᵢ: p (1-α) + (1-p) = 1 - pα, so that absence and compression
    together contract by min pᵢ α. A stochastic gradient takes a share s > 0 of the contraction, (1-α)(1+s)
    for 1-α; with s = α/(2 (1-α)) that leaves α/2. Each step adds up to (1 - α/2 + 1 + 1/s) times the
    gradient's variance, however many workers there are.

    Args:
        alpha: of the compressor.
        participation: probability that a worker takes part, in (0, 1], or one for each worker.
        stochastic: whether gradients are of mini-batches.
    """
    theta(alpha)
    chances = [participation] if isinstance(participation, int | float) else list(participation)
    if not chances or not all(0 < p <= 1 for p in chances):
        raise ValueError(f"Workers take part with probabilities in (0, 1], not {participation}.")
    return min(chances) * alpha / (2 if stochastic and alpha < 1 else 1)


def bound(step: float, rounds: int, gap: float, alpha: float, start: float = 0.0) -> float:
    """The right side of (3).

    Args:
        step: γ.
        rounds: T.
        gap: f(x⁰) - f*, or more.
        alpha: of the compressor.
        start: G⁰; 0 where workers begin with their full gradients.
    """
    return 2 * gap / (step * rounds) + start / (theta(alpha) * rounds)
