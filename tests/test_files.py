import json

import pytest
import torch

from dmkit import _files
from dmkit.errors import FileFormatError


def test_atomic_folder_replaces_only_when_whole(tmp_path):
    target = tmp_path / "result"
    with _files.atomic_folder(target) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), _files.atomic_folder(target) as folder:
        (folder / "a").write_text(str(1 / 0))
    assert (target / "a").read_text() == "old"
    with _files.atomic_folder(target) as folder:
        (folder / "b").write_text("new")
    assert [p.name for p in target.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["result"]


def test_sweep_removes_only_what_is_unfinished(tmp_path):
    (tmp_path / f"{_files.UNFINISHED}checkpoint-3-99").mkdir()
    (tmp_path / "checkpoint-2").mkdir()
    _files.sweep_unfinished(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-2"]


def adamw(seed: int) -> tuple[torch.nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(seed)
    layer = torch.nn.Linear(3, 2)
    return layer, torch.optim.AdamW(layer.parameters(), lr=0.1, betas=(0.8, 0.9))


def step(layer, optimizer):
    optimizer.zero_grad()
    layer(torch.ones(1, 3)).pow(2).sum().backward()
    optimizer.step()


def test_optimizer_round_trip_goes_on_bit_for_bit(tmp_path):
    layer, optimizer = adamw(0)
    step(layer, optimizer)
    rest = json.loads(json.dumps(_files.save_optimizer(optimizer, tmp_path / "o.safetensors")))
    twin, fresh = adamw(1)
    twin.load_state_dict(layer.state_dict())
    _files.load_optimizer(fresh, tmp_path / "o.safetensors", rest)
    for pair in ((layer, optimizer), (twin, fresh)):
        step(*pair)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), twin.parameters(), strict=True))


def test_foreign_and_truncated_files_are_named(tmp_path):
    path = tmp_path / "x.safetensors"
    _, optimizer = adamw(0)
    path.write_bytes(b"not tensors")
    with pytest.raises(
        FileFormatError, match=r"x\.safetensors is missing, truncated or not a safetensors file"
    ):
        _files.load_tensors(path)
    layer, optimizer = adamw(0)
    step(layer, optimizer)
    rest = _files.save_optimizer(optimizer, path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(FileFormatError, match="truncated"):
        _files.load_optimizer(optimizer, path, rest)
    other = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    _files.save_optimizer(optimizer, path)
    with pytest.raises(FileFormatError, match="belongs to another model or optimiser"):
        _files.load_optimizer(other, path, rest)
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(FileFormatError, match="should hold a JSON object, not list"):
        _files.load_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(FileFormatError, match="not valid JSON"):
        _files.load_json(tmp_path / "x.json")
