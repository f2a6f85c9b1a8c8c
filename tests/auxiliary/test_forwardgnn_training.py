"""Trainings of ForwardGNN: layer by layer and all at once, resumed, in two processes, and of its recipe."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("torch_geometric")
from forwardgnn_cases import graph, links, network, training

from dmkit.auxiliary.graphs.forwardgnn import (
    ForwardGNN,
    TopDownTask,
    fit,
    link_scores,
    normalize,
    objective,
    scores,
)
from dmkit.auxiliary.graphs.forwardgnn.tasks import LayerTask, train
from dmkit.auxiliary.graphs.forwardgnn.training import Arguments, accuracy, area, run, split_links
from dmkit.data.graphs import digit_graph
from dmkit.errors import FileFormatError
from dmkit.training.trainer import Step, Trainer


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_a_layer_stays_bit_for_bit_while_the_next_one_trains(tmp_path):
    start, model = network(), network()
    fit(model, graph(), training(tmp_path))
    first = ForwardGNN.from_pretrained(tmp_path / "layer-0" / "model")
    assert same(first.layers[0], model.layers[0])
    assert same(first.layers[1], start.layers[1])
    assert not same(start.layers[0], model.layers[0])
    assert not same(start.layers[1], model.layers[1])
    assert torch.equal(model.virtual, start.virtual)
    assert not model.training


def test_the_first_layers_of_a_deep_training_are_a_shallow_one(tmp_path):
    deep = fit(network(num_layers=3), graph(), training(tmp_path / "deep"))
    shallow = fit(network(num_layers=1), graph(), training(tmp_path / "shallow"))
    assert same(deep.layers[0], shallow.layers[0])
    assert torch.equal(scores(deep, graph(), layers=1), scores(shallow, graph()))


def test_signals_to_the_loss_of_a_single_layer_change_nothing(tmp_path):
    plain = fit(network(num_layers=1), graph(), training(tmp_path / "a"))
    told = fit(network(num_layers=1, top_down="loss"), graph(), training(tmp_path / "b"))
    assert same(plain, told)


@pytest.mark.parametrize("choice", [("sf", "loss"), ("sf", "input"), ("link-ce", "input")])
def test_layers_with_signals_have_optimisers_of_their_own(choice, tmp_path):
    method, top_down = choice
    data = graph() if method == "sf" else links()
    model = network(num_layers=3, method=method, top_down=top_down)
    task = TopDownTask(model, objective(model, data), data)
    trainer = Trainer(task, objective(model, data).rows, training(tmp_path))
    order = ["layer-0", "layer-2", "layer-1"] if top_down == "input" else ["layer-0", "layer-1", "layer-2"]
    assert list(trainer.optimizers) == order
    owned = [
        p for optimizer in trainer.optimizers.values() for g in optimizer.param_groups for p in g["params"]
    ]
    assert len(owned) == len(set(owned)) == len(list(model.parameters()))
    before = [state.clone() for state in task.modules["states"].values()]
    trainer.train()
    after = task.modules["states"].values()
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(state.requires_grad for state in after)
    norms = torch.stack([state.norm(dim=1) for state in after])
    assert torch.allclose(norms[norms > 0.5], torch.ones(()))


def test_a_signal_never_carries_a_gradient(tmp_path):
    data = graph()
    model = network(num_layers=3, top_down="loss")
    task = TopDownTask(model, objective(model, data), data)
    task.prepare(torch.device("cpu"))
    batch = task.objective.rows.columns
    for k in range(3):
        model.zero_grad()
        task.training_step(batch, Step(0, f"layer-{k}", None))["loss"].backward()
        assert [any(p.grad is not None for p in layer.parameters()) for layer in model.layers] == [
            j == k for j in range(3)
        ]


def test_all_layers_read_the_states_of_the_step_before():
    """(5) is synchronous; the chain that predictions run is the normalised one of training."""
    data = graph()
    model = network(num_layers=2, top_down="loss")
    task = TopDownTask(model, objective(model, data), data)
    task.prepare(torch.device("cpu"))
    old = task.modules["states"].values()[0]
    with torch.no_grad():
        for p in model.layers[0].parameters():
            p.mul_(2)
    for k in range(2):
        task.training_step(task.objective.rows.columns, Step(0, f"layer-{k}", None))
    layer = model.layers[1]
    expected = normalize(layer(*layer.gather(old, task.edges)))
    assert torch.allclose(task.modules["states"].values()[1], expected)
    assert not torch.equal(task.modules["states"].values()[0], old)


@pytest.mark.parametrize("top_down", ["loss", "input"])
def test_a_stopped_training_with_signals_goes_on_exactly(top_down, tmp_path):
    def trained(folder: str, **changes):
        return fit(network(top_down=top_down), graph(), training(tmp_path / folder, **changes))

    whole = trained("whole", max_train_steps=4)
    trained("parts", max_train_steps=2, checkpointing_steps=2)
    again = trained("parts", max_train_steps=4, checkpointing_steps=2, resume_from_checkpoint="latest")
    assert same(whole, again)


def test_a_stopped_training_of_layers_goes_on_with_the_layer_that_it_was_at(tmp_path):
    whole = fit(network(), graph(), training(tmp_path / "whole", max_train_steps=4))
    parts = {"checkpointing_steps": 2, "resume_from_checkpoint": "latest"}
    model, data = network(), graph()
    method = objective(model, data)
    first = training(tmp_path / "parts" / "layer-0", max_train_steps=2, **parts)
    train(LayerTask(model, 0, method), method.rows, first)  # and no more
    again = fit(network(), graph(), training(tmp_path / "parts", max_train_steps=4, **parts))
    assert same(whole, again)
    with pytest.raises(FileFormatError, match="layers below was"):  # they would be others
        fit(network(), graph(), training(tmp_path / "parts", max_train_steps=6, **parts))


def test_batches_of_some_training_nodes_serve_too(tmp_path):
    model = fit(network(), graph(), training(tmp_path, train_batch_size=4))
    assert scores(model, graph()).isfinite().all()


def test_two_processes_train_what_one_does(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*launch, str(Path(__file__).with_name("forwardgnn_cases.py")), str(tmp_path)],
        check=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        timeout=900,
    )
    one = fit(network(), graph(), training(tmp_path / "one"))
    ranks = [ForwardGNN.from_pretrained(tmp_path / f"rank-{rank}") for rank in (0, 1)]
    assert same(*ranks)
    for a, b in zip(one.parameters(), ranks[0].parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_area_counts_pairs():
    data = links()
    data.edge_label = torch.tensor([1.0, 1, 0, 0])
    assert area(torch.tensor([0.9, 0.4, 0.4, 0.1]), data) == pytest.approx((1 + 1 + 0.5 + 1) / 4)


def test_links_are_split_without_leaks():
    fitted, _, measured = split_links(digit_graph(), 0)
    seen = set(map(tuple, fitted.edge_index.t().tolist()))
    true = measured.edge_label_index[:, measured.edge_label == 1]
    assert not seen & set(map(tuple, true.t().tolist()))
    assert fitted.edge_label.mean() == pytest.approx(0.5)


@pytest.mark.parametrize("method", ["sf", "link-ce"])
def test_the_recipe_measures_every_depth_and_backpropagation(method, tmp_path):
    arguments = Arguments(forward_method=method, hidden_channels=16, layers=2, backprop_steps=5)
    figures = run(arguments, training(tmp_path, max_train_steps=20))
    assert set(figures["test"]) == {"1", "2"}
    assert figures["test"]["1"] > 0.6
    assert 0 <= figures["backprop"] <= 1
    assert ForwardGNN.from_pretrained(tmp_path / "model").config.method == method


def test_accuracy_is_of_one_split():
    data = graph()
    found = torch.nn.functional.one_hot(data.y.clamp(min=0), 3).float()
    assert accuracy(found, data, "val") == 1
    assert link_scores is not scores


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"graph": "digit"}, "Did you mean 'digits'"),
        ({"forward_method": "ff"}, "Unknown method 'ff'"),
        ({"layers": 0}, "--layers is 0; it must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Arguments(**changes)
