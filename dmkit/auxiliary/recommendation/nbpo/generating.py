"""Clicks with a known truth: everyone likes some items, and only a part of them has been clicked."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .interactions import Interactions, Split


class Generated(NamedTuple):
    """Known likes.

    Attributes:
        parts: the clicks to train on; three hidden likes of each user to choose by; the other hidden ones.
        likes: all of them.
    """

    parts: Split
    likes: Interactions


def generate(
    generator: torch.Generator,
    users: int = 300,
    items: int = 200,
    dim: int = 8,
    likes: int = 20,
    hidden: float = 0.5,
) -> Generated:
    """Draws tastes of users and items, and which likes were clicked.

    Args:
        generator: of all draws.
        users: M.
        items: N.
        dim: of the tastes: a user likes the items of the largest dot product of standard normal vectors.
        likes: of each user, less than N.
        hidden: the probability that a like was not clicked.

    Raises:
        ValueError: numbers that leave nothing to draw.
    """
    if not 0 < likes < items:
        raise ValueError(f"Of {items} items a user likes at least one and not all, not {likes}.")
    if not 0 < hidden < 1:
        raise ValueError(f"hidden is a probability in (0, 1), not {hidden}.")
    tastes, kinds = (torch.randn(count, dim, generator=generator) for count in (users, items))
    liked = (tastes @ kinds.T).topk(likes, dim=1).indices
    unclicked = torch.rand(users, likes, generator=generator) < hidden
    order = torch.rand(users, likes, generator=generator).masked_fill(~unclicked, 2.0).argsort(1).argsort(1)
    chosen = unclicked & (order < 3)

    def part(mask: torch.Tensor) -> Interactions:
        rows, columns = mask.nonzero(as_tuple=True)
        return Interactions(rows, liked[rows, columns], users, items)

    everything = part(torch.ones_like(unclicked))
    return Generated(Split(part(~unclicked), part(chosen), part(unclicked & ~chosen)), everything)
