"""Inputs of layers as subspaces, and the rule that keeps weights out of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dmkit.training.rules import SubspaceProjection
from dmkit.training.subspaces import (
    InputSpan,
    energy_rank,
    gradient_matrix,
    input_rows,
    matrix,
    observing,
    parts,
)


@pytest.mark.parametrize(("share", "rank"), [(0.9, 1), (0.99, 2), (0.999, 3), (1.0, 4)])
def test_the_rank_reaches_the_share(share, rank):
    assert energy_rank(torch.tensor([0.9, 0.09, 0.009, 0.001], dtype=torch.float64), 1.0, share) == rank


def test_rounding_is_no_direction():
    assert energy_rank(torch.tensor([1.0, 1e-20]).double(), 1.0, 1.0) == 1
    assert energy_rank(torch.zeros(3), 0.0, 0.9) == 0


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"padding": 1},
        {"stride": 2, "padding": (0, 2)},
        {"dilation": 2},
        {"padding": "same", "dilation": 2},
        {"padding": 2, "padding_mode": "reflect"},
    ],
)
def test_a_convolution_is_its_matrix_on_its_patches(settings, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, bias=bias, **settings)
    x = torch.randn(2, 3, 7, 6)
    out = conv(x)
    rows = input_rows(conv, x) @ matrix(conv).T
    torch.testing.assert_close(rows, out.permute(0, 2, 3, 1).reshape(-1, 4), atol=1e-5, rtol=1e-5)


def test_gradients_lie_in_the_span_of_the_inputs():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3, padding=1).double()
    x = torch.randn(1, 2, 2, 2).double()  # 4 patches of 19 numbers
    span = InputSpan()
    span.add(input_rows(conv, x))
    conv(x).pow(2).sum().backward()
    basis, _ = span.outside(torch.zeros(19, 0).double())
    gradient = gradient_matrix(conv)
    assert basis.shape == (19, 4)
    torch.testing.assert_close(gradient @ basis @ basis.T, gradient)


def test_many_rows_are_remembered_as_few():
    torch.manual_seed(0)
    rows = torch.randn(500, 6) @ torch.randn(6, 6)
    span = InputSpan()
    for part in rows.split(37):
        span.add(part)
    assert span.total() == pytest.approx(float(rows.double().square().sum()), rel=1e-12)
    basis = torch.linalg.qr(torch.randn(6, 2)).Q
    torch.testing.assert_close(
        span.energies(basis), (rows @ basis).square().sum(0).double(), rtol=1e-5, atol=0
    )
    directions, energies = span.outside(basis)
    rest = rows - rows @ basis @ basis.T
    torch.testing.assert_close(energies.sqrt(), torch.linalg.svdvals(rest.double())[:4], rtol=1e-5, atol=0)
    assert (directions.T @ basis.double()).abs().max() < 1e-12


def test_matrix_and_parts_are_inverse():
    for layer in (nn.Linear(3, 4), nn.Conv2d(2, 4, 3), nn.Linear(3, 4, bias=False)):
        weight, bias = parts(layer, matrix(layer))
        assert torch.equal(weight, layer.weight)
        assert bias is None if layer.bias is None else torch.equal(bias, layer.bias)


def test_every_call_of_a_layer_is_observed_and_hooks_are_gone():
    layer = nn.Linear(2, 2)
    with observing({"a": layer, "b": nn.Linear(2, 2)}) as spans:
        layer(torch.eye(2))
        layer(torch.ones(3, 5, 2))
    assert set(spans) == {"a"}
    assert spans["a"].total() == pytest.approx(2 + 2 + 15 * 3)  # with the constant input of the bias
    assert not layer._forward_pre_hooks


def test_refusals():
    grouped, up = nn.Conv2d(4, 4, 3, groups=2), nn.ConvTranspose2d(2, 2, 3)
    with pytest.raises(ValueError, match="conv is a convolution in 2 groups"):
        SubspaceProjection({"conv": grouped}, {"conv": torch.zeros(19, 0)})
    with pytest.raises(TypeError, match="up is a ConvTranspose2d"):
        SubspaceProjection({"up": up}, {"up": torch.zeros(19, 0)})
    with pytest.raises(ValueError, match=r"The basis of lin is \(3, 1\), its inputs have 4"):
        SubspaceProjection({"lin": nn.Linear(3, 2)}, {"lin": torch.zeros(3, 1)})


def test_the_applied_step_is_projected():
    """The optimiser moves where no gradient points: by decay."""
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    basis = torch.linalg.qr(torch.randn(6, 2)).Q
    rule = SubspaceProjection({"lin": layer}, {"lin": basis})
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.5)
    before = matrix(layer).detach().clone()
    for _ in range(5):
        F.mse_loss(layer(torch.randn(8, 5)), torch.randn(8, 3)).backward()
        with rule.stepping(list(layer.parameters())):
            optimizer.step()
    change = matrix(layer).detach() - before
    assert (change @ basis).abs().max() < 1e-6
    assert change.abs().max() > 0.1
