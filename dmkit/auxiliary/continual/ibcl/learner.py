"""The knowledge base of IBCL: posteriors of all tasks, and models for preferences over them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...._files import atomic_folder, load_json, load_tensors, save_json
from ....auxiliary import stage
from ....errors import FileFormatError, unknown_name
from ....training.arguments import TrainingArguments
from ....training.trainer import Trainer
from .gaussians import DISTANCES, Gaussian, Mixture, distance, draw, interpolate
from .variational import VariationalTask, gaussian_network

COMBINATIONS = ("interpolate", "mixture")
FORMAT = 1
TENSORS, CONFIG = "posteriors.safetensors", "config.json"


class IBCL:
    """Keeps m posteriors a task and makes models of them.

    Args:
        module: the network; all its parameters are in `Linear` and `Conv2d` layers. It gives shapes, and with
            `start="module"` the weights to start from. A linear one is the safe choice: averaged weights of
            deeper ones make sense only where they share a basin, so start those from one ordinary fit.
        prior_scales: s_j of the m priors of the first task, positive.
        discard_threshold: a new posterior this near to a kept one is not kept; 0 keeps all but duplicates.
        distance: `w2` or `w2_per_dim`, see `distance`.
        kl_weight: as for `VariationalTask`.
        start: where the first task's means start: `prior` (0) or `module`.
        likelihood: outputs, labels -> mean negative log-likelihood.

    Raises:
        ValueError: a number out of range, an unknown name, or a network with other layers.
    """

    def __init__(
        self,
        module: nn.Module,
        prior_scales: Sequence[float] = (2.0, 2.5, 3.0),
        discard_threshold: float = 0.0,
        *,
        distance: str = "w2",
        kl_weight: float = 1.0,
        start: str = "prior",
        likelihood: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ):
        if not prior_scales or not all(scale > 0 for scale in prior_scales):
            raise ValueError(f"prior_scales are positive and at least one, not {list(prior_scales)}.")
        if not discard_threshold >= 0:
            raise ValueError(f"discard_threshold is a distance, at least 0, not {discard_threshold}.")
        if not kl_weight >= 0:
            raise ValueError(f"kl_weight is at least 0, not {kl_weight}.")
        for what, name, known in (("distance", distance, DISTANCES), ("start", start, ("prior", "module"))):
            if name not in known:
                raise unknown_name(what, name, known)
        gaussian_network(module)  # refuses other layers
        self.module, self.prior_scales = module, tuple(float(s) for s in prior_scales)
        self.discard_threshold, self.distance = discard_threshold, distance
        self.kl_weight, self.start, self.likelihood = kl_weight, start, likelihood
        self.shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
        self.kept: dict[tuple[int, int], Gaussian] = {}
        self.reuse: dict[tuple[int, int], tuple[int, int]] = {}
        self.n_tasks = 0

    @property
    def n_stored(self) -> int:
        """How many posteriors are kept."""
        return len(self.kept)

    def prior(self, j: int) -> Gaussian:
        """What posterior j of the next task starts from."""
        if self.n_tasks:
            return self.posterior(self.n_tasks - 1, j)
        own = self._flat()
        return Gaussian(torch.zeros_like(own), torch.full_like(own, self.prior_scales[j]))

    def fit_task(self, dataset: Dataset, training: TrainingArguments) -> list[float]:
        """Learns the next task: one training for each prior, whatever preferences come later.

        Args:
            dataset: items with `inputs` and `labels`.
            training: how; each training has a folder of its own in `output_dir`.

        Returns:
            The distance of each new posterior to the nearest kept one (infinite for the very first).
        """
        t, fresh = self.n_tasks, []
        for j in range(len(self.prior_scales)):
            task = VariationalTask(
                self.module,
                self.prior(j),
                len(dataset),  # type: ignore[arg-type]
                kl_weight=self.kl_weight,
                likelihood=self.likelihood,
                start=self._flat() if self.start == "module" and not t else None,
            )
            Trainer(task, dataset, stage(training, f"task-{t}-prior-{j}")).train()
            fresh.append(task.posterior())
        return self.add_task(fresh)

    def add_task(self, posteriors: Sequence[Gaussian]) -> list[float]:
        """Takes the m posteriors of a task, in order, wherever they come from; see `fit_task`.

        Raises:
            ValueError: another number of them, or of weights.
        """
        if len(posteriors) != len(self.prior_scales):
            raise ValueError(f"A task has {len(self.prior_scales)} posteriors, not {len(posteriors)}.")
        width, found = len(self._flat()), []
        for j, fresh in enumerate(posteriors):
            if fresh.loc.shape != (width,) or fresh.scale.shape != (width,) or not (fresh.scale > 0).all():
                raise ValueError(f"A posterior has means and positive scales of shape ({width},).")
            away = {key: distance(fresh, kept, self.distance) for key, kept in self.kept.items()}
            nearest = min(away, key=away.__getitem__, default=None)
            found.append(float("inf") if nearest is None else away[nearest])
            if nearest is not None and found[-1] <= self.discard_threshold:
                self.reuse[self.n_tasks, j] = nearest
            else:
                self.kept[self.n_tasks, j] = fresh
        self.n_tasks += 1
        return found

    def posterior(self, task: int, j: int) -> Gaussian:
        """Posterior j of a task, or what stands for it.

        Raises:
            ValueError: a task that has not been learned, or another j.
        """
        if not 0 <= task < self.n_tasks or not 0 <= j < len(self.prior_scales):
            raise ValueError(
                f"There are {self.n_tasks} tasks with {len(self.prior_scales)} posteriors each, no {task, j}."
            )
        return self.kept[self.reuse.get((task, j), (task, j))]

    def interpolated(self, preference: Sequence[float], *, normalize: bool = False) -> Gaussian:
        """N(Σ β μ, (Σ β σ)²) of a preference; see `generate` for the arguments."""
        components, weights = self._combination(preference, normalize)
        return interpolate(components, weights)

    def mixture(self, preference: Sequence[float], *, normalize: bool = False) -> Mixture:
        """Σ β q of a preference (equation 1); see `generate` for the arguments."""
        return Mixture(*self._combination(preference, normalize))

    def mean(self, preference: Sequence[float], *, normalize: bool = False) -> dict[str, Tensor]:
        """The state dict of the interpolated posteriors' mean: the plain average of weights."""
        return self._state(self.interpolated(preference, normalize=normalize).loc)

    def generate(
        self,
        preference: Sequence[float],
        alpha: float = 0.01,
        n_samples: int = 1,
        *,
        combine: str = "interpolate",
        region: str = "hdr",
        normalize: bool = False,
        generator: torch.Generator | None = None,
    ) -> list[dict[str, Tensor]]:
        """Models for a preference, without training.

        Args:
            preference: a weight for each task learned so far, not negative, of sum 1.
            alpha: the probability outside the region that is drawn from, in (0, 1).
            n_samples: how many, at least 1.
            combine: `interpolate` (moments, as in the released code) or `mixture` (equation 1).
            region: of the interpolated Gaussian: `hdr` (an ellipsoid, drawn from uniformly), `box` (of joint
                probability 1 - α) or `marginal` (an interval of 1 - α for each weight, as in the released
                code; no highest density region). A mixture is drawn from itself within its `hdr`.
            normalize: divide the preference by its sum.
            generator: of the draws, on the CPU.

        Returns:
            State dicts for `module` or `torch.func.functional_call`.

        Raises:
            ValueError: no task yet, a preference that is none, a number out of range, or an unknown name.
        """
        if combine not in COMBINATIONS:
            raise unknown_name("combination", combine, COMBINATIONS)
        if n_samples < 1:
            raise ValueError(f"n_samples is at least 1, not {n_samples}.")
        if combine == "interpolate":
            gaussian = self.interpolated(preference, normalize=normalize)
            points = draw(gaussian, alpha, n_samples, region, generator)
        elif region != "hdr":
            raise ValueError(
                f"A mixture is drawn from its highest density region (hdr), not from {region!r}."
            )
        else:
            points = self.mixture(preference, normalize=normalize).draw(alpha, n_samples, generator)
        return [self._state(point) for point in points]

    def _combination(
        self, preference: Sequence[float], normalize: bool
    ) -> tuple[list[Gaussian], list[float]]:
        """Kept posteriors and β, the weight of each."""
        if not self.n_tasks:
            raise ValueError("No task has been learned yet.")
        weights = [float(w) for w in preference]
        if len(weights) != self.n_tasks:
            raise ValueError(
                f"A preference has {self.n_tasks} weights, one for each task, not {len(weights)}."
            )
        if not all(0 <= w < float("inf") for w in weights):
            raise ValueError(f"A preference has no negative or infinite weight, not {weights}.")
        total = sum(weights)
        if normalize and total > 0:
            weights = [w / total for w in weights]
        elif abs(total - 1) > 1e-6:
            raise ValueError(f"A preference sums to 1, not {total:g}; normalize=True divides by the sum.")
        m, betas = len(self.prior_scales), dict.fromkeys(self.kept, 0.0)
        for k, w in enumerate(weights):
            for j in range(m):
                betas[self.reuse.get((k, j), (k, j))] += w / m
        return list(self.kept.values()), list(betas.values())

    def _flat(self) -> Tensor:
        return torch.cat([p.detach().cpu().reshape(-1) for p in self.module.parameters()])

    def _state(self, flat: Tensor) -> dict[str, Tensor]:
        sizes = [torch.Size(shape).numel() for shape in self.shapes.values()]
        parts = zip(self.shapes.items(), flat.split(sizes), strict=True)
        return {name: part.reshape(shape).clone() for (name, shape), part in parts}

    # Files

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the kept posteriors (safetensors) and `config.json`; the folder is replaced as a whole."""
        tensors = {}
        for (t, j), gaussian in self.kept.items():
            for kind in ("loc", "scale"):
                for name, value in self._state(getattr(gaussian, kind)).items():
                    tensors[f"task{t}.prior{j}.{name}.{kind}"] = value.contiguous()
        with atomic_folder(folder) as draft:
            save_file(tensors, str(draft / TENSORS))
            save_json(
                draft / CONFIG,
                {
                    "format": FORMAT,
                    "settings": {
                        "prior_scales": self.prior_scales,
                        "discard_threshold": self.discard_threshold
                        if self.discard_threshold < float("inf")
                        else "inf",
                        "distance": self.distance,
                        "kl_weight": self.kl_weight,
                        "start": self.start,
                    },
                    "tasks": self.n_tasks,
                    "kept": [list(key) for key in self.kept],
                    "reuse": [[*key, *other] for key, other in self.reuse.items()],
                },
            )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike,
        module: nn.Module,
        likelihood: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ) -> IBCL:
        """The knowledge base that `save_pretrained` wrote.

        Args:
            folder: where it is.
            module: a network of the same shapes.
            likelihood: of tasks to come; it is not saved.

        Raises:
            FileFormatError: a missing or foreign file, or another network's.
        """
        content, tensors = load_json(Path(folder) / CONFIG), load_tensors(Path(folder) / TENSORS)
        if content.get("format") != FORMAT:
            raise FileFormatError(
                f"{folder} has format {content.get('format')}; this version reads {FORMAT}."
            )
        try:
            settings = dict(content["settings"])
            settings["discard_threshold"] = float(settings["discard_threshold"])
            base = cls(module, **settings, likelihood=likelihood)
            for t, j in content["kept"]:
                base.kept[t, j] = Gaussian(*(base._read(tensors, t, j, kind) for kind in ("loc", "scale")))
            base.reuse = {(t, j): (a, b) for t, j, a, b in content["reuse"]}
            base.n_tasks = content["tasks"]
            every = [(t, j) for t in range(base.n_tasks) for j in range(len(base.prior_scales))]
            if sorted([*base.kept, *base.reuse]) != every or not {*base.reuse.values()} <= {*base.kept}:
                raise ValueError("kept and reused posteriors are not one for each task and prior.")
            if not all((kept.scale > 0).all() for kept in base.kept.values()):
                raise ValueError("a scale is not positive.")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(f"{folder} does not fit this network: {error}") from error
        return base

    def _read(self, tensors: Mapping[str, Tensor], t: int, j: int, kind: str) -> Tensor:
        parts: list[Any] = []
        for name, shape in self.shapes.items():
            key = f"task{t}.prior{j}.{name}.{kind}"
            if key not in tensors:
                raise ValueError(f"{key} is missing.")
            if tuple(tensors[key].shape) != shape:
                raise ValueError(f"{key} has shape {tuple(tensors[key].shape)}, the network's is {shape}.")
            if not tensors[key].isfinite().all():
                raise ValueError(f"{key} holds NaN or infinite values.")
            parts.append(tensors[key].reshape(-1))
        return torch.cat(parts)
