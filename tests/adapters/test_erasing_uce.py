"""UCE's closed form against a least-squares solver, and its limits."""

import pytest
import torch
from erasing_cases import CAT, HEART, pipeline_of, weights_of
from hypothesis import given, settings
from hypothesis import strategies as st

from dmkit.adapters.erasing.uce import edit, moved, text_projections
from dmkit.training.prompting import encode


@settings(max_examples=30, deadline=None)
@given(
    width=st.integers(1, 8),
    edits=st.integers(1, 6),
    kept=st.integers(0, 12),
    ridge=st.floats(1e-3, 10),
    seed=st.integers(0, 1000),
)
def test_closed_form_is_the_least_squares_solution(width, edits, kept, ridge, seed):
    """The objective (1) as one tall system: rows c → W_0 c*, c → W_0 c and √λ I → √λ W_0."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    concept, surrogate, preserved, weight = (
        draw(edits, width),
        draw(edits, width),
        draw(kept, width),
        draw(5, width),
    )
    identity = ridge**0.5 * torch.eye(width, dtype=torch.float64)
    inputs = torch.cat([concept, preserved, identity])
    outputs = torch.cat([surrogate, preserved, identity]) @ weight.T
    expected = torch.linalg.lstsq(inputs, outputs).solution.T
    ours = weight + weight @ moved((concept, surrogate), preserved, ridge)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)


def test_no_edit_leaves_the_weights_to_the_bit():
    pipe = pipeline_of("sd")
    before = weights_of(pipe)
    assert edit(pipe, [], preserve=[CAT]) == []
    assert edit(pipe, [HEART], surrogate=HEART)  # an edit to itself
    assert all(torch.equal(value, before[name]) for name, value in weights_of(pipe).items())


def test_with_room_for_all_edits_and_preserved_states_are_exact():
    """Fewer states than dimensions and λ → 0: W c = W_0 c* and W c = W_0 c, both to rounding."""
    generator = torch.Generator().manual_seed(0)
    concept, surrogate, kept = (
        torch.randn(n, 32, generator=generator, dtype=torch.float64) for n in (3, 3, 20)
    )
    weight = torch.randn(6, 32, generator=generator, dtype=torch.float64)
    edited = weight + weight @ moved((concept, surrogate), kept, 1e-9)
    torch.testing.assert_close(concept @ edited.T, surrogate @ weight.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kept @ edited.T, kept @ weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["sd", "sdxl"])
def test_the_concept_moves_to_the_surrogate_and_preserved_prompts_stay(layout):
    """States from the last token on move; which layers do; what preserving is good for."""
    dog = "a small dog in the top left"
    original, edited, preserving = (pipeline_of(layout) for _ in range(3))
    before = weights_of(original)
    names = edit(edited, [HEART], CAT)
    edit(preserving, [HEART], CAT, preserve=[dog])
    changed = {name for name, value in weights_of(edited).items() if not torch.equal(value, before[name])}
    assert changed == {f"{name}.weight" for name in names}
    assert all(name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")) for name in changed)
    states = encode(original, [HEART, CAT, dog]).arguments["encoder_hidden_states"]
    # "a red heart" has three tokens and "a cat" two, after the start token.
    last = [len(original.tokenizer(text).input_ids) - 2 for text in (HEART, CAT)]
    common = states.shape[1] - max(last)
    heart, cat = (state[k : k + common] for state, k in zip(states, last, strict=False))
    for name, old in text_projections(original.unet).items():
        new, kept = edited.unet.get_submodule(name), preserving.unet.get_submodule(name)
        assert (new(heart) - old(cat)).norm() < 0.6 * (old(heart) - old(cat)).norm()
        assert (kept(heart) - old(cat)).norm() < (old(heart) - old(cat)).norm()
        assert (kept(states[2]) - old(states[2])).norm() < 0.9 * (new(states[2]) - old(states[2])).norm()


def test_a_large_ridge_keeps_everything():
    pipe = pipeline_of("sd")
    before = weights_of(pipe)
    edit(pipe, [HEART], regularisation=1e9)
    for name, value in weights_of(pipe).items():
        torch.testing.assert_close(value, before[name], rtol=1e-4, atol=1e-6)


def test_bad_edits_change_nothing():
    pipe = pipeline_of("sd")
    before = weights_of(pipe)
    with pytest.raises(ValueError, match="A concept to erase is empty"):
        edit(pipe, [HEART, " "])
    with pytest.raises(ValueError, match=r"regularisation \(λ\) is 0; it must be positive"):
        edit(pipe, [HEART], regularisation=0)
    with pytest.raises(ValueError, match="'a cat' is both erased and preserved"):
        edit(pipe, [CAT], preserve=[CAT])
    assert all(torch.equal(value, before[name]) for name, value in weights_of(pipe).items())
    with pytest.raises(ValueError, match="of this PixArtTransformer2DModel reads something else"):
        edit(pipeline_of("pixart"), [HEART])
