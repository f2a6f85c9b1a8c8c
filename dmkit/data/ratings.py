"""Ratings of films: MovieLens, as the R package dslabs carries it."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import FileFormatError, MissingExtraError
from .roots import data_root, find

FOLDER = "movielens"
FILES = ("Rdata.rdx", "Rdata.rdb")
SYSTEM_FOLDER = Path("/usr/lib/R/site-library/dslabs/data")  # of the Debian package r-cran-dslabs
LICENSE = "GroupLens: research use, not to be redistributed; the package dslabs is Artistic-2.0"
CITATION = (
    "F. M. Harper, J. A. Konstan. The MovieLens Datasets: History and Context. ACM Transactions on "
    "Interactive Intelligent Systems 5(4), 2015."
)


class Ratings(NamedTuple):
    """Ratings, one a row.

    Attributes:
        users: (E,) int64, as the set numbers them.
        items: (E,) int64, likewise.
        ratings: (E,) float32.
        timestamps: (E,) int64, seconds since 1970.
        titles: of items by number.
    """

    users: Tensor
    items: Tensor
    ratings: Tensor
    timestamps: Tensor
    titles: dict[int, str]


def movielens(root: str | Path | None = None) -> Ratings:
    """100,004 ratings from 0.5 to 5 of 9,066 films by 671 users (MovieLens' `latest-small` of 2016).

    Source: the Debian package `r-cran-dslabs`. Licence: GroupLens' own, for research, which does not allow to
    hand the ratings on. Cite: Harper and Konstan, ACM TiiS 5(4), 2015.

    Args:
        root: folder of fetched data, as for `dmkit.data.load`.

    Raises:
        MissingDataError: the package is neither installed nor fetched.
        MissingExtraError: `rdata` is not installed.
        FileFormatError: a damaged file.
    """
    how = "python -m dmkit.data.fetch movielens (or, as root: apt-get install r-cran-dslabs)"
    folder = find("MovieLens", [data_root(root) / FOLDER, SYSTEM_FOLDER], how)
    try:
        import rdata
    except ImportError:
        raise MissingExtraError("rdata", "recommendation") from None

    def read(content: bytes):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it guesses that a part without a header is what it is
            return rdata.conversion.convert(rdata.parser.parse_data(content))

    try:
        index, database = ((folder / name).read_bytes() for name in FILES)
        start, length = map(int, read(index)["variables"]["movielens"])
        # An entry is four bytes of its size, then a zlib stream.
        table = read(zlib.decompress(database[start + 4 : start + length]))
        columns = {name: table[name].to_numpy() for name in ("userId", "movieId", "rating", "timestamp")}
        titles = dict(zip(columns["movieId"].tolist(), table["title"].tolist(), strict=True))
        return Ratings(
            torch.tensor(columns["userId"].astype("int64")),
            torch.tensor(columns["movieId"].astype("int64")),
            torch.tensor(columns["rating"].astype("float32")),
            torch.tensor(columns["timestamp"].astype("int64")),
            titles,
        )
    except Exception as error:  # a damaged file fails in rdata with errors of any kind
        raise FileFormatError(f"{folder} is damaged or holds no ratings: {error!r}") from error
