"""Recordings of MNE, made alike: the steps of the released code in their order."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from ....errors import MissingExtraError, unknown_name
from .signal import CHANNELS

if TYPE_CHECKING:
    import mne

FLOOR = 1e-6  # of a deviation, in µV; what is below is a channel without a signal
# The newer names of four electrodes.
_RENAMED = {"T7": "T3", "T8": "T4", "P7": "T5", "P8": "T6"}


def import_mne() -> ModuleType:
    """MNE.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import mne
    except ImportError as error:
        raise MissingExtraError("MNE", "eeg") from error
    return mne


def plain_name(name: str) -> str:
    """An electrode's name without its montage: "EEG Fp1-REF" and "FP1" are "FP1", "T7" is "T3"."""
    name = re.sub(r"^EEG\s+|[-\s](REF|LE|AVG)$", "", name.strip().upper())
    return _RENAMED.get(name, name)


@dataclass(frozen=True)
class EEGPreprocessor:
    """Crop, pick and order channels, microvolts, clip, resample, reference, (filter,) normalise.

    Attributes:
        tmin: seconds left out at the start.
        duration: seconds kept after that, or as many as there are; None for all. The released code keeps
            five minutes, a tutorial of its author says that the study kept up to twenty.
        sfreq: samples a second afterwards.
        clip_uv: microvolts at which both sides are clipped, before resampling.
        reference: "average" over all channels, or "none".
        band: a band-pass in Hz, either end of which may be None; None for no filter. Hospitals whose
            recordings were filtered differently need one here.
        normalize: "zscore", each channel of a recording to mean 0 and deviation 1; or "none".
        channels: those that are kept, in this order.

    Raises:
        ValueError: values out of range.
    """

    tmin: float = 60.0
    duration: float | None = 300.0
    sfreq: float = 100.0
    clip_uv: float = 800.0
    reference: str = "average"
    band: tuple[float | None, float | None] | None = None
    normalize: str = "zscore"
    channels: tuple[str, ...] = CHANNELS

    def __post_init__(self) -> None:
        if not self.tmin >= 0:
            raise ValueError(f"tmin is {self.tmin}; it must be at least 0.")
        for name in ("duration", "sfreq", "clip_uv"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be positive.")
        if self.reference not in ("average", "none"):
            raise unknown_name("reference", self.reference, ("average", "none"))
        if self.normalize not in ("zscore", "none"):
            raise unknown_name("normalize", self.normalize, ("zscore", "none"))

    def to_json(self) -> str:
        """All settings but the channels, as JSON."""
        return json.dumps({k: v for k, v in asdict(self).items() if k != "channels"}, sort_keys=True)

    def __call__(self, raw: mne.io.BaseRaw, name: str = "The recording") -> mne.io.BaseRaw:
        """A recording, made alike; the given one, in volts, stays as it is.

        Args:
            raw: of MNE, with at least these channels.
            name: of the recording, for errors.

        Returns:
            The same kind of recording; its numbers are microvolts, or deviations where normalised.

        Raises:
            ValueError: channels that are missing or there twice, a recording that ends before `tmin`, values
                that are not finite.
        """
        raw = self._cut(raw.copy(), name)  # 1
        raw = self._picked(raw, name)  # 2, 3
        raw.load_data(verbose="ERROR")
        values = raw.get_data()
        if not np.isfinite(values).all():
            raise ValueError(f"{name} has values that are not finite.")
        flat = [
            c for c, deviation in zip(raw.ch_names, values.std(1) * 1e6, strict=True) if deviation < FLOOR
        ]
        if flat:
            warnings.warn(f"{name} has no signal in {', '.join(flat)}.", stacklevel=2)
        raw.apply_function(
            lambda x: np.clip(1e6 * x, -self.clip_uv, self.clip_uv), channel_wise=False
        )  # 4, 5
        if raw.info["sfreq"] != self.sfreq:
            raw.resample(self.sfreq, verbose="ERROR")  # 6
        if self.reference == "average":
            raw.set_eeg_reference("average", projection=False, verbose="ERROR")  # 7
        if self.band is not None:
            raw.filter(*self.band, verbose="ERROR")
        if self.normalize == "zscore":
            raw.apply_function(_standardised, channel_wise=False)  # 8
        return raw

    def _cut(self, raw: mne.io.BaseRaw, name: str) -> mne.io.BaseRaw:
        end = raw.n_times / raw.info["sfreq"]
        if self.tmin >= end:
            raise ValueError(f"{name} has {end:g} s; nothing is left after the first {self.tmin:g} s.")
        if self.duration is None or self.tmin + self.duration >= end:
            return raw.crop(self.tmin, verbose="ERROR")
        return raw.crop(self.tmin, self.tmin + self.duration, include_tmax=False, verbose="ERROR")

    def _picked(self, raw: mne.io.BaseRaw, name: str) -> mne.io.BaseRaw:
        there: dict[str, list[str]] = {}
        for channel in raw.ch_names:
            there.setdefault(plain_name(channel), []).append(channel)
        if missing := [c for c in self.channels if c not in there]:
            raise ValueError(
                f"{name} has no channel {', '.join(missing)}; there are {', '.join(raw.ch_names)}."
            )
        if twice := [c for c in self.channels if len(there[c]) > 1]:
            raise ValueError(f"{name} has {twice[0]} more than once: {', '.join(there[twice[0]])}.")
        raw.reorder_channels([there[c][0] for c in self.channels])  # drops all others
        raw.rename_channels({there[c][0]: c for c in self.channels if there[c][0] != c}, verbose="ERROR")
        return raw.set_channel_types(dict.fromkeys(self.channels, "eeg"), verbose="ERROR")


def _standardised(values: np.ndarray) -> np.ndarray:
    mean, deviation = values.mean(1, keepdims=True), values.std(1, keepdims=True)
    return (values - mean) / np.maximum(deviation, FLOOR)
