"""One decision a recording, and what a network has learned, kept or taken for a shortcut."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from ....errors import MissingExtraError
from ....metrics.classification import balanced_accuracy
from .networks import EEGNetwork
from .recordings import EEGWindows, Recordings


def windows_of(network: EEGNetwork, recordings: Recordings) -> EEGWindows:
    """Windows whose predictions follow each other, up to the end of each recording."""
    return EEGWindows(recordings, network.window, network.stride, keep_last=True)


@torch.no_grad()
def predict_proba(network: EEGNetwork, recordings: Recordings, batch_size: int = 64) -> Tensor:
    """Class probabilities of recordings (N, classes): softmax at each dense position, averaged over all
    positions of all windows; a position that two windows share counts once.

    Raises:
        ValueError: recordings that are not what the network takes.
    """
    network.signal.check(recordings.signal)
    windows, device = windows_of(network, recordings), next(network.parameters()).device
    total = torch.zeros(len(recordings), len(network.signal.classes), dtype=torch.float64)
    count = torch.zeros(len(recordings), 1, dtype=torch.float64)
    training = network.training
    network.eval()
    try:
        for batch in DataLoader(windows, batch_size):
            p = network(batch["x"].to(device)).float().softmax(1)
            # The last positions of a window are the new ones.
            fresh = -(-batch["fresh"] * p.shape[2] // network.stride)
            new = torch.arange(p.shape[2], 0, -1)[None] <= fresh[:, None]
            total.index_add_(0, batch["recording"], (p.cpu().double() * new[:, None]).sum(2))
            count.index_add_(0, batch["recording"], fresh[:, None].double())
    finally:
        network.train(training)
    return total / count


def mean_loss(probabilities: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood of labels (N,) by probabilities (N, classes)."""
    return float(F.nll_loss(probabilities.clamp(min=1e-12).log(), labels))


def evaluate(network: EEGNetwork, recordings: Recordings) -> dict[str, float]:
    """Balanced accuracy, accuracy, and F1 of the last class, over recordings; decisions are the larger
    probability, and no threshold is tuned.
    """
    predicted = predict_proba(network, recordings).argmax(1)
    labels = torch.tensor(recordings.labels)
    last = len(network.signal.classes) - 1
    hit = float(((predicted == last) & (labels == last)).sum())
    named = float((predicted == last).sum() + (labels == last).sum())
    return {
        "balanced_accuracy": balanced_accuracy(predicted, labels),
        "accuracy": float((predicted == labels).double().mean()),
        "f1": 2 * hit / named if named else 0.0,
    }


def linear_cka(a: Tensor, b: Tensor) -> float:
    """Linear centred kernel alignment of two representations of the same inputs (Kornblith et al. 2019,
    arXiv:1905.00414): ‖BᵀA‖² / (‖AᵀA‖ ‖BᵀB‖), Frobenius norms, columns centred.

    Args:
        a, b: (n, p) and (n, q), n of 2 or more.

    Returns:
        In [0, 1]; 1 for equal ones, also after an orthogonal map or a scaling.

    Raises:
        ValueError: other shapes, or a representation that is the same for all inputs.
    """
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or len(a) < 2:
        raise ValueError(
            f"Two representations of the same inputs are needed, not {tuple(a.shape)} and {tuple(b.shape)}."
        )
    a, b = (z.double() - z.double().mean(0) for z in (a, b))
    scale = (a.T @ a).norm() * (b.T @ b).norm()
    if not scale > 0:
        raise ValueError("A representation is the same for all inputs; its similarity is not defined.")
    return float((b.T @ a).square().sum() / scale)


@torch.no_grad()
def representations(network: EEGNetwork, recordings: Recordings, batch_size: int = 64) -> list[Tensor]:
    """Of each block below the head, (N, D): means over time of the first windows of N recordings."""
    network.signal.check(recordings.signal)
    device = next(network.parameters()).device
    whole = torch.stack([recordings.read(k, 0, network.window) for k in range(len(recordings))])
    parts = [network.activations(x.to(device)) for x in whole.split(batch_size)]
    return [torch.cat([z.cpu() for z in block]) for block in zip(*parts, strict=True)]


def similarity(a: EEGNetwork, b: EEGNetwork, recordings: Recordings) -> list[float]:
    """Linear CKA of two networks of one form, block by block. Where it is low, training has changed much."""
    pairs = zip(representations(a, recordings), representations(b, recordings), strict=True)
    return [linear_cka(x, z) for x, z in pairs]


def shortcut(network: EEGNetwork, a: Recordings, b: Recordings, folds: int = 5) -> float:
    """How well logistic regression tells two hospitals apart by the features below the head: balanced
    accuracy, cross-validated over recordings. 0.5 is chance; near 1, a joint training can learn the hospital
    in the place of the illness.

    Raises:
        ValueError: fewer recordings of a hospital than folds.
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import cross_val_score
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "metrics") from error
    if min(len(a), len(b)) < folds:
        raise ValueError(f"{folds} folds need as many recordings of each, not {len(a)} and {len(b)}.")
    features = [representations(network, part)[-1] for part in (a, b)]
    domain = torch.cat([torch.full((len(z),), k) for k, z in enumerate(features)]).numpy()
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    found = cross_val_score(probe, torch.cat(features).numpy(), domain, cv=folds, scoring="balanced_accuracy")
    return float(found.mean())
