"""Fréchet distance between the Gaussians of two sets of features, from moments that are gathered as a stream.

D. Dowson, B. Landau, The Fréchet distance between multivariate normal distributions, J. Multivar. Anal. 1982:

    d² = |μ₁ − μ₂|² + tr C₁ + tr C₂ − 2 tr (C₁C₂)^½                                                    (1)

M. Heusel et al., arXiv:1706.08500, compare images by it with features of Inception-v3: only then it is "FID".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .distances import check_features
from .jackknife import groups_of, standard_error


@dataclass
class Moments:
    """Count, mean (D,) and scatter Σ(x − μ)(x − μ)ᵀ (D, D) of features, in float64.

    Kept about the mean and merged by the update of Chan, Golub and LeVeque (1979), so that a large common
    offset costs no digits, as it would with plain sums of squares. Batches and processes merge in any order.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, dimensions: int) -> Moments:
        zero = torch.zeros(dimensions, dtype=torch.float64)
        return cls(0, zero, zero.new_zeros(dimensions, dimensions))

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Of features (N, D)."""
        features = features.double()
        if not len(features):
            return cls.empty(features.shape[1])
        mean = features.mean(0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    def __add__(self, other: Moments) -> Moments:
        """Of both sets together."""
        count = self.count + other.count
        if not count:
            return self
        step = other.mean - self.mean
        weight = self.count * other.count / count
        return Moments(
            count,
            self.mean + step * (other.count / count),
            self.scatter + other.scatter + weight * torch.outer(step, step),
        )

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance (D, D).

        Raises:
            ValueError: fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"A covariance needs at least 2 samples, not {self.count}.")
        return self.scatter / (self.count - 1)


def _root(covariance: Tensor) -> Tensor:
    """A (D, r) with AAᵀ = C, for a symmetric C of rank r: eigenvalues that are only rounding are left out."""
    values, vectors = torch.linalg.eigh(covariance)
    real = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, real] * values[real].sqrt()


def frechet_distance(first: Moments, second: Moments) -> float:
    """Equation (1). Squared, as is usual; 0 for equal moments.

    With Cᵢ = AᵢAᵢᵀ the eigenvalues of C₁C₂ are those of (A₁ᵀA₂)(A₁ᵀA₂)ᵀ, so tr (C₁C₂)^½ is the sum of the
    singular values of A₁ᵀA₂. No square root of a matrix that is not symmetric is taken, and covariances of
    low rank (fewer samples than dimensions) need no added ridge.

    Raises:
        ValueError: other dimensions, or fewer than two samples.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"Features of {len(first.mean)} and of {len(second.mean)} dimensions do not compare."
        )
    c1, c2 = first.covariance, second.covariance
    cross = torch.linalg.svdvals(_root(c1).T @ _root(c2)).sum()
    distance = (first.mean - second.mean).square().sum() + c1.trace() + c2.trace() - 2 * cross
    return max(0.0, float(distance))


def frechet_interval(features: Tensor, reference: Moments, *, groups: int = 20) -> tuple[float, float]:
    """A 95 % interval of the Fréchet distance for the sampling of `features`, by the jackknife over groups.

    It says how far the distance of another set of equally many samples may be, with the reference as it is;
    not where the distance of infinitely many would be, which is lower: compare only distances of equal N.
    Measured on real Fashion-MNIST images against 5,000 others (EfficientNet-Lite0, D = 1280): sets of 2,000
    lie at 67.1 with a spread of 1.3 between sets, for which the jackknife gives 1.3; sets of 500 at 213.8
    with a spread of 4.1, for which it gives 3.6, and the linear (influence function) error 6.4.

    Args:
        features: (N, D).
        reference: moments to compare with.
        groups: groups of the jackknife (fewer where there are under 40 samples).

    Raises:
        ValueError: fewer than 4 samples, or other dimensions.
    """
    from scipy.special import stdtrit

    check_features(features, least=4)
    groups = min(groups, len(features) // 2)
    membership = groups_of(len(features), groups)
    parts = [Moments.of(features[membership == group]) for group in range(groups)]
    value = frechet_distance(sum(parts, Moments.empty(features.shape[1])), reference)
    root, trace = _root(reference.covariance), reference.covariance.trace()
    without = []
    for group in range(groups):
        rest = sum(parts[:group] + parts[group + 1 :], Moments.empty(features.shape[1]))
        covariance = rest.covariance
        # The eigenvalues of C₁C₂ again, for a third of the work of `frechet_distance`; the square root lifts
        # their rounding to about 1e-7 of the distance, which is nothing to a standard error.
        cross = torch.linalg.eigvalsh(root.T @ covariance @ root).clamp_min(0).sqrt().sum()
        distance = (rest.mean - reference.mean).square().sum() + covariance.trace() + trace - 2 * cross
        without.append(distance.item())
    margin = float(stdtrit(groups - 1, 0.975)) * standard_error(without)  # Student's t
    return value - margin, value + margin
