import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmkit.training.randomness import DataOrder, Draws, derive_seed


def take(order: DataOrder, batches: int, start: int = 0) -> list[list[int]]:
    return list(itertools.islice(order.batches(start), batches))


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


@given(length=st.integers(1, 40), batch=st.integers(1, 16), seed=st.integers(0, 9))
def test_every_epoch_visits_every_example_once(length, batch, seed):
    stream = flat(take(DataOrder(length, batch, seed), -(-3 * length // batch)))
    for epoch in range(3):
        assert sorted(stream[epoch * length : (epoch + 1) * length]) == list(range(length))


@given(length=st.integers(1, 40), local=st.integers(1, 5), world=st.integers(1, 4), start=st.integers(0, 20))
def test_processes_together_see_what_one_process_sees(length, local, world, start):
    alone = take(DataOrder(length, local * world, seed=3), 4, start)
    ranks = [take(DataOrder(length, local * world, 3, rank, world), 4, start) for rank in range(world)]
    assert alone == [flat(parts) for parts in zip(*ranks, strict=True)]


def test_starting_late_is_going_on():
    order = DataOrder(length=10, batch_size=4, seed=0)
    assert take(order, 7)[3:] == take(order, 4, start=3)


def test_epochs_and_seeds_differ():
    first, second = take(DataOrder(50, 50, seed=0), 2)
    assert first != second
    assert first != take(DataOrder(50, 50, seed=1), 1)[0]


def test_bad_orders_are_refused():
    with pytest.raises(ValueError, match="data set is empty"):
        DataOrder(0, 4, 0)
    with pytest.raises(ValueError, match="batch of 5 cannot be split over 2"):
        DataOrder(10, 5, 0, world=2)


@pytest.mark.parametrize("method", ["normal", "uniform"])
def test_draws_do_not_depend_on_the_number_of_processes(method):
    alone = getattr(Draws(7, 11, rank=0, world=1), method)((6, 2))
    split = [getattr(Draws(7, 11, rank=rank, world=3), method)((2, 2)) for rank in range(3)]
    assert torch.equal(alone, torch.cat(split))
    assert not torch.equal(alone, getattr(Draws(7, 12, rank=0, world=1), method)((6, 2)))


def test_integers_cover_their_range():
    drawn = Draws(0, 0, rank=0, world=1).integers(5, (1000,))
    assert drawn.dtype == torch.int64
    assert set(drawn.tolist()) == set(range(5))


def test_seeds_are_mixed():
    seeds = {derive_seed(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900
