"""Constant scaling folded into the weights: where it is exact, and where group norms forbid it."""

import denoisers
import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.resnet import ResnetBlock2D

from dmkit.models import (
    ScaleLongUNet2DConditionModel,
    ScaleLongUNet2DModel,
    UViTModel,
    fold_skip_scaling,
)

OURS = {"unconditional": ScaleLongUNet2DModel, "conditional": ScaleLongUNet2DConditionModel}


def unet(kind: str, **changes):
    torch.manual_seed(0)
    _, blocks = denoisers.KINDS[kind]
    return OURS[kind](**{**denoisers.SMALL, **blocks, "norm_eps": 1e-6, **changes}).eval()


@pytest.mark.parametrize("mode", ["none", "inv_sqrt2", "cs"])
def test_a_uvit_folds_exactly(mode):
    torch.manual_seed(0)
    model = UViTModel(
        sample_size=8, in_channels=1, out_channels=1, num_layers=6, num_attention_heads=2,
        attention_head_dim=8, skip_scaling=mode, skip_kappa=0.3,
    ).eval()  # fmt: skip
    before = denoisers.run(model)
    plain = fold_skip_scaling(model)
    assert plain.config.skip_scaling == "none"
    assert torch.allclose(denoisers.run(plain), before, atol=1e-6)
    assert torch.equal(denoisers.run(model), before)
    if mode != "none":
        model.disable_skip_scaling()
        assert (denoisers.run(model) - before).abs().max() > 1e-4


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("mode", ["inv_sqrt2", "cs"])
def test_a_unet_folds_where_no_group_mixes_skip_and_backbone(kind, mode):
    # 16 + 16, 16 + 8, 8 + 8 channels in 2 groups would mix; 8 + 8 everywhere does not.
    model = unet(kind, block_out_channels=(8, 8), skip_scaling=mode)
    plain = fold_skip_scaling(model)
    assert type(plain) is (UNet2DModel if kind == "unconditional" else UNet2DConditionModel)
    assert not [name for name in plain.config if name.startswith("skip_")]
    before = denoisers.run(model)
    folded = (denoisers.run(plain) - before).abs().max()
    model.disable_skip_scaling()
    unscaled = (denoisers.run(model) - before).abs().max()
    assert folded < 1e-3 * unscaled


def test_what_cannot_be_folded_is_refused():
    with pytest.raises(ValueError, match=r"Skip 2 cannot be folded exactly.*in groups of 6 mixes its 8"):
        fold_skip_scaling(unet("unconditional", block_out_channels=(8, 16)))
    with pytest.raises(ValueError, match="depend on the input"):
        fold_skip_scaling(unet("unconditional", skip_scaling="ls"))
    strong = unet("unconditional", block_out_channels=(8, 8), skip_kappa=0.3, norm_eps=1e-5)
    with pytest.raises(ValueError, match=r"Skip 2.*ε acts as 1.1e-04, more than max_epsilon=1.0e-04"):
        fold_skip_scaling(strong)
    assert fold_skip_scaling(strong, max_epsilon=0.1)
    with pytest.raises(TypeError, match="A UNet2DModel has no scaled skips"):
        fold_skip_scaling(denoisers.stock("unconditional"))


@pytest.mark.parametrize(("skip", "least", "most"), [(64, 0.0, 1e-4), (32, 0.02, 0.2)])
@torch.no_grad()
def test_group_norm_undoes_constant_scaling_unless_a_group_straddles(skip, least, most):
    torch.manual_seed(0)
    block = ResnetBlock2D(in_channels=64 + skip, out_channels=64, temb_channels=None, groups=32).eval()
    h, x = torch.randn(4, 64, 8, 8), torch.randn(4, skip, 8, 8)

    def outputs(kappa: float):
        joined = torch.cat([h, kappa * x], dim=1)
        whole = block(joined, None)
        return whole, whole - block.conv_shortcut(joined)

    (whole, branch), (scaled, scaled_branch) = outputs(1.0), outputs(0.5)
    change = float((scaled_branch - branch).norm() / branch.norm())
    assert least <= change <= most
    assert float((scaled - whole).norm() / whole.norm()) > 0.05
