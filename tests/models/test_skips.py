"""Scaling the long skips of unmodified networks by hooks: which skip gets which coefficient, and what else
the hooks must live with.
"""

import copy
import warnings

import denoisers
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dmkit.errors import FileFormatError
from dmkit.models import (
    SkipScaling,
    apply_skip_scaling,
    load_skip_scaling,
    remove_skip_scaling,
    save_skip_scaling,
)

# Exponents of the tuple's entries by up block, for 4 levels x 2 layers, as the paper's index gives them.
TABLE = [(9, 10, 11), (6, 7, 8), (3, 4, 5), (0, 1, 2)]
KINDS = pytest.mark.parametrize("kind", denoisers.KINDS)


def deep(kind: str, levels: int = 4, layers: int = 2) -> nn.Module:
    cross = "CrossAttn" if kind == "conditional" else ""
    return denoisers.stock(
        kind,
        sample_size=16,
        layers_per_block=layers,
        block_out_channels=(8,) * levels,
        down_block_types=(*([f"{cross}DownBlock2D"] * (levels - 1)), "DownBlock2D"),
        up_block_types=("UpBlock2D", *([f"{cross}UpBlock2D"] * (levels - 1))),
    )


@KINDS
def test_every_skip_gets_the_coefficient_of_its_index(kind):
    model = deep(kind)
    produced, taken = [], {}
    model.conv_in.register_forward_hook(lambda module, args, output: produced.append(output))
    for block in model.down_blocks:
        block.register_forward_hook(lambda module, args, output: produced.extend(output[1]))
    apply_skip_scaling(model, SkipScaling("cs", 0.8))
    model.skip_scaler.register_forward_hook(lambda module, args, output: taken.update({args[0]: args[1]}))
    tuples = []
    for block in model.up_blocks:
        block.register_forward_pre_hook(
            lambda module, args, kwargs: tuples.append(kwargs.get("res_hidden_states_tuple") or args[1]),
            with_kwargs=True,
        )
    denoisers.run(model)
    # Produced in order of i: skip 1 is conv_in's output.
    assert len(produced) == len(taken) == 12
    assert all(taken[i] is produced[i - 1] for i in range(1, 13))
    # Later pre-hooks see what the resnets will see.
    for exponents, skips in zip(TABLE, tuples, strict=True):
        for exponent, skip in zip(exponents, skips, strict=True):
            assert torch.equal(skip, produced[exponent] * 0.8**exponent)
    assert tuples[3][0] is produced[0]


@KINDS
@pytest.mark.parametrize("index", ["skip", "level"])
def test_scaling_is_the_tuple_scaled_by_hand(kind, index):
    model = deep(kind)
    factors = [[0.8**e if index == "skip" else 0.8 ** (3 - b) for e in row] for b, row in enumerate(TABLE)]
    before = denoisers.run(model)
    with denoisers.scaled_by_hand(model, factors):
        expected = denoisers.run(model)
    apply_skip_scaling(model, SkipScaling("cs", 0.8, index=index))
    assert torch.equal(denoisers.run(model), expected)
    assert (expected - before).abs().max() > 1e-3
    remove_skip_scaling(model)
    assert torch.equal(denoisers.run(model), before)
    assert not any(
        block._forward_pre_hooks or block._forward_pre_hooks_with_kwargs for block in model.up_blocks
    )


@settings(deadline=None, max_examples=8)
@given(levels=st.integers(2, 3), layers=st.integers(1, 3), kind=st.sampled_from(sorted(denoisers.KINDS)))
def test_no_scaling_is_the_network_itself(levels, layers, kind):
    model = deep(kind, levels, layers)
    before = denoisers.run(model)
    for scaling in (SkipScaling("none"), SkipScaling("cs", 1.0)):
        apply_skip_scaling(model, scaling)
        assert len(model.skip_scaler) == levels * (layers + 1)
        assert torch.equal(denoisers.run(model), before)
        remove_skip_scaling(model)


def test_gradients_of_a_linear_decoder_scale_with_the_coefficients():
    model = denoisers.stock("unconditional")
    for block in model.up_blocks:
        for k, resnet in enumerate(block.resnets):
            linear = nn.Conv2d(resnet.in_channels, resnet.out_channels, 1)
            linear.forward = lambda x, temb, own=linear: nn.Conv2d.forward(own, x)
            linear.in_channels = resnet.in_channels
            block.resnets[k] = linear

    def gradients(scaling):
        apply_skip_scaling(model, scaling)
        seen = {}

        def leaf(module, args):
            seen[args[0]] = args[1].detach().requires_grad_()
            return args[0], seen[args[0]]

        handle = model.skip_scaler.register_forward_pre_hook(leaf)
        # A fixed linear functional of the decoder's last features, before the output's norm.
        last = []
        other = model.up_blocks[-1].register_forward_hook(lambda module, args, output: last.append(output))
        model(**denoisers.inputs(model))
        weights = torch.linspace(-1, 1, last[0].numel()).view_as(last[0])
        (last[0] * weights).sum().backward()
        handle.remove()
        other.remove()
        remove_skip_scaling(model)
        return [seen[i].grad for i in sorted(seen)]

    plain, scaled = gradients(SkipScaling("none")), gradients(SkipScaling("cs", 0.6))
    assert len(plain) == 4
    for exponent, (one, other) in enumerate(zip(plain, scaled, strict=True)):
        assert torch.allclose(other, 0.6**exponent * one, rtol=1e-4, atol=1e-7)
        assert one.abs().max() > 1e-3


def test_freeu_comes_after_the_scaling():
    model = deep("conditional")
    apply = SkipScaling("cs", 0.8)
    factors = [[0.8**e for e in row] for row in TABLE]
    apply_skip_scaling(model, apply)
    scaled = denoisers.run(model)
    model.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    both = denoisers.run(model)
    remove_skip_scaling(model)
    with denoisers.scaled_by_hand(model, factors):
        assert torch.equal(both, denoisers.run(model))
    assert (both - scaled).abs().max() > 1e-4


def test_controlnet_residuals_are_scaled_with_the_skips():
    model = denoisers.stock("conditional")
    shapes = []
    apply_skip_scaling(model, SkipScaling("none"))
    model.skip_scaler.register_forward_hook(
        lambda module, args, output: shapes.append((args[0], output.shape))
    )
    denoisers.run(model)
    remove_skip_scaling(model)
    residuals = [torch.ones(shape) for _, shape in sorted(shapes)]
    extra = {"down_block_additional_residuals": residuals, "mid_block_additional_residual": torch.zeros(())}
    with denoisers.scaled_by_hand(model, [[0.5**2, 0.5**3], [1.0, 0.5]]):
        expected = denoisers.run(model, **extra)
    apply_skip_scaling(model, SkipScaling("cs", 0.5))
    assert torch.equal(denoisers.run(model, **extra), expected)


@KINDS
@pytest.mark.parametrize("mode", ["cs", "ls"])
def test_copies_have_scaling_of_their_own(kind, mode):
    model = denoisers.stock(kind)
    apply_skip_scaling(model, SkipScaling(mode))
    before = denoisers.run(model)
    twin = copy.deepcopy(model)
    assert torch.equal(denoisers.run(twin), before)
    if mode == "cs":
        twin.skip_scaler.scaling = SkipScaling("cs", 0.2)
    else:
        for parameter in twin.skip_scaler.parameters():
            parameter.data.fill_(-1.0)
    assert (denoisers.run(twin) - before).abs().max() > 1e-4
    assert torch.equal(denoisers.run(model), before)
    remove_skip_scaling(twin)
    assert torch.equal(denoisers.run(model), before)


@pytest.mark.parametrize(("kind", "mode"), [("unconditional", "cs"), ("conditional", "ls")])
def test_checkpointing_and_compilation_change_nothing(kind, mode):
    model = denoisers.stock(kind)
    torch.manual_seed(1)
    apply_skip_scaling(model, SkipScaling(mode))
    model.train()

    def gradients(network):
        model.zero_grad()
        network(**denoisers.inputs(model)).sample.square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients(model)
    assert (mode == "ls") == any(name.startswith("skip_scaler") for name in plain)
    model.enable_gradient_checkpointing()
    checkpointed = gradients(model)
    model.disable_gradient_checkpointing()
    compiled = gradients(torch.compile(model, backend="eager", fullgraph=True))
    for name, gradient in plain.items():
        assert torch.equal(gradient, checkpointed[name]), name
        assert torch.equal(gradient, compiled[name]), name


def test_gates_get_gradients_and_the_network_keeps_its_weights():
    model = denoisers.stock("unconditional")
    before = [p.clone() for p in model.parameters()]
    torch.manual_seed(0)
    apply_skip_scaling(model, SkipScaling("ls", reduction=1))
    model(**denoisers.inputs(model)).sample.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.skip_scaler.parameters())
    remove_skip_scaling(model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("mode", ["cs", "ls"])
def test_files_bring_the_scaling_back(mode, tmp_path):
    model = denoisers.stock("unconditional")
    apply_skip_scaling(model, SkipScaling(mode, 0.6, index="level", reduction=2, shared=False))
    before = denoisers.run(model)
    save_skip_scaling(model, tmp_path)
    assert (tmp_path / "skip_scaler.safetensors").exists() == (mode == "ls")
    fresh = denoisers.stock("unconditional")
    load_skip_scaling(fresh, tmp_path)
    assert torch.equal(denoisers.run(fresh), before)
    wider = denoisers.stock("unconditional", block_out_channels=(8, 24))
    with pytest.raises(FileFormatError, match=r"skips of \[8, 8, 8, 16\] features; this model's have"):
        load_skip_scaling(wider, tmp_path)
    if mode == "ls":
        (tmp_path / "skip_scaler.safetensors").write_bytes(b"no")
        with pytest.raises(FileFormatError, match=r"skip_scaler\.safetensors"):
            load_skip_scaling(denoisers.stock("unconditional"), tmp_path)
    (tmp_path / "skip_scaling.json").write_text("{")
    with pytest.raises(FileFormatError, match="not valid JSON"):
        load_skip_scaling(denoisers.stock("unconditional"), tmp_path)


def test_what_cannot_be_scaled_is_refused():
    model = denoisers.stock("unconditional")
    with pytest.raises(ValueError, match="no skip scaling to remove"):
        remove_skip_scaling(model)
    with pytest.raises(ValueError, match="no skip scaling to save"):
        save_skip_scaling(model, "nowhere")
    apply_skip_scaling(model, SkipScaling())
    with pytest.raises(ValueError, match="has skip scaling already"):
        apply_skip_scaling(model, SkipScaling())
    with pytest.raises(ValueError, match="no conv_in, down_blocks, up_blocks"):
        apply_skip_scaling(AutoencoderKL(block_out_channels=(32,)), SkipScaling())
    k_blocks = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        down_block_types=("KDownBlock2D",) * 2,
        up_block_types=("KUpBlock2D",) * 2,
        mid_block_type=None,
        cross_attention_dim=8,
    )
    with pytest.raises(ValueError, match="K-diffusion blocks"):
        apply_skip_scaling(k_blocks, SkipScaling())
    broken = denoisers.stock("unconditional")
    del broken.up_blocks[-1]
    with pytest.raises(ValueError, match="makes 4 skips and takes 2"):
        apply_skip_scaling(broken, SkipScaling())


def test_tiny_coefficients_are_warned_of():
    with pytest.warns(UserWarning, match=r"innermost of 12 skips is scaled by 4.9e-04.*index='level'"):
        apply_skip_scaling(deep("unconditional"), SkipScaling("cs", 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_skip_scaling(deep("unconditional"), SkipScaling("cs", 0.5, index="level"))
        apply_skip_scaling(deep("unconditional"), SkipScaling("cs", 0.7))


def test_skip_up_blocks_are_scaled_too():
    model = UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("SkipDownBlock2D", "SkipDownBlock2D"),
        up_block_types=("SkipUpBlock2D", "SkipUpBlock2D"),
        time_embedding_type="fourier",
    ).eval()
    with denoisers.scaled_by_hand(model, [[0.5**2, 0.5**3], [1.0, 0.5]]):
        expected = denoisers.run(model)
    apply_skip_scaling(model, SkipScaling("cs", 0.5))
    assert torch.equal(denoisers.run(model), expected)
