"""Small networks of named columns: the structural equations g and the predictors f."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ....errors import MissingExtraError

Columns: TypeAlias = Mapping[str, Tensor]  # each (..., n), float64


@dataclass(frozen=True)
class Regression:
    """y = b + s · network((x - mean) / deviation) of some columns; of no column, the mean.

    Attributes:
        inputs: the columns, in order.
        tensors: `mean`, `deviation` (k,), `shift`, `scale` (), and `weight0`, `bias0`, … of the layers, with
            tanh between them. A polynomial is one layer over the products of columns that `powers` (terms,
            k) says.
    """

    inputs: tuple[str, ...]
    tensors: Mapping[str, Tensor]

    def __call__(self, columns: Columns) -> Tensor:
        """y (..., n); gradients flow through the columns."""
        t = self.tensors
        if not self.inputs:
            return t["shift"].expand(next(iter(columns.values())).shape)
        parts = torch.broadcast_tensors(*(columns[name] for name in self.inputs))
        x = (torch.stack(parts, dim=-1) - t["mean"]) / t["deviation"]
        if "powers" in t:
            x = (x[..., None, :] ** t["powers"]).prod(-1)
        layers = sum(name.startswith("weight") for name in t)
        for k in range(layers):
            x = x @ t[f"weight{k}"] + t[f"bias{k}"]
            x = x.tanh() if k < layers - 1 else x
        return t["shift"] + t["scale"] * x[..., 0]


def regress(
    columns: Columns,
    inputs: Sequence[str],
    y: Tensor,
    *,
    width: int,
    seed: int = 0,
    degree: int = 1,
    decay: float = 0.3,
    members: int = 3,
) -> Regression:
    """Least squares by scikit-learn's `MLPRegressor` with L-BFGS, the mean of several fits.

    Args:
        columns: each (n,).
        inputs: which of them.
        y: (n,).
        width: of each hidden layer; 0 for none, which makes it a polynomial.
        seed: of the first weights.
        degree: of the polynomial; 1 is a line.
        decay: L2 penalty of the weights, over n. A mechanism is asked for values where data are few, and
            there an unbound network says anything.
        members: how many fits.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    shift, scale = y.mean(), y.std().clamp_min(1e-12)
    tensors = {"shift": shift, "scale": scale}
    if not inputs:
        return Regression((), tensors)
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPRegressor
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "causal") from error
    x = torch.stack([columns[name] for name in inputs], dim=-1)
    mean, deviation = x.mean(0), x.std(0).clamp_min(1e-12)
    tensors |= {"mean": mean, "deviation": deviation}
    if not width:
        terms = [t for t in product(range(degree + 1), repeat=len(inputs)) if 0 < sum(t) <= degree]
        powers = torch.tensor(terms, dtype=torch.float64)
        features = ((x - mean) / deviation)[:, None, :].pow(powers).prod(-1)
        centre = features.mean(0)
        weight = torch.linalg.lstsq(features - centre, ((y - shift) / scale)[:, None]).solution
        tensors |= {"powers": powers, "weight0": weight, "bias0": -centre @ weight}
        return Regression(tuple(inputs), tensors)
    networks = [
        MLPRegressor(
            hidden_layer_sizes=(width,),
            activation="tanh",
            solver="lbfgs",
            alpha=decay,
            max_iter=300,
            tol=1e-6,
            random_state=seed + member,
        )
        for member in range(members)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 300 iterations leave next to nothing to gain
        for network in networks:
            network.fit(((x - mean) / deviation).numpy(), ((y - shift) / scale).numpy())
    # Their mean is one wider network.
    parts = [[torch.as_tensor(w) for w in network.coefs_ + network.intercepts_] for network in networks]
    tensors["weight0"] = torch.cat([part[0] for part in parts], dim=1)
    tensors["weight1"] = torch.cat([part[1] for part in parts]) / members
    tensors["bias0"] = torch.cat([part[2] for part in parts])
    tensors["bias1"] = torch.stack([part[3] for part in parts]).mean(0)
    return Regression(tuple(inputs), {name: tensor.double().contiguous() for name, tensor in tensors.items()})


def simplest(
    columns: Columns, inputs: Sequence[str], y: Tensor, *, width: int, seed: int = 0, folds: int = 3
) -> Regression:
    """The simplest of a line, a quadratic and networks that is as good as the best of them.

    By cross-validation; as good is within one standard error of the difference. A structural equation is
    asked for values at places that no environment had, and there a form with less freedom is safer.

    Args:
        columns, inputs, y, seed: of `regress`.
        width: of the networks; 0 takes a line without asking.
        folds: of the cross-validation.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    if not inputs or not width:
        return regress(columns, inputs, y, width=0)
    kinds: list[dict[str, Any]] = [{"width": 0}, {"width": 0, "degree": 2}, {"width": width, "seed": seed}]
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    losses = torch.zeros(len(kinds), len(y), dtype=torch.float64)
    for held in order.chunk(folds):
        kept = torch.ones(len(y), dtype=torch.bool)
        kept[held] = False
        training = {name: columns[name][kept] for name in inputs}
        test = {name: columns[name][held] for name in inputs}
        for kind, loss in zip(kinds, losses, strict=True):
            loss[held] = (regress(training, inputs, y[kept], **kind)(test) - y[held]).square()
    beyond = losses - losses[losses.mean(1).argmin()]
    as_good = beyond.mean(1) <= beyond.std(1) / len(y) ** 0.5
    return regress(columns, inputs, y, **kinds[int(as_good.int().argmax())])


def read_column(name: str, values: Any) -> Tensor:
    """(n,) float64 of a column of data.

    Raises:
        ValueError: not one row of finite numbers.
    """
    try:
        column = torch.from_numpy(np.array(values, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {name!r} must hold numbers: {error}") from error
    if column.ndim != 1 or not column.isfinite().all():
        raise ValueError(f"column {name!r} must be one row of finite numbers.")
    return column
