"""DBPM: NT-Xent, the memory of losses, the bad pairs that it shows and their weights, views, and pairs."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from dmkit.auxiliary.timeseries.dbpm import (
    AugmentedPairs,
    BadPairMiner,
    Chain,
    ContaminatedPairs,
    Encoder,
    Jitter,
    MagnitudeWarp,
    Permutation,
    Scaling,
    TimeShift,
    detection,
    linear_probe,
    nt_xent,
    sines,
)
from dmkit.data.series import load_series, read_ts
from dmkit.errors import FileFormatError, MissingExtraError, TrainingError
from dmkit.training.randomness import Draws

ROWS = torch.tensor([[1.0, 1, 1], [2, 2, 2], [3, 3, 3], [2, 2, 2]])  # samples by epochs


def filled(losses: torch.Tensor = ROWS, **options) -> BadPairMiner:
    """A miner that has seen these losses, at the start of the next epoch."""
    count, epochs = losses.shape
    miner = BadPairMiner(count, epochs, **{"beta_np": 1.0, "beta_fp": 1.0, **options})
    for epoch in range(epochs):
        miner.start_epoch(epoch)
        assert miner.weights(torch.arange(count), losses[:, epoch]).eq(1).all()  # in the warm-up
    miner.start_epoch(epochs)
    return miner


# NT-Xent


@pytest.mark.parametrize(("size", "value"), [(4, 1.94591), (64, 4.84419), (512, 6.93049)])
def test_rows_that_are_all_alike_have_the_logarithm_of_their_number(size, value):
    z = torch.ones(size, 3)
    torch.testing.assert_close(nt_xent(z, z), torch.full((size,), value), atol=1e-5, rtol=0)
    assert value == pytest.approx(math.log(2 * size - 1), abs=1e-5)


def test_orthonormal_rows():
    torch.testing.assert_close(
        nt_xent(torch.eye(4), torch.eye(4)), torch.full((4,), 0.039631), atol=1e-6, rtol=0
    )
    assert math.log(1 + 6 * math.exp(-5)) == pytest.approx(0.039631, abs=1e-6)


def test_it_is_the_formula_and_takes_half_precision():
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, 5, 7, generator=generator)
    z = F.normalize(torch.cat([u, v]), dim=1)
    similar = (z @ z.t() / 0.3).exp()
    expected = []
    for a in range(10):
        partner = (a + 5) % 10
        others = sum(similar[a, b] for b in range(10) if b not in (a, partner))
        expected.append(-(similar[a, partner] / (similar[a, partner] + others)).log())
    expected = torch.stack(expected)
    torch.testing.assert_close(nt_xent(u, v, 0.3), (expected[:5] + expected[5:]) / 2, atol=1e-5, rtol=0)
    assert nt_xent(u.bfloat16(), v.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("shapes", [((1, 3), (1, 3)), ((2, 3), (3, 3)), ((3,), (3,))])
def test_views_that_do_not_pair(shapes):
    with pytest.raises(ValueError, match="Two views of two samples or more"):
        nt_xent(*(torch.ones(shape) for shape in shapes))
    with pytest.raises(ValueError, match="temperature is 0"):
        nt_xent(torch.ones(2, 2), torch.ones(2, 2), 0)


# The memory


def test_bad_pairs_and_weights_of_a_small_memory():
    miner = filled()
    assert miner.mean_losses().tolist() == [1, 2, 3, 2]
    assert miner.flags().tolist() == [1, 0, 2, 0]
    statistics = miner.statistics()
    assert (statistics["mean"], statistics["noisy"], statistics["faulty"]) == (2, 1, 1)
    assert statistics["deviation"] == pytest.approx(0.70711, abs=1e-5)
    assert statistics["noisy_below"] == pytest.approx(2 - 0.70711, abs=1e-5)
    assert statistics["faulty_above"] == pytest.approx(2 + 0.70711, abs=1e-5)
    weights = miner.weights(torch.arange(4), torch.tensor([1.0, 1, 2, 9]))
    torch.testing.assert_close(weights, torch.tensor([0.20755, 1, 0.56419, 1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [("normalized", [0.36788, 1]), ("drop", [0, 0]), ("pdf-unclipped", [0.20755, 0.56419])],
)
def test_other_weightings(weighting, expected):
    weights = filled(weighting=weighting).weights(torch.tensor([0, 2]), torch.tensor([1.0, 2]))
    torch.testing.assert_close(weights, torch.tensor(expected).float(), atol=1e-5, rtol=0)


def test_a_density_may_be_above_one_and_is_clipped():
    """A tenth of the deviation makes weights ten times as large; flags stay."""
    whole, tenth = filled(weighting="pdf-unclipped"), filled(ROWS / 10, weighting="pdf-unclipped")
    assert torch.equal(whole.flags(), tenth.flags())
    rows, losses = torch.tensor([0, 2]), torch.tensor([1.0, 2])
    torch.testing.assert_close(tenth.weights(rows, losses / 10), 10 * whole.weights(rows, losses))
    clipped = filled(ROWS / 10).weights(rows, losses / 10)
    assert clipped.tolist() == [1, 1]
    bell = filled(ROWS / 10, weighting="normalized").weights(rows, losses / 10)
    assert bell.max() <= 1


def test_histories():
    code = filled(history="code", epochs=6)
    torch.testing.assert_close(code.mean_losses(), torch.tensor([1, 2, 3, 2]) / 3)
    # Its weights of losses that are as they always were: the scales do not fit.
    assert code.weights(torch.tensor([2]), torch.tensor([3.0])).item() < 1e-4
    rising = torch.tensor([[1.0, 2, 6], [1, 1, 1]])
    torch.testing.assert_close(filled(rising, history="linear").mean_losses(), torch.tensor([23 / 6, 1]))
    torch.testing.assert_close(filled(rising).mean_losses(), torch.tensor([3.0, 1]))


def test_sums_give_what_all_losses_give_where_samples_miss_epochs():
    generator = torch.Generator().manual_seed(0)
    losses = 4 + torch.rand(50, 20, generator=generator)
    there = torch.rand(50, 20, generator=generator) < 0.8
    there[7] = False
    miner = BadPairMiner(50, 20, 1.5, 1.5)
    for epoch in range(20):
        miner.start_epoch(epoch)
        rows = there[:, epoch].nonzero().flatten()
        miner.weights(rows, losses[rows, epoch])
    miner.start_epoch(20)
    whole = losses.double().masked_fill(~there, torch.nan).nanmean(1)
    torch.testing.assert_close(miner.mean_losses().double(), whole, atol=1e-6, rtol=0, equal_nan=True)
    known = whole[~whole.isnan()]
    mu, sigma = known.mean(), known.std(correction=0)
    expected = (whole <= mu - 1.5 * sigma) * 1 + (whole >= mu + 1.5 * sigma) * 2
    assert torch.equal(miner.flags().long(), expected)
    assert miner.flags()[7] == 0  # never seen


def test_losses_are_recorded_raw_and_weights_have_no_gradient():
    miner, losses = filled(), torch.tensor([1.0, 2, 3, 2], requires_grad=True)
    weights = miner.weights(torch.arange(4), losses)
    assert not weights.requires_grad
    assert miner.total.tolist() == [4, 8, 12, 8]
    (weights * losses).mean().backward()
    torch.testing.assert_close(losses.grad, weights / 4)


def test_the_present_epoch_does_not_count():
    miner = filled()
    flags, level = miner.flags(), miner.level.clone()
    miner.weights(torch.tensor([1, 2]), torch.tensor([900.0, 0]))
    miner.start_epoch(3)  # has begun
    assert torch.equal(miner.flags(), flags)
    assert torch.equal(miner.level, level)
    miner.start_epoch(4)
    assert miner.flags().tolist() == [0, 2, 0, 0]


def test_another_order_of_samples():
    generator = torch.Generator().manual_seed(1)
    losses, order = torch.rand(40, 3, generator=generator), torch.randperm(40, generator=generator)
    assert filled(losses).flags().count_nonzero() > 4
    assert torch.equal(filled(losses).flags()[order], filled(losses[order]).flags())


@pytest.mark.parametrize(
    ("losses", "options"),
    [(ROWS, {"beta_np": math.inf, "beta_fp": math.inf}), (torch.full((4, 3), 1.7), {}), (ROWS[:1], {})],
)
def test_nobody_is_bad_where_all_are_alike_or_thresholds_are_infinite(losses, options):
    miner = filled(losses, **options)
    assert not miner.flags().any()
    rows = torch.arange(len(losses))
    assert miner.weights(rows, losses[:, 0]).eq(1).all()


def test_many_bad_pairs_hide_themselves():
    """A share p on each side at one distance is found below beta = 1/sqrt(2p) only."""
    for share, limit in ((0.05, 3.16), (0.1, 2.24), (0.15, 1.83)):
        count = round(1000 * share)
        losses = torch.full((1000, 1), 5.0)
        losses[:count], losses[-count:] = 4, 6
        assert limit == pytest.approx(1 / math.sqrt(2 * share), abs=0.01)
        for beta, found in ((limit - 0.02, count), (limit + 0.02, 0)):
            flags = filled(losses, beta_np=beta, beta_fp=beta).flags()
            assert [int((flags == k).sum()) for k in (1, 2)] == [found, found]


def test_medians_see_them():
    losses = 5 + 0.1 * torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
    losses[:150], losses[-150:] = 4, 6
    plain, robust = (filled(losses, beta_np=2.0, beta_fp=3.0, robust=r).flags() for r in (False, True))
    assert not (plain[-150:] == 2).any()
    assert (robust[:150] == 1).all()
    assert (robust[-150:] == 2).all()
    assert robust[150:-150].count_nonzero() < 40


def test_files_and_states(tmp_path):
    miner = filled(history="linear", beta_fp=math.inf)
    miner.weights(torch.tensor([3]), torch.tensor([0.1]))
    miner.save_pretrained(tmp_path)
    again = BadPairMiner.from_pretrained(tmp_path)
    assert dict(again.config)["beta_fp"] == math.inf
    for name, value in miner.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert value.dtype == again.state_dict()[name].dtype
    with pytest.raises(ValueError, match=r"Twice in epoch 3: indices \[3\]"):
        again.weights(torch.tensor([3]), torch.tensor([0.1]))
    with pytest.raises(ValueError, match="This memory is of 4 samples; the data set has 5"):
        BadPairMiner(5, 1).load_state_dict(miner.state_dict())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_samples": 0}, "num_samples is 0"),
        ({"warmup_epochs": 0}, "warmup_epochs is 0"),
        ({"beta_np": 0}, "beta_np is 0"),
        ({"beta_fp": -1}, "beta_fp is -1"),
        ({"weighting": "pfd"}, "Did you mean 'pdf'"),
        ({"history": "men"}, "Did you mean 'mean'"),
        ({"history": "code"}, "needs the number of epochs"),
    ],
)
def test_options_out_of_range(options, error):
    with pytest.raises(ValueError, match=error):
        BadPairMiner(**{"num_samples": 4, "warmup_epochs": 1, **options})


def test_losses_and_indices_that_do_not_fit():
    miner, two = BadPairMiner(4, 1), torch.ones(2)
    with pytest.raises(ValueError, match="No epoch has begun"):
        miner.weights(torch.arange(2), two)
    miner.start_epoch(1)
    before = copy.deepcopy(miner.state_dict())
    for indices, losses, error in (
        (torch.arange(2), torch.tensor(1.0), "must not be reduced"),
        (torch.arange(3), two, r"not \(2,\) for \(3,\)"),
        (torch.tensor([0, 4]), two, "Indices are 0 to 4; the data set has 0 to 3"),
        (torch.tensor([-1, 2]), two, "Indices are -1 to 2"),
        (torch.tensor([2, 2]), two, r"Twice in epoch 1: indices \[2\]"),
    ):
        with pytest.raises(ValueError, match=error):
            miner.weights(indices, losses)
    with pytest.raises(TrainingError, match=r"not finite at indices \[3\]"):
        miner.weights(torch.tensor([1, 3]), torch.tensor([1, torch.nan]))
    with pytest.raises(ValueError, match="Epoch 0 cannot start after epoch 1"):
        miner.start_epoch(0)
    assert all(torch.equal(value, before[name]) for name, value in miner.state_dict().items())


# Views and pairs


VIEWS = [
    Jitter(0.5),
    Scaling(0.5),
    Scaling(1.1, per="step"),
    Permutation(5),
    MagnitudeWarp(0.3),
    TimeShift(3),
    Chain(Permutation(8), Jitter(0.1)),
]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: type(view).__name__)
def test_views_keep_the_shape_and_are_those_of_any_number_of_processes(view):
    x = torch.randn(6, 2, 16, generator=torch.Generator().manual_seed(0))
    whole = view(x, Draws(3, 5, rank=0, world=1))
    assert whole.shape == x.shape
    assert not torch.equal(whole, x)
    parts = [view(x[3 * r : 3 * r + 3], Draws(3, 5, rank=r, world=2)) for r in (0, 1)]
    assert torch.equal(whole, torch.cat(parts))


def test_what_views_do():
    x = torch.arange(12.0).expand(50, 2, 12)
    draws = Draws(0, 0, rank=0, world=1)
    shuffled = Permutation(4)(x, draws)
    assert torch.equal(shuffled.sort(2).values, x)
    assert torch.equal(shuffled[:, 0], shuffled[:, 1])  # channels together
    assert ((shuffled[:, 0].diff() != 1).sum(1) <= 3).all()  # four parts at most
    shifted = TimeShift(2)(x, draws)[:, 0, 0]
    assert {int(v) for v in shifted} == {10, 11, 0, 1, 2}
    scaled = Scaling(0.5)(x + 1, draws) / (x + 1)
    torch.testing.assert_close(scaled, scaled[:, :, :1].expand_as(scaled))
    with pytest.raises(ValueError, match="segments is 1"):
        Permutation(1)
    with pytest.raises(ValueError, match="per"):
        Scaling(1.0, per="stp")


def test_bad_pairs_are_as_they_are_said_to_be():
    x, y = sines(200, seed=1)
    assert x.shape == (200, 1, 64)
    assert set(y.tolist()) == set(range(6))
    pairs = ContaminatedPairs(AugmentedPairs(x, Scaling(0.1), Jitter(0.3)), 0.15, 0.1, seed=2)
    assert [int((pairs.kinds == k).sum()) for k in range(3)] == [150, 30, 20]
    rows = torch.arange(200)
    u, v = pairs.views(rows, Draws(0, 0, rank=0, world=1))
    again, _ = pairs.views(rows, Draws(0, 1, rank=0, world=1))
    fine, other = AugmentedPairs(x, Scaling(0.1), Jitter(0.3)).views(rows, Draws(0, 0, rank=0, world=1))
    noisy, faulty = pairs.kinds == 1, pairs.kinds == 2
    assert torch.equal(u[~noisy], fine[~noisy])
    assert torch.equal(v[pairs.kinds == 0], other[pairs.kinds == 0])
    assert (u - v)[noisy].std() < 0.2 < 1.5 < u[noisy].std()  # noise that both share
    torch.testing.assert_close(u[noisy], again[noisy], atol=0.2, rtol=0)  # and that stays
    assert torch.equal(v[faulty].sort(2).values, other[faulty].sort(2).values)
    assert not torch.equal(v[faulty], other[faulty])
    with pytest.raises(ValueError, match="their sum must be in"):
        ContaminatedPairs(AugmentedPairs(x, Jitter(0), Jitter(0)), 0.6, 0.6)


def test_detection_is_the_area_under_the_curve():
    m, kinds = torch.tensor([1.0, 3, 3, 5, 4]), torch.tensor([1, 1, 0, 2, 0])
    assert detection(m, kinds) == {"noisy": pytest.approx((3 + 2.5) / 6), "faulty": 1}
    assert detection(m, torch.zeros(5)) == {}


def test_the_probe_reads_what_an_encoder_gives():
    y = torch.arange(60) % 2
    x = torch.randn(60, 1, 16, generator=torch.Generator().manual_seed(0)) + 5 * y[:, None, None]

    class Mean(Encoder):
        def forward(self, x, pooled=True):
            return x.mean(2)

    assert linear_probe(Mean(), (x[:40], y[:40]), (x[40:], y[40:])) == 1


# Recorded series


TS = """@problemName Two
@classLabel true b a
@data
1,2,3:4,5,6:b
0,0,1:1,2,?:a
"""


def test_files_of_series(tmp_path):
    path = tmp_path / "x.ts"
    path.write_text(TS.replace("?", "7"))
    x, y = read_ts(path)
    assert x.tolist() == [[[1, 2, 3], [4, 5, 6]], [[0, 0, 1], [1, 2, 7]]]
    assert y.tolist() == [1, 0]
    for text in (TS, TS.replace(",?", ""), TS.replace("@classLabel true", "@x"), "@classLabel true a\n1:c"):
        path.write_text(text)
        with pytest.raises(FileFormatError, match="no series of equal length"):
            read_ts(path)
    with pytest.raises(FileFormatError):
        read_ts(tmp_path / "none.ts")


def test_sets_of_series(monkeypatch):
    with pytest.raises(ValueError, match="Did you mean 'GunPoint'"):
        load_series("Gunpoint")
    with pytest.raises(ValueError, match="Unknown split"):
        load_series("GunPoint", "tset")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"dmkit\[timeseries\]"):
        load_series("GunPoint")


def test_series_of_aeon():
    try:
        x, y = load_series("BasicMotions")
    except MissingExtraError:
        pytest.skip("aeon is not installed")
    assert x.shape == (40, 6, 100)
    assert sorted(y.unique().tolist()) == [0, 1, 2, 3]
