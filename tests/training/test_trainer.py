"""The trainer's promises, in one process, on networks that take milliseconds."""

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import load_file
from torch import nn

from dmkit.errors import FileFormatError, MissingDataError, TrainingError
from dmkit.training.arguments import TrainingArguments
from dmkit.training.checkpoint import checkpoints
from dmkit.training.denoising import DenoisingTask
from dmkit.training.trainer import Task, Trainer


class Ramp(torch.utils.data.Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, i):
        return {"images": torch.full((1, 8, 8), i / 10 - 1)}


def tiny_unet(**changes) -> UNet2DModel:
    torch.manual_seed(0)
    config = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "dropout": 0.1,  # so that exact resume has the global generator to get right
    }
    return UNet2DModel(**{**config, **changes})


def trainer(folder: Path, **changes) -> Trainer:
    arguments = {
        "output_dir": str(folder),
        "train_batch_size": 4,
        "max_train_steps": 6,
        "learning_rate": 1e-3,
        "lr_warmup_steps": 3,
        "use_ema": True,
        "checkpointing_steps": 2,
        "save_images_epochs": 0,
        "report_to": "none",
        "gradient_accumulation_steps": 2,
    }
    task = DenoisingTask(tiny_unet(), DDPMScheduler(), sample_steps=2, num_samples=4)
    return Trainer(task, Ramp(), TrainingArguments(**{**arguments, **changes}))


def files_of(checkpoint: Path) -> dict[str, bytes]:
    return {str(p.relative_to(checkpoint)): p.read_bytes() for p in checkpoint.rglob("*") if p.is_file()}


def test_resume_is_exact(tmp_path):
    trainer(tmp_path / "straight").train()
    trainer(
        tmp_path / "pieces", max_train_steps=6, checkpointing_steps=4
    )  # constructing changes nothing on disk
    first = trainer(tmp_path / "pieces")
    first.max_steps = 4  # as if killed after step 4: the schedule still plans for 6
    first.train()
    trainer(tmp_path / "pieces", resume_from_checkpoint="latest").train()
    straight, pieces = (files_of(tmp_path / name / "checkpoint-6") for name in ("straight", "pieces"))
    assert straight == pieces
    assert "optimizer-main.safetensors" in straight
    assert "unet_ema/diffusion_pytorch_model.safetensors" in straight


def test_saved_model_is_the_average_and_loads_in_diffusers(tmp_path):
    from diffusers import DiffusionPipeline

    run = trainer(tmp_path)
    run.train()
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    saved = list(pipe.unet.parameters())
    assert all(torch.equal(a, b) for a, b in zip(saved, run.ema["unet"].shadow_params, strict=True))
    assert not all(
        torch.equal(a, b) for a, b in zip(saved, run.unwrapped()["unet"].parameters(), strict=True)
    )
    assert pipe(num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 1)


def test_training_learns(tmp_path):
    run = trainer(tmp_path, max_train_steps=60, checkpointing_steps=0, learning_rate=1e-2)
    before = run._optimiser_step(iter([{"images": torch.zeros(64, 1, 8, 8)}] * 2))["loss"]
    after = run.train()["loss"]
    assert after < 0.7 * before


def test_only_the_newest_checkpoints_stay(tmp_path):
    trainer(tmp_path, checkpoints_total_limit=2).train()
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-6"]


def test_numeric_order_not_alphabetic(tmp_path):
    for step in (5, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-10", "checkpoint-100"]


def test_continuing_with_another_seed_or_batch_is_refused(tmp_path):
    trainer(tmp_path).train()
    with pytest.raises(FileFormatError, match="cannot be continued exactly: seed was 0, now 1"):
        trainer(tmp_path, resume_from_checkpoint="latest", seed=1).train()
    with pytest.raises(FileFormatError, match="train_batch_size was 4, now 8"):
        trainer(tmp_path, resume_from_checkpoint="latest", train_batch_size=8).train()
    with pytest.raises(FileFormatError, match=r"learning_rate was 0\.001, now 0\.09"):
        trainer(tmp_path, resume_from_checkpoint="latest", learning_rate=9e-2).train()
    with pytest.raises(ValueError, match=r"checkpoint-2, checkpoint-4, checkpoint-6 of an earlier run"):
        trainer(tmp_path).train()
    with pytest.raises(ValueError, match=r"holds checkpoint-6 of an earlier run, beyond step 4"):
        trainer(tmp_path, resume_from_checkpoint="checkpoint-4").train()
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    with pytest.raises(MissingDataError, match=r"No checkpoint 'checkpoint-5'.*checkpoint-2, checkpoint-4"):
        trainer(tmp_path, resume_from_checkpoint="checkpoint-5").train()


def test_continuing_with_another_target_is_refused(tmp_path):
    trainer(tmp_path).train()

    def resumed(**config):
        run = trainer(tmp_path, resume_from_checkpoint="latest", max_train_steps=7)
        run.task.scheduler = DDPMScheduler(**config)
        return run

    with pytest.raises(FileFormatError, match="prediction_type was epsilon, now v_prediction"):
        resumed(prediction_type="v_prediction").train()
    with pytest.raises(FileFormatError, match="beta_schedule was linear, now squaredcos_cap_v2"):
        resumed(beta_schedule="squaredcos_cap_v2").train()
    state = tmp_path / "checkpoint-6" / "state.json"
    older = json.loads(state.read_text())
    del older["task"]
    state.write_text(json.dumps(older))
    resumed().train()
    assert (tmp_path / "checkpoint-7").is_dir()


def test_a_damaged_checkpoint_is_named(tmp_path):
    trainer(tmp_path).train()
    weights = tmp_path / "checkpoint-6" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(
        FileFormatError, match=r"checkpoint-6.unet is missing, truncated or not a UNet2DModel"
    ):
        trainer(tmp_path, resume_from_checkpoint="latest").train()
    other = trainer(tmp_path, resume_from_checkpoint="checkpoint-4")
    other.task.modules["unet"] = tiny_unet(block_out_channels=(8, 16))
    with pytest.raises(FileFormatError, match=r"checkpoint-4 does not fit this run's model or task"):
        other.train()
    state = tmp_path / "checkpoint-4" / "state.json"
    state.write_text(json.dumps({"format": 99}))
    with pytest.raises(FileFormatError, match="has checkpoint format 99; this version reads 1"):
        trainer(tmp_path, resume_from_checkpoint="checkpoint-4").train()


class Poisoned(Ramp):
    """Example 3 is not a number."""

    def __getitem__(self, i):
        return {"images": torch.full((1, 8, 8), math.nan if i == 3 else 0.0)}


def test_nan_stops_with_step_batch_and_checkpoint(tmp_path):
    run = trainer(tmp_path, checkpointing_steps=1, gradient_accumulation_steps=1)
    run.dataset = Poisoned()
    order = run.order.batches()
    bad_step = next(step for step in range(6) if 3 in next(order))
    with pytest.raises(TrainingError) as caught:
        run.train()
    assert "loss is nan" in str(caught.value)
    assert f"at step {bad_step}, batch {bad_step} (phase 'main')" in str(caught.value)
    last = f"checkpoint-{bad_step}" if bad_step else "none yet"
    assert last in str(caught.value)
    assert all(p.isfinite().all() for p in run.unwrapped()["unet"].parameters())


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.weight * x

    def save_pretrained(self, folder):
        raise AssertionError("not saved in this test")


class Chase(Task):
    """Two alternating players: the first moves toward the second, the second away from nothing."""

    def __init__(self):
        self.modules = {"first": Line(), "second": Line()}
        self.calls = []

    def parameters(self):
        return {name: list(module.parameters()) for name, module in self.modules.items()}

    def training_step(self, batch, step):
        self.calls.append(step.phase)
        x = torch.ones(1)
        first, second = self.modules["first"](x), self.modules["second"](x)
        if step.phase == "first":
            return {"gap": (first - second - 1).pow(2).mean(), "zero": 0 * first.sum()}
        return {"decay": second.pow(2).mean()}

    def save(self, folder, modules):
        (folder / "done").write_text("1")


def one_step(folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_train_steps=1,
        checkpointing_steps=0,
        save_images_epochs=0,
        report_to="none",
        learning_rate=0.1,
        lr_scheduler="constant",
        adam_weight_decay=0.0,
        train_batch_size=2,
    )


def test_alternating_optimisers_each_move_only_their_own(tmp_path):
    task = Chase()
    report = Trainer(task, Ramp(), one_step(tmp_path)).train()
    assert task.calls == ["first", "second"]
    # Adam's first step is the learning rate against the gradient's sign, if no other loss leaked in.
    assert task.modules["first"].weight.item() == pytest.approx(1.1)
    assert task.modules["second"].weight.item() == pytest.approx(0.9)
    assert report["first/gap"] == pytest.approx(1.0)
    assert (tmp_path / "done").exists()


def test_a_gradient_rule_decides_the_gradient(tmp_path):
    def only_zero(accelerator, losses, parameters):
        accelerator.backward(losses["zero"])

    task = Chase()
    task.parameters = lambda: {"first": list(task.modules["first"].parameters())}
    Trainer(task, Ramp(), one_step(tmp_path), rule=only_zero).train()
    assert task.modules["first"].weight.item() == 1.0


def test_bf16_runs_and_keeps_float32_weights(tmp_path):
    trainer(tmp_path, mixed_precision="bf16", max_train_steps=2).train()
    weights = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}


def test_tensorboard_gets_losses_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer(tmp_path, report_to="tensorboard", save_images_epochs=1, logging_steps=1).train()
    events = EventAccumulator(str(tmp_path / "logs" / "train")).Reload()
    assert {"loss", "grad_norm", "lr/main"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert "samples" in events.Tags()["images"]
    assert (tmp_path / "samples" / "step-0000006.png").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_batch_size": 0}, "--train_batch_size is 0; it must be at least 1"),
        ({"max_train_steps": 0}, "--max_train_steps is 0"),
        ({"max_grad_norm": -1.0}, "--max_grad_norm is -1.0; it must be at least 0"),
        ({"lr_scheduler": "piecewise_constant"}, "Unknown --lr_scheduler 'piecewise_constant'"),
        ({"learning_rate": 0.0}, "--learning_rate is 0.0; it must be positive"),
        ({"mixed_precision": "fp8"}, "--mixed_precision is 'fp8'; known: no, fp16, bf16"),
        ({"checkpoints_total_limit": 0}, "one good checkpoint is kept"),
        ({"report_to": "tensorbord"}, "Did you mean 'tensorboard'"),
        ({"lr_scheduler": "cosin"}, "Did you mean 'cosine'"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TrainingArguments(**change)
