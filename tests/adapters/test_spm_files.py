"""SPM files in both layouts, and what is no SPM file."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import random_spm, tiny_pixart_transformer, tiny_unet

from dmkit import shipped
from dmkit.adapters import SPMMetadata, SPMWeights, read_spm, save_spm
from dmkit.adapters.spm.files import parse
from dmkit.adapters.spm.layers import adapter_names, adapter_parameters, enable, lora_layers
from dmkit.adapters.spm.weights import fingerprint, flat, from_model, into_model, resolve
from dmkit.errors import FileFormatError

TARGETS = st.lists(st.text(min_size=1).filter(str.strip), max_size=3).map(tuple)


def same(one, other):
    """The same tensors in the same layers, to the bit."""
    return {flat(name) for name in one.layers} == {flat(name) for name in other.layers} and all(
        torch.equal(a, b) and a.dtype == b.dtype
        for name, layer in one.layers.items()
        for a, b in zip(layer, {flat(n): x for n, x in other.layers.items()}[flat(name)], strict=True)
    )


def header_of(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.fixture
def official(unet, tmp_path):
    """A file as the released code writes it."""
    tensors = {}
    for name, (down, up, alpha) in random_spm(unet).layers.items():
        key = "lora_unet_" + name.replace(".", "_")
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": alpha}
    header = {"prompts": "snoopy, charlie brown", "rank": "1", "alpha": "1.0"}
    path = tmp_path / "snoopy_last.safetensors"
    save_file(tensors, path, header)
    return path


def test_an_official_file_comes_back_as_it_was(official, unet, tmp_path):
    weights = read_spm(official)
    assert weights.metadata == SPMMetadata(targets=("snoopy", "charlie brown"))
    for again in (weights, resolve(weights, unet)):
        save_spm(again, tmp_path / "again.safetensors")
        before, after = load_file(official), load_file(tmp_path / "again.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        header = header_of(tmp_path / "again.safetensors")
        assert header_of(official).items() <= header.items()
        assert json.loads(header["dmkit_spm"])["targets"] == ["snoopy", "charlie brown"]


@pytest.mark.parametrize("format", ["kohya", "peft"])
@pytest.mark.parametrize("make", [tiny_unet, tiny_pixart_transformer])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_round_trip(tmp_path, format, make, dtype):
    model = make()
    spm = random_spm(model, targets=("a, b", "c"), surrogate="d", eta=1.5, anchoring=10.0, iterations=7)
    spm = replace(spm, layers={n: type(x)(*(t.to(dtype) for t in x)) for n, x in spm.layers.items()})
    save_spm(spm, tmp_path / "new" / "spm.safetensors", format)
    again = read_spm(tmp_path / "new" / "spm.safetensors")
    assert again.metadata == spm.metadata
    assert same(again, spm)
    assert set(resolve(again, model).layers) == set(spm.layers)
    assert resolve(again, model).component == spm.component
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["spm.safetensors"]


@settings(max_examples=20, deadline=None)
@given(targets=TARGETS, surrogate=st.text(), rank=st.integers(1, 3), alpha=st.floats(0.125, 8, width=16))
def test_metadata_and_strength_survive_both_layouts(tmp_path_factory, targets, surrogate, rank, alpha):
    model = tiny_pixart_transformer()
    spm = random_spm(model, targets=targets, surrogate=surrogate, rank=rank, alpha=alpha)
    folder = tmp_path_factory.mktemp("spm")
    for format in ("kohya", "peft"):
        save_spm(spm, folder / "spm.safetensors", format)
        again = resolve(read_spm(folder / "spm.safetensors"), model)
        assert again.metadata == spm.metadata
        for name, layer in spm.layers.items():
            other = again.layers[name]
            assert torch.allclose(other.up * other.scale, layer.up * layer.scale, rtol=1e-6)


def test_into_a_model_and_out_again(unet, predict):
    plain, spm = predict(unet), random_spm(unet, rank=2, alpha=1.5)
    state = torch.get_rng_state()
    into_model(unet, "spm", spm)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(p.requires_grad for p in adapter_parameters(unet, "spm").values())
    assert not torch.equal(predict(unet), plain)
    out = from_model(unet, "spm", spm.metadata)
    assert same(out, spm)
    assert out.metadata == replace(spm.metadata, architecture=fingerprint(unet))
    enable(unet, {"spm": 0.0})
    assert torch.equal(predict(unet), plain)


def test_layers_may_differ_in_alpha_and_be_few(unet, predict):
    spm = random_spm(unet)
    layers = dict(list(spm.layers.items())[:3])
    layers = {n: x._replace(alpha=torch.tensor(float(i + 1))) for i, (n, x) in enumerate(layers.items())}
    into_model(unet, "spm", replace(spm, layers=layers))
    assert same(from_model(unet, "spm", spm.metadata), replace(spm, layers=layers))
    assert [layer.scaling["spm"] for layer in lora_layers(unet).values()] == [1.0, 2.0, 3.0]


def test_diffusers_loads_both_layouts(pipe, predict, spm_file):
    unet = pipe.unet
    into_model(unet, "ours", random_spm(unet, rank=2, alpha=0.5))
    ours = predict(unet)
    unet.unload_lora()
    for format in ("kohya", "peft"):
        pipe.load_lora_weights(str(spm_file(unet, rank=2, alpha=0.5, format=format)), adapter_name="plain")
        assert torch.allclose(predict(unet), ours, atol=1e-5)
        pipe.unload_lora_weights()


def test_reads_what_diffusers_writes(pipe, tmp_path):
    spm = random_spm(pipe.unet, rank=2, alpha=0.5)
    into_model(pipe.unet, "spm", spm)
    pipe.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(pipe.unet, adapter_name="spm"),
        unet_lora_adapter_metadata=pipe.unet.peft_config["spm"].to_dict(),
    )
    again = read_spm(tmp_path / "pytorch_lora_weights.safetensors")
    assert same(again, spm)
    assert again.metadata.targets == ()


def test_what_ships_is_small_and_says_what_it_erases():
    folders = sorted(Path(shipped.path("adapters")).glob("*/"))
    assert folders
    for folder in folders:
        assert {"README.md", "concept.png", "others.png", "figures.json"} <= {
            p.name for p in folder.iterdir()
        }
        (file,) = folder.glob("*.safetensors")
        assert file.stat().st_size < 200_000
        weights = read_spm(file)
        assert weights.rank == 1
        assert weights.metadata.targets
        assert weights.metadata.base_model == "emoji"


# What is refused


def broken(unet, change):
    """The tensors of a good file, changed."""
    tensors = {}
    for name, (down, up, alpha) in random_spm(unet).layers.items():
        key = "lora_unet_" + flat(name)
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": alpha}
    change(tensors)
    return tensors


FIRST = "lora_unet_down_blocks_1_attentions_0_proj_in"
BAD = {
    "nan": (lambda t: t[f"{FIRST}.lora_up.weight"][3].fill_(float("nan")), "lora_up.weight holds NaN"),
    "inf": (lambda t: t[f"{FIRST}.alpha"].fill_(float("inf")), f"{FIRST}.alpha holds NaN or inf"),
    "integers": (lambda t: t.update({f"{FIRST}.alpha": torch.tensor(1)}), "alpha is of type torch.int64"),
    "one byte": (
        lambda t: t.update({f"{FIRST}.alpha": torch.tensor(1.0).to(torch.float8_e4m3fn)}),
        "alpha is of type torch.float8_e4m3fn, not floating point of 16 bits",
    ),
    "negative alpha": (lambda t: t[f"{FIRST}.alpha"].fill_(-1.0), "should be one positive number"),
    "half a layer": (lambda t: t.pop(f"{FIRST}.lora_up.weight"), f"lacks {FIRST}.lora_up.weight"),
    "text encoder": (
        lambda t: t.update({"lora_te_text_model_q.lora_up.weight": torch.ones(2, 1)}),
        "also adapts a text encoder",
    ),
    "unknown key": (lambda t: t.update({f"{FIRST}.dora_scale": torch.ones(1)}), "unknown key .*dora_scale"),
    "no SPM": (lambda t: (t.clear(), t.update({"conv.weight": torch.ones(1)})), "unknown key 'conv.weight'"),
    "nothing": (lambda t: t.clear(), "holds no adapter"),
    "ranks": (
        lambda t: t.update(
            {
                f"{FIRST}.lora_down.weight": torch.ones(2, 16, 1, 1),
                f"{FIRST}.lora_up.weight": torch.ones(16, 2, 1, 1),
            }
        ),
        f"has rank 2 in {FIRST[10:]} but 1 in",
    ),
    "shapes": (lambda t: t.update({f"{FIRST}.lora_up.weight": torch.ones(16, 3, 1, 1)}), "does not fit"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_tensors(unet, tmp_path, case):
    change, message = BAD[case]
    save_file(broken(unet, change), tmp_path / "bad.safetensors")
    with pytest.raises(FileFormatError, match=message):
        read_spm(tmp_path / "bad.safetensors")


def test_truncated_files(official):
    content = official.read_bytes()
    for size in (0, 4, 100, len(content) // 2, len(content) - 1):
        official.write_bytes(content[:size])
        with pytest.raises(FileFormatError, match="truncated or not a safetensors file"):
            read_spm(official)


def test_missing_files(tmp_path):
    with pytest.raises(FileFormatError, match="is a folder; name the"):
        read_spm(tmp_path)
    with pytest.raises(FileFormatError, match="missing"):
        read_spm(tmp_path / "no.safetensors")


@pytest.mark.parametrize("ending", [".pt", ".bin", ".ckpt", ".PT"])
def test_pickles_by_name(tmp_path, ending):
    with pytest.raises(FileFormatError, match="pickled file, which can run code"):
        read_spm(tmp_path / f"spm{ending}")


def test_pickles_by_content(tmp_path):
    path = tmp_path / "spm.safetensors"
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(FileFormatError, match="pickled file, whatever its name"):
        read_spm(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(FileFormatError, match="pickled file, whatever its name"):
        read_spm(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"dmkit_spm": "{"}, "unreadable dmkit_spm"),
        ({"dmkit_spm": "[]"}, "unreadable dmkit_spm"),
        ({"dmkit_spm": '{"format": 99, "targets": []}'}, "has format 99 .* reads 1"),
        ({"dmkit_spm": '{"format": 1}'}, "unreadable dmkit_spm"),
        ({"dmkit_spm": '{"format": 1, "targets": "heart"}'}, "targets should be a list"),
        ({"dmkit_spm": '{"format": 1, "targets": [""]}'}, "A target is empty"),
        ({"dmkit_spm": "[" * 100_000}, "unreadable dmkit_spm"),
        ({"dmkit_spm": '{"format": 1, "targets": [], "eta": "1"}'}, "eta should be a number, not '1'"),
        ({"dmkit_spm": '{"format": 1, "targets": [], "seed": true}'}, "seed should be a number, not True"),
        ({"dmkit_spm": '{"format": 1, "targets": [], "base_model": []}'}, "base_model should be a text"),
        ({"lora_adapter_metadata": "[" * 100_000}, "unreadable lora_adapter_metadata"),
        ({"lora_adapter_metadata": "?"}, "unreadable lora_adapter_metadata"),
        ({"lora_adapter_metadata": '{"unet.lora_alpha": 1, "unet.use_dora": true}'}, "has use_dora"),
    ],
)
def test_bad_headers(official, header, message):
    with pytest.raises(FileFormatError, match=message):
        parse(load_file(official), header)


def test_foreign_architectures_and_shapes(unet, predict):
    before = predict(unet)
    wider = tiny_unet(block_out_channels=(8, 32))
    with pytest.raises(
        FileFormatError, match=r"unet\.down_blocks\.1.*proj_in.lora_A.weight has shape \(1, 32"
    ):
        into_model(unet, "spm", random_spm(wider))
    deeper = tiny_unet(layers_per_block=2)
    with pytest.raises(
        FileFormatError, match=r"attentions\.1.*belongs to no layer of this UNet2DConditionModel"
    ):
        into_model(unet, "spm", random_spm(deeper, base_model="other"))
    with pytest.raises(FileFormatError, match=r"transformer\.transformer_blocks\.0.*another architecture"):
        into_model(unet, "spm", random_spm(tiny_pixart_transformer()))
    assert not adapter_names(unet)
    assert torch.equal(predict(unet), before)


def test_weights_beyond_the_models_type(unet):
    spm = random_spm(unet)
    next(iter(spm.layers.values())).up[0] = 1e5
    with pytest.raises(
        FileFormatError, match=r"lora_B.weight holds values that are infinite in torch.float16"
    ):
        into_model(unet.half(), "spm", spm)
    assert not adapter_names(unet)
    into_model(unet.bfloat16(), "spm", spm)


def test_bad_ways_to_write(unet, tmp_path, official):
    spm = random_spm(unet)
    with pytest.raises(ValueError, match=r"Unknown format 'koya'\. Did you mean 'kohya'"):
        save_spm(spm, tmp_path / "x.safetensors", "koya")
    with pytest.raises(ValueError, match=r"should end in \.safetensors"):
        save_spm(spm, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="resolve the weights with a model first"):
        save_spm(read_spm(official), tmp_path / "x.safetensors", "peft")
    doubled = SPMWeights({"a.b": next(iter(spm.layers.values())), "a_b": next(iter(spm.layers.values()))})
    with pytest.raises(ValueError, match="Two layers would have the key lora_unet_a_b"):
        save_spm(doubled, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == [official]


def test_targets_are_strings_with_something_in_them():
    with pytest.raises(TypeError, match="sequence of strings, not 'cat'"):
        SPMMetadata(targets="cat")
    with pytest.raises(ValueError, match="A target is empty"):
        SPMMetadata(targets=("cat", " "))
