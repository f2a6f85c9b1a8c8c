"""O-DICE: conjugates, the value of one state, updates that must agree, recordings, and refusals."""

import math
from types import SimpleNamespace

import pytest
import torch
from odice_cases import task, transitions
from safetensors.torch import save_file

from dmkit.auxiliary.rl.odice import (
    DIVERGENCES,
    ActionValueNetwork,
    Agent,
    Episodes,
    GaussianPolicy,
    IQLTask,
    ODICETask,
    PolicyTask,
    Transitions,
    ValueNetwork,
    f_conjugate,
    normalized_score,
)
from dmkit.auxiliary.rl.odice.data import Episode
from dmkit.errors import FileFormatError
from dmkit.training.rules import OrthogonalProjection

PLAIN = SimpleNamespace(scaler=None, num_processes=1)
ONE = SimpleNamespace(number=0)


def test_conjugates_by_hand():
    pearson = f_conjugate("pearson_chi2").conjugate
    assert pearson(torch.tensor([0.0, 2.0, -2.0, -5.0])).tolist() == [0, 3, -1, -1]
    assert f_conjugate("kl").conjugate(torch.tensor([1.0, 0.0])).tolist() == pytest.approx([1, math.exp(-1)])
    with pytest.raises(ValueError, match=r"Unknown divergence 'pearson'. Did you mean 'pearson_chi2'"):
        f_conjugate("pearson")


@pytest.mark.parametrize(
    ("name", "f"), [("pearson_chi2", lambda x: (x - 1) ** 2), ("kl", lambda x: torch.xlogy(x, x))]
)
def test_conjugates_are_the_largest_over_all_ratios(name, f):
    divergence = f_conjugate(name)
    y = torch.linspace(-6, 3, 37, dtype=torch.float64, requires_grad=True)
    x = torch.linspace(0, 12, 24_001, dtype=torch.float64)
    best = (y.detach()[:, None] * x - f(x)).max(1)
    torch.testing.assert_close(divergence.conjugate(y).detach(), best.values, rtol=0, atol=3e-5)
    torch.testing.assert_close(divergence.ratio(y).detach(), x[best.indices], rtol=0, atol=5e-4)
    slope = torch.autograd.grad(divergence.conjugate(y).sum(), y)[0]
    torch.testing.assert_close(slope, divergence.ratio(y).detach())


@pytest.mark.parametrize("name", DIVERGENCES)
def test_conjugates_do_not_overflow(name):
    y = torch.tensor([-1e4, 1e4], requires_grad=True)
    value = f_conjugate(name).conjugate(y)
    (slope,) = torch.autograd.grad(value.sum(), y)
    assert value.isfinite().all()
    torch.testing.assert_close(slope, f_conjugate(name).ratio(y).detach())
    assert slope[1] > 1000  # large residuals still pull


# Values


def gradient(made: ODICETask, batch: dict[str, torch.Tensor], what: str = "value") -> torch.Tensor:
    """What the trainer would hand to the optimiser of a part."""
    rule, parameters = made.rule(), made.parameters()["main"]
    losses = made.training_step(batch, ONE)
    if isinstance(rule, OrthogonalProjection):
        rule.collect(PLAIN, losses.items(), parameters)
        rule.finish(PLAIN, parameters, torch.Generator())
    else:
        sum(losses.values()).backward()
    found = torch.cat([p.grad.flatten() for p in made.modules[what].parameters()])
    for p in parameters:
        p.grad = None
    return found


@pytest.mark.parametrize(
    ("lam", "expected"), [(0.25, -3.5), (0.4, -0.5), (0.5, 0.5), (0.6, 1.1667), (0.8, 2.0)]
)
def test_the_value_of_one_state_solves_mean_ratio(lam, expected):
    """mean ω(r - V) = (1-λ)/λ; the three updates agree where every step is the last."""
    batch = Transitions(
        torch.ones(2, 1),
        torch.zeros(2, 1),
        torch.tensor([0.0, 1.0]),
        torch.ones(2, 1),
        torch.tensor([True] * 2),
    ).columns
    slopes = []
    for update in ("orthogonal", "semi", "true"):
        made = ODICETask(ValueNetwork(1, hidden=()), GaussianPolicy(1, 1, hidden=()), lam=lam, update=update)
        layer = made.modules["value"].networks[0][0]
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.constant_(layer.bias, expected)
        assert gradient(made, batch).abs().max() < 1e-4
        torch.nn.init.constant_(layer.bias, expected + 0.7)
        above = gradient(made, batch)
        assert above[1] > 0.05
        torch.nn.init.constant_(layer.bias, expected - 0.7)
        below = gradient(made, batch)
        assert below[1] < -0.05
        slopes.append(torch.cat([above, below]))
    for other in slopes[1:]:
        torch.testing.assert_close(other, slopes[0])


def test_without_a_backward_loss_it_is_the_semi_gradient():
    batch = transitions().columns
    semi, full = gradient(task(update="semi"), batch), gradient(task(), batch)
    assert (semi - full).norm() > 0.01 * semi.norm()
    torch.testing.assert_close(gradient(task(eta=0.0), batch), semi)
    ended = {**batch, "terminations": torch.ones(120, dtype=torch.bool)}
    torch.testing.assert_close(gradient(task(), ended), gradient(task(update="semi"), ended))


def test_the_gradient_is_that_of_the_equations():
    """G = L + F + B - cF by finite parts: each loss by itself, with its own target."""
    made, batch = task(), transitions().columns
    parameters = list(made.modules["value"].parameters())
    for p in made.modules["value_target"].parameters():
        p.data.mul_(1.1)  # so that targets are not the values
    states, after, alive = batch["observations"], batch["next_observations"], ~batch["terminations"]
    with torch.no_grad():
        low, low_after = (made.modules["value_target"](x).min(0).values for x in (states, after))
    value, next_value = made.modules["value"](states), made.modules["value"](after)
    omega = f_conjugate("pearson_chi2").ratio
    forward = batch["rewards"] + 0.99 * alive * low_after - value
    backward = batch["rewards"] + 0.99 * alive * next_value - low
    F = -0.5 * (omega(forward).detach() * value).mean()
    B = 0.5 * 0.99 * (alive * omega(backward).detach() * next_value).mean()
    L = 0.5 * value.mean()

    def flat(loss):
        found = torch.autograd.grad(loss, parameters, retain_graph=True)
        return torch.cat([g.flatten() for g in found])

    f, b, rest = flat(F), flat(B), flat(L)
    expected = rest + f + b - (f @ b) / (f @ f) * f
    torch.testing.assert_close(gradient(made, batch), expected, rtol=1e-3, atol=1e-5)
    # The policy clones with weights from the same residuals, and does not see the projection.
    weights = omega(forward.detach()).clamp(max=100)
    policy = list(made.modules["policy"].parameters())
    cloned = -(weights * made.modules["policy"](states, batch["actions"])).mean()
    found = torch.cat([g.flatten() for g in torch.autograd.grad(cloned, policy)])
    torch.testing.assert_close(gradient(made, batch, "policy"), found, rtol=1e-4, atol=1e-6)


def test_weights():
    delta = torch.tensor([-3.0, -1.0, 2.0, 500.0])
    assert task().weights(delta).tolist() == [0, 0.5, 2, 100]
    assert task(weight="relu").weights(delta).tolist() == [0, 0, 2, 100]
    kl = task(divergence="kl", max_weight=5.0).weights(delta)
    assert kl.tolist() == pytest.approx([math.exp(-4), math.exp(-2), math.e, 5])


def test_a_policy_that_learns_nothing_says_so():
    made, batch = task(weight="relu"), transitions().columns
    dead = {**batch, "rewards": batch["rewards"] - 1e4}
    for _ in range(99):
        made.training_step(dead, ONE)
    with pytest.warns(UserWarning, match="No action had a weight for 100 steps"):
        made.training_step(dead, ONE)


def test_targets_follow_by_their_share():
    made = task()
    target, value = made.modules["value_target"], made.modules["value"]
    for p in target.parameters():
        p.data.add_(1.0)
    for n in range(1, 6):
        made.follow(SimpleNamespace(number=n))
        made.follow(SimpleNamespace(number=n))  # a second micro-batch of the same step
    for kept, new in zip(target.parameters(), value.parameters(), strict=True):
        torch.testing.assert_close(kept - new, torch.full_like(kept, 0.9**5))


def test_tasks_refuse_what_is_out_of_range():
    for changes, message in (
        ({"lam": 1.0}, r"lam is in \(0, 1\), not 1.0"),
        ({"eta": -1.0}, "eta -1.0 is at least 0"),
        ({"update": "orthogonl"}, "Did you mean 'orthogonal'"),
        ({"weight": "exp"}, "Unknown weight"),
        ({"divergence": "js"}, "Unknown divergence"),
    ):
        with pytest.raises(ValueError, match=message):
            task(**changes)
    value, policy = ValueNetwork(3, hidden=(4,)), GaussianPolicy(3, 2, hidden=(4,))
    with pytest.raises(ValueError, match=r"tau is in \(0, 1\], not 0"):
        ODICETask(value, policy, tau=0)
    with pytest.raises(ValueError, match=r"expectile 1.0 is in"):
        IQLTask(value, ActionValueNetwork(3, 2, hidden=(4,)), policy, expectile=1.0)
    with pytest.raises(ValueError, match="members is at least 1"):
        ValueNetwork(3, members=0)


def test_baselines_losses():
    batch = transitions().columns
    policy = GaussianPolicy(3, 2, hidden=(8,))
    mean, std = policy.mean(batch["observations"]), policy.log_std.exp()
    expected = torch.distributions.Normal(mean, std).log_prob(batch["actions"]).sum(1)
    loss = PolicyTask(policy).training_step(batch, ONE)["policy"]
    torch.testing.assert_close(loss, -expected.mean())
    made = IQLTask(ValueNetwork(3, hidden=(8,)), ActionValueNetwork(3, 2, hidden=(8,)), policy, expectile=0.9)
    losses = made.training_step(batch, ONE)
    assert set(losses) == {"value", "critic", "policy"}
    value = made.modules["value"](batch["observations"])[0]
    u = made.modules["critic"](batch["observations"], batch["actions"]).min(0).values.detach() - value
    torch.testing.assert_close(losses["value"], (torch.where(u < 0, 0.1, 0.9) * u**2).mean())
    weights = (3 * u.detach()).exp().clamp(max=100)
    torch.testing.assert_close(losses["policy"], -(weights * expected).mean())
    # Each loss reaches its own network only.
    for name, loss in losses.items():
        for other in ("value", "critic", "policy"):
            found = torch.autograd.grad(
                loss, list(made.modules[other].parameters()), retain_graph=True, allow_unused=True
            )
            assert (other == name) == any(g is not None and bool(g.any()) for g in found)


# Recordings


def episode(steps: int, *, ended: bool, start: float = 0.0) -> Episode:
    states = start + torch.arange(steps + 1, dtype=torch.float32)[:, None]
    last = torch.zeros(steps, dtype=torch.bool)
    last[-1] = True
    return Episode(states, torch.full((steps, 1), 0.5), torch.ones(steps), last & ended, last & (not ended))


def test_a_time_limit_is_no_end():
    """From flat columns the last step before it is dropped; with T + 1 observations it is kept, not ended."""
    rows = [episode(3, ended=False), episode(2, ended=True, start=10.0), episode(2, ended=False, start=20.0)]
    whole = Episodes(rows).transitions()
    assert whole.columns["terminations"].tolist() == [False] * 4 + [True] + [False] * 2
    assert whole.columns["next_observations"].flatten().tolist() == [1, 2, 3, 11, 12, 21, 22]
    assert whole.returns.tolist() == [3, 2, 2]
    columns = [
        torch.cat([getattr(e, name)[: len(e.actions)] for e in rows])
        for name in ("observations", "actions", "rewards", "terminations", "truncations")
    ]
    flat = Transitions.from_arrays(*columns)
    assert flat.columns["observations"].flatten().tolist() == [0, 1, 10, 11, 20]
    assert flat.columns["next_observations"].flatten()[[0, 1, 2, 4]].tolist() == [1, 2, 11, 21]
    assert flat.returns.tolist() == [3, 2, 2]
    # What follows an end does not matter: its value is masked.
    known = torch.cat([e.observations[1:] for e in rows])
    given = Transitions.from_arrays(*columns, next_observations=known)
    keep = torch.tensor([0, 1, 3, 4, 5])
    made = ODICETask(ValueNetwork(1, hidden=(8,)), GaussianPolicy(1, 1, hidden=(8,)))
    masked = {name: column[keep] for name, column in given.columns.items()}
    torch.testing.assert_close(gradient(made, masked), gradient(made, flat.columns))


def test_recordings_are_saved_and_read(tmp_path):
    kept = Episodes([episode(3, ended=False), episode(5, ended=True)], {"seed": 7})
    kept.save(tmp_path / "data")
    again = Episodes.load(tmp_path / "data")
    assert again.about == {"seed": 7}
    for a, b in zip(kept.episodes, again.episodes, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    minari = [SimpleNamespace(**{k: v.numpy() for k, v in e._asdict().items()}) for e in kept.episodes]
    assert torch.equal(Episodes.from_minari(minari).returns(), kept.returns())
    (tmp_path / "data/episodes.json").write_text('{"format": 1, "lengths": [3, 4]}')
    with pytest.raises(FileFormatError, match="holds no whole episodes"):
        Episodes.load(tmp_path / "data")
    with pytest.raises(FileFormatError, match="is missing"):
        Episodes.load(tmp_path / "nowhere")


def test_rewards_states_and_actions_are_scaled():
    data = transitions()
    before = {name: column.clone() for name, column in data.columns.items()}
    data.normalize_states().scale_rewards(1000)
    torch.testing.assert_close(data.columns["observations"].mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(data.columns["observations"] * data.std + data.mean, before["observations"])
    torch.testing.assert_close(data.columns["rewards"], 500 * before["rewards"])  # returns 1 and 3
    assert data.returns.tolist() == [500, 1500]
    data.scale_actions(torch.tensor([-2.0, -1]), torch.tensor([2.0, 1]))
    torch.testing.assert_close(data.columns["actions"], before["actions"] / torch.tensor([2.0, 1]))
    with pytest.warns(UserWarning, match="actions lie outside of the box"):
        data.scale_actions(torch.tensor([-0.1, -1]), torch.tensor([0.1, 1]))
    with pytest.raises(ValueError, match="need a bounded box"):
        data.scale_actions(torch.tensor([-math.inf, -1]), torch.tensor([1.0, 1]))
    data.returns = None
    with pytest.raises(ValueError, match="no episode has an end"):
        data.scale_rewards()
    data.returns = torch.ones(2)
    with pytest.raises(ValueError, match="all are the same"):
        data.scale_rewards()


def test_recordings_that_do_not_fit_are_refused():
    good = episode(3, ended=True)
    for changes, kind, message in (
        ({"terminations": torch.zeros(3)}, TypeError, "terminations of episode 0 are boolean"),
        ({"actions": torch.zeros(3, 1).long()}, TypeError, "needs actions of real numbers"),
        ({"actions": torch.zeros(3)}, ValueError, "both are rows of numbers"),
        ({"observations": torch.zeros(3, 1)}, ValueError, r"has \[3, 3, 3, 3, 3\] observations"),
    ):
        with pytest.raises(kind, match=message):
            Episodes([good._replace(**changes)])
    with pytest.raises(ValueError, match="There is no episode"):
        Episodes([])
    columns = transitions().columns
    for changes, kind, message in (
        ({"next_observations": torch.zeros(120, 4)}, ValueError, r"the next ones \(120, 4\)"),
        ({"terminations": torch.zeros(120)}, TypeError, "terminations are boolean"),
        ({"actions": torch.zeros(120, 2).int()}, TypeError, "needs actions of real numbers"),
        ({"rewards": torch.zeros(119)}, ValueError, r"Columns of \[120, 120, 119, 120\] rows"),
        ({"rewards": torch.full((120,), math.nan)}, ValueError, "rewards hold a number that is not finite"),
    ):
        with pytest.raises(kind, match=message):
            Transitions(**{**columns, **changes})
    with pytest.raises(ValueError, match=r"not of \[2, 1, 1, 1\] axes"):
        Transitions(**{**columns, "actions": torch.zeros(120)})
    with pytest.raises(ValueError, match=r"different sizes: \[\(1, 1\), \(2, 1\)\]"):
        Episodes([good, good._replace(observations=torch.zeros(4, 2))])
    flat = [torch.zeros(4, 2), torch.zeros(4, 1), torch.zeros(4), *torch.zeros(2, 4).bool()]
    with pytest.raises(TypeError, match=r"truncations are boolean, not torch\.float32"):
        Transitions.from_arrays(*flat[:4], torch.zeros(4))
    with pytest.raises(ValueError, match=r"Columns of \[4, 4, 4, 4, 3\] rows"):
        Transitions.from_arrays(*flat[:4], torch.zeros(3).bool())
    with pytest.raises(ValueError, match=r"Columns of \[0, 0, 0, 0, 0\] rows"):
        Transitions.from_arrays(*(column[:0] for column in flat))
    one = Transitions(**{name: column[:1] for name, column in columns.items()})
    with pytest.raises(ValueError, match="One transition has no deviation"):
        one.normalize_states()
    with pytest.raises(ValueError, match=r"A box of \(3,\) and \(3,\) for actions \(1, 2\)"):
        one.scale_actions(-torch.ones(3), torch.ones(3))


def test_an_agent_acts_in_the_environments_own_numbers(tmp_path):
    torch.manual_seed(0)
    low, high = torch.tensor([-2.0, 0]), torch.tensor([2.0, 10])
    policy = GaussianPolicy(3, 2, hidden=(8,)).eval()
    agent = Agent(policy, torch.full((3,), 5.0), torch.full((3,), 2.0), low, high, {"lam": 0.5})
    states = torch.randn(6, 3)
    inner = policy.mean((states - 5) / 2).clamp(-1, 1).detach()
    torch.testing.assert_close(agent.act(states), low + (inner + 1) / 2 * (high - low))
    drawn = agent.act(states, deterministic=False, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(drawn, agent.act(states))
    assert ((drawn >= low) & (drawn <= high)).all()
    agent.save(tmp_path / "agent")
    again = Agent.load(tmp_path / "agent")
    assert torch.equal(again.act(states), agent.act(states))
    assert again.about == {"lam": 0.5}
    (tmp_path / "agent/agent.json").write_text('{"format": 1}')
    with pytest.raises(FileFormatError, match="holds no whole agent"):
        Agent.load(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"Observations are \(B, 3\), not \(2, 4\)"):
        agent.act(torch.zeros(2, 4))
    # What does not belong together is refused, and never filled up with random numbers.
    agent.save(tmp_path / "agent")
    (weights,) = (tmp_path / "agent/policy").glob("*.safetensors")
    save_file({"other.weight": torch.zeros(2)}, weights)
    with pytest.raises(FileFormatError, match=r"holds no whole agent: .*lacks log_std, mean\.0\.bias"):
        Agent.load(tmp_path / "agent")
    save_file({**policy.state_dict(), "other.weight": torch.zeros(2)}, weights)
    with pytest.raises(FileFormatError, match=r"weights of another model: other\.weight"):
        Agent.load(tmp_path / "agent")
    Agent(policy, torch.zeros(1), torch.ones(3), low, high).save(tmp_path / "agent")
    with pytest.raises(FileFormatError, match="its scales are not of 3 observations and 2 actions"):
        Agent.load(tmp_path / "agent")


def test_scores_are_between_chance_and_the_reference():
    assert normalized_score(torch.tensor([-100.0, -300]), -1200.0, -200.0) == pytest.approx(100)
    with pytest.raises(ValueError, match="must be above that of chance"):
        normalized_score(torch.zeros(1), 0.0, 0.0)
