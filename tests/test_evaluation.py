"""Measuring a sampler against a reference set, and finding that set."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

from dmkit import data, evaluation, metrics, zoo
from dmkit.errors import FileFormatError, MissingDataError
from dmkit.evaluation import Reference, quality
from dmkit.images import save_png, to_pil
from dmkit.sampling import generate


class Toy:
    """Eight fixed projections of 8x8 pixels; keeps the sizes of the batches that it saw."""

    name = "toy"

    def __init__(self):
        self.batches = []
        self.matrix = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))

    def __call__(self, images):
        self.batches.append(len(images))
        return images.mean(1).flatten(1) @ self.matrix


@pytest.fixture
def pipe(tiny_pipeline):
    return DiffusionPipeline.from_pretrained(tiny_pipeline)


@pytest.fixture
def scheduler(pipe):
    return DDIMScheduler.from_config(pipe.scheduler.config)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dmkit" / "features"


def test_figures_are_those_of_the_images_of_these_seeds(pipe, scheduler):
    reference = Reference.load("digits", pipe, extractor=Toy())
    found = quality(pipe, scheduler, 3, 30, reference, metrics=("frechet", "kid"), seed=5, batch_size=8)
    images = generate(pipe, scheduler, 3, range(5, 35))
    expected = metrics.evaluate_images(
        images, data.load("digits", split="test"), Toy(), metrics=("frechet", "kid")
    )
    del expected["about"]
    assert found == pytest.approx(expected, rel=1e-4)
    assert set(found) == {"frechet_toy", "kid_toy", "kid_toy_stderr"}


def test_images_are_measured_batch_by_batch(pipe, scheduler):
    toy = Toy()
    reference = Reference.load("digits", pipe, extractor=toy)
    toy.batches.clear()
    seen = []
    quality(pipe, scheduler, 2, 10, reference, batch_size=4, on_image=lambda: seen.append(sum(toy.batches)))
    assert toy.batches == [4, 4, 2]
    # All four of a batch have been measured before any of the next is reported.
    assert seen == [4, 4, 4, 4, 8, 8, 8, 8, 10, 10]


def test_a_reference_is_read_at_the_models_size_and_kept(pipe, cache, tmp_path):
    toy = Toy()
    first = Reference.load("digits", pipe, extractor=toy)
    assert (first.name, len(first.features), sum(toy.batches)) == ("digits:test", 299, 299)
    assert len(list(cache.iterdir())) == 1
    again = Reference.load("digits:test", pipe, extractor=toy)
    assert sum(toy.batches) == 299
    assert torch.equal(again.features.features, first.features.features)
    assert Reference.load("digits:train", pipe, extractor=toy).name == "digits:train"

    for k, item in enumerate(data.load("digits", split="test", resolution=16).select(range(20))):
        save_png(to_pil(item["images"].expand(3, -1, -1)), tmp_path / "mine" / f"{k}.png")
    mine = Reference.load(str(tmp_path / "mine"), pipe, extractor=toy)
    assert (mine.name, len(mine.features)) == (f"{tmp_path / 'mine'}:train", 20)


def test_what_cannot_be_a_reference_is_refused(pipe, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"Unknown data set 'digit'\. Did you mean 'digits'"):
        Reference.load("digit", pipe, extractor=Toy())
    with pytest.raises(ValueError, match=r"Unknown split of digits 'tset'\. Did you mean 'test'"):
        Reference.load("digits:tset", pipe, extractor=Toy())
    with pytest.raises(MissingDataError, match="There is no folder no/such/folder") as missing:
        Reference.load("no/such/folder", pipe, extractor=Toy())
    assert "make data" not in str(missing.value)
    monkeypatch.setenv("DMKIT_DATA", str(tmp_path))
    monkeypatch.setattr("dmkit.data.fashion.SYSTEM_FOLDER", tmp_path / "nothing")
    with pytest.raises(MissingDataError, match=r"Fashion-MNIST is not on this machine.*`make data`"):
        Reference.load("fashion-mnist:test", pipe, extractor=Toy())
    wide = SimpleNamespace(unet=SimpleNamespace(config=SimpleNamespace(in_channels=1, sample_size=(8, 16))))
    with pytest.raises(ValueError, match="Data sets are square; this model's images are 8x16"):
        Reference.load("digits", wide, extractor=Toy())


def test_images_that_are_not_finite_are_refused(pipe, scheduler):
    reference = Reference.load("digits", pipe, extractor=Toy())
    torch.nn.init.constant_(pipe.unet.conv_out.bias, float("nan"))
    with pytest.raises(ValueError, match="DDIMScheduler at 2 steps gave images with NaN or infinite values"):
        quality(pipe, scheduler, 2, 4, reference)


def test_size_of_a_pipelines_images(pipe):
    assert evaluation.image_size(pipe) == (1, (8, 8))
    vae = SimpleNamespace(config=SimpleNamespace(in_channels=3))
    latent = SimpleNamespace(
        transformer=SimpleNamespace(config=SimpleNamespace(in_channels=16, sample_size=128)),
        vae=vae,
        vae_scale_factor=8,
    )
    assert evaluation.image_size(latent) == (3, (1024, 1024))
    del latent.transformer.config.sample_size
    assert evaluation.image_size(latent) == (3, None)


def test_a_card_names_its_reference(tmp_path):
    card = tmp_path / "README.md"
    with pytest.raises(ValueError, match=r"has no card .*\(--reference\)"):
        zoo.reference(str(tmp_path))
    card.write_text("# A model\n\nwithout front matter\n")
    with pytest.raises(ValueError, match=r"\(--reference\)"):
        zoo.reference(str(tmp_path))
    card.write_text("---\nlicense: mit\ndataset: fashion-mnist\n---\n# A model\n")
    assert zoo.reference(str(tmp_path)) == "fashion-mnist:test"
    card.write_text("---\ndataset: [\n---\n")
    with pytest.raises(FileFormatError, match=r"README\.md does not open with valid YAML"):
        zoo.reference(str(tmp_path))
    with pytest.raises(ValueError, match="Unknown zoo model 'nothing'"):
        zoo.reference("nothing")
    with pytest.raises(ValueError, match=r"owner/name has no card .*\(--reference\)"):
        zoo.reference("owner/name")
