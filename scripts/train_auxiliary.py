"""Trains one of the neighbouring methods of dmkit.auxiliary.

    python scripts/train_auxiliary.py --config scripts/recipes/cuber.yaml
    python scripts/train_auxiliary.py --method cuber --help

Every method adds flags of its own to those that all training scripts share. What it measured is printed, and
written to result.json in the output folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from accelerate import PartialState

from dmkit import auxiliary
from dmkit._files import save_json
from dmkit.training.arguments import TrainingArguments, hint, parse_arguments


@dataclass
class Choice:
    """Which method."""

    method: str = field(default="", metadata=hint("A method of dmkit.auxiliary."))


def chosen(argv: list[str]) -> str | None:
    """The method that a command line, or its recipe, names."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--method")
    first.add_argument("--config", type=Path)
    known, _ = first.parse_known_args(argv)
    if known.method is None and known.config is not None:
        recipe = yaml.safe_load(known.config.read_text(encoding="utf-8"))
        return recipe.get("method") if isinstance(recipe, dict) else None
    return known.method


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    if (name := chosen(argv)) is None:
        known = "\n".join(f"  {m.name:12} {m.summary}" for m in auxiliary.methods() if m.trains)
        print(f"{__doc__}\nMethods:\n{known}", file=sys.stderr)
        sys.exit(0 if {"-h", "--help"} & set(argv) else 2)
    kind, run = auxiliary.training(name)
    _, arguments, training = parse_arguments(Choice, kind, TrainingArguments, description=__doc__, argv=argv)
    figures = run(arguments, training)
    if PartialState().is_main_process:
        output = Path(training.output_dir)
        output.mkdir(parents=True, exist_ok=True)
        save_json(output / "result.json", figures)
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
