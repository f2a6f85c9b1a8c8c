"""Adding signatures to a network's weights, and taking them off again.

A patch keeps the clean tensors that it covers. Every weight is computed from them anew, so that nothing
accumulates: weights act linearly, any order of changes gives the same, and removal is exact to the bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ....errors import unknown_name
from .._norms import batch_norms, recalibrate
from .layers import architecture, fingerprint
from .signature import RobustWeightSignature, state_of

BN = ("keep", "signature", "recalibrate")
# Beyond it, fine-tuned weights are hardly a small step from where they started.
LARGEST_STEP = 0.5

# The patches on a network, the first one first: each one's clean tensors are what those before it wrote.
_STACKS: WeakKeyDictionary[nn.Module, list[Patch]] = WeakKeyDictionary()


def patch(
    model: nn.Module,
    signatures: RobustWeightSignature | Mapping[str, RobustWeightSignature],
    weights: Mapping[str, float] | None = None,
    *,
    alpha: float = 1.0,
    bn: str | None = None,
    batches: Iterable[Any] | None = None,
    strict: bool = False,
) -> Patch:
    """Adds signatures to a network, equation (3).

    Args:
        model: θ_s, or another network of the architecture.
        signatures: by name; a single one has its corruption's name, or "signature".
        weights: w_c by name; alpha / C for each of C signatures by default.
        alpha: total weight where `weights` are not given. 0 leaves the network as it is.
        bn: of batch norms that keep statistics. "keep" (the default) leaves them but for what `layers` of the
            signature selected; "signature" adds what a signature extracted with `bn="signature"` has of
            them; "recalibrate" recomputes their statistics from `batches` once the weights are patched,
            blended with the old ones by the total weight.
        batches: inputs of the network, for "recalibrate"; corrupted training images. Kept, and used again
            when a weight changes.
        strict: whether a network other than the signature's θ_s is an error instead of a warning.

    Returns:
        A handle, which is a context manager too.

    Raises:
        ValueError: another architecture, missing tensors or shapes (all listed), unknown names, weights that
            are not finite, a `bn` that lacks what it needs, or with `strict` another network.

    Warns:
        UserWarning: another network than θ_s; a patch that is large beside the weights; batch norms with
            statistics and `bn` not given.
    """
    if isinstance(signatures, RobustWeightSignature):
        signatures = {signatures.metadata.corruption or "signature": signatures}
    if not signatures:
        raise ValueError("There is no signature to patch with.")
    for name, signature in signatures.items():
        _check(model, name, signature, strict)
    chosen = dict.fromkeys(signatures, alpha / len(signatures)) if weights is None else weights
    if bn is None and batch_norms(model):
        warnings.warn(
            "This network has batch norms, whose statistics a patch does not fit; bn='recalibrate' "
            "recomputes them from corrupted training images, bn='keep' says that they shall stay.",
            stacklevel=2,
        )
    handle = Patch(model, signatures, bn or "keep", batches)
    try:
        handle.set_weights(chosen)
    except BaseException:
        handle.remove()
        raise
    step = handle.relative_step()
    if step > LARGEST_STEP:
        warnings.warn(f"The patch is {step:.2f} times as large as the weights it is added to.", stacklevel=2)
    return handle


def _check(model: nn.Module, name: str, signature: RobustWeightSignature, strict: bool) -> None:
    state, about = state_of(model), signature.metadata
    wrong = []
    for key, value in signature.tensors.items():
        if key not in state:
            wrong.append(f"{key} is missing")
        elif tuple(state[key].shape) != tuple(value.shape):
            wrong.append(f"{key} is {tuple(state[key].shape)}, not {tuple(value.shape)}")
    if wrong:
        raise ValueError(f"Signature {name!r} does not fit: {'; '.join(wrong)}.")
    if (mine := architecture(model, about.head)) != about.architecture:
        raise ValueError(
            f"Signature {name!r} is for a network of another architecture ({about.architecture}, not {mine})."
        )
    if fingerprint({key: state[key] for key in signature.tensors}) != about.standard:
        text = f"Signature {name!r} was made for other weights than this network's"
        if strict:
            raise ValueError(f"{text}.")
        warnings.warn(f"{text}: measure what it does here.", stacklevel=3)


class Patch:
    """Signatures on a network; made by `patch`."""

    def __init__(
        self,
        model: nn.Module,
        signatures: Mapping[str, RobustWeightSignature],
        bn: str,
        batches: Iterable[Any] | None,
    ):
        if bn not in BN:
            raise unknown_name("bn", bn, BN)
        if bn == "signature" and not any(s.metadata.norms for s in signatures.values()):
            raise ValueError("bn='signature' needs a signature that was extracted with it.")
        if bn == "recalibrate" and batches is None:
            raise ValueError("bn='recalibrate' needs batches of corrupted images.")
        self._model, self._bn = model, bn
        self._batches = list(batches) if bn == "recalibrate" and batches is not None else []
        # What the layers' selection has, and with "signature" what came with the norms.
        self._additions = {
            name: {
                key: signature.tensor(key)
                for key in signature.tensors
                if bn == "signature" or key not in signature.metadata.norms
            }
            for name, signature in signatures.items()
        }
        state = state_of(model)
        covered = dict.fromkeys(key for tensors in self._additions.values() for key in tensors)
        if bn == "recalibrate":
            statistics = ("running_mean", "running_var", "num_batches_tracked")
            covered |= dict.fromkeys(f"{n}.{key}" for n in batch_norms(model) for key in statistics)
        self._clean = {key: state[key].detach().clone() for key in covered}
        self._weights = dict.fromkeys(self._additions, 0.0)
        _STACKS.setdefault(model, []).append(self)

    @property
    def weights(self) -> dict[str, float]:
        """w_c by name."""
        return dict(self._weights)

    def set_weight(self, name: str, weight: float) -> None:
        """Changes one weight.

        Raises:
            ValueError: an unknown name, a weight that is not finite, or a patch that is removed or has
                another one on top.
        """
        self.set_weights({name: weight})

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Changes some of the weights at once; as `set_weight`."""
        self._need_top()
        new = {**self._weights, **weights}
        for name, weight in new.items():
            if name not in self._weights:
                raise unknown_name("signature", name, self._weights)
            if not abs(weight) < float("inf"):
                raise ValueError(f"The weight of {name!r} is a finite number, not {weight}.")
        self._weights = new
        self._write()

    def remove(self) -> None:
        """Restores the clean tensors bit for bit; nothing more happens the second time.

        Raises:
            ValueError: another patch is on top.
        """
        if self in _STACKS.get(self._model, []):
            self._need_top()
            self._restore()
            _STACKS[self._model].remove(self)

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *_: Any) -> None:
        self.remove()

    def relative_step(self) -> float:
        """The norm of what is added over that of the clean tensors, in S."""
        added = before = 0.0
        for key in {key for tensors in self._additions.values() for key in tensors}:
            if (total := self._total(key)) is not None:
                added += float(total.square().sum())
            before += float(self._clean[key].float().square().sum())
        return (added / before) ** 0.5 if before else 0.0

    def _need_top(self) -> None:
        stack = _STACKS.get(self._model, [])
        if self not in stack:
            raise ValueError("This patch has been removed.")
        if stack[-1] is not self:
            raise ValueError("Another patch is on top of this one; remove that first.")

    def _total(self, key: str) -> Tensor | None:
        """Σ_c w_c RWS_c of one tensor; None where no weight is left, for x + 0 is not x for x = -0."""
        parts = [
            weight * self._additions[name][key]
            for name, weight in self._weights.items()
            if weight and key in self._additions[name]
        ]
        return torch.stack(parts).sum(0) if parts else None

    @torch.no_grad()
    def _restore(self) -> None:
        state = state_of(self._model)
        for key, value in self._clean.items():
            state[key].copy_(value)

    @torch.no_grad()
    def _write(self) -> None:
        self._restore()
        state = state_of(self._model)
        for key, clean in self._clean.items():
            if (total := self._total(key)) is not None:
                value = clean.float() + total.to(clean.device)
                # Extrapolated statistics may leave the range of variances.
                state[key].copy_(value.clamp_min(0) if key.endswith("running_var") else value)
        if self._bn == "recalibrate" and any(self._weights.values()):
            recalibrate(self._model, self._batches, min(1.0, sum(map(abs, self._weights.values()))))
