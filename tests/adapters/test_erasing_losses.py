"""The losses of SPM and ESD: their exact checks, and the slips of the released code that ours lacks."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from erasing_cases import CAT, HEART, esd, perturb, pipeline_of, prompt, rows, spm, step, weights_of
from torch import nn

from dmkit.adapters.erasing.esd import ESDTask, cross_attentions
from dmkit.adapters.erasing.latents import PartialDenoising
from dmkit.adapters.erasing.prompts import ErasePrompt
from dmkit.adapters.erasing.task import Samples
from dmkit.adapters.spm.layers import adapter_parameters, disabled
from dmkit.training.prompting import predict

LAYOUTS = ("sd", "sdxl", "pixart")


class Passes:
    """Counts a network's forward passes: the batch of each, and whether gradients were recorded."""

    def __init__(self, network: nn.Module):
        self.seen: list[tuple[int, bool]] = []
        network.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        self.seen.append((len(args[0]), torch.is_grad_enabled()))


def noisy(task, count: int = 2):
    """The latents and time that `training_step(rows(count), step())` works on, made from its parts."""
    seen = []
    handle = task.network.register_forward_pre_hook(
        lambda m, a, k: seen.append((a[0], k["timestep"])), with_kwargs=True
    )
    task.training_step(rows(count), step())
    handle.remove()
    x, t = seen[-1]
    return x[:count], t[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_new_adapter_changes_nothing(layout):
    task = spm(layout)
    with torch.no_grad():
        x, t = noisy(task)
        conditions = task.conditions[HEART].repeat(2)
        on = predict(task.network, x, t, conditions)
        with disabled(task.network):
            off = predict(task.network, x, t, conditions)
    assert torch.equal(on, off)
    assert task.training_step(rows(2), step())["anchor"] < 1e-12


@pytest.mark.parametrize("eta", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_erasing_loss_at_the_start(layout, eta):
    """(1 + η)² times the mean square of ε(c_tar) - ε(c_sur)."""
    task = spm(layout, [prompt(neutral=CAT, guidance_scale=eta)])
    x, t = noisy(task)
    with torch.no_grad():
        target, surrogate = (predict(task.network, x, t, task.conditions[c].repeat(2)) for c in (HEART, CAT))
    expected = (1 + eta) ** 2 * (target - surrogate).pow(2).mean()
    torch.testing.assert_close(task.training_step(rows(2), step())["erase"], expected, rtol=1e-4, atol=0)


def test_nothing_to_erase_costs_nothing():
    task = spm(prompts=[prompt(positive=HEART, neutral=HEART)])
    assert task.training_step(rows(2), step())["erase"] < 1e-12


def test_trained_losses_by_hand():
    """Both losses of a moved adapter, from plain predictions with it on and off."""
    task = spm(prompts=[prompt(neutral=CAT, guidance_scale=1.5, la_strength=3.0, sampling_batch_size=2)])
    perturb(task)
    losses = task.training_step(rows(2), step())
    choices = []
    task.anchors.draw = recorded(task.anchors.draw, choices)
    x, t = noisy(task)
    network, conditions = task.network, task.conditions
    anchors = choices[-1]
    with torch.no_grad():
        on = predict(network, x, t, conditions[HEART].repeat(2))
        both = x.repeat_interleave(2, dim=0)
        after = torch.cat(
            [predict(network, both, t, anchors), predict(network, x, t, conditions[""].repeat(2))]
        )
        with disabled(network):
            pos = predict(network, x, t, conditions[HEART].repeat(2))
            neu = predict(network, x, t, conditions[CAT].repeat(2))
            before = torch.cat(
                [predict(network, both, t, anchors), predict(network, x, t, conditions[""].repeat(2))]
            )
    erase = (on - (neu - 1.5 * (pos - neu))).pow(2).mean()
    torch.testing.assert_close(losses["erase"], erase, rtol=1e-4, atol=0)
    torch.testing.assert_close(losses["anchor"], 3.0 * (after - before).pow(2).mean(), rtol=1e-4, atol=0)


def recorded(draw, seen):
    def drawing(*args):
        seen.append(draw(*args))
        return seen[-1]

    return drawing


def test_gradients_reach_the_adapter_and_nothing_else():
    task = spm()
    before = weights_of(task.pipe)
    sum(task.training_step(rows(2), step()).values()).backward()
    adapter = adapter_parameters(task.network, "spm")
    wanting = {name for name, p in task.network.named_parameters() if p.requires_grad}
    assert wanting == set(adapter)
    assert len(list(task.modules["part"].parameters())) == len(adapter)
    for name, parameter in task.network.named_parameters():
        if name not in adapter:
            assert parameter.grad is None
    # At u = 0 the signal's gradient is there and the regulator's is zero.
    signals = [p.grad.abs().sum() for name, p in adapter.items() if ".lora_B." in name]
    assert sum(signals) > 0
    after = weights_of(task.pipe)
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("kind", [spm, lambda: esd("esd-x")])
def test_bf16_loss_and_gradients(kind):
    """Autocast keeps casts of weights; one made without gradients, or of the original, must not be used."""
    task = kind()
    perturb(task, 0.5)
    exact = task.training_step(rows(2), step())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = task.training_step(rows(2), step())
        sum(rounded.values()).backward()
    assert rounded["erase"].item() == pytest.approx(exact["erase"].item(), rel=0.1)
    grads = [p.grad for p in task.modules["part"].parameters()]
    assert all(grad is not None for grad in grads)
    assert sum(grad.abs().sum() for grad in grads) > 0


def test_the_released_schedulers_times():
    """With the released code's DDIM: after k of 30 steps the latent is at 957 - 33 k; its loss asks at
    999 - int(1000 k / 30).
    """
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    ours, legacy = PartialDenoising(scheduler), PartialDenoising(scheduler, legacy_timestep=True)
    ours.scheduler.set_timesteps(30)
    assert [int(ours.timestep(k)) for k in (1, 15, 29)] == [924, 462, 0]
    assert [int(legacy.timestep(k)) for k in (1, 15, 29)] == [966, 499, 33]


@pytest.mark.parametrize("kind", ["ddim", "ddpm", "lms", "euler_a"])
def test_partial_denoising_ends_where_the_pipeline_is(kind):
    """The guided steps are the pipeline's own, up to the latent that its next step would see."""
    pipe = pipeline_of("sd")
    latents = PartialDenoising(pipe.scheduler, kind=kind, steps=5, guidance_scale=2.0)
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    task = spm(steps=5)
    target, empty = task.conditions[HEART].repeat(2), task.conditions[""].repeat(2)
    x, t = latents(pipe.unet, noise, 3, target, empty, [11, 12])
    seen = []
    pipe.scheduler = latents.scheduler
    pipe.unet.register_forward_pre_hook(lambda m, a: seen.append((a[0], a[1])))
    pipe(
        [HEART] * 2,
        latents=noise.clone(),
        guidance_scale=2.0,
        num_inference_steps=5,
        generator=[torch.Generator().manual_seed(k) for k in (11, 12)],
        output_type="latent",
    )
    assert float(t) == float(seen[3][1])
    torch.testing.assert_close(x, seen[3][0][:2], rtol=1e-4, atol=1e-5)


def test_forward_passes_are_single_and_unguided():
    """k guided passes of 2 B to make the latents, then one of each model: B (2 + anchors + 1) frozen,
    B (1 + anchors + 1) trained; nothing is doubled at guidance 1.
    """
    task = spm(prompts=[prompt(batch_size=2, sampling_batch_size=6)])
    passes = Passes(task.network)
    task.training_step(rows(2), step())
    *guided, frozen, trained = passes.seen
    assert 1 <= len(guided) <= 3
    assert set(guided) == {(4, False)}
    assert frozen == (2 * (2 + 3 + 1), False)
    assert trained == (2 * (1 + 3 + 1), True)

    task = spm(guidance_scale=1.0, anchor_unconditional=False)
    passes = Passes(task.network)
    task.training_step(rows(2), step())
    *unguided, frozen, trained = passes.seen
    assert set(unguided) == {(2, False)}
    assert (frozen, trained) == ((2 * (2 + 2), False), (2 * (1 + 2), True))


def test_all_anchors_are_seen_under_the_adapter():
    """The released code asks for half of its anchors and for the empty prompt in place of the others."""
    task = spm(prompts=[prompt(sampling_batch_size=3)])
    drawn, seen = [], []
    task.anchors.draw = recorded(task.anchors.draw, drawn)
    task.network.register_forward_pre_hook(
        lambda m, a, k: seen.append(k["encoder_hidden_states"]), with_kwargs=True
    )
    task.training_step(rows(1), step())
    empty = task.conditions[""].arguments["encoder_hidden_states"]
    expected = torch.cat([drawn[0].arguments["encoder_hidden_states"], empty])
    assert torch.equal(seen[-1][1:], expected)  # the trained pass, after the target
    assert torch.equal(seen[-2][2:], expected)  # the frozen pass, after positive and neutral


def test_without_anchoring():
    for entry in (prompt(action="erase"), prompt(la_strength=0.0)):
        task = spm(prompts=[entry])
        passes = Passes(task.network)
        losses = task.training_step(rows(2), step())
        assert losses["anchor"] == 0
        assert passes.seen[-2:] == [(4, False), (2, True)]


def test_targets_take_turns_and_steps_repeat():
    task = spm(prompts=[prompt(HEART), prompt(CAT, la_strength=0.5)])
    texts = {name: task.conditions[name].arguments["encoder_hidden_states"][0] for name in (HEART, CAT)}
    seen = []
    task.network.register_forward_pre_hook(
        lambda m, a, k: seen.append(k["encoder_hidden_states"]), with_kwargs=True
    )
    turns = []
    for k in range(8):
        losses = task.training_step(rows(1), step(k))
        assert losses == task.training_step(rows(1), step(k))
        turns.append([name for name, text in texts.items() if torch.equal(seen[-1][0], text)])
    assert all(len(turn) == 1 for turn in turns)
    assert {HEART, CAT} == {turn[0] for turn in turns}


def test_dynamic_sizes_reach_the_model():
    task = spm("sdxl", [prompt(dynamic_resolution=True, dynamic_crops=True, resolution=16)])
    sizes, told = set(), []

    def look(module, args, kwargs):
        sizes.add(tuple(args[0].shape[2:]))
        told.append(kwargs["added_cond_kwargs"]["time_ids"][0])

    task.network.register_forward_pre_hook(look, with_kwargs=True)
    for k in range(8):
        task.training_step(rows(1), step(k))
    # 16 pixels are 8x8 latents; half of it and all of it are both drawn, in steps of what the levels divide.
    assert {side for size in sizes for side in size} == {4, 6, 8}
    for ids in told:
        original_height, original_width, top, left, height, width = ids.tolist()
        assert 0 <= top <= original_height - height
        assert 0 <= left <= original_width - width


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("part", ["esd-x", "esd-u"])
def test_esd_by_hand_and_what_it_touches(layout, part):
    """ε_θ(x_t, c) ← ε*(x_t, ∅) - η [ε*(x_t, c) - ε*(x_t, ∅)], against a second, untouched pipeline."""
    task, original = esd(part, layout, [prompt(guidance_scale=2.0)]), pipeline_of(layout)
    network = original.unet if hasattr(original, "unet") else original.transformer
    perturb(task)
    x, t = noisy(task)
    with torch.no_grad():
        mine = predict(task.network, x, t, task.conditions[HEART].repeat(2))
        with_text = predict(network, x, t, task.conditions[HEART].repeat(2))
        without = predict(network, x, t, task.conditions[""].repeat(2))
    losses = task.training_step(rows(2), step())
    expected = (mine - (without - 2.0 * (with_text - without))).pow(2).mean()
    assert set(losses) == {"erase"}
    torch.testing.assert_close(losses["erase"], expected, rtol=1e-4, atol=0)
    losses["erase"].backward()
    inside = tuple(cross_attentions(network))
    parameters = dict(task.network.named_parameters())
    moved = {name for name, p in parameters.items() if not torch.equal(p, network.get_parameter(name))}
    assert moved == {name for name, p in parameters.items() if p.grad is not None}
    assert moved
    assert all(name.startswith(inside) == (part == "esd-x") for name in moved)
    assert all("attn2" in name for name in inside)


def test_unedited_is_the_original_to_the_bit():
    task = esd("esd-u")
    before = weights_of(task.pipe)
    perturb(task)
    edited = weights_of(task.pipe)
    with pytest.raises(RuntimeError, match="inside"), task.unedited():  # noqa: PT012
        assert all(torch.equal(value, before[name]) for name, value in weights_of(task.pipe).items())
        raise RuntimeError("inside")
    assert all(torch.equal(value, edited[name]) for name, value in weights_of(task.pipe).items())


def test_the_picture_shows_before_and_after():
    task = spm(samples=Samples((CAT, HEART), 2.0, 2))
    picture = task.sample(task.modules)
    top, bottom = (picture.crop((0, y, picture.width, y + 8)) for y in (0, 9))
    assert picture.size == (2 * 9 - 1, 2 * 9 - 1)  # the target is not shown twice
    assert top.tobytes() == bottom.tobytes()
    perturb(task, 0.5)
    again = task.sample(task.modules)
    assert again.crop((0, 0, picture.width, 8)).tobytes() == top.tobytes()
    assert again.crop((0, 9, picture.width, 17)).tobytes() != bottom.tobytes()


def test_what_cannot_be_is_refused():
    pipe = pipeline_of("sd")
    with pytest.raises(ValueError, match="max_denoising_steps is 1; it must be at least 2"):
        PartialDenoising(pipe.scheduler, steps=1)
    with pytest.raises(ValueError, match=r"Unknown noise scheduler 'dim'\. Did you mean 'ddim'"):
        PartialDenoising(pipe.scheduler, kind="dim")
    with pytest.raises(ValueError, match="legacy_timestep is of the released code's DDIM"):
        PartialDenoising(pipe.scheduler, kind="lms", legacy_timestep=True)
    with pytest.raises(ValueError, match="has no schedule of betas"):
        PartialDenoising(FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="of 'a red heart' is 10x10; this model takes multiples of 4"):
        spm(prompts=[ErasePrompt(HEART, resolution=10)])
    with pytest.raises(ValueError, match="nothing to erase"):
        ESDTask(pipe, [])
    with pytest.raises(ValueError, match=r"Unknown part of ESD 'esd-y'\. Did you mean"):
        esd("esd-y")
    with pytest.raises(ValueError, match="cannot be an adapter name"):
        spm(name="../x")
