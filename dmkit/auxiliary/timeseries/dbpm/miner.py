"""The memory of losses, the bad pairs that it shows, and their weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from ....errors import TrainingError, unknown_name

WEIGHTINGS, HISTORIES = ("pdf", "pdf-unclipped", "normalized", "drop"), ("mean", "linear", "code")
NOISY, FAULTY = 1, 2
EQUAL = 1e-8  # a deviation below which all pairs are alike and none is bad


class BadPairMiner(ModelMixin, ConfigMixin):
    """Weights for the losses of positive pairs, by their history.

    Two sums for each sample are kept, which give the same means as all losses would. All of the state is in
    buffers, so that `save_pretrained`, `state_dict` and checkpoints hold it.

    Args:
        num_samples: N, of the data set.
        warmup_epochs: epochs without weights, at least 1.
        beta_np: β_np of (3), above 0; infinity finds no noisy pair.
        beta_fp: β_fp of (3), likewise for faulty pairs.
        weighting: of bad pairs: "pdf", the paper's (4) clipped at 1; "pdf-unclipped", (4) to the letter;
            "normalized", (4) over its peak, exp(-z²/2); "drop", 0.
        history: "mean", the paper's (1); "linear", a mean in which epoch e' counts 1 + e'; "code", that of
            the released code, which is far below any loss, so that weights come near 0.
        epochs: E, for "code".
        robust: median and scaled median deviation in place of (2), for many bad pairs.

    Raises:
        ValueError: values out of range.
    """

    @register_to_config
    def __init__(
        self,
        num_samples: int,
        warmup_epochs: int,
        beta_np: float = 2.0,
        beta_fp: float = 3.0,
        weighting: str = "pdf",
        history: str = "mean",
        epochs: int | None = None,
        robust: bool = False,
    ):
        super().__init__()
        for name, count in (("num_samples", num_samples), ("warmup_epochs", warmup_epochs)):
            if count < 1:
                raise ValueError(f"{name} is {count}; it must be at least 1.")
        for name, beta in (("beta_np", beta_np), ("beta_fp", beta_fp)):
            if not beta > 0:
                raise ValueError(f"{name} is {beta}; it must be positive.")
        if weighting not in WEIGHTINGS:
            raise unknown_name("weighting", weighting, WEIGHTINGS)
        if history not in HISTORIES:
            raise unknown_name("history", history, HISTORIES)
        if history == "code" and (epochs is None or epochs < 1):
            raise ValueError('history="code" needs the number of epochs in all.')
        self.register_buffer("total", torch.zeros(num_samples))
        self.register_buffer("count", torch.zeros(num_samples))
        self.register_buffer("seen", torch.full((num_samples,), -1))
        self.register_buffer("flag", torch.zeros(num_samples, dtype=torch.int8))
        self.register_buffer("level", torch.zeros(2))
        self.register_buffer("epoch", torch.tensor(-1))

    def mean_losses(self) -> Tensor:
        """m (N,) of (1) as of now, over the epochs in which a sample was there; NaN for one never seen."""
        return self.total / self.count  # 0/0 is NaN

    def start_epoch(self, epoch: int) -> None:
        """Finds the bad pairs of an epoch, from the losses of those before; nothing where it has begun.

        Raises:
            ValueError: an epoch before the present one.
        """
        now = int(self.epoch)
        if epoch < now:
            raise ValueError(f"Epoch {epoch} cannot start after epoch {now}.")
        if epoch == now:
            return
        self.epoch.fill_(epoch)
        self.flag.zero_()
        self.level.zero_()
        m = self.mean_losses().double()
        known = m[~m.isnan()]
        if epoch < self.config.warmup_epochs or not len(known):
            return
        if self.config.robust:
            mu = known.quantile(0.5)
            sigma = 1.4826 * (known - mu).abs().quantile(0.5)
        else:
            mu, sigma = known.mean(), known.std(correction=0)  # (2)
        self.level.copy_(torch.stack([mu, sigma]))
        if sigma >= EQUAL:
            self.flag[m <= mu - self.config.beta_np * sigma] = NOISY  # (3)
            self.flag[m >= mu + self.config.beta_fp * sigma] = FAULTY

    def weights(self, indices: Tensor, losses: Tensor) -> Tensor:
        """Records losses, and gives their weights in (5).

        Args:
            indices: (B,) places in the data set, each once an epoch.
            losses: (B,), unweighted; any float type.

        Returns:
            (B,), without gradient, like the losses; all 1 in the warm-up.

        Raises:
            ValueError: losses that were reduced, indices out of range or twice in an epoch, no epoch begun.
            TrainingError: losses that are not finite, with their indices.
        """
        losses, indices = losses.detach().float(), indices.to(self.seen.device)
        self._check(indices, losses)
        epoch = int(self.epoch)
        self.seen[indices] = epoch
        factor = {"mean": 1.0, "linear": 1.0 + epoch, "code": (1.0 + epoch) / (self.config.epochs or 1)}
        self.total[indices] += factor[self.config.history] * losses
        self.count[indices] += 1.0 + epoch if self.config.history == "linear" else 1.0
        return torch.where(self.flag[indices] > 0, self.transformed(losses), torch.ones_like(losses))

    def transformed(self, losses: Tensor) -> Tensor:
        """T of (4), or what stands for it, of losses (B,)."""
        if self.config.weighting == "drop":
            return torch.zeros_like(losses)
        mu, sigma = self.level
        bell = (-0.5 * ((losses - mu) / sigma) ** 2).exp()
        if self.config.weighting == "normalized":
            return bell
        density = bell / (sigma * math.sqrt(2 * math.pi))
        return density.clamp(max=1) if self.config.weighting == "pdf" else density

    def _check(self, indices: Tensor, losses: Tensor) -> None:
        if losses.ndim != 1 or losses.shape != indices.shape:
            raise ValueError(
                f"One loss for each index is needed, (B,), not {tuple(losses.shape)} for "
                f'{tuple(indices.shape)}; a loss must not be reduced (reduction="none").'
            )
        if int(self.epoch) < 0:
            raise ValueError("No epoch has begun; call start_epoch(0).")
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self.seen):
            raise ValueError(
                f"Indices are {int(indices.min())} to {int(indices.max())}; "
                f"the data set has 0 to {len(self.seen) - 1}."
            )
        again = indices[self.seen[indices] == self.epoch].tolist()
        values, times = indices.unique(return_counts=True)
        if again := again + values[times > 1].tolist():
            raise ValueError(f"Twice in epoch {int(self.epoch)}: indices {again[:8]}.")
        if not losses.isfinite().all():
            raise TrainingError(f"Losses are not finite at indices {indices[~losses.isfinite()].tolist()}.")

    def flags(self) -> Tensor:
        """(N,) int8 of this epoch: 0 fine, 1 noisy, 2 faulty."""
        return self.flag.clone()

    def statistics(self) -> dict[str, Any]:
        """The epoch, μ, σ, both thresholds of (3), and how many pairs are noisy and faulty."""
        mu, sigma = self.level.tolist()
        return {
            "epoch": int(self.epoch),
            "mean": mu,
            "deviation": sigma,
            "noisy_below": mu - self.config.beta_np * sigma if sigma else None,
            "faulty_above": mu + self.config.beta_fp * sigma if sigma else None,
            "noisy": int((self.flag == NOISY).sum()),
            "faulty": int((self.flag == FAULTY).sum()),
        }

    def load_state_dict(self, state_dict: Any, *args: Any, **options: Any) -> Any:
        """As of any module.

        Raises:
            ValueError: the memory of another number of samples.
        """
        if "total" in state_dict and len(state_dict["total"]) != len(self.total):
            raise ValueError(
                f"This memory is of {len(state_dict['total'])} samples; the data set has {len(self.total)}."
            )
        return super().load_state_dict(state_dict, *args, **options)
