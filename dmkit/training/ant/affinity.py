"""How alike the tasks of different timesteps are: the task affinity of ANT (Go et al. 2023, section 3).

    A(i, j) = mean over checkpoints of cos(∇L_i, ∇L_j),    L_i: the loss at the i-th group of timesteps

Gradients are summed over the same images with the same noise for every group. They are kept as count
sketches, linear random projections s with E<s(g), s(h)> = <g, h>, so that S groups need S x 4096 numbers and
not S networks. The images come in two halves, 1 and 2, and

    <g_i, g_j> ≈ ½ (<g_i¹, g_j²> + <g_i², g_j¹>)

is free of the noise of the images, which a single batch would leave in |g_i|² only, so that the diagonal
would stand out. Measured cosines are clipped to [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from ..._files import atomic_file, load_tensors
from ...errors import FileFormatError
from ..randomness import Draws
from ..rules.flat import flat_gradient
from ..trainer import Step

if TYPE_CHECKING:
    from ..denoising import DenoisingTask


@dataclass(frozen=True)
class Affinity:
    """Cosines between the gradients of groups of timesteps.

    Attributes:
        cosines: (S, S) float64, symmetric, in [-1, 1].
        timesteps: (S,) float64 rising, the middle of each group.
        num_timesteps: T.
    """

    cosines: np.ndarray
    timesteps: np.ndarray
    num_timesteps: int

    def full(self) -> np.ndarray:
        """(T, T) by bilinear interpolation, constant beyond the outer groups."""
        t = np.arange(self.num_timesteps)
        across = np.stack([np.interp(t, self.timesteps, row) for row in self.cosines])
        return np.stack([np.interp(t, self.timesteps, column) for column in across.T], axis=1)

    def save(self, path: Path) -> None:
        """Writes safetensors."""
        tensors = {
            "cosines": torch.from_numpy(self.cosines.copy()),
            "timesteps": torch.from_numpy(self.timesteps.copy()),
            "num_timesteps": torch.tensor(self.num_timesteps),
        }
        with atomic_file(path) as draft:
            save_file(tensors, str(draft))

    @classmethod
    def load(cls, path: Path) -> Affinity:
        """
        Raises:
            FileFormatError: a file that `save` did not write.
        """
        tensors = load_tensors(path)
        try:
            found = cls(
                tensors["cosines"].numpy(), tensors["timesteps"].numpy(), int(tensors["num_timesteps"])
            )
        except KeyError as error:
            raise FileFormatError(f"{path} does not hold an affinity: there is no {error}.") from error
        if found.cosines.shape != 2 * found.timesteps.shape:
            raise FileFormatError(
                f"{path} holds cosines {found.cosines.shape} of {found.timesteps.shape} groups."
            )
        return found

    @staticmethod
    def mean(matrices: Iterable[Affinity]) -> Affinity:
        """The mean over checkpoints.

        Raises:
            ValueError: none, or of different groups of timesteps.
        """
        found = list(matrices)
        if not found or any(not np.array_equal(a.timesteps, found[0].timesteps) for a in found):
            raise ValueError("Expected affinities of the same groups of timesteps, at least one.")
        cosines = np.mean([a.cosines for a in found], axis=0)
        return Affinity(cosines, found[0].timesteps, found[0].num_timesteps)


class CountSketch:
    """A linear map of vectors (P,) to (size,) that keeps inner products in the mean: each number is added,
    with a random sign, to a random place. The error of a cosine is about 1 / √size.

    Args:
        length: P.
        size: of the sketch.
        seed: of places and signs.
    """

    def __init__(self, length: int, size: int, seed: int = 0, device: torch.device | str = "cpu"):
        generator = torch.Generator().manual_seed(seed)
        self.size = size
        self._places = torch.randint(size, (length,), generator=generator).to(device)
        signs = torch.randint(2, (length,), generator=generator, dtype=torch.int8).to(device)
        self._signs = signs.mul_(2).sub_(1)

    def __call__(self, vector: Tensor) -> Tensor:
        return vector.new_zeros(self.size).index_add(0, self._places, vector * self._signs)


def cosines_of_halves(first: Tensor, second: Tensor) -> np.ndarray:
    """Cosines (S, S) between S means, of which two independent estimates are known.

    Args:
        first: (S, D).
        second: (S, D).

    Returns:
        In [-1, 1], float64. A row whose squared length cannot be told from zero is 0, but for its diagonal.
    """
    inner = (first.double() @ second.double().T).numpy()
    inner = (inner + inner.T) / 2
    squares = np.diag(inner)
    lengths = np.sqrt(np.where(squares > 0, squares, np.inf))
    cosines = np.clip(inner / np.outer(lengths, lengths), -1, 1)
    np.fill_diagonal(cosines, 1)
    return cosines


def task_affinity(
    task: DenoisingTask,
    batches: Iterable[Mapping[str, Any]],
    *,
    group_size: int = 10,
    sketch_size: int = 4096,
    seed: int = 0,
) -> Affinity:
    """Measures the affinity of one checkpoint, by a forward and a backward pass of each batch in each group.

    Args:
        task: with the network to measure, in the mode (train or eval) that is wanted.
        batches: at least two, as the task is trained on; the even ones are the first half.
        group_size: timesteps in a group; those of a batch are spread over the group.
        sketch_size: D.
        seed: of noise and sketch.

    Raises:
        ValueError: fewer than two batches, or a group size outside [1, T].
    """
    total = task.scheduler.config.num_train_timesteps
    if not 1 <= group_size <= total:
        raise ValueError(f"A group holds 1 to {total} timesteps, not {group_size}.")
    batches = list(batches)
    if len(batches) < 2:
        raise ValueError(f"Two halves need at least two batches, not {len(batches)}.")
    parameters = [p for module in task.modules.values() for p in module.parameters() if p.requires_grad]
    device = parameters[0].device
    sketch = CountSketch(sum(p.numel() for p in parameters), sketch_size, seed, device)
    firsts = range(0, total, group_size)
    halves = torch.zeros(2, len(firsts), sketch_size)
    for group, first in enumerate(tqdm(firsts, unit="group", mininterval=5.0)):
        size = min(group_size, total - first)
        for number, batch in enumerate(batches):
            count = len(next(iter(batch.values())))
            timesteps = first + torch.arange(count, device=device) * size // count
            # The same draws in every group: what differs is the noise level alone.
            step = Step(0, "main", Draws(seed, number, rank=0, world=1, device=device))
            torch.manual_seed(seed + number)  # dropout
            loss = task.errors(task.examples(batch, step, timesteps)).mean()
            halves[number % 2, group] += sketch(flat_gradient(loss, parameters)[0]).float().cpu()
    middles = np.array([first + (min(group_size, total - first) - 1) / 2 for first in firsts])
    return Affinity(cosines_of_halves(halves[0], halves[1]), middles, total)
