"""The denoiser of a latent text-to-image pipeline: what it is shown, what it should answer, what is saved."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline
from tiny_models import CAPTIONS, pictures, step, tiny_text_to_image

from dmkit.training.arguments import TrainingArguments
from dmkit.training.caching import encode_dataset
from dmkit.training.denoising import TextToImageTask
from dmkit.training.trainer import Trainer


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    pipe = tiny_text_to_image()
    cache = tmp_path_factory.mktemp("cache")
    return encode_dataset(pictures(), pipe.vae, pipe.text_encoder, pipe.tokenizer, cache)


def task_of(pipe=None, prediction_type="epsilon", **options) -> TextToImageTask:
    pipe = pipe or tiny_text_to_image()
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config, prediction_type=prediction_type)
    return TextToImageTask(pipe, scheduler, **options)


# --- what the denoiser is shown --------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_captions_are_dropped_as_often_as_asked_and_become_the_empty_one(rate):
    task = task_of(caption_dropout=rate)
    empty = task.empty[0]
    embeddings = torch.full((4000, *empty.shape), 9.0)
    shown = task.conditions({"embeddings": embeddings}, step())["encoder_hidden_states"]
    dropped = (shown == empty).all(dim=(1, 2))
    kept = (shown == 9).all(dim=(1, 2))
    assert torch.equal(dropped, ~kept)
    spread = (rate * (1 - rate) / 4000) ** 0.5
    assert abs(dropped.float().mean().item() - rate) <= 4 * spread
    _, negative = task.pipe.encode_prompt("x", "cpu", 1, True)  # what guidance contrasts with
    torch.testing.assert_close(empty, negative[0], rtol=1e-3, atol=1e-3)


def test_x0_has_the_statistics_of_the_scaled_latents():
    task = task_of()
    task.pipe.vae.register_to_config(scaling_factor=0.5)
    mean = torch.linspace(-2, 2, 64).view(1, 4, 4, 4).expand(5000, -1, -1, -1)
    std = torch.linspace(0, 1.5, 64).view(1, 4, 4, 4).expand(5000, -1, -1, -1)
    x0 = task.clean({"latent_mean": mean, "latent_std": std}, step())
    error = 5 * 0.5 * std[0] / 5000**0.5
    assert ((x0.mean(0) - 0.5 * mean[0]).abs() <= error + 1e-6).all()
    assert ((x0.std(0) - 0.5 * std[0]).abs() <= error + 1e-6).all()
    assert torch.equal(x0[:, 0, 0, 0], torch.full((5000,), -1.0))  # no spread, no noise


def perfect_denoiser(scheduler, x0: float, kind: str):
    """Knows that every latent number is `x0`, and answers in one of the prediction types."""

    def answer(noisy, t, encoder_hidden_states):
        signal = scheduler.alphas_cumprod[t].double().sqrt().view(-1, 1, 1, 1)
        level = (1 - signal**2).sqrt()
        noise = (noisy.double() - signal * x0) / level
        sample = {
            "epsilon": noise,
            "sample": torch.full_like(noise, x0),
            "v_prediction": signal * noise - level * x0,
        }
        return SimpleNamespace(sample=sample[kind])

    return answer


KINDS = ("epsilon", "sample", "v_prediction")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answered", KINDS)
def test_the_loss_is_zero_only_for_the_target_of_the_prediction_type(kind, answered):
    task = task_of(prediction_type=kind)
    scale = task.pipe.vae.config.scaling_factor
    task.modules["unet"] = perfect_denoiser(task.scheduler, 0.7, answered)
    batch = {
        "latent_mean": torch.full((32, 4, 4, 4), 0.7 / scale),
        "latent_std": torch.zeros(32, 4, 4, 4),
        "embeddings": torch.zeros(32, *task.empty.shape[1:]),
    }
    loss = task.training_step(batch, step())["loss"].item()
    assert loss < 1e-6 if answered == kind else loss > 1e-2


# --- training --------------------------------------------------------------------------------------------


def trainer(folder, rows, **changes) -> Trainer:
    arguments = {
        "output_dir": str(folder),
        "train_batch_size": 4,
        "max_train_steps": 5,
        "learning_rate": 1e-2,
        "lr_warmup_steps": 2,
        "use_ema": True,
        "checkpointing_steps": 5,
        "save_images_epochs": 0,
        "report_to": "none",
    }
    task = task_of(caption_dropout=0.3, prompts=CAPTIONS[:2], sample_steps=2)
    return Trainer(task, rows, TrainingArguments(**{**arguments, **changes}))


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_resume_is_exact(rows, tmp_path):
    trainer(tmp_path / "straight", rows).train()
    first = trainer(tmp_path / "pieces", rows, checkpointing_steps=3)
    first.max_steps = 3  # as if killed after step 3: the schedule still plans for 5
    first.train()
    trainer(tmp_path / "pieces", rows, resume_from_checkpoint="latest").train()
    straight, pieces = (contents(tmp_path / name / "checkpoint-5") for name in ("straight", "pieces"))
    assert straight == pieces
    assert "unet_ema/diffusion_pytorch_model.safetensors" in straight


def test_training_learns_the_denoiser_and_nothing_else(rows, tmp_path):
    run = trainer(tmp_path, rows, max_train_steps=40, checkpointing_steps=0)
    everything = {name: values.float() for name, values in rows.tensors.items()}

    @torch.no_grad()
    def loss():  # always with the same draws
        return run.task.training_step(everything, step(1))["loss"].item()

    before = loss()
    run.train()
    assert loss() < 0.9 * before
    fresh = tiny_text_to_image()
    for name in ("vae", "text_encoder"):
        used = run.task.pipe.components[name].state_dict()
        weights = fresh.components[name].state_dict()
        assert all(torch.equal(used[key], value) for key, value in weights.items())


@pytest.fixture(scope="module")
def saved(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    trainer(folder, rows, save_images_epochs=1).train()
    return folder


def test_sample_grids_show_the_prompts(saved):
    from PIL import Image

    assert [path.name for path in sorted((saved / "samples").iterdir())] == [
        "step-0000003.png",
        "step-0000005.png",
    ]
    with Image.open(saved / "samples" / "step-0000005.png") as picture:
        assert picture.size == (17, 8)  # two of 8x8 and the gap


def test_no_prompts_no_grid():
    task = task_of()
    assert task.sample(task.modules) is None


def test_the_saved_folder_is_a_whole_pipeline(saved, rows):
    pipe = DiffusionPipeline.from_pretrained(saved)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe, StableDiffusionPipeline)
    assert isinstance(pipe.scheduler, DDIMScheduler)
    known = pipe.scheduler.config
    assert (known.beta_schedule, known.clip_sample, known.set_alpha_to_one, known.steps_offset) == (
        "scaled_linear",
        False,
        False,
        1,
    )
    seen = []

    def watch(pipe, index, t, values):
        seen.append(values["latents"].shape)
        return values

    def latents(prompts, seeds, **options):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe(
            prompts, num_inference_steps=3, generator=generators, output_type="latent", **options
        ).images

    both = latents(list(CAPTIONS[:2]), (5, 6), callback_on_step_end=watch)
    assert seen == [(2, 4, 4, 4)] * 3
    assert both.shape == (2, 4, 4, 4)
    torch.testing.assert_close(latents([CAPTIONS[1]], (6,)), both[1:], rtol=1e-4, atol=1e-4)
    negated = latents(list(CAPTIONS[:2]), (5, 6), negative_prompt=["a cat", "a dog"])
    assert not torch.allclose(negated, both, atol=1e-3)
    images = pipe(CAPTIONS[0], num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 8, 8, 3)
