"""CMC and mean average precision, against scikit-learn and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from dmkit.metrics.ranking import ranking_metrics, retrieval_metrics


@given(st.integers(0, 10_000), st.integers(2, 30), st.booleans())
@settings(max_examples=60, deadline=None)
def test_map_is_scikit_learns(seed, size, ties):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (5, size)).astype(float) if ties else rng.normal(size=(5, size))
    relevant = rng.random((5, size)) < 0.4
    relevant[:, rng.integers(size)] = True
    expected = np.mean([average_precision_score(r, s) for r, s in zip(relevant, scores, strict=True)])
    found = ranking_metrics(torch.from_numpy(scores), torch.from_numpy(relevant))
    assert found["map"] == pytest.approx(expected, abs=1e-12)
    assert found["queries"] == 5


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_blocks_and_the_galleries_order_change_nothing(seed):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randint(-1, 2, (23, 3), generator=generator).float()  # many ties
    labels = torch.randint(3, (23,), generator=generator)
    whole = retrieval_metrics(vectors, vectors, labels, labels, exclude_self=True)
    parts = retrieval_metrics(vectors, vectors, labels, labels, exclude_self=True, batch_size=4)
    assert parts == pytest.approx(whole)
    order = torch.randperm(23, generator=generator)
    moved = retrieval_metrics(vectors, vectors[order], labels, labels[order])
    assert moved["map"] == pytest.approx(retrieval_metrics(vectors, vectors, labels, labels)["map"])


def test_a_line_of_four():
    """Labels 0 0 1 1; the nearest neighbour of query 0 is of the other class, its match comes second."""
    place = torch.tensor([0.0, 1.5, 1.0, 3.0])
    scores = -(place[:, None] - place[None, :]).abs()
    scores.fill_diagonal_(-torch.inf)
    labels = torch.tensor([0, 0, 1, 1])
    first = ranking_metrics(scores[:1], labels[:1, None] == labels, topk=(1, 2))
    assert first == {"top1": 0.0, "top2": 1.0, "map": 0.5, "queries": 1.0}


def test_clusters_are_perfect_and_noise_is_chance():
    labels = torch.arange(400) % 4
    clusters = torch.eye(4)[labels]
    found = retrieval_metrics(clusters, clusters, labels, labels, exclude_self=True)
    assert found == {"top1": 1.0, "top5": 1.0, "map": 1.0, "queries": 400.0}
    noise = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    found = retrieval_metrics(noise, noise, labels, labels, exclude_self=True)
    assert abs(found["map"] - 0.25) < 0.02
    assert abs(found["top1"] - 0.25) < 0.1


def test_the_query_is_left_out_by_its_index():
    """A copy of it stays in the gallery, and so does itself where it was not asked to go."""
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    labels = torch.tensor([0, 1, 1])
    found = retrieval_metrics(vectors, vectors, labels, labels, exclude_self=True)
    assert found["queries"] == 2  # query 0 has no match left
    assert (found["top1"], found["top5"]) == (0.0, 1.0)  # the copy, of another label, comes first
    kept = retrieval_metrics(vectors, vectors, labels, labels)
    assert kept["queries"] == 3


def test_what_is_refused():
    vectors, labels = torch.randn(4, 3), torch.arange(4)
    with pytest.raises(ValueError, match=r"\(Q, d\) and \(G, d\), not \(4, 3\) and \(4, 2\)"):
        retrieval_metrics(vectors, vectors[:, :2], labels, labels)
    with pytest.raises(ValueError, match="3 and 4 labels for 4 queries"):
        retrieval_metrics(vectors, vectors, labels[:3], labels)
    with pytest.raises(ValueError, match="as many queries as items"):
        retrieval_metrics(vectors[:2], vectors, labels[:2], labels, exclude_self=True)
    with pytest.raises(ValueError, match="No query has a relevant item"):
        retrieval_metrics(vectors, vectors, labels, labels, exclude_self=True)
    with pytest.raises(ValueError, match="A score is NaN"):
        ranking_metrics(torch.full((1, 2), torch.nan), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="k of at least 1"):
        ranking_metrics(torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), topk=(0,))
    with pytest.raises(ValueError, match="both"):
        ranking_metrics(torch.ones(1, 2), torch.ones(1, 3, dtype=torch.bool))
