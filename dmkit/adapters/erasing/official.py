"""The configuration files of SPM's released training, read unchanged into the arguments of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.utils.import_utils import is_xformers_available

from ...errors import FileFormatError, unknown_name
from .prompts import check_keys, load_yaml

PRECISIONS = {
    **dict.fromkeys(("fp32", "float32"), "no"),
    **dict.fromkeys(("fp16", "float16"), "fp16"),
    **dict.fromkeys(("bf16", "bfloat16"), "bf16"),
}
_SAMPLING = ("negative_prompt", "width", "height")
# Section -> key -> our argument; None for what has no effect here: what the model's own configs say, the
# optimiser (always AdamW) and the cycles of its schedule, what the released code itself ignores, evaluation.
SECTIONS: dict[str, dict[str, str | None]] = {
    "pretrained_model": {
        "name_or_path": "pretrained_model_name_or_path",
        **dict.fromkeys(("v2", "v_pred", "clip_skip")),
    },
    "network": {"rank": "rank", "alpha": "alpha"},
    "train": {
        "precision": "mixed_precision",
        "noise_scheduler": "noise_scheduler",
        "iterations": "max_train_steps",
        "batch_size": None,
        "lr": "learning_rate",
        "unet_lr": "learning_rate",
        "lr_scheduler": "lr_scheduler",
        "lr_warmup_steps": "lr_warmup_steps",
        "max_grad_norm": "max_grad_norm",
        "max_denoising_steps": "max_denoising_steps",
        **dict.fromkeys(("text_encoder_lr", "optimizer_type", "optimizer_args")),
        "lr_scheduler_num_cycles": "lr_num_cycles",
        "lr_scheduler_power": "lr_power",
        "lr_scheduler_args": None,
    },
    "save": {
        "name": "adapter_name",
        "path": "output_dir",
        "per_steps": "checkpointing_steps",
        "precision": None,
    },
    "logging": {
        "use_wandb": "report_to",
        "interval": "save_images_epochs",
        "prompts": "validation_prompts",
        "num_inference_steps": "validation_steps",
        "guidance_scale": "validation_guidance_scale",
        **dict.fromkeys(("run_name", "verbose", "anchor_prompt", "seed", "generate_num", "eval_num")),
        **dict.fromkeys(_SAMPLING),
    },
    "inference": dict.fromkeys(
        ("use_wandb", "num_inference_steps", "guidance_scale", "seeds", "precision", *_SAMPLING)
    ),
    "other": {"use_xformers": "enable_xformers_memory_efficient_attention"},
}


def read_config(path: str | Path) -> tuple[dict[str, Any], list[str]]:
    """Our arguments by name, and the keys of the file that have no effect here.

    The prompts file is looked for beside the configuration, by its name: the released files name it from the
    folder that the training is started in.

    Raises:
        FileFormatError: not YAML, or not of this layout; no prompts file where one is named.
        ValueError: an unknown section, key or precision, with the nearest one.
    """
    path = Path(path)
    content = load_yaml(path)
    if not isinstance(content, Mapping):
        raise FileFormatError(f"{path} should hold sections such as `train:`.")
    check_keys(f"section in {path}", content, ["prompts_file", *SECTIONS])
    arguments: dict[str, Any] = {}
    unused = []
    if content.get("prompts_file"):
        beside = path.parent / Path(content["prompts_file"]).name
        if not beside.is_file():
            raise FileFormatError(f"{path} names the prompts file {beside.name}, which is not beside it.")
        arguments["prompts_file"] = str(beside)
    for section, names in SECTIONS.items():
        given = content.get(section) or {}
        if not isinstance(given, Mapping):
            raise FileFormatError(f"`{section}` in {path} should hold keys, not {given!r}.")
        check_keys(f"key in section {section!r} of {path}", given, list(names))
        for key in names:  # in this order: unet_lr wins over lr, as in the released code
            if key not in given:
                continue
            argument, value = _translated(names[key], given[key])
            if argument is None:
                unused.append(f"{section}.{key}")
            elif value is not None:
                arguments[argument] = value
    return arguments, unused


def _translated(argument: str | None, value: Any) -> tuple[str | None, Any]:
    if argument == "mixed_precision":
        if value not in PRECISIONS:
            raise unknown_name("precision", str(value), PRECISIONS)
        return argument, PRECISIONS[value]
    if argument == "report_to":
        return argument, "wandb" if value else None
    if argument == "enable_xformers_memory_efficient_attention" and value and not is_xformers_available():
        return None, None  # PyTorch's own attention needs as little memory
    return argument, value
