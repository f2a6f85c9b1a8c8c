"""The permeability of facilitated transport."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import letters

from dmkit.adapters.spm.transport import (
    SCORES,
    Texts,
    content_tokens,
    embedding_similarity,
    permeability,
    token_overlap,
)

TOKENS = st.frozensets(st.integers(0, 9), max_size=6)


def texts(*tokens, embeddings):
    return Texts(("",) * len(tokens), torch.tensor(embeddings), tuple(map(frozenset, tokens)))


def test_overlap_of_tokens():
    cat, photo = {1}, {5, 6, 1}
    van, gogh = 7, 8
    assert token_overlap([photo], [cat]) == 1
    assert token_overlap([{van, 9}], [{van, gogh}]) == 0.5
    assert token_overlap([{2, 3}], [{van, gogh}]) == 0


@given(st.lists(TOKENS, min_size=1, max_size=3), st.lists(TOKENS.filter(bool), min_size=1, max_size=3))
def test_overlap_is_a_share_of_the_concept(prompts, concepts):
    found = token_overlap(prompts, concepts)
    assert found.shape == (len(prompts), len(concepts))
    for row, p in zip(found.tolist(), prompts, strict=True):
        for share, c in zip(row, concepts, strict=True):
            assert round(share * len(c), 5) in range(len(c) + 1)
            assert (share == 1) == (c <= p)


def test_cosine_of_flattened_embeddings():
    p, c = torch.randn(3, 7, 5), torch.randn(2, 7, 5)
    expected = torch.cosine_similarity(p.flatten(1)[:, None], c.flatten(1)[None], dim=-1)
    assert torch.allclose(embedding_similarity(p, c), expected, atol=1e-6)
    assert embedding_similarity(p.half(), c).dtype == torch.float32
    with pytest.raises(ValueError, match=r"prompts are \(7, 5\) and of concepts \(7, 4\)"):
        embedding_similarity(p, c[..., :4])


def test_permeability_is_the_largest_score_over_all_concepts():
    prompts = texts({1, 2}, {3}, embeddings=[[1.0, 0.0], [0.6, 0.8]])
    concepts = texts({1, 9}, {4}, embeddings=[[0.0, 1.0], [0.8, -0.6]])
    assert torch.allclose(permeability(prompts, concepts, "clipcos"), torch.tensor([0.8, 0.8]))
    assert torch.allclose(permeability(prompts, concepts, "tokenuni"), torch.tensor([0.5, 0.0]))
    assert torch.allclose(permeability(prompts, concepts), torch.tensor([0.8, 0.8]))
    swapped = texts({1}, embeddings=[[0.0, 1.0]])
    assert permeability(texts({1, 2}, embeddings=[[1.0, 0.0]]), swapped) == 1


@pytest.mark.parametrize("score", SCORES)
def test_the_concept_itself_opens_fully(score):
    concept = Texts(("c",), torch.randn(1, 7, 5), (frozenset({1, 2}),))
    assert permeability(concept, concept, score) == pytest.approx(1, abs=1e-6)
    assert permeability(concept, concept, score) <= 1


def test_an_opposite_embedding_closes():
    concept = texts({1}, embeddings=[[1.0, 2.0]])
    prompt = texts({2}, embeddings=[[-1.0, -2.0]])
    assert permeability(prompt, concept, "clipcos") == 0


def test_special_tokens_are_none(emoji):
    tokenizer = letters()
    (found,) = content_tokens(tokenizer, ["ab?"])
    assert sorted(tokenizer.convert_ids_to_tokens(list(found))) == ["a", "b</w>"]
    assert content_tokens(emoji.tokenizer, ["", "red cat", "cat red cat"])[0] == frozenset()
    assert len(set(content_tokens(emoji.tokenizer, ["red cat", "cat red cat"]))) == 1


def test_padding_with_a_sign_loses_that_sign():
    tokenizer = letters()
    tokenizer.pad_token = "b</w>"
    assert content_tokens(tokenizer, ["b"]) == (frozenset(),)


def test_what_the_model_does_not_see_does_not_count():
    tokenizer = letters()
    assert len(content_tokens(tokenizer, ["abcdefghijklmnopqrstuvwxyz"])[0]) == 14


def test_errors():
    empty, some = texts((), embeddings=[[1.0]]), texts({1}, embeddings=[[1.0]])
    with pytest.raises(ValueError, match="has no tokens but special ones"):
        permeability(some, empty)
    assert permeability(some, empty, "clipcos") == 1
    with pytest.raises(ValueError, match=r"Unknown score 'clipcosine'\. Did you mean 'clipcos'"):
        permeability(some, some, "clipcosine")
