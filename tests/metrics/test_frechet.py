import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmkit.metrics import Moments, frechet_distance, frechet_interval


def gaussian(mean, covariance, count: int = 1000) -> Moments:
    """Moments of a known Gaussian, as if of `count` samples."""
    mean = torch.as_tensor(mean, dtype=torch.float64)
    return Moments(count, mean, torch.as_tensor(covariance, dtype=torch.float64) * (count - 1))


def samples(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_commuting_gaussians():
    a, b = torch.tensor([1.0, 4.0, 9.0]), torch.tensor([16.0, 4.0, 0.0])
    found = frechet_distance(gaussian([0, 0, 1], a.diag()), gaussian([0, 2, 0], b.diag()))
    assert found == pytest.approx(5 + (a.sqrt() - b.sqrt()).square().sum().item(), rel=1e-12)


@given(st.integers(0, 10_000))
def test_two_dimensions_in_closed_form(seed):
    """For 2x2 matrices, tr M^½ = (tr M + 2 det(M)^½)^½."""
    rng = np.random.default_rng(seed)
    one, two = (m @ m.T for m in rng.normal(size=(2, 2, 2)))
    product = one @ two
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(max(np.linalg.det(one) * np.linalg.det(two), 0)))
    expected = np.trace(one) + np.trace(two) - 2 * root
    found = frechet_distance(gaussian([0, 0], one), gaussian([0, 0], two))
    assert found == pytest.approx(expected, abs=1e-6 * (np.trace(one) + np.trace(two)))


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), dimensions=st.integers(1, 12))
def test_against_scipys_matrix_root(seed, dimensions):
    linalg = pytest.importorskip("scipy.linalg")
    x = samples(seed, 60, dimensions)
    y = 0.5 + samples(seed + 1, 50, dimensions) @ samples(7, dimensions, dimensions)
    one, two = (np.cov(part.T.numpy()).reshape(dimensions, dimensions) for part in (x, y))
    expected = (x.mean(0) - y.mean(0)).square().sum().item()
    expected += np.trace(one) + np.trace(two) - 2 * np.trace(linalg.sqrtm(one @ two)).real
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(expected, rel=1e-8, abs=1e-8)


def test_against_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Flat(torch.nn.Module):
        num_features = 12

        def forward(self, images):
            return images.double().flatten(1) / 255

    images = torch.randint(
        0, 256, (90, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    images[50:] //= 2
    theirs = fid.FrechetInceptionDistance(feature=Flat(), input_img_size=(3, 2, 2))
    theirs = theirs.set_dtype(torch.float64)
    theirs.update(images[:50], real=True)
    theirs.update(images[50:], real=False)
    features = Flat()(images)
    ours = frechet_distance(Moments.of(features[50:]), Moments.of(features[:50]))
    assert ours == pytest.approx(theirs.compute().item(), rel=1e-6)


def test_covariances_of_rank_one():
    """tr (aaᵀ bbᵀ)^½ = |a·b|: where the product is singular and far from symmetric."""
    a, b = samples(0, 30), samples(1, 30)
    found = frechet_distance(gaussian(a * 0, torch.outer(a, a)), gaussian(a * 0, torch.outer(b, b)))
    assert found == pytest.approx((a @ a + b @ b - 2 * (a @ b).abs()).item(), rel=1e-10)


def test_fewer_samples_than_dimensions():
    """The distance does not see a rotation, nor dimensions that nothing uses."""
    x, y = samples(0, 6, 5), samples(1, 7, 5) * 2
    basis = torch.linalg.qr(samples(2, 40, 40)).Q[:5]
    small = frechet_distance(Moments.of(x), Moments.of(y))
    assert frechet_distance(Moments.of(x @ basis), Moments.of(y @ basis)) == pytest.approx(small, rel=1e-10)


@pytest.mark.parametrize("count", [10, 300])
def test_a_set_is_at_no_distance_from_itself(count):
    x = samples(0, count, 64) * torch.logspace(-4, 2, 64)
    moments = Moments.of(x)
    assert frechet_distance(moments, moments) < 1e-9 * moments.covariance.trace()
    shifted = frechet_distance(moments, Moments.of(x + 3))
    assert shifted == pytest.approx(9 * 64, rel=1e-9)


@given(cuts=st.lists(st.integers(0, 50), max_size=4), offset=st.sampled_from([0.0, 1e6]))
def test_moments_merge_in_any_order(cuts, offset):
    x = samples(0, 50, 4) + offset
    parts = [Moments.of(x[a:b]) for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), 50], strict=True)]
    merged = Moments.empty(4)
    for part in reversed(parts):
        merged = part + merged
    assert merged.count == 50
    assert torch.allclose(merged.mean, x.mean(0), rtol=1e-12, atol=1e-12)
    # Plain sums of squares would lose all but four digits at this offset.
    assert torch.allclose(merged.covariance, torch.cov((x - offset).T), rtol=1e-8, atol=1e-8)
    assert (Moments.empty(4) + Moments.empty(4)).count == 0


def test_what_does_not_compare_is_refused():
    with pytest.raises(ValueError, match="Features of 3 and of 4 dimensions"):
        frechet_distance(Moments.of(samples(0, 5, 3)), Moments.of(samples(0, 5, 4)))
    with pytest.raises(ValueError, match="at least 2 samples, not 1"):
        frechet_distance(Moments.of(samples(0, 1, 3)), Moments.of(samples(0, 5, 3)))


def test_the_interval_covers_the_spread_between_sets():
    """Of 60 sets, about 57 should have an interval that holds the mean distance of sets of their size."""
    reference = gaussian(torch.zeros(6), torch.eye(6))
    scale = torch.linspace(0.5, 2, 6)
    sets = [samples(k, 80, 6) * scale for k in range(60)]
    values = torch.tensor([frechet_distance(Moments.of(x), reference) for x in sets])
    intervals = [frechet_interval(x, reference) for x in sets]
    assert sum(low <= values.mean() <= high for low, high in intervals) >= 52
    # Not by being wide: 2.09 is Student's factor at 19 degrees of freedom.
    width = np.mean([high - low for low, high in intervals]) / (2 * 2.09)
    assert width == pytest.approx(values.std().item(), rel=0.3)
    assert all(low < value < high for value, (low, high) in zip(values, intervals, strict=True))
    with pytest.raises(ValueError, match="N >= 4"):
        frechet_interval(samples(0, 3, 6), reference)
