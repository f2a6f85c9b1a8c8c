"""IBCL: closed forms, combinations, regions, inference and files."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dmkit.auxiliary.continual._streams import digit_pairs
from dmkit.auxiliary.continual.ibcl import IBCL, Gaussian, distance, select
from dmkit.auxiliary.continual.ibcl.gaussians import Mixture, draw, interpolate, radius
from dmkit.auxiliary.continual.ibcl.training import Arguments, dirichlet, run
from dmkit.auxiliary.continual.ibcl.variational import VariationalTask, gaussian_network
from dmkit.data import Rows
from dmkit.errors import FileFormatError
from dmkit.training.arguments import TrainingArguments
from dmkit.training.networks import ConvNet
from dmkit.training.trainer import Trainer


def arguments(folder, **changes) -> TrainingArguments:
    settings = {
        "train_batch_size": 8,
        "max_train_steps": 3,
        "learning_rate": 0.05,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "adam_beta1": 0.9,
        "adam_weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "checkpointing_steps": 0,
        "save_images_epochs": 0,
        "save_model_epochs": 0,
        "report_to": "none",
        **changes,
    }
    return TrainingArguments(output_dir=str(folder), **settings)


def gaussian(seed: int, width: int = 6) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn(width, generator=generator)
    return Gaussian(loc, torch.rand(width, generator=generator) + 0.1)


def base(tasks: int = 3, m: int = 2, **options) -> IBCL:
    """A knowledge base of random posteriors over a Linear(3, 2)."""
    kept = IBCL(nn.Linear(3, 2, bias=False), [1.0] * m, **options)
    for t in range(tasks):
        kept.add_task([gaussian(10 * t + j) for j in range(m)])
    return kept


# Closed forms


def test_wasserstein_distance():
    a, b = Gaussian(torch.zeros(1), torch.ones(1)), Gaussian(torch.full((1,), 3.0), torch.full((1,), 2.0))
    assert distance(a, b) == pytest.approx(10**0.5)
    assert distance(a, b) == distance(b, a)
    assert distance(a, a) == 0
    assert distance(gaussian(0), gaussian(1), "w2_per_dim") == pytest.approx(
        float((gaussian(0).loc - gaussian(1).loc).norm() + (gaussian(0).scale - gaussian(1).scale).norm()) / 6
    )


@pytest.mark.parametrize(("alpha", "z"), [(0.01, 2.5758), (0.1, 1.6449), (0.25, 1.1503)])
def test_alpha_is_the_probability_outside(alpha, z):
    assert radius(alpha, 1, "marginal") == pytest.approx(z, abs=1e-4)
    for region in ("hdr", "box"):  # in one dimension all regions are the same
        assert radius(alpha, 1, region) == pytest.approx(z, abs=1e-4)


def test_regions_of_513_dimensions():
    assert radius(0.01, 513, "hdr") == pytest.approx(24.299, abs=1e-3)
    assert radius(0.01, 513, "box") == pytest.approx(4.2695, abs=1e-4)
    assert radius(0.01, 513, "marginal") == pytest.approx(2.5758, abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400), st.floats(0.001, 0.9), st.integers(0, 1000))
def test_every_draw_is_in_the_ellipsoid(width, alpha, seed):
    q = gaussian(seed, width)
    points = draw(q, alpha, 20, "hdr", torch.Generator().manual_seed(seed))
    squares = ((points.double() - q.loc) / q.scale).square().sum(1)
    assert (squares <= radius(alpha, width, "hdr") ** 2 * (1 + 1e-5)).all()


def test_draws_fill_the_ellipse_evenly():
    q = gaussian(3, 2)
    points = draw(q, 0.01, 100_000, "hdr", torch.Generator().manual_seed(0))
    squares = ((points - q.loc) / q.scale).square().sum(1)
    assert float(squares.mean()) == pytest.approx(4.605, abs=0.03)
    for region in ("box", "marginal"):
        away = ((draw(q, 0.1, 20_000, region, torch.Generator().manual_seed(0)) - q.loc) / q.scale).abs()
        assert float(away.max()) == pytest.approx(radius(0.1, 2, region), rel=1e-3)
        # each weight has a draw of its own, not one for a whole tensor
        assert abs(float(torch.corrcoef(away.T)[0, 1])) < 0.05


def two_bumps() -> tuple[list[Gaussian], list[float]]:
    parts = [
        Gaussian(torch.tensor([m]).double(), torch.tensor([s]).double()) for m, s in ((0.0, 1.0), (5.0, 0.5))
    ]
    return parts, [0.7, 0.3]


def test_the_region_of_a_mixture_is_two_intervals():
    mixture = Mixture(*two_bumps())
    cut = np.exp(mixture.log_cut(0.1, torch.Generator().manual_seed(0), draws=200_000))
    assert cut == pytest.approx(0.0687, abs=0.001)
    grid = torch.linspace(-4, 9, 130_001, dtype=torch.float64)[:, None]
    inside = (mixture.log_density(grid) >= np.log(0.0687)).numpy()
    edges = grid[:, 0].numpy()[np.flatnonzero(np.diff(inside.astype(int)))]
    assert edges == pytest.approx([-1.675, 1.675, 4.210, 5.790], abs=2e-3)
    points = mixture.draw(0.1, 2000, torch.Generator().manual_seed(1))
    assert mixture.log_density(points).min() >= np.log(0.0687) - 0.1
    assert 0.25 < float((points > 3).double().mean()) < 0.37
    drawn = mixture.sample(100_000, torch.Generator().manual_seed(2))
    assert float(drawn.std()) == pytest.approx(2.4546, abs=0.01)


def test_interpolation_is_not_the_mixture():
    between = interpolate(*two_bumps())
    assert (float(between.loc), float(between.scale)) == (pytest.approx(1.5), pytest.approx(0.85))


# Preferences


def test_one_hot_preferences_are_the_posteriors_themselves():
    kept = base(m=1)
    for t in range(3):
        q = kept.interpolated([float(k == t) for k in range(3)])
        assert torch.equal(q.loc, gaussian(10 * t).loc)
        assert torch.equal(q.scale, gaussian(10 * t).scale)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1), st.integers(0, 1000))
def test_preferences_combine_linearly(share, seed):
    kept = base()
    one, two = dirichlet(3, 2, seed)
    mixed = [share * a + (1 - share) * b for a, b in zip(one, two, strict=True)]
    q, q1, q2 = (kept.interpolated(w, normalize=True) for w in (mixed, one, two))
    for kind in ("loc", "scale"):
        combined = share * getattr(q1, kind) + (1 - share) * getattr(q2, kind)
        torch.testing.assert_close(getattr(q, kind), combined, atol=1e-6, rtol=0)


def test_a_discarded_posterior_hands_its_weight_on():
    kept = IBCL(nn.Linear(3, 2, bias=False), [1.0, 1.0], discard_threshold=0.5)
    near = Gaussian(gaussian(0).loc + 0.01, gaussian(0).scale)
    found = kept.add_task([gaussian(0), near])
    assert found[0] == float("inf")
    assert found[1] == pytest.approx(0.01 * 6**0.5, rel=1e-3)
    kept.add_task([gaussian(5), near])
    assert kept.reuse == {(0, 1): (0, 0), (1, 1): (0, 0)}
    assert kept.n_stored == 2
    assert torch.equal(kept.prior(1).loc, gaussian(0).loc)  # the chain goes on from what stands for it
    q = kept.interpolated([0.0, 1.0])
    torch.testing.assert_close(q.loc, (gaussian(5).loc + gaussian(0).loc) / 2)


def test_thresholds_of_nothing_and_everything():
    assert base(discard_threshold=0.0).n_stored == 6
    assert base(discard_threshold=float("inf")).n_stored == 1


def test_generation_is_reproducible_and_fits_the_network():
    kept = base()
    for how in ({}, {"region": "box"}, {"combine": "mixture"}):
        one, two = (
            kept.generate([0.5, 0.5, 0], n_samples=3, generator=torch.Generator().manual_seed(1), **how)
            for _ in range(2)
        )
        assert all(torch.equal(a["weight"], b["weight"]) for a, b in zip(one, two, strict=True))
        kept.module.load_state_dict(one[2])


# Inference


def test_a_linear_regression_finds_the_conjugate_posterior():
    torch.manual_seed(0)
    x = torch.randn(40, 3) @ torch.tensor([[1.0, 0.4, 0], [0, 1, 0], [0, 0.3, 0.7]])
    y = x @ torch.tensor([[1.0], [-2], [0.5]]) + 0.5 * torch.randn(40, 1)
    noise, width = 0.5, 2.0

    def likelihood(found, wanted):
        return (found - wanted).square().mean() / (2 * noise**2)

    prior = Gaussian(torch.zeros(3), torch.full((3,), width))
    task = VariationalTask(nn.Linear(3, 1, bias=False), prior, examples=40, likelihood=likelihood)
    task.prepare(torch.device("cpu"))
    optimizer = torch.optim.Adam(task.network.parameters(), lr=0.05, betas=(0.0, 0.999))
    # A falling rate, so that the noise of the last steps averages out
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1200)
    for _ in range(1200):
        optimizer.zero_grad()
        sum(task.training_step({"inputs": x, "labels": y}, None).values()).backward()
        optimizer.step()
        schedule.step()
    precision = x.T @ x / noise**2 + torch.eye(3) / width**2
    exact = torch.linalg.solve(precision, x.T @ y / noise**2)[:, 0]
    q = task.posterior()
    torch.testing.assert_close(q.loc, exact, atol=0.02, rtol=0)
    torch.testing.assert_close(q.scale, precision.diagonal() ** -0.5, atol=0.003, rtol=0.03)


def test_the_loss_is_the_elbo_over_n_whatever_the_batch():
    """Minibatches of any size see the same share of the divergence, and nothing reaches the prior."""
    prior = Gaussian(torch.zeros(6), torch.full((6,), 2.0, requires_grad=True))
    task = VariationalTask(nn.Linear(3, 2, bias=False), prior, examples=50)
    for size in (5, 50):
        losses = task.training_step({"inputs": torch.ones(size, 3), "labels": torch.zeros(size).long()}, None)
        q = task.posterior()
        exact = (torch.log(2 / q.scale) + (q.scale**2 + q.loc**2) / 8 - 0.5).sum() / 50
        torch.testing.assert_close(losses["kl"], exact)
    sum(losses.values()).backward()
    assert prior.scale.grad is None
    assert torch.allclose(task.posterior().scale, torch.ones(6))  # min(s, 1)


@pytest.mark.parametrize("layer", [nn.Linear(5, 4), nn.Conv2d(2, 4, 3, padding=1, stride=2)])
def test_local_reparameterisation_has_the_moments_of_drawn_weights(layer):
    torch.manual_seed(0)
    network = gaussian_network(nn.Sequential(layer))
    for name, parameter in network.named_parameters():
        if name.endswith("rho"):
            nn.init.uniform_(parameter, -2, 0)
    x = torch.randn(1, 5) if isinstance(layer, nn.Linear) else torch.randn(1, 2, 4, 4)
    drawn = torch.stack([network(x) for _ in range(4000)])
    gaussians = {n: network[0].moments(n) for n in ("weight", "bias")}
    other = []
    for _ in range(4000):
        values = {n: mu + F.softplus(rho) * torch.randn_like(mu) for n, (mu, rho) in gaussians.items()}
        other.append(torch.func.functional_call(layer, values, (x,)))
    other = torch.stack(other)
    torch.testing.assert_close(drawn.mean(0), other.mean(0), atol=0.15, rtol=0)
    torch.testing.assert_close(drawn.std(0), other.std(0), atol=0.1, rtol=0.1)


def test_inputs_of_zeros_make_no_nan():
    network = gaussian_network(nn.Linear(3, 2, bias=False))
    network(torch.zeros(4, 3)).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_a_deep_network_starts_from_its_own_weights(tmp_path):
    torch.manual_seed(0)
    module = ConvNet(1, ((2,), (3,)), classes=2)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    kept = IBCL(module, [0.5], start="module")
    rows = Rows(inputs=torch.randn(8, 1, 8, 8), labels=torch.arange(8) % 2)
    kept.fit_task(rows, arguments(tmp_path, learning_rate=1e-9, max_train_steps=1))
    for name, value in kept.mean([1.0]).items():
        torch.testing.assert_close(value, before[name])
    assert all(torch.equal(module.state_dict()[k], v) for k, v in before.items())


def test_repeating_a_converged_task_stores_nothing_new(tmp_path):
    rows = digit_pairs(0)[0].rows()
    kept = IBCL(nn.Linear(65, 2, bias=False), [1.0], discard_threshold=6.0)
    given = {"train_batch_size": 256, "max_train_steps": 60}
    for t in range(3):
        kept.fit_task(rows, arguments(tmp_path / str(t), **given))
    assert kept.n_stored == 1


def test_a_training_goes_on_from_its_checkpoint(tmp_path):
    def task():
        return VariationalTask(nn.Linear(3, 2), gaussian(0, 8), examples=20)

    rows = Rows(inputs=torch.randn(20, 3), labels=torch.arange(20) % 2)
    whole, parts = task(), task()
    Trainer(whole, rows, arguments(tmp_path / "a", max_train_steps=6)).train()
    Trainer(task(), rows, arguments(tmp_path / "b", max_train_steps=4, checkpointing_steps=4)).train()
    Trainer(
        parts, rows, arguments(tmp_path / "b", max_train_steps=6, resume_from_checkpoint="latest")
    ).train()
    assert torch.equal(whole.posterior().loc, parts.posterior().loc)
    assert torch.equal(whole.posterior().scale, parts.posterior().scale)


def test_the_run_serves_preferences(tmp_path):
    given = Arguments(prior_scales=[2.0], preferences=4, samples=2)
    found = run(given, arguments(tmp_path, train_batch_size=256, max_train_steps=40))
    assert found["n_stored"] == 5
    assert found["accuracy"]["interpolated mean"] > 60
    assert (tmp_path / "knowledge" / "config.json").is_file()


# Files and refusals


def test_a_knowledge_base_is_saved_and_read_bit_for_bit(tmp_path):
    kept = base(discard_threshold=0.5)
    kept.add_task([gaussian(0), gaussian(77)])
    kept.save_pretrained(tmp_path / "base")
    again = IBCL.from_pretrained(tmp_path / "base", nn.Linear(3, 2, bias=False))
    assert again.reuse == kept.reuse == {(3, 0): (0, 0)}
    assert list(again.kept) == list(kept.kept)
    for key, q in kept.kept.items():
        assert torch.equal(again.kept[key].loc, q.loc)
        assert torch.equal(again.kept[key].scale, q.scale)
    assert again.mean([0.25] * 4)["weight"].equal(kept.mean([0.25] * 4)["weight"])


def test_files_that_do_not_fit_are_refused(tmp_path):
    base().save_pretrained(tmp_path / "base")
    with pytest.raises(FileFormatError, match=r"weight.loc has shape \(2, 3\), the network's is \(2, 4\)"):
        IBCL.from_pretrained(tmp_path / "base", nn.Linear(4, 2, bias=False))
    config = tmp_path / "base" / "config.json"
    whole = json.loads(config.read_text())
    for change, message in (
        ({"format": 2}, "has format 2; this version reads 1"),
        ({"tasks": 4}, "kept and reused posteriors are not one for each"),
        ({"kept": [[7, 0]]}, r"task7.prior0.weight.loc is missing"),
        ({"settings": {**whole["settings"], "distance": "w3"}}, "Unknown distance 'w3'. Did you mean 'w2'"),
    ):
        config.write_text(json.dumps({**whole, **change}))
        with pytest.raises(FileFormatError, match=message):
            IBCL.from_pretrained(tmp_path / "base", nn.Linear(3, 2, bias=False))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([0.5, 0.5],), "has 3 weights, one for each task, not 2"),
        (([-0.5, 0.5, 1.0],), "no negative or infinite weight"),
        (([0.5, 0.5, 0.5],), "sums to 1, not 1.5; normalize=True"),
        (([1.0, 0, 0], 0.0), r"alpha is the probability outside the region, in \(0, 1\), not 0.0"),
        (([1.0, 0, 0], 0.1, 0), "n_samples is at least 1"),
    ],
)
def test_bad_preferences_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        base().generate(*given)


def test_other_refusals():
    kept = base()
    with pytest.raises(ValueError, match=r"Unknown combination 'mix'\. Did you mean 'mixture'"):
        kept.generate([1.0, 0, 0], combine="mix")
    with pytest.raises(ValueError, match=r"Unknown region 'bax'\. Did you mean 'box'"):
        kept.generate([1.0, 0, 0], region="bax")
    with pytest.raises(ValueError, match="drawn from its highest density region"):
        kept.generate([1.0, 0, 0], combine="mixture", region="box")
    with pytest.raises(ValueError, match="There are 3 tasks with 2 posteriors each"):
        kept.posterior(3, 0)
    with pytest.raises(ValueError, match="A task has 2 posteriors, not 1"):
        kept.add_task([gaussian(0)])
    with pytest.raises(ValueError, match="No task has been learned yet"):
        IBCL(nn.Linear(3, 2)).generate([1.0])
    for options, message in (
        ({"prior_scales": [1.0, 0.0]}, "prior_scales are positive"),
        ({"discard_threshold": -1}, "discard_threshold is a distance"),
        ({"kl_weight": -1}, "kl_weight is at least 0"),
        ({"start": "modul"}, "Unknown start 'modul'. Did you mean 'module'"),
    ):
        with pytest.raises(ValueError, match=message):
            IBCL(nn.Linear(3, 2), **options)
    with pytest.raises(ValueError, match=r"Only Linear and Conv2d layers .* not 1.weight, 1.bias"):
        IBCL(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))


def test_selection_is_by_validation_data_and_counts_bad_samples():
    module = nn.Linear(2, 2, bias=False)
    good, wrong = {"weight": torch.eye(2)}, {"weight": -torch.eye(2)}
    data = [(torch.eye(2), torch.arange(2)), (torch.eye(2), torch.zeros(2).long())]
    found = select(module, [wrong, good, wrong], data, [1.0, 0.0])
    assert (found.scores, found.bad_share) == ([0.0, 1.0, 0.0], pytest.approx(2 / 3))
    assert torch.equal(found.best["weight"], torch.eye(2))
    assert select(module, [good], data, [0.5, 0.5]).scores == [0.75]
    with pytest.raises(ValueError, match="no model to select"):
        select(module, [], data, [1.0, 0.0])
    with pytest.raises(ValueError, match="1 sets of validation data for 2 weights"):
        select(module, [good], data[:1], [1.0, 0.0])
