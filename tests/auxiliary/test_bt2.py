"""BT²'s head, losses and comparisons: what must hold exactly."""

import copy
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from dmkit.auxiliary.retrieval.bt2 import (
    BasisTransformationHead,
    BCTLoss,
    BT2Loss,
    BT2Output,
    EmbeddingHead,
    GalleryIndex,
    PseudoClassifier,
    Rotation,
    compatibility,
    compatible_scores,
    mixed_scores,
    pad_to,
    unit_rows,
)
from dmkit.auxiliary.retrieval.bt2.head import head_parameters
from dmkit.errors import MissingExtraError


def head(seed: int = 0, **changes) -> BasisTransformationHead:
    torch.manual_seed(seed)
    values = {"in_features": 12, "dim_new": 6, "dim_old": 6, "num_classes": 3, "extra_dim": 2}
    made = BasisTransformationHead(**{**values, **changes})
    for rotation in (made.P, made.R):
        torch.nn.init.normal_(rotation.skew)  # somewhere else than at its base
    return made


def features(rows: int = 7, length: int = 12) -> torch.Tensor:
    return torch.randn(rows, length, generator=torch.Generator().manual_seed(1))


def still(rotation: Rotation) -> None:
    rotation.base.data = torch.eye(len(rotation.base))
    torch.nn.init.zeros_(rotation.skew)


def test_rotations_stay_orthonormal_in_training():
    torch.manual_seed(0)
    rotation = Rotation(16)
    target = rotation.base @ torch.linalg.matrix_exp(0.1 * (a := torch.randn(16, 16)) - 0.1 * a.T)
    assert (rotation.weight @ rotation.weight.T - torch.eye(16)).abs().max() < 1e-6
    optimiser = torch.optim.Adam(rotation.parameters(), lr=0.02)
    for _ in range(200):
        optimiser.zero_grad()
        loss = (rotation.weight - target).square().sum()
        loss.backward()
        optimiser.step()
    assert (rotation.weight @ rotation.weight.T - torch.eye(16)).abs().max() < 1e-5
    assert loss < 1e-3  # it learns a target whose determinant has the same sign


def test_a_rotation_cannot_turn_into_a_reflection():
    torch.manual_seed(0)
    rotation = Rotation(16)
    target = rotation.base.clone()
    target[0] *= -1
    optimiser = torch.optim.Adam(rotation.parameters(), lr=0.02)
    for _ in range(200):
        optimiser.zero_grad()
        loss = (rotation.weight - target).square().sum()
        loss.backward()
        optimiser.step()
    assert loss > 3.99  # the distance to the other component is 4
    assert torch.sign(torch.linalg.det(rotation.weight)) == torch.sign(torch.linalg.det(rotation.base))


def test_rotations_are_float32_under_autocast_and_in_half_models():
    made = head()
    plain = made(features()).embedding
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made.P.weight.dtype == torch.float32
        output = made(features())
    assert output.embedding.dtype == torch.float32
    lengths = output.embedding.norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((7,), math.sqrt(5)), atol=1e-5, rtol=0)
    assert (output.embedding - plain).abs().max() > 1e-4  # the projection did run in bfloat16


@given(
    st.integers(1, 8),
    st.integers(1, 8),
    st.integers(0, 8),
    st.floats(0.5, 4),
    st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_lengths_and_products(dim_new, dim_old, extra, scale, seed):
    if extra > dim_old or dim_old > dim_new + extra:
        with pytest.raises(ValueError, match=r"entries can hold it|does not fit into"):
            head(dim_new=dim_new, dim_old=dim_old, extra_dim=extra, scale=scale)
        return
    made = head(seed, dim_new=dim_new, dim_old=dim_old, extra_dim=extra, scale=scale)
    with torch.no_grad():
        output = made(features())
        o = F.normalize(made.extra(made.project(features()).relu()), dim=1)
    e = F.normalize(o[:, :extra], dim=1)
    assert output.embedding.shape == (7, dim_new + extra)
    assert made.embedding_dim == dim_new + extra
    products = e @ e.T + scale**2 * output.new @ output.new.T
    torch.testing.assert_close(output.embedding @ output.embedding.T, products, atol=3e-5, rtol=1e-5)
    torch.testing.assert_close(output.embedding[:, :dim_old], output.compatible)


def test_the_length_of_the_papers_scale():
    lengths = head()(features()).embedding.norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((7,), 2.236068), atol=2e-6, rtol=0)
    without = head(extra_dim=0)(features()).embedding.norm(dim=1)
    torch.testing.assert_close(without, torch.full((7,), 2.0), atol=2e-6, rtol=0)


def test_at_rest_and_without_dimensions_it_is_the_new_space():
    made = head(extra_dim=0)
    still(made.P)
    still(made.R)
    output = made(features())
    torch.testing.assert_close(output.embedding, 2 * output.new)


def test_with_as_many_dimensions_as_the_old_space_both_are_apart():
    made = head(extra_dim=6)
    output = made(features())
    tail = output.embedding[:, 6:]
    torch.testing.assert_close(tail, made.P(2 * output.new))
    torch.testing.assert_close(output.compatible.norm(dim=1), torch.ones(7))  # R e
    # z does not depend on f: a gradient of it reaches the first d_n entries of u through o only.
    output.compatible.sum().backward()
    assert made.P.skew.grad is None or not made.P.skew.grad.any()


def test_the_compatible_part_sees_only_the_first_entries():
    made = head(dim_new=8, dim_old=4)
    output = made(features())
    made.R.skew.data += 0.3
    turned = made(features())
    torch.testing.assert_close(turned.embedding[:, 4:], output.embedding[:, 4:])
    assert (turned.compatible - output.compatible).abs().max() > 0.01


def test_weight_decay_leaves_rotations_alone():
    made = head()
    rest, rotations = head_parameters(made)
    assert rotations["weight_decay"] == 0.0
    assert {id(p) for p in rotations["params"]} == {id(made.P.skew), id(made.R.skew)}
    together = len(rest["params"]) + len(rotations["params"])
    assert together == sum(p.requires_grad for p in made.parameters())
    assert "weight_decay" not in rest
    assert head_parameters(EmbeddingHead(4, 2, 2))[0].keys() == {"params"}


def test_saving_keeps_both_tensors_of_a_rotation(tmp_path):
    made = head(prefixes=(3,))
    made.save_pretrained(tmp_path)
    names = set(made.state_dict())
    assert {"P.skew", "P.base", "R.skew", "R.base"} <= names
    again = BasisTransformationHead.from_pretrained(tmp_path)
    assert torch.equal(again(features()).embedding, made(features()).embedding)
    assert again.lengths == made.lengths == (3, 6, 8)
    for dtype in (torch.float16, torch.bfloat16):
        half = BasisTransformationHead.from_pretrained(tmp_path, torch_dtype=dtype)
        assert half.P.skew.dtype == half.P.base.dtype == torch.float32
        assert half.project.weight.dtype == dtype
        lengths = half(features().to(dtype)).embedding.norm(dim=1)
        torch.testing.assert_close(lengths, torch.full((7,), math.sqrt(5)), atol=1e-5, rtol=0)
    with pytest.raises(TypeError, match=r"A rotation in torch.bfloat16 is none"):
        made.to(torch.bfloat16)(features().bfloat16())


@pytest.mark.parametrize("name", ["P.base", "R.skew"])
def test_half_a_rotation_is_refused(name, tmp_path):
    state = head().state_dict()
    del state[name]
    with pytest.raises(RuntimeError, match="are one rotation; only one of them is there"):
        head().load_state_dict(state, strict=False)
    made = head()
    made.save_pretrained(tmp_path)
    save_file(state, str(tmp_path / "diffusion_pytorch_model.safetensors"))
    with pytest.raises((RuntimeError, ValueError), match=name):
        BasisTransformationHead.from_pretrained(tmp_path)


def test_export_has_plain_matrices(tmp_path):
    made = head()
    baked = made.export()
    assert {"P.matrix", "R.matrix"} <= set(baked.state_dict())
    assert not {"P.base", "P.skew"} & set(baked.state_dict())
    torch.testing.assert_close(baked(features()).embedding, made(features()).embedding, atol=1e-6, rtol=0)
    baked.save_pretrained(tmp_path)
    again = BasisTransformationHead.from_pretrained(tmp_path)
    assert torch.equal(again(features()).embedding, baked(features()).embedding)
    assert not made.config.baked
    assert isinstance(copy.deepcopy(made).P, Rotation)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra_dim": -1}, "it cannot be -1"),
        ({"extra_dim": 7}, "only dim_old = 6 entries can hold it"),
        ({"dim_old": 9}, "dim_new [+] extra_dim = 6 [+] 2; add at least 3"),
        ({"scale": 0.0}, "scale must be positive"),
    ],
)
def test_dimensions_that_do_not_go_together(changes, message):
    with pytest.raises(ValueError, match=message):
        head(**changes)
    with pytest.raises(ValueError, match="dim_old is in 1 to dim = 4"):
        EmbeddingHead(4, 4, 3, dim_old=5)


def test_a_chain():
    first = head(dim_new=6, dim_old=6, extra_dim=2)
    second = first.extend(20, dim_new=10, num_classes=5)
    assert (second.config.dim_old, second.embedding_dim, second.lengths) == (8, 12, (6, 8, 12))
    third = second.extend(None)
    assert (third.config.dim_old, third.embedding_dim, third.lengths) == (12, 12, (6, 8, 12))
    assert (third.config.num_classes, third.config.scale) == (5, 2.0)
    # What is needed is added: vectors of 6 + 2 must hold the 8 before.
    assert head(extra_dim=1).extend(4, dim_new=5).config.extra_dim == 2
    with pytest.raises(ValueError, match="does not fit"):
        first.extend(4, dim_new=3, extra_dim=2)
    vectors = second(features(7, 20)).embedding
    assert compatible_scores(vectors, torch.randn(5, 6), second.lengths).shape == (7, 5)
    with pytest.raises(ValueError, match="vectors of length 7; they have 6, 8, 12"):
        compatible_scores(vectors, torch.randn(5, 7), second.lengths)


def test_scores_over_the_first_entries():
    old = F.normalize(torch.randn(5, 6), dim=1)
    output = head()(features())
    scores = compatible_scores(output.embedding, old)
    torch.testing.assert_close(scores, output.compatible @ old.T)
    torch.testing.assert_close(scores, output.embedding @ pad_to(old, 8).T)
    torch.testing.assert_close(scores, compatible_scores(old, output.embedding).T)
    with pytest.raises(ValueError, match="of 8 entries cannot be padded to 6"):
        pad_to(output.embedding, 6)


def test_a_mixed_gallery_has_one_scale():
    output = head()(features(50))
    old = F.normalize(output.compatible, dim=1)  # an old gallery that is matched perfectly
    scores = mixed_scores(output.embedding, [old, output.embedding])
    assert scores.shape == (50, 100)
    torch.testing.assert_close(scores[:, :50], scores[:, 50:])
    plain = torch.cat([compatible_scores(output.embedding, g) for g in (old, output.embedding)], 1)
    itself = torch.arange(50)
    assert (plain[itself, 50 + itself] > plain[itself, itself] + 1).all()  # new items always first


def test_rows_are_normalised_with_a_warning():
    vectors = torch.randn(4, 3)
    with pytest.warns(UserWarning, match="old vectors are not of unit length"):
        unit = unit_rows(vectors, "old vectors")
    assert unit_rows(unit) is unit
    vectors[1] = 0
    with pytest.raises(ValueError, match="some are zero or not finite"):
        unit_rows(vectors)


def perfect(old: torch.Tensor, new: torch.Tensor) -> BT2Output:
    return BT2Output(torch.zeros(len(old), 3), 1.7 * old, new, new)


def test_perfect_targets_cost_nothing():
    old, new = (F.normalize(torch.randn(9, d), dim=1) for d in (4, 5))
    labels = torch.arange(9) % 3
    pseudo = PseudoClassifier.from_features(old, labels, 3)
    loss = BT2Loss(pseudo, match=2.0, influence=3.0, old=4.0)
    terms = loss(perfect(old, new), {"labels": labels, "old": old, "new": new})
    assert terms["match"].abs() < 1e-6
    assert terms["old"].abs() < 1e-6
    expected = 3 * F.cross_entropy(old @ pseudo.weight.T, labels)
    torch.testing.assert_close(terms["influence"], expected)
    torch.testing.assert_close(terms["classification"], torch.tensor(math.log(3)))
    opposite = loss(perfect(old, new), {"labels": labels, "old": -old, "new": -new})
    torch.testing.assert_close(opposite["match"] / 2, torch.tensor(2.0))
    torch.testing.assert_close(opposite["old"] / 4, torch.tensor(2.0))
    longer = loss(perfect(old, new), {"labels": labels, "old": 2 * old, "new": 3 * new})
    torch.testing.assert_close(longer, terms, atol=1e-6, rtol=1e-6)
    baseline = BCTLoss(pseudo, 3.0)(perfect(old, new), {"labels": labels})
    assert baseline.keys() == {"classification", "influence"}
    assert all(torch.equal(baseline[name], terms[name]) for name in baseline)
    with pytest.raises(ValueError, match="influence weighs a loss; it cannot be -1"):
        BCTLoss(pseudo, -1.0)


def test_the_pseudo_classifier_is_the_class_means():
    vectors = F.normalize(torch.randn(10, 4), dim=1)
    labels = torch.tensor([0, 0, 2, 2, 2, 0, 2, 0, 0, 2])
    with pytest.raises(ValueError, match="No sample of class 1, 3: its row would be NaN"):
        PseudoClassifier.from_features(vectors, labels, 4)
    pseudo = PseudoClassifier.from_features(vectors, labels, 4, missing="skip")
    torch.testing.assert_close(pseudo.weight[0], vectors[labels == 0].mean(0))
    logits = pseudo(vectors)
    assert torch.isneginf(logits[:, [1, 3]]).all()
    assert F.cross_entropy(logits, labels).isfinite()
    assert not list(pseudo.parameters())  # frozen
    with pytest.warns(UserWarning, match="Old vectors are not of unit length"):
        longer = PseudoClassifier.from_features(3 * vectors, labels, 4, missing="skip")
    torch.testing.assert_close(longer.weight, pseudo.weight)
    with pytest.raises(ValueError, match="Labels from 0 to 2 for 2 classes"):
        PseudoClassifier.from_features(vectors, labels, 2)
    with pytest.raises(ValueError, match="10 features, but 9 labels"):
        PseudoClassifier.from_features(vectors, labels[:9], 3)
    with pytest.raises(ValueError, match="'error' or 'skip', not 'ignore'"):
        PseudoClassifier.from_features(vectors, labels, 3, missing="ignore")


def test_compatibility_of_perfect_and_of_foreign_spaces():
    labels = torch.arange(60) % 3
    old = torch.eye(3)[labels]
    new = torch.cat([old, torch.randn(60, 2)], dim=1)
    found = compatibility(old, new, labels, topk=(1,))
    assert found["old/old"] == found["new/old"] == {"top1": 1.0, "map": 1.0, "queries": 60.0}
    foreign = torch.cat([torch.eye(3)[(labels + 1) % 3], torch.randn(60, 2)], dim=1)
    assert compatibility(old, foreign, labels)["new/old"]["top1"] == 0.0


# The index


@pytest.mark.parametrize("algorithm", ["auto", "ball_tree", "kd_tree", "brute"])
def test_the_index_finds_what_all_products_say(algorithm):
    """Old vectors, new ones, and queries of either kind; lengths of the gallery's vectors differ."""
    pytest.importorskip("sklearn")
    torch.manual_seed(0)
    old, new = F.normalize(torch.randn(90, 6), dim=1), 3 * torch.randn(90, 10)
    for gallery in (old, new):
        index = GalleryIndex(gallery, lengths=(6, 10), algorithm=algorithm)
        for query in (torch.randn(40, 6), torch.randn(40, 10)):
            scores, places = index.search(query, k=7)
            exact = compatible_scores(query.double(), gallery.double()).topk(7, dim=1)
            assert torch.equal(places, exact.indices)
            torch.testing.assert_close(scores, exact.values, atol=1e-12, rtol=1e-12)


def test_the_index_has_the_top_k_of_the_evaluation():
    pytest.importorskip("sklearn")
    torch.manual_seed(1)
    labels = torch.arange(60) % 4
    old = F.normalize(torch.randn(60, 5) + F.one_hot(labels, 5), dim=1)
    new = torch.randn(60, 8) + F.one_hot(labels, 8)
    found = compatibility(old, new, labels, topk=(1, 5))["new/old"]
    _, places = GalleryIndex(old).search(new, k=6)
    hits = []
    for item, row in enumerate(places.tolist()):
        others = [labels[other] == labels[item] for other in row if other != item][:5]
        hits.append([others[0], any(others)])
    top = torch.tensor(hits).double().mean(0).tolist()
    assert top == pytest.approx([found["top1"], found["top5"]])


def test_what_the_index_refuses(monkeypatch):
    pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match=r"rows of finite numbers, \(G, d\), not of \(3,\)"):
        GalleryIndex(torch.ones(3))
    with pytest.raises(ValueError, match="rows of finite numbers"):
        GalleryIndex(torch.full((2, 2), math.nan))
    index = GalleryIndex(torch.eye(4), lengths=(4, 8))
    with pytest.raises(ValueError, match="k is 1 to 4, the items of the gallery, not 5"):
        index.search(torch.eye(4), k=5)
    with pytest.raises(ValueError, match="No model of this chain has vectors of length 3"):
        index.search(torch.ones(1, 3))
    monkeypatch.setitem(sys.modules, "sklearn.neighbors", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dmkit\[metrics\]'"):
        GalleryIndex(torch.eye(2))
