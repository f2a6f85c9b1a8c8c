"""Task affinity and the negative transfer gap, against gradients and scores computed directly."""

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler
from rule_cases import tiny_task
from safetensors.torch import save_file

from dmkit.errors import FileFormatError
from dmkit.training.ant.affinity import Affinity, CountSketch, cosines_of_halves, task_affinity
from dmkit.training.ant.clustering import TimestepClusters
from dmkit.training.ant.gap import IntervalExperts, cluster_losses, negative_transfer_gap
from dmkit.training.ant.plots import plot_affinity, plot_gap
from dmkit.training.randomness import Draws
from dmkit.training.trainer import Step

PNG = b"\x89PNG"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batches(count: int, size: int = 8) -> list[dict[str, torch.Tensor]]:
    return [{"images": torch.rand(size, 1, 8, 8, generator=seeded(i)) * 2 - 1} for i in range(count)]


def short_task(steps: int = 8):
    """The tiny denoiser on a schedule of a few timesteps, without clusters."""
    task = tiny_task(sampler=None)
    task.scheduler = DDPMScheduler(num_train_timesteps=steps)
    task.weights = torch.ones(steps)
    task.modules["unet"].eval()
    return task


def test_a_sketch_keeps_inner_products():
    a, b = torch.randn(2, 30_000, generator=seeded())
    b = 0.5 * a + 0.5 * b
    sketch = CountSketch(30_000, 4096)
    cosine = torch.nn.functional.cosine_similarity(sketch(a), sketch(b), dim=0)
    assert cosine == pytest.approx(1 / 2**0.5, abs=4 / 4096**0.5)
    torch.testing.assert_close(sketch(a) + sketch(b), sketch(a + b), rtol=1e-4, atol=1e-3)
    assert not torch.equal(sketch(a), CountSketch(30_000, 4096, seed=1)(a))


def test_halves_take_the_noise_of_the_images_out():
    """True cosine 0.6; each half's gradients carry noise as large as they are, shared by no one."""
    truth = torch.tensor([[1.0, 0.0], [0.6, 0.8]]) @ torch.eye(2, 2000)
    noise = torch.randn(2, 2, 2000, generator=seeded()) / 2000**0.5
    first, second = truth + noise[0], truth + noise[1]
    assert cosines_of_halves(first, second)[0, 1] == pytest.approx(0.6, abs=0.1)
    single = torch.nn.functional.cosine_similarity(first[0], first[1], dim=0)
    assert single < 0.4  # what one batch would say
    nothing = cosines_of_halves(torch.zeros(2, 3), torch.zeros(2, 3))
    assert np.array_equal(nothing, np.eye(2))


def test_affinity_is_the_cosine_of_the_gradients():
    """Gradients of whole parameter vectors, summed over the batches of each half."""
    task, examples = short_task(), batches(4)
    found = task_affinity(task, examples, group_size=4, sketch_size=1 << 14)
    parameters = list(task.modules["unet"].parameters())

    def gradient(first: int, half: int) -> torch.Tensor:
        timesteps = first + torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        total = torch.zeros(sum(p.numel() for p in parameters))
        for number in (half, half + 2):
            step = Step(0, "main", Draws(0, number, rank=0, world=1))
            loss = task.errors(task.examples(examples[number], step, timesteps)).mean()
            total += torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        return total

    halves = [torch.stack([gradient(first, half) for first in (0, 4)]) for half in (0, 1)]
    np.testing.assert_allclose(found.cosines, cosines_of_halves(*halves), atol=0.04)
    assert found.cosines[0, 1] == found.cosines[1, 0] < 0.99
    assert found.timesteps.tolist() == [1.5, 5.5]
    assert found.num_timesteps == 8


def test_affinity_falls_with_the_distance_in_noise():
    task = short_task(1000)
    found = task_affinity(task, batches(2, 16), group_size=200)
    assert found.timesteps.tolist() == [99.5, 299.5, 499.5, 699.5, 899.5]
    assert found.cosines[0, 1] > found.cosines[0, 4]
    assert found.cosines[4, 3] > found.cosines[4, 0]


def test_affinity_over_all_timesteps_and_over_checkpoints(tmp_path):
    first = Affinity(np.array([[1.0, 0.2], [0.2, 1.0]]), np.array([2.0, 6.0]), 9)
    full = first.full()
    assert full.shape == (9, 9)
    assert full[2, 6] == full[0, 8] == 0.2  # at the middles of the groups, and constant beyond them
    assert full[4, 4] == pytest.approx((1 + 0.2) / 2)
    np.testing.assert_allclose(full, full.T)
    second = Affinity(np.array([[1.0, 0.6], [0.6, 1.0]]), first.timesteps, 9)
    mean = Affinity.mean([first, second])
    assert mean.cosines[0, 1] == pytest.approx(0.4)
    mean.save(tmp_path / "a.safetensors")
    loaded = Affinity.load(tmp_path / "a.safetensors")
    assert np.array_equal(loaded.cosines, mean.cosines)
    assert (loaded.timesteps.tolist(), loaded.num_timesteps) == ([2.0, 6.0], 9)
    with pytest.raises(ValueError, match="same groups of timesteps"):
        Affinity.mean([first, Affinity(first.cosines, np.array([1.0, 6.0]), 9)])
    save_file({"cosines": torch.eye(2)}, str(tmp_path / "b.safetensors"))
    with pytest.raises(FileFormatError, match="does not hold an affinity: there is no 'timesteps'"):
        Affinity.load(tmp_path / "b.safetensors")


def test_bad_measurements_are_refused():
    with pytest.raises(ValueError, match="Two halves need at least two batches, not 1"):
        task_affinity(short_task(), batches(1), group_size=4)
    with pytest.raises(ValueError, match="A group holds 1 to 8 timesteps, not 9"):
        task_affinity(short_task(), batches(2), group_size=9)


CLUSTERS = TimestepClusters((0, 300, 700), 1000)


def constant(value: float) -> torch.nn.Module:
    """A denoiser that answers one number everywhere."""
    task = tiny_task()
    unet = task.modules["unet"]
    torch.nn.init.zeros_(unet.conv_out.weight)
    torch.nn.init.constant_(unet.conv_out.bias, value)
    return unet.eval()


@torch.no_grad()
def test_experts_answer_in_their_interval_only():
    both = IntervalExperts(constant(0), {0: constant(1), 2: constant(3)}, CLUSTERS)
    x = torch.zeros(2, 1, 8, 8)
    answers = [both(x, torch.tensor(t)).sample.unique().tolist() for t in (0, 299, 300, 699, 700, 999)]
    assert answers == [[1], [1], [0], [0], [3], [3]]
    assert both(x, torch.tensor([10, 20])).sample.unique().tolist() == [1]
    with pytest.raises(ValueError, match=r"must stay in one cluster of timesteps, not in \[0, 1\]"):
        both(x, torch.tensor([10, 500]))
    with pytest.raises(ValueError, match=r"There are clusters 0 to 2, not \[3\]"):
        IntervalExperts(constant(0), {3: constant(1)}, CLUSTERS)


def test_experts_run_in_a_pipeline():
    joint = constant(0)
    pipe = DDIMPipeline(unet=joint, scheduler=DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)

    def sample() -> np.ndarray:
        return pipe(1, seeded(), num_inference_steps=5, output_type="np").images

    plain = sample()
    pipe.unet = IntervalExperts(joint, {}, CLUSTERS)
    assert np.array_equal(sample(), plain)
    pipe.unet = IntervalExperts(joint, {1: constant(0.5)}, CLUSTERS)
    assert not np.array_equal(sample(), plain)


@torch.no_grad()
def test_gap_is_the_change_of_the_score():
    def score(network) -> float:
        answers = [
            network(torch.zeros(1, 1, 8, 8), torch.tensor(t)).sample.mean().item() for t in (5, 350, 800)
        ]
        return sum(answers)

    gaps = negative_transfer_gap(score, constant(2), {0: constant(1), 2: constant(5)}, CLUSTERS)
    assert gaps == {0: pytest.approx(-1), 2: pytest.approx(3)}  # an expert that is better: negative transfer


def test_cluster_losses_are_means_over_their_timesteps():
    task = tiny_task()
    task.modules["unet"].train()
    task.errors = lambda examples: examples.timesteps.float()
    assert task.modules["unet"].training
    found = cluster_losses(task, batches(2, 300), CLUSTERS)
    assert task.modules["unet"].training
    assert found == pytest.approx([149.5, 499.5, 849.5], abs=1)


def test_pictures(tmp_path):
    affinity = Affinity(np.eye(4), np.array([1.0, 3.0, 5.0, 7.0]), 9)
    plot_affinity(affinity, tmp_path / "a.png", TimestepClusters((0, 4), 9))
    plot_gap({"plain": [-0.1, 0.2, 0.0], "uw": [0.0, 0.1, 0.1]}, CLUSTERS, tmp_path / "g.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == (tmp_path / "g.png").read_bytes()[:4] == PNG
