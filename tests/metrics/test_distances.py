import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmkit.metrics import distances, pairwise_diversity, precision_recall
from dmkit.metrics.distances import neighbour_radii, squared_distance_blocks


def samples(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(generated: np.ndarray, reference: np.ndarray, k: int) -> tuple[float, float]:
    """The definition, point by point."""

    def share(points, centres):
        radii = []
        for i, centre in enumerate(centres):
            others = sorted(np.linalg.norm(centre - other) for j, other in enumerate(centres) if j != i)
            radii.append(others[k - 1])
        balls = list(zip(centres, radii, strict=True))
        return np.mean([any(np.linalg.norm(p - centre) <= r for centre, r in balls) for p in points])

    return share(generated, reference), share(reference, generated)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), n=st.integers(5, 14), m=st.integers(5, 14), k=st.integers(1, 4))
def test_precision_and_recall_by_definition(seed, n, m, k):
    x, y = samples(seed, n, 2), samples(seed + 1, m, 2) * 1.5
    assert precision_recall(x, y, k) == pytest.approx(by_hand(x.numpy(), y.numpy(), k))


def test_radii_against_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors")
    x = samples(0, 200, 16) + 100
    theirs = neighbors.NearestNeighbors(n_neighbors=4).fit(x.numpy()).kneighbors(x.numpy())[0][:, 3]
    assert np.allclose(neighbour_radii(x, 3).sqrt().numpy(), theirs, rtol=1e-9)


def test_the_cases_that_the_figures_are_for():
    real = samples(0, 200, 3)
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real + 100, real) == (0.0, 0.0)
    # A generator that shows only a part of what is real: all of it good, little of the whole.
    precision, recall = precision_recall(real[real[:, 0] > 0.5], real)
    assert precision == 1.0
    assert recall < 0.6
    # One that shows everything and as much again that is not real.
    precision, recall = precision_recall(torch.cat([real, real + 100]), real)
    assert (precision, recall) == (0.5, 1.0)


def test_copies_of_one_image_cover_only_it():
    copies = samples(0, 1, 8).repeat(50, 1) + 1e3
    assert torch.equal(neighbour_radii(copies, 3), torch.zeros(50, dtype=torch.float64))
    spread = torch.cat([samples(1, 49, 8), copies[:1]])
    assert precision_recall(copies, spread)[1] == pytest.approx(1 / 50)


def test_blocks_do_not_change_anything(monkeypatch):
    x, y = samples(0, 33, 4), samples(1, 41, 4)
    whole = precision_recall(x, y), pairwise_diversity(x)
    monkeypatch.setattr(distances, "_BLOCK_ELEMENTS", 100)
    assert len(list(squared_distance_blocks(x, y))) == 17
    assert precision_recall(x, y) == whole[0]
    assert pairwise_diversity(x) == pytest.approx(whole[1], rel=1e-12)


def test_diversity_against_scipy():
    distance = pytest.importorskip("scipy.spatial.distance")
    x = samples(0, 30, 5) * 3 + 50
    assert pairwise_diversity(x) == pytest.approx(distance.pdist(x.numpy()).mean(), rel=1e-9)
    assert pairwise_diversity(x[:1].repeat(9, 1)) == 0


def test_what_does_not_compare_is_refused():
    with pytest.raises(ValueError, match=r"N >= 4 and one D, not \[\(3, 2\), \(9, 2\)\]"):
        precision_recall(samples(0, 3, 2), samples(0, 9, 2))
    with pytest.raises(ValueError, match="at least 1, not 0"):
        precision_recall(samples(0, 9, 2), samples(0, 9, 2), k=0)
    with pytest.raises(ValueError, match="N >= 2"):
        pairwise_diversity(samples(0, 1, 2))
