"""The U-ViT with long skips: order of the skips, modes, files, errors."""

import copy

import denoisers
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline

from dmkit.models import UViTModel
from dmkit.sampling import sample_batch

SMALL = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 1,
    "out_channels": 1,
    "num_layers": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
}
MODES = ["none", "inv_sqrt2", "cs", "ls"]


def uvit(mode: str = "cs", **changes) -> UViTModel:
    torch.manual_seed(0)
    return UViTModel(**{**SMALL, "skip_scaling": mode, "skip_kappa": 0.5, **changes}).eval()


def test_skips_are_taken_deepest_first_with_the_papers_exponents():
    model = uvit(num_layers=12)
    produced, order = [], []
    for block in model.in_blocks:
        block.register_forward_hook(lambda module, args, output: produced.append(output))
    model.skip_scaler.register_forward_hook(lambda module, args, output: order.append((*args, output)))
    denoisers.run(model)
    assert [i - 1 for i, _, _ in order] == [5, 4, 3, 2, 1, 0]
    for i, x, output in order:
        assert x is produced[i - 1]
        assert torch.equal(output, x * 0.5 ** (i - 1))


def test_it_is_its_equation():
    """A plain forward pass from the blocks, with the skips scaled by hand."""
    model = uvit()
    given = denoisers.inputs(model)
    with torch.no_grad():
        x1 = model.in_blocks[0](model._tokens(given["sample"], given["timestep"], None))
        x2 = model.in_blocks[1](x1)
        h2 = model.mid_block(x2)
        h1 = model.out_blocks[0](model.skip_joins[0](torch.cat([h2, 0.5 * x2], -1)))
        h0 = model.out_blocks[1](model.skip_joins[1](torch.cat([h1, x1], -1)))
        patches = model.patch_out(model.norm_out(h0[:, 1:]))
        image = torch.zeros(2, 1, 8, 8)
        for k in range(16):
            row, column = 2 * (k // 4), 2 * (k % 4)
            image[:, 0, row : row + 2, column : column + 2] = patches[:, k].reshape(2, 2, 2)
        assert torch.allclose(model.conv_out(image), denoisers.run(model), atol=1e-6)


def test_time_position_and_class_reach_the_output():
    model = uvit(num_class_embeds=3)
    given = {**denoisers.inputs(model), "class_labels": torch.tensor([0, 1])}
    base = model(**given).sample
    assert not torch.equal(model(**{**given, "timestep": torch.tensor([7, 900])}).sample[1], base[1])
    assert torch.equal(model(**{**given, "timestep": torch.tensor([7, 900])}).sample[0], base[0])
    assert not torch.equal(model(**{**given, "class_labels": torch.tensor([2, 1])}).sample[0], base[0])
    rolled = model(**{**given, "sample": given["sample"].roll(2, dims=-1)}).sample
    assert not torch.allclose(rolled, base.roll(2, dims=-1), atol=1e-4)
    one = model(given["sample"], 7, given["class_labels"], return_dict=False)[0]
    assert torch.allclose(one[0], base[0], atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_saving_loading_copying_and_switching(mode, tmp_path):
    model = uvit(mode, skip_reduction=4)
    expected = denoisers.run(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(denoisers.run(UViTModel.from_pretrained(tmp_path)), expected)
    twin = copy.deepcopy(model)
    twin.disable_skip_scaling()
    assert (mode == "none") == torch.equal(denoisers.run(twin), expected)
    assert torch.equal(denoisers.run(model), expected)


def test_the_seed_gives_the_same_trunk_in_every_mode():
    plain, learned = uvit("none"), uvit("ls")
    assert all(torch.equal(v, learned.state_dict()[k]) for k, v in plain.state_dict().items())
    # 17 tokens: one hidden unit, and one network for both skips.
    assert sum(p.numel() for p in learned.skip_scaler.parameters()) == 17 + 1 + 17 + 17


def test_checkpointing_and_compilation_change_nothing():
    model = uvit("ls").train()

    def gradients(network):
        model.zero_grad()
        network(**denoisers.inputs(model)).sample.square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients(model)
    model.enable_gradient_checkpointing()
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(model), strict=True))
    model.disable_gradient_checkpointing()
    compiled = gradients(torch.compile(model, backend="eager", fullgraph=True))
    assert all(torch.equal(a, b) for a, b in zip(plain, compiled, strict=True))


def test_it_samples_in_a_pipeline_that_is_saved_and_loaded(tmp_path):
    model = uvit("ls")
    DDPMPipeline(unet=model, scheduler=DDPMScheduler()).save_pretrained(tmp_path)
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert torch.equal(denoisers.run(pipe.unet), denoisers.run(model))
    images = pipe(num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert images.shape == (1, 8, 8, 1)
    assert sample_batch(model, DDPMScheduler(), 2, [0, 1]).shape == (2, 1, 8, 8)


def test_bfloat16_is_finite():
    model = uvit("ls").to(torch.bfloat16)
    given = denoisers.inputs(model)
    output = model(given["sample"].bfloat16(), given["timestep"]).sample
    assert output.dtype == torch.bfloat16
    assert bool(torch.isfinite(output).all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, "patch_size 3 does not divide sample_size 8"),
        ({"num_layers": 5}, "num_layers is 5; it must be even"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"skip_scaling": "lss"}, "Did you mean 'ls'"),
    ],
)
def test_bad_sizes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        UViTModel(**{**SMALL, **changes})


def test_bad_input_is_named():
    model = uvit()
    given = denoisers.inputs(model)
    with pytest.raises(ValueError, match=r"images of 8x8, got \(8, 6\)"):
        model(given["sample"][..., :6], given["timestep"])
    with pytest.raises(ValueError, match="takes no class_labels"):
        model(**given, class_labels=torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="takes class_labels"):
        uvit(num_class_embeds=2)(**given)
