"""Diagonal Gaussians over flat weights (D,): distances, combinations, draws from highest density regions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....errors import unknown_name

DISTANCES = ("w2", "w2_per_dim")
REGIONS = ("hdr", "box", "marginal")


@dataclass(frozen=True)
class Gaussian:
    """N(loc, diag scale²); both (D,), scale positive."""

    loc: Tensor
    scale: Tensor

    def log_density(self, points: Tensor) -> Tensor:
        """Of (N, D) points, float64 (N,)."""
        loc, scale = self.loc.double(), self.scale.double()
        squares = ((points.double() - loc) / scale).square().sum(-1)
        return -0.5 * squares - scale.log().sum() - 0.5 * len(loc) * math.log(2 * math.pi)


def distance(a: Gaussian, b: Gaussian, kind: str = "w2") -> float:
    """How far two Gaussians are apart.

    Args:
        a, b: of the same D.
        kind: `w2`, the 2-Wasserstein distance; or `w2_per_dim`, |Δμ| / D + |Δσ| / D, which the released code
            comes close to, so that its thresholds (0.002 to 0.01) have a meaning.
    """
    if kind not in DISTANCES:
        raise unknown_name("distance", kind, DISTANCES)
    locs = (a.loc.double() - b.loc.double()).norm()
    scales = (a.scale.double() - b.scale.double()).norm()
    return float(torch.hypot(locs, scales) if kind == "w2" else (locs + scales) / len(a.loc))


def interpolate(components: Sequence[Gaussian], weights: Sequence[float]) -> Gaussian:
    """The Gaussian whose means and standard deviations are the weighted sums of the components'."""
    pairs = [(w, c) for w, c in zip(weights, components, strict=True) if w]
    loc = sum(w * c.loc.double() for w, c in pairs)
    scale = sum(w * c.scale.double() for w, c in pairs)
    kind = components[0].loc.dtype
    return Gaussian(loc.to(kind), scale.to(kind))  # type: ignore[union-attr]


def check_alpha(alpha: float) -> None:
    """Refuses what is no probability outside a region."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is the probability outside the region, in (0, 1), not {alpha}.")


def radius(alpha: float, dimensions: int, region: str) -> float:
    """The size of a region of a standard normal in D dimensions.

    Args:
        alpha: probability outside, in (0, 1).
        dimensions: D.
        region: `hdr`: the ball's radius, sqrt of the χ² quantile; `box`: half the side of the cube of joint
            probability 1 - α; `marginal`: the same for each coordinate alone, whose cube holds (1 - α)^D.
    """
    from scipy.stats import chi2, norm

    check_alpha(alpha)
    if region not in REGIONS:
        raise unknown_name("region", region, REGIONS)
    if region == "hdr":
        return math.sqrt(chi2.ppf(1 - alpha, dimensions))
    each = alpha if region == "marginal" else -math.expm1(math.log1p(-alpha) / dimensions)
    return float(norm.isf(each / 2))


def draw(
    gaussian: Gaussian, alpha: float, count: int, region: str, generator: torch.Generator | None
) -> Tensor:
    """Uniform draws (count, D) from a region of a Gaussian; in many dimensions nearly all are at its edge."""
    size = radius(alpha, len(gaussian.loc), region)
    shape = (count, len(gaussian.loc))
    if region == "hdr":
        away = torch.randn(shape, generator=generator, dtype=torch.float64)
        inside = torch.rand((count, 1), generator=generator, dtype=torch.float64)
        # Just within, so that rounding puts no draw outside.
        lengths = size * (1 - 1e-6) * inside ** (1 / shape[1])
        standard = lengths * away / away.norm(dim=1, keepdim=True)
    else:
        standard = size * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)
    return (gaussian.loc.double() + gaussian.scale.double() * standard).to(gaussian.loc)


class Mixture:
    """Σ w_k q_k.

    Args:
        components: K Gaussians of the same D.
        weights: on the simplex; those of weight 0 are left out.
    """

    def __init__(self, components: Sequence[Gaussian], weights: Sequence[float]):
        kept = [(c, w) for c, w in zip(components, weights, strict=True) if w > 0]
        self.components = [c for c, _ in kept]
        self.weights = torch.tensor([w for _, w in kept], dtype=torch.float64)

    def log_density(self, points: Tensor) -> Tensor:
        """Of (N, D) points, float64 (N,)."""
        each = torch.stack([c.log_density(points) for c in self.components])
        return torch.logsumexp(each + self.weights.log()[:, None], dim=0)

    def sample(self, count: int, generator: torch.Generator | None) -> Tensor:
        """(count, D)."""
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        locs = torch.stack([c.loc for c in self.components])[which]
        scales = torch.stack([c.scale for c in self.components])[which]
        return locs + scales * torch.randn(locs.shape, generator=generator, dtype=locs.dtype)

    def log_cut(self, alpha: float, generator: torch.Generator | None, draws: int = 10_000) -> float:
        """ln q_α, by Hyndman's rule: the α-quantile of the density at draws from it."""
        check_alpha(alpha)
        found = [self.log_density(self.sample(500, generator)) for _ in range(max(1, draws // 500))]
        return float(torch.cat(found).quantile(alpha))

    def draw(self, alpha: float, count: int, generator: torch.Generator | None) -> Tensor:
        """Draws (count, D) of the mixture from its highest density region, by rejection."""
        cut, kept, found = self.log_cut(alpha, generator), [], 0
        while found < count:
            points = self.sample(max(16, count), generator)
            kept.append(points[self.log_density(points) >= cut])
            found += len(kept[-1])
        return torch.cat(kept)[:count]
