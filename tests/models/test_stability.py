"""Stability reports: each figure against its definition, and nothing of the model is changed."""

import math

import denoisers
import pytest
import torch

from dmkit.errors import FileFormatError
from dmkit.models import SkipScaling, UViTModel, apply_skip_scaling, plot_stability, stability_report
from dmkit.models.stability import StabilityMonitor, load_reports


def loss_of(model):
    return lambda: model(**denoisers.inputs(model)).sample.square().mean()


def rms(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


@pytest.fixture(scope="module")
def uvit():
    torch.manual_seed(0)
    return UViTModel(
        sample_size=8, in_channels=1, out_channels=1, num_layers=4, num_attention_heads=2,
        attention_head_dim=8, skip_scaling="cs", skip_kappa=0.5,
    )  # fmt: skip


def test_figures_are_what_they_say(uvit):
    given = denoisers.inputs(uvit)
    report = stability_report(uvit, loss_of(uvit), noise=1e-3, seed=4)
    # The forward pass by hand, with a leaf in place of each scaled skip.
    x1 = uvit.in_blocks[0](uvit._tokens(given["sample"], given["timestep"], None))
    x2 = uvit.in_blocks[1](x1)
    s1, s2 = x1.detach().requires_grad_(), (0.5 * x2).detach().requires_grad_()
    h2 = uvit.mid_block(x2)
    h1 = uvit.out_blocks[0](uvit.skip_joins[0](torch.cat([h2, s2], -1)))
    h0 = uvit.out_blocks[1](uvit.skip_joins[1](torch.cat([h1, s1], -1)))
    patches = uvit.patch_out(uvit.norm_out(h0[:, 1:])).reshape(2, 4, 4, 2, 2, 1)
    image = uvit.conv_out(patches.permute(0, 5, 1, 3, 2, 4).reshape(2, 1, 8, 8))
    loss = image.square().mean()
    g1, g2 = torch.autograd.grad(loss, [s1, s2])
    assert report.loss == pytest.approx(loss.item(), rel=1e-5)
    assert report.coefficients == pytest.approx([1.0, 0.5], rel=1e-5)
    assert report.skip_norms == pytest.approx([rms(x1), rms(x2)], rel=1e-5)
    assert report.hidden_norms == pytest.approx([rms(h0), rms(h1)], rel=1e-5)
    assert report.middle_norm == pytest.approx(rms(h2), rel=1e-5)
    assert report.skip_gradients == pytest.approx([g1.norm().item(), g2.norm().item()], rel=1e-4)
    total = torch.autograd.grad(loss_of(uvit)(), list(uvit.parameters()))
    assert report.parameter_gradient == pytest.approx(
        math.sqrt(sum(g.square().sum().item() for g in total)), rel=1e-4
    )
    generator = torch.Generator().manual_seed(4)
    change = 1e-3 * torch.randn(given["sample"].shape, generator=generator)
    moved = denoisers.run(uvit, sample=given["sample"] + change) - denoisers.run(uvit)
    assert report.sensitivity == pytest.approx((moved.norm() / change.norm()).item(), rel=1e-4)
    assert report.measured_growth == pytest.approx([(rms(h) / rms(h2)) ** 2 for h in (h0, h1, h2)], rel=1e-4)
    assert report.predicted_growth == pytest.approx([2.25, 1.25, 1])
    assert report.predicted_sensitivity == pytest.approx(2.5 / 3)
    assert "| 2 | 0.5 |" in report.to_markdown()


@pytest.mark.parametrize("mode", [None, "cs", "ls"])
@pytest.mark.parametrize("kind", denoisers.KINDS)
def test_measuring_leaves_the_model_as_it_was(kind, mode):
    model = denoisers.stock(kind)
    if mode:
        apply_skip_scaling(model, SkipScaling(mode, 0.5))
    model.train()
    model.mid_block.eval()
    before = denoisers.run(model)
    names = set(model.state_dict())
    report = stability_report(model, loss_of(model))
    assert torch.equal(denoisers.run(model), before)
    assert set(model.state_dict()) == names
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert not model.mid_block.training
    hooked = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooked == ([] if mode is None else list(model.up_blocks))
    assert len(report.coefficients) == 4
    if mode is None:
        assert report.coefficients == [1.0] * 4
    elif mode == "cs":
        assert report.coefficients == pytest.approx([1, 0.5, 0.25, 0.125], rel=1e-5)


def test_the_gradient_of_an_unscaled_skip_is_the_skips_alone():
    """Without scaling the up block gets the encoder's own tensor, whose whole gradient is larger."""
    model = denoisers.stock("unconditional")
    plain = stability_report(model, loss_of(model))
    apply_skip_scaling(model, SkipScaling("cs", 1 - 1e-6))  # another tensor, the same values
    scaled = stability_report(model, loss_of(model))
    assert plain.skip_gradients == pytest.approx(scaled.skip_gradients, rel=1e-3)


def test_a_model_without_skips_or_a_loss_without_the_model_is_refused(uvit):
    with pytest.raises(ValueError, match="no long skips to scale"):
        stability_report(torch.nn.Linear(1, 1), lambda: torch.zeros(()))
    with pytest.raises(ValueError, match="did not call the model"):
        stability_report(uvit, lambda: torch.zeros((), requires_grad=True))
    assert not uvit._forward_pre_hooks
    with pytest.raises(ValueError, match="every is 0"):
        StabilityMonitor("folder", 0)


def test_reports_are_read_back_and_plotted(uvit, tmp_path):
    import json
    from dataclasses import asdict

    from PIL import Image

    pytest.importorskip("matplotlib")
    report = stability_report(uvit, loss_of(uvit))
    for step in (0, 100):
        (tmp_path / f"step-{step:07d}.json").write_text(json.dumps(asdict(report)))
    reports = load_reports(tmp_path)
    assert reports == {0: report, 100: report}
    plot_stability(reports, tmp_path / "stability.png")
    with Image.open(tmp_path / "stability.png") as picture:
        assert picture.size == (1100, 770)
    with pytest.raises(ValueError, match="no stability reports"):
        plot_stability({}, tmp_path / "none.png")
    (tmp_path / "step-0000200.json").write_text('{"loss": 1}')
    with pytest.raises(FileFormatError, match="not a stability report"):
        load_reports(tmp_path)
