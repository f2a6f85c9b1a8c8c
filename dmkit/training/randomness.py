"""Data order and random draws as pure functions of (seed, step).

Nothing here has a state that a checkpoint would have to carry, so a resumed run is the same run; and every
draw is made for the whole batch of all processes and then sliced, so that the number of processes does not
change it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def derive_seed(*key: int) -> int:
    """One well-mixed 63-bit seed from a tuple of non-negative integers."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


@dataclass(frozen=True)
class DataOrder:
    """An endless stream of example indices: one seeded permutation of the data set after another.

    Global batch `m` of size `batch_size` is the stream's positions `[m * batch_size, (m + 1) * batch_size)`;
    process `rank` of `world` takes its contiguous slice.

    Args:
        length: number of examples, at least 1.
        batch_size: examples in a global batch (all processes together), divisible by `world`.
        seed: seed of the permutations.
    """

    length: int
    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError("The training data set is empty.")
        if self.batch_size % self.world:
            raise ValueError(f"A batch of {self.batch_size} cannot be split over {self.world} processes.")

    def _permutation(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        return torch.randperm(self.length, generator=generator)

    def batches(self, start: int = 0) -> Iterator[list[int]]:
        """This process's index lists, from global batch `start` on, for ever."""
        local = self.batch_size // self.world
        epoch, permutation = -1, torch.empty(0)
        batch = start
        while True:
            indices: list[int] = []
            position = batch * self.batch_size + self.rank * local
            end = position + local
            while position < end:  # an epoch may end inside a batch
                if position // self.length != epoch:
                    epoch = position // self.length
                    permutation = self._permutation(epoch)
                here = permutation[position % self.length :][: end - position].tolist()
                indices += here
                position += len(here)
            yield indices
            batch += 1


class Draws:
    """The random numbers of one micro-batch.

    Every method takes this process's shape, draws for all processes, and returns this process's rows; the
    draws of a step are therefore the same for one process and for many with the same global batch.
    """

    def __init__(
        self, seed: int, micro_step: int, *, rank: int, world: int, device: torch.device | str = "cpu"
    ):
        self._rank, self._world, self._device = rank, world, torch.device(device)
        self.generator = torch.Generator(device=self._device)
        self.generator.manual_seed(derive_seed(seed, micro_step, 1))

    def _mine(self, shape: tuple[int, ...], draw) -> Tensor:
        rows = shape[0]
        everyone = draw((rows * self._world, *shape[1:]))
        return everyone[self._rank * rows : (self._rank + 1) * rows]

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal float32 numbers."""
        return self._mine(
            shape,
            lambda s: torch.randn(s, generator=self.generator, device=self._device, dtype=torch.float32),
        )

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Float32 numbers in [0, 1)."""
        return self._mine(
            shape, lambda s: torch.rand(s, generator=self.generator, device=self._device, dtype=torch.float32)
        )

    def integers(self, high: int, shape: tuple[int, ...]) -> Tensor:
        """int64 numbers in [0, high)."""
        return self._mine(
            shape, lambda s: torch.randint(high, s, generator=self.generator, device=self._device)
        )
