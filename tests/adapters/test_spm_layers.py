"""Where SPM adapters sit, and that PEFT's state around them is kept."""

import copy

import pytest
import torch
from diffusers import UNet2DModel
from peft import LoraConfig
from small_models import pixart_output, sd14_unet, sdxl_unet, tiny_pixart_transformer, tiny_unet
from torch import nn

from dmkit.adapters.spm.layers import (
    active_adapters,
    adapter_layers,
    adapter_names,
    adapter_parameters,
    disabled,
    enable,
    inject,
    lora_layers,
    remove,
    target_layers,
)


def roughen(model, name, seed=0):
    """Gives an adapter weights that show."""
    draws = torch.Generator().manual_seed(seed)
    for parameter in adapter_parameters(model, name).values():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=draws))


@pytest.mark.parametrize(
    ("make", "layers", "weights"), [(sd14_unet, 192, 423_936), (sdxl_unet, 722, 2_659_840)]
)
def test_counts_of_true_shapes(make, layers, weights):
    unet = make()
    assert len(target_layers(unet)) == layers
    inject(unet, "spm")
    assert set(adapter_layers(unet, "spm")) == set(target_layers(unet))
    assert sum(p.numel() for p in adapter_parameters(unet, "spm").values()) == weights


def test_targets_of_one_transformer_block():
    found = [name.rpartition("attentions.0.")[2] for name in target_layers(tiny_unet())]
    block = "transformer_blocks.0."
    ours = [f"{block}{a}.{p}" for a in ("attn1", "attn2") for p in ("to_q", "to_k", "to_v", "to_out.0")]
    ours += [f"{block}ff.net.0.proj", f"{block}ff.net.2", "proj_in", "proj_out"]
    assert sorted(found) == sorted(ours * 2)


def test_targets_of_a_transformer_denoiser():
    found = set(target_layers(tiny_pixart_transformer()))
    assert len(found) == 20
    assert not [name for name in found if "norm" in name or "embed" in name or "caption" in name]


def test_refuses_models_without_attention_and_fused_projections(unet):
    without_attention = UNet2DModel(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        add_attention=False,
    )
    with pytest.raises(ValueError, match="UNet2DModel has no attention or feed-forward layers"):
        target_layers(without_attention)
    unet.fuse_qkv_projections()
    with pytest.raises(
        ValueError, match=r"QKV projections of down_blocks\.1\.attentions\.0.*attn1 are fused"
    ):
        inject(unet, "spm")
    unet.unfuse_qkv_projections()
    inject(unet, "spm")
    assert len(adapter_layers(unet, "spm")) == 24


@pytest.mark.parametrize("make", [tiny_unet, tiny_pixart_transformer])
def test_a_new_adapter_changes_nothing_and_only_it_learns(make, predict):
    model, plain = make(), make()
    run = pixart_output if make is tiny_pixart_transformer else predict
    inject(model, "spm")
    assert torch.equal(run(model), run(plain))
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == set(adapter_parameters(model, "spm"))
    roughen(model, "spm")
    changed = run(model)
    assert not torch.equal(changed, run(plain))
    with disabled(model):
        assert torch.equal(run(model), run(plain))
        assert {name for name, p in model.named_parameters() if p.requires_grad} == learning
    assert torch.equal(run(model), changed)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == learning
    remove(model, "spm")
    assert torch.equal(run(model), run(plain))
    assert not lora_layers(model)
    assert not hasattr(model, "peft_config")
    inject(model, "again")


def test_disabled_is_taken_back_after_an_error_and_leaves_what_was_off(unet, predict):
    inject(unet, "spm")
    roughen(unet, "spm")
    on = predict(unet)
    with pytest.raises(RuntimeError, match="within"), disabled(unet):
        raise RuntimeError("within")
    assert torch.equal(predict(unet), on)
    unet.disable_lora()
    off = predict(unet)
    with disabled(unet):
        pass
    assert torch.equal(predict(unet), off)


def test_the_layer_computes_equation_1(unet):
    inject(unet, "spm", rank=2, alpha=3.0)
    roughen(unet, "spm")
    enable(unet, {"spm": 0.7})
    for layer in adapter_layers(unet, "spm").values():
        base = layer.get_base_layer()
        convolves = isinstance(base, nn.Conv2d)
        x = torch.randn((2, base.in_channels, 4, 4) if convolves else (2, 4, base.in_features))
        down, up = layer.lora_A["spm"].weight.flatten(1), layer.lora_B["spm"].weight.flatten(1)
        moved = copy.deepcopy(base)
        moved.weight.data += 0.7 * 3 / 2 * (up @ down).view_as(base.weight)
        assert torch.allclose(layer(x), moved(x), atol=1e-5)


def test_a_second_adapter_leaves_the_first_as_it_was(unet, predict):
    inject(unet, "one")
    roughen(unet, "one")
    enable(unet, {"one": 0.5})
    before = predict(unet)
    inject(unet, "two")
    assert active_adapters(unet) == ["one", "two"]
    assert torch.equal(predict(unet), before)
    assert all(p.requires_grad == (".two." in n) for n, p in unet.named_parameters())
    roughen(unet, "two", seed=1)
    remove(unet, "two")
    assert torch.equal(predict(unet), before)
    assert adapter_names(unet) == active_adapters(unet) == ["one"]


def test_removing_does_not_switch_on_what_the_user_switched_off(unet, predict):
    plain = predict(unet)
    inject(unet, "user")
    roughen(unet, "user")
    inject(unet, "spm")
    enable(unet, {"spm": 1.0})
    remove(unet, "spm")
    assert active_adapters(unet) == []
    assert torch.equal(predict(unet), plain)


def test_injecting_leaves_disabled_adapters_off(unet, predict):
    plain = predict(unet)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "user")
    unet.disable_lora()
    inject(unet, "spm")
    roughen(unet, "spm")
    assert torch.equal(predict(unet), plain)
    enable(unet, {"spm": 1.0})
    assert not torch.equal(predict(unet), plain)


def test_two_adapters_commute_and_add_up_linearly(unet, predict):
    for seed, name in enumerate(("one", "two")):
        inject(unet, name)
        roughen(unet, name, seed)
    enable(unet, {"one": 0.4, "two": 1.3})
    forwards = predict(unet)
    enable(unet, {"two": 1.3, "one": 0.4})
    assert torch.allclose(predict(unet), forwards, atol=1e-6)


def test_the_draw_is_the_generators_and_the_global_one_is_left_alone():
    def drawn(seed):
        model = tiny_unet()
        inject(model, "spm", generator=torch.Generator().manual_seed(seed))
        return torch.cat([p.flatten() for n, p in adapter_parameters(model, "spm").items() if "lora_A" in n])

    state = torch.get_rng_state()
    first = drawn(0)
    torch.set_rng_state(state)
    model = tiny_unet()
    after_building = torch.get_rng_state()
    inject(model, "spm", generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), after_building)
    assert torch.equal(drawn(0), first)
    assert not torch.equal(drawn(1), first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 1.5}, "rank is 1.5"),
        ({"alpha": 0}, "alpha is 0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"layers": ["mid_block.attentions.0.proj"]}, r"Did you mean 'mid_block\.attentions\.0\.proj_in'"),
    ],
)
def test_bad_arguments(unet, predict, arguments, message):
    before = predict(unet)
    with pytest.raises(ValueError, match=message):
        inject(unet, "spm", **arguments)
    assert not lora_layers(unet)
    assert torch.equal(predict(unet), before)


@pytest.mark.parametrize("name", ["", "../x", "a.b", "a/b", "a\\b", "keys", "van gogh"])
def test_bad_names(unet, name):
    with pytest.raises(ValueError, match="cannot be an adapter name"):
        inject(unet, name)
    assert not lora_layers(unet)


def test_taken_and_unknown_names(unet):
    inject(unet, "snoopy")
    with pytest.raises(ValueError, match="There is an adapter 'snoopy' already"):
        inject(unet, "snoopy")
    for call in (remove, adapter_parameters, lambda m, n: enable(m, {n: 1.0})):
        with pytest.raises(ValueError, match=r"Unknown adapter 'snopy'\. Did you mean 'snoopy'"):
            call(unet, "snopy")


def test_nothing_goes_in_or_out_while_fused(unet):
    inject(unet, "spm")
    unet.fuse_lora()
    with pytest.raises(ValueError, match="fused into the weights"):
        inject(unet, "two")
    with pytest.raises(ValueError, match="fused into the weights"):
        remove(unet, "spm")
