"""Training scripts in two processes, with more than gradients in a step: EF21's memory, CUBER's regimes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running_scripts import ENVIRONMENT
from safetensors.torch import load_file
from tiny_models import pictures, tiny_text_to_image

from dmkit.images import to_pil

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    room = tmp_path_factory.mktemp("room")
    tiny_text_to_image().save_pretrained(room / "start")
    for name, seed in (("old", 0), ("new", 1)):
        (room / name).mkdir()
        lines = []
        for k, item in enumerate(pictures(12, seed=seed).__getitems__(range(12))):
            to_pil(item["images"]).save(room / name / f"{k}.png")
            lines.append(json.dumps({"file_name": f"{k}.png", "text": item["captions"]}))
        (room / name / "metadata.jsonl").write_text("\n".join(lines))
    for name in ("ef21", "cuber"):
        (room / name).mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    worker = Path(__file__).with_name("scripts_in_pairs.py")
    done = subprocess.run(
        [*launcher, str(worker), str(room)], capture_output=True, text=True, env=ENVIRONMENT, timeout=600
    )
    assert done.returncode == 0, done.stderr[-9000:]
    return room


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", ["ef21", "cuber"])
def test_a_run_that_was_cut_off_ends_as_the_whole_one(room, name):
    whole, cut = (files(room / name / kind / "checkpoint-6") for kind in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert [path for path in whole if whole[path] != cut[path]] == []
    assert json.loads(whole["state.json"])["processes"] == 2
    ends = [(room / name / kind / UNET).read_bytes() for kind in ("whole", "cut")]
    assert ends[0] == ends[1]


def test_the_hooks_memory_is_saved_with_the_checkpoint(room):
    saved = room / "ef21" / "whole" / "checkpoint-3" / "communication"
    own = [load_file(saved / f"unet-{rank}.safetensors") for rank in range(2)]
    assert own[0].keys() == own[1].keys()
    assert any(not torch.equal(value, own[1][name]) for name, value in own[0].items())
    # The flag does something: without it the weights are others.
    plain, hooked = (load_file(room / "ef21" / kind / UNET) for kind in ("plain", "whole"))
    assert max((plain[name] - hooked[name]).abs().max().item() for name in plain) > 1e-4


def test_cubers_memory_of_old_and_new_is_the_same(room):
    whole, cut = (files(room / "cuber" / kind / "continual") for kind in ("whole", "cut"))
    assert {"continual.json", "continual.safetensors", UNET} <= whole.keys()
    assert whole == cut
    assert "rule.safetensors" in files(room / "cuber" / "cut" / "checkpoint-6")
