"""Training only a part of a network: an adapter, or some of the layers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from .._files import load_tensors

FILE = "part.safetensors"


class TrainedPart(nn.Module):
    """A module whose parameters are some of a network's, and whose forward pass is the network's.

    The trainer sees, checkpoints and averages only these parameters. The network itself is not a submodule:
    it stays in the mode (train or eval) and on the device where its owner puts it.

    Args:
        network: what `forward` calls; None for a part that was only read from a file.
        parameters: some of the network's parameters by name.

    Raises:
        ValueError: no parameter at all.
    """

    def __init__(self, network: nn.Module | None, parameters: Mapping[str, nn.Parameter]):
        super().__init__()
        if not parameters:
            raise ValueError("There is no parameter to train.")
        self._network = (network,)  # in a tuple, PyTorch does not register it
        for name in sorted(parameters):
            self.register_parameter(name.replace(".", "/"), parameters[name])  # PyTorch allows no dots

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        (network,) = self._network
        if network is None:
            raise TypeError("This part was read from a file and has no network to run.")
        return network(*args, **kwargs)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes the parameters alone."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        values = {
            name.replace("/", "."): p.detach().cpu().contiguous() for name, p in self.named_parameters()
        }
        save_file(values, str(Path(folder) / FILE))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, **_: Any) -> TrainedPart:
        """The parameters that `save_pretrained` wrote, without a network.

        Raises:
            FileFormatError: a missing or truncated file.
        """
        values = load_tensors(Path(folder) / FILE)
        return cls(None, {name: nn.Parameter(value) for name, value in values.items()})
