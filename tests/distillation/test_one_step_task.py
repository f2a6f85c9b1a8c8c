"""The task: what each phase computes and trains, on tiny teachers of every layout and prediction type."""

from dataclasses import replace

import pytest
import torch
from distilling_cases import (
    CAPTIONS,
    TYPES,
    Kappa,
    batch_of,
    both_phases,
    copies,
    denoiser_of,
    perturb,
    pipeline_of,
    same,
    step,
    task_of,
    teacher,
)
from peft import LoraConfig, inject_adapter_in_model

from dmkit.attention import NASAAttnProcessor2_0
from dmkit.distillation import LoRA, Process, fake_loss, guided, vsd_gradient
from dmkit.distillation.prompts import conditions_of
from dmkit.training.prompting import Conditions, encode, predict

LAYOUTS = ("sd", "sdxl", "pixart", "pixart-sizes")
NEGATIVES = ["a green heart", "a small dog in the top left"]


def gradients(parameters) -> list:
    return [p.grad for p in parameters if p.grad is not None and p.grad.any()]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", TYPES)
def test_with_an_untrained_lora_the_student_stays(layout, kind):
    """Both teachers are one network then; and the student is the teacher, at one timestep."""
    task = task_of(layout, kind)
    student, _ = both_phases(task, batch_of(task))
    student["vsd"].backward()
    assert student["vsd"].item() == 0
    assert not gradients(task.modules["student"].parameters())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", TYPES)
def test_each_phase_trains_its_own(layout, kind):
    task = task_of(layout, kind)
    perturb(task)
    student, fake = (list(parameters) for parameters in task.parameters().values())
    base = [p for p in task.teachers.network.parameters() if not p.requires_grad]
    before = copies(task.teachers.network)
    first, second = both_phases(task, batch_of(task))
    first["vsd"].backward()
    assert gradients(student)
    assert not gradients([*fake, *base])
    for parameter in student:
        parameter.grad = None
    second["denoise"].backward()
    assert gradients(fake)
    assert not gradients([*student, *base])
    assert all(p.requires_grad for p in fake)
    assert same(before, copies(task.teachers.network))


def test_the_frozen_teacher_is_the_one_that_was_given():
    task = task_of()
    perturb(task)
    conditions = conditions_of(batch_of(task))
    x, t = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 500, 900])
    with torch.no_grad():
        real, fake = task.teachers.both(x, t, conditions, conditions)
        original = predict(pipeline_of("sd").unet, x, t, conditions)
    assert torch.equal(real, original)
    assert (fake - original).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("layout", "kind", "timestep"),
    [
        *(("sd", kind, None) for kind in TYPES),
        ("sd", "epsilon", 700),
        ("sdxl", "v_prediction", None),
        ("pixart", "epsilon", 400),
        ("pixart", "v_prediction", None),
    ],
)
def test_the_pipeline_makes_the_images_of_the_training(layout, kind, timestep):
    task = task_of(layout, kind, student_timestep=timestep)
    perturb(task, 0.02)
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    options = {"use_resolution_binning": False} if layout.startswith("pixart") else {}
    prompts = list(CAPTIONS[:2])
    theirs = task.pipe(
        prompts, latents=z, num_inference_steps=1, guidance_scale=0.0, output_type="latent", **options
    ).images
    with torch.no_grad():
        ours = task.images(z, encode(task.pipe, prompts))
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("per", ["iteration", "sample"])
def test_the_gradient_is_the_papers(per):
    """With predictions asked one by one."""
    task = task_of("sd", "v_prediction", kappa=Kappa(0.5, 4.0, per))
    perturb(task)
    batch = batch_of(task)
    drawn = task._draw(3, step())
    conditions, empty = conditions_of(batch), task.empty.repeat(3)
    x0 = task.images(drawn.z, conditions).detach()
    x_t = task.process.noisy(x0, drawn.noise, drawn.t)
    assert drawn.kappa.shape == ((1,) if per == "iteration" else (3,))

    @torch.no_grad()
    def said():
        network = task.teachers.network
        return guided(*(predict(network, x_t, drawn.t, c) for c in (conditions, empty)), drawn.kappa)

    fake = said()
    with task.teachers.frozen():
        real = said()
    expected = vsd_gradient(task.process, real, fake, drawn.t)
    torch.testing.assert_close(task._gradient(x0, conditions, drawn), expected, rtol=1e-4, atol=1e-6)
    student, _ = both_phases(task, batch)
    torch.testing.assert_close(student["vsd"], expected.square().mean() / 2, rtol=1e-4, atol=1e-8)


def test_the_learning_teacher_sees_the_students_images():
    task = task_of(caption_dropout=0.0)
    perturb(task)
    batch = batch_of(task)
    conditions, drawn = conditions_of(batch), task._draw(3, step())
    x0 = task.images(drawn.z, conditions).detach()
    _, losses = both_phases(task, batch)

    def expected(shown):
        x_t = task.process.noisy(x0, drawn.fake_noise, drawn.fake_t)
        prediction = predict(task.teachers.network, x_t, drawn.fake_t, shown)
        return fake_loss(task.process, prediction, x0, drawn.fake_noise, drawn.fake_t)

    torch.testing.assert_close(losses["denoise"], expected(conditions))
    without = task._fake_loss(x0, conditions, replace(drawn, dropped=torch.tensor([True])))
    torch.testing.assert_close(without, expected(task.empty.repeat(3)))
    assert not torch.allclose(without, losses["denoise"])
    assert task._made == {}


def test_prompts_are_dropped_for_whole_batches():
    task = task_of(caption_dropout=0.3)
    dropped = torch.cat([task._draw(3, step(k)).dropped for k in range(400)]).float()
    assert dropped.mean().item() == pytest.approx(0.3, abs=0.07)


def test_no_two_noises_of_a_step_are_the_same():
    task = task_of()
    drawn, again, other = (task._draw(3, step(seed)) for seed in (0, 0, 1))
    noises = [drawn.z, drawn.noise, drawn.fake_noise]
    assert all(
        torch.equal(a, b) for a, b in zip(noises, [again.z, again.noise, again.fake_noise], strict=True)
    )
    everything = [*noises, other.z, other.noise, other.fake_noise]
    assert len({noise.sum().item() for noise in everything}) == 6
    times = torch.cat([task._draw(64, step(k)).t for k in range(20)])
    assert 20 <= times.min() < 60
    assert 940 < times.max() <= 980


def test_kappa_of_one_needs_no_empty_prompt():
    task = task_of(kappa=Kappa.of([1.0]))
    perturb(task)
    x0 = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    conditions, drawn = conditions_of(batch_of(task)), task._draw(3, step())
    before = task._gradient(x0, conditions, drawn)
    task.empty = task.empty.map(lambda value: value + 1)
    assert torch.equal(task._gradient(x0, conditions, drawn), before)
    assert before.any()
    guided_task = task_of(kappa=Kappa(1.0, 1.5))  # there it matters
    perturb(guided_task)
    before = guided_task._gradient(x0, conditions, drawn := guided_task._draw(3, step()))
    guided_task.empty = guided_task.empty.map(lambda value: value + 1)
    assert not torch.equal(guided_task._gradient(x0, conditions, drawn), before)


@pytest.mark.parametrize("layout", ["sd", "sdxl", "pixart"])
def test_nasa_without_weight_is_no_nasa(layout):
    """α = 0, away from the empty prompt: to the bit the same step."""
    plain, nasa = task_of(layout), task_of(layout, negatives=[""], nasa_scale=(0.0, 0.0))
    for task in (plain, nasa):
        perturb(task)
    one, two = (both_phases(task, batch_of(task)) for task in (plain, nasa))
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("layout", ["sd", "sdxl", "pixart"])
def test_nasa_steers_the_student_and_the_frozen_teacher_only(layout):
    task = task_of(layout, negatives=NEGATIVES, nasa_scale=(0.3, 0.9))
    perturb(task)
    student = task.modules["student"]
    processors = dict(student.attn_processors) if hasattr(student, "attn_processors") else None
    conditions, drawn = conditions_of(batch_of(task)), task._draw(3, step())
    assert 0.3 <= drawn.steered.item() <= 0.9
    assert set(torch.cat([task._draw(3, step(k)).away for k in range(9)]).tolist()) == {0, 1}
    plain = task.images(drawn.z, conditions)
    steered = task.images(drawn.z, conditions, drawn)
    assert (plain - steered).abs().max() > 1e-4
    if processors is not None:  # the same objects again
        assert all(student.attn_processors[name] is value for name, value in processors.items())
    assert not any(isinstance(getattr(m, "processor", None), NASAAttnProcessor2_0) for m in student.modules())

    x0 = plain.detach()
    x_t = task.process.noisy(x0, drawn.noise, drawn.t)
    away = task.negatives.rows(drawn.away).map(lambda value: value.float())
    with torch.no_grad():
        network, t = task.teachers.network, drawn.t
        fake = guided(*(predict(network, x_t, t, c) for c in (conditions, task.empty.repeat(3))), drawn.kappa)
        with task.teachers.frozen():
            real = guided(*(predict(network, x_t, t, c) for c in (conditions, away)), drawn.kappa)
    expected = vsd_gradient(task.process, real, fake, t)
    torch.testing.assert_close(task._gradient(x0, conditions, drawn), expected, rtol=1e-4, atol=1e-6)


def test_nasa_of_a_training_is_that_of_sampling():
    from dmkit.guidance import NASA

    task = task_of(negatives=[NEGATIVES[0]], nasa_scale=(0.5, 0.5))
    perturb(task)
    drawn = task._draw(3, step())
    with torch.no_grad():
        ours = task.images(drawn.z, conditions_of(batch_of(task)), drawn)
    theirs = NASA(task.pipe, 0.5)(
        list(CAPTIONS[:3]), NEGATIVES[0], latents=drawn.z, num_inference_steps=1, output_type="latent"
    ).images
    # The training's embeddings are rounded to half precision on the disk.
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=2e-2 * float(theirs.std()))


def test_a_student_of_its_own():
    other = pipeline_of("sd").unet
    with torch.no_grad():
        other.conv_in.weight.add_(0.1)
    task = task_of(student=other)
    assert task.modules["student"] is other is task.pipe.unet
    assert not torch.equal(other.conv_in.weight, task.teachers.network.conv_in.weight)
    with pytest.raises(ValueError, match=r"student \(PixArt.*\) is not like the teacher \(UNet"):
        task_of(student=pipeline_of("pixart").transformer)


def test_what_cannot_be_distilled():
    with pytest.raises(ValueError, match="NASA-T takes both"):
        task_of(nasa_scale=(0.0, 1.0))
    with pytest.raises(ValueError, match="NASA-T takes both"):
        task_of(negatives=NEGATIVES)
    with pytest.raises(ValueError, match="has no layer named to_w"):
        task_of(lora=LoRA(target_modules=("to_w",)))
    pipe = teacher()
    inject_adapter_in_model(LoraConfig(target_modules=["to_q"]), pipe.unet)
    with pytest.raises(ValueError, match="has adapters, not to be told from the LoRA"):
        task_of(pipe=pipe)
    pipe = teacher()
    pipe.unet.enable_gradient_checkpointing()
    with pytest.raises(ValueError, match="takes no gradient checkpointing"):
        task_of(pipe=pipe, negatives=NEGATIVES, nasa_scale=(0.0, 1.0))


def test_negatives_of_another_encoder_are_refused():
    task = task_of(negatives=NEGATIVES, nasa_scale=(0.5, 0.5))
    task.negatives = Conditions({"encoder_hidden_states": torch.zeros(2, 7, 3)})
    batch = batch_of(task)
    with pytest.raises(ValueError, match="do not fit the prompt's"):
        task.training_step(batch, replace(step(), phase="student"))
    assert not any(
        isinstance(m, NASAAttnProcessor2_0) for m in denoiser_of(task.pipe).attn_processors.values()
    )


def test_the_process_is_on_the_teachers_betas():
    task = task_of()
    assert torch.equal(task.process.alphas, Process(pipeline_of("sd").scheduler).alphas)
    assert task.timestep.tolist() == [999]
