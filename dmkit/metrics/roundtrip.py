"""How far a reconstruction is from its original."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import MissingExtraError


def _difference(returned: Tensor, original: Tensor) -> Tensor:
    if returned.shape != original.shape or not returned.numel():
        raise ValueError(f"Shapes {tuple(returned.shape)} and {tuple(original.shape)} do not compare.")
    if not (returned.is_floating_point() and original.is_floating_point()):
        raise TypeError(f"Expected floating-point tensors, not {returned.dtype} and {original.dtype}.")
    return returned.double() - original.double()


def max_abs_error(returned: Tensor, original: Tensor) -> float:
    """Largest absolute difference of two tensors of equal shape; NaN if either holds one.

    Raises:
        ValueError: other shapes, or nothing to compare.
        TypeError: not floating point.
    """
    return _difference(returned, original).abs().max().item()


def psnr(returned: Tensor, original: Tensor, data_range: float = 2.0) -> float:
    """Peak signal-to-noise ratio in dB, 10 log₁₀(range² / mean squared error), over all elements in float64.

    Infinite for equal tensors. Half precision resolves about 70 dB, float32 about 145 dB.

    Args:
        returned: any shape.
        original: the same shape.
        data_range: largest less smallest possible value; 2 for images in [-1, 1].

    Raises:
        ValueError: other shapes, or nothing to compare.
        TypeError: not floating point.
    """
    error = _difference(returned, original).square().mean()
    return (10 * torch.log10(data_range**2 / error)).item()


def ssim(returned: Tensor, original: Tensor, data_range: float = 2.0) -> float:
    """Mean structural similarity of images (N, C, H, W).

    After Wang et al. (2004), with the 11-pixel Gaussian window; borders are mirrored.

    Raises:
        ValueError: other shapes, or images smaller than the window.
        TypeError: not floating point.
        MissingExtraError: the extra "metrics" is not installed.
    """
    _difference(returned, original)
    if returned.ndim != 4 or min(returned.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs images (N, C, H, W) of 11 pixels or more, not {tuple(returned.shape)}.")
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise MissingExtraError("torchmetrics", "metrics") from error
    value = structural_similarity_index_measure(returned.double(), original.double(), data_range=data_range)
    return float(value)  # type: ignore[arg-type]


def pixel_error(returned: Tensor, original: Tensor, data_range: float = 2.0) -> dict[str, float]:
    """`max_abs` and `psnr_db` of tensors of any shape; see the functions of these names.

    Raises:
        ValueError, TypeError: as these functions.
    """
    return {"max_abs": max_abs_error(returned, original), "psnr_db": psnr(returned, original, data_range)}


def round_trip_error(returned: Tensor, original: Tensor, data_range: float = 2.0) -> dict[str, float]:
    """`max_abs`, `psnr_db` and `ssim` of reconstructed images (N, C, H, W); see the functions of these names.

    Raises:
        ValueError, TypeError, MissingExtraError: as these functions.
    """
    return {**pixel_error(returned, original, data_range), "ssim": ssim(returned, original, data_range)}
