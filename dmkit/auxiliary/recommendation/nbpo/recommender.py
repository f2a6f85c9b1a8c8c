"""A trained recommender: rankings, and what it believes about items without a click."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...._files import atomic_folder, load_json, load_tensors, load_whole, save_json
from ....errors import FileFormatError
from .interactions import Interactions
from .losses import log_not_clicked
from .models import FlipModel, MatrixFactorization
from .ranking import top_items

FORMAT = 1


class Recommender:
    """Scores, flip probabilities, and the clicks that they were learnt from.

    Args:
        scores: R.
        flip: g; a constant γ in [0, 1); or None for losses without flips.
        seen: the training clicks.
        user_ids: what user 0, 1, … is called, as JSON; the numbers by default.
        item_ids: likewise.

    Raises:
        ValueError: names or clicks that do not fit the tables, or a constant out of range.
    """

    def __init__(
        self,
        scores: MatrixFactorization,
        flip: FlipModel | float | None,
        seen: Interactions,
        user_ids: Sequence[Any] | None = None,
        item_ids: Sequence[Any] | None = None,
    ):
        if isinstance(flip, float) and not 0 <= flip < 1:
            raise ValueError(f"A constant flip probability is in [0, 1), not {flip}.")
        size = (scores.config.num_users, scores.config.num_items)
        if size != (seen.num_users, seen.num_items):
            raise ValueError(
                f"The scores are of {size[0]} users and {size[1]} items, the clicks of {seen.num_users} and "
                f"{seen.num_items}."
            )
        self.scores, self.flip, self.seen = scores, flip, seen
        self.user_ids = list(range(size[0])) if user_ids is None else list(user_ids)
        self.item_ids = list(range(size[1])) if item_ids is None else list(item_ids)
        if (len(self.user_ids), len(self.item_ids)) != size:
            raise ValueError(
                f"{len(self.user_ids)} and {len(self.item_ids)} names for {size[0]} users and {size[1]} "
                "items."
            )

    @torch.no_grad()
    def predict(self, users: Tensor, items: Tensor) -> Tensor:
        """R of users (B,) and items (B, ...), larger is better.

        Raises:
            ValueError: a number that no user or item has.
        """
        _check_numbers("user", users, self.seen.num_users)
        _check_numbers("item", items, self.seen.num_items)
        return self.scores(users, items)

    @torch.no_grad()
    def recommend(self, users: Tensor, k: int, filter_seen: bool = True) -> Tensor:
        """The k best items of each user.

        Args:
            users: (B,).
            k: in 1 to N.
            filter_seen: whether training clicks are left out.

        Returns:
            (B, k), the best first; -1 where a user has fewer left.

        Raises:
            ValueError: k out of range, or a number that no user has.
        """
        _check_numbers("user", users, self.seen.num_users)
        if not 1 <= k <= self.seen.num_items:
            raise ValueError(f"k is in 1 to {self.seen.num_items}, not {k}.")
        table = self.scores.all_scores(users).cpu()
        if filter_seen:
            table = table.masked_fill(self.seen.dense(users.cpu()), -torch.inf)
        top = top_items(table, k)
        return top.masked_fill(table.gather(1, top) == -torch.inf, -1)

    def _flip_logits(self, users: Tensor, items: Tensor) -> Tensor:
        if self.flip is None:
            raise ValueError("This recommender was trained without flip probabilities.")
        _check_numbers("user", users, self.seen.num_users)
        _check_numbers("item", items, self.seen.num_items)
        if isinstance(self.flip, float):
            return torch.full(items.shape, self.flip).logit()
        return self.flip(users, items)

    @torch.no_grad()
    def flip_probability(self, users: Tensor, items: Tensor) -> Tensor:
        """γ = P(not clicked | the user likes it), of users (B,) and items (B, ...).

        That is not the probability that an item without a click is liked: see `posterior_positive`.

        Raises:
            ValueError: trained without flips.
        """
        return self._flip_logits(users, items).sigmoid()

    @torch.no_grad()
    def posterior_positive(self, users: Tensor, items: Tensor) -> Tensor:
        """P(the user likes it | not clicked) = γ σ(R) / (σ(-R) + γ σ(R)), of users (B,) and items (B, ...).

        Raises:
            ValueError: trained without flips.
        """
        R, g = self.predict(users, items), self._flip_logits(users, items)
        liked = torch.nn.functional.logsigmoid(R) + torch.nn.functional.logsigmoid(g)
        return (liked - log_not_clicked(R, g)).exp()

    def write(self, folder: Path) -> None:
        """Writes all parts into a folder that is there."""
        self.scores.save_pretrained(folder / "scores")
        if isinstance(self.flip, FlipModel):
            self.flip.save_pretrained(folder / "flip")
        clicks = {"users": self.seen.users, "items": self.seen.items}
        save_file(clicks, str(folder / "seen.safetensors"))
        content = {
            "format": FORMAT,
            "flip": "learnt" if isinstance(self.flip, FlipModel) else self.flip,
            "user_ids": self.user_ids,
            "item_ids": self.item_ids,
        }
        save_json(folder / "recommender.json", content)

    def save(self, folder: str | Path) -> None:
        """Makes `folder` anew, whole or not at all."""
        with atomic_folder(folder) as draft:
            self.write(draft)

    @classmethod
    def load(cls, folder: str | Path) -> Recommender:
        """What `save`, or a training, wrote.

        Raises:
            FileFormatError: a part that is missing, damaged, or does not fit the others.
        """
        folder = Path(folder)
        content = load_json(folder / "recommender.json")
        if content.get("format") != FORMAT:
            raise FileFormatError(
                f"{folder} has format {content.get('format')}; this version reads {FORMAT}."
            )
        try:
            scores = load_whole(MatrixFactorization, folder / "scores")
            flip = content["flip"]
            if flip == "learnt":
                flip = load_whole(FlipModel, folder / "flip")
            clicks = load_tensors(folder / "seen.safetensors")
            size = (scores.config.num_users, scores.config.num_items)
            seen = Interactions(clicks["users"], clicks["items"], *size)
            return cls(scores, flip, seen, content["user_ids"], content["item_ids"])
        except FileFormatError:
            raise
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{folder} holds no whole recommender: {error}") from error


def _check_numbers(what: str, numbers: Tensor, count: int) -> None:
    if numbers.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{what}s are whole numbers, not {numbers.dtype}.")
    if len(wrong := numbers[(numbers < 0) | (numbers >= count)]):
        raise ValueError(f"There is no {what} {int(wrong[0])}: they are 0 to {count - 1}.")
