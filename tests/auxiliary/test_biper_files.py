"""BiPer's files, packed bits, networks and training."""

import copy
import json
import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from dmkit.auxiliary.compression.biper import (
    BinaryResNet,
    PackedConv2d,
    PackedLinear,
    binarize,
    binary_layers,
    export_packed,
    load_binary,
    load_packed,
    save_binary,
    set_stage,
)
from dmkit.auxiliary.compression.biper.packing import pack_rows, unpack_rows, xnor_dot
from dmkit.auxiliary.compression.biper.training import Arguments, fit, run
from dmkit.errors import FileFormatError
from dmkit.training.arguments import TrainingArguments
from dmkit.training.networks import ConvNet


def network(seed: int = 0) -> nn.Module:
    """Strides, padding, dilation, a bias, rows that do not fill their last byte."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.Conv2d(5, 7, (3, 2), stride=(2, 1), padding=(1, 2)),
        nn.Hardtanh(),
        nn.Conv2d(7, 6, 3, padding="same", dilation=2, bias=False),
        nn.Flatten(),
        nn.Linear(6 * 4 * 11, 9),
        nn.Linear(9, 3),
    ).eval()


def binary(omega: float | None = 20.0, stage: str = "binary", **settings) -> nn.Module:
    model = network()
    assert binarize(model, omega, stage=stage, **settings) == ["2", "4", "6"]
    return model


def images(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def training(folder, **changes) -> TrainingArguments:
    values = {
        "output_dir": str(folder),
        "train_batch_size": 20,
        "num_epochs": 1,
        "learning_rate": 0.05,
        "lr_warmup_steps": 0,
        "optimizer": "sgd",
        "sgd_momentum": 0.9,
        "max_grad_norm": 0,
        "checkpointing_steps": 0,
        "save_images_epochs": 0,
        "save_model_epochs": 0,
        "report_to": "none",
    }
    return TrainingArguments(**{**values, **changes})


# Latent weights


@pytest.mark.parametrize("omega", [20.0, 7.3, None])
@pytest.mark.parametrize("stage", ["real", "binary"])
def test_latent_weights_come_back(omega, stage, tmp_path):
    model = binary(omega, stage, pad_value=1)
    save_binary(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["biper.safetensors"]
    for fresh in (network(1), binary(omega, pad_value=1)):
        layers = load_binary(fresh, tmp_path)
        assert set(layers) == {"2", "4", "6"}
        assert {(layer.omega, layer.stage) for layer in layers.values()} == {(omega, stage)}
        assert layers["2"].pad_value == 1
        assert torch.equal(fresh.eval()(images()), model(images()))


def test_the_frequency_is_never_guessed(tmp_path):
    model = binary(20.0)
    save_binary(model, tmp_path)
    with pytest.raises(FileFormatError, match=r"2 was trained with omega 20\.0, not 30"):
        load_binary(network(), tmp_path, omega=30.0)
    with pytest.raises(FileFormatError, match=r"weights are of omega 20\.0; omega 30\.0 would read other"):
        load_binary(binary(30.0), tmp_path)
    with pytest.raises(RuntimeError, match=r"weights are of omega 20\.0; omega None"):
        binary(None).load_state_dict(model.state_dict())
    # Halved layers, and halved files, are still of the frequency that they were.
    odd = binary(20.3)
    odd.load_state_dict({name: value.half() for name, value in odd.state_dict().items()})
    odd.half()
    odd.load_state_dict(odd.state_dict())
    # Why: other signs.
    other = binary(30.0)
    signs = [m.get_submodule("2").binary_weight() for m in (model, other)]
    assert torch.equal(model.get_submodule("2").weight, other.get_submodule("2").weight)
    assert (signs[0] != signs[1]).any()


def test_damaged_and_foreign_files(tmp_path):
    model = binary()
    save_binary(model, tmp_path)
    export_packed(model, tmp_path)
    for name, load in (("biper", load_binary), ("packed", load_packed)):
        path = tmp_path / f"{name}.safetensors"
        whole = path.read_bytes()
        for content in (whole[:-10], whole[:5], b"", b"no tensors"):
            path.write_bytes(content)
            with pytest.raises(FileFormatError, match="missing, truncated or not a safetensors"):
                load(network(), tmp_path)
        with pytest.raises(FileFormatError, match="missing, truncated"):
            load(network(), tmp_path / "nowhere")
        path.write_bytes(whole)
        values = load_file(path)
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["dmkit_biper"])

        def rewritten(text, tensors=values, path=path):
            save_file(tensors, path, metadata={"dmkit_biper": text})

        save_file(values, path)
        with pytest.raises(FileFormatError, match="its header lacks dmkit_biper"):
            load(network(), tmp_path)
        rewritten("{")
        with pytest.raises(FileFormatError, match="unreadable header"):
            load(network(), tmp_path)
        rewritten(json.dumps({**header, "format": 2}))
        with pytest.raises(FileFormatError, match="format 2; this version reads 1"):
            load(network(), tmp_path)
        rewritten(json.dumps({**header, "layers": {"2": {}}}))
        with pytest.raises(FileFormatError, match="does not fit"):
            load(network(), tmp_path)
        rewritten(json.dumps({**header, "layers": {"9": header["layers"]["2"]}}))
        with pytest.raises(FileFormatError, match="does not fit"):
            load(network(), tmp_path)
        rewritten(json.dumps(header), {k: v for k, v in values.items() if k != "0.weight"})
        with pytest.raises(FileFormatError, match=r"0\.weight is missing"):
            load(network(), tmp_path)
        path.write_bytes(whole)
        with pytest.raises(FileFormatError, match="does not fit"):
            load(ConvNet(), tmp_path)


# Packed bits


def test_rows_of_bits_come_back():
    signs = torch.randn(3, 5, 19, generator=torch.Generator().manual_seed(0)).sign()
    bits = pack_rows(signs)
    assert bits.shape == (3, 5, 3)
    assert bits.dtype == torch.uint8
    assert torch.equal(unpack_rows(bits, 19), signs)


def test_counting_bits_is_the_product_of_signs():
    generator = torch.Generator().manual_seed(0)
    for count in (1, 8, 19, 144):
        x, w = (torch.randn(n, count, generator=generator).sign() for n in (6, 4))
        everywhere = pack_rows(torch.ones(1, count))
        assert torch.equal(xnor_dot(pack_rows(x), pack_rows(w), everywhere), x @ w.T)
        inside = (torch.rand(6, count, generator=generator) > 0.3).float()
        assert torch.equal(xnor_dot(pack_rows(x), pack_rows(w), pack_rows(inside)), (x * inside) @ w.T)


@pytest.mark.parametrize("arithmetic", ["float", "bits"])
@pytest.mark.parametrize("pad_value", [0, 1])
def test_a_packed_network_gives_the_same_numbers(arithmetic, pad_value, tmp_path):
    model = binary(pad_value=pad_value)
    model[1].running_mean.normal_()
    export_packed(model, tmp_path)
    for fresh in (network(1).train(), binary(30.0)):
        packed = load_packed(fresh, tmp_path, arithmetic=arithmetic)
        assert not packed.training
        assert (type(packed[2]), type(packed[6])) == (PackedConv2d, PackedLinear)
        found = packed(images())
        assert torch.equal(found, model(images()))
        assert found.unique(dim=0).shape == found.shape  # each image has an output of its own
        assert all(
            torch.equal(packed[k].binary_weight(), model[k].binary_weight().float()) for k in (2, 4, 6)
        )
        assert not [name for name, _ in packed[2].named_parameters()]
    # Half precision too: sums of signs are whole numbers.
    a, b = model.bfloat16()(images().bfloat16()), packed.bfloat16()(images().bfloat16())
    torch.testing.assert_close(a, b)


def test_weights_alone_may_be_binary(tmp_path):
    model = binary(binarize_input=False)
    export_packed(model, tmp_path)
    assert torch.equal(load_packed(network(1), tmp_path)(images()), model(images()))
    with pytest.raises(ValueError, match="needs inputs that are binary too"):
        load_packed(network(1), tmp_path, arithmetic="bits")
    with pytest.raises(ValueError, match=r"Unknown arithmetic 'bit'\. Did you mean 'bits'"):
        load_packed(network(1), tmp_path, arithmetic="bit")


def test_groups_are_simulated_only(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 2))
    plain = copy.deepcopy(model)
    binarize(model.eval(), stage="binary")
    export_packed(model, tmp_path)
    assert torch.equal(load_packed(copy.deepcopy(plain), tmp_path)(images()), model(images()))
    with pytest.raises(ValueError, match="one group, not 2"):
        load_packed(plain, tmp_path, arithmetic="bits")


def test_the_measured_size(tmp_path):
    model = BinaryResNet(widths=(16, 32, 64), depth=2, stage="binary")
    size = export_packed(model, tmp_path)
    assert size == (tmp_path / "packed.safetensors").stat().st_size
    layers = binary_layers(model)
    weights = sum(layer.weight.numel() for layer in layers.values())
    channels = sum(len(layer.scale) for layer in layers.values())
    inside = {f"{name}.{key}" for name in layers for key in ("weight", "scale", "saved_omega")}
    others = sum(v.numel() * v.element_size() for k, v in model.state_dict().items() if k not in inside)
    header = int.from_bytes((tmp_path / "packed.safetensors").read_bytes()[:8], "little") + 8
    assert size == weights // 8 + 4 * channels + others + header
    assert not [key for key in load_file(tmp_path / "packed.safetensors") if "omega" in key]


def test_real_weights_cannot_be_packed(tmp_path):
    model = binary(stage="real")
    with pytest.raises(ValueError, match="in stage 'real': 2, 4, 6"):
        export_packed(model, tmp_path)
    with pytest.raises(ValueError, match="no binary layer"):
        export_packed(network(), tmp_path)
    assert not list(tmp_path.iterdir())


# The network


def test_the_network_and_its_config(tmp_path):
    torch.manual_seed(0)
    model = BinaryResNet(in_channels=3, widths=(4, 8), depth=2, classes=5).eval()
    x = torch.randn(2, 3, 9, 9)
    assert model(x).shape == (2, 5)
    assert len(binary_layers(model)) == 4
    set_stage(model, "binary")
    model.save_pretrained(tmp_path)
    again = BinaryResNet.from_pretrained(tmp_path).eval()
    assert again.config.stage == "binary"
    assert torch.equal(again(x), model(x))
    with pytest.raises(FileFormatError, match=r"blocks\.0\.conv: These weights are of omega 20"):
        BinaryResNet.from_pretrained(tmp_path, omega=30.0)
    plain = BinaryResNet(binary=False)
    plain.save_pretrained(tmp_path / "plain")
    assert not BinaryResNet.from_pretrained(tmp_path / "plain").config.binary
    # The first block, by hand.
    block, h = model.blocks[0], model.stem_norm(model.stem(x))
    assert torch.equal(block(h), F.hardtanh(block.norm(block.conv(h)) + h))
    down = model.blocks[2]
    short = F.pad(F.avg_pool2d(model.blocks[1](block(h)), 2, ceil_mode=True), (0, 0, 0, 0, 0, 4))
    h = model.blocks[1](block(h))
    assert torch.equal(down(h), F.hardtanh(down.norm(down.conv(h)) + short))


def converted() -> nn.Module:
    model = ConvNet()
    binarize(model, binarize_input=False)  # behind ReLU
    return model


@pytest.mark.parametrize("make", [BinaryResNet, converted])
def test_networks_train_in_the_trainer(make, tmp_path):
    torch.manual_seed(0)
    model = make()
    x, y = images(60), torch.randint(10, (60,), generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = fit(model, x, y, training(tmp_path), tau=0.037)
    found = trained(x)
    assert found.unique(dim=0).shape == found.shape
    for name, value in trained.state_dict().items():
        changed = not torch.equal(value, before[name])
        assert changed == ("saved_omega" not in name), name


def test_run_and_its_continuation(tmp_path):
    arguments = Arguments(
        dataset="digits", resolution=8, images=100, test_images=50, widths=[4], depth=2, second_epochs=1
    )
    figures = run(arguments, training(tmp_path, checkpointing_steps=3, resume_from_checkpoint="latest"))
    keys = ("stage 1", "binarised", "stage 2", "relative error 1", "relative error 2", "bytes", "float32")
    assert set(figures) == set(keys)
    assert all(math.isfinite(value) for value in figures.values())
    assert figures["bytes"] == (tmp_path / "packed" / "packed.safetensors").stat().st_size
    stored = BinaryResNet.from_pretrained(tmp_path / "stage-2" / "model")
    assert stored.config.stage == "binary"
    assert BinaryResNet.from_pretrained(tmp_path / "stage-1" / "model").config.stage == "real"
    again = run(arguments, training(tmp_path, checkpointing_steps=3, resume_from_checkpoint="latest"))
    assert again == figures
    with pytest.raises(FileFormatError, match=r"tau was 0\.037, now 0\.1"):
        run(
            Arguments(**{**vars(arguments), "tau": 0.1}),
            training(tmp_path, checkpointing_steps=3, resume_from_checkpoint="latest"),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"omega": 0.0}, "positive, finite frequency"),
        ({"tau": -1.0}, "--tau is -1.0"),
        ({"second_epochs": 0}, "--second_epochs is 0"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        Arguments(**changes)


TWO = """
import sys, torch
from dmkit.auxiliary.compression.biper import BinaryResNet
from dmkit.auxiliary.compression.biper.training import fit
from dmkit.training.arguments import TrainingArguments

torch.manual_seed(0)
x = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
y = torch.randint(10, (40,), generator=torch.Generator().manual_seed(1))
# Without batch norms' statistics, which each process has of its own half.
model = BinaryResNet(widths=(4,), depth=2)
for name, module in list(model.named_modules()):
    if "norm" in name:
        model.set_submodule(name, torch.nn.Identity())
arguments = TrainingArguments(
    output_dir=sys.argv[1], train_batch_size=int(sys.argv[2]), max_train_steps=3, learning_rate=0.05,
    lr_warmup_steps=0, optimizer="sgd", checkpointing_steps=0, save_images_epochs=0, save_model_epochs=0,
    report_to="none",
)
fit(model, x, y, arguments, tau=0.1)
"""


def test_two_processes_train_the_same_network(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", str(tmp_path / "1"), "20"])
    exec(compile(TWO, "script", "exec"), {})
    script = tmp_path / "two.py"
    script.write_text(TWO, encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(script), str(tmp_path / "2"), "10"],
        check=True, env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
    )  # fmt: skip
    one, two = (
        load_file(tmp_path / str(n) / "model" / "diffusion_pytorch_model.safetensors") for n in (1, 2)
    )
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4)
