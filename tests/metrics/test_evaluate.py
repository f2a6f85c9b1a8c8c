import dataclasses

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dmkit import data, metrics
from dmkit.data import ImageDataset
from dmkit.errors import FileFormatError
from dmkit.images import to_pil
from dmkit.metrics.features import extract, resolve


class Toy:
    """Five fixed projections of the pixels; counts the images it has seen."""

    name = "toy"

    def __init__(self):
        self.seen = 0
        self.matrix = torch.randn(3 * 16, 5, generator=torch.Generator().manual_seed(0))

    def __call__(self, images):
        self.seen += len(images)
        assert images.dtype == torch.float32
        return images.expand(-1, 3, -1, -1).flatten(1) @ self.matrix


def pixels(seed: int, count: int, channels: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, 4, 4), dtype=torch.uint8, generator=generator)


def dataset(raw: torch.Tensor, name: str = "set") -> ImageDataset:
    return ImageDataset(raw, name=name, split="test", channels=raw.shape[1], resolution=4)


GENERATED, REFERENCE = pixels(0, 60), pixels(1, 70) // 2
SIGNED = GENERATED.float() / 127.5 - 1


def test_every_form_of_the_same_images_gives_the_same_figures(tmp_path):
    for k, image in enumerate(SIGNED):
        to_pil(image).save(tmp_path / f"{k:03d}.png")
    forms = {
        "uint8": GENERATED,
        "float": SIGNED,
        "batches": iter(SIGNED.split(7)),
        "one large batch": [SIGNED],
        "data set": dataset(GENERATED),
        "loader": DataLoader(dataset(GENERATED), batch_size=9),
        "folder": data.load(tmp_path),
    }
    expected = None
    for form, images in forms.items():
        found = metrics.evaluate_images(images, REFERENCE, Toy(), metrics.evaluate.METRICS, batch_size=16)
        del found["about"]
        expected = expected or found
        assert found == pytest.approx(expected, rel=1e-5), form
    assert set(expected) == {
        *("frechet_toy", "kid_toy", "kid_toy_stderr", "precision_toy", "recall_toy"),
        *("diversity_toy", "diversity_toy_reference"),
    }


def test_figures_are_those_of_the_features():
    x, y = (Toy()(images.float() / 127.5 - 1) for images in (GENERATED, REFERENCE))
    found = metrics.evaluate_images(GENERATED, REFERENCE, Toy(), metrics.evaluate.METRICS, interval=True)
    frechet = metrics.frechet_distance(metrics.Moments.of(x), metrics.Moments.of(y))
    assert found["frechet_toy"] == pytest.approx(frechet, rel=1e-6)
    low, high = found["frechet_toy_interval"]
    assert low < frechet < high
    assert found["kid_toy"] == pytest.approx(metrics.kid(x, y).value, rel=1e-4)
    assert (found["precision_toy"], found["recall_toy"]) == metrics.precision_recall(x, y)
    assert found["diversity_toy"] == pytest.approx(metrics.pairwise_diversity(x), rel=1e-6)
    assert found["diversity_toy"] > found["diversity_toy_reference"]
    assert found["about"] == {
        "extractor": "toy",
        "num_generated": 60,
        "num_reference": 70,
        "reference": "images",
    }


def test_a_described_reference_is_read_once():
    toy = Toy()
    described = metrics.describe(dataset(REFERENCE), toy)
    assert toy.seen == 70
    found = metrics.evaluate_images(GENERATED, described, toy)
    assert toy.seen == 130
    assert found["about"]["reference"] == "set, test"
    assert found == metrics.evaluate_images(GENERATED, dataset(REFERENCE), Toy())


def test_the_cache_serves_what_has_not_changed(tmp_path):
    toy = Toy()

    def evaluate(reference, extractor=toy, **options):
        return metrics.evaluate_images(GENERATED, reference, extractor, cache=tmp_path, **options)

    first = evaluate(dataset(REFERENCE))
    assert toy.seen == 130
    assert evaluate(dataset(REFERENCE)) == first
    assert toy.seen == 190  # the generated tensor again, not the reference
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("set-test-toy-")
    changed = REFERENCE.clone()
    changed[-1] += 100
    assert evaluate(dataset(changed)) != first
    assert toy.seen == 320
    other = Toy()
    other.name = "other"
    evaluate(dataset(REFERENCE), other)
    assert other.seen == 130
    assert len(list(tmp_path.iterdir())) == 3
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(FileFormatError, match="truncated"):
        evaluate(dataset(REFERENCE))


def test_a_cache_of_moments_grows_features_when_they_are_needed(tmp_path):
    toy = Toy()
    lean = metrics.describe(dataset(REFERENCE), toy, keep_features=False, cache=tmp_path)
    assert lean.features is None
    assert metrics.describe(dataset(REFERENCE), toy, keep_features=False, cache=tmp_path).features is None
    assert toy.seen == 70
    full = metrics.describe(dataset(REFERENCE), toy, cache=tmp_path)
    assert full.features.shape == (70, 5)
    assert toy.seen == 140
    assert metrics.describe(dataset(REFERENCE), toy, keep_features=False, cache=tmp_path).features is not None
    assert toy.seen == 140
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="Only the moments of set, test were kept"):
        metrics.evaluate_images(full, lean, metrics=("kid",))
    frechet = metrics.evaluate_images(full, lean, metrics=("frechet",))["frechet_toy"]
    assert frechet == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (SIGNED * 127, ValueError, r"expected in \[-1, 1\]; these reach 127"),
        (SIGNED / 0, ValueError, "not finite"),
        (SIGNED[0], ValueError, r"not \(1, 4, 4\)"),
        (SIGNED.long(), TypeError, r"not torch.int64"),
        ([], ValueError, "no images in list"),
        ([Image.new("L", (4, 4))], ValueError, "not Image"),
        ("pictures/", TypeError, r"dmkit.data.load\('pictures/'\)"),
    ],
)
def test_what_is_not_images_is_refused(images, error, message):
    with pytest.raises(error, match=message):
        metrics.describe(images, Toy())


def test_unknown_metrics_and_foreign_features_are_refused():
    with pytest.raises(ValueError, match=r"Unknown metric 'frechett'. Did you mean 'frechet'"):
        metrics.evaluate_images(GENERATED, REFERENCE, Toy(), ("frechett",))
    with pytest.raises(ValueError, match="Which metrics"):
        metrics.evaluate_images(GENERATED, REFERENCE, Toy(), ())
    described = metrics.describe(REFERENCE, Toy())
    foreign = dataclasses.replace(described, extractor="other")
    with pytest.raises(ValueError, match="Features of toy and of other do not compare"):
        metrics.evaluate_images(described, foreign)


def test_extractors_are_checked_and_named():
    def halves(images):
        return images.flatten(1)[:, ::2]

    assert resolve(halves).name == "halves"
    module = torch.nn.Flatten()
    assert resolve(module.train()).name == "flatten"
    assert not module.training
    with pytest.raises(TypeError, match="needs a string attribute `name`"):
        resolve(lambda images: images)
    with pytest.raises(TypeError, match="int cannot be"):
        resolve(3)
    spatial = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"identity returned \(60, 1, 4, 4\) for 60 images"):
        extract(resolve(spatial), GENERATED)

    def broken(images):
        return images.flatten(1) / 0

    with pytest.raises(ValueError, match="broken returned features that are not finite"):
        extract(resolve(broken), GENERATED)
