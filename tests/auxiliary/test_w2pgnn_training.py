"""W2PGNN beside what pre-training was worth: structure as features, links as the task, and the recipe."""

import numpy as np
import pytest
import torch

pytest.importorskip("ot")
pytest.importorskip("torch_geometric")
from dmkit.auxiliary.graphs.w2pgnn.training import Arguments, domains, rank_correlation, run
from dmkit.auxiliary.graphs.w2pgnn.transferring import finetune, joined, pretrain, structure
from dmkit.data import packages
from dmkit.errors import MissingDataError
from dmkit.training.arguments import TrainingArguments

TRIANGLE_WITH_TAIL = np.array([[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 1], [0, 0, 1, 0.0]])


def training(folder, **changes) -> TrainingArguments:
    values = {
        "output_dir": str(folder),
        "train_batch_size": 10**6,
        "max_train_steps": 3,
        "learning_rate": 0.01,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "checkpointing_steps": 0,
        "save_images_epochs": 0,
        "save_model_epochs": 0,
        "report_to": "none",
    }
    return TrainingArguments(**{**values, **changes})


def test_features_are_structure_alone():
    found = structure(TRIANGLE_WITH_TAIL)
    assert np.allclose(found[:, 1], np.log1p([2, 2, 3, 1]))
    assert np.allclose(found[:, 2], np.log1p([2.5, 2.5, 5 / 3, 3]))
    assert np.allclose(found[:, 3], [1, 1, 1 / 3, 0])


def test_graphs_side_by_side_have_as_many_absent_links_inside_them():
    data = joined([TRIANGLE_WITH_TAIL, TRIANGLE_WITH_TAIL], [np.arange(4) % 2] * 2)
    assert data.x.shape == (8, 4)
    assert data.y.tolist() == [0, 1, 0, 1] * 2
    assert data.edge_index.shape == (2, 16)
    i, j = data.edge_label_index
    assert torch.equal(i < 4, j < 4)
    true = set(map(tuple, data.edge_index.t().tolist()))
    drawn = data.edge_label_index[:, data.edge_label == 0].t().tolist()
    assert drawn
    assert not true & set(map(tuple, drawn))
    assert all(a != b for a, b in drawn)


def test_tuning_starts_from_what_was_pretrained(tmp_path):
    sources, _ = domains(Arguments(count=2, nodes=30), seed=0)
    data = joined(*sources["graphon 0"])
    network = pretrain(data, 8, training(tmp_path / "a"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = finetune(network, data, 8, training(tmp_path / "b"))
    assert 0 <= found <= 1
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert hasattr(data, "edge_label")


def test_rank_correlations_are_over_all_pairs_and_within_targets():
    rows = [
        {"target": t, "gain": g, "x": x} for t, g, x in [("a", 1, 1), ("a", 2, 2), ("b", 9, 0), ("b", 3, -1)]
    ]
    found = rank_correlation(rows, "x")
    assert found["within targets"] == pytest.approx(1)
    assert found["all pairs"] < 0
    nearly = [{**row, "gain": row["gain"] + 1e-12 * k} for k, row in enumerate(rows + rows)]
    assert rank_correlation(nearly, "x") == rank_correlation(rows + rows, "x")
    alike = [{**row, "gain": 0} for row in rows]
    assert rank_correlation(alike, "x") == {"all pairs": None, "within targets": None}


def test_the_recipe_compares_feasibility_with_the_gain(tmp_path):
    arguments = Arguments(families=[0, 1, 4], count=2, nodes=40, resolution=5, width=8, finetune_steps=3)
    figures = run(arguments, training(tmp_path))
    assert len(figures["pairs"]) == 9
    assert all(-1 <= row["gain"] <= 1 and row["feasibility"] <= 0 for row in figures["pairs"])
    assert set(figures["rank correlation"]) == {"feasibility", "statistics"}
    near = {row["target"]: row for row in sorted(figures["pairs"], key=lambda row: row["feasibility"])}
    assert near["0.8 graphon 0 + 0.2 graphon 1"]["source"] == "graphon 0"


def test_topics_of_debian_are_sources_and_targets(tmp_path, monkeypatch):
    monkeypatch.setenv("DMKIT_DATA", str(tmp_path))
    arguments = Arguments(graphs="debian", topics=["games", "net"])
    with pytest.raises(MissingDataError):
        domains(arguments, 0)
    index = [
        f"Package: {t}{k}\nDepends: {t}{k + 1}\nSection: {t}\n" for t in ("games", "net") for k in range(5)
    ]
    packages.build(packages.parse("\n".join(index).splitlines()), tmp_path)
    sources, targets = domains(arguments, 0)
    assert sources is targets
    ((graph,), (needed,)) = sources["games"]
    assert graph.sum() == 8
    assert needed.tolist() == [0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"graphs": "graphon"}, "Did you mean 'graphons'"),
        ({"topics": ["game"]}, "Unknown topic 'game'. Did you mean 'games'"),
        ({"width": 0}, "--width is 0"),
        ({"families": [1]}, "Two kinds of graphs are the least"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Arguments(**changes)
