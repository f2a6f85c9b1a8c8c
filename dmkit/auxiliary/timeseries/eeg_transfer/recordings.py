"""Recordings with labels and participants, in memory or in files, and windows of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from ....errors import FileFormatError
from ....training.randomness import derive_seed
from .preprocessing import EEGPreprocessor
from .signal import CLASSES, Signal

if TYPE_CHECKING:
    import mne

KEY = "eeg"  # of the tensor in a recording's file


class Recordings:
    """Recordings of one kind.

    Args:
        data: of each recording float32 (C, T), or a safetensors file of such a tensor, which is read window
            by window.
        labels: classes, from 0.
        subjects: participants; one may have several recordings.
        signal: channels, rate, classes, preprocessing.

    Raises:
        ValueError: lists of different length, none at all, another number of channels, a class out of range,
            values that are not finite.
        FileFormatError: a file that is not one of these.
    """

    def __init__(
        self,
        data: Sequence[Tensor | Path],
        labels: Sequence[int],
        subjects: Sequence[str],
        signal: Signal,
    ):
        if not len(data) == len(labels) == len(subjects) or not len(data):
            raise ValueError(
                f"One label and one subject for each recording, not {len(labels)} and {len(subjects)} for "
                f"{len(data)}."
            )
        self.data, self.signal = list(data), signal
        self.labels, self.subjects = [int(y) for y in labels], [str(s) for s in subjects]
        if bad := [y for y in self.labels if not 0 <= y < len(signal.classes)]:
            raise ValueError(f"Label {bad[0]} is none of {len(signal.classes)} classes from 0.")
        self.lengths = [self._length(k) for k in range(len(self.data))]

    def _length(self, k: int) -> int:
        values = self.data[k]
        shape = tuple(values.shape) if isinstance(values, Tensor) else _shape(values)
        if len(shape) != 2 or shape[0] != len(self.signal.ch_names):
            raise ValueError(
                f"Recording {k} ({self.subjects[k]}) has the shape {shape}; "
                f"({len(self.signal.ch_names)}, T) is expected."
            )
        if isinstance(values, Tensor) and not bool(values.isfinite().all()):
            raise ValueError(f"Recording {k} ({self.subjects[k]}) has values that are not finite.")
        return shape[1]

    @classmethod
    def from_raws(
        cls,
        raws: Sequence[mne.io.BaseRaw],
        labels: Sequence[int],
        subjects: Sequence[str],
        preprocessor: EEGPreprocessor | None = None,
        classes: Sequence[str] = CLASSES,
    ) -> Recordings:
        """Recordings of MNE, preprocessed, in memory."""
        made = preprocessor or EEGPreprocessor()
        signal = Signal(made.channels, made.sfreq, tuple(classes), made.to_json())
        data: list[Tensor | Path] = [
            torch.from_numpy(made(raw, f"Recording {k}").get_data()).float() for k, raw in enumerate(raws)
        ]
        return cls(data, labels, subjects, signal)

    def __len__(self) -> int:
        return len(self.data)

    def read(self, k: int, start: int, stop: int) -> Tensor:
        """Samples start to stop of a recording, (C, stop - start)."""
        values = self.data[k]
        if isinstance(values, Tensor):
            return values[:, start:stop]
        with _opened(values) as file:
            return file.get_slice(KEY)[:, start:stop]

    def select(self, indices: Sequence[int]) -> Recordings:
        """Some of the recordings."""
        data, labels, subjects = (
            [column[k] for k in indices] for column in (self.data, self.labels, self.subjects)
        )
        return Recordings(data, labels, subjects, self.signal)  # type: ignore[arg-type]

    def joined(self, other: Recordings) -> Recordings:
        """These and others of the same kind."""
        self.signal.check(other.signal)
        return Recordings(
            self.data + other.data, self.labels + other.labels, self.subjects + other.subjects, self.signal
        )

    def participants(self) -> dict[str, list[int]]:
        """Each participant's recordings."""
        found: dict[str, list[int]] = {}
        for k, subject in enumerate(self.subjects):
            found.setdefault(subject, []).append(k)
        return found

    def by_class(self, seed: int) -> list[list[str]]:
        """Participants of each class in random order; one with several labels counts as the largest."""
        generator = torch.Generator().manual_seed(derive_seed(seed, 11))
        found: list[list[str]] = [[] for _ in self.signal.classes]
        for subject, rows in sorted(self.participants().items()):
            found[max(self.labels[k] for k in rows)].append(subject)
        return [[names[k] for k in torch.randperm(len(names), generator=generator)] for names in found]

    def of(self, subjects: Sequence[str]) -> Recordings:
        """All recordings of some participants, in their order here."""
        wanted = set(subjects)
        return self.select([k for k, subject in enumerate(self.subjects) if subject in wanted])

    def share(self, fraction: float, seed: int = 0) -> Recordings:
        """Those of a share of the participants of each class, at least one; of one seed, smaller shares are
        parts of larger ones.

        Raises:
            ValueError: a share outside (0, 1].
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"A share of participants is {fraction}; it must be in (0, 1].")
        groups = self.by_class(seed)
        return self.of([s for names in groups for s in names[: max(1, round(fraction * len(names)))]])

    def split(self, share: float, seed: int = 0) -> tuple[Recordings, Recordings]:
        """Train and validation, by participants, the latter with a share of each class and at least one.

        Raises:
            ValueError: a share outside (0, 1), or a class with one participant.
        """
        if not 0 < share < 1:
            raise ValueError(f"A share of participants is {share}; it must be in (0, 1).")
        groups = self.by_class(seed)
        for name, names in zip(self.signal.classes, groups, strict=True):
            if len(names) == 1:
                raise ValueError(f"One participant is {name}; a split needs two of each class.")
        counts = [min(max(1, round(share * len(names))), len(names) - 1) for names in groups]
        parts = [(names[n:], names[:n]) for names, n in zip(groups, counts, strict=True)]
        return (
            self.of([s for part, _ in parts for s in part]),
            self.of([s for _, part in parts for s in part]),
        )


def check_disjoint(**parts: Recordings) -> None:
    """That no participant is in two parts.

    Raises:
        ValueError: one is.
    """
    seen: dict[str, str] = {}
    for name, part in parts.items():
        for subject in part.participants():
            if subject in seen:
                raise ValueError(f"Participant {subject} is in both {seen[subject]} and {name}.")
        seen |= dict.fromkeys(part.participants(), name)


class EEGWindows(Dataset):
    """Windows of recordings, read when they are asked for.

    An item has "x" (C, window) float32, "y", the "recording" it is of, and "fresh": how many samples its end
    lies after that of the window before it, or the stride for the first one.

    Args:
        recordings: where windows are cut.
        window: samples.
        stride: samples from one window to the next; those of the network's predictions, so that none is made
            twice.
        keep_last: a last window that ends with the recording, where something is left over.

    Attributes:
        starts: (recording, first sample, fresh) of each window.

    Raises:
        ValueError: a window or stride below 1, a recording shorter than a window.
    """

    def __init__(self, recordings: Recordings, window: int, stride: int, keep_last: bool = False):
        if window < 1 or stride < 1:
            raise ValueError(f"window is {window}, stride {stride}; both must be at least 1.")
        self.recordings, self.window, self.stride = recordings, window, stride
        self.starts: list[tuple[int, int, int]] = []
        for k, length in enumerate(recordings.lengths):
            if length < window:
                raise ValueError(
                    f"Recording {k} ({recordings.subjects[k]}) has {length} samples; a window has {window}."
                )
            starts = range(0, length - window + 1, stride)
            self.starts += [(k, start, stride) for start in starts]
            if keep_last and (left := length - window - starts[-1]):
                self.starts.append((k, length - window, left))

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        k, start, fresh = self.starts[index]
        x = self.recordings.read(k, start, start + self.window)
        return {"x": x, "y": self.recordings.labels[k], "recording": k, "fresh": fresh}


def windows_from_raws(
    raws: Sequence[mne.io.BaseRaw],
    labels: Sequence[int],
    subjects: Sequence[str],
    window: int = 6000,
    stride: int | None = None,
    preprocessor: EEGPreprocessor | None = None,
) -> EEGWindows:
    """Windows of recordings of MNE, preprocessed; stride: the window's by default."""
    return EEGWindows(Recordings.from_raws(raws, labels, subjects, preprocessor), window, stride or window)


def _opened(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt")
    except (OSError, SafetensorError) as error:
        raise FileFormatError(f"{path} is missing, truncated or not a safetensors file: {error}") from error


def _shape(path: Path) -> tuple[int, ...]:
    with _opened(path) as file:
        if KEY not in file.keys():  # noqa: SIM118
            raise FileFormatError(f"{path} has no tensor {KEY!r}.")
        return tuple(file.get_slice(KEY).get_shape())
