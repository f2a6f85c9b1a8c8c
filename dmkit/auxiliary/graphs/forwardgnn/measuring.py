"""What a backward pass has to wait for in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def saved_for_backward() -> Iterator[dict[str, int]]:
    """Counts what autograd keeps between the forward and the backward pass of what is computed inside.

    Yields:
        {"bytes": those of all tensors kept so far, each piece of memory once}.
    """
    seen: dict[int, int] = {}
    count = {"bytes": 0}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        count["bytes"] = sum(seen.values())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield count
