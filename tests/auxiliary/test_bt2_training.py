"""Training BT²: targets, tasks, stages and what it learns."""

import json
import math

import pytest
import torch

from dmkit.auxiliary.retrieval.bt2 import (
    BasisTransformationHead,
    EmbeddingHead,
    Encoder,
    EncoderTask,
    build_targets,
)
from dmkit.auxiliary.retrieval.bt2.losses import ClassificationLoss
from dmkit.auxiliary.retrieval.bt2.training import Arguments, Digits, chain, run
from dmkit.errors import FileFormatError
from dmkit.training.arguments import TrainingArguments
from dmkit.training.networks import MLP


def training(folder, **changes) -> TrainingArguments:
    values = {
        "output_dir": str(folder),
        "train_batch_size": 64,
        "max_train_steps": 3,
        "learning_rate": 2e-3,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "max_grad_norm": 0,
        "checkpointing_steps": 0,
        "save_images_epochs": 0,
        "save_model_epochs": 0,
        "report_to": "none",
    }
    return TrainingArguments(**{**values, **changes})


def test_digits_are_drawn_by_seed():
    arguments = Arguments(train_size=50, test_size=40)
    one, same, other = (Digits.draw(arguments, seed) for seed in (0, 0, 1))
    assert torch.equal(one.inputs, same.inputs)
    assert not torch.equal(one.labels, other.labels)
    assert (len(one.inputs), len(one.test_inputs)) == (50, 40)
    clean = Digits.draw(Arguments(train_size=50, test_size=40, noise=0.0), 0)
    assert abs((one.inputs - clean.inputs).std() - 0.25) < 0.01
    assert torch.equal(one.test_labels, clean.test_labels)
    with pytest.raises(ValueError, match="share 1797 digits; not 1700 and 98"):
        Digits.draw(Arguments(train_size=1700, test_size=98), 0)


def test_targets_are_of_unit_length_and_kept(tmp_path):
    torch.manual_seed(0)
    encoder = Encoder(MLP((4, 5)), BasisTransformationHead(5, 3, 3, 2, extra_dim=1)).train()
    inputs = torch.randn(11, 4)
    targets = build_targets(encoder, inputs, tmp_path / "t.safetensors", batch_size=3)
    assert encoder.training
    torch.testing.assert_close(targets.norm(dim=1), torch.ones(11))
    torch.testing.assert_close(targets * math.sqrt(5), encoder(inputs).detach())
    never = None
    assert torch.equal(build_targets(never, inputs, tmp_path / "t.safetensors"), targets)
    with pytest.raises(FileFormatError, match="does not hold the targets of 5 inputs"):
        build_targets(never, inputs[:5], tmp_path / "t.safetensors")
    (tmp_path / "t.safetensors").write_bytes(b"cut")
    with pytest.raises(FileFormatError, match="truncated or not a safetensors file"):
        build_targets(never, inputs, tmp_path / "t.safetensors")


def test_a_task_trains_both_parts_and_may_augment():
    seen = []

    def augment(inputs, draws):
        seen.append(draws)
        return inputs + 1

    task = EncoderTask(MLP((4, 5)), EmbeddingHead(5, 3, 2), ClassificationLoss(), augment=augment)
    batch = {"inputs": torch.randn(6, 4), "labels": torch.zeros(6, dtype=torch.long)}
    step = type("Step", (), {"draws": "draws"})()
    losses = task.training_step(batch, step)
    assert losses.keys() == {"classification"}
    assert seen == ["draws"]
    groups = task.parameter_groups([])
    trained = sum(p.numel() for group in groups for p in group["params"])
    assert trained == sum(p.numel() for module in task.modules.values() for p in module.parameters())


def test_run_and_its_continuation(tmp_path):
    arguments = Arguments(extra_dims=[0, 2], train_size=100, test_size=60)
    whole = run(arguments, training(tmp_path / "a", max_train_steps=4, checkpointing_steps=2))
    assert list(whole) == ["independent", "bct", "bt2_0", "extra_2", "bt2_2"]
    assert whole["bct"].keys() == {"old/old", "new/old", "new/new"}
    json.dumps(whole)
    # Killed in the last of its trainings: it goes on there.
    state = tmp_path / "a/bt2-2/checkpoint-4/state.json"
    bytes_before = (tmp_path / "a/bt2-2/head/diffusion_pytorch_model.safetensors").read_bytes()
    state.unlink()
    for path in (tmp_path / "a/bt2-2/checkpoint-4").rglob("*"):
        if path.is_file():
            path.unlink()
    (tmp_path / "a/bt2-2/checkpoint-4").rename(tmp_path / "a/bt2-2/.unfinished-checkpoint-4")
    resumed = run(
        arguments,
        training(tmp_path / "a", max_train_steps=4, checkpointing_steps=2, resume_from_checkpoint="latest"),
    )
    assert resumed == whole
    assert (tmp_path / "a/bt2-2/head/diffusion_pytorch_model.safetensors").read_bytes() == bytes_before


def test_it_learns_to_search_the_old_gallery(tmp_path):
    """A short run: far above an independent model in the old gallery, without giving up the new one."""
    found = run(Arguments(extra_dims=[8]), training(tmp_path, max_train_steps=120, learning_rate=4e-3))
    mean = {name: {pair: f["map"] for pair, f in pairs.items()} for name, pairs in found.items()}
    assert mean["independent"]["new/old"] < 0.25
    assert mean["bt2_8"]["new/old"] > mean["bt2_8"]["old/old"]
    assert mean["bt2_8"]["new/old"] > mean["independent"]["new/old"] + 0.1
    assert mean["bt2_8"]["new/new"] > 0.5
    head = BasisTransformationHead.from_pretrained(tmp_path / "bt2-8/head")
    assert (head.P.weight @ head.P.weight.T - torch.eye(8)).abs().max() < 1e-5
    assert head.lengths == (8, 16)


def test_a_chain_of_architectures(tmp_path):
    found = chain(Arguments(extra_dims=[4], train_size=100, test_size=60), training(tmp_path))
    assert list(found) == ["independent", "bct", "bt2"]
    assert list(found["bt2"]) == ["0/0", "1/0", "1/1", "2/0", "2/1", "2/2"]
    second = BasisTransformationHead.from_pretrained(tmp_path / "chain-bt2-2/head")
    assert (second.config.dim_old, second.lengths) == (12, (8, 12))
