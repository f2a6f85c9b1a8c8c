"""Training on a source hospital, and strategies over shares of a target's participants.

    python scripts/train_auxiliary.py --config scripts/recipes/eeg_transfer.yaml
    python scripts/train_auxiliary.py --config scripts/recipes/eeg_transfer.yaml --source PATH --target PATH

Without folders both hospitals are made. The network of the source is written to `source/network`, each fit of
the sweep to a folder `sweep/STRATEGY-SHARE-SEED`, all figures to `result.json`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ....errors import unknown_name
from ....training.arguments import TrainingArguments, hint
from ... import stage
from .files import LAYOUTS, find, prepare
from .hospitals import hospital
from .networks import NETWORKS, EEGNetwork
from .predicting import evaluate, shortcut, similarity
from .preprocessing import EEGPreprocessor
from .recordings import Recordings
from .sweep import fraction_sweep
from .transfer import STRATEGIES, Transfer, fit


@dataclass
class Arguments:
    """Whose recordings, which network, and which strategies on which shares."""

    source: str = field(default="", metadata=hint("Folder of the source's recordings; none: they are made."))
    source_layout: str = field(default="tuab", metadata=hint("Of that folder: tuab, nmt or bids."))
    target: str = field(default="", metadata=hint("Folder of the target's recordings."))
    target_layout: str = field(default="nmt", metadata=hint("Of that folder: tuab, nmt or bids."))
    cache: str = field(default="", metadata=hint("Folder of preprocessed recordings; in output_dir if none."))
    tmin: float = field(default=60.0, metadata=hint("Seconds left out at the start of a recording."))
    duration: float = field(default=300.0, metadata=hint("Seconds kept after that."))
    band: str = field(default="", metadata=hint("Band-pass of both hospitals, such as 2-33, in Hz."))
    source_recordings: int = field(default=240, metadata=hint("Of the made source."))
    target_recordings: int = field(default=160, metadata=hint("Of the made target."))
    test_recordings: int = field(default=300, metadata=hint("Of each made test."))
    disagree: bool = field(default=False, metadata=hint("The made source has its classes the other way."))
    network: str = field(default="shallow", metadata=hint(f"{', '.join(NETWORKS)}."))
    window: int = field(default=6000, metadata=hint("Samples of a window, 100 a second."))
    filters: int = field(default=0, metadata=hint("Filters of shallow; 0: braindecode's 40."))
    final_conv_length: int = field(default=0, metadata=hint("Of the network's last layer; 0: the default."))
    validation: float = field(default=0.2, metadata=hint("Share of the source's participants; 0: none."))
    strategies: str = field(default="scratch,finetune", metadata=hint(f"Of {', '.join(STRATEGIES)}."))
    fractions: str = field(default="0.0625,0.25,1", metadata=hint("Shares of the target's participants."))
    seeds: str = field(default="0", metadata=hint("Of the sweep."))
    target_epochs: int = field(
        default=12, metadata=hint("Of a fit of the target; num_epochs is the source's.")
    )
    target_learning_rate: float = field(default=5e-4, metadata=hint("Of fits that begin with the source's."))
    target_batch_size: int = field(default=16, metadata=hint("Of fits of the target."))
    frozen_blocks: int = field(default=1, metadata=hint("Of partial."))
    layer_decay: float = field(default=2.6, metadata=hint("Of discriminative."))
    freeze_norm: bool = field(default=False, metadata=hint("Keep statistics of batch norms in transfer."))
    class_weight: str = field(default="none", metadata=hint("none or balanced."))

    def __post_init__(self) -> None:
        for name in ("source_layout", "target_layout"):
            if (layout := getattr(self, name)) not in LAYOUTS:
                raise unknown_name(f"--{name}", layout, LAYOUTS)
        if bool(self.source) != bool(self.target):
            raise ValueError("--source and --target are folders both, or neither is given.")
        if self.network not in NETWORKS:
            raise unknown_name("--network", self.network, NETWORKS)
        for name in self.names():
            if name not in STRATEGIES:
                raise unknown_name("--strategies", name, STRATEGIES)
        if not all(0 < share <= 1 for share in self.shares()):
            raise ValueError(f"--fractions is {self.fractions}; shares must be in (0, 1].")
        if not 0 <= self.validation < 1:
            raise ValueError(f"--validation is {self.validation}; it must be in [0, 1).")
        self.preprocessor()
        self.transfer()

    def names(self) -> list[str]:
        """The strategies."""
        return [name.strip() for name in str(self.strategies).split(",")]

    def shares(self) -> list[float]:
        """The shares."""
        return [float(share) for share in str(self.fractions).split(",")]

    def preprocessor(self) -> EEGPreprocessor:
        """For the recordings of both folders."""
        band = None
        if self.band:
            low, dash, high = self.band.partition("-")
            if not dash:
                raise ValueError(f"--band is {self.band!r}; two frequencies such as 2-33 are expected.")
            band = (float(low) if low else None, float(high) if high else None)
        return EEGPreprocessor(tmin=self.tmin, duration=self.duration, band=band)

    def transfer(self) -> Transfer:
        """What the strategies have in common."""
        return Transfer("finetune", self.frozen_blocks, self.layer_decay, self.freeze_norm, self.class_weight)

    def load(self, name: str, training: TrainingArguments) -> tuple[Recordings, Recordings]:
        """A hospital's recordings to train on, and to test on."""
        if not getattr(self, name):
            count = self.source_recordings if name == "source" else self.target_recordings
            flags: dict[str, Any] = {
                "seconds": max(4.0, self.window / 100),
                "disagree": self.disagree and name == "source",
            }
            test = hospital(name, self.test_recordings, training.seed + 1000, **flags)
            return hospital(name, count, training.seed, **flags), test
        entries = find(getattr(self, name), getattr(self, f"{name}_layout"))
        cache = Path(self.cache or Path(training.output_dir) / "cache") / name
        state = PartialState()
        with state.main_process_first():
            parts = [
                prepare(
                    [entry for entry in entries if entry.split == split],
                    self.preprocessor(),
                    cache,
                    shortest=self.window / 100,
                )
                for split in ("train", "eval")
            ]
        return parts[0], parts[1]


def run(arguments: Arguments, training: TrainingArguments) -> dict[str, Any]:
    """Trains on the source, then sweeps.

    Returns:
        "source" and "zero_shot" figures, "worse_than_scratch", all "rows"; "shortcut", how well the source's
        features tell the hospitals apart; "similarity" of the last fine-tuned network to the source's, block
        by block.
    """
    source, source_test = arguments.load("source", training)
    target, target_test = arguments.load("target", training)
    valid = None
    if arguments.validation:
        source, valid = source.split(arguments.validation, training.seed)
    changes: dict[str, Any] = {}
    if arguments.filters and arguments.network == "shallow":
        changes = {"n_filters_time": arguments.filters, "n_filters_spat": arguments.filters}
    if arguments.final_conv_length:
        changes["final_conv_length"] = arguments.final_conv_length
    torch.manual_seed(training.seed)
    network = EEGNetwork.build(arguments.network, source.signal, arguments.window, **changes)
    fit(network, source, stage(training, "source"), transfer=arguments.transfer(), valid=valid)
    fits = {
        "num_epochs": arguments.target_epochs,
        "learning_rate": arguments.target_learning_rate,
        "train_batch_size": arguments.target_batch_size,
    }
    report = fraction_sweep(
        network,
        target,
        target_test,
        stage(training, "sweep", **fits),
        fractions=arguments.shares(),
        strategies=arguments.names(),
        seeds=[int(seed) for seed in str(arguments.seeds).split(",")],
        transfer=arguments.transfer(),
        rates=dict.fromkeys(("scratch", "joint"), training.learning_rate),
        source_train=source,
        source_test=source_test,
    )
    figures = report.to_json() | {"validation": {} if valid is None else evaluate(network, valid)}
    figures["shortcut"] = shortcut(network, source_test, target_test)
    if tuned := [row for row in report.rows if row["strategy"] == "finetune"]:
        last = f"finetune-{tuned[-1]['fraction']:g}-{tuned[-1]['seed']}"
        folder = Path(training.output_dir) / "sweep" / last / "network"
        figures["similarity"] = similarity(network, EEGNetwork.from_pretrained(folder), target_test)
    return figures
