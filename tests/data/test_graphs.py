"""Graphs: digits and their neighbours, Debian's packages and what they depend on."""

import pytest
import torch

pytest.importorskip("torch_geometric")
from dmkit.data import packages
from dmkit.data.graphs import digit_graph, split_nodes, undirected
from dmkit.errors import FileFormatError, MissingDataError

INDEX = """\
Package: cat
Pre-Depends: libc6
Depends: libc6 (>= 2.34), dog:any | cow, perl
Description: small animal
Tag: role::program,
 use::gameplaying
Section: games

Package: dog
Depends: cat
Description: a larger animal, small
Section: contrib/games

Package: libc6
Section: libs

Package: cat
Section: later
"""


def test_an_index_is_read():
    found = packages.parse(INDEX.splitlines())
    assert found.names == ["cat", "dog", "libc6"]
    assert found.sections == ["games", "games", "libs"]
    assert found.descriptions[:2] == ["small animal", "a larger animal, small"]
    assert found.depends.t().tolist() == [[0, 2], [0, 2], [0, 1], [1, 0]]
    with pytest.raises(FileFormatError, match="holds no package"):
        packages.parse(["nothing"])


def test_the_extract_keeps_packages_of_its_topics_that_depend_on_each_other():
    found = packages.extract(packages.parse(INDEX.splitlines()), topics=("games",), each=5)
    assert found.names == ["cat", "dog"]
    assert found.depends.t().tolist() == [[0, 1], [1, 0]]


def test_the_graph_of_packages_comes_back_from_its_file(tmp_path, monkeypatch, capsys):
    with pytest.raises(MissingDataError, match=r"python -m dmkit\.data\.packages"):
        packages.debian_graph(root=tmp_path)
    monkeypatch.setattr(packages, "LEAST", 2)
    packages.build(packages.parse(INDEX.splitlines()), tmp_path)
    data = packages.debian_graph(dimensions=16, root=tmp_path)
    assert data.x.shape == (3, 16)
    assert torch.allclose(data.x.norm(dim=1), torch.tensor([1.0, 1, 0]))
    assert data.x[0] @ data.x[1] > 0.5  # "small" and "animal" in both
    assert data.y.tolist() == [0, 0, -1]
    assert data.edge_index.t().tolist() == [[0, 1], [0, 2], [1, 0], [2, 0]]
    assert data.depends.t().tolist() == [[0, 1], [0, 2], [1, 0]]
    assert "3 packages, 3 dependencies, 1 classes" in capsys.readouterr().out
    (tmp_path / packages.FILES[False]).write_bytes(b"no")
    with pytest.raises(FileFormatError):
        packages.debian_graph(root=tmp_path)


def test_digits_are_joined_to_their_neighbours_both_ways():
    data = digit_graph(8)
    assert data.x.shape == (1797, 64)
    assert data.is_undirected()
    assert not data.has_self_loops()
    assert int(torch.bincount(data.edge_index[0]).min()) >= 8
    i, j = data.edge_index
    assert (data.y[i] == data.y[j]).float().mean() > 0.9
    with pytest.raises(ValueError, match="neighbours is 0"):
        digit_graph(0)


def test_splits_are_of_labelled_nodes_and_do_not_overlap():
    data = digit_graph()
    data.y[:97] = -1
    split = split_nodes(data, seed=1)
    masks = torch.stack([split.train_mask, split.val_mask, split.test_mask]).long()
    assert masks.sum(1).tolist() == [1088, 272, 340]
    assert torch.equal(masks.sum(0) == 1, data.y >= 0)
    assert not torch.equal(split_nodes(data, seed=2).train_mask, split.train_mask)
    with pytest.raises(ValueError, match="leave no nodes"):
        split_nodes(data, 0, train=0.9, validation=0.1)


def test_edges_go_both_ways_once():
    assert undirected(torch.tensor([[0, 1, 2, 0], [1, 0, 2, 1]]), 3).tolist() == [[0, 1], [1, 0]]
