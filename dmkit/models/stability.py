"""How steady a denoiser with long skips is: norms of features and gradients at each skip, the output's
sensitivity to noise in the input, and what ScaleLong's theorems say about them (arXiv 2310.13545).

For the network h_{i-1} = b_i(κ_i x_i + h_i) of ReLU blocks with Kaiming weights,

    E‖h_i‖² / ‖x‖² = 1 + Σ_{j>i} κ_j²                                        (theorem 1, in expectation)
    ‖∇ℓ‖² grows as Σ_j κ_j²                                                  (theorem 2)
    ‖f(x + δ) - f(x)‖ ≤ ‖δ‖ (Σ_i κ_i M^i + M^N L)                            (theorem 3)

with M the largest gain of a pair b_i ∘ a_i and L the middle's. Real networks concatenate, normalise and have
other gains: compare how a measured column moves with the coefficients, not its absolute height.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from .._files import load_json, save_json
from ..errors import FileFormatError, MissingExtraError
from ..training.trainer import Step, Task
from .scaling import SkipScaling
from .skips import apply_skip_scaling, long_skips, remove_skip_scaling


def growth(coefficients: Sequence[float]) -> list[float]:
    """Theorem 1: E‖h_i‖² / ‖x‖² for i = 0 … N, from κ_1 … κ_N."""
    sums = [1.0]
    for kappa in reversed(coefficients):
        sums.append(sums[-1] + kappa**2)
    return sums[::-1]


def sensitivity_bound(coefficients: Sequence[float], gain: float, middle: float) -> float:
    """Theorem 3: the largest ‖f(x + δ) - f(x)‖ / ‖δ‖, tight for scalar linear networks.

    Args:
        coefficients: κ_1 … κ_N.
        gain: M, the Lipschitz constant of a pair of blocks.
        middle: L, that of the middle.
    """
    skips = sum(kappa * gain**i for i, kappa in enumerate(coefficients, start=1))
    return skips + gain ** len(coefficients) * middle


@dataclass(frozen=True)
class StabilityReport:
    """What `stability_report` measures. Lists go from skip 1, the outermost, to skip N; a norm of features is
    a root mean square over batch and features.

    Attributes:
        loss: the loss.
        coefficients: norm of κ_i x_i over that of x_i; the mean gate where scaling is learned.
        skip_norms: norm of x_i.
        hidden_norms: norm of h_{i-1}, what the decoder block of skip i returns.
        middle_norm: norm of h_N.
        skip_gradients: ‖∂ℓ / ∂(κ_i x_i)‖.
        parameter_gradient: ‖∂ℓ / ∂W‖ over all parameters.
        sensitivity: ‖f(x + δ) - f(x)‖ / ‖δ‖ for a small Gaussian δ, root mean square over the batch.
    """

    loss: float
    coefficients: list[float]
    skip_norms: list[float]
    hidden_norms: list[float]
    middle_norm: float
    skip_gradients: list[float]
    parameter_gradient: float
    sensitivity: float

    @property
    def measured_growth(self) -> list[float]:
        """Mean square of h_0 … h_N over that of h_N."""
        return [(norm / self.middle_norm) ** 2 for norm in [*self.hidden_norms, self.middle_norm]]

    @property
    def predicted_growth(self) -> list[float]:
        """Theorem 1 for these coefficients, for h_0 … h_N."""
        return growth(self.coefficients)

    @property
    def predicted_sensitivity(self) -> float:
        """Theorem 3 for these coefficients and pairs of gain 1, over its value without scaling."""
        plain = sensitivity_bound([1.0] * len(self.coefficients), 1.0, 1.0)
        return sensitivity_bound(self.coefficients, 1.0, 1.0) / plain

    def to_markdown(self) -> str:
        """A table of one row a skip, measured values beside the theorem's."""
        header = "| skip | κ_i | ‖x_i‖ | ‖h_{i-1}‖ | growth | theorem 1 | gradient |\n" + "| --- " * 7 + "|\n"
        columns = (
            self.coefficients,
            self.skip_norms,
            self.hidden_norms,
            self.measured_growth[:-1],
            self.predicted_growth[:-1],
            self.skip_gradients,
        )
        rows = "".join(
            f"| {i} | " + " | ".join(f"{value:.3g}" for value in row) + " |\n"
            for i, row in enumerate(zip(*columns, strict=True), start=1)
        )
        total = sum(kappa**2 for kappa in self.coefficients)
        footer = (
            f"\nLoss {self.loss:.4g}; gradient of all parameters {self.parameter_gradient:.3g} "
            f"(Σκ² {total:.3g}); sensitivity {self.sensitivity:.3g} "
            f"(theorem 3, relative to no scaling: {self.predicted_sensitivity:.3g}).\n"
        )
        return header + rows + footer


def stability_report(
    model: nn.Module, loss: Callable[[], Tensor], *, noise: float = 1e-2, seed: int = 0
) -> StabilityReport:
    """Measures a model on one batch. Gradients, weights, mode and hooks of the model are left as they are.

    Args:
        model: a network with long skips, scaled or not.
        loss: calls the model once and returns a scalar loss; it decides the batch, and draws its own random
            numbers.
        noise: standard deviation of δ.
        seed: seed of δ.

    Raises:
        ValueError: a model without long skips, or a loss that does not call it.
    """
    seen = _Seen()
    with ExitStack() as restore:
        if not hasattr(model, "skip_scaler"):
            apply_skip_scaling(model, SkipScaling("none"))
            restore.callback(remove_skip_scaling, model)
        for handle in seen.hooks(model):
            restore.callback(handle.remove)
        value = loss()
    if seen.call is None:
        raise ValueError("The loss did not call the model.")
    order = sorted(seen.scaled)
    parameters = [p for p in model.parameters() if p.requires_grad]
    tensors = [*(seen.scaled[i] for i in order), *parameters]
    gradients = torch.autograd.grad(value, tensors, allow_unused=True)
    norms = [0.0 if g is None else float(g.float().norm()) for g in gradients]
    args, kwargs = seen.call
    return StabilityReport(
        loss=float(value.detach()),
        coefficients=[_rms(seen.scaled[i]) / seen.skips[i] for i in order],
        skip_norms=[seen.skips[i] for i in order],
        hidden_norms=[seen.hidden[i] for i in order],
        # Without a middle block h_N is x_N.
        middle_norm=seen.hidden.get(len(order) + 1, seen.skips[order[-1]]),
        skip_gradients=norms[: len(order)],
        parameter_gradient=sum(norm**2 for norm in norms[len(order) :]) ** 0.5,
        sensitivity=_sensitivity(model, args, kwargs, noise, seed),
    )


class _Seen:
    """What hooks note during one call of the model."""

    def __init__(self) -> None:
        self.call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.skips: dict[int, float] = {}
        self.scaled: dict[int, Tensor] = {}
        self.hidden: dict[int, float] = {}

    def hooks(self, model: nn.Module) -> Iterator[Any]:
        yield model.register_forward_pre_hook(self._called, with_kwargs=True)
        yield model.skip_scaler.register_forward_hook(self._scaled)  # type: ignore[union-attr]
        skips = long_skips(model)
        for i, skip in enumerate(skips, start=1):
            yield skip.join.register_forward_hook(functools.partial(self._joined, i))
        if (middle := getattr(model, "mid_block", None)) is not None:
            yield middle.register_forward_hook(functools.partial(self._joined, len(skips) + 1))

    def _called(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.call = args, kwargs

    def _scaled(self, _: nn.Module, args: tuple[int, Tensor], output: Tensor) -> Tensor:
        i, x = args
        self.skips[i] = _rms(x)
        # Unscaled, the output is the encoder's own tensor: a view has a gradient of the skip alone.
        self.scaled[i] = output.view_as(output)
        return self.scaled[i]

    def _joined(self, i: int, _: nn.Module, args: Any, output: Tensor) -> None:
        self.hidden[i] = _rms(output)


def _rms(x: Tensor) -> float:
    return float(x.detach().float().pow(2).mean().sqrt())


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def _sensitivity(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], noise: float, seed: int
) -> float:
    name = "hidden_states" if "hidden_states" in kwargs else "sample"
    sample: Tensor = args[0] if args else kwargs[name]
    generator = torch.Generator().manual_seed(seed)
    change = noise * torch.randn(sample.shape, generator=generator).to(sample.device, sample.dtype)
    rest = {key: value for key, value in kwargs.items() if key not in (name, "return_dict")}
    with _evaluating(model):
        before, after = (model(x, *args[1:], **rest).sample.float() for x in (sample, sample + change))
    return _rms(after - before) / _rms(change) * (before[0].numel() / sample[0].numel()) ** 0.5


class StabilityMonitor:
    """Measures a task's denoiser during its training; the training itself is the same to the bit.

    Args:
        folder: where `step-0000100.json` and the like go.
        every: steps between two measurements, from step 0.
        module: name of the denoiser in the task's `modules`.

    Raises:
        ValueError: `every` below 1.
    """

    def __init__(self, folder: str | Path, every: int, module: str = "unet"):
        if every < 1:
            raise ValueError(f"every is {every}; it must be at least 1.")
        self.folder, self.every, self.module = Path(folder), every, module
        self._measured = -1

    def watch(self, task: Task) -> None:
        """Measures before each `every`-th step of `task`, on that step's batch."""
        losses = task.training_step
        for name in ("training_step", "each_loss"):
            watched = functools.partial(self._step, task, losses, getattr(task, name))
            setattr(task, name, watched)

    def _step(
        self,
        task: Task,
        losses: Callable[[Any, Step], Mapping[str, Tensor]],
        method: Callable[[Any, Step], Any],
        batch: Any,
        step: Step,
    ) -> Any:
        due = step.number % self.every == 0 and step.number != self._measured
        if due and PartialState().is_main_process:
            self._measured = step.number
            self._measure(task, lambda: sum(losses(batch, step).values()), step)  # type: ignore
        return method(batch, step)

    def _measure(self, task: Task, loss: Callable[[], Tensor], step: Step) -> None:
        prepared = task.modules[self.module]
        # One process measures alone: through DDP it would wait for the others.
        task.modules[self.module] = extract_model_from_parallel(prepared)
        draws = step.draws.generator.get_state()
        device = next(prepared.parameters()).device
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                report = stability_report(task.modules[self.module], loss, seed=step.number)
        finally:
            task.modules[self.module] = prepared
            step.draws.generator.set_state(draws)
        self.folder.mkdir(parents=True, exist_ok=True)
        save_json(self.folder / f"step-{step.number:07d}.json", asdict(report))


def load_reports(folder: str | Path) -> dict[int, StabilityReport]:
    """The reports that a `StabilityMonitor` wrote, by step.

    Raises:
        FileFormatError: a file that is no report.
    """
    reports = {}
    names = {field.name for field in fields(StabilityReport)}
    for path in sorted(Path(folder).glob("step-*.json")):
        content = load_json(path)
        if content.keys() != names:
            raise FileFormatError(f"{path} is not a stability report: it has {', '.join(sorted(content))}.")
        reports[int(path.stem.rpartition("-")[2])] = StabilityReport(**content)
    return reports


def plot_stability(reports: Mapping[int, StabilityReport], path: str | Path) -> None:
    """Plots reports over the steps of a training, and the last one beside the theorems.

    Args:
        reports: step -> report, at least one.
        path: the picture to write.

    Raises:
        ValueError: no reports.
        MissingExtraError: matplotlib is not installed.
    """
    if not reports:
        raise ValueError("There are no stability reports to plot.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "metrics") from error
    steps = sorted(reports)
    last = reports[steps[-1]]
    figure = Figure(figsize=(10, 7), layout="constrained")
    (features, gradients), (theorem, sensitivity) = figure.subplots(2, 2)
    for i in range(len(last.coefficients)):
        label = f"skip {i + 1}"
        features.plot(steps, [reports[s].hidden_norms[i] for s in steps], marker=".", label=label)
        gradients.plot(steps, [reports[s].skip_gradients[i] for s in steps], marker=".", label=label)
    features.set(title="decoder features after each skip (RMS)", xlabel="step")
    features.legend(fontsize=7)
    gradients.plot(steps, [reports[s].parameter_gradient for s in steps], "k--", label="all parameters")
    gradients.set(title="gradient norms", xlabel="step", yscale="log")
    gradients.legend(fontsize=7)
    places = range(len(last.coefficients) + 1)
    theorem.plot(places, last.measured_growth, marker="o", label=f"measured, step {steps[-1]}")
    theorem.plot(places, last.predicted_growth, marker="x", label="theorem 1 (additive network)")
    theorem.set(title="mean square of h_i over that of h_N", xlabel="i", yscale="log")
    theorem.legend(fontsize=7)
    sensitivity.plot(steps, [reports[s].sensitivity for s in steps], marker=".", label="measured")
    sensitivity.set(
        title=f"‖f(x+δ) - f(x)‖ / ‖δ‖; theorem 3: {last.predicted_sensitivity:.2g} of no scaling",
        xlabel="step",
        ylim=(0, None),
    )
    figure.savefig(path, dpi=110)
