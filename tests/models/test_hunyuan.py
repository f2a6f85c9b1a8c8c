"""ScaleLong on a transformer with long skips that is Diffusers' own."""

import copy

import pytest
import torch
from diffusers import HunyuanDiT2DModel
from torch import nn

from dmkit.models import (
    ScaleLongHunyuanDiT2DModel,
    SkipScaling,
    apply_skip_scaling,
    fold_skip_scaling,
    load_skip_scaling,
    remove_skip_scaling,
    save_skip_scaling,
    stability_report,
)
from dmkit.models.skips import long_skips

SIZE = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "patch_size": 2,
    "sample_size": 8,
    "hidden_size": 16,
    "num_layers": 8,
    "mlp_ratio": 2.0,
    "learn_sigma": False,
    "cross_attention_dim": 8,
    "cross_attention_dim_t5": 8,
    "pooled_projection_dim": 8,
    "text_len": 3,
    "text_len_t5": 4,
    "use_style_cond_and_image_meta_size": False,
}


def transformer(cls=HunyuanDiT2DModel, **options):
    torch.manual_seed(0)
    return cls(**SIZE, **options).eval()


def inputs(size=8):
    torch.manual_seed(1)
    return {
        "hidden_states": torch.randn(2, 4, size, size),
        "timestep": torch.tensor([10.0, 700.0]),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "text_embedding_mask": torch.ones(2, 3),
        "encoder_hidden_states_t5": torch.randn(2, 4, 8),
        "text_embedding_mask_t5": torch.ones(2, 4),
    }


def call(model, **more):
    return model(**{**inputs(), **more}).sample


def test_every_skip_gets_the_coefficient_of_its_index():
    model, seen = transformer(), []
    # Blocks 0, 1, 2 keep what they make, blocks 5, 6, 7 take it: block 7 the outermost, that of block 0.
    for number in (0, 1, 2):
        model.blocks[number].register_forward_hook(lambda *a, n=number: seen.append((n, a[2])))
    apply_skip_scaling(model, SkipScaling("cs", kappa=0.5))
    for number in (5, 6, 7):
        hook = lambda block, args, kwargs, n=number: seen.append((n, kwargs["skip"]))  # noqa: E731
        model.blocks[number].register_forward_pre_hook(hook, with_kwargs=True)
    call(model)
    found = dict(seen)
    assert sorted(found) == [0, 1, 2, 5, 6, 7]
    for maker, taker, coefficient in ((0, 7, 1.0), (1, 6, 0.5), (2, 5, 0.25)):
        assert torch.equal(found[taker], found[maker] * coefficient)


@pytest.mark.parametrize("mode", ["none", "cs", "ls", "inv_sqrt2"])
def test_scaling_changes_the_output_unless_it_is_one_and_can_be_removed(mode):
    model = transformer()
    plain = call(model)
    apply_skip_scaling(model, SkipScaling(mode))
    assert torch.equal(call(model), plain) == (mode == "none")
    assert torch.equal(call(copy.deepcopy(model)), call(model))
    remove_skip_scaling(model)
    assert torch.equal(call(model), plain)


def test_files_bring_the_scaling_back(tmp_path):
    model, other = transformer(), transformer()
    apply_skip_scaling(model, SkipScaling("ls"))
    save_skip_scaling(model, tmp_path)
    load_skip_scaling(other, tmp_path)
    torch.testing.assert_close(call(other), call(model), atol=1e-5, rtol=0)


def test_a_saved_model_loads_and_its_weights_load_in_the_parent(tmp_path):
    model = transformer(ScaleLongHunyuanDiT2DModel, skip_scaling="ls")
    model.save_pretrained(tmp_path)
    again = ScaleLongHunyuanDiT2DModel.from_pretrained(tmp_path)
    assert again.config.skip_scaling == "ls"
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    # Weights from a file lie in memory otherwise, and so round otherwise.
    torch.testing.assert_close(call(again), call(model), atol=1e-5, rtol=0)
    stock = HunyuanDiT2DModel.from_pretrained(tmp_path)
    model.disable_skip_scaling()
    torch.testing.assert_close(call(stock), call(model), atol=1e-5, rtol=0)


def test_gates_of_tokens_take_one_size_and_constants_any():
    larger = inputs(12)
    model = transformer(ScaleLongHunyuanDiT2DModel, skip_scaling="cs")
    assert call(model, **larger).shape == (2, 4, 12, 12)
    gated = ScaleLongHunyuanDiT2DModel.from_unet(transformer(), skip_scaling="ls")
    with pytest.raises(ValueError, match="gates were made for 16 channels or tokens, got 36"):
        call(gated, **larger)


def test_gradients_reach_the_gates():
    model = transformer(ScaleLongHunyuanDiT2DModel, skip_scaling="ls")
    call(model).square().mean().backward()
    gates = list(model.skip_scaler.parameters())
    assert gates
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gates)


def test_stability_is_reported():
    model = transformer(ScaleLongHunyuanDiT2DModel, skip_scaling="cs", skip_kappa=0.5)
    report = stability_report(model, lambda: call(model).square().mean())
    assert report.coefficients == pytest.approx([1.0, 0.5, 0.25], abs=1e-6)
    assert report.sensitivity > 0


def test_what_cannot_be_done_is_refused():
    model = transformer(ScaleLongHunyuanDiT2DModel, skip_scaling="cs")
    # The layer norm over [h ; κ x] is another function for another κ.
    with pytest.raises(ValueError, match="enters a HunyuanDiTBlock without a shortcut convolution"):
        fold_skip_scaling(model)
    plain = transformer()
    plain.blocks = nn.ModuleList(plain.blocks[:4])
    with pytest.raises(ValueError, match="has no conv_in, down_blocks, up_blocks: no long skips"):
        long_skips(plain)
