"""Negative samplers: which items without a click a clicked one is compared with.

    uniform     any item that the user has not clicked, all alike (NBPO adapts their weight instead)
    dynamic     the highest scored of several uniform ones (DNS: Zhang et al., SIGIR 2013)
    adaptive    high in a factor that matters to the user (AOBPR: Rendle and Freudenthaler, WSDM 2014)

    AOBPR: factor f with P ∝ |U_uf| std(V_·f),   rank r with P ∝ exp(-r / λ),
           the item of rank r by sign(U_uf) V_·f

A sampler takes users (B,), the scoring model, and random draws of the trainer (`dmkit.training.randomness`),
and gives items (B, n). Items of the validation and the test set are drawn like any other.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ....training.randomness import Draws
from .interactions import Interactions
from .models import MatrixFactorization

LARGE = 1 << 62


class Sampler(Protocol):
    """What draws negatives."""

    def __call__(self, users: Tensor, model: MatrixFactorization, draws: Draws) -> Tensor:
        """Users (B,) -> items (B, n) that they have not clicked."""
        ...


class UniformNegativeSampler:
    """Every item without a click is as likely as any other; one draw each, none is thrown away.

    Args:
        seen: the clicks to train on.
        num_negatives: n, at least 1.

    Raises:
        ValueError: a user who clicked everything, or n below 1.
    """

    def __init__(self, seen: Interactions, num_negatives: int = 4):
        if num_negatives < 1:
            raise ValueError(f"num_negatives is at least 1, not {num_negatives}.")
        free = seen.num_items - seen.counts()
        if (full := (free < 1).nonzero().flatten()).numel():
            raise ValueError(
                f"User {int(full[0])} has clicked all {seen.num_items} items: no negative is left."
            )
        self.num_negatives = num_negatives
        self._free, self._starts, self._stride = free, seen.starts, seen.num_items + 1
        # Before the k-th clicked item p_k of a user lie p_k - k items without a click.
        before = seen.items - (torch.arange(len(seen)) - seen.starts[seen.users])
        self._keys = seen.users * self._stride + before

    def _to(self, device: torch.device) -> None:
        if self._keys.device != device:
            self._free, self._starts, self._keys = (
                tensor.to(device) for tensor in (self._free, self._starts, self._keys)
            )

    def draw(self, users: Tensor, count: int, draws: Draws) -> Tensor:
        """Users (B,) -> items (B, count)."""
        self._to(users.device)
        place = draws.integers(LARGE, (len(users), count)) % self._free[users, None]
        # The r-th item without a click is r plus the clicked items before it.
        wanted = users[:, None] * self._stride + place
        passed = torch.searchsorted(self._keys, wanted, right=True) - self._starts[users, None]
        return place + passed

    def __call__(self, users: Tensor, model: MatrixFactorization, draws: Draws) -> Tensor:
        return self.draw(users, self.num_negatives, draws)


class DynamicNegativeSampler:
    """Of several uniform candidates, the one with the highest score.

    Args:
        seen: the clicks to train on.
        num_negatives: n.
        candidates: for each of them, at least 1.
    """

    def __init__(self, seen: Interactions, num_negatives: int = 4, candidates: int = 4):
        if candidates < 1:
            raise ValueError(f"candidates is at least 1, not {candidates}.")
        self.uniform = UniformNegativeSampler(seen, num_negatives)
        self.candidates = candidates

    @torch.no_grad()
    def __call__(self, users: Tensor, model: MatrixFactorization, draws: Draws) -> Tensor:
        items = self.uniform.draw(users, self.uniform.num_negatives * self.candidates, draws)
        best = model(users, items).view(len(users), -1, self.candidates).argmax(2, keepdim=True)
        return items.view(len(users), -1, self.candidates).gather(2, best).squeeze(2)


class AdaptiveOversampler:
    """Items that stand high in a factor of the user's, by the model as it is now.

    A rank whose item the user has clicked is drawn again, up to `tries` times, then the item is uniform.

    Args:
        seen: the clicks to train on.
        num_negatives: n.
        rank_scale: λ as a share of the items; the authors' best were near 0.05 and less.
        tries: at least 1.
    """

    def __init__(self, seen: Interactions, num_negatives: int = 4, rank_scale: float = 0.05, tries: int = 8):
        if not rank_scale > 0:
            raise ValueError(f"rank_scale is positive, not {rank_scale}.")
        if tries < 1:
            raise ValueError(f"tries is at least 1, not {tries}.")
        self.uniform = UniformNegativeSampler(seen, num_negatives)
        self.seen, self.tries = seen, tries
        self.scale = rank_scale * seen.num_items

    @torch.no_grad()
    def __call__(self, users: Tensor, model: MatrixFactorization, draws: Draws) -> Tensor:
        shape = (len(users), self.uniform.num_negatives, self.tries)
        U, V = model.user_factors(users), model.item_factors.weight
        # Sorted afresh in every step: with the authors' batches of about N ln N draws, as often as theirs.
        order = V.argsort(dim=0, descending=True, stable=True)
        shares = (U.abs() * V.std(dim=0)).cumsum(1)
        target = draws.uniform(shape).flatten(1) * shares[:, -1:]
        factor = torch.searchsorted(shares, target).clamp(max=V.shape[1] - 1).view(shape)
        # Exponential, cut off after the last rank.
        last = 1 - torch.exp(torch.tensor(-self.seen.num_items / self.scale))
        rank = (-self.scale * torch.log1p(-draws.uniform(shape) * last)).long()
        rank = rank.clamp(max=self.seen.num_items - 1)
        down = U.gather(1, factor.flatten(1)).view(shape) < 0
        items = order[torch.where(down, self.seen.num_items - 1 - rank, rank), factor]
        fresh = ~self.seen.contains(users[:, None, None].cpu(), items.cpu()).to(items.device)
        first = fresh.int().argmax(2, keepdim=True)
        chosen = items.gather(2, first).squeeze(2)
        return torch.where(fresh.any(2), chosen, self.uniform(users, model, draws))
