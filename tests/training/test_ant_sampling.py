"""Batches by cluster, and the losses of the clusters."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_cases import CLUSTERS, tiny_task

from dmkit.training.ant.clustering import TimestepClusters
from dmkit.training.ant.sampling import ClusterTimestepSampler
from dmkit.training.randomness import Draws
from dmkit.training.trainer import Step


def step(seed: int = 0, rank: int = 0, world: int = 1) -> Step:
    return Step(0, "main", Draws(seed, 0, rank=rank, world=world), rank, world)


@given(batch=st.integers(3, 30), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_every_cluster_has_its_share_of_the_batch(batch, seed):
    drawn = ClusterTimestepSampler(CLUSTERS)(batch, step(seed))
    assert torch.equal(CLUSTERS.assign(drawn.timesteps), drawn.slots)
    counts = torch.bincount(drawn.slots, minlength=3)
    assert counts.sum() == batch
    assert counts.max() - counts.min() <= 1


def test_no_cluster_is_favoured_by_what_is_left_over():
    sampler = ClusterTimestepSampler(CLUSTERS)
    counts = torch.stack([torch.bincount(sampler(4, step(seed)).slots, minlength=3) for seed in range(300)])
    extra = (counts - 1).sum(0)
    assert extra.sum() == 300
    assert extra.min() > 70  # 100 expected, standard deviation 8


def test_timesteps_are_uniform_in_their_cluster_up_to_its_ends():
    clusters = TimestepClusters((0, 4, 5), 12)
    sampler = ClusterTimestepSampler(clusters)
    drawn = torch.cat([sampler(300, step(seed)).timesteps for seed in range(10)])
    counts = torch.bincount(drawn, minlength=12)
    expected = torch.tensor([1000 / size for size in clusters.sizes for _ in range(size)])
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()
    assert counts[4] == 1000


@pytest.mark.parametrize("weighting", ["equal", "size"])
@pytest.mark.parametrize("world", [1, 2, 5])
def test_losses_of_processes_average_to_those_of_the_batch(weighting, world):
    sampler = ClusterTimestepSampler(CLUSTERS, weighting=weighting)
    whole = sampler(10, step())
    parts = [sampler(10 // world, step(rank=rank, world=world)) for rank in range(world)]
    assert torch.equal(torch.cat([part.timesteps for part in parts]), whole.timesteps)
    errors = torch.rand(10, generator=torch.Generator().manual_seed(1))
    mine = errors.chunk(world)
    averaged = torch.stack([part.losses(e) for part, e in zip(parts, mine, strict=True)]).mean(0)
    shares = [1 / 3] * 3 if weighting == "equal" else [0.1, 0.3, 0.6]
    expected = [share * errors[whole.slots == i].mean() for i, share in enumerate(shares)]
    torch.testing.assert_close(averaged, torch.stack(expected))


def test_size_weighting_has_the_expectation_of_uniform_timesteps():
    """Any loss that is a function of t alone: the mean over draws is its mean over the schedule."""
    sampler = ClusterTimestepSampler(CLUSTERS, weighting="size")
    of_t = torch.linspace(0, 1, 1000) ** 3
    drawn = [sampler(99, step(seed)) for seed in range(200)]
    sums = torch.stack([d.losses(of_t[d.timesteps]).sum() for d in drawn])
    assert abs(sums.mean() - of_t.mean()) < 4 * sums.std() / 200**0.5
    # Equal weights have another: the short clusters count more.
    equal = ClusterTimestepSampler(CLUSTERS)
    other = torch.stack([d.losses(of_t[d.timesteps]).sum() for d in (equal(99, step(s)) for s in range(200))])
    assert abs(other.mean() - of_t.mean()) > 10 * other.std() / 200**0.5


def batch(count: int = 10) -> dict[str, torch.Tensor]:
    return {"images": torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1}


def test_losses_one_at_a_time_are_the_same_for_one_batch_of_work():
    task = tiny_task()
    sizes = []
    task.modules["unet"].register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    together = task.training_step(batch(), step())
    apart = dict(task.each_loss(batch(), step()))
    assert sizes[0] == 10
    assert len(sizes[1:]) == 3
    assert sum(sizes[1:]) == 10  # forwards, and so backwards, of as many items as one batch has
    assert together.keys() == apart.keys() == {"cluster_0", "cluster_1", "cluster_2"}
    parameters = list(task.modules["unet"].parameters())
    for name in together:
        torch.testing.assert_close(together[name], apart[name])
        expected = torch.autograd.grad(together[name], parameters, retain_graph=True)
        for a, b in zip(torch.autograd.grad(apart[name], parameters), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_process_without_a_cluster_gives_a_loss_without_gradient():
    apart = dict(tiny_task().each_loss(batch(2), step(rank=0, world=2)))
    assert [loss.requires_grad for loss in apart.values()].count(False) == 1
    assert list(apart) == ["cluster_0", "cluster_1", "cluster_2"]


def test_one_cluster_is_plain_training_bit_for_bit():
    task = tiny_task(sampler=ClusterTimestepSampler(TimestepClusters((0,), 1000)))
    parameters = list(task.modules["unet"].parameters())
    clustered = torch.autograd.grad(task.training_step(batch(), step())["cluster_0"], parameters)
    draws = step()
    timesteps = task.sampler(10, draws).timesteps
    plain = torch.autograd.grad(task.errors(task.examples(batch(), draws, timesteps)).mean(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(clustered, plain, strict=True))


def test_a_chosen_cluster_alone():
    sampler = ClusterTimestepSampler(CLUSTERS, only=[1])
    drawn = sampler(7, step())
    assert (CLUSTERS.assign(drawn.timesteps) == 1).all()
    assert sampler.names == ["cluster_1"]
    errors = torch.rand(7)
    torch.testing.assert_close(drawn.losses(errors), errors.mean()[None])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="A batch of 2 cannot hold 3 clusters"):
        ClusterTimestepSampler(CLUSTERS)(2, step())
    with pytest.raises(ValueError, match=r"Unknown cluster weighting 'sizes'\. Did you mean 'size'"):
        ClusterTimestepSampler(CLUSTERS, weighting="sizes")
    with pytest.raises(ValueError, match=r"There are clusters 0 to 2, not \[3\]"):
        ClusterTimestepSampler(CLUSTERS, only=[3])
