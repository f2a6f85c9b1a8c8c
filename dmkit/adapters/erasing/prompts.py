"""What is erased: the entries of a prompts file, as the released code of SPM (Lyu et al. 2024) names them.

- target: snoopy            # what the adapted model is prompted with
  positive: snoopy          # what is subtracted; the target if not given
  unconditional: ""         # guidance's other half while denoising
  neutral: ""               # the surrogate concept; the unconditional prompt if not given
  action: erase_with_la     # or erase: without latent anchoring
  guidance_scale: 1.0       # η
  la_strength: 1000         # λ
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from ...errors import FileFormatError, unknown_name

ACTIONS = ("erase", "erase_with_la")
# Keys of a prompts file that the released training reads and never uses, or uses in its evaluation only.
UNUSED = ("use_template", "seed", "case_number")


@dataclass(frozen=True)
class ErasePrompt:
    """One concept to erase.

    Attributes:
        target: the concept, not empty.
        positive: what is subtracted from the surrogate; the target if None.
        unconditional: the prompt of guidance's unconditional half.
        neutral: the surrogate concept; the unconditional prompt if None.
        action: `erase_with_la` (with latent anchoring) or `erase`.
        guidance_scale: η >= 0, how far beyond the surrogate the target is pushed.
        resolution: side of the images in pixels; the pipeline's own if None.
        dynamic_resolution: draw height and width between half the resolution and all of it.
        batch_size: latents a step, at least 1.
        dynamic_crops: draw the original size and the crop that a StableDiffusionXL model is told.
        la_strength: λ >= 0, the weight of latent anchoring.
        sampling_batch_size: anchors a step, a multiple of `batch_size`.

    Raises:
        ValueError: a value out of its range, or an unknown action.
    """

    target: str
    positive: str | None = None
    unconditional: str = ""
    neutral: str | None = None
    action: str = "erase_with_la"
    guidance_scale: float = 1.0
    resolution: int | None = None
    dynamic_resolution: bool = False
    batch_size: int = 1
    dynamic_crops: bool = False
    la_strength: float = 1000.0
    sampling_batch_size: int = 4

    def __post_init__(self) -> None:
        if not self.target.strip():
            raise ValueError("The target of an erasing prompt is empty: name the concept to erase.")
        if self.action not in ACTIONS:
            raise unknown_name("action", self.action, ACTIONS)
        for name, what in (("guidance_scale", "η"), ("la_strength", "λ")):
            if not 0 <= (value := getattr(self, name)) < float("inf"):
                raise ValueError(f"{name} ({what}) of {self.target!r} is {value}; it must be at least 0.")
        for name in ("batch_size", "sampling_batch_size", "resolution"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} of {self.target!r} is {value}; it must be at least 1.")
        if self.sampling_batch_size % self.batch_size:
            raise ValueError(
                f"sampling_batch_size of {self.target!r} is {self.sampling_batch_size}; it must be a "
                f"multiple of batch_size, {self.batch_size}."
            )
        object.__setattr__(self, "positive", self.target if self.positive is None else self.positive)
        object.__setattr__(self, "neutral", self.unconditional if self.neutral is None else self.neutral)

    @property
    def anchored(self) -> bool:
        """Whether there is a loss of latent anchoring."""
        return self.action == "erase_with_la" and self.la_strength > 0

    @property
    def anchors_per_latent(self) -> int:
        return self.sampling_batch_size // self.batch_size

    def size(self, choices: random.Random, unit: int, default: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a step's images in pixels, multiples of `unit`.

        With `dynamic_resolution` both are uniform over the multiples from half the resolution to all of it,
        both ends included (the released code leaves the upper end out, so that no latent of the model's own
        size is ever seen).

        Raises:
            ValueError: a resolution that is not a multiple of `unit`.
        """
        height, width = default if self.resolution is None else (self.resolution, self.resolution)
        if height % unit or width % unit:
            raise ValueError(
                f"resolution of {self.target!r} is {height}x{width}; this model takes multiples of {unit}."
            )
        if not self.dynamic_resolution:
            return height, width
        return _between(height, unit, choices), _between(width, unit, choices)


def _between(side: int, unit: int, choices: random.Random) -> int:
    most = side // unit
    return unit * choices.randint(-(-most // 2), most)


def read_prompts(path: str | Path) -> tuple[list[ErasePrompt], list[str]]:
    """The entries of a prompts file, and the keys in it that have no effect here.

    As in the released code, `action` is `erase` where an entry of a file does not say, and numbers may be
    written as strings.

    Raises:
        FileFormatError: not YAML, no list of entries, an entry without a target, or a value of another type.
        ValueError: an unknown key (with the nearest one), or a value out of its range.
    """
    entries = load_yaml(path)
    if not isinstance(entries, list) or not entries:
        raise FileFormatError(f"{path} should hold a list of prompts, each with at least a `target`.")
    unused: set[str] = set()
    prompts = []
    for k, entry in enumerate(entries):
        where = f"entry {k + 1} of {path}"
        if not isinstance(entry, Mapping):
            raise FileFormatError(f"{where} should be a mapping, not {type(entry).__name__}.")
        check_keys(f"key in {where}", entry, [*(f.name for f in fields(ErasePrompt)), *UNUSED])
        if entry.get("target") is None:
            raise FileFormatError(f"{where} has no target.")
        unused |= entry.keys() & set(UNUSED)
        given = {name: value for name, value in entry.items() if name not in UNUSED and value is not None}
        prompts.append(ErasePrompt(**{"action": "erase", **converted(ErasePrompt, given, where)}))
    return prompts, sorted(unused)


def load_yaml(path: str | Path) -> Any:
    """What a YAML file holds.

    Raises:
        FileFormatError: a missing file, or one that is not YAML.
    """
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise FileFormatError(f"{path} is missing or is not valid YAML: {error}") from error


def check_keys(what: str, given: Mapping[Any, Any], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise unknown_name(what, str(name), known)


def converted(kind: type, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values as their dataclass wants them: the released files write `"1.0"`, and YAML reads `5e-05` as a
    string.
    """
    types = {f.name: str(f.type).removesuffix(" | None") for f in fields(kind)}
    to: dict[str, Callable[[Any], Any]] = {"str": str, "int": int, "float": float, "bool": _boolean}
    result = {}
    for name, value in given.items():
        try:
            result[name] = to[types[name]](value)
        except (TypeError, ValueError) as error:
            raise FileFormatError(f"{name} in {where} is {value!r}; it should be {types[name]}.") from error
    return result


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    known = {"true": True, "false": False}
    if (word := str(value).lower()) not in known:
        raise ValueError(word)
    return known[word]
