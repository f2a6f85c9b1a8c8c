"""FedKA in the trainer: what it reduces to, rounds, votes, files, resumption, real processes."""

import json
import shutil
import socket
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dmkit.auxiliary.federated.fedka import DomainNet, Exchange, Federation, GlooExchange, Settings, federate
from dmkit.auxiliary.federated.fedka.federation import COLLAPSED
from dmkit.auxiliary.federated.fedka.server import Server
from dmkit.auxiliary.federated.fedka.training import Arguments, run
from dmkit.errors import TrainingError
from dmkit.metrics.classification import accuracy
from dmkit.training.arguments import TrainingArguments
from dmkit.training.randomness import DataOrder, derive_seed

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from running_scripts import ENVIRONMENT, script

FLAGS = {
    "train_batch_size": 8,
    "learning_rate": 3e-3,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "adam_beta1": 0.9,
    "adam_weight_decay": 0.0,
    "max_grad_norm": 0,
    "checkpointing_steps": 0,
    "save_images_epochs": 0,
    "save_model_epochs": 0,
    "report_to": "none",
}
FEDAVG = {"mmd_weight": 0, "voting": False}


def training(folder: Path, **changes) -> TrainingArguments:
    return TrainingArguments(**{**FLAGS, "output_dir": str(folder), "seed": 4, **changes})


def problem(clients: int = 3, **changes):
    """Clients with blobs that lie elsewhere for each, the site's inputs, and its test."""
    generator = torch.Generator().manual_seed(0)
    middles = 2 * torch.randn(3, 6, generator=generator)

    def some(rows: int, shift: float):
        labels = torch.arange(rows) % 3
        return middles[labels] + shift + 0.5 * torch.randn(rows, 6, generator=generator), labels

    sites = [some(20 + 3 * k, 0.2 * k) for k in range(clients)]
    torch.manual_seed(1)
    network = DomainNet((6, 12, 8), classes=3, domain_width=4, **changes)
    return network, sites, some(30, 1.0)[0], some(60, 1.0)


def same(a: torch.nn.Module, b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.state_dict().items())


def test_without_the_rest_it_is_federated_averaging(tmp_path):
    """To the bit, against a loop over clients that have an Adam each."""
    network, sites, target, test = problem()
    task = federate(
        network, sites, target, Settings(3, local_steps=2, **FEDAVG), training(tmp_path), test=test
    )
    models = [deepcopy(network) for _ in sites]
    adams = [torch.optim.AdamW(m.parameters(), lr=3e-3, weight_decay=0.0) for m in models]
    for number in range(3):
        for within in range(2):
            for k, (model, adam, (x, y)) in enumerate(zip(models, adams, sites, strict=True)):
                order = DataOrder(len(x), 8, derive_seed(4, k, 4))
                rows = next(order.batches(number * 2 + within))
                adam.zero_grad()
                F.cross_entropy(model(x[rows]), y[rows]).backward()
                adam.step()
        states = [model.state_dict() for model in models]
        mean = {
            name: torch.stack([1 / 3 * state[name].double() for state in states]).sum(0).float()
            for name in states[0]
        }
        for model in models:
            model.load_state_dict(mean)
    assert same(task.network, mean)
    assert [entry["round"] for entry in task.history] == [1, 2, 3]
    last = task.history[-1]
    assert last["global"] == accuracy(task.network, *test)
    assert last["group_effect"] == pytest.approx(last["global"] - sum(last["clients"]) / 3)
    assert "served" not in last
    assert last["bytes"] == 2 * 3 * 4 * sum(p.numel() for p in network.parameters())


def meeting(settings: Settings, **changes) -> tuple[Federation, list[dict[str, torch.Tensor]]]:
    """A federation whose clients have just trained, in some way, and their weights."""
    network, sites, target, test = problem(**changes)
    server = Server(network, settings, target, test, batch_size=8, seed=0)
    task = Federation(network, dict(enumerate(sites)), 3, target, settings, server, Exchange(), 0)
    task._variance = {k: task._spread(k) for k in range(3)}
    for k in range(3):
        torch.manual_seed(k)
        client = task.modules[f"client{k}"]
        with torch.no_grad():
            for p in client.parameters():
                p += 0.05 * torch.randn_like(p)
        client.train().features(sites[k][0])  # moves the statistics of batch norms
    return task, [deepcopy(task.modules[f"client{k}"].state_dict()) for k in range(3)]


@pytest.mark.parametrize("norms", [False, True])
def test_clients_go_on_from_the_average_and_not_from_the_votes(norms):
    task, states = meeting(Settings(2), batch_norm=norms)
    looked_at = deepcopy(states)
    task.server._look_at_clients(states)
    for a, b in zip(states, looked_at, strict=True):  # voting moves no statistics
        assert all(torch.equal(a[name], b[name]) for name in a)
    task.end_round(1)
    mean = {name: sum(s[name].double() for s in states) / 3 for name in states[0]}
    for name, value in task.network.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, mean[name].float())
        else:
            assert value == states[0][name]
    for k in range(3):
        assert same(task.modules[f"client{k}"], task.network.state_dict())
    assert not same(task.served, task.network.state_dict())
    assert task.history[0]["coverage"] == 1
    assert 1 / 3 <= task.history[0]["agreement"] <= 1


def test_feedback_and_samples():
    task, _ = meeting(Settings(2, feedback=True))
    task.end_round(1)
    assert same(task.served, task.modules["client0"].state_dict())
    task, states = meeting(Settings(2, voting=False, weighting="samples"))
    task.end_round(1)
    expected = sum(n * s["head.bias"].double() for n, s in zip((20, 23, 26), states, strict=True)) / 69
    torch.testing.assert_close(task.network.head.bias.double(), expected, atol=1e-6, rtol=1e-6)
    assert same(task.served, task.network.state_dict())


def test_nobody_agrees_and_nothing_is_trained_on():
    task, states = meeting(Settings(2, vote_threshold=1.0))
    for k, state in enumerate(states):  # each client always says another class
        state["head.weight"].zero_()
        state["head.bias"].copy_(F.one_hot(torch.tensor(k), 3))
        task.modules[f"client{k}"].load_state_dict(state)
    task.end_round(1)
    assert task.history[0]["coverage"] == 0
    assert same(task.served, task.network.state_dict())


def test_constant_features_are_noticed():
    task, _ = meeting(Settings(2))
    with torch.no_grad():
        task.modules["client1"].extractor[2].weight.mul_(COLLAPSED**0.5 / 10)
    with pytest.raises(TrainingError, match="features of client 1 are constant after round 1"):
        task.end_round(1)


def test_a_loss_that_is_not_a_number_names_the_client(tmp_path):
    network, sites, target, _ = problem()
    sites[2] = (sites[2][0].fill_(float("inf")), sites[2][1])
    with pytest.raises(TrainingError, match=r"client2/classes is nan.*client2/matching is nan"):
        federate(network, sites, target, Settings(1, local_steps=1), training(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {"adversarial": True, "alignment": "global"},
        {"adversarial": True, "alignment": "global", "mmd_steps": 1, "feedback": True},
        {"alignment": "local", "voting": False},
    ],
)
def test_every_mode_trains_and_is_saved(tmp_path, changes):
    network, sites, target, test = problem()
    before = deepcopy(network.state_dict())
    task = federate(
        network,
        sites,
        target[:5],  # fewer than a batch: the order goes round
        Settings(2, local_steps=2, vote_steps=2, **changes),
        training(tmp_path),
        test=test,
    )
    assert same(network, before)  # the network that was given stays
    assert len(task.history) == 2
    assert all(share > COLLAPSED for share in task.history[-1]["variance"])
    for name, module in (("global", task.network), ("served", task.served)):
        assert same(DomainNet.from_pretrained(tmp_path / name), module.state_dict())
    json.dumps(task.history)


def test_a_run_that_was_cut_off_ends_as_the_whole_one(tmp_path):
    network, sites, target, test = problem()
    settings = Settings(3, local_steps=2, vote_steps=2)
    common = {"checkpointing_steps": 2, "resume_from_checkpoint": "latest"}
    whole = federate(network, sites, target, settings, training(tmp_path / "whole", **common), test=test)
    for step in (2, 4):  # both at the end of a round, before its average
        cut = tmp_path / f"cut-{step}"
        cut.mkdir()
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", cut / f"checkpoint-{step}")
        again = federate(network, sites, target, settings, training(cut, **common), test=test)
        assert same(again.network, whole.network.state_dict())
        assert same(again.served, whole.served.state_dict())
        assert [entry["round"] for entry in again.history] == list(range(step // 2, 4))
        for mine, entry in zip(reversed(again.history), reversed(whole.history), strict=False):
            assert mine["global"] == entry["global"]


def test_what_is_refused(tmp_path):
    network, sites, target, _ = problem()

    def attempt(message: str, *, net=network, clients=sites, site=target, settings=None, **changes):
        with pytest.raises(ValueError, match=message):
            federate(net, clients, site, settings or Settings(1), training(tmp_path, **changes))

    attempt("Voting needs two clients or more, not 1", clients=sites[:1])
    attempt("The site has no inputs", site=target[:0])
    # Digits that are coded 1 to 10 would be another class in each domain.
    attempt("Client 0 has labels 1 to 3; the classifier has 3", clients=[(x, y + 1) for x, y in sites])
    attempt("Client 1 has 0 inputs", clients=[sites[0], (target[:0], sites[0][1][:0])])
    attempt("Batch norms need batches of two", net=problem(batch_norm=True)[0], train_batch_size=1)
    attempt("Clipping couples the clients", max_grad_norm=1.0)
    attempt("accumulation repeats their batches", gradient_accumulation_steps=2)
    plain = torch.nn.Linear(6, 3)
    plain.features, plain.classify = plain.forward, lambda z: z
    attempt(r"needs Linear\.domains", net=plain, settings=Settings(1, adversarial=True))
    for rank, size in ((0, 1), (2, 2)):
        with pytest.raises(ValueError, match="Ranks are 0 to size - 1"):
            GlooExchange("127.0.0.1:1", rank, size)
    one_too_many = Exchange()
    one_too_many.size = 4
    with pytest.raises(ValueError, match="3 clients cannot be shared by 4 processes"):
        one_too_many.own(3)


def test_labels_of_the_site_are_not_used(tmp_path):
    network, sites, target, _ = problem()
    settings = Settings(1, local_steps=1, vote_steps=1)
    plain = federate(network, sites, target, settings, training(tmp_path / "a"))
    with pytest.warns(UserWarning, match="Labels of the site were given; they are not used"):
        given = federate(network, sites, (target, torch.zeros(30)), settings, training(tmp_path / "b"))
    assert same(given.served, plain.served.state_dict())
    assert set(plain.history[0]) == {"round", "agreement", "coverage", "variance", "bytes"}


def test_real_processes_do_what_one_does(tmp_path):
    common = {"rounds": 2, "local_steps": 2, "vote_steps": 2, "adversarial": True}
    alone = run(Arguments(**common), training(tmp_path / "one"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = {"processes": 2, "address": address}
    flags = {"method": "fedka", **FLAGS, "seed": 4, "output_dir": tmp_path / "two", **common, **together}
    command = [word for name, value in {**flags, "rank": 1}.items() for word in (f"--{name}", str(value))]
    other = subprocess.Popen(
        [sys.executable, script("train_auxiliary"), *command],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        shared = run(Arguments(**common, **together, rank=0), training(tmp_path / "two"))
        _, errors = other.communicate(timeout=600)
    finally:
        other.kill()
    assert other.returncode == 0, errors[-3000:]
    assert len(shared["history"]) == len(alone["history"]) == 2
    for mine, entry in zip(shared["history"], alone["history"], strict=True):
        # Of features whose batches lie elsewhere in memory; all else is the same to the bit.
        assert mine.pop("variance") == pytest.approx(entry.pop("variance"), rel=1e-5)
        assert mine == entry
    for name in ("global", "served"):
        one, two = (DomainNet.from_pretrained(tmp_path / folder / name) for folder in ("one", "two"))
        assert same(one, two.state_dict())
    one_global = DomainNet.from_pretrained(tmp_path / "one/global").state_dict()
    assert same(DomainNet.from_pretrained(tmp_path / "two/process-1/global"), one_global)
    assert not (tmp_path / "two/process-1/served").exists()  # it is the server's
