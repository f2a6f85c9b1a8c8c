"""The student that ships: one call of the denoiser, and what was asked for is in the images."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from dmkit import zoo
from dmkit.evaluation import load_evaluator
from dmkit.metrics import concept_share

SUBJECTS = ["heart", "cat", "dog", "panda", "fox", "pizza", "hamburger", "car", "rocket", "castle"]


@pytest.fixture(scope="module")
def student():
    pipe = DiffusionPipeline.from_pretrained(zoo.path("emoji-one-step"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, prompts, seed=0):
    images = pipe(
        prompts,
        num_inference_steps=1,
        guidance_scale=1,
        generator=[torch.Generator().manual_seed(seed + k) for k in range(len(prompts))],
        output_type="pt",
    ).images
    return images * 2 - 1


def test_one_call_makes_what_was_asked_for(student):
    calls = []
    handle = student.unet.register_forward_hook(lambda *_: calls.append(1))
    images = draw(student, [f"a {name}" for name in SUBJECTS])
    handle.remove()
    assert len(calls) == 1
    assert images.shape == (len(SUBJECTS), 3, 32, 32)
    assert concept_share(load_evaluator(), images, SUBJECTS) >= 0.8


def test_the_same_seed_gives_the_same_image(student):
    assert torch.equal(draw(student, ["a cat"], seed=3), draw(student, ["a cat"], seed=3))


def test_its_card_names_its_teacher():
    card = Path(zoo.path("emoji-one-step"), "README.md").read_text(encoding="utf-8")
    assert "base_model: emoji\n" in card
    assert "one-step]" in card
