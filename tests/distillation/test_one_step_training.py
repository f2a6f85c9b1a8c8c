"""Whole trainings: phases, rates, exact continuation, what is saved, the script and its arguments."""

from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from distilling_cases import CAPTIONS, SMALL, Kappa, copies, pipeline_of, rows_of, same, task_of
from running_scripts import script_main
from safetensors.torch import load_file
from tiny_models import pictures, tiny_clip

from dmkit import data, zoo
from dmkit.distillation import CLIPLoss, CLIPScorer, merge_students
from dmkit.distillation.configure import (
    DistillationArguments,
    DistillationTrainingArguments,
    build,
    parse,
)
from dmkit.distillation.prompts import encode_prompts, read_prompts
from dmkit.distillation.task import CLIP_TEXTS
from dmkit.errors import FileFormatError, TrainingError
from dmkit.training.caching import CachedTensors
from dmkit.training.contrastive import train_tokenizer
from dmkit.training.trainer import Trainer

RECIPES = Path(__file__).parents[2] / "scripts" / "recipes"
NEGATIVES = ("a cat", "a green heart")
QUICK = {
    "max_train_steps": 4,
    "learning_rate": 1e-3,
    "train_batch_size": 2,
    "checkpointing_steps": 0,
    "save_images_epochs": 0,
    "report_to": "none",
}


def trainer(folder: Path, task=None, rows=None, **changes) -> Trainer:
    task = task or task_of()
    arguments = DistillationTrainingArguments(output_dir=str(folder), **{**QUICK, **changes})
    return Trainer(task, rows or rows_of(task), arguments)


def full(folder: Path, **changes) -> Trainer:
    """With everything on that has a state."""
    pipe = pipeline_of("sd")
    scorer = CLIPScorer(tiny_clip(pipe.tokenizer), pipe.tokenizer)
    clip = CLIPLoss(scorer, pipe.vae, steps=4, threshold=1.0)
    task = task_of(pipe=pipe, clip=clip, negatives=list(NEGATIVES), nasa_scale=(0.0, 1.0))
    rows = CachedTensors({**rows_of(task).tensors, CLIP_TEXTS: scorer.embed_texts(CAPTIONS)})
    settings = {
        "use_ema": True,
        "gradient_accumulation_steps": 2,
        "checkpointing_steps": 2,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 1,
    }
    return trainer(folder, task, rows, **{**settings, **changes})


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    losses = full(tmp_path / "straight").train()
    names = {"student/vsd", "student/clip", "student/grad_norm", "fake/denoise", "fake/grad_norm"}
    assert losses.keys() == names
    first = full(tmp_path / "pieces")
    first.max_steps = 2  # as if killed after step 2: the schedule still plans for 4
    first.train()
    full(tmp_path / "pieces", resume_from_checkpoint="latest").train()
    one, two = (tmp_path / name for name in ("straight", "pieces"))
    files = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
    names = set(map(str, files))
    assert {"checkpoint-4/optimizer-student.safetensors", "checkpoint-4/fake/part.safetensors"} <= names
    assert "checkpoint-4/student_ema/diffusion_pytorch_model.safetensors" in names
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
    part = load_file(one / "checkpoint-4" / "fake" / "part.safetensors")
    assert all(".lora_" in name for name in part)  # nothing of the teacher


def test_another_distillation_does_not_go_on(tmp_path):
    trainer(tmp_path, checkpointing_steps=2).train()
    for other in (
        task_of(kappa=Kappa.of([4.5])),
        task_of(lora=type(SMALL)(rank=2, alpha=4, learning_rate=1e-3)),
    ):
        with pytest.raises(FileFormatError, match="cannot be continued exactly: distillation was"):
            trainer(tmp_path, other, resume_from_checkpoint="latest").train()


def test_student_first_each_at_its_own_rate(tmp_path):
    run = trainer(tmp_path, lr_warmup_steps=2, lr_scheduler="constant_with_warmup", max_train_steps=3)
    calls, task = [], run.task
    step = task.training_step
    task.training_step = lambda batch, here: calls.append(here.phase) or step(batch, here)
    rates = {phase: [] for phase in ("student", "fake")}
    for phase, optimizer in run.optimizers.items():
        took = optimizer.step

        def stepped(*arguments, phase=phase, optimizer=optimizer, took=took):
            calls.append(f"{phase} moves")
            rates[phase].append(optimizer.param_groups[0]["lr"])
            took(*arguments)

        optimizer.step = stepped
    run.train()
    assert calls == ["student", "student moves", "fake", "fake moves"] * 3
    assert rates["student"] == pytest.approx([0, 5e-4, 1e-3])
    assert rates["fake"] == pytest.approx([0, 5e-3, 1e-2])
    assert task._made == {}


def test_only_student_and_lora_move(tmp_path):
    task = task_of()
    student, frozen = copies(task.modules["student"]), copies(task.teachers.network)
    lora = [p.clone() for p in task.modules["fake"].parameters()]
    trainer(tmp_path, task, use_ema=True).train()
    assert same(frozen, copies(task.teachers.network))
    moved = zip(lora, task.parameters()["fake"], strict=True)
    assert not all(torch.equal(a, b) for a, b in moved)
    assert not same(student, copies(task.modules["student"]))


@pytest.mark.parametrize("layout", ["sd", "sdxl", "pixart"])
def test_the_student_is_a_pipeline_of_one_step(tmp_path, layout):
    settings = {"student_timestep": 400} if layout == "pixart" else {}
    task = task_of(layout, validation_prompts=CAPTIONS[:2], **settings)
    trainer(tmp_path, task, max_train_steps=2, save_images_epochs=1, learning_rate=1e-2).train()
    assert (tmp_path / "samples" / "step-0000002.png").is_file()
    saved = DiffusionPipeline.from_pretrained(tmp_path)
    assert not any("lora" in name for name in saved.components[_denoiser(saved)].state_dict())
    options = {"use_resolution_binning": False} if layout == "pixart" else {}
    images = saved(
        list(CAPTIONS[:2]),
        num_inference_steps=1,
        guidance_scale=0,
        generator=[torch.Generator().manual_seed(k) for k in range(2)],
        output_type="pt",
        **options,
    ).images
    saved.scheduler.set_timesteps(1)
    assert saved.scheduler.timesteps.tolist() == task.timestep.tolist()
    torch.testing.assert_close(images * 2 - 1, task.pictures(CAPTIONS[:2]), rtol=0, atol=1e-4)
    untrained = copies(pipeline_of(layout).components[_denoiser(saved)])
    assert not same(untrained, copies(saved.components[_denoiser(saved)]))


def _denoiser(pipe) -> str:
    return "unet" if "unet" in pipe.components else "transformer"


def test_what_is_not_finite_stops_the_training(tmp_path):
    task = task_of()
    rows = rows_of(task)
    rows.tensors["encoder_hidden_states"][2] = torch.nan
    run = trainer(tmp_path, task, rows, checkpointing_steps=1)
    with pytest.raises(TrainingError, match=r"vsd is nan.*phase 'student'"):
        run.train()
    assert all(p.isfinite().all() for ps in task.parameters().values() for p in ps)


def test_bf16_keeps_float32_weights(tmp_path):
    losses = trainer(tmp_path, mixed_precision="bf16", max_train_steps=2).train()
    assert losses["fake/denoise"] > 0
    weights = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}


def test_merging():
    one, other = pipeline_of("sd").unet, pipeline_of("sd").unet
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    assert same(copies(merge_students(one, other, 1.0)), copies(one))
    assert same(copies(merge_students(one, other, 0.0)), copies(other))
    torch.testing.assert_close(merge_students(one, other).conv_in.weight, one.conv_in.weight + 0.5)
    torch.testing.assert_close(merge_students(one, other, 0.75).conv_in.weight, one.conv_in.weight + 0.25)
    with pytest.raises(ValueError, match=r"The weight of the first student is 1.5; it must be in \[0, 1\]"):
        merge_students(one, other, 1.5)
    with pytest.raises(ValueError, match=r"second student \(UNet.*is not like the first .*, first at "):
        merge_students(one, pipeline_of("sdxl").unet)


def test_prompts_are_encoded_once(tmp_path, monkeypatch):
    pipe = pipeline_of("sdxl")
    rows = encode_prompts(pipe, list(CAPTIONS), tmp_path)
    assert rows[0].keys() == {"encoder_hidden_states", "added.text_embeds", "added.time_ids"}
    assert rows.tensors["encoder_hidden_states"].dtype is torch.float16
    assert rows[0]["added.time_ids"].tolist() == [8, 8, 0, 0, 8, 8]
    (file,) = tmp_path.iterdir()
    made = file.stat().st_mtime_ns
    again = encode_prompts(pipe, list(CAPTIONS), tmp_path)
    assert file.stat().st_mtime_ns == made
    assert all(torch.equal(again.tensors[name], value) for name, value in rows.tensors.items())
    with torch.no_grad():  # another text encoder: made anew
        next(pipe.text_encoder.parameters()).add_(1)
    other = encode_prompts(pipe, list(CAPTIONS), tmp_path)
    assert not torch.equal(other.tensors["encoder_hidden_states"], rows.tensors["encoder_hidden_states"])
    with pytest.raises(ValueError, match="no prompt to train with"):
        encode_prompts(pipe, [], tmp_path)


def test_a_file_of_prompts(tmp_path):
    (tmp_path / "p.txt").write_text("a cat\n\n  a red heart \n", encoding="utf-8")
    assert read_prompts(tmp_path / "p.txt") == ["a cat", "a red heart"]
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(FileFormatError, match="holds no prompt"):
        read_prompts(tmp_path / "empty.txt")
    with pytest.raises(FileFormatError, match="is missing or is not text"):
        read_prompts(tmp_path / "no.txt")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    pipeline_of("sd").save_pretrained(folder)
    return str(folder)


def flags(model: str, folder: Path, **settings) -> list[str]:
    """The script's arguments, by way of a recipe."""
    prompts = folder.with_name("prompts.txt")
    prompts.write_text("\n".join([*CAPTIONS, CAPTIONS[0]]))
    recipe = {
        **QUICK,
        "pretrained_model_name_or_path": model,
        "prompts_file": str(prompts),
        "cache_dir": str(folder.with_name("cache")),
        "rank": 2,
        "output_dir": str(folder),
        **settings,
    }
    recipe = {name: value for name, value in recipe.items() if value is not None}
    path = folder.with_name(f"{folder.name}.yaml")
    path.write_text(yaml.safe_dump(recipe))
    return ["--config", str(path)]


def test_a_range_of_no_width_is_swiftbrush(tmp_path, model):
    with script_main("distill_one_step") as main:
        main(flags(model, tmp_path / "fixed", method="swiftbrush"))
        main(flags(model, tmp_path / "range", kappa=[4.5, 4.5]))
        main(flags(model, tmp_path / "free"))
    fixed, narrow, free = (
        load_file(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors")
        for name in ("fixed", "range", "free")
    )
    assert same(fixed, narrow)
    assert not same(fixed, free)


def test_the_script_with_everything(tmp_path, model):
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=600)
    clip = tmp_path / "clip"
    tiny_clip(tokenizer).save_pretrained(clip)
    tokenizer.save_pretrained(clip)
    (tmp_path / "away.txt").write_text("\n".join(NEGATIVES))
    out = tmp_path / "out"
    arguments = flags(
        model,
        out,
        student_model_name_or_path=model,
        clip_model_name_or_path=str(clip),
        negative_prompts_file=str(tmp_path / "away.txt"),
        kappa_sampling="sample",
        validation_prompts=[CAPTIONS[0]],
        save_images_epochs=1,
        use_ema=True,
    )
    with script_main("distill_one_step") as main:
        main([*arguments, "--max_train_steps", "2"])
    assert DiffusionPipeline.from_pretrained(out).scheduler.config.timestep_spacing == "trailing"
    assert len(list((tmp_path / "cache").iterdir())) == 2  # prompts, and negative prompts


def test_captions_of_a_data_set(monkeypatch, model):
    arguments = DistillationArguments(
        pretrained_model_name_or_path=model, dataset_name="x", max_train_samples=3
    )
    monkeypatch.setattr(data, "load", lambda name, **_: pictures(12))
    assert arguments.prompts() == list(CAPTIONS[:3])
    monkeypatch.setattr(data, "load", lambda name, **_: pictures(12, captions=None))
    with pytest.raises(FileFormatError, match="x has no captions"):
        arguments.prompts()


def test_the_recipe_is_read():
    arguments, training = parse(["--config", str(RECIPES / "one-step-emoji.yaml")], "Test.")
    assert arguments.distillation().kappa == Kappa(0.5, 4.0)
    assert training.max_train_steps == 5_000
    assert zoo.path(arguments.pretrained_model_name_or_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "swift-brush"}, "Unknown --method 'swift-brush'. Did you mean 'swiftbrush'"),
        ({"method": "swiftbrush", "kappa": [1, 4]}, r"swiftbrush has one --kappa, not \[1, 4\]"),
        ({"pretrained_model_name_or_path": ""}, "Give --pretrained_model_name_or_path"),
        ({"prompts_file": None}, "Give either --prompts_file or --dataset_name"),
        ({"dataset_name": "emoji"}, "Give either --prompts_file or --dataset_name"),
        ({"t_range": [0.5]}, "--t_range takes the two ends of a range"),
        ({"kappa_sampling": "samples"}, "Did you mean 'sample'"),
        ({"max_train_samples": 0}, "--max_train_samples is 0; it must be at least 1"),
    ],
)
def test_arguments_that_cannot_be(change, message):
    given = {"pretrained_model_name_or_path": "emoji", "prompts_file": "p.txt", **change}
    with pytest.raises(ValueError, match=message):
        DistillationArguments(**given)


def test_a_clip_loss_needs_an_end(tmp_path, model):
    arguments, training = parse([*flags(model, tmp_path / "out", clip_model_name_or_path="clip")], "Test.")
    with pytest.raises(FileFormatError, match="is not a CLIP with its tokenizer"):
        build(arguments, training)
    training.max_train_steps = None
    with pytest.raises(ValueError, match="falls to 0 at the end: give --max_train_steps"):
        build(arguments, training)
    assert not (tmp_path / "out").exists()
