"""BiPer's wave, layers, conversion and errors: what must hold exactly."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dmkit.auxiliary.compression._norms import recalibrate
from dmkit.auxiliary.compression.biper import (
    ActivationSign,
    BinaryResNet,
    BiPerConv2d,
    BiPerLinear,
    binarize,
    binary_layers,
    laplace_error,
    quantization_error,
    set_stage,
    square_wave,
    wave,
)
from dmkit.auxiliary.compression.biper.training import BinaryClassificationTask, periodic_penalty
from dmkit.data.digits import digit_tensors
from dmkit.training.networks import MLP, ConvNet
from dmkit.training.randomness import Draws
from dmkit.training.trainer import Step


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def convnet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return ConvNet().eval()


def images(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=generator(seed))


# The wave


def test_the_square_wave_and_its_gradient():
    w = torch.tensor([0.0, 0.05, 0.1, -0.2], requires_grad=True)
    found = square_wave(w, 20.0)
    assert found.tolist() == [1.0, 1.0, 1.0, 1.0]  # -0.2 lies in the next half wave
    found.sum().backward()
    torch.testing.assert_close(w.grad, torch.tensor([20.0, 10.8060, -8.3229, -13.0729]), atol=1e-4, rtol=0)
    assert square_wave(torch.tensor(0.16), 20.0) == -1
    torch.testing.assert_close(w.grad, (20 * torch.cos(20 * w)).detach())


def test_it_is_periodic_and_has_no_third_level():
    w = torch.rand(500, generator=generator(), dtype=torch.float64) - 0.5
    b = square_wave(w, 20.0)
    assert torch.equal(square_wave(w + 2 * math.pi / 20, 20.0), b)
    assert torch.equal(square_wave(w + math.pi / 20, 20.0), -b)
    assert set(b.tolist()) == {-1.0, 1.0}
    assert square_wave(torch.zeros(3), 20.0).tolist() == [1.0, 1.0, 1.0]
    assert ActivationSign.apply(torch.tensor([0.0, -0.0])).tolist() == [1.0, 1.0]


def test_small_frequencies_are_plain_signs():
    w = torch.randn(300, generator=generator(), dtype=torch.float64)
    omega = 1e-3  # |w| < π / ω
    assert torch.equal(square_wave(w, omega), w.sign())
    error = (wave(w, omega) / omega - w).abs() / w.abs()
    assert (error <= (omega * w) ** 2 / 6 + 1e-12).all()
    v = w.clone().requires_grad_()
    square_wave(v, None).sum().backward()
    assert torch.equal(square_wave(w, None), w.sign())
    assert torch.equal(v.grad, torch.ones_like(w))  # straight through


def test_the_gradient_of_activations():
    a = torch.tensor([0.0, 0.5, -0.5, 1.0, 2.0, -3.0], requires_grad=True)
    ActivationSign.apply(a).sum().backward()
    assert a.grad.tolist() == [2.0, 1.0, 1.0, 0.0, 0.0, 0.0]


def test_the_gradient_gain_of_the_wave():
    """ω sqrt((1 + e^(-2 (ωσ)²)) / 2) for Gaussian weights: a step in phase grows with ω²."""
    sigma, omega = 0.0589, 20.0
    w = (sigma * torch.randn(400_000, generator=generator(), dtype=torch.float64)).requires_grad_()
    wave(w, omega).sum().backward()
    expected = omega * math.sqrt((1 + math.exp(-2 * (omega * sigma) ** 2)) / 2)
    assert expected == pytest.approx(14.58, abs=0.01)
    assert w.grad.square().mean().sqrt().item() == pytest.approx(expected, rel=3e-3)


def test_half_precision_has_the_signs_of_float32():
    w = torch.rand(4000, generator=generator()) * 4 - 2
    for dtype in (torch.bfloat16, torch.float16):
        half = w.to(dtype)
        assert torch.equal(square_wave(half, 20.0), square_wave(half.float(), 20.0))
    # What happens without the care: the phase is rounded before the sine.
    half = w.bfloat16()
    assert not torch.equal((torch.sin(20 * half) >= 0), (torch.sin(20 * half.float()) >= 0))
    layer = BiPerLinear(nn.Linear(16, 8), 20.0, stage="binary").eval()
    x = torch.randn(3, 16, generator=generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.effective_weight(), layer.binary_weight().float())
        half = layer(x)
    torch.testing.assert_close(half.float(), layer(x), atol=0.02, rtol=0.02)
    layer.bfloat16()
    assert layer(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("omega", [0, -1.0, math.inf, math.nan])
def test_bad_frequencies(omega):
    with pytest.raises(ValueError, match="positive, finite frequency or None"):
        binarize(convnet(), omega)


# Inputs of one sign


def digits(count: int = 64) -> torch.Tensor:
    return digit_tensors(seed=0)[0][:count]


def test_signs_behind_a_relu_are_told_at_once():
    layers = r"features\.2, features\.5, features\.7"
    told = rf"What enters {layers} comes from a ReLU and is never negative.*binarize_input=False"
    with pytest.warns(UserWarning, match=told):
        binarize(convnet())
    nested = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Dropout(), nn.Conv2d(4, 4, 1)),
        nn.Conv2d(4, 4, 1),
        nn.Sequential(nn.Hardtanh(), nn.Conv2d(4, 4, 1)),
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)),
        nn.Conv2d(4, 2, 1),
    )
    with pytest.warns(UserWarning, match=r"What enters 1\.1 comes from a Sigmoid and") as found:
        binarize(nested)
    assert len(found) == 1
    assert found[0].filename == __file__


def test_why_they_are():
    """The output is the same for all pictures: each convolution sees ones, and zeros at the border."""
    model = convnet()
    with pytest.warns(UserWarning, match="never negative"):
        binarize(model, pretrained=True)
    found = model(digits())
    torch.testing.assert_close(found, found[:1].expand_as(found))


@pytest.mark.parametrize("mode", [True, False])
def test_signs_behind_a_relu_are_told_at_the_first_pass(mode):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x):
            return self.d(F.relu(self.c(F.relu(self.b(self.a(x))))))

    torch.manual_seed(0)
    model = Net().train(mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        binarize(model)
    x = torch.randn(20, 8, generator=generator())
    with pytest.warns(
        UserWarning, match=r"The first input of c has one sign only.*binarize_input=False"
    ) as found:
        model(x)
    assert len(found) == 1
    with warnings.catch_warnings():  # and never again: no wait for the device in a step
        warnings.simplefilter("error")
        model(x)
        one = BiPerLinear(nn.Linear(8, 8))
        one(x[:1].abs())  # eight numbers may be positive by chance
        copied = copy.deepcopy(model)
        copied(x)


@pytest.mark.parametrize("stage", ["real", "binary"])
def test_outputs_differ_between_images(stage):
    """With nothing but weights binary behind ReLU; and with both where activations have both signs."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = convnet()
        binarize(model, binarize_input=False, pretrained=True)
        torch.manual_seed(0)
        models = [model, BinaryResNet().eval()]
        for one in models:
            set_stage(one, stage, rescale=True)
            found = one(digits())
            assert found.unique(dim=0).shape == found.shape
            assert (found.std(0) > 1e-3 * found.abs().mean()).all()


# The layers


@pytest.mark.parametrize("stage", ["real", "binary"])
def test_what_a_layer_computes(stage):
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
    weight, bias = plain.weight.detach().clone(), plain.bias.detach().clone()
    layer = BiPerConv2d(plain, 20.0, stage=stage, generator=generator())
    assert layer.weight is plain.weight  # an optimiser that knows it still does
    assert torch.equal(layer.scale, torch.rand(6, generator=generator()))
    x = torch.randn(2, 4, 8, 8, generator=generator(1))
    sine = torch.sin(20 * weight)
    w = sine if stage == "real" else torch.where(sine >= 0, 1.0, -1.0)
    signs = torch.where(x >= 0, 1.0, -1.0)
    expected = F.conv2d(signs, w, None, (2, 1), (1, 2), (1, 2), 2) * layer.scale.view(-1, 1, 1)
    torch.testing.assert_close(layer(x), expected + bias.view(-1, 1, 1))
    linear = BiPerLinear(nn.Linear(5, 3, bias=False), 20.0, stage=stage)
    y = torch.randn(2, 7, 5, generator=generator(2))
    sine = torch.sin(20 * linear.weight)
    w = sine if stage == "real" else torch.where(sine >= 0, 1.0, -1.0)
    torch.testing.assert_close(linear(y), (torch.where(y >= 0, 1.0, -1.0) @ w.T) * linear.scale)


def test_evaluation_knows_no_scale_and_training_divides_by_it():
    layer = BiPerConv2d(nn.Conv2d(2, 3, 3), 20.0)
    x = torch.randn(3, 2, 6, 6, generator=generator())
    layer.eval()
    assert torch.equal(layer(7.3 * x), layer(x))
    layer.train()
    assert torch.equal(layer(7.3 * x), layer(x))  # a sign is a sign
    # The gradient's window |a| < 1 is in units of each sample's deviation.
    scales = torch.tensor([1.0, 30.0, 5.0]).view(3, 1, 1, 1)
    gradients = []
    for factor in (torch.ones(3, 1, 1, 1), scales):
        z = (factor * x).requires_grad_()
        layer(z).square().sum().backward()
        gradients.append(z.grad * factor)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-3)
    layer.eval()
    z = (30 * x).requires_grad_()
    layer(z).sum().backward()
    assert (z.grad == 0).float().mean() > 0.9


def test_real_inputs_are_left_alone():
    layer = BiPerConv2d(nn.Conv2d(2, 3, 3, bias=False), 20.0, binarize_input=False).train()
    x = torch.randn(3, 2, 6, 6, generator=generator())
    torch.testing.assert_close(layer(2 * x), 2 * layer(x))


def test_padding_may_have_two_levels_only():
    x = torch.randn(1, 2, 5, 5, generator=generator())
    plain = nn.Conv2d(2, 3, 3, padding=1, bias=False)
    zero, one = (
        BiPerConv2d(copy.deepcopy(plain), 20.0, stage="binary", pad_value=p, generator=generator())
        for p in (0, 1)
    )
    signs = torch.where(x >= 0, 1.0, -1.0)
    expected = F.conv2d(F.pad(signs, (1, 1, 1, 1), value=1.0), one.binary_weight().float())
    torch.testing.assert_close(one(x), expected * one.scale.view(-1, 1, 1))
    torch.testing.assert_close(zero(x)[..., 1:-1, 1:-1], one(x)[..., 1:-1, 1:-1])
    same = BiPerConv2d(nn.Conv2d(2, 3, (3, 2), padding="same"), 20.0)
    assert same(x).shape == (1, 3, 5, 5)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (lambda: nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), {}, "not 'reflect'"),
        (lambda: nn.Conv2d(1, 1, 3), {"pad_value": 2}, "pad_value is 0 or 1, not 2"),
        (lambda: nn.Linear(2, 2), {"stage": "bimary"}, "Did you mean 'binary'"),
    ],
)
def test_what_a_layer_refuses(make, settings, message):
    kind = BiPerConv2d if isinstance(make(), nn.Conv2d) else BiPerLinear
    with pytest.raises(ValueError) as error:
        kind(make(), **settings)
    assert message in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_weights_that_cannot_be_binary(value):
    model = convnet()
    nn.init.constant_(model.features[5].weight, value)
    before = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=r"features\.5: Weights that are NaN, infinite or all zero"):
        binarize(model, pretrained=True)
    assert [type(m) for m in model.modules()] == before


# Conversion


def test_first_and_last_stay_real():
    model = convnet()
    weights = {"binarize_input": False}
    assert binarize(model, **weights) == ["features.2", "features.5", "features.7"]
    assert type(model.features[0]) is nn.Conv2d
    assert type(model.head) is nn.Linear
    everything = ["features.0", "features.2", "features.5", "features.7", "head"]
    assert binarize(convnet(), skip=(), **weights) == everything
    named = ("features.0", "head", "features.7")
    assert binarize(convnet(), skip=named, **weights) == ["features.2", "features.5"]
    assert binarize(convnet(), layers=r"features\.[05]", **weights) == ["features.5"]
    assert binarize(convnet(), layers=["head", "features.0"], **weights) == ["head", "features.0"]
    assert binarize(MLP((4, 5, 6, 3)), **weights) == ["layers.2"]
    assert set(binary_layers(model)) == {"features.2", "features.5", "features.7"}
    model(images()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_order_is_that_of_calls():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.middle, self.first = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(3, 4)

        def forward(self, x):
            return self.last(self.middle(self.first(x)))

    torch.manual_seed(0)
    assert binarize(Backwards(), inputs=torch.zeros(1, 3)) == ["middle"]


def test_nothing_to_binarize():
    with pytest.raises(ValueError, match="has no Conv2d or Linear; skipped: none"):
        binarize(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match=r"it has layers\.0, layers\.2; skipped: layers\.0, layers\.2"):
        binarize(MLP((4, 5, 3)))
    with pytest.raises(ValueError, match=r"Unknown layer 'feature\.2'. Did you mean 'features\.2'"):
        binarize(convnet(), layers=["feature.2"])
    with pytest.raises(ValueError, match=r"layers: '\(' is no regular expression"):
        binarize(convnet(), layers="(")
    with pytest.raises(ValueError, match="has no binary layer; `binarize` makes some"):
        set_stage(convnet(), "binary")
    model = convnet()
    binarize(model, binarize_input=False)
    with pytest.raises(ValueError, match="Unknown stage 'bin'"):
        set_stage(model, "bin")


@pytest.mark.parametrize("omega", [20.0, 3.0, None])
def test_pretrained_weights_are_kept(omega):
    model = convnet()
    before = copy.deepcopy(model)
    names = binarize(model, omega, binarize_input=False, pretrained=True)
    torch.testing.assert_close(model(images()), before(images()), atol=1e-6, rtol=1e-5)
    for name in names:
        layer = model.get_submodule(name)
        real = layer.effective_weight() * layer.scale.view(-1, 1, 1, 1)
        torch.testing.assert_close(real, before.get_submodule(name).weight, atol=1e-6, rtol=1e-4)
        assert torch.equal(layer.binary_weight().float(), torch.where(real >= 0, 1.0, -1.0))


def test_stages_and_the_best_scale():
    model = convnet()
    binarize(model, binarize_input=False, generator=generator())
    layer = model.features[2]
    real, scale = layer.effective_weight(), layer.scale.detach().clone()
    set_stage(model, "binary")
    assert set(layer.effective_weight().unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(layer.scale, scale)  # as in the paper
    set_stage(model, "real")
    assert torch.equal(layer.effective_weight(), real)
    set_stage(model, "binary", rescale=True)
    signs = layer.effective_weight().flatten(1)
    best = (real.flatten(1) * signs).mean(1)  # least squares: <s, b> / <b, b>
    torch.testing.assert_close(layer.scale, scale * best)
    set_stage(model, "binary", rescale=True)  # nothing more
    torch.testing.assert_close(layer.scale, scale * best)


def test_a_unet_takes_it():
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 8), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
    )  # fmt: skip
    x, t = images(2), torch.tensor([3, 500])
    before = unet.eval()(x, t).sample
    names = binarize(unet, layers=["mid_block"], binarize_input=False, pretrained=True)
    assert names
    assert all(name.startswith("mid_block.") for name in names)
    torch.testing.assert_close(unet(x, t).sample, before, atol=1e-5, rtol=1e-4)
    set_stage(unet, "binary", rescale=True)
    after = unet(x, t).sample
    assert after.isfinite().all()
    assert not torch.allclose(after, before, atol=1e-3)


# Errors


def test_errors_of_laplace_weights():
    uniform = torch.rand(1_000_000, generator=generator(), dtype=torch.float64) - 0.5
    w = -uniform.sign() * torch.log1p(-2 * uniform.abs())  # Laplace of scale 1
    table = {  # z: unit, best, relative
        0.05: (0.9052, 0.0025, 0.497),
        0.1: (0.8212, 0.0094, 0.490),
        0.25: (0.6294, 0.0446, 0.446),
        0.5: (0.4470, 0.0888, 0.355),
        1.0: (0.3097, 0.1028, 0.257),
        2.0: (0.2507, 0.0986, 0.209),
        5.0: (0.2308, 0.0955, 0.193),
        math.inf: (0.22676, 0.09472, 0.1894),
    }
    for z, expected in table.items():
        exact = laplace_error(z)
        assert list(exact.values()) == pytest.approx(expected, abs=6e-4)
        if z in (0.1, 1.0, 5.0):
            sampled = quantization_error(w, z)
            for name, value in exact.items():
                assert sampled[name] == pytest.approx(value, abs=2e-3)
            assert sampled["l1"] == pytest.approx(1 - wave(w, z).abs().mean().item(), abs=1e-6)
    assert laplace_error(math.inf)["unit"] == pytest.approx(1.5 - 4 / math.pi)
    assert laplace_error(math.inf)["relative"] == pytest.approx(1 - 8 / math.pi**2)
    # Unit and relative errors fall; the best absolute one has its peak at z = 0.955.
    assert max((k / 1000 for k in range(500, 1500)), key=lambda z: laplace_error(z)["best"]) == 0.955
    assert quantization_error(w, None)["relative"] == pytest.approx(0.5, abs=2e-3)


def test_errors_need_weights():
    for value in (0.0, math.nan):
        with pytest.raises(ValueError, match="no relative error"):
            quantization_error(torch.full((3,), value), 20.0)
    with pytest.raises(ValueError, match="z is positive, not 0"):
        laplace_error(0)


# The task


def test_the_penalty_and_its_gradient():
    torch.manual_seed(0)
    model = BinaryResNet()
    found = periodic_penalty(model, 0.037)
    layers = binary_layers(model).values()
    cosines = sum((0.5 - 0.5 * torch.cos(40 * layer.weight)).mean() for layer in layers)
    torch.testing.assert_close(found, 0.037 * cosines, atol=1e-6, rtol=1e-5)
    found.backward()
    for layer in layers:
        expected = 0.037 * 20 * torch.sin(40 * layer.weight.detach()) / layer.weight.numel()
        torch.testing.assert_close(layer.weight.grad, expected, atol=1e-9, rtol=1e-4)


def test_the_task_adds_it_and_decays_matrices_only():
    torch.manual_seed(0)
    model = BinaryResNet()
    batch = {"inputs": images(), "labels": torch.zeros(4, dtype=torch.long)}
    step = Step(0, "main", Draws(0, 0, rank=0, world=1))
    task = BinaryClassificationTask(model, tau=0.5)
    assert task.settings() == {"tau": 0.5}
    assert task.training_step(batch, step).keys() == {"loss", "periodic"}
    assert BinaryClassificationTask(model).training_step(batch, step).keys() == {"loss"}
    decayed, free = task.parameter_groups(list(model.parameters()))
    assert "weight_decay" not in decayed
    assert free["weight_decay"] == 0.0
    assert len(decayed["params"]) == 5  # stem, three convolutions, head
    assert any(p is model.blocks[0].conv.scale for p in free["params"])


def test_statistics_for_the_signs():
    torch.manual_seed(0)
    model = BinaryResNet().eval()
    x = images(64)
    set_stage(model, "binary")
    recalibrate(model, [x])
    model.train()
    expected = model(x)
    model.eval()
    # BatchNorm divides by the biased variance in training and keeps the unbiased one.
    torch.testing.assert_close(model(x), expected, atol=0.1, rtol=0.1)
