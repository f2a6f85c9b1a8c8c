"""The orthogonal-gradient rule: numbers by hand, its limits, and what it leaves alone."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dmkit.training.rules import OrthogonalProjection

sys.path.insert(0, str(Path(__file__).parent))
from rule_cases import Tug, record_gradients, trainer

PLAIN = SimpleNamespace(scaler=None, num_processes=1)


def gradient(losses: dict[str, torch.Tensor], parameters, rule=None) -> torch.Tensor:
    rule = rule or OrthogonalProjection()
    assert rule.needs_each(0)
    rule.collect(PLAIN, losses.items(), parameters)
    rule.finish(PLAIN, parameters, torch.Generator())
    found = torch.cat([p.grad.flatten() for p in parameters])
    for p in parameters:
        p.grad = None
    return found


def linear(**slopes: list[float]):
    """Losses with given gradients in three parameters, which two tensors hold."""
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    whole = torch.cat(parameters)
    return {name: whole @ torch.tensor(slope) for name, slope in slopes.items()}, parameters


def test_numbers_by_hand():
    rule = OrthogonalProjection()
    found = gradient(*linear(forward=[-1.0, 0, -2], backward=[0.5, 1, 0]), rule)
    assert rule.coefficient == pytest.approx(-0.1)
    assert rule.cosine == pytest.approx(-0.5 / (5 * 1.25) ** 0.5)
    torch.testing.assert_close(found, torch.tensor([-0.6, 1, -2.2]))


def test_projected_is_normal_to_forward_and_the_rest_outside_of_it():
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Linear(7, 40), nn.Tanh(), nn.Linear(40, 1))
    parameters = list(network.parameters())

    def losses():
        values = [
            network(torch.randn(20, 7, generator=torch.Generator().manual_seed(k))).pow(2).mean()
            for k in range(3)
        ]
        return dict(zip(("linear", "forward", "backward"), values, strict=True))

    def alone(name):
        found = torch.autograd.grad(losses()[name], parameters)
        return torch.cat([g.flatten() for g in found]).double()

    L, F, B = (alone(name) for name in ("linear", "forward", "backward"))
    G = gradient(losses(), parameters).double()
    assert abs(float(F @ B)) > 0.1 * float(F.norm() * B.norm())  # there is something to project
    assert abs(float((G - F - L) @ F)) <= 1e-6 * float(F @ F)
    torch.testing.assert_close(G, L + F + B - (F @ B) / (F @ F) * F, rtol=1e-4, atol=1e-6)
    order = torch.randperm(len(parameters), generator=generator).tolist()
    shuffled = gradient(losses(), [parameters[k] for k in order])
    parts = dict(zip(order, shuffled.split([parameters[k].numel() for k in order]), strict=True))
    torch.testing.assert_close(torch.cat([parts[k] for k in range(4)]).double(), G, rtol=1e-4, atol=1e-6)


def test_limits():
    plain = torch.tensor([-1.0, 0, -2])
    parallel = gradient(*linear(forward=plain.tolist(), backward=[2.0, 0, 4]))
    torch.testing.assert_close(parallel, plain)
    nothing = gradient(*linear(forward=plain.tolist(), backward=[0.0, 0, 0]))
    torch.testing.assert_close(nothing, plain)
    backward = gradient(*linear(forward=[0.0, 0, 0], backward=[0.5, 1, 0]))
    torch.testing.assert_close(backward, torch.tensor([0.5, 1, 0]))
    rule = OrthogonalProjection()
    rest = gradient(*linear(policy=[1.0, 2, 3], forward=[1.0, 0, 0]), rule)  # a step without both is the sum
    torch.testing.assert_close(rest, torch.tensor([2.0, 2, 3]))
    assert rule.coefficient != rule.coefficient
    with pytest.raises(ValueError, match="are two, not both 'loss'"):
        OrthogonalProjection("loss", "loss")


def test_in_the_trainer_with_micro_batches(tmp_path):
    ends = []
    for accumulation in (1, 2):
        run = trainer(
            Tug(),
            OrthogonalProjection("pull_0", "pull_1"),
            tmp_path / str(accumulation),
            train_batch_size=20 // accumulation,
            gradient_accumulation_steps=accumulation,
            max_train_steps=1,
        )
        seen = record_gradients(run)
        run.train()
        ends.append(seen[0])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)
    run = trainer(Tug(), OrthogonalProjection("pull_0", "pull_9"), tmp_path / "sum", max_train_steps=1)
    seen = record_gradients(run)
    run.train()
    assert not torch.allclose(seen[0], ends[0], rtol=0.1)
