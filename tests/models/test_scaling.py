"""The coefficients and gates of ScaleLong, by themselves and against the paper's theorems."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmkit.models import LongSkipScaler, SkipScaling
from dmkit.models.scaling import MODEL_OPTIONS
from dmkit.models.stability import growth, sensitivity_bound


def scaler(features=(8, 8, 16), levels=(0, 0, 1), **options) -> LongSkipScaler:
    torch.manual_seed(0)
    return LongSkipScaler(features, levels, SkipScaling(**options))


@given(kappa=st.floats(0.01, 1), n=st.integers(1, 14))
def test_constant_scaling_is_a_power_of_the_index(kappa, n):
    by_skip = LongSkipScaler([4] * n, None, SkipScaling("cs", kappa))
    levels = [i // 3 for i in range(n)]
    by_level = LongSkipScaler([4] * n, levels, SkipScaling("cs", kappa, index="level"))
    x = torch.randn(2, 4, 3, 3)
    for i in range(1, n + 1):
        assert math.isclose(by_skip.coefficient(i), math.prod([kappa] * (i - 1)), rel_tol=1e-12)
        assert math.isclose(by_level.coefficient(i), math.prod([kappa] * ((i - 1) // 3)), rel_tol=1e-12)
        assert torch.equal(by_skip(i, x), x * by_skip.coefficient(i))


def test_the_other_constant_modes():
    x = torch.randn(2, 8, 3, 3)
    assert scaler(mode="none")(1, x) is x
    assert torch.equal(scaler(mode="inv_sqrt2")(3, x), x * math.sqrt(0.5))
    off = scaler(mode="cs", kappa=0.5)
    off.enabled = False
    assert off(3, x) is x
    assert not list(scaler(mode="cs").parameters())


@pytest.mark.parametrize(
    ("features", "reduction", "expected"),
    [(257, 16, 8497), (65, 16, 589), (32, 16, 162), (64, 16, 580), (128, 16, 2184), (8, 16, 25)],
)
def test_gates_have_the_parameters_of_the_paper(features, reduction, expected):
    gate = scaler([features], [0], mode="ls", reduction=reduction).gate(1)
    assert sum(p.numel() for p in gate.parameters()) == expected


def test_gates_follow_their_equation_on_maps_and_on_tokens():
    gates = scaler(mode="ls", reduction=2)
    gate = gates.gate(1)
    for x in (torch.randn(3, 8, 5, 4), torch.randn(3, 8, 6)):
        pooled = x.flatten(2).mean(-1)
        hidden = torch.relu(pooled @ gate.squeeze.weight.T + gate.squeeze.bias)
        expected = 1 / (1 + torch.exp(-(hidden @ gate.excite.weight.T + gate.excite.bias)))
        by_feature = (gates(1, x) / x).flatten(2)
        assert torch.allclose(by_feature, expected[..., None].expand_as(by_feature), atol=1e-4)
        assert (by_feature.amax(-1) - by_feature.amin(-1)).max() < 1e-4


def test_gates_start_at_one_half_or_where_they_are_told():
    x = torch.randn(4, 256, 6, 6)
    start = scaler([256], [0], mode="ls").gate(1)(x)
    assert bool(((start > 0) & (start < 1)).all())
    assert 0.4 < start.mean() < 0.6
    near = scaler([256], [0], mode="ls", init_gate=0.982)
    assert (near(1, x) - x).abs().max() < 0.05 * x.abs().max()


def test_skips_of_one_width_share_a_gate_unless_told_otherwise():
    shared, own = scaler(mode="ls"), scaler(mode="ls", shared=False)
    assert shared.gate(1).squeeze.weight is shared.gate(2).squeeze.weight
    assert shared.gate(1) is not shared.gate(3)
    assert len({id(own.gate(i)) for i in (1, 2, 3)}) == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gates_are_computed_in_float32_under_half_precision(dtype):
    gates = scaler(mode="ls")
    # 8 x 64 x 64 values of 30 sum to 122,880 a channel: beyond float16, if the pooling were done in it.
    x = torch.full((1, 8, 64, 64), 30.0)
    half = gates(1, x.to(dtype))
    assert half.dtype == dtype
    assert torch.allclose(half.float(), gates(1, x), rtol=1e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gates(1, x), gates(1, x))
        assert gates.gate(1)(x).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "cx"}, ValueError, "Unknown mode of skip scaling 'cx'. Did you mean 'cs'?"),
        ({"index": "levels"}, ValueError, "Did you mean 'level'?"),
        ({"kappa": 0}, ValueError, "kappa is 0; it must be in (0, 1]"),
        ({"kappa": 1.2}, ValueError, "kappa is 1.2"),
        ({"kappa": float("nan")}, ValueError, "kappa is nan"),
        ({"kappa": "0.7"}, TypeError, "kappa should be a number, not '0.7'"),
        ({"reduction": 0}, ValueError, "reduction is 0"),
        ({"reduction": 1.5}, ValueError, "reduction is 1.5"),
        ({"init_gate": 1.0}, ValueError, "init_gate is 1.0"),
    ],
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error) as caught:
        SkipScaling(**options)
    assert message in str(caught.value)


def test_gates_refuse_another_number_of_tokens_and_have_no_constant():
    gates = scaler(mode="ls")
    with pytest.raises(ValueError, match="made for 8 channels or tokens, got 9"):
        gates(1, torch.randn(1, 9, 4))
    with pytest.raises(ValueError, match="depend on the input"):
        gates.coefficient(1)


def test_options_of_models_are_the_fields_of_the_scaling():
    changed = {
        "skip_scaling": "ls", "skip_kappa": 0.9, "skip_index": "level",
        "skip_reduction": 4, "skip_shared": False, "skip_init_gate": 0.9,
    }  # fmt: skip
    assert changed.keys() == MODEL_OPTIONS.keys()
    assert SkipScaling.from_model_config(changed) == SkipScaling("ls", 0.9, "level", 4, False, 0.9)
    assert SkipScaling.from_model_config(MODEL_OPTIONS) == SkipScaling()


CASES = {"none": (7, 190), "inv_sqrt2": (4, 153.10), "cs 0.7": (2.934, 96.65), "cs 0.5": (2.333, 76)}


@pytest.mark.parametrize("name", CASES)
def test_theorems_on_linear_and_random_networks(name):
    mode, _, kappa = name.partition(" ")
    six = LongSkipScaler([1] * 6, None, SkipScaling(mode, float(kappa or 1)))
    kappas = [six.coefficient(i) for i in range(1, 7)]
    forward, robust = CASES[name]
    assert growth(kappas)[0] == pytest.approx(forward, abs=5e-4)
    assert sensitivity_bound(kappas, gain=2.0, middle=1.0) == pytest.approx(robust, abs=5e-3)

    # Theorem 3 is tight for scalar linear networks whose pairs have gain 2 (encoders 1, decoders 2).
    def scalar(x: float) -> float:
        h = x
        for k in reversed(kappas):
            h = 2 * (k * x + h)
        return h

    assert (scalar(1.5) - scalar(0.5)) == pytest.approx(robust, abs=5e-3)

    # Theorem 1 in expectation, on random ReLU blocks whose last layer has variance 1/m.
    m, generator = 256, torch.Generator().manual_seed(0)
    x = torch.randn(m, generator=generator) * torch.ones(32, 1)

    def block(x: torch.Tensor) -> torch.Tensor:
        first = torch.randn(32, m, m, generator=generator) * math.sqrt(2 / m)
        second = torch.randn(32, m, m, generator=generator) * math.sqrt(1 / m)
        return torch.einsum("nij,nj->ni", second, torch.einsum("nij,nj->ni", first, x).relu())

    skips, h = [], x
    for _ in range(6):
        h = block(h)
        skips.append(h)
    h = block(h)
    for k in reversed(kappas):
        h = block(k * skips.pop() + h)
    assert float((h.pow(2).sum(1) / x.pow(2).sum(1)).mean()) == pytest.approx(forward, rel=0.15)
