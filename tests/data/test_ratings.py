"""MovieLens: what is said when it is not there or damaged, and the real set where it is."""

import pytest
import torch

from dmkit.data import ratings
from dmkit.data.roots import data_root
from dmkit.errors import FileFormatError, MissingDataError


def test_a_set_that_is_not_there_is_named_with_the_way_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ratings, "SYSTEM_FOLDER", tmp_path / "system")
    with pytest.raises(MissingDataError, match=r"python -m dmkit.data.fetch movielens"):
        ratings.movielens(tmp_path)


def test_a_damaged_set_is_refused(tmp_path):
    pytest.importorskip("rdata")
    folder = tmp_path / ratings.FOLDER
    folder.mkdir()
    for name in ratings.FILES:
        (folder / name).write_bytes(b"no data base of R")
    with pytest.raises(FileFormatError, match="is damaged or holds no ratings"):
        ratings.movielens(tmp_path)


def test_the_real_set():
    pytest.importorskip("rdata")
    folders = (data_root() / ratings.FOLDER, ratings.SYSTEM_FOLDER)
    if not any(folder.is_dir() for folder in folders):
        pytest.skip("MovieLens is not fetched")
    films = ratings.movielens()
    assert [len(column) for column in films[:4]] == [100_004] * 4
    assert (len(films.users.unique()), len(films.items.unique())) == (671, 9066)
    assert (films.ratings.min(), films.ratings.max()) == (0.5, 5.0)
    assert films.users.dtype == torch.int64
    assert films.titles[31] == "Dangerous Minds"
