"""The arithmetic between the two answers, and one layer against the equations written out."""

import math

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from hypothesis import given, settings
from hypothesis import strategies as st

from dmkit.guidance import NASAAttnProcessor2_0, Steering, join_tokens

POSITIVE = torch.tensor([[[1.0, 2.0, 0.0, -1.0]]])
NEGATIVE = torch.tensor([[[0.0, 2.0, 1.0, 1.0]]])


def away(positive=POSITIVE, negative=NEGATIVE, **options):
    return Steering(**options).away(positive, negative)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mode": "nasa", "scale": 0.5}, [1, 1, -0.5, -1.5]),
        # Before (4) this is (2, 2, -1, -3), twice NASA's at 1/2; its ratio 8/4 of L1 norms is below τ.
        ({"mode": "nag", "scale": 1.0, "tau": 2.5, "blend": 0.25}, [1.25, 2, -0.25, -1.5]),
        ({"mode": "nag", "scale": 1.0, "tau": 2.5, "blend": 1.0}, [2, 2, -1, -3]),
        # (5, 2, -4, -9) has the ratio 5 and is halved.
        ({"mode": "nag", "scale": 4.0, "tau": 2.5, "blend": 0.25}, [1.375, 1.75, -0.5, -1.875]),
    ],
)
def test_numbers_by_hand(options, expected):
    assert away(**options).flatten().tolist() == pytest.approx(expected)


numbers = st.integers(0, 2**32 - 1)


def answers(seed, shape=(2, 3, 8)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@given(seed=numbers, phi=st.floats(0.0, 8.0))
@settings(max_examples=20, deadline=None)
def test_nag_before_its_bound_is_a_multiple_of_nasa(seed, phi):
    z, z_negative = answers(seed)
    unbounded = away(z, z_negative, mode="nag", scale=phi, tau=1e6, blend=1.0)
    nasa = away(z, z_negative, scale=phi / (1 + phi))
    assert torch.allclose(unbounded, (1 + phi) * nasa, atol=1e-4)


@given(seed=numbers, phi=st.floats(0.0, 20.0), tau=st.floats(1.0, 5.0), blend=st.floats(0.01, 1.0))
@settings(max_examples=30, deadline=None)
def test_nag_is_its_formula_and_bounded(seed, phi, tau, blend):
    z, z_negative = answers(seed)
    steered = away(z, z_negative, mode="nag", scale=phi, tau=tau, blend=blend)
    for here, a, b in zip(steered.view(-1, 8), z.view(-1, 8), z_negative.view(-1, 8), strict=True):
        moved = [x + phi * (x - y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        ratio = sum(map(abs, moved)) / sum(map(abs, a.tolist()))
        bounded = [min(ratio, tau) / ratio * x for x in moved]
        expected = [blend * x + (1 - blend) * y for x, y in zip(bounded, a.tolist(), strict=True)]
        assert here.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    longest = blend * tau + 1 - blend
    assert (steered.abs().sum(-1) <= longest * z.abs().sum(-1) * (1 + 1e-5)).all()


@given(seed=numbers, scale=st.floats(-2.0, 2.0))
@settings(max_examples=20, deadline=None)
@pytest.mark.filterwarnings("ignore:A negative scale")
def test_nasa_is_affine_in_its_scale(seed, scale):
    z, z_negative = answers(seed)
    at_0, at_1 = (away(z, z_negative, scale=s) for s in (0.0, 1.0))
    assert torch.allclose(away(z, z_negative, scale=scale), (1 - scale) * at_0 + scale * at_1, atol=1e-5)


@pytest.mark.parametrize("mode", ["nasa", "nag"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scale_0_returns_the_answer_to_the_bit_in_every_precision(mode, dtype):
    z, z_negative = (x.to(dtype) for x in answers(0, (2, 5, 640)))
    for scale in (0.0, torch.zeros(2)):
        assert torch.equal(away(z, z_negative, mode=mode, scale=scale), z)


def test_half_precision_neither_overflows_nor_loses_small_differences():
    z = torch.full((1, 2, 1280), 300.0, dtype=torch.float16)  # an L1 norm of 384,000
    steered = away(z, z / 2, mode="nag", scale=4.0, tau=2.5, blend=1.0)
    assert steered.dtype == torch.float16
    assert torch.equal(steered, torch.full_like(z, 750.0))
    z = torch.full((1, 1, 4), 1.0, dtype=torch.bfloat16)
    assert away(z, z, scale=0.3).float() == pytest.approx(torch.full((1, 1, 4), 0.7), abs=2e-3)


@pytest.mark.parametrize("mode", ["nasa", "nag"])
def test_answers_of_zero_stay_finite(mode):
    zero = torch.zeros(1, 2, 4)
    for z, z_negative in ((zero, zero), (zero, zero + 1), (zero + 1, zero + 1.25)):
        assert away(z, z_negative, mode=mode, scale=4.0).isfinite().all()


def test_bad_values_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"Unknown mode 'nas'\. Did you mean 'nasa'"):
        Steering(mode="nas")
    with pytest.raises(ValueError, match="must be finite, not nan"):
        Steering(scale=math.nan)
    with pytest.raises(ValueError, match="one for each prompt, not of shape"):
        Steering(scale=torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"tau must be at least 1, not 0\.5"):
        Steering(tau=0.5)
    with pytest.raises(ValueError, match=r"blend must be in \(0, 1\], not 0"):
        Steering(blend=0)
    with pytest.warns(UserWarning, match="adds the negative prompt"):
        Steering(scale=-0.1)
    with pytest.raises(ValueError, match="3 scales do not fit a batch of 2"):
        away(*answers(0), scale=torch.zeros(3))


def test_join_tokens():
    a, b = torch.zeros(2, 3, 5), torch.ones(1, 4, 5)
    assert join_tokens(a, b).sum((1, 2)).tolist() == [20, 20]
    assert join_tokens(torch.ones(2, 3), torch.zeros(2, 4)).tolist() == [[1, 1, 1, 0, 0, 0, 0]] * 2
    with pytest.raises(ValueError, match="one text encoder makes both"):
        join_tokens(a, torch.ones(1, 4, 6))
    with pytest.raises(ValueError, match="2 prompts and 3 negative prompts do not pair"):
        join_tokens(a, torch.ones(3, 4, 5))


# One layer


def layer(**options):
    torch.manual_seed(0)
    return Attention(query_dim=12, cross_attention_dim=6, heads=3, dim_head=4, **options).eval()


def dense(attn, x, text, mask=None):
    """softmax(Q Kᵀ/√d + mask) V, head by head."""
    answers = []
    for head in range(attn.heads):
        rows = slice(4 * head, 4 * head + 4)
        q, k, v = (p.weight[rows] for p in (attn.to_q, attn.to_k, attn.to_v))
        scores = (x @ q.T) @ (text @ k.T).transpose(1, 2) / 2
        answers.append((scores if mask is None else scores + mask).softmax(-1) @ (text @ v.T))
    return torch.cat(answers, dim=-1)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", ["nasa", "nag"])
def test_a_layer_is_its_equations(mode, masked):
    attn = layer()
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 7, 12, generator=generator), torch.randn(2, 8, 6, generator=generator)
    mask = torch.zeros(2, 1, 8)
    if masked:
        mask[0, 0, 2] = mask[1, 0, 4:6] = -10_000.0
    scale = torch.tensor([0.4, 1.5])
    steering = Steering(mode, scale, num_prompt_tokens=3, num_negative_tokens=5)
    attn.set_processor(NASAAttnProcessor2_0(steering))
    out = attn(x, text, attention_mask=mask if masked else None)
    towards, from_there = (dense(attn, x, text[:, s], mask[..., s]) for s in (slice(0, 3), slice(3, 8)))
    expected = attn.to_out[0](steering.away(towards, from_there))
    assert torch.allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True, "qk_norm": "layer_norm"},
        {"cross_attention_norm": "layer_norm"},
        # Its mean is over all tokens: the negative prompt's must not be among them.
        {"cross_attention_norm": "group_norm", "cross_attention_norm_num_groups": 2},
        {"residual_connection": True, "rescale_output_factor": 2.0},
    ],
)
def test_scale_0_is_the_plain_layer_to_the_bit(options):
    attn = layer(**options)
    generator = torch.Generator().manual_seed(1)
    x, text, negative = (torch.randn(2, n, c, generator=generator) for n, c in ((7, 12), (3, 6), (5, 6)))
    attn.set_processor(AttnProcessor2_0())
    plain = attn(x, text)
    attn.set_processor(NASAAttnProcessor2_0(Steering("nasa", 0.0, 3, 5)))
    assert torch.equal(attn(x, join_tokens(text, negative)), plain)


def test_negative_tokens_have_no_order_and_masked_ones_do_not_count():
    attn = layer()
    generator = torch.Generator().manual_seed(1)
    x, text, negative = (torch.randn(2, n, c, generator=generator) for n, c in ((7, 12), (3, 6), (5, 6)))
    attn.set_processor(NASAAttnProcessor2_0(Steering("nasa", 0.5, 3, 5)))
    out = attn(x, join_tokens(text, negative))
    assert torch.allclose(attn(x, join_tokens(text, negative.flip(1))), out, atol=1e-6)
    padded = join_tokens(join_tokens(text, negative), torch.randn(2, 4, 6, generator=generator))
    mask = torch.zeros(2, 1, 12)
    mask[..., 8:] = -10_000.0
    attn.set_processor(NASAAttnProcessor2_0(Steering("nasa", 0.5, 3, 9)))
    assert torch.allclose(attn(x, padded, attention_mask=mask), out, atol=1e-6)


def test_gradients_reach_both_prompts():
    attn = layer()
    attn.set_processor(NASAAttnProcessor2_0(Steering("nag", 2.0, 3, 5)))
    with torch.enable_grad():
        text = torch.randn(1, 8, 6, requires_grad=True)
        attn(torch.randn(1, 7, 12), text).square().sum().backward()
    assert (text.grad.abs().sum(-1) > 0).all()
