"""Small recordings, networks and files of EEG; run by itself, one process of two."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dmkit.auxiliary.timeseries.eeg_transfer import CHANNELS, EEGNetwork, Recordings, Signal, fit
from dmkit.training.arguments import TrainingArguments

SMALL = Signal(("C3", "C4", "CZ"), 50.0)
WINDOW = 24


def training(folder: Path, **changes) -> TrainingArguments:
    flags = {
        "num_epochs": 2,
        "train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "max_grad_norm": 0,
        "checkpointing_steps": 0,
        "save_images_epochs": 0,
        "save_model_epochs": 0,
        "report_to": "none",
    }
    return TrainingArguments(**{**flags, "output_dir": str(folder), "seed": 4, **changes})


class Net(nn.Module):
    """Two blocks and a head, dense: 24 samples give 16 predictions; no randomness of its own."""

    def __init__(self, norm: bool = False, channels: int = 3):
        super().__init__()
        self.first = nn.Conv1d(channels, 6, 5)
        if norm:
            self.norm = nn.BatchNorm1d(6)
        self.second = nn.Conv1d(6, 5, 5)
        self.classify = nn.Conv1d(5, 2, 1)
        self.normed = norm

    def forward(self, x):
        z = self.first(x)
        return self.classify(self.second((self.norm(z) if self.normed else z).relu()).relu())


def network(norm: bool = False, seed: int = 0) -> EEGNetwork:
    torch.manual_seed(seed)
    return EEGNetwork(Net(norm), SMALL, WINDOW)


def recordings(count: int = 8, times: int = 60, seed: int = 0, name: str = "p") -> Recordings:
    """A slow wave in class 0, a fast one in class 1."""
    generator = torch.Generator().manual_seed(seed)
    labels = [k % 2 for k in range(count)]
    t = torch.arange(times) / SMALL.sfreq
    waves = torch.stack([(2 * torch.pi * (4 + 8 * y) * t).sin() for y in labels])[:, None]
    x = waves + 0.5 * torch.randn(count, 3, times, generator=generator)
    return Recordings(list(x), labels, [f"{name}{seed}-{k}" for k in range(count)], SMALL)


def write_edf(path: Path, values: np.ndarray, names: list[str], sfreq: int, unit: str = "uV") -> None:
    """An EDF file (Kemp et al. 1992) of records of a second: (C, T) microvolts, within ±3,276.7."""
    channels, times = values.shape
    records = times // sfreq

    def columns(width: int, entries: list) -> bytes:
        return "".join(str(entry).ljust(width) for entry in entries).encode("ascii")

    head = columns(8, ["0"]) + columns(80, ["X X X X", "Startdate 01-JAN-2020 X X X"])
    head += columns(8, ["01.01.20", "00.00.00", 256 * (channels + 1)]) + columns(44, [""])
    head += columns(8, [records, 1]) + columns(4, [channels])
    head += columns(16, names) + columns(80, [""] * channels) + columns(8, [unit] * channels)
    for value in (-3276.8, 3276.7, -32768, 32767):
        head += columns(8, [value] * channels)
    head += columns(80, [""] * channels) + columns(8, [sfreq] * channels) + columns(32, [""] * channels)
    whole = np.round(10 * values[:, : records * sfreq]).astype("<i2")
    body = whole.reshape(channels, records, sfreq).transpose(1, 0, 2).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + body)


def noise(seconds: float, sfreq: int, channels: int = len(CHANNELS), seed: int = 0) -> np.ndarray:
    """(C, T) microvolts, deviation 30."""
    return 30 * np.random.default_rng(seed).standard_normal((channels, round(seconds * sfreq)))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    trained = network()
    fit(trained, recordings(), training(folder / "two", train_batch_size=2), valid=recordings(4, seed=9))
    rank = torch.distributed.get_rank()
    torch.save(trained.network.state_dict(), folder / f"rank-{rank}.pt")
