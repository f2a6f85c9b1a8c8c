"""Merging SPMs into one of higher rank."""

from dataclasses import replace

import pytest
import torch
from small_models import random_spm, tiny_unet

from dmkit.adapters import merge_spms, read_spm, save_spm
from dmkit.adapters.spm.layers import enable, remove
from dmkit.adapters.spm.weights import into_model


def test_the_merged_adapter_is_the_stack(unet, predict, tmp_path):
    spms = [
        random_spm(unet, seed=1, targets=("cat",)),
        random_spm(unet, seed=2, rank=2, alpha=3.0, targets=("dog", "cat")),
        random_spm(unet, seed=3, targets=("cow",)),
    ]
    # One of them adapts a few layers only.
    spms[2] = replace(spms[2], layers=dict(list(spms[2].layers.items())[5:9]))
    factors = [1.0, 0.5, -2.0]
    for i, spm in enumerate(spms):
        into_model(unet, f"spm{i}", spm)
    enable(unet, {f"spm{i}": factor for i, factor in enumerate(factors)})
    stacked = predict(unet)
    for i in range(3):
        remove(unet, f"spm{i}")
    merged = merge_spms(spms, factors)
    assert merged.rank == 4
    assert merged.metadata.targets == ("cat", "dog", "cow")
    for format in ("kohya", "peft"):
        save_spm(merged, tmp_path / "merged.safetensors", format)
        into_model(unet, format, read_spm(tmp_path / "merged.safetensors"))
        enable(unet, {format: 1.0})
        assert torch.allclose(predict(unet), stacked, atol=1e-4)


def test_merging_files_needs_no_model(unet, tmp_path):
    spm = random_spm(unet)
    save_spm(spm, tmp_path / "a.safetensors")
    merged = merge_spms([read_spm(tmp_path / "a.safetensors"), spm])
    assert set(merged.layers) == set(spm.layers)


def test_one_alone_stays_what_it_is(unet):
    spm = random_spm(unet)
    for name, layer in merge_spms([spm]).layers.items():
        assert torch.equal(layer.down, spm.layers[name].down)
        assert torch.equal(layer.up, spm.layers[name].up)


def test_errors(unet):
    spm = random_spm(unet)
    with pytest.raises(ValueError, match="1 SPMs and 2 weights"):
        merge_spms([spm], [1.0, 2.0])
    with pytest.raises(ValueError, match="0 SPMs"):
        merge_spms([])
    with pytest.raises(ValueError, match=r"maps 16 to 16 features in one SPM and 32 to 32 .* architectures"):
        merge_spms([spm, random_spm(tiny_unet(block_out_channels=(8, 32)))])


def test_merging_refuses_what_it_could_not_stand_for(unet):
    one, other = (random_spm(unet, seed=seed, targets=(name,)) for seed, name in ((1, "cat"), (2, "dog")))
    with pytest.raises(ValueError, match="should be finite"):
        merge_spms([one, other], [float("nan"), 1.0])
    with pytest.raises(ValueError, match=r"too large: .* overflows"):
        merge_spms([one, other], [1e39, 1.0])
    foreign = replace(other, metadata=replace(other.metadata, architecture="another"))
    with pytest.raises(ValueError, match="different architectures"):
        merge_spms([replace(one, metadata=replace(one.metadata, architecture="this")), foreign])
