"""What a network and its data must agree on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# Of both corpora, in the order of the alphabet.
CHANNELS = (
    *("A1", "A2", "C3", "C4", "CZ", "F3", "F4", "F7", "F8", "FP1", "FP2"),
    *("FZ", "O1", "O2", "P3", "P4", "PZ", "T3", "T4", "T5", "T6"),
)
CLASSES = ("normal", "abnormal")


@dataclass(frozen=True)
class Signal:
    """The contract of recordings, kept beside the weights.

    Attributes:
        ch_names: channels, in their order.
        sfreq: samples a second, above 0.
        classes: names by label.
        preprocessing: what was done to the recordings, as JSON; "" where that is not known.

    Raises:
        ValueError: no channel, a channel twice, fewer than two classes, a rate that is not positive.
    """

    ch_names: tuple[str, ...] = CHANNELS
    sfreq: float = 100.0
    classes: tuple[str, ...] = CLASSES
    preprocessing: str = ""

    def __post_init__(self) -> None:
        if not self.ch_names or len(set(self.ch_names)) < len(self.ch_names):
            raise ValueError(f"Channels must have different names, not {list(self.ch_names)}.")
        if len(self.classes) < 2:
            raise ValueError(f"At least two classes are needed, not {list(self.classes)}.")
        if not self.sfreq > 0:
            raise ValueError(f"sfreq is {self.sfreq}; it must be positive.")

    def check(self, other: Signal, what: str = "These recordings") -> None:
        """That other recordings are of the same kind.

        Raises:
            ValueError: they are not; the first difference is named.
        """
        mine, theirs = self.ch_names, other.ch_names
        if len(mine) != len(theirs):
            raise ValueError(f"{what} have {len(theirs)} channels; {len(mine)} are expected.")
        for k, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            if a != b:
                order = " (the same channels in another order)" if set(mine) == set(theirs) else ""
                raise ValueError(f"{what} have {b!r} as channel {k}; {a!r} is expected{order}.")
        for name in ("sfreq", "classes"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"{what} have {name} {getattr(other, name)}; {getattr(self, name)} is expected."
                )
        if self.preprocessing != other.preprocessing:
            here, there = (json.loads(s.preprocessing or "{}") for s in (self, other))
            changed = [k for k in {**here, **there} if here.get(k) != there.get(k)]
            detail = ", ".join(f"{k} {there.get(k)} for {here.get(k)}" for k in changed)
            raise ValueError(f"{what} were preprocessed otherwise: {detail}.")

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Signal:
        """The inverse of `to_json`."""
        return cls(
            tuple(content["ch_names"]),
            float(content["sfreq"]),
            tuple(content["classes"]),
            str(content["preprocessing"]),
        )
