"""FedKA over Flower: a server and two clients, each a process. `make test-extras` has what this needs;
without it, what is left is that the extra is named.
"""

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dmkit.auxiliary.federated.fedka import DomainNet, Settings, federate
from dmkit.auxiliary.federated.fedka.training import Arguments
from dmkit.errors import MissingExtraError, TrainingError
from dmkit.training.arguments import TrainingArguments

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from running_scripts import ENVIRONMENT

FLOWER = importlib.util.find_spec("flwr") is not None
needs_flower = pytest.mark.skipif(not FLOWER, reason="flwr is not installed: make test-extras")
SETTINGS = Settings(2, local_steps=2, vote_steps=2, adversarial=True)
# A process: its role, its folder, HOST:PORT, and what goes wrong.
PROCESS = """
import sys
sys.path[:0] = [{here!r}]
from test_fedka_flower import SETTINGS, problem, training
from dmkit.auxiliary.federated.flower import join, serve

role, folder, address, wrong = sys.argv[1:]
network, sites, target, test = problem()
common = dict(clients=2, address=address, timeout=60)
if role == "server":
    strategy = serve(network, target, SETTINGS, training(folder), test=test, **common)
    print([entry | {{"variance": None}} for entry in strategy.history])
else:
    k = int(role)
    if wrong == "nan" and k == 1:
        sites[1][0].fill_(float("nan"))
    for p in network.parameters():  # clients start from what the server sends
        p.data.zero_()
    join(network, sites[k], target, SETTINGS, training(folder), client=k, **common)
"""


def training(folder) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        seed=4,
        train_batch_size=8,
        learning_rate=3e-3,
        lr_scheduler="constant",
        lr_warmup_steps=0,
        max_grad_norm=0,
        checkpointing_steps=0,
        save_images_epochs=0,
        report_to="none",
        resume_from_checkpoint="latest",
    )


def problem():
    """Two clients with blobs that lie elsewhere for each, the site's inputs, and its test."""
    generator = torch.Generator().manual_seed(0)
    middles = 2 * torch.randn(3, 6, generator=generator)

    def some(rows: int, shift: float):
        labels = torch.arange(rows) % 3
        return middles[labels] + shift + 0.5 * torch.randn(rows, 6, generator=generator), labels

    sites = [some(20, 0.0), some(23, 0.2)]
    torch.manual_seed(1)
    network = DomainNet((6, 12, 8), classes=3, domain_width=4, batch_norm=True)
    return network, sites, some(30, 1.0)[0], some(60, 1.0)


def processes(folder: Path, wrong: str = "") -> dict[str, subprocess.CompletedProcess]:
    """Server and clients, each from its start to its end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    code = PROCESS.format(here=str(Path(__file__).parent))
    started = {
        role: subprocess.Popen(
            [sys.executable, "-c", code, role, str(folder / role), address, wrong],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for role in ("0", "1", "server")  # clients wait for their server
    }
    try:
        ended = {role: process.communicate(timeout=150) for role, process in started.items()}
    finally:
        for process in started.values():
            process.kill()
    return {
        role: subprocess.CompletedProcess(role, started[role].returncode, *said)
        for role, said in ended.items()
    }


@needs_flower
def test_three_processes_do_what_one_does(tmp_path):
    network, sites, target, test = problem()
    alone = federate(network, sites, target, SETTINGS, training(tmp_path / "alone"), test=test)
    ended = processes(tmp_path)
    for role, process in ended.items():
        assert process.returncode == 0, (role, process.stderr[-3000:])
    for name, module in (("global", alone.network), ("served", alone.served)):
        there = DomainNet.from_pretrained(tmp_path / "server" / name).state_dict()
        assert all(torch.equal(value, there[key]) for key, value in module.state_dict().items())
    for role in ("0", "1"):  # each client ends with G
        there = DomainNet.from_pretrained(tmp_path / role / "global").state_dict()
        assert all(torch.equal(value, there[key]) for key, value in alone.network.state_dict().items())
    expected = [entry | {"variance": None} for entry in alone.history]
    assert ended["server"].stdout.splitlines()[-1] == str(expected)


@needs_flower
def test_a_client_that_fails_ends_all_processes(tmp_path):
    ended = processes(tmp_path, "nan")
    assert all(process.returncode == 1 for process in ended.values())
    assert "A client failed in round 1" in ended["server"].stderr
    assert "client1/classes is nan" in ended["1"].stderr
    assert "The Flower server at 127.0.0.1" in ended["0"].stderr
    assert not (tmp_path / "server").exists()


@needs_flower
def test_every_client_answers_once():
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters

    from dmkit.auxiliary.federated.flower import FedKAStrategy, to_arrays

    network, _, target, _ = problem()
    sent = ndarrays_to_parameters(to_arrays(network.state_dict()))
    about = {"client": 0, "variance": 1.0}
    twice = [(None, FitRes(Status(Code.OK, ""), sent, 20, about)) for _ in range(2)]
    with pytest.raises(TrainingError, match=r"Clients \[0, 0\] answered in round 1, not 0 to 1"):
        FedKAStrategy(network, SETTINGS, target, 2).aggregate_fit(1, twice, [])


@needs_flower
def test_what_is_refused(tmp_path):
    from dmkit.auxiliary.federated.flower import join, serve, to_arrays, to_state

    network, sites, target, _ = problem()
    common = {"clients": 2, "address": "127.0.0.1:9", "timeout": 0.1}
    with pytest.raises(ValueError, match="Clients are 0 to 1, not 2"):
        join(network, sites[0], target, SETTINGS, training(tmp_path), client=2, **common)
    empty = (target[:0], sites[0][1][:0])
    with pytest.raises(ValueError, match="Client 1 has 0 inputs"):
        join(network, empty, target, SETTINGS, training(tmp_path), client=1, **common)
    with pytest.raises(TrainingError, match=r"No Flower server at 127\.0\.0\.1:9 after 0\.1 s"):
        join(network, sites[0], target, SETTINGS, training(tmp_path), client=0, **common)
    with pytest.raises(ValueError, match="Voting needs two clients or more, not 1"):
        serve(network, target, SETTINGS, training(tmp_path), **common | {"clients": 1})
    state = network.state_dict()
    assert all(torch.equal(a, state[name]) for name, a in to_state(to_arrays(state), state).items())
    with pytest.raises(ValueError, match="no network of this architecture"):
        to_state(to_arrays(state)[1:], state)


@pytest.mark.skipif(FLOWER, reason="flwr is installed")
def test_the_extra_is_named():
    with pytest.raises(MissingExtraError, match=r"flwr is needed for this.*'dmkit\[federated\]'"):
        importlib.import_module("dmkit.auxiliary.federated.flower")


def test_flags():
    assert Arguments(transport="flower", processes=5, rank=4).clients == 4
    with pytest.raises(ValueError, match="--processes 5 for 4 clients, not 2"):
        Arguments(transport="flower", processes=2)
    with pytest.raises(ValueError, match=r"Unknown --transport 'flour'.*'flower'"):
        Arguments(transport="flour")
    with pytest.raises(ValueError, match="--rank is 2; it must be 0 to 1"):
        Arguments(processes=2, rank=2)
