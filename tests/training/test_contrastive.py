import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CAPTIONS, pictures, step, tiny_clip
from tokenizers import pre_tokenizers
from transformers import CLIPTextModel, CLIPTokenizer

from dmkit.training.contrastive import MAX_LENGTH, ContrastiveTask, exchanged, shifted, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return train_tokenizer(CAPTIONS, vocab_size=600)


# --- tokenizer -------------------------------------------------------------------------------------------


def bytes_of(tokenizer, text: str) -> bytes:
    """The bytes that a text's tokens stand for."""
    alphabet = {shown: byte for byte, shown in byte_alphabet().items()}
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)[1:-1]
    return bytes(alphabet[letter] for token in tokens for letter in token.removesuffix("</w>"))


def byte_alphabet() -> dict[int, str]:
    """Byte -> the letter that byte-level BPE shows it as: itself if that is visible, else one from 256 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + k) for k, byte in enumerate(hidden)}


def test_every_byte_has_a_token_alone_and_at_a_words_end(tokenizer):
    letters = byte_alphabet()
    assert sorted(letters.values()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = tokenizer.get_vocab()
    for letter in letters.values():
        assert letter in vocabulary
        assert letter + "</w>" in vocabulary


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_any_text_comes_back_from_its_tokens(tokenizer, text):
    """Up to what CLIP's tokenizer does to any text: lower case, NFC, and no blanks between words."""
    normal = tokenizer.backend_tokenizer.normalizer.normalize_str(text)
    assert "".join(bytes_of(tokenizer, text).decode().split()) == "".join(normal.split())


def test_words_of_the_captions_are_one_token_and_decode(tokenizer):
    assert tokenizer.tokenize("A red HEART") == ["a</w>", "red</w>", "heart</w>"]
    ids = tokenizer("a red heart").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "a red heart"


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert again.model_max_length == tokenizer.model_max_length == MAX_LENGTH == 77
    assert again.get_vocab() == tokenizer.get_vocab()
    for text in (*CAPTIONS, "Ça va? 猫 🐈", "", "a " * 100):
        options = {"padding": "max_length", "truncation": True}
        assert again(text, **options).input_ids == tokenizer(text, **options).input_ids
        assert len(again(text, **options).input_ids) == 77


@pytest.mark.parametrize("size", [514, 520, 600, 5000])
def test_the_vocabulary_keeps_its_bound(size):
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=size)
    assert 514 <= len(tokenizer) <= size
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert (len(tokenizer) == size) == (size <= 520)  # four captions do not fill 600
    assert bytes_of(tokenizer, "a red heart") == b"aredheart"


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(ValueError, match="vocab_size is 513; bytes and special tokens alone are 514"):
        train_tokenizer(CAPTIONS, vocab_size=513)


# --- the task --------------------------------------------------------------------------------------------


def batch(count=4):
    items = pictures(count).__getitems__(range(count))
    return {
        "images": torch.stack([item["images"] for item in items]),
        "captions": [item["captions"] for item in items],
    }


@pytest.mark.parametrize(("sharpness", "expected"), [(0.0, math.log(4)), (100.0, 0.0)])
def test_the_loss_is_zero_for_perfect_pairs_and_log_n_for_none(tokenizer, sharpness, expected):
    def clip(**inputs):
        return SimpleNamespace(logits_per_image=sharpness * torch.eye(4))

    loss = ContrastiveTask(clip, tokenizer).training_step(batch(), step())["contrast"]
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_the_loss_is_clips_own(tokenizer):
    clip = tiny_clip(tokenizer)
    loss = ContrastiveTask(clip, tokenizer, max_shift=0).training_step(batch(), step())["contrast"]
    tokens = tokenizer(batch()["captions"], padding="max_length", return_tensors="pt")
    theirs = clip(**tokens, pixel_values=batch()["images"], return_loss=True).loss
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-6)


def test_opposites_change_places_as_whole_words():
    opposites = {"left": "right", "right": "left"}
    caption = "a key to the left of a star, right on a lefty"
    assert exchanged(caption, opposites) == "a key to the right of a star, left on a lefty"
    assert exchanged(exchanged(caption, opposites), opposites) == caption


def test_an_image_that_likes_the_exchanged_caption_as_well_costs_more(tokenizer):
    """One of two captions has an opposite: a third text, a negative of the images but no text of its own."""
    seen = []

    def clip(**inputs):
        seen.append(len(inputs["input_ids"]))
        return SimpleNamespace(logits_per_image=torch.tensor([[9.0, 0.0, 9.0], [0.0, 9.0, 0.0]]))

    pairs = {**batch(2), "captions": ["a cat in the top left", "a dog"]}
    loss = ContrastiveTask(clip, tokenizer, opposites=[("left", "right")]).training_step(pairs, step())
    assert seen == [3]
    # Half of the loss is the images': the first is torn between its caption and the exchanged one.
    assert loss["contrast"].item() == pytest.approx(math.log(2) / 4, abs=1e-3)


def test_padding_does_not_change_the_pooled_text(tokenizer):
    text = tiny_clip(tokenizer).text_model

    def pooled(texts, **options):
        tokens = tokenizer(texts, return_tensors="pt", **options)
        return text(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output[0]

    alone = pooled([CAPTIONS[0]])
    for other in (
        pooled([CAPTIONS[0], CAPTIONS[3]], padding=True),
        pooled([CAPTIONS[0]], padding="max_length"),
    ):
        torch.testing.assert_close(other, alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(pooled([CAPTIONS[1]]), alone, atol=1e-3)


@pytest.mark.parametrize("most", [1, 2])
def test_images_move_by_whole_pixels_and_their_edges_repeat(most):
    """Pixels that hold their own coordinates say where they came from."""
    side = torch.arange(6)
    coordinates = torch.stack(torch.meshgrid(side, side, indexing="ij")).float().expand(300, 2, 6, 6)
    moved = shifted(coordinates, step(), most)
    centre = moved[:, :, 3, 3].long() - 3
    rows, columns = ((side + offset[:, None]).clamp(0, 5) for offset in centre.T)
    assert torch.equal(moved[:, 0], rows[:, :, None].expand(-1, -1, 6).float())
    assert torch.equal(moved[:, 1], columns[:, None, :].expand(-1, 6, -1).float())
    assert len({tuple(pair) for pair in centre.tolist()}) == (2 * most + 1) ** 2
    assert centre.abs().max() == most
    assert torch.equal(moved, shifted(coordinates, step(), most))


def test_no_shift_is_no_change():
    images = batch()["images"]
    assert shifted(images, step(), 0) is images


def test_the_text_tower_of_the_saved_model_loads_alone(tokenizer, tmp_path):
    clip = tiny_clip(tokenizer)
    ContrastiveTask(clip, tokenizer).save(tmp_path, {"clip": clip})
    text = CLIPTextModel.from_pretrained(tmp_path)
    ids = CLIPTokenizer.from_pretrained(tmp_path)(CAPTIONS[0], return_tensors="pt").input_ids
    ours = clip.text_model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(text(ids).last_hidden_state, ours)
