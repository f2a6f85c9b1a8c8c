import pytest
import torch
from tiny_models import CAPTIONS, pictures, tiny_text_to_image

from dmkit.errors import FileFormatError
from dmkit.training.caching import CachedTensors, cached, encode_dataset, encode_prompts, weights_fingerprint


class Builder:
    """Counts how often it was asked for its rows."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"x": torch.arange(6.0).view(3, 2).T.half(), "y": torch.arange(2)}


def test_rows_are_dicts_in_float32():
    rows = CachedTensors(Builder()())
    assert len(rows) == 2
    assert rows[1]["x"].tolist() == [1.0, 3.0, 5.0]
    assert rows[1]["x"].dtype == rows[1]["y"].dtype == torch.float32
    assert [row["y"].item() for row in rows.__getitems__([1, 0, 1])] == [1, 0, 1]


def test_a_cache_is_built_once_for_a_fingerprint(tmp_path):
    build, path = Builder(), tmp_path / "new" / "rows.safetensors"
    for _ in range(2):
        assert torch.equal(cached(path, "one", build).tensors["x"], Builder()()["x"])
    assert build.calls == 1
    cached(path, "two", build)
    cached(path, "two", build)
    assert build.calls == 2
    assert [file.name for file in path.parent.iterdir()] == ["rows.safetensors"]


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_truncated_cache_is_built_anew(tmp_path, keep):
    build, path = Builder(), tmp_path / "rows.safetensors"
    cached(path, "one", build)
    path.write_bytes(path.read_bytes()[:keep])
    assert len(cached(path, "one", build)) == 2
    assert build.calls == 2


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def fails():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        cached(tmp_path / "rows.safetensors", "one", fails)
    assert not list(tmp_path.iterdir())


def test_weights_have_a_fingerprint():
    norm = torch.nn.BatchNorm1d(3)  # has a buffer without dimensions
    first = weights_fingerprint(norm)
    assert first == weights_fingerprint(torch.nn.BatchNorm1d(3))
    norm.num_batches_tracked += 1
    assert weights_fingerprint(norm) != first
    norm.num_batches_tracked -= 1
    with torch.no_grad():
        norm.weight[2] += 1e-6
    assert weights_fingerprint(norm) != first


@pytest.fixture(scope="module")
def pipe():
    return tiny_text_to_image()


def test_rows_are_what_the_pipeline_would_compute(pipe, tmp_path):
    dataset = pictures(5)
    rows = encode_dataset(dataset, pipe.vae, pipe.text_encoder, pipe.tokenizer, tmp_path)
    assert len(rows) == 5
    images = torch.stack([item["images"] for item in dataset.__getitems__(range(5))])
    posterior = pipe.vae.encode(images).latent_dist
    half = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(rows.tensors["latent_mean"].float(), posterior.mean, **half)
    torch.testing.assert_close(rows.tensors["latent_std"].float(), posterior.std, **half)
    embeddings, empty = pipe.encode_prompt(list(dataset.captions), "cpu", 1, True)
    torch.testing.assert_close(rows.tensors["embeddings"].float(), embeddings, **half)
    ours = encode_prompts([""], pipe.text_encoder, pipe.tokenizer).float()
    torch.testing.assert_close(ours, empty[:1], **half)


def test_only_what_comes_from_something_else_is_encoded_again(pipe, tmp_path):
    written: dict[str, int] = {}

    def encode(dataset, vae=pipe.vae, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer) -> set[str]:
        """Which of the two files was written."""
        encode_dataset(dataset, vae, text_encoder, tokenizer, tmp_path)
        before = dict(written)
        written.update({file.stem.split("-")[-1]: file.stat().st_ino for file in tmp_path.iterdir()})
        return {part for part in written if before.get(part) != written[part]}

    def retrained(name):
        other = tiny_text_to_image().components[name]
        with torch.no_grad():
            next(other.parameters()).add_(1e-3)
        return other

    assert encode(pictures()) == {"latents", "captions"}
    assert encode(pictures()) == set()
    assert encode(pictures(seed=1)) == {"latents"}
    assert encode(pictures(seed=1, captions=CAPTIONS[:3])) == {"captions"}
    assert encode(pictures()) == {"latents", "captions"}
    assert encode(pictures(), vae=retrained("vae")) == {"latents"}
    assert encode(pictures(), text_encoder=retrained("text_encoder")) == {"latents", "captions"}
    assert encode(pictures()) == {"captions"}
    other_words = tiny_text_to_image().tokenizer
    other_words.add_tokens(["unheard"])
    assert encode(pictures(), tokenizer=other_words) == {"captions"}
    truncated = next(tmp_path.glob("*-latents.safetensors"))
    truncated.write_bytes(truncated.read_bytes()[:-1])
    assert encode(pictures(), tokenizer=other_words) == {"latents"}


def test_pictures_without_captions_are_refused(pipe, tmp_path):
    with pytest.raises(FileFormatError, match="tiny has no captions"):
        encode_dataset(pictures(captions=None), pipe.vae, pipe.text_encoder, pipe.tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())
