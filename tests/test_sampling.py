import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, EulerDiscreteScheduler, PNDMScheduler

from dmkit import zoo
from dmkit.errors import FileFormatError
from dmkit.sampling import generate, generate_batches, sample_batch


@pytest.fixture(scope="module")
def pipe(tiny_pipeline):
    return DiffusionPipeline.from_pretrained(tiny_pipeline)


def test_agrees_with_diffusers_own_loop(pipe):
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    theirs = pipe(
        batch_size=1, generator=torch.Generator().manual_seed(5), num_inference_steps=4, output_type="np"
    ).images
    ours = generate(pipe, DDIMScheduler.from_config(pipe.scheduler.config), 4, [5])
    torch.testing.assert_close(
        ours.permute(0, 2, 3, 1) / 2 + 0.5, torch.from_numpy(theirs), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler])
def test_an_image_depends_on_its_seed_not_on_its_batch(pipe, kind):
    scheduler = kind.from_config(pipe.scheduler.config)
    together = sample_batch(pipe.unet, scheduler, 5, [0, 1, 2])
    alone = sample_batch(pipe.unet, scheduler, 5, [2])
    torch.testing.assert_close(together[2:], alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(together[0], together[1])


def test_batches_cover_the_seeds_and_steps_are_reported(pipe):
    seen = []
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    batches = list(
        generate_batches(pipe, scheduler, 2, 5, seed=7, batch_size=2, on_step=lambda *s: seen.append(s))
    )
    assert [len(b) for b in batches] == [2, 2, 1]
    assert seen == [(1, 2), (2, 2)] * 3
    torch.testing.assert_close(batches[2], generate(pipe, scheduler, 2, [11]), atol=1e-5, rtol=1e-5)


def test_prompts_for_unconditional_models_are_refused(pipe):
    with pytest.raises(ValueError, match="DDPMPipeline is unconditional and takes no prompt"):
        generate(pipe, pipe.scheduler, 2, [0], prompt="a boot")
    with pytest.raises(ValueError, match="it takes no guidance_scale"):
        generate(pipe, pipe.scheduler, 2, [0], guidance_scale=3.0)


class Texts:
    """Stands for a text-to-image pipeline whose image is its prompt's length."""

    tokenizer, scheduler = object(), None

    def __call__(self, prompts, generator, **arguments):
        assert len(prompts) == len(generator)
        self.seeds = [one.initial_seed() for one in generator]
        pixels = torch.tensor([len(prompt) / 10 for prompt in prompts])
        return type("Output", (), {"images": pixels.view(-1, 1, 1, 1)})


def test_each_image_may_have_a_prompt_of_its_own():
    pipe, prompts = Texts(), ["a", "bb", "ccc", "dddd", "eeeee"]
    batches = list(generate_batches(pipe, None, 1, 5, seed=3, batch_size=2, prompt=prompts))
    lengths = [round((value + 1) * 5) for batch in batches for value in batch.flatten().tolist()]
    assert lengths == [1, 2, 3, 4, 5]
    assert pipe.seeds == [7]
    (shared,) = generate_batches(pipe, None, 1, 2, prompt="ccc")
    assert len(shared.unique()) == 1
    with pytest.raises(ValueError, match="4 images need as many prompts, not 5"):
        next(generate_batches(pipe, None, 1, 4, prompt=prompts))
    with pytest.raises(ValueError, match="2 seeds need as many prompts, not 5"):
        generate(pipe, None, 1, [0, 1], prompt=prompts)
    with pytest.raises(ValueError, match="guidance_scale must be finite, got nan"):
        generate(pipe, None, 1, [0], prompt="a", guidance_scale=float("nan"))
    with pytest.raises(ValueError, match="Texts needs a prompt"):
        generate(pipe, None, 1, [0])


def test_a_single_model_has_a_path_and_is_no_pipeline(tmp_path, tiny_pipeline, monkeypatch):
    import shutil

    shutil.copytree(tiny_pipeline, tmp_path / "clothes")
    (tmp_path / "judge").mkdir()
    for name in ("clothes", "judge"):
        (tmp_path / name / "README.md").write_text(f"# {name}\n\nA model.\n")
    shutil.copytree(tiny_pipeline, tmp_path / ".unfinished-clothes-1")  # being written by another process
    monkeypatch.setattr(zoo, "_HOME", tmp_path)
    assert [entry.name for entry in zoo.list()] == ["clothes"]
    assert zoo.path("judge") == str(tmp_path / "judge")
    with pytest.raises(FileFormatError, match="judge is not a Diffusers pipeline"):
        zoo.load("judge")


def test_loading_says_what_is_wrong(tmp_path, tiny_pipeline):
    assert type(zoo.load(str(tiny_pipeline))).__name__ == "DDPMPipeline"
    with pytest.raises(ValueError, match="Did you mean 'fashion'"):
        zoo.load("fashoin")
    with pytest.raises(FileFormatError, match=r"is not a Diffusers pipeline: it has no model_index\.json"):
        zoo.load(str(tmp_path))


def test_truncated_weights_are_named(tmp_path, tiny_pipeline):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny_pipeline, copy)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(FileFormatError, match=r"The pipeline in .*copy cannot be loaded"):
        zoo.load(str(copy))
