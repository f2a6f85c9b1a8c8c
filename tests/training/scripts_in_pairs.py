"""What each of two processes runs for `test_scripts_in_pairs.py`: training scripts, whole and cut off.

    torchrun --nproc_per_node 2 scripts_in_pairs.py FOLDER

FOLDER has a pipeline `start`, and captioned pictures `old` and `new`.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState
from running_scripts import script_main
from tiny_models import SIDE

COMMON = [
    *(
        "--max_train_steps",
        "6",
        "--learning_rate",
        "0.001",
        "--lr_warmup_steps",
        "1",
        "--train_batch_size",
        "3",
    ),
    *("--checkpointing_steps", "3", "--save_images_epochs", "0", "--report_to", "none"),
]
UNCONDITIONAL = [
    *("--dataset_name", "digits", "--resolution", "8", "--block_out_channels", "8", "8"),
    *("--norm_num_groups", "4", "--attention_head_dim", "4", "--dropout", "0.1"),
]


def whole_and_cut(main: Callable, folder: Path, flags: list[str]) -> None:
    """A run of six steps, and one that was killed behind its third and goes on."""
    state = PartialState()
    main([*COMMON, *flags, "--output_dir", str(folder / "whole")])
    if state.is_main_process:
        (folder / "cut").mkdir()
        shutil.copytree(folder / "whole" / "checkpoint-3", folder / "cut" / "checkpoint-3")
    state.wait_for_everyone()
    main([*COMMON, *flags, "--output_dir", str(folder / "cut"), "--resume_from_checkpoint", "latest"])


def scripts(folder: Path) -> None:
    hook = ("--comm_hook", "ef21", "--topk", "0.1", "--comm_start_iter", "1")
    with script_main("train_unconditional") as main:
        whole_and_cut(main, folder / "ef21", [*UNCONDITIONAL, *hook])
        main([*COMMON, *UNCONDITIONAL, "--output_dir", str(folder / "ef21" / "plain")])
    guard = [
        *("--pretrained_model_name_or_path", str(folder / "start"), "--dataset_name", str(folder / "new")),
        *("--cache_dir", str(folder / "cache"), "--resolution", str(SIDE), "--continual", "cuber"),
        *("--old_dataset_name", str(folder / "old"), "--old_examples", "8", "--continual_energy", "0.6"),
        *("--continual_eps1", "0.1"),
    ]
    with script_main("train_text_to_image") as main:
        whole_and_cut(main, folder / "cuber", guard)


if __name__ == "__main__":
    PartialState(cpu=True)
    scripts(Path(sys.argv[1]))
