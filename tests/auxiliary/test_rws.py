"""Robust weight signatures: what must hold exactly, files, batch norms, and the training."""

import json
import math
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from dmkit.auxiliary.compression._bits import pack, packed_size, unpack
from dmkit.auxiliary.compression._norms import recalibrate
from dmkit.auxiliary.compression._order import execution_order
from dmkit.auxiliary.compression.rws import RobustWeightSignature, evaluate_corruptions, patch
from dmkit.auxiliary.compression.rws.layers import select
from dmkit.auxiliary.compression.rws.quantizing import quantize
from dmkit.auxiliary.compression.rws.training import Arguments, FineTuning, fit, run
from dmkit.data.corruptions import Corruption
from dmkit.errors import FileFormatError
from dmkit.training.arguments import TrainingArguments
from dmkit.training.networks import ConvNet
from dmkit.training.randomness import Draws
from dmkit.training.trainer import Step


def networks(make=ConvNet, count: int = 4, step: float = 0.02) -> list[nn.Module]:
    """θ_0, and others that lie `step` away from it."""
    torch.manual_seed(0)
    base = make()
    others = []
    for _ in range(count - 1):
        other = make()
        with torch.no_grad():
            for mine, start in zip(other.parameters(), base.parameters(), strict=True):
                mine.copy_(start + step * torch.randn_like(start))
            for mine, start in zip(other.buffers(), base.buffers(), strict=True):
                mine.copy_(start + torch.rand(start.shape) if start.is_floating_point() else start)
        others.append(other.eval())
    return [base.eval(), *others]


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Normed(nn.Module):
    """With batch norms, the second of which is registered before the first."""

    def __init__(self, classes: int = 3):
        super().__init__()
        self.norm_two = nn.BatchNorm2d(6)
        self.two = nn.Conv2d(4, 6, 3, padding=1)
        self.one = nn.Conv2d(1, 4, 3, padding=1)
        self.norm_one = nn.BatchNorm2d(4)
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        x = self.norm_one(self.one(x)).relu()
        return self.head(self.norm_two(self.two(x)).relu().mean((2, 3)))


IMAGE = torch.zeros(1, 1, 8, 8)


# Extraction


def test_a_signature_is_orthogonal_to_the_clean_change():
    base, standard, robust, _ = networks()
    found = RobustWeightSignature.extract(base, standard, robust, "conv:3")
    zero, s, c = state(base), state(standard), state(robust)
    assert list(found.tensors) == [f"features.{k}.{what}" for k in (0, 2, 5) for what in ("weight", "bias")]
    for name in found.tensors:
        a, d = (s[name] - zero[name]).double(), (c[name] - zero[name]).double()
        value = found.tensor(name).double()
        assert abs((value * a).sum()) <= 1e-6 * value.norm() * a.norm()
        expected = d - a * ((a * d).sum() / (a * a).sum())
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)


def test_its_ends():
    base, standard, _, _ = networks()
    nothing = RobustWeightSignature.extract(base, standard, standard, "conv:2")
    assert max(nothing.tensor(name).abs().max() for name in nothing.tensors) < 1e-6
    assert nothing.cosine(nothing) < 1e-3 or nothing.norm() < 1e-5
    # d orthogonal to a is left as it is.
    zero, s = state(base), state(standard)
    name = "features.0.weight"
    a = s[name] - zero[name]
    d = torch.randn_like(a)
    d -= a * (a * d).sum() / (a * a).sum()
    found = RobustWeightSignature.extract(base, standard, {**s, name: zero[name] + 0.1 * d}, [name])
    torch.testing.assert_close(found.tensor(name), 0.1 * d, atol=1e-6, rtol=1e-5)


def test_a_frozen_layer_has_no_clean_direction():
    base, standard, robust, _ = networks()
    name = "features.0.weight"
    zero, c = state(base), state(robust)
    with torch.no_grad():
        standard.get_parameter(name).copy_(zero[name])
    found = RobustWeightSignature.extract(base, standard, robust, [name])
    assert torch.equal(found.tensor(name), c[name] - zero[name])


def test_half_precision_is_subtracted_in_float32():
    base, standard, robust, _ = (model.half() for model in networks())
    found = RobustWeightSignature.extract(base, standard, robust, "conv:1", project=False)
    name = "features.0.weight"
    assert torch.equal(found.tensor(name), state(robust)[name].float() - state(standard)[name].float())
    before = state(standard)
    with patch(standard, found):
        assert torch.equal(state(standard)[name], state(robust)[name])
    assert same(standard, before)


def test_unrelated_networks_are_noticed():
    base, standard, _, _ = networks()
    torch.manual_seed(9)
    with pytest.warns(UserWarning, match=r"robust weights have cosine -?0\.\d\d to the base's"):
        RobustWeightSignature.extract(base, standard, ConvNet(), "conv:3")


def test_what_does_not_fit_is_listed():
    base, standard, robust, _ = networks()
    broken = state(robust)
    del broken["features.0.weight"]
    broken["features.2.bias"] = torch.zeros(5)
    broken["features.2.weight"] = torch.full_like(broken["features.2.weight"], math.nan)
    with pytest.raises(ValueError, match="no common signature") as error:
        RobustWeightSignature.extract(base, standard, broken, "conv:2")
    for part in ("features.0.weight is missing in robust", "features.2.bias is (5,) in robust", "NaN"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="bn is 'keep' or 'signature', not 'mean'"):
        RobustWeightSignature.extract(base, standard, robust, bn="mean")


# Which layers


def test_layers_are_counted_as_they_are_called():
    model = Normed()
    assert execution_order(model, IMAGE) == ["one", "norm_one", "two", "norm_two", "head"]
    assert select(model, "conv:1") == ["two.weight", "two.bias"]
    assert select(model, "conv:1", inputs=IMAGE) == ["one.weight", "one.bias"]
    assert select(model, r"norm_\w+\.weight") == ["norm_two.weight", "norm_one.weight"]
    assert select(model, ["one", "two.bias", "one.bias"]) == ["one.weight", "one.bias", "two.bias"]
    assert model.training  # modes come back


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("conv:3", "conv:3 of a network with 2 convolutions"),
        ("conv:0", "conv:0 of a network with 2"),
        ("nothing", "selects no parameter of this Normed"),
        ("(", "layers: '(' is no regular expression"),
        (["tow"], "Unknown layer or parameter 'tow'. Did you mean 'two"),
        (["head"], "selects head.weight, head.bias of the head"),
        ([], "selects no parameter"),
    ],
)
def test_bad_layers(layers, message):
    with pytest.raises(ValueError) as error:
        select(Normed(), layers)
    assert message in str(error.value)
    assert select(Normed(), ["head"], head=True) == ["head.weight", "head.bias"]


# Patching


def test_the_weight_is_linear_and_removal_exact():
    base, standard, robust, _ = networks()
    found = RobustWeightSignature.extract(base, standard, robust, "conv:3", corruption="fog")
    before = state(standard)
    handle = patch(standard, found, {"fog": 0.0})
    assert same(standard, before)
    states = {}
    for weight in (0.5, 1.0, -0.5, 0.0):
        handle.set_weight("fog", weight)
        states[weight] = state(standard)
    assert same(standard, before)  # at 0 it is the clean network to the bit
    for name in found.tensors:  # the released code's square would put 0.5 at a quarter of the way
        torch.testing.assert_close(states[0.5][name], (before[name] + states[1.0][name]) / 2)
        torch.testing.assert_close(states[-0.5][name], 1.5 * before[name] - 0.5 * states[1.0][name])
    assert handle.weights == {"fog": 0.0}
    handle.set_weight("fog", 1.0)
    outside = [name for name in before if name not in found.tensors]
    assert outside
    assert all(torch.equal(state(standard)[name], before[name]) for name in outside)
    handle.remove()
    handle.remove()
    assert same(standard, before)
    with pytest.raises(ValueError, match="has been removed"):
        handle.set_weight("fog", 1.0)


def test_subtracting_would_not_be_exact():
    """Why a patch keeps the clean tensors."""
    base, standard, robust, _ = networks()
    found = RobustWeightSignature.extract(base, standard, robust, "conv:1")
    clean, added = state(standard)["features.0.weight"], found.tensor("features.0.weight")
    assert not torch.equal(clean + added - added, clean)


def test_signatures_compose_in_any_order():
    base, standard, one, two = networks()
    a, b = (RobustWeightSignature.extract(base, standard, m, "conv:3") for m in (one, two))
    before = state(standard)
    with patch(standard, {"a": a, "b": b}) as both:  # alpha / C each
        assert both.weights == {"a": 0.5, "b": 0.5}
        together = state(standard)
    with patch(standard, {"b": b, "a": a}):
        swapped = state(standard)
    for name in a.tensors:
        torch.testing.assert_close(together[name], swapped[name], atol=1e-6, rtol=1e-6)
        expected = before[name] + 0.5 * a.tensor(name) + 0.5 * b.tensor(name)
        torch.testing.assert_close(together[name], expected, atol=1e-6, rtol=1e-6)
    # One patch on top of another adds up, and comes off first.
    first = patch(standard, a, alpha=0.5)
    with pytest.warns(UserWarning, match="other weights than this network's"):
        second = patch(standard, b, alpha=0.5)
    for name in a.tensors:
        torch.testing.assert_close(state(standard)[name], together[name], atol=1e-6, rtol=1e-6)
    for act in (first.remove, lambda: first.set_weight("signature", 2.0)):
        with pytest.raises(ValueError, match="on top of this one"):
            act()
    second.remove()
    first.remove()
    assert same(standard, before)


def test_all_of_the_plain_difference_is_the_robust_network():
    base, standard, robust, _ = networks()
    found = RobustWeightSignature.extract(base, standard, robust, ".*", project=False, head=True)
    assert found.metadata.projected is False
    assert set(found.tensors) == set(state(robust))
    with patch(standard, found):
        for name, value in state(robust).items():
            torch.testing.assert_close(state(standard)[name], value, atol=1e-7, rtol=1e-6)


def test_other_heads_share_a_signature():
    base, standard, robust, _ = networks()
    found = RobustWeightSignature.extract(base, standard, robust, "conv:4")
    other = ConvNet(classes=3)
    with pytest.warns(UserWarning, match="measure what it does here"), patch(other, found) as handle:
        assert handle.relative_step() > 0
    with pytest.raises(ValueError, match="other weights than this network's"):
        patch(other, found, strict=True)


def test_what_a_patch_refuses():
    base, standard, robust, _ = networks()
    found = RobustWeightSignature.extract(base, standard, robust, "conv:1")
    before = state(standard)
    with pytest.raises(ValueError, match="no signature to patch with"):
        patch(standard, {})
    with pytest.raises(ValueError, match=r"features\.0\.weight is missing; features\.0\.bias is missing"):
        patch(nn.Linear(2, 2), found)
    with pytest.raises(ValueError, match=r"features.0.weight is \(24, 3, 3, 3\), not \(24, 1, 3, 3\)"):
        patch(ConvNet(in_channels=3), found)
    with pytest.raises(ValueError, match="of another architecture"):
        patch(ConvNet(blocks=((24, 24), (48,))), found)
    for weights, message in (
        ({"fog": 1.0}, "Unknown signature 'fog'"),
        ({"signature": math.nan}, "finite number, not nan"),
    ):
        with pytest.raises(ValueError, match=message):
            patch(standard, found, weights)
    with pytest.raises(ValueError, match="Unknown bn 'mean'"):
        patch(standard, found, bn="mean")
    with pytest.raises(ValueError, match="extracted with it"):
        patch(standard, found, bn="signature")
    with pytest.raises(ValueError, match="needs batches"):
        patch(standard, found, bn="recalibrate")
    with pytest.warns(UserWarning, match="times as large as the weights"):
        patch(standard, found, alpha=100.0).remove()
    assert same(standard, before)


def test_any_module_takes_a_signature():
    from diffusers import UNet2DModel

    def make():
        return UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4,
            block_out_channels=(8, 8), down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        )  # fmt: skip

    base, standard, robust, _ = networks(make)
    inputs = {"sample": torch.randn(1, 1, 8, 8), "timestep": 3}
    found = RobustWeightSignature.extract(base, standard, robust, "conv:2", inputs=inputs)
    assert next(iter(found.tensors)) == "conv_in.weight"
    assert all(name.startswith(("conv_in", "down_blocks.0.resnets.0.conv1")) for name in found.tensors)
    before = standard(**inputs).sample
    with patch(standard, found):
        assert not torch.equal(standard(**inputs).sample, before)
    assert torch.equal(standard(**inputs).sample, before)


# Batch norms


def test_batch_norms_must_be_decided():
    base, standard, robust, _ = networks(Normed)
    found = RobustWeightSignature.extract(base, standard, robust, "conv:2")
    with pytest.warns(UserWarning, match="bn='recalibrate' recomputes them"):
        patch(standard, found).remove()
    before = state(standard)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with patch(standard, found, bn="keep"):
            assert torch.equal(state(standard)["norm_one.running_mean"], before["norm_one.running_mean"])


def test_recalibration_is_the_average_over_batches():
    base, standard, robust, _ = networks(Normed)
    found = RobustWeightSignature.extract(base, standard, robust, "conv:2")
    before = state(standard)
    batches = [torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8)]
    handle = patch(standard, found, bn="recalibrate", batches=iter(batches))
    seen = [standard.one(batch) for batch in batches]
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(standard.norm_one.running_mean, mean)
    torch.testing.assert_close(standard.norm_one.running_var, variance)
    assert standard.norm_one.momentum == 0.1
    assert not standard.training
    handle.set_weight("signature", 0.5)  # blended by the weight
    half = torch.stack([standard.one(batch).mean((0, 2, 3)) for batch in batches]).mean(0)
    blended = 0.5 * half + 0.5 * before["norm_one.running_mean"]
    torch.testing.assert_close(standard.norm_one.running_mean, blended)
    handle.set_weight("signature", 0.0)
    assert same(standard, before)
    handle.remove()
    assert same(standard, before)  # the counter of batches too
    with pytest.raises(ValueError, match="at least one batch"):
        recalibrate(standard, [])


def test_signatures_may_carry_batch_norms():
    base, standard, robust, _ = networks(Normed)
    found = RobustWeightSignature.extract(base, standard, robust, "conv:1", inputs=IMAGE, bn="signature")
    keys = ("weight", "bias", "running_mean", "running_var")
    assert set(found.metadata.norms) == {f"norm_{k}.{key}" for k in ("one", "two") for key in keys}
    before, wanted = state(standard), state(robust)
    with patch(standard, found, bn="signature"):
        for name in found.metadata.norms:
            torch.testing.assert_close(state(standard)[name], wanted[name])
    with pytest.warns(UserWarning, match="times as large"):
        handle = patch(standard, found, bn="signature", alpha=-50.0)
    assert state(standard)["norm_one.running_var"].min() == 0
    handle.remove()
    assert same(standard, before)
    with patch(standard, found, bn="keep"):
        assert torch.equal(state(standard)["norm_one.running_var"], before["norm_one.running_var"])
    assert same(standard, before)


# Levels


@pytest.mark.parametrize("bits", [1, 3, 4, 8, 13])
def test_bits_come_back(bits):
    codes = torch.randint(2**bits, (7, 5), generator=torch.Generator().manual_seed(bits))
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == packed_size(35, bits) == math.ceil(35 * bits / 8)
    assert torch.equal(unpack(packed, bits, 35).view(7, 5), codes)


@pytest.mark.parametrize("levels", [2, 5, 16, 256])
def test_the_error_of_linear_levels(levels):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    codes = quantize(x, levels)
    back = codes.dequantize()
    assert (back - x).abs().max() <= (x.max() - x.min()) / (2 * (levels - 1)) * (1 + 1e-5)
    assert len(back.unique()) <= levels
    assert back.min() == x.min()
    assert back.max() == x.max()
    assert codes.nbytes == math.ceil(1000 * math.ceil(math.log2(levels)) / 8) + 8


def test_constants_and_zeros_survive():
    for value in (0.0, 3.5):
        assert torch.equal(quantize(torch.full((3, 4), value), 4).dequantize(), torch.full((3, 4), value))
    x = torch.tensor([0.0, 1.0, -4.0, 0.25, -0.0])
    back = quantize(x, 16, "log").dequantize()
    assert torch.equal(back == 0, x == 0)
    assert torch.equal(back.sign(), x.sign())
    # Half a step of the exponents: from 2^-2 to 2^2 in 7 levels.
    assert (back[1:4].abs().log2() - x[1:4].abs().log2()).abs().max() <= 4 / 6 / 2 + 1e-6
    assert torch.equal(quantize(torch.zeros(3), 3, "log").dequantize(), torch.zeros(3))


@pytest.mark.parametrize(
    ("levels", "scheme", "message"),
    [
        (1, "linear", "from 2 to 65536, not 1"),
        (2, "log", "from 3 to 65536, not 2"),
        (4.0, "linear", "not 4.0"),
        (16, "tahn", "Unknown scheme 'tahn'"),
    ],
)
def test_bad_levels(levels, scheme, message):
    with pytest.raises(ValueError, match=message):
        quantize(torch.zeros(2), levels, scheme)


def test_scale_norm_and_cosine():
    base, standard, one, two = networks()
    a, b = (RobustWeightSignature.extract(base, standard, m, "conv:2") for m in (one, two))
    flat = [torch.cat([s.tensor(name).flatten() for name in s.tensors]) for s in (a, b)]
    assert a.norm() == pytest.approx(float(flat[0].norm()), rel=1e-5)
    assert a.cosine(b) == pytest.approx(float(torch.cosine_similarity(*flat, dim=0)), abs=1e-5)
    assert a.scale(-2).cosine(a) == pytest.approx(-1)
    coarse = a.quantize(4)
    assert torch.equal(coarse.scale(2).tensor("features.0.bias"), 2 * coarse.tensor("features.0.bias"))
    with pytest.raises(ValueError, match="quantised already"):
        coarse.quantize(4)
    with pytest.raises(ValueError, match="finite number, not inf"):
        a.scale(math.inf)
    with pytest.raises(ValueError, match=r"do not compare: features\.2"):
        a.cosine(RobustWeightSignature.extract(base, standard, one, "conv:1"))


# Files


@pytest.mark.parametrize("how", [None, (16, "linear"), (5, "linear"), (256, "log")])
def test_files_come_back(how, tmp_path):
    base, standard, robust, _ = networks()
    found = RobustWeightSignature.extract(
        base, standard, robust, ["features.0", "features.2"], corruption="fog", severity=3
    )
    found = (found.quantize(*how) if how else found).scale(0.3)
    found.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["signature.safetensors"]
    again = RobustWeightSignature.from_pretrained(tmp_path)
    assert again.metadata == found.metadata
    assert (again.metadata.corruption, again.metadata.severity) == ("fog", 3)
    assert again.strength == 0.3
    assert again.nbytes == found.nbytes
    assert again.tensors.keys() == found.tensors.keys()
    assert all(torch.equal(again.tensor(name), found.tensor(name)) for name in found.tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patch(standard, again, strict=True).remove()
    patch(standard, RobustWeightSignature.from_pretrained(tmp_path / "signature.safetensors")).remove()


def test_the_measured_size_of_a_file(tmp_path):
    base, standard, robust, _ = networks()
    found = RobustWeightSignature.extract(base, standard, robust, "conv:4")
    numbers = sum(value.numel() for value in found.tensors.values())
    sizes = {}
    for levels in (0, 256, 16, 2):
        (found.quantize(levels) if levels else found).save_pretrained(tmp_path / str(levels))
        sizes[levels] = (tmp_path / str(levels) / "signature.safetensors").stat().st_size
    assert numbers == 36648
    for levels, bits in {0: 32, 256: 8, 16: 4, 2: 1}.items():
        # Beyond the codes there is the header: names, shapes, bounds.
        assert 0 < sizes[levels] - numbers * bits / 8 < 3000
    assert sizes[0] / sizes[16] > 7


def test_damaged_and_foreign_files(tmp_path):
    base, standard, robust, _ = networks()
    found = RobustWeightSignature.extract(base, standard, robust, "conv:1").quantize(16)
    found.save_pretrained(tmp_path)
    path = tmp_path / "signature.safetensors"
    whole = path.read_bytes()
    for content in (whole[:-10], whole[:4], b"", b"not a file of tensors"):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match="missing, truncated or not a safetensors"):
            RobustWeightSignature.from_pretrained(tmp_path)
    with pytest.raises(FileFormatError, match="missing, truncated"):
        RobustWeightSignature.from_pretrained(tmp_path / "nowhere")
    path.write_bytes(whole)
    values = load_file(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["dmkit_rws"])

    def rewritten(tensors=values, **changes):
        save_file(tensors, path, metadata={"dmkit_rws": json.dumps({**header, **changes})})

    save_file(values, path)
    with pytest.raises(FileFormatError, match="its header lacks dmkit_rws"):
        RobustWeightSignature.from_pretrained(tmp_path)
    rewritten(format=2)
    with pytest.raises(FileFormatError, match="format 2 of signatures; this version reads 1"):
        RobustWeightSignature.from_pretrained(tmp_path)
    name = "features.0.weight"
    damaged = [
        {"strength": None},
        {"strength": math.inf},
        {"codes": {}},
        {"codes": {**header["codes"], name: {**header["codes"][name], "levels": 256}}},
        {"codes": {**header["codes"], name: {**header["codes"][name], "low": math.nan}}},
        {"codes": {**header["codes"], name: {**header["codes"][name], "more": 1}}},
    ]
    for changes in damaged:
        rewritten(**changes)
        with pytest.raises(FileFormatError, match="unreadable header or tensor"):
            RobustWeightSignature.from_pretrained(tmp_path)
    rewritten({**values, name: values[name].float()})
    with pytest.raises(FileFormatError, match="should hold 108 bytes of codes"):
        RobustWeightSignature.from_pretrained(tmp_path)


# Measuring and training


def test_evaluation_is_seeded_and_needs_a_corruption():
    model = networks()[0]
    images, labels = torch.rand(40, 1, 8, 8), torch.randint(10, (40,))
    rules = [Corruption("gaussian_noise"), Corruption("contrast", 3)]
    found = evaluate_corruptions(model, images, labels, rules)
    assert found == evaluate_corruptions(model, images, labels, rules)
    assert list(found) == ["clean", "gaussian_noise", "contrast", "mean"]
    assert found["mean"] == pytest.approx((found["gaussian_noise"] + found["contrast"]) / 2)
    same_name = evaluate_corruptions(model, images, labels, {"none": lambda x, g: x})
    assert same_name["none"] == same_name["clean"]
    with pytest.raises(ValueError, match="no corruption to evaluate"):
        evaluate_corruptions(model, images, labels, [])


def test_corruptions_of_a_step():
    """The same at every repetition, others in each step and each process."""
    task = FineTuning(ConvNet(), rule=Corruption("gaussian_noise"))
    images = torch.full((3, 1, 8, 8), 0.5)
    seen = [
        task._corrupted(images, Draws(0, step, rank=rank, world=2))
        for step, rank in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[3])
    assert FineTuning(ConvNet())._corrupted(images, Draws(0, 0, rank=0, world=1)) is images


def test_the_proximal_term_pulls_to_the_start():
    model = ConvNet()
    task = FineTuning(model, proximal=0.5)
    batch = {"inputs": torch.rand(2, 1, 8, 8), "labels": torch.zeros(2, dtype=torch.long)}
    step = Step(0, "main", Draws(0, 0, rank=0, world=1))
    assert task.training_step(batch, step)["proximal"] == 0
    with torch.no_grad():
        model.head.bias += 2.0
    loss = task.training_step(batch, step)["proximal"]
    assert loss.item() == pytest.approx(0.25 * 10 * 4)
    loss.backward()
    torch.testing.assert_close(model.head.bias.grad, torch.full((10,), 1.0))
    assert "proximal" not in FineTuning(model).training_step(batch, step)
    with pytest.raises(ValueError, match="proximal is -1"):
        FineTuning(model, proximal=-1)


@pytest.mark.parametrize("rule", [Corruption("gaussian_noise"), Corruption("elastic_transform", 3)])
def test_a_fine_tuning_goes_on_under_the_same_draws_from_the_same_start(rule, tmp_path):
    """Corruptions are those of the step, and the pull is to θ_0, not to where the checkpoint was."""
    torch.manual_seed(0)
    start, images, labels = ConvNet(), torch.rand(20, 1, 8, 8), torch.arange(20) % 10
    before = state(start)

    def ended(folder, rule=rule, **changes):
        training = TrainingArguments(
            output_dir=str(tmp_path / folder), train_batch_size=8, learning_rate=0.05, lr_warmup_steps=0,
            lr_scheduler="constant", optimizer="sgd", sgd_momentum=0.9, save_images_epochs=0,
            save_model_epochs=0, report_to="none",
            **{"max_train_steps": 5, "checkpointing_steps": 0, **changes},
        )  # fmt: skip
        return state(fit(start, images, labels, training, rule=rule, proximal=0.5))

    whole = ended("whole")
    ended("parts", max_train_steps=3, checkpointing_steps=3)
    resumed = ended("parts", resume_from_checkpoint="latest")
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
    assert any(not torch.equal(value, whole[name]) for name, value in ended("clean", rule=None).items())
    assert same(start, before)
    ended("other", max_train_steps=3, checkpointing_steps=3)
    with pytest.raises(ValueError, match=r"rule was .*now None"):
        ended("other", rule=None, resume_from_checkpoint="latest")


def test_run_saves_what_it_measures(tmp_path):
    arguments = Arguments(
        dataset="digits", resolution=8, images=100, test_images=50, layers="conv:2", levels=16,
        corruptions=["contrast", "gaussian_noise:3"], standard_epochs=1, robust_epochs=1,
    )  # fmt: skip
    training = TrainingArguments(
        output_dir=str(tmp_path), train_batch_size=50, num_epochs=3, learning_rate=0.05, lr_warmup_steps=0,
        optimizer="sgd", sgd_momentum=0.9, checkpointing_steps=4, save_images_epochs=0, save_model_epochs=0,
        report_to="none", resume_from_checkpoint="latest",
    )  # fmt: skip
    figures = run(arguments, training)
    assert list(figures) == ["base", "standard", "float32", "contrast", "gaussian_noise", "all"]
    assert figures["contrast"].keys() == {"robust", "patched", "bytes"}
    file = tmp_path / "signature-contrast" / "signature.safetensors"
    assert figures["contrast"]["bytes"] == file.stat().st_size
    found = RobustWeightSignature.from_pretrained(tmp_path / "signature-gaussian_noise")
    assert (found.metadata.corruption, found.metadata.severity) == ("gaussian_noise", 3)
    # A run that is started again passes over what is done, and finds the same.
    before = file.read_bytes()
    assert run(arguments, training) == figures
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corruptions": []}, "takes different corruptions"),
        ({"corruptions": ["fog", "fog:3"]}, "takes different corruptions"),
        ({"corruptions": ["fog:x"]}, "takes NAME or NAME:SEVERITY, not 'fog:x'"),
        ({"corruptions": ["fogg"]}, "Did you mean 'fog'"),
        ({"corruptions": ["fog:6"]}, "severity is 1 to 5, not 6"),
        ({"levels": 1}, "levels of linear"),
        ({"robust_epochs": 0}, "--robust_epochs is 0"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        Arguments(**changes)
