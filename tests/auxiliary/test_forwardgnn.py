"""ForwardGNN's equations, and that nothing crosses from one layer to another."""

import math
from itertools import pairwise

import pytest
import torch

pytest.importorskip("torch_geometric")
import torch.nn.functional as F
from forwardgnn_cases import CLASSES, graph, links, network
from torch_geometric.utils import degree

from dmkit.auxiliary.graphs.forwardgnn import (
    ForwardGNN,
    GraphLayer,
    LayerTask,
    add_class_nodes,
    append_labels,
    goodness_loss,
    link_scores,
    normalize,
    objective,
    saved_for_backward,
    scores,
    wrong_labels,
)
from dmkit.auxiliary.graphs.forwardgnn.backprop import Backprop, BackpropTask
from dmkit.auxiliary.graphs.forwardgnn.layers import convolution
from dmkit.auxiliary.graphs.forwardgnn.objectives import Links, SingleForward

EVERY = [
    {"method": "sf"},
    {"method": "sf", "top_down": "loss"},
    {"method": "sf", "top_down": "input"},
    {"method": "ff-la"},
    {"method": "ff-vn"},
    {"method": "link-ce"},
    {"method": "link-ce", "top_down": "input"},
    {"method": "link-ff"},
]


def data_for(model: ForwardGNN):
    return links() if model.config.method.startswith("link") else graph()


def predicted(model: ForwardGNN, data=None, **options) -> torch.Tensor:
    data = data_for(model) if data is None else data
    return (link_scores if model.config.method.startswith("link") else scores)(model, data, **options)


def everything(model: ForwardGNN) -> dict[str, torch.Tensor]:
    """A batch of all training rows."""
    return objective(model, data_for(model), torch.Generator().manual_seed(0)).rows.columns


def layer_task(model: ForwardGNN, layer: int) -> LayerTask:
    """The task of a layer, those before it as they are."""
    method = objective(model, data_for(model), torch.Generator().manual_seed(0))
    for k in range(layer + 1):
        task = LayerTask(model, k, method)
        task.prepare(torch.device("cpu"))
        if k < layer:
            task.advance()
    return task


def leaves(tensor: torch.Tensor) -> set:
    """Every leaf of autograd's graph that a tensor's gradient would reach."""
    found, queue, seen = set(), [tensor.grad_fn], set()
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        queue += [parent for parent, _ in node.next_functions]
    return found


# The graph with class nodes


def test_class_nodes_are_joined_to_their_training_nodes_and_to_no_other():
    data = graph()
    members = data.train_mask.nonzero().flatten()
    edges = add_class_nodes(data.edge_index, 24, members, data.y[members])
    assert edges.shape[1] == data.edge_index.shape[1] + 2 * len(members)
    assert int(edges.max()) + 1 == 24 + CLASSES
    new = edges[:, data.edge_index.shape[1] :]
    own = torch.bincount(data.y[members], minlength=CLASSES)
    assert torch.equal(degree(new.flatten(), 24 + CLASSES)[24:].long(), 2 * own)
    assert set(new[new < 24].tolist()) == set(members.tolist())
    assert all(data.y[min(edge)] == max(edge) - 24 for edge in new.t().tolist())


def test_labels_are_appended_to_training_nodes_and_spread_evenly_elsewhere():
    x = append_labels(torch.ones(3, 2), torch.tensor([1]), torch.tensor([2]), 4)
    assert torch.equal(x[1], torch.tensor([1, 1, 0, 0, 1.0, 0]))
    assert torch.equal(x[0], torch.tensor([1, 1, 0.25, 0.25, 0.25, 0.25]))


def test_wrong_labels_are_all_wrong_and_all_different():
    labels = torch.arange(50) % 5
    wrong = wrong_labels(labels, 5, torch.Generator().manual_seed(0))
    assert wrong.shape == (4, 50)
    assert not (wrong == labels).any()
    assert all(len(set(column)) == 4 for column in wrong.t().tolist())
    assert len({tuple(((column - y) % 5).tolist()) for column, y in zip(wrong.t(), labels, strict=True)}) > 5


def test_negative_graphs_differ_from_the_true_one_in_every_layer():
    """A cache of neighbours' sums that ignored its input would make them equal."""
    for method in ("ff-la", "ff-vn"):
        true, *wrong = layer_task(network(method=method), 1).outputs()
        assert len(wrong) == CLASSES - 1
        assert all(not torch.allclose(true, other) for other in wrong), method


# Losses


def test_normalised_rows_have_length_one_and_zeros_stay():
    h = normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    assert torch.allclose(h, torch.tensor([[0.6, 0.8], [0, 0]]))


def test_goodness_loss_is_two_ln_two_at_theta():
    assert goodness_loss(torch.full((4,), 2.0), torch.full((3, 4), 2.0), 2.0).item() == pytest.approx(
        1.386294, 1e-6
    )


def test_goodness_loss_is_cross_entropy_of_true_and_wrong():
    true, wrong = torch.rand(6) * 4, torch.rand(2, 6) * 4
    ones, zeros = torch.ones_like(true), torch.zeros_like(true)
    negative = torch.stack([F.binary_cross_entropy_with_logits(w - 2, zeros) for w in wrong]).mean()
    expected = F.binary_cross_entropy_with_logits(true - 2, ones) + negative
    assert goodness_loss(true, wrong, 2.0).item() == pytest.approx(expected.item(), rel=1e-6)


def test_logits_are_products_with_the_class_nodes_and_without_weights_the_loss_is_ln_k():
    model = network(temperature=2.0)
    task = layer_task(model, 0)
    (z,) = task.outputs()
    assert isinstance(task.objective, SingleForward)
    assert torch.allclose(task.objective.logits(z), z[:24] @ z[24:].T / 2, atol=1e-6)
    batch = everything(model)
    expected = F.cross_entropy((z[:24] @ z[24:].T / 2)[batch["node"]], batch["label"])
    assert task.training_step(batch, None)["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    for p in model.parameters():
        p.data.zero_()
    assert task.training_step(batch, None)["loss"].item() == pytest.approx(math.log(CLASSES), rel=1e-6)


def test_links_are_scored_by_products():
    data = links()
    for kind, expected in (
        ("link-ce", lambda a, b: (a * b).sum(1)),
        ("link-ff", lambda a, b: (a * b).square().sum(1) - 2),
    ):
        model = network(method=kind)
        task = layer_task(model, 0)
        (z,) = task.outputs()
        i, j = data.edge_label_index
        assert isinstance(task.objective, Links)
        found = task.objective.score(z, everything(model)["edge"])
        assert torch.allclose(found, expected(z[i], z[j]), atol=1e-6)
        # The loss of drawn edges counts as much as that of true ones.
        loss = task.training_step(everything(model), None)["loss"].item()
        whole = F.binary_cross_entropy_with_logits(found, data.edge_label).item()
        assert loss == pytest.approx(whole if kind == "link-ce" else 2 * whole, rel=1e-5)


def test_link_scores_are_means_over_learned_layers_alone():
    model, data = network(method="link-ce"), links()
    one, both = link_scores(model, data, 1), link_scores(model, data)
    (z,) = layer_task(model, 1).outputs()
    i, j = data.edge_label_index
    assert torch.allclose(both, (one + (z[i] * z[j]).sum(1).sigmoid()) / 2, atol=1e-6)


# Locality


@pytest.mark.parametrize("method", ["sf", "ff-la", "ff-vn", "link-ce", "link-ff"])
@pytest.mark.parametrize("conv", ["gcn", "sage", "gat"])
def test_a_layers_loss_reaches_its_own_parameters_and_nothing_else(method, conv):
    model = network(method=method, conv=conv)
    task = layer_task(model, 1)
    assert not any(part.requires_grad for gathered in task.gathered for part in gathered)
    loss = task.training_step(everything(model), None)["loss"]
    own = set(model.layers[1].parameters())
    assert leaves(loss)
    assert leaves(loss) <= own
    assert set(task.parameters()["main"]) == own
    loss.backward()
    assert all(p.grad is None for p in model.layers[0].parameters())


def test_what_is_kept_for_the_backward_pass_does_not_grow_with_depth():
    forward, end_to_end = [], []
    for depth in (1, 2, 4, 8):
        model = network(num_layers=depth)
        most = 0
        for k in range(depth):
            task = layer_task(model, k)
            with saved_for_backward() as kept:
                task.training_step(everything(model), None)
            most = max(most, kept["bytes"])
        forward.append(most)
        data, net = graph(), Backprop(5, CLASSES, 8, num_layers=depth)
        with saved_for_backward() as kept:
            net(data.x, data.edge_index).sum()
        end_to_end.append(kept["bytes"])
    assert max(forward[1:]) <= 1.05 * min(forward[1:])
    growth = [b - a for a, b in pairwise(end_to_end)]
    assert growth[2] == pytest.approx(2 * growth[1], rel=0.05)  # linear


# The layer


@pytest.mark.parametrize("kind", ["gcn", "sage", "gat"])
def test_a_layer_in_two_halves_is_the_convolution_and_trains_as_it_does(kind):
    data = graph()
    torch.manual_seed(0)
    layer = GraphLayer(kind, 5, 8)
    plain = convolution(kind, 5, 8)
    plain.load_state_dict(layer.conv.state_dict())
    gathered = layer.gather(data.x, data.edge_index)
    steps = [torch.optim.Adam(module.parameters(), 0.01) for module in (layer, plain)]
    for _ in range(20):
        for optimiser, h in zip(
            steps, (layer(*gathered), plain(data.x, data.edge_index).relu()), strict=True
        ):
            optimiser.zero_grad()
            (h.square().sum(1) - data.y).square().mean().backward()
            optimiser.step()
    assert torch.allclose(layer(*gathered), plain(data.x, data.edge_index).relu(), atol=1e-5)


# Predictions


@pytest.mark.parametrize("choice", EVERY, ids=lambda choice: "-".join(choice.values()))
def test_saved_networks_predict_the_same(choice, tmp_path):
    """Class nodes without their features would be others."""
    model = network(**choice)
    model.save_pretrained(tmp_path)
    again = ForwardGNN.from_pretrained(tmp_path)
    assert torch.equal(again.virtual, model.virtual)
    found = predicted(model)
    assert torch.equal(predicted(again), found)
    assert found.isfinite().all()


@pytest.mark.parametrize("method", ["sf", "ff-la", "ff-vn"])
def test_labels_that_are_not_to_train_on_are_never_read(method):
    model, data = network(method=method), graph()
    changed = graph()
    changed.y = torch.where(data.train_mask, data.y, (data.y + 1) % CLASSES)
    assert torch.equal(scores(model, data), scores(model, changed))


def test_other_names_of_classes_permute_columns_alone():
    model, data = network(), graph()
    found = scores(model, data)
    to = torch.tensor([2, 0, 1])
    data.y = torch.where(data.y < 0, data.y, to[data.y])
    model.virtual.copy_(model.virtual[to.argsort()])
    assert torch.allclose(scores(model, data)[:, to], found, atol=1e-6)


@pytest.mark.parametrize("method", ["sf", "ff-la", "link-ce"])
def test_the_first_layers_are_a_shallower_network(method):
    deep, shallow = network(method=method, num_layers=3), network(method=method, num_layers=2)
    assert torch.equal(predicted(deep, layers=2), predicted(shallow))


def test_forward_forward_predicts_by_goodness_of_each_class():
    model, data = network(method="ff-la", num_layers=1), graph()
    members = torch.arange(24)
    labels = torch.where(data.train_mask, data.y, 1)
    layer = model.layers[0]
    h = layer(*layer.gather(normalize(append_labels(data.x, members, labels, CLASSES)), data.edge_index))
    assert torch.allclose(scores(model, data)[:, 1], h.square().sum(1), atol=1e-5)


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "fs"}, "Unknown method 'fs'. Did you mean 'sf'"),
        ({"method": "ff-la", "top_down": "loss"}, "ff-la has no top_down 'loss'"),
        ({"method": "link-ce", "top_down": "loss"}, "link-ce has no top_down 'loss'"),
        ({"conv": "gnc"}, "Unknown convolution 'gnc'. Did you mean 'gcn'"),
        ({"conv": "gat", "hidden_channels": 6}, "6 channels cannot be shared equally by 4 heads"),
        ({"theta": 0.0}, "theta is 0.0; it must be positive"),
        ({"temperature": -1.0}, "temperature is -1.0; it must be positive"),
        ({"num_layers": 0}, "A layer and two classes are the least, not 0"),
    ],
)
def test_impossible_networks_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        network(**changes)


def test_impossible_graphs_are_refused():
    model = network()

    def refused(message: str, **changes):
        data = graph()
        for name, value in changes.items():
            data[name] = value
        with pytest.raises(ValueError, match=message):
            objective(model, data)

    data = graph()
    refused("needs a train_mask", train_mask=torch.zeros(24, dtype=torch.bool))
    refused("train_mask and val_mask overlap", val_mask=data.train_mask)
    refused("from 0 to 3, not 0 to 2", y=torch.where(data.y == 2, 3, data.y))
    refused("from -1 to 2, not 0 to 2", y=torch.where(data.y == 0, -1, data.y))
    refused(r"Classes without a training node: \[1\]", train_mask=data.train_mask & (data.y != 1))
    strange = torch.tensor([[0], [25]])  # would be the node of a class
    refused("between nodes 0 to 25, of a graph with nodes 0 to 23", edge_index=strange)
    refused("between nodes -1 to 0", edge_index=torch.tensor([[0], [-1]]))
    refused(r"features are \(24, 3\); the network takes", x=data.x[:, :3])
    refused("not all finite", x=torch.full_like(data.x, float("nan")))
    data.edge_index = torch.eye(25).to_sparse_csr()
    with pytest.raises(ValueError, match=r"adjacency matrix is \(25, 25\), of a graph with 24 nodes"):
        BackpropTask(Backprop(5, CLASSES, 8, num_layers=2), data)
    directed = links()
    directed.edge_index = directed.edge_index[:, 1:]
    with pytest.raises(ValueError, match="every edge must be there both ways"):
        objective(network(method="link-ce"), directed)


def test_predictions_of_another_kind_or_depth_are_refused():
    with pytest.raises(ValueError, match="link_scores has its probabilities"):
        scores(network(method="link-ce"), links())
    with pytest.raises(ValueError, match="scores has its classes"):
        link_scores(network(), graph())
    for model, layers in ((network(), 3), (network(), 0), (network(top_down="input"), 1)):
        with pytest.raises(ValueError, match=f"layers is {layers}; it must be 1 to 2"):
            scores(model, graph(), layers)


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch_geometric.nn", None)
    with pytest.raises(ImportError, match=r"pip install 'dmkit\[graphs\]'"):
        convolution("gcn", 2, 2)
