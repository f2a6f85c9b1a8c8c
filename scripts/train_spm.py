"""Erases concepts from a text-to-image model: trains an SPM, or edits the model by ESD or UCE.

    accelerate launch scripts/train_spm.py --config scripts/recipes/spm-emoji.yaml --target heart

An SPM is a small adapter file, `output_dir/NAME.safetensors`, for `dmkit.adapters.SPM` or any reader of LoRA
files; ESD and UCE change the model and write the whole pipeline. `--official_config config.yaml` takes the
configuration of SPM's released code unchanged; flags override it.
"""

from __future__ import annotations

from dmkit.adapters.erasing.configure import erase, parse


def main(argv: list[str] | None = None) -> None:
    erase(*parse(argv, description=__doc__ or ""))


if __name__ == "__main__":
    main()
