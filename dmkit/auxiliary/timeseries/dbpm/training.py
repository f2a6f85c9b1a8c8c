"""Pre-training an encoder of series, with or without bad pairs put in, and a linear probe of it.

    python scripts/train_auxiliary.py --config scripts/recipes/dbpm.yaml

What the miner says of each sample is written to flags.csv in the output folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from ....data.series import NAMES, load_series
from ....errors import unknown_name
from ....training.arguments import TrainingArguments, hint
from .learning import TSTCC, SimCLR, pretrain
from .miner import BadPairMiner
from .networks import Encoder, Forecaster, Projector
from .pairs import AugmentedPairs, ContaminatedPairs, sines
from .probing import detection, linear_probe
from .views import Jitter, Scaling

LEARNERS = {"simclr": (SimCLR, Projector), "tstcc": (TSTCC, Forecaster)}
FLAGS = ("fine", "noisy", "faulty")


@dataclass
class Arguments:
    """Which series, which learner, and what is mined."""

    data: str = field(default="sines", metadata=hint(f"sines, or of aeon: {', '.join(NAMES)}."))
    samples: int = field(default=1024, metadata=hint("Number of sines."))
    labelled: int = field(default=150, metadata=hint("Series whose labels the probe has, at most."))
    noisy: float = field(default=0.15, metadata=hint("Share of pairs made noisy."))
    faulty: float = field(default=0.15, metadata=hint("Share of pairs made faulty."))
    learner: str = field(default="simclr", metadata=hint("simclr or tstcc."))
    mine: bool = field(default=True, metadata=hint("Weigh pairs by their history."))
    warmup: int = field(default=8, metadata=hint("Epochs before that."))
    beta_np: float = field(default=2.0, metadata=hint("Deviations below the mean of noisy pairs."))
    beta_fp: float = field(default=3.0, metadata=hint("Deviations above the mean of faulty pairs."))
    weighting: str = field(default="pdf", metadata=hint("pdf, pdf-unclipped, normalized or drop."))
    history: str = field(default="mean", metadata=hint("mean (the paper), linear, or code (as released)."))
    robust: bool = field(default=False, metadata=hint("Median and its deviation for mean and deviation."))
    temperature: float = field(default=0.2, metadata=hint("Of NT-Xent."))

    def __post_init__(self) -> None:
        if self.data not in ("sines", *NAMES):
            raise unknown_name("--data", self.data, ("sines", *NAMES))
        if self.learner not in LEARNERS:
            raise unknown_name("--learner", self.learner, LEARNERS)
        self.miner(1, 1)

    def miner(self, count: int, epochs: int) -> BadPairMiner:
        """The miner of these flags."""
        betas = self.beta_np, self.beta_fp
        return BadPairMiner(
            count, self.warmup, *betas, self.weighting, self.history, epochs=epochs, robust=self.robust
        )

    def load(self, seed: int) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Series to learn from, series with labels, and others to test on. Recorded ones are standardised
        by what is learned from.
        """
        if self.data == "sines":
            x, y = sines(self.samples, seed)
            test = sines(1000, seed + 10_000)
        else:
            (x, y), test = load_series(self.data), load_series(self.data, "test")
            mean, deviation = x.mean((0, 2), keepdim=True), x.std((0, 2), keepdim=True).clamp(min=1e-6)
            x, test = (x - mean) / deviation, ((test[0] - mean) / deviation, test[1])
        return x, (x[: self.labelled], y[: self.labelled]), test


def run(arguments: Arguments, training: TrainingArguments) -> dict[str, Any]:
    """Trains an encoder.

    Returns:
        "accuracy" of the probe; with a miner the areas of `detection` by all losses, where bad pairs were put
        in, and its statistics of the last epoch.
    """
    x, labelled, test = arguments.load(training.seed)
    pairs = ContaminatedPairs(
        AugmentedPairs(x, Scaling(0.1), Jitter(0.3)), arguments.noisy, arguments.faulty, training.seed
    )
    torch.manual_seed(training.seed)
    encoder = Encoder(x.shape[1])
    learner, head = LEARNERS[arguments.learner]
    miner = arguments.miner(len(x), training.num_epochs) if arguments.mine else None
    task = learner(encoder, head(), pairs, miner, arguments.temperature, training.seed)  # type: ignore[operator]
    pretrain(task, training)
    found: dict[str, Any] = {"accuracy": linear_probe(encoder, labelled, test)}
    if miner is not None:
        m = miner.mean_losses().cpu()
        found |= {"detection": detection(m.nan_to_num(float(m.nanmean())), pairs.kinds), **miner.statistics()}
        if PartialState().is_main_process:
            rows = zip(m.tolist(), miner.flags().tolist(), pairs.kinds.tolist(), strict=True)
            lines = [f"{i},{loss:.6g},{FLAGS[flag]},{FLAGS[k]}\n" for i, (loss, flag, k) in enumerate(rows)]
            text = "index,mean_loss,flag,made\n" + "".join(lines)
            (Path(training.output_dir) / "flags.csv").write_text(text, encoding="utf-8")
    return found
