"""Folders of recordings: TUAB, NMT and BIDS, found, read by MNE, preprocessed once into a folder.

TUAB    ROOT/**/{train,eval}/{normal,abnormal}/**/SUBJECT_SESSION_TOKEN.edf
NMT     ROOT/**/{normal,abnormal}/{train,eval}/RECORDING.edf
BIDS    ROOT/participants.tsv, ROOT/sub-NAME/**/eeg/*_eeg.{edf,bdf,vhdr,set,fif}
"""

from __future__ import annotations

import csv
import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ...._files import atomic_file
from ....errors import FileFormatError, MissingDataError, unknown_name
from .preprocessing import EEGPreprocessor, import_mne
from .recordings import KEY, Recordings
from .signal import CLASSES, Signal

SPLITS = ("train", "eval")
_FORMATS = (".edf", ".bdf", ".vhdr", ".set", ".fif")


@dataclass(frozen=True)
class Entry:
    """A recording in a folder: its file, label, participant, and part of the data set."""

    path: Path
    label: int
    subject: str
    split: str


def find_tuab(root: str | Path) -> list[Entry]:
    """The recordings of the TUH Abnormal EEG Corpus, v2 and v3, whose files are called by participant.

    Raises:
        MissingDataError: there are none.
    """
    return _by_folders(Path(root), "TUAB", lambda path: path.stem.partition("_")[0])


def find_nmt(root: str | Path) -> list[Entry]:
    """The recordings of the NMT Scalp EEG Dataset, one a participant.

    Raises:
        MissingDataError: there are none.
    """
    return _by_folders(Path(root), "NMT", lambda path: path.stem)


def _by_folders(root: Path, what: str, subject: Any) -> list[Entry]:
    found = []
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts[:-1]
        labels = [CLASSES.index(p) for p in parts if p in CLASSES]
        splits = [p for p in parts if p in SPLITS]
        if path.suffix.lower() == ".edf" and labels and splits:
            found.append(Entry(path, labels[-1], subject(path), splits[-1]))
    if not found:
        raise MissingDataError(
            f"{root} has no recordings of {what}: *.edf in folders normal and abnormal, train and eval."
        )
    return found


def find_bids(
    root: str | Path,
    label: str = "pathological",
    split: str | None = "split",
    classes: Sequence[str] = CLASSES,
) -> list[Entry]:
    """The EEG recordings of a folder in BIDS, with what participants.tsv says of each participant.

    Args:
        root: the folder.
        label: column of the classes; values are names of `classes`, or 0, 1, or true and false.
        split: column with "train" or "eval"; None, or a column that is not there: all are "train".
        classes: names by label.

    Raises:
        MissingDataError: no participants.tsv, or no recordings.
        FileFormatError: no such column, a class that is none, a recording of nobody.
    """
    root = Path(root)
    table = root / "participants.tsv"
    if not table.is_file():
        raise MissingDataError(f"There is no {table}; a folder in BIDS has one.")
    with table.open(encoding="utf-8-sig", newline="") as file:
        people = {row["participant_id"]: row for row in csv.DictReader(file, delimiter="\t")}
    found = []
    for path in sorted(p for p in root.glob("sub-*/**/*") if p.parent.name == "eeg"):
        if path.suffix.lower() not in _FORMATS or not path.stem.endswith("_eeg"):
            continue
        subject = path.relative_to(root).parts[0]
        if subject not in people:
            raise FileFormatError(f"{table} has no participant {subject}, of whom {path.name} is.")
        if label not in people[subject]:
            raise FileFormatError(f"{table} has no column {label!r}; there are {', '.join(people[subject])}.")
        part = people[subject].get(split or "") or "train"
        if part not in SPLITS:
            raise FileFormatError(f"{table} has {part!r} as part of {subject}; known: train, eval.")
        found.append(Entry(path, _class(people[subject][label], classes, table), subject, part))
    if not found:
        raise MissingDataError(f"{root} has no files sub-*/**/eeg/*_eeg with one of {', '.join(_FORMATS)}.")
    return found


def _class(value: str, classes: Sequence[str], table: Path) -> int:
    known = {name.lower(): k for k, name in enumerate(classes)} | {str(k): k for k in range(len(classes))}
    known |= {"false": 0, "true": 1} if len(classes) == 2 else {}
    if value.strip().lower() not in known:
        raise FileFormatError(f"{table} has the class {value!r}; known: {', '.join(classes)}.")
    return known[value.strip().lower()]


LAYOUTS = {"tuab": find_tuab, "nmt": find_nmt, "bids": find_bids}


def find(root: str | Path, layout: str) -> list[Entry]:
    """The recordings of a folder in one of `LAYOUTS`.

    Raises:
        ValueError: an unknown layout.
    """
    if layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    return LAYOUTS[layout](root)


def prepare(
    entries: Sequence[Entry],
    preprocessor: EEGPreprocessor,
    folder: str | Path,
    *,
    classes: Sequence[str] = CLASSES,
    shortest: float = 0.0,
) -> Recordings:
    """Preprocesses recordings into a folder, one file each; what is there already is not made again.

    Args:
        entries: from `find`.
        preprocessor: for all.
        folder: of the results, 2.5 MB for five minutes of 21 channels.
        classes: names by label.
        shortest: recordings with fewer seconds afterwards are left out, with a warning.

    Raises:
        FileFormatError: a recording that MNE cannot read.
        ValueError: one that the preprocessor refuses, or nothing that is long enough.
        MissingExtraError: MNE is not installed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    signal = Signal(preprocessor.channels, preprocessor.sfreq, tuple(classes), preprocessor.to_json())
    metadata = {"preprocessing": signal.preprocessing, "ch_names": ",".join(signal.ch_names)}
    paths, kept, left_out = [], [], 0
    for entry in entries:
        mark = hashlib.sha256(str(entry.path.resolve()).encode()).hexdigest()[:10]
        target = folder / f"{entry.path.stem}-{mark}.safetensors"
        if (times := _made(target, metadata)) is None:
            times = _make(entry.path, target, preprocessor, metadata)
        if times < shortest * preprocessor.sfreq:
            left_out += 1
            continue
        paths.append(target)
        kept.append(entry)
    if left_out:
        warnings.warn(
            f"{left_out} of {len(entries)} recordings have less than {shortest:g} s and are left out.",
            stacklevel=2,
        )
    return Recordings(paths, [e.label for e in kept], [e.subject for e in kept], signal)


def _made(target: Path, metadata: dict[str, str]) -> int | None:
    """Samples of a file that was made in the same way, or None."""
    try:
        with safe_open(str(target), framework="pt") as file:
            return file.get_slice(KEY).get_shape()[1] if file.metadata() == metadata else None
    except (OSError, SafetensorError):
        return None


def _make(path: Path, target: Path, preprocessor: EEGPreprocessor, metadata: dict[str, str]) -> int:
    mne = import_mne()
    try:
        raw = mne.io.read_raw(path, preload=False, verbose="ERROR")
    except Exception as error:
        raise FileFormatError(f"{path} is no recording that MNE can read: {error!r}") from error
    values = torch.from_numpy(preprocessor(raw, str(path)).get_data()).float().contiguous()
    with atomic_file(target) as draft:
        save_file({KEY: values}, str(draft), metadata=metadata)
    return values.shape[1]
