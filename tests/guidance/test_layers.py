"""Whole denoisers of each family with steered layers: what stays equal, is refused, is given back."""

import copy
from functools import partial

import diffusers
import peft
import pytest
import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0

from dmkit.guidance import (
    NASAAttnProcessor2_0,
    NASAFluxAttnProcessor,
    NASAJointAttnProcessor2_0,
    SteeredLayers,
    Steering,
    join_tokens,
)

pytestmark = pytest.mark.filterwarnings("ignore:Steering the joint attention")
PROMPT, NEGATIVE = 5, 7
FAMILIES = ("unet", "pixart", "sd3", "flux")


def rows(*shape, seed):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))


class Case:
    """A denoiser, two prompts and two negative prompts: `plain` sees the prompts, `steered` both."""

    def __init__(self, family, request):
        self.family = family
        self.model = request.getfixturevalue("text_pipe" if family == "unet" else family)
        if family == "unet":
            self.model = self.model.unet
        width = 16 if family == "unet" else 12
        self.text, self.negative = rows(PROMPT, width, seed=1), rows(NEGATIVE, width, seed=2)

    def run(self, text, mask=None):
        time = torch.tensor([500.0, 20.0])
        latents, tokens, pooled = (
            rows(*shape, seed=0).to(text.dtype) for shape in ((4, 8, 8), (16, 4), (10,))
        )
        if self.family == "unet":
            return self.model(latents, time, text, encoder_attention_mask=mask).sample
        if self.family == "pixart":
            return self.model(latents, text, time, encoder_attention_mask=mask, added_cond_kwargs={}).sample
        if self.family == "sd3":
            return self.model(latents, text, pooled, time).sample
        ids = torch.zeros(16, 3)
        ids[:, 1], ids[:, 2] = torch.arange(16) // 4, torch.arange(16) % 4
        return self.model(tokens, text, pooled, time / 1000, ids, torch.zeros(text.shape[1], 3)).sample

    def plain(self):
        return self.run(self.text)

    def steered(self, mode="nasa", scale=0.5, negative=None):
        negative = self.negative if negative is None else negative
        steering = Steering(mode, scale, PROMPT, negative.shape[1])
        with SteeredLayers(self.model, steering).active():
            return self.run(join_tokens(self.text, negative))


@pytest.fixture(params=FAMILIES)
def case(request):
    return Case(request.param, request)


@pytest.fixture(params=["unet", "pixart"])
def cross(request):
    return Case(request.param, request)


@pytest.fixture(params=["sd3", "flux"])
def joint(request):
    return Case(request.param, request)


# Equal and not


@pytest.mark.parametrize("mode", ["nasa", "nag"])
def test_scale_0_is_the_plain_model(case, mode):
    assert torch.allclose(case.steered(mode, 0.0), case.plain(), atol=1e-6)


@pytest.mark.parametrize("mode", ["nasa", "nag"])
def test_a_scale_changes_the_output_and_depends_on_the_negative_prompt(case, mode):
    plain, steered = case.plain(), case.steered(mode)
    assert (steered - plain).abs().max() > 1e-4
    assert (case.steered(mode, negative=case.negative.roll(1, dims=-1)) - steered).abs().max() > 1e-4


@pytest.mark.parametrize("mode", ["nasa", "nag"])
def test_a_scale_for_each_row_is_that_row_alone(case, mode):
    both = case.steered(mode, torch.tensor([0.3, 0.9]))
    for row, scale in enumerate((0.3, 0.9)):
        assert torch.allclose(both[row], case.steered(mode, scale)[row], atol=1e-6)


def test_the_prompt_as_negative_prompt_scales_the_values_of_every_layer(cross):
    """Z⁺ - α Z⁺ = (1 - α) Z⁺."""
    steered = cross.steered(scale=0.3, negative=cross.text)
    model = copy.deepcopy(cross.model)
    for name, module in model.named_modules():
        if name.endswith("attn2"):
            for parameter in module.to_v.parameters():
                parameter *= 0.7
    cross.model = model
    assert torch.allclose(steered, cross.plain(), atol=1e-6)


def test_the_prompt_as_negative_prompt_changes_nothing_under_nag(case):
    assert torch.allclose(case.steered("nag", 3.0, negative=case.text), case.plain(), atol=1e-5)


def test_masked_tokens_of_either_prompt_do_not_count(cross):
    steered = cross.steered()
    mask = torch.ones(2, PROMPT + 2 + NEGATIVE + 3, dtype=torch.long)
    mask[:, PROMPT : PROMPT + 2] = mask[:, -3:] = 0
    width = cross.text.shape[-1]
    text = torch.cat([cross.text, rows(2, width, seed=7), cross.negative, rows(3, width, seed=8)], dim=1)
    with SteeredLayers(cross.model, Steering("nasa", 0.5, PROMPT + 2, NEGATIVE + 3)).active():
        assert torch.allclose(cross.run(text, mask), steered, atol=1e-5)


def test_jointly_read_prompts_never_see_each_other(joint):
    """At scale 0 nothing of the negative prompt reaches the image by way of the prompt's tokens."""
    a = joint.steered(scale=0.0)
    b = joint.steered(scale=0.0, negative=100 * joint.negative)
    assert torch.equal(a, b)


@pytest.mark.parametrize("mode", ["nasa", "nag"])
def test_joint_attention_is_its_equations(flux, mode):
    """One layer against softmaxes written out: (6), and for NAG its formula on whole answers."""
    attn = copy.deepcopy(flux.transformer_blocks[0].attn)
    steering = Steering(mode, 0.8, 3, 4)
    attn.set_processor(NASAFluxAttnProcessor(steering))
    image, text = rows(6, 16, seed=1), rows(7, 16, seed=2)
    out_image, out_text = attn(image, text)

    def heads(x, project, norm=None):
        x = project(x).unflatten(-1, (2, 8))
        return (x if norm is None else norm(x)).transpose(1, 2)

    q, k, v = (
        torch.cat([heads(text, *of_text), heads(image, *of_image)], dim=2)
        for of_text, of_image in (
            ((attn.add_q_proj, attn.norm_added_q), (attn.to_q, attn.norm_q)),
            ((attn.add_k_proj, attn.norm_added_k), (attn.to_k, attn.norm_k)),
            ((attn.add_v_proj,), (attn.to_v,)),
        )
    )
    answers = []
    for start, stop in ((0, 3), (3, 7)):
        seen = [*range(start, stop), *range(7, 13)]
        p = (q[:, :, seen] @ k[:, :, seen].transpose(2, 3) / 8**0.5).softmax(-1)
        n = stop - start
        whole = p @ v[:, :, seen]
        of_text = p[..., n:, :n] @ v[:, :, start:stop]
        answers.append([x.transpose(1, 2).flatten(2) for x in (whole[:, :, :n], whole[:, :, n:], of_text)])
    (prompt, towards, _), (negative, whole, of_text) = answers
    steered = steering.away(towards, of_text if mode == "nasa" else whole)
    assert torch.allclose(out_image, attn.to_out[0](steered), atol=1e-5)
    assert torch.allclose(out_text, attn.to_add_out(torch.cat([prompt, negative], dim=1)), atol=1e-5)


@pytest.mark.parametrize("mode", ["nasa", "nag"])
def test_half_precision_rounds_no_more_than_the_plain_model(case, mode):
    def both():
        return case.plain().float(), case.steered(mode, 1.0).float()

    exact = both()
    case.model = copy.deepcopy(case.model).to(torch.bfloat16)
    case.text, case.negative = case.text.bfloat16(), case.negative.bfloat16()
    assert case.steered(mode).dtype == torch.bfloat16
    plain, steered = ((a - b).abs().mean() for a, b in zip(exact, both(), strict=True))
    assert 0 < steered < 2 * plain


# Put in and given back


def test_every_layer_that_reads_text_is_steered_and_gets_its_own_processor_back(case):
    before, plain = case.model.attn_processors, case.plain()
    layers = SteeredLayers(case.model, Steering("nasa", 0.5, PROMPT, NEGATIVE))
    assert case.model.attn_processors == before
    with layers.active():
        kind = {"sd3": NASAJointAttnProcessor2_0, "flux": NASAFluxAttnProcessor}.get(
            case.family, NASAAttnProcessor2_0
        )
        part = {"sd3": ".attn.", "flux": ""}.get(case.family, "attn2")
        steered = {name for name, processor in case.model.attn_processors.items() if type(processor) is kind}
        assert steered == {name for name in before if part in name}
        assert len(layers) == len(steered) > 1
    for name, processor in case.model.attn_processors.items():
        assert processor is before[name]
    assert not case.model._forward_pre_hooks
    assert torch.equal(case.plain(), plain)


def test_an_error_within_restores_as_well(cross):
    before = cross.model.attn_processors
    layers = SteeredLayers(cross.model, Steering("nasa", 0.5, PROMPT, NEGATIVE))
    with pytest.raises(ZeroDivisionError), layers.active():
        raise ZeroDivisionError
    assert all(cross.model.attn_processors[name] is before[name] for name in before)
    layers.remove()  # once more is no error


def test_a_copy_taken_meanwhile_is_on_its_own(cross):
    steering = Steering("nasa", 0.5, PROMPT, NEGATIVE)
    text = join_tokens(cross.text, cross.negative)
    with SteeredLayers(cross.model, steering).active():
        expected = cross.run(text)
        twin = copy.deepcopy(cross.model)
    steering.scale = 0.0
    original, cross.model = cross.model, twin
    assert torch.equal(cross.run(text), expected)
    twin.set_attn_processor(AttnProcessor2_0())
    with pytest.raises(RuntimeError, match="not steered any more"):
        cross.run(text)
    cross.model = original
    cross.plain()


def test_a_later_processor_is_noticed_at_the_next_call_and_at_the_end(cross):
    layers = SteeredLayers(cross.model, Steering("nasa", 0.5, PROMPT, NEGATIVE))
    before = {name: p for name, p in cross.model.attn_processors.items() if "attn2" in name}
    layers.install()
    cross.model.set_attn_processor(AttnProcessor2_0())
    with pytest.raises(RuntimeError, match="steered any more: a later call gave it the processor AttnProc"):
        cross.run(join_tokens(cross.text, cross.negative))
    layers.remove()
    with pytest.raises(RuntimeError, match="call set_attention_backend"), layers.active():
        cross.model.set_attn_processor(AttnProcessor2_0())
    assert all(cross.model.attn_processors[name] is before[name] for name in before)


def test_twice_is_refused(cross):
    layers = SteeredLayers(cross.model, Steering())
    with layers.active():
        with pytest.raises(RuntimeError, match="steered already"):
            layers.install()
        with pytest.raises(ValueError, match="NASAAttnProcessor2_0 cannot be steered: it is steered already"):
            SteeredLayers(cross.model, Steering())


def test_wrong_text_is_refused(case):
    layers = SteeredLayers(case.model, Steering("nasa", 0.5, PROMPT, NEGATIVE))
    with layers.active():
        with pytest.raises(ValueError, match=r"5 tokens of text reached the denoiser, not 5 of .* and 7"):
            case.plain()
        layers.steering.batch_size = 1
        with pytest.raises(ValueError, match="2 rows of text reached the denoiser, not 1"):
            case.run(join_tokens(case.text, case.negative))
    layers = SteeredLayers(case.model, Steering())
    with layers.active(), pytest.raises(ValueError, match="no negative tokens"):
        case.plain()


def test_models_without_text_are_refused():
    model = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    with pytest.raises(ValueError, match="UNet2DModel has no attention layer that reads text"):
        SteeredLayers(model, Steering())


def test_joint_attention_warns(sd3):
    with pytest.warns(UserWarning, match="joint attention of SD3Transformer2DModel is experimental"):
        SteeredLayers(sd3, Steering())


def test_fused_projections_are_refused(text_pipe, flux):
    for model in (copy.deepcopy(text_pipe.unet), copy.deepcopy(flux)):
        model.fuse_qkv_projections()
        with pytest.raises(ValueError, match=r"call unfuse_qkv_projections\(\) first"):
            SteeredLayers(model, Steering())
        model.unfuse_qkv_projections()
        SteeredLayers(model, Steering())


def test_fusing_meanwhile_is_noticed(text_pipe):
    unet = copy.deepcopy(text_pipe.unet)
    layers = SteeredLayers(unet, Steering())
    with pytest.raises(RuntimeError, match="FusedAttnProcessor2_0"), layers.active():
        unet.fuse_qkv_projections()


def test_ip_adapters_are_refused(text_pipe):
    unet = copy.deepcopy(text_pipe.unet)
    adapted = {
        name: IPAdapterAttnProcessor2_0(hidden_size=16, cross_attention_dim=16) if "attn2" in name else p
        for name, p in unet.attn_processors.items()
    }
    unet.set_attn_processor(adapted)
    with pytest.raises(ValueError, match=r"IPAdapterAttnProcessor2_0 cannot be steered: call pipe.unload_ip"):
        SteeredLayers(unet, Steering())


def test_processors_of_others_are_refused(text_pipe):
    class Mine(AttnProcessor2_0):
        pass

    unet = copy.deepcopy(text_pipe.unet)
    unet.set_attn_processor(Mine())
    with pytest.raises(ValueError, match=r"attn2 with processor Mine .*: supported are AttnProcessor, "):
        SteeredLayers(unet, Steering())


# With others


def test_under_lora(case):
    """Equal to the model with the LoRA merged into its weights; gone with it."""
    model = copy.deepcopy(case.model)
    names = ["to_q", "to_k", "to_v", "add_k_proj"]
    config = peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False)
    torch.manual_seed(0)
    peft.inject_adapter_in_model(config, model)
    plain, case.model = case.steered(), model
    adapted = case.steered()
    assert (adapted - plain).abs().max() > 1e-4
    layers = [m for m in model.modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    assert torch.allclose(case.steered(), plain, atol=1e-6)
    for layer in layers:
        layer.enable_adapters(True)
        layer.merge()
    assert torch.allclose(case.steered(), adapted, atol=1e-5)


def test_backends_reach_the_layers(case, monkeypatch):
    native = case.steered()
    used = []
    registry, names = attention_dispatch._AttentionBackendRegistry, attention_dispatch.AttentionBackendName
    for name in (names.NATIVE, names._NATIVE_MATH):
        counted = partial(_counted, used, name.value, registry._backends[name])
        monkeypatch.setitem(registry._backends, name, counted)
    case.steered()
    assert set(used) == {"native"}
    used.clear()
    try:
        with SteeredLayers(case.model, Steering("nasa", 0.5, PROMPT, NEGATIVE)).active():
            case.model.set_attention_backend("_native_math")
            assert torch.allclose(case.run(join_tokens(case.text, case.negative)), native, atol=1e-5)
    finally:
        case.model.reset_attention_backend()
        registry.set_active_backend(names.NATIVE)
    assert used.count("_native_math") >= 2


def _counted(used, name, function, **arguments):
    used.append(name)
    return function(**arguments)


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_compiled_whole_without_a_graph_break(family, request):
    """Steered and plain calls take turns, each with its own graph; a second turn compiles nothing."""
    from torch._dynamo.testing import CompileCounterWithBackend

    case = Case(family, request)
    eager = case.plain(), case.steered()
    counter = CompileCounterWithBackend("eager")
    torch._dynamo.reset()
    case.model = torch.compile(copy.deepcopy(case.model), backend=counter, fullgraph=True)
    for turn in range(2):
        for expected, found in zip(eager, (case.plain(), case.steered()), strict=True):
            assert torch.allclose(expected, found, atol=1e-5)
        if not turn:
            graphs = counter.frame_count
    assert counter.frame_count == graphs
    torch._dynamo.reset()


def test_cost_on_the_shapes_of_stable_diffusion():
    """77 more tokens in each cross-attention of SD 1.5: less than 3 % more operations."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(cross_attention_dim=768)
        sample, time = torch.empty(1, 4, 64, 64), torch.empty(1)
        text, negative = torch.empty(1, 77, 768), torch.empty(1, 77, 768)
    with FlopCounterMode(display=False) as plain:
        unet(sample, time, text)
    layers, steered = SteeredLayers(unet, Steering("nasa", 0.5, 77, 77)), FlopCounterMode(display=False)
    with layers.active(), steered:
        unet(sample, time, join_tokens(text, negative))
    assert 1.005 < steered.get_total_flops() / plain.get_total_flops() < 1.03
