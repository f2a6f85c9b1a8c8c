"""CUBER and its special cases: the exact statements of the papers."""

import pytest
import torch
from cuber_cases import Convolving, Regression, arguments, loss_of, pictures, two_linear_tasks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dmkit.auxiliary.continual.cuber import CUBER, GPM, TRGP, learn
from dmkit.auxiliary.continual.cuber.pools import extended
from dmkit.auxiliary.continual.cuber.scaling import ScaledNetwork
from dmkit.data import Rows
from dmkit.training.subspaces import InputSpan, matrix
from dmkit.training.trainer import Trainer


def two_tasks(tmp_path, learner_of, sign=1, seed=0, reg_steps=400):
    """Learner, first task's loss before and after the second, and the second's, in float64."""
    first, second = two_linear_tasks(seed, sign)
    model = nn.Linear(20, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    wrapped = nn.Sequential(model)
    learner = learner_of(wrapped)
    whole = {"train_batch_size": 1}
    learn(Regression(wrapped), first, arguments(tmp_path / "a", max_train_steps=20, **whole), learner)
    before = loss_of(wrapped, first)
    learn(Regression(wrapped), second, arguments(tmp_path / "b", max_train_steps=reg_steps, **whole), learner)
    return learner, before, loss_of(wrapped, first), loss_of(wrapped, second)


def full(kind, **options):
    return lambda model: kind(model, energy=1.0, **options)


def test_the_old_tasks_loss_falls_where_tasks_agree(tmp_path):
    """The claim of the paper: backward transfer, where GPM leaves the first task as it is."""
    ends = {}
    for weight in (0.0, 0.1, 1.0, 10.0):
        of = full(CUBER, reg_weight=weight, scale_learning_rate=1e-12)
        learner, before, after, _ = two_tasks(tmp_path / str(weight), of)
        assert before == pytest.approx(0.3734, abs=1e-4)
        assert learner.regimes("0", 1) == {0: 3}
        ends[weight] = after
    assert ends[0.0] == pytest.approx(0.0033, abs=5e-5)
    assert ends[0.1] == pytest.approx(0.0078, abs=5e-5)
    assert ends[1.0] == pytest.approx(0.338, abs=5e-4)
    assert ends[10.0] == pytest.approx(0.364, abs=5e-4)


def test_gpm_leaves_the_old_task_and_stalls(tmp_path):
    _, before, after, new = two_tasks(tmp_path, full(GPM))
    assert after == pytest.approx(before, abs=1e-12)
    assert new == pytest.approx(0.4217, abs=1e-4)


def test_tasks_in_conflict_are_in_regime_2(tmp_path):
    learner, before, after, _ = two_tasks(tmp_path, full(CUBER, reg_weight=0.0), sign=-1)
    assert learner.regimes("0", 1) == {0: 2}
    assert after == pytest.approx(before, abs=1e-12)


def test_another_seed_agrees_too(tmp_path):
    of = full(CUBER, reg_weight=0.0, scale_learning_rate=1e-12)
    _, before, after, _ = two_tasks(tmp_path, of, seed=1)
    assert (before, after) == (pytest.approx(0.3057, abs=1e-4), pytest.approx(0.0178, abs=1e-4))


def test_the_ratio_and_cosine_of_the_two_tasks(tmp_path):
    """0.856 and 0.826 decide the regime, so thresholds on either side decide otherwise."""
    for options, regime in (
        ({"eps1": 0.855, "eps2": 0.825}, 3),
        ({"eps1": 0.855, "eps2": 0.827}, 2),
        ({"eps1": 0.857, "eps2": 0.0}, 1),
        ({"eps1": 0.5, "gradient_floor": 1e6}, 2),
    ):
        learner, *_ = two_tasks(tmp_path / str(options), full(CUBER, **options), reg_steps=1)
        # a step may close regime 3 again, but one after the test at the start it is still the same gradient
        assert learner.regimes("0", 1) == {0: regime}, options


@pytest.mark.parametrize(
    ("optimizer", "tolerance"),
    [({"sgd_momentum": 0.9, "sgd_weight_decay": 0.1}, 1e-5), ({"optimizer": "adamw"}, 1e-5)],
)
def test_protected_layers_answer_old_inputs_as_before(tmp_path, optimizer, tolerance):
    """Under momentum, weight decay and Adam's scaling, which all turn a projected gradient."""
    torch.manual_seed(0)
    model = Convolving()
    learner = GPM(model, heads=["heads"], energy=0.98)
    optimizer = {"adam_weight_decay": 0.1, "learning_rate": 0.02, "num_epochs": 30, **optimizer}
    learn(Regression(model), pictures(0), arguments(tmp_path / "0", **optimizer), learner)
    before = {name: matrix(layer).detach().clone() for name, layer in learner.layers.items()}
    affine = model.norm.weight.detach().clone()
    model.task = 1
    learn(Regression(model), pictures(1), arguments(tmp_path / "1", **optimizer), learner)
    for name, layer in learner.layers.items():
        old = learner.subspace(name, 0)
        assert (matrix(layer) @ old - before[name] @ old).abs().max() < tolerance
        assert (matrix(layer) - before[name]).abs().max() > 1e-3  # it did learn
    assert torch.equal(model.norm.weight, affine)
    assert model.norm.weight.requires_grad


def test_in_float64_the_invariant_is_exact(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    learner = GPM(model, energy=0.9)
    data = [
        Rows(
            inputs=torch.randn(40, 6).double() @ torch.randn(6, 6).double(),
            targets=torch.randn(40, 2).double(),
        )
        for _ in range(2)
    ]
    adam = {"optimizer": "adamw", "num_epochs": 20}
    learn(Regression(model), data[0], arguments(tmp_path / "0", **adam), learner)
    before = {name: matrix(layer).detach().clone() for name, layer in learner.layers.items()}
    learn(Regression(model), data[1], arguments(tmp_path / "1", **adam), learner)
    for name, layer in learner.layers.items():
        old = learner.subspace(name, 0)
        moved = (matrix(layer) - before[name]).detach()
        assert (moved @ old).abs().max() < 1e-12 < moved.abs().max()


def three_tasks(tmp_path, learner_of):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 2))
    learner = learner_of(model)
    for t in range(3):
        generator = torch.Generator().manual_seed(t // 2)
        inputs = torch.randn(60, 4, generator=generator) @ torch.randn(4, 10, generator=generator)
        rows = Rows(inputs=inputs, targets=inputs[:, :2] * (t + 1))
        learn(Regression(model), rows, arguments(tmp_path / str(t), num_epochs=3), learner)
    return model, learner


@pytest.mark.parametrize("options", [{"max_related": 0}, {"eps1": 1 - 1e-6}])
def test_without_related_tasks_cuber_is_gpm(options, tmp_path):
    """No task may be related, or none is as much as it takes."""
    gpm, _ = three_tasks(tmp_path / "g", lambda m: GPM(m, energy=0.9))
    cuber, learner = three_tasks(tmp_path / "c", lambda m: CUBER(m, energy=0.9, **options))
    assert learner.regimes("0", 2) == {0: 1, 1: 1}
    for a, b in zip(gpm.parameters(), cuber.parameters(), strict=True):
        assert torch.equal(a, b)


def test_without_agreement_cuber_is_trgp(tmp_path):
    trgp, plain = three_tasks(tmp_path / "t", lambda m: TRGP(m, energy=0.9, eps1=0.1))
    cuber, learner = three_tasks(tmp_path / "c", lambda m: CUBER(m, energy=0.9, eps1=0.1, eps2=0.9999))
    assert learner.regimes("0", 2) == plain.regimes("0", 2)
    assert 2 in learner.regimes("0", 2).values()
    for a, b in zip(trgp.parameters(), cuber.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def test_pools_are_orthonormal_and_hold_every_task(tmp_path):
    _, learner = three_tasks(tmp_path, lambda m: CUBER(m, energy=0.9))
    for name, pool in learner.pools.items():
        torch.testing.assert_close(pool.T @ pool, torch.eye(pool.shape[1]), atol=1e-6, rtol=0)
        held = {c for task in learner.tasks for c in task.columns[name]}
        assert held == set(range(pool.shape[1]))
        for t, task in enumerate(learner.tasks):
            assert torch.equal(learner.subspace(name, t), pool[:, task.columns[name]])


@pytest.mark.parametrize("energy", [0.7, 0.9, 0.999])
def test_every_basis_keeps_its_share_of_the_tasks_energy(energy, tmp_path, monkeypatch):
    """At the end of all tasks, with the columns that the pool has then."""
    seen = []

    def watched(pool, span, share):
        seen.append((span, share))
        return extended(pool, span, share)

    monkeypatch.setattr("dmkit.auxiliary.continual.cuber.gpm.extended", watched)
    _, learner = three_tasks(tmp_path, lambda m: CUBER(m, energy=energy, energy_step=0.0003))
    pairs = [(t, name) for t in range(3) for name in learner.layers]
    assert len(seen) == len(pairs)
    for (t, name), (span, share) in zip(pairs, seen, strict=True):
        assert share == pytest.approx(energy + 0.0003 * t)
        basis = learner.subspace(name, t)
        assert span.energies(basis).sum() >= (share - 1e-6) * span.total()
        # Its weakest direction is not one too many.
        weakest = span.energies(basis).min()
        assert span.energies(basis).sum() - weakest < share * span.total()


def test_a_pool_in_float32_does_not_drift():
    """New directions are made orthogonal, in float64, to the pool as it is stored; so nothing adds up."""
    generator = torch.Generator().manual_seed(0)
    shared, pool = torch.randn(3, 64, generator=generator), torch.zeros(64, 0)
    for _ in range(60):
        span = InputSpan()
        span.add(
            torch.randn(50, 3, generator=generator) @ torch.randn(3, 64, generator=generator)
            + torch.randn(50, 3, generator=generator) @ shared
        )
        pool, columns = extended(pool, span, 0.97)
        assert span.energies(pool[:, columns]).sum() >= (0.97 - 1e-6) * span.total()
    assert pool.dtype == torch.float32
    assert pool.shape[1] > 50
    gram = pool.double().T @ pool.double()
    assert (gram - torch.eye(len(gram))).abs().max() < 1e-7


def test_two_halves_of_a_batch_are_one_step(tmp_path):
    """The test of regimes, the penalty and the projection come once, at the accumulated gradient."""
    ends = []
    for halves in (1, 2):
        torch.manual_seed(0)
        model = Convolving()
        learner = CUBER(model, heads=["heads"], energy=0.9, eps1=0.1, reg_weight=0.3)
        sgd = {"sgd_momentum": 0.9, "sgd_weight_decay": 0.01}
        learn(Regression(model), pictures(0), arguments(tmp_path / f"{halves}-0", **sgd), learner)
        before, task = [p.detach().clone() for p in model.parameters()], Regression(model)
        guarded, rule = learner.begin_task(task, [pictures(0).columns])
        batch = {
            "train_batch_size": 20 // halves,
            "gradient_accumulation_steps": halves,
            "max_train_steps": 4,
        }
        Trainer(guarded, pictures(0), arguments(tmp_path / f"{halves}-1", **sgd, **batch), rule=rule).train()
        assert rule._steps == 4
        moved = [p.detach() - q for p, q in zip(model.parameters(), before, strict=True)]
        ends.append((moved, rule.still_open()))
    assert ends[0][1] == ends[1][1] != {}
    for one, two in zip(ends[0][0], ends[1][0], strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)
    assert max(change.abs().max() for change in ends[0][0]) > 1e-3


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(0, 0.95))
def test_positive_correlation_implies_sufficient_projection(seed, rank, eps2):
    """Where g_j lies in S_j: <g_j, G> = <g_j, Proj G> <= |g_j| |Proj G|."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(8, rank, generator=generator, dtype=torch.float64)).Q
    old = torch.randn(3, rank, generator=generator, dtype=torch.float64) @ basis.T
    new = torch.randn(3, 8, generator=generator, dtype=torch.float64) + 2 * old
    if (old * new).sum() >= eps2 * old.norm() * new.norm():
        assert (new @ basis).norm() >= (eps2 - 1e-9) * new.norm()


def test_identity_scales_change_nothing_and_others_do_what_the_formula_says():
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, padding=1)
    model = nn.Sequential(layer)
    basis = torch.linalg.qr(torch.randn(19, 4)).Q
    x = torch.randn(2, 2, 5, 5)
    same = ScaledNetwork(model, {"0": layer}, {"0": {0: basis}}, {"0": {0: torch.eye(4)}})
    torch.testing.assert_close(same(x), model(x), atol=1e-6, rtol=0)
    q = torch.randn(4, 4)
    scaled = ScaledNetwork(model, {"0": layer}, {"0": {0: basis}}, {"0": {0: q}}).weights()
    joint = torch.cat([scaled["0.weight"].flatten(1), scaled["0.bias"][:, None]], 1)
    raw = matrix(layer)
    torch.testing.assert_close(joint, raw + raw @ basis @ (q - torch.eye(4)) @ basis.T)


def test_a_task_is_seen_through_its_own_scales_and_the_model_is_restored(tmp_path):
    model, learner = three_tasks(tmp_path, lambda m: TRGP(m, energy=0.9, eps1=0.1, scale_learning_rate=0.05))
    before = [p.detach().clone() for p in model.parameters()]
    assert any(not torch.equal(q, torch.eye(len(q))) for q in learner.tasks[2].scales["0"].values())
    with learner.use_task(2) as network:
        assert network is model
        assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
