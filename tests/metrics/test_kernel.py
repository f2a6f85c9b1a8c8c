import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmkit.metrics import distances, kid
from dmkit.metrics.jackknife import groups_of, standard_error


def samples(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """Equation (1) of the module, pair by pair."""

    def kernel(a, b):
        return (a @ b / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j)
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j)
    xy = sum(kernel(a, b) for a in x for b in y)
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), n=st.integers(4, 12), m=st.integers(4, 12), d=st.integers(1, 5))
def test_against_the_sum_over_pairs(seed, n, m, d):
    x, y = samples(seed, n, d), samples(seed + 1, m, d) + 0.5
    found = kid(x, y)
    assert found.value == pytest.approx(by_hand(x.numpy(), y.numpy()), rel=1e-9, abs=1e-9)
    assert found.stderr >= 0


def test_the_error_is_the_jackknife_of_the_value():
    x, y = samples(0, 23, 3), samples(1, 17, 3) + 1
    generator = torch.Generator().manual_seed(5)
    found = kid(x, y, groups=4, generator=generator)
    generator.manual_seed(5)
    x_groups, y_groups = groups_of(23, 4, generator), groups_of(17, 4, generator)
    without = [by_hand(x[x_groups != a].numpy(), y[y_groups != a].numpy()) for a in range(4)]
    assert found.stderr == pytest.approx(standard_error(without), rel=1e-9)


def test_against_torchmetrics():
    theirs = pytest.importorskip("torchmetrics.image.kid")

    class Flat(torch.nn.Module):
        num_features = 12

        def forward(self, images):
            return images.double().flatten(1) / 255

    images = torch.randint(
        0, 256, (80, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    images[40:] //= 2
    metric = theirs.KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=40).set_dtype(
        torch.float64
    )
    metric.update(images[:40], real=True)
    metric.update(images[40:], real=False)
    features = Flat()(images)
    assert kid(features[40:], features[:40]).value == pytest.approx(metric.compute()[0].item(), rel=1e-5)


def test_unbiased_and_the_error_is_the_spread_between_samples():
    alike = [kid(samples(2 * k, 60, 4), samples(2 * k + 1, 60, 4)) for k in range(200)]
    spread = np.std([found.value for found in alike])
    assert abs(np.mean([found.value for found in alike])) < 4 * spread / np.sqrt(200)
    assert min(found.value for found in alike) < 0
    assert 0.9 < np.mean([found.stderr for found in alike]) / spread < 1.6
    apart = [kid(samples(2 * k, 60, 4) + 0.7, samples(2 * k + 1, 60, 4)) for k in range(200)]
    spread = np.std([found.value for found in apart])
    assert np.mean([found.stderr for found in apart]) == pytest.approx(spread, rel=0.2)


def test_blocks_do_not_change_the_value(monkeypatch):
    x, y = samples(0, 33, 4), samples(1, 41, 4)
    whole = kid(x, y)
    monkeypatch.setattr(distances, "_BLOCK_ELEMENTS", 100)
    assert kid(x, y) == pytest.approx(whole, rel=1e-10)
    # float32 features agree to float32's digits of the kernel values, which are near 1.
    assert kid(x.float(), y.float()).value == pytest.approx(whole.value, abs=1e-5)


def test_what_does_not_compare_is_refused():
    with pytest.raises(ValueError, match="N >= 4"):
        kid(samples(0, 3, 2), samples(0, 9, 2))
    with pytest.raises(ValueError, match="one D"):
        kid(samples(0, 9, 3), samples(0, 9, 2))
    with pytest.raises(ValueError, match="10 groups of 19 samples"):
        groups_of(19, 10)


def test_groups_are_even_and_the_jackknife_of_a_mean_is_its_standard_error():
    groups = groups_of(103, 10)
    assert sorted(torch.bincount(groups).tolist()) == [10] * 7 + [11] * 3
    x = samples(0, 50)
    left_out = [(x.sum() - value).item() / 49 for value in x]
    assert standard_error(left_out) == pytest.approx((x.std() / 50**0.5).item(), rel=1e-10)
