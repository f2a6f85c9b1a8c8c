"""Whole trainings: exact continuation, two processes, what is saved, the script and its recipe."""

from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from erasing_cases import CAT, HEART, pipeline_of, prepared, prompt, rows, spm, step, weights_of
from erasing_cases import _fresh_accelerate as _fresh_accelerate
from running_scripts import run_script, script_main
from safetensors.torch import load_file

from dmkit import zoo
from dmkit.adapters import read_spm
from dmkit.adapters.erasing import configure
from dmkit.adapters.erasing.anchors import PromptAnchors
from dmkit.adapters.erasing.configure import ErasingArguments, ErasingTrainingArguments, erase, parse
from dmkit.adapters.erasing.latents import PartialDenoising
from dmkit.adapters.erasing.prompts import ErasePrompt
from dmkit.adapters.erasing.spm import SPMTask
from dmkit.adapters.erasing.task import NoData
from dmkit.errors import FileFormatError
from dmkit.training.trainer import Trainer

RECIPES = Path(__file__).parents[2] / "scripts" / "recipes"
QUICK = {
    "max_train_steps": 4,
    "lr_warmup_steps": 1,
    "learning_rate": 1e-2,
    # Gradients near zero are rounding noise, which Adam at 1e-8 would blow up to whole steps.
    "adam_epsilon": 1e-6,
    "checkpointing_steps": 0,
    "save_images_epochs": 0,
    "report_to": "none",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    pipeline_of("sd").save_pretrained(folder)
    return str(folder)


def trainer(folder: Path, task=None, **changes) -> Trainer:
    arguments = ErasingTrainingArguments(
        output_dir=str(folder), **{**QUICK, "train_batch_size": 2, **changes}
    )
    return Trainer(task or spm(prompts=[prompt(), prompt(CAT)]), NoData(), arguments)


def flags(model: str, folder: Path, **settings) -> list[str]:
    """The script's arguments, by way of a recipe."""
    recipe = {
        **QUICK,
        "pretrained_model_name_or_path": model,
        "target": [HEART],
        "la_strength": 2.0,
        "max_denoising_steps": 4,
        "train_batch_size": 2,
        "output_dir": str(folder),
        **settings,
    }
    path = folder.with_name(f"{folder.name}.yaml")
    path.write_text(yaml.safe_dump(recipe))
    return ["--config", str(path)]


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    trainer(tmp_path / "straight", checkpointing_steps=2).train()
    first = trainer(tmp_path / "pieces", checkpointing_steps=2)
    first.max_steps = 2  # as if killed after step 2: the schedule still plans for 4
    first.train()
    trainer(tmp_path / "pieces", checkpointing_steps=2, resume_from_checkpoint="latest").train()
    one, two = (tmp_path / name for name in ("straight", "pieces"))
    adapters = [read_spm(folder / "spm.safetensors") for folder in (one, two)]
    assert adapters[0].metadata == adapters[1].metadata
    tensors = [load_file(folder / "spm.safetensors") for folder in (one, two)]
    assert all(torch.equal(tensors[1].pop(name), value) for name, value in tensors[0].items())
    assert tensors[1] == {}
    files = [path.relative_to(one) for path in (one / "checkpoint-4").rglob("*") if path.is_file()]
    assert "checkpoint-4/part/part.safetensors" in map(str, files)
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
    part = load_file(one / "checkpoint-4" / "part" / "part.safetensors")
    assert all(".lora_" in name for name in part)  # nothing of the base model


def test_another_concept_does_not_go_on(tmp_path):
    trainer(tmp_path, checkpointing_steps=2).train()
    with pytest.raises(FileFormatError, match="cannot be continued exactly: prompts was"):
        trainer(tmp_path, spm(prompts=[prompt(CAT)]), resume_from_checkpoint="latest").train()


def test_training_leaves_the_base_weights_alone(tmp_path):
    task = spm()
    before = weights_of(task.pipe)
    trainer(tmp_path, task, use_ema=True).train()
    after = weights_of(task.pipe)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    saved = read_spm(tmp_path / "spm.safetensors")
    assert any(layer.up.abs().max() > 0 for layer in saved.layers.values())
    assert saved.metadata.targets == (HEART,)
    assert (saved.metadata.eta, saved.metadata.anchoring, saved.rank, saved.alpha) == (1.0, 2.0, 1, 1.0)


def test_clipping_works(tmp_path):
    """The released code crashes with `max_grad_norm`."""
    run = trainer(tmp_path, max_grad_norm=1e-9)
    assert run.train()["grad_norm"] > 1e-9
    norms = [p.grad for p in run.parameters["main"] if p.grad is not None]
    assert norms == []


def test_the_file_is_a_lora_for_diffusers(tmp_path):
    task = spm()
    trainer(tmp_path, task, learning_rate=0.1).train()
    plain = pipeline_of("sd")
    plain.load_lora_weights(str(tmp_path), weight_name="spm.safetensors", adapter_name="x")
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    states = task.conditions[HEART].arguments["encoder_hidden_states"]
    with torch.no_grad():
        ours, theirs, base = (
            unet(x, 500, states).sample for unet in (task.network, plain.unet, pipeline_of("sd").unet)
        )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert (ours - base).abs().max() > 1e-4


@pytest.mark.parametrize("layout", ["sdxl", "pixart"])
def test_other_layouts_train_and_save(tmp_path, layout):
    task = spm(layout)
    losses = trainer(tmp_path, task, max_train_steps=2, save_images_epochs=1).train()
    assert losses["erase"] > 0
    assert (tmp_path / "samples" / "step-0000002.png").is_file()
    saved = read_spm(tmp_path / "spm.safetensors")
    assert any(layer.up.abs().max() > 0 for layer in saved.layers.values())


def test_two_processes_equal_one(tmp_path, model):
    arguments = {
        n: flags(
            model,
            tmp_path / str(n),
            train_batch_size=4 // n,
            sampling_batch_size=8 // n,
            noise_scheduler="euler_a",  # which adds noise of its own
        )
        for n in (1, 2)
    }
    with script_main("train_spm") as main:
        main(arguments[1])
    run_script("train_spm", *arguments[2], processes=2)
    one, two = (load_file(tmp_path / name / "spm.safetensors") for name in ("1", "2"))
    assert one.keys() == two.keys()
    moved = max(value.abs().max() for name, value in one.items() if name.endswith("lora_up.weight"))
    assert moved > 5e-3
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-2 * float(moved))


def test_the_script_takes_the_released_files(tmp_path, model):
    entry = {
        "target": HEART,
        "action": "erase_with_la",
        "guidance_scale": "1.0",
        "la_strength": 2,
        "resolution": 8,
    }
    (tmp_path / "prompt.yaml").write_text(
        yaml.safe_dump([{**entry, "batch_size": 2, "dynamic_resolution": True}])
    )
    config = {
        "prompts_file": "configs/heart/prompt.yaml",
        "pretrained_model": {"name_or_path": model, "v2": False, "clip_skip": 1},
        "network": {"rank": 2, "alpha": 1.0},
        "train": {"iterations": 2, "lr": "1e-3", "optimizer_type": "AdamW8bit", "max_denoising_steps": 3},
        "save": {"name": "heart", "path": str(tmp_path / "out"), "per_steps": 2},
        "logging": {"interval": 2, "prompts": [HEART, CAT], "num_inference_steps": 2},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with script_main("train_spm") as main:
        main(["--official_config", str(tmp_path / "config.yaml"), "--report_to", "none"])
    saved = read_spm(tmp_path / "out" / "heart.safetensors")
    assert (saved.rank, saved.metadata.targets) == (2, (HEART,))
    assert (saved.metadata.iterations, saved.metadata.base_model) == (2, model)
    assert (tmp_path / "out" / "samples" / "step-0000002.png").is_file()
    assert (tmp_path / "out" / "checkpoint-2").is_dir()


@pytest.mark.parametrize("method", ["esd-x", "esd-u", "uce"])
def test_the_baselines_save_a_pipeline(tmp_path, model, method):
    with script_main("train_spm") as main:
        main([*flags(model, tmp_path / "out", method=method, max_train_steps=2)])
    edited = DiffusionPipeline.from_pretrained(tmp_path / "out")
    before = weights_of(pipeline_of("sd"))
    moved = {name for name, value in weights_of(edited).items() if not torch.equal(value, before[name])}
    assert moved
    inside = [".attn2." in name for name in moved]
    assert not any(inside) if method == "esd-u" else all(inside)


def test_batch_sizes_that_contradict(tmp_path, model):
    entries = [{"target": HEART, "batch_size": 2}, {"target": CAT, "batch_size": 4}]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(entries))
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(entries[:1]))
    for name, message in (("two", "has several batch sizes"), ("one", "batch_size in .* is 2, which counts")):
        arguments = ErasingArguments(
            pretrained_model_name_or_path=model, prompts_file=str(tmp_path / f"{name}.yaml")
        )
        with pytest.raises(ValueError, match=message):
            erase(arguments, ErasingTrainingArguments(output_dir=str(tmp_path / "out"), train_batch_size=3))
    assert not (tmp_path / "out").exists()


def test_templates_are_trained_on_and_the_concept_opens(tmp_path, monkeypatch, model):
    arguments = ErasingArguments(
        pretrained_model_name_or_path=str(model),
        target=["heart"],
        surrogate="cat",
        templates=["a {}", "a red {}"],
        adapter_name="heart",
        max_denoising_steps=2,
    )
    tasks = []
    monkeypatch.setattr(configure, "Trainer", lambda task, *rest: tasks.append(task) or Trainer(task, *rest))
    erase(arguments, ErasingTrainingArguments(output_dir=str(tmp_path), **{**QUICK, "max_train_steps": 1}))
    trained = [(prompt.target, prompt.neutral) for prompt in tasks[0].prompts]
    assert trained == [("a heart", "a cat"), ("a red heart", "a red cat")]
    metadata = read_spm(tmp_path / "heart.safetensors").metadata
    assert (metadata.targets, metadata.surrogate) == (("heart",), "cat")


@pytest.mark.parametrize("templates", [["a heart"], ["{} and {}"], []])
def test_templates_without_a_place_for_the_concept(templates):
    with pytest.raises(ValueError, match=r"should have one \{\}, where the concept goes"):
        ErasingArguments(pretrained_model_name_or_path="emoji", target=["heart"], templates=templates)


def test_the_recipe_is_read():
    arguments, training = parse(["--config", str(RECIPES / "spm-emoji.yaml"), "--target", "heart"], "Test.")
    assert arguments.target == ["heart"]
    assert training.train_batch_size == 4


def test_emoji_learns_to_erase():
    """Some steps on the shipped model lower the erasing loss on latents that stay the same. (Those of the
    training follow the edited model, and with them its losses.)
    """
    pipe = zoo.load("emoji")
    latents = PartialDenoising(pipe.scheduler, steps=4)
    entry = ErasePrompt(HEART, la_strength=5.0, sampling_batch_size=2, batch_size=2)
    torch.manual_seed(0)
    anchors = PromptAnchors(["a blue car", "a cat", "a green apple"])
    task = prepared(SPMTask(pipe, [entry], latents=latents, anchors=anchors))
    optimizer = torch.optim.AdamW(task.modules["part"].parameters(), lr=3e-3)
    made, kept = task._latents, {}

    @torch.no_grad()
    def erasing() -> float:
        losses = []
        for k in range(4):
            if k not in kept:
                task._latents = lambda *arguments, k=k: kept.setdefault(k, made(*arguments))
            else:
                task._latents = lambda *_, k=k: kept[k]
            losses.append(task.training_step(rows(2), step(1000 + k))["erase"].item())
        task._latents = made
        return sum(losses)

    before = erasing()
    for k in range(10):
        optimizer.zero_grad()
        sum(task.training_step(rows(2), step(k)).values()).backward()
        optimizer.step()
    assert erasing() < 0.7 * before
