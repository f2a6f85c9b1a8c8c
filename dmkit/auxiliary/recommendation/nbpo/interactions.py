"""Which users clicked which items: held as sorted pairs, read from files, thinned to a core, and split."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....errors import FileFormatError

USER_COLUMNS = ("user", "user_id", "userId")
ITEM_COLUMNS = ("item", "item_id", "itemId", "movieId")


class Interactions:
    """Pairs of user and item, sorted, each once.

    Args:
        users: (E,) int64, from 0.
        items: (E,) int64, from 0.
        num_users: M; one more than the largest user by default.
        num_items: N; likewise.

    Attributes:
        users, items: the pairs, by user and then by item.
        starts: (M + 1,), where each user's items begin and end.

    Raises:
        TypeError: numbers that are not int64.
        ValueError: columns of different length, or a number out of range.

    Warns:
        UserWarning: pairs that came more than once.
    """

    def __init__(
        self, users: Tensor, items: Tensor, num_users: int | None = None, num_items: int | None = None
    ):
        for name, column in (("users", users), ("items", items)):
            if column.dtype != torch.int64:
                raise TypeError(f"{name} are int64 numbers, not {column.dtype}.")
        if users.ndim != 1 or users.shape != items.shape:
            raise ValueError(
                f"users and items are both (E,), not {tuple(users.shape)} and {tuple(items.shape)}."
            )
        self.num_users = _range("user", users, num_users)
        self.num_items = _range("item", items, num_items)
        keys = (users * self.num_items + items).unique()
        if len(keys) < len(users):
            warnings.warn(f"{len(users) - len(keys)} pairs came more than once.", stacklevel=2)
        self.users, self.items = keys // self.num_items, keys % self.num_items
        self.starts = torch.cat([torch.zeros(1, dtype=torch.int64), self.counts().cumsum(0)])

    def __len__(self) -> int:
        return len(self.users)

    @classmethod
    def from_csr(cls, matrix: Any) -> Interactions:
        """The places of a `scipy.sparse` matrix (M, N) that are not zero."""
        users, items = (torch.from_numpy(axis).long() for axis in matrix.nonzero())
        return cls(users, items, *matrix.shape)

    def counts(self) -> Tensor:
        """(M,), how many items each user has."""
        return torch.bincount(self.users, minlength=self.num_users)

    def contains(self, users: Tensor, items: Tensor) -> Tensor:
        """Whether pairs are among these: bool, of the shape that both broadcast to."""
        if not len(self):
            return torch.zeros(torch.broadcast_shapes(users.shape, items.shape), dtype=torch.bool)
        keys, wanted = self.users * self.num_items + self.items, users * self.num_items + items
        return keys[torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)] == wanted

    def dense(self, users: Tensor) -> Tensor:
        """The rows of some users (B,) as bool (B, N)."""
        table = torch.zeros(len(users), self.num_items, dtype=torch.bool)
        sizes = self.counts()[users]
        rows = torch.arange(len(users)).repeat_interleave(sizes)
        within = torch.arange(len(rows)) - (sizes.cumsum(0) - sizes)[rows]
        table[rows, self.items[self.starts[users][rows] + within]] = True
        return table


def _range(what: str, column: Tensor, count: int | None) -> int:
    largest = int(column.max()) if len(column) else -1
    count = largest + 1 if count is None else count
    if len(column) and int(column.min()) < 0:
        raise ValueError(f"{what} {int(column.min())} is negative.")
    if largest >= count:
        raise ValueError(f"{what} {largest} is out of range: there are {count}, from 0.")
    if count < 1:
        raise ValueError(f"There is no {what}.")
    return count


class Table(NamedTuple):
    """Interactions by consecutive numbers, and what their users and items were called."""

    interactions: Interactions
    user_ids: list[Any]
    item_ids: list[Any]


def k_core(users: list[Any] | Tensor, items: list[Any] | Tensor, k: int = 1) -> Table:
    """Users with at least k items and items with at least k users, numbered anew.

    Args:
        users: E names or numbers.
        items: E names or numbers.
        k: rows are left out until each user and each item that remains has k.

    Raises:
        ValueError: columns of different length, k below 1, or nothing that remains.
    """
    if len(users) != len(items):
        raise ValueError(f"{len(users)} users and {len(items)} items are not pairs.")
    if k < 1:
        raise ValueError(f"k is at least 1, not {k}.")
    import pandas

    table = pandas.DataFrame({"user": list(_plain(users)), "item": list(_plain(items))}).drop_duplicates()
    while True:
        sizes = [table.groupby(name)[name].transform("size") for name in ("user", "item")]
        keep = (sizes[0] >= k) & (sizes[1] >= k)
        if keep.all():
            break
        table = table[keep]
    if not len(table):
        raise ValueError(f"No user and item remain that have {k} of each other.")
    codes = {name: pandas.factorize(table[name], sort=True) for name in ("user", "item")}
    rows, columns = (torch.from_numpy(codes[name][0].astype("int64")) for name in ("user", "item"))
    user_ids, item_ids = (codes[name][1].tolist() for name in ("user", "item"))
    return Table(Interactions(rows, columns, len(user_ids), len(item_ids)), user_ids, item_ids)


def _plain(column: list[Any] | Tensor) -> Iterator[Any]:
    return iter(column.tolist() if isinstance(column, Tensor) else column)


def read_interactions(path: str | Path, *, k: int = 1, min_rating: float | None = None) -> Table:
    """Reads a table of interactions.

    Args:
        path: a CSV with a header, or a tab-separated .tsv, or RecBole's .inter. It has a column `user` (or
            user_id, userId), a column `item` (or item_id, itemId, movieId), and perhaps `rating`.
        k: as for `k_core`.
        min_rating: lower ratings are not counted as interactions; all are by default.

    Raises:
        FileFormatError: a file that is missing, has no such columns, or ratings that are no numbers.
        ValueError: nothing that remains.

    Warns:
        UserWarning: rows without a user or an item, which are left out.
    """
    import pandas

    path = Path(path)
    try:
        table = pandas.read_csv(path, sep="\t" if path.suffix in (".tsv", ".inter") else ",")
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} is missing or no table: {error}") from error
    table.columns = [str(name).partition(":")[0] for name in table.columns]  # RecBole adds the type
    names = []
    for known in (USER_COLUMNS, ITEM_COLUMNS):
        names.append(next((name for name in known if name in table), None))
        if names[-1] is None:
            raise FileFormatError(f"{path} has no column {' or '.join(known)}; it has {list(table.columns)}.")
    if min_rating is not None:
        if "rating" not in table:
            raise FileFormatError(f"{path} has no column rating, which min_rating asks for.")
        rated = pandas.to_numeric(table["rating"], errors="coerce")
        if len(wrong := table["rating"][rated.isna() & table["rating"].notna()]):
            raise FileFormatError(f"{path}: the rating {wrong.iloc[0]!r} is no number.")
        table = table[rated >= min_rating]
    whole = table[[name for name in names if name]].dropna()
    if len(whole) < len(table):
        warnings.warn(
            f"{path}: {len(table) - len(whole)} rows have no user or no item and are left out.", stacklevel=2
        )
        table = whole
    return k_core(table[names[0]].tolist(), table[names[1]].tolist(), k)


class Split(NamedTuple):
    """Parts of interactions, all of the same users and items."""

    train: Interactions
    validation: Interactions
    test: Interactions


def split(
    interactions: Interactions, generator: torch.Generator, validation: float = 0.1, test: float = 0.1
) -> Split:
    """Gives each user's items to the three parts by chance.

    Args:
        interactions: all of them.
        generator: of the choice.
        validation: share of a user's items, rounded to a whole number.
        test: likewise.

    Raises:
        ValueError: shares that leave nothing to train on.
    """
    if validation < 0 or test < 0 or not validation + test < 1:
        raise ValueError(f"The shares {validation} and {test} leave nothing to train on.")
    order = torch.randperm(len(interactions), generator=generator)
    order = order[interactions.users[order].argsort(stable=True)]  # by user, within a user by chance
    users, items = interactions.users[order], interactions.items[order]
    place = torch.arange(len(order)) - interactions.starts[users]
    counts = interactions.counts()[users]
    ends = [(counts * share).round() for share in (test, test + validation)]
    part = (place >= ends[0]).int() + (place >= ends[1]).int()  # 0 test, 1 validation, 2 train
    size = (interactions.num_users, interactions.num_items)
    parts = [Interactions(users[part == k], items[part == k], *size) for k in (2, 1, 0)]
    return Split(*parts)
