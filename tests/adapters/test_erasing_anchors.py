"""Anchors of latent anchoring: their norm, their density and their weights."""

import math

import pytest
import torch
from erasing_cases import CAT, HEART, pipeline_of
from hypothesis import given, settings
from hypothesis import strategies as st

from dmkit.adapters.erasing.anchors import (
    GaussianAnchors,
    PromptAnchors,
    anchor_weights,
    candidates,
    cosine,
)
from dmkit.training.prompting import Conditions, encode
from dmkit.training.randomness import Draws


def draws(seed: int = 0, rank: int = 0, world: int = 1) -> Draws:
    return Draws(seed, 0, rank=rank, world=world)


def target(*shape: int) -> Conditions:
    generator = torch.Generator().manual_seed(5)
    return Conditions({"encoder_hidden_states": 3 * torch.randn(1, *shape, generator=generator)})


def states(conditions: Conditions) -> torch.Tensor:
    return conditions.arguments["encoder_hidden_states"]


def test_norms_at_the_size_of_stable_diffusion():
    concept = target(77, 768)
    drawn = GaussianAnchors().draw(concept, 2, 4, draws())
    ratios = states(drawn).flatten(1).norm(dim=1) / states(concept).norm()
    assert len(drawn) == 8
    assert ((ratios > 0.8) & (ratios < 1.2)).all()
    assert ratios.std() > 0.02
    # Isotropic: nearly orthogonal to the target and to each other.
    directions = torch.nn.functional.normalize(torch.cat([states(drawn), states(concept)]).flatten(1), dim=1)
    assert ((directions @ directions.T) - torch.eye(9)).abs().max() < 0.03


def test_almost_every_direction_is_accepted_in_many_dimensions():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(300, 59_136, generator=generator)
    assert anchor_weights(cosine(z, states(target(77, 768)).flatten()), 1.0).mean() >= 0.99
    assert candidates(59_136, 1.0) <= 4


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 0.637), (1.0, 0.376)])
def test_density_in_two_dimensions(alpha, expected):
    """On the circle the mean of |cos| is 2/π; weighted by 1 - |cos| it is (2/π - 1/2) / (1 - 2/π)."""
    drawn = GaussianAnchors(alpha).draw(target(1, 2), 40_000, 1, draws())
    mean = cosine(states(drawn).flatten(1), states(target(1, 2)).flatten()).abs().mean()
    assert mean.item() == pytest.approx(expected, abs=0.005)
    exact = 2 / math.pi if alpha == 0 else (2 / math.pi - 0.5) / (1 - 2 / math.pi)
    assert exact == pytest.approx(expected, abs=5e-4)


@settings(max_examples=25, deadline=None)
@given(dimension=st.integers(2, 5000), alpha=st.floats(0, 8))
def test_enough_candidates(dimension, alpha):
    """Measured acceptance never leaves more than 1e-6, up to the noise of measuring it."""
    z = torch.randn(2000, dimension if dimension < 50 else 50, generator=torch.Generator().manual_seed(1))
    if dimension >= 50:  # the cosine with the first axis, from a χ² for the others
        rest = torch.distributions.Chi2(dimension - 1.0)
        torch.manual_seed(2)
        cos = z[:, 0] / (z[:, 0] ** 2 + rest.sample((2000,))).sqrt()
    else:
        cos = z[:, 0] / z.norm(dim=1)
    acceptance = anchor_weights(cos, alpha).mean().item()
    assert (1 - acceptance) ** candidates(dimension, alpha) < 1e-5


def test_sdxl_draws_the_pooled_embedding_apart():
    concept = encode(pipeline_of("sdxl"), [HEART])
    drawn = GaussianAnchors().draw(concept, 1, 3, draws())
    for here, there in ((drawn.arguments, concept.arguments), (drawn.added, concept.added)):
        for name in there:
            if name == "time_ids":
                assert torch.equal(here[name], there[name].expand(3, -1))
            else:
                ratios = here[name].flatten(1).norm(dim=1) / there[name].norm()
                assert ((ratios > 0.8) & (ratios < 1.2)).all()


def test_hidden_positions_stay_empty():
    concept = encode(pipeline_of("pixart"), [CAT])
    mask = concept.arguments["encoder_attention_mask"].bool()[0]
    drawn = GaussianAnchors().draw(concept, 1, 4, draws())
    assert 0 < mask.sum() < len(mask)
    assert states(drawn)[:, ~mask].abs().max() == 0
    ratios = states(drawn).flatten(1).norm(dim=1) / states(concept)[:, mask].norm()
    assert ((ratios > 0.8) & (ratios < 1.2)).all()
    assert torch.equal(drawn.arguments["encoder_attention_mask"].bool(), mask.expand(4, -1))


def test_two_processes_draw_what_one_does():
    concept = target(5, 7)
    whole = states(GaussianAnchors().draw(concept, 4, 2, draws()))
    parts = [states(GaussianAnchors().draw(concept, 2, 2, draws(rank=rank, world=2))) for rank in range(2)]
    assert torch.equal(whole, torch.cat(parts))


def test_prompts_are_drawn_by_their_weights():
    pipe = pipeline_of("sd")
    kept = ["a green heart", CAT, "a small dog in the top left"]
    anchors = PromptAnchors(kept, alpha=2.0)
    anchors.prepare(pipe, [HEART])
    concept, others = encode(pipe, [HEART]), encode(pipe, kept)
    cos = torch.nn.functional.cosine_similarity(states(others).flatten(1), states(concept).flatten(1))
    expected = (1 - cos.abs()) ** 2 / ((1 - cos.abs()) ** 2).sum()
    torch.testing.assert_close(anchors.weights(concept).float(), expected, rtol=1e-3, atol=1e-5)
    drawn = states(anchors.draw(concept, 3000, 2, draws()))
    shares = [(drawn == text).flatten(1).all(dim=1).float().mean().item() for text in states(others)]
    assert sum(shares) == pytest.approx(1)
    assert shares == pytest.approx(expected.tolist(), abs=0.03)


def test_what_cannot_be_drawn():
    with pytest.raises(ValueError, match=r"alpha is -0\.5; it must be at least 0"):
        GaussianAnchors(-0.5)
    with pytest.raises(ValueError, match="Anchors from prompts need prompts"):
        PromptAnchors([])
    with pytest.raises(ValueError, match="'a cat' is both a target and an anchor"):
        PromptAnchors([CAT, HEART]).prepare(pipeline_of("sd"), [CAT])
    with pytest.raises(ValueError, match="In one dimension"):
        candidates(1, 1.0)
