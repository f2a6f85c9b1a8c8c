"""What an encoder has learned, and what a miner has found."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ....errors import MissingExtraError
from ....metrics.classification import predict
from .miner import FAULTY, NOISY

Labelled = tuple[Tensor, Tensor]


def linear_probe(encoder: nn.Module, train: Labelled, test: Labelled) -> float:
    """The accuracy of logistic regression on standardised features of series, on others.

    Args:
        encoder: (B, C, T) -> (B, D); stays as it is.
        train, test: series (N, C, T) and classes (N,).

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "metrics") from error
    device = next(encoder.parameters()).device
    (a, y), (b, z) = ((predict(encoder, x.to(device)).numpy(), y.numpy()) for x, y in (train, test))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(a, y)
    return float(probe.score(b, z))


def detection(mean_losses: Tensor, kinds: Tensor) -> dict[str, float]:
    """How well mean losses (N,) tell the kinds (N,): areas under the ROC curve of noisy pairs, by small
    losses, and of faulty ones, by large ones, each against all others. Kinds that are not there are left out.
    """
    m, kinds = mean_losses.cpu().double(), kinds.cpu()
    signs = {"noisy": (NOISY, -1), "faulty": (FAULTY, 1)}
    return {
        name: _area((sign * m)[kinds == kind], (sign * m)[kinds != kind])
        for name, (kind, sign) in signs.items()
        if (kinds == kind).any() and (kinds != kind).any()
    }


def _area(positive: Tensor, negative: Tensor) -> float:
    """The share of pairs of a positive and a negative in which the positive is larger; ties count half."""
    negative = negative.sort().values.contiguous()
    below = torch.searchsorted(negative, positive.contiguous())
    upto = torch.searchsorted(negative, positive.contiguous(), right=True)
    return float((below + upto).double().mean() / (2 * len(negative)))
