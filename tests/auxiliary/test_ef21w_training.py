"""Training on workers that see different digits: shares, tasks, and the hook between two processes."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from ef21w_workers import training

from dmkit.auxiliary.communication.ef21w.training import TRAIN, Arguments, SharedTask, run, share
from dmkit.data.digits import digit_tensors
from dmkit.training.networks import MLP

ROOT = Path(__file__).parents[2]


def test_workers_have_different_classes():
    labels = torch.tensor([3, 0, 1, 2, 0, 3, 1, 2, 3])
    inputs, targets = share(torch.arange(9.0)[:, None], labels, 2)
    assert inputs.shape == (4, 2, 1)
    assert targets.T.tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]
    assert torch.equal(labels[inputs.long()[..., 0]], targets)


def test_a_process_sees_its_own_workers_only():
    inputs, labels = torch.randn(6, 4, 5), torch.randint(3, (6, 4))
    task = SharedTask(MLP((5, 3)), inputs, labels)
    model = task.modules["model"]
    batch = {"inputs": inputs, "labels": labels}
    losses = []
    for rank in range(2):
        step = SimpleNamespace(rank=rank, world=2, number=0)
        losses.append(task.training_step(batch, step)["loss"])
        rows = inputs[:, [rank, rank + 2]].flatten(0, 1)
        torch.testing.assert_close(
            losses[-1], F.cross_entropy(model(rows), labels[:, [rank, rank + 2]].flatten())
        )
    alone = task.training_step(batch, SimpleNamespace(rank=0, world=1, number=0))["loss"]
    torch.testing.assert_close(alone, sum(losses) / 2)  # one process for all has the same loss
    assert task.whole_loss() == pytest.approx(alone.item(), rel=1e-5)
    assert task.seen == []


def test_one_process_trains_all_workers(tmp_path):
    figures = run(
        Arguments(hidden=8, watch_every=2), training(tmp_path, max_train_steps=4, train_batch_size=50)
    )
    assert [at for at, _ in figures["curve"]] == [0, 2]
    assert figures["loss"] < figures["curve"][0][1]
    assert figures.keys() == {"loss", "accuracy", "curve"}  # nothing was sent
    json.dumps(figures)
    with pytest.raises(ValueError, match="0 workers cannot be shared equally by 1 processes"):
        run(Arguments(workers=0), training(tmp_path / "no"))


def gradient_norm(model: torch.nn.Module) -> float:
    """‖∇f‖ over all rows of both workers."""
    images, labels = digit_tensors(0)
    inputs, targets = share(images[:TRAIN], labels[:TRAIN], 2)
    loss = F.cross_entropy(model(inputs.flatten(0, 1)), targets.flatten())
    return math.hypot(*(g.norm().item() for g in torch.autograd.grad(loss, list(model.parameters()))))


def test_two_processes(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "ACCELERATE_USE_CPU": "true",
    }
    worker = Path(__file__).with_name("ef21w_workers.py")
    done = subprocess.run(
        [*launcher, str(worker), str(tmp_path)], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    weights = {
        name: (tmp_path / name / "model/diffusion_pytorch_model.safetensors").read_bytes() for name in figures
    }
    assert weights["whole"] == weights["plain"] != weights["ef21"]
    assert "comm_bytes" not in figures["plain"]
    assert figures["whole"]["comm_bytes"] == figures["whole"]["comm_bytes_whole"] == 4 * 25 * 650
    # Two whole steps; then the flag, 7 of 640 and 1 of 10 entries with their places.
    assert figures["ef21"]["comm_bytes"] == figures["topk"]["comm_bytes"] == 4 * (2 * 650 + 23 * 17)
    assert figures["ef21"]["loss"] < 1.1 * figures["plain"]["loss"]
    assert figures["topk"]["loss"] > 1.5 * figures["ef21"]["loss"]
    # At 1 % and with time, EF21 is where whole gradients are; TopK without memory is far from any minimum.
    plain, ef21, topk = (f"{name}, long" for name in ("plain", "ef21", "topk"))
    assert figures[ef21]["loss"] < figures[plain]["loss"] < figures[topk]["loss"] / 4
    norm = {
        name: gradient_norm(MLP.from_pretrained(tmp_path / name / "model")) for name in (plain, ef21, topk)
    }
    assert max(norm[plain], norm[ef21]) < 0.03 < 0.2 < norm[topk]
