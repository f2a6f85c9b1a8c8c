"""Distributions whose ideal denoiser is known exactly.

A mixture of round Gaussians, x0 ~ Σ_j w_j N(c_j, h² I), seen through noise as x = alpha x0 + sigma n, has

    s² = alpha² h² + sigma²,    r_j ∝ w_j exp(-|x - alpha c_j|² / 2 s²),    m = Σ_j r_j c_j,
    E[x0 | x] = m + (alpha h² / s²) (x - alpha m)                                    (posterior mean)

With the crops of photographs as centres it is the ideal denoiser of their kernel-density estimate: a model
without training error, so that what a sampler does wrong is the sampler's doing.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import unknown_name

PREDICTIONS = ("epsilon", "sample", "v_prediction")


def _per_sample(value: float | Tensor, x: Tensor) -> Tensor:
    """A scalar or (B,) as float of x's precision, broadcastable to x."""
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    return value.reshape(-1, *[1] * (x.ndim - 1))


class GaussianMixture(nn.Module):
    """A mixture of round Gaussians and its posterior mean.

    Args:
        centres: (J, …), float; its dtype is the one that everything is computed in.
        bandwidth: h > 0, the standard deviation of every component.
        weights: (J,) positive, normalised here; equal by default.
        classes: (J,) integers, the class of each component, for class-conditional means.

    Raises:
        ValueError: centres that are not floats with a first dimension of at least 1, a bandwidth that is not
            positive, weights or classes that do not fit.
    """

    def __init__(
        self, centres: Tensor, bandwidth: float, weights: Tensor | None = None, classes: Tensor | None = None
    ):
        super().__init__()
        if not centres.is_floating_point() or centres.ndim < 2 or not len(centres):
            raise ValueError(
                f"centres must be floats of shape (J, …), got {tuple(centres.shape)} {centres.dtype}."
            )
        if not bandwidth > 0:
            raise ValueError(f"bandwidth must be positive, got {bandwidth}.")
        weights = torch.ones(len(centres)) if weights is None else weights
        if weights.shape != (len(centres),) or not bool((weights > 0).all()):
            raise ValueError(
                f"weights must be {len(centres)} positive numbers, got shape {tuple(weights.shape)}."
            )
        if classes is not None and (classes.shape != (len(centres),) or classes.is_floating_point()):
            raise ValueError(f"classes must be {len(centres)} integers, got shape {tuple(classes.shape)}.")
        self.bandwidth = float(bandwidth)
        self.shape = centres.shape[1:]
        self.centres: Tensor
        self.log_weights: Tensor
        self.classes: Tensor | None
        self.register_buffer("centres", centres.flatten(1))
        self.register_buffer(
            "log_weights", (weights.double() / weights.sum().double()).log().to(centres.dtype)
        )
        self.register_buffer("classes", classes)

    def posterior_mean(
        self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor, class_labels: Tensor | None = None
    ) -> Tensor:
        """E[x0 | x] for x = alpha x0 + sigma n.

        alpha = 1 is variance exploding (EDM), alpha = 1 - sigma flow matching.

        Args:
            x: (B, …).
            alpha: a number or (B,).
            sigma: a number or (B,), not negative.
            class_labels: (B,) the class that each image is of; a negative one means any.

        Returns:
            Shaped like x, in x's dtype.

        Raises:
            ValueError: labels for a mixture without classes, or of a class that no component has.
        """
        flat = x.flatten(1).to(self.centres.dtype)
        alpha, sigma = _per_sample(alpha, flat), _per_sample(sigma, flat)
        s2 = (alpha * self.bandwidth) ** 2 + sigma**2
        # |x - alpha c|² without the |x|² that all components share
        logits = (alpha * flat @ self.centres.T - 0.5 * alpha**2 * self.centres.square().sum(1)) / s2
        logits = logits + self.log_weights
        if class_labels is not None:
            if self.classes is None:
                raise ValueError("class_labels were given, but this mixture was built without classes.")
            wanted = class_labels.to(self.classes.device)[:, None]
            outside = (wanted >= 0) & (wanted != self.classes)
            if (empty := outside.all(1)).any():
                raise ValueError(f"This mixture has no component of class {int(wanted[empty][0])}.")
            logits = logits.masked_fill(outside, -torch.inf)
        m = logits.softmax(1) @ self.centres
        mean = m + alpha * self.bandwidth**2 / s2 * (flat - alpha * m)
        return mean.view_as(x).to(x.dtype)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, …) draws from the mixture."""
        which = torch.multinomial(
            self.log_weights.double().exp(), count, replacement=True, generator=generator
        )
        noise = torch.randn(count, self.centres.shape[1], generator=generator, dtype=self.centres.dtype).to(
            self.centres.device
        )
        return (self.centres[which] + self.bandwidth * noise).view(count, *self.shape)


class Prediction(NamedTuple):
    """What `ExactDenoiser` returns; the field has the name that pipelines read."""

    sample: Tensor


class ExactDenoiser(nn.Module):
    """The ideal denoiser of a mixture behind the face of a `UNet2DModel`, for unmodified pipelines.

    Args:
        mixture: over images (C, H, W).
        alphas_cumprod: (T,) the schedule's ᾱ; timesteps between its entries are interpolated in ᾱ.
        prediction_type: "epsilon", "sample" or "v_prediction".

    Raises:
        ValueError: another prediction type; a mixture that is not over images.
    """

    def __init__(self, mixture: GaussianMixture, alphas_cumprod: Tensor, prediction_type: str = "epsilon"):
        super().__init__()
        if prediction_type not in PREDICTIONS:
            raise unknown_name("prediction_type", prediction_type, PREDICTIONS)
        if len(mixture.shape) != 3:
            raise ValueError(f"a denoiser of images needs centres (J, C, H, W), got {tuple(mixture.shape)}.")
        channels, height, width = mixture.shape
        self.mixture = mixture
        self.alphas_cumprod: Tensor
        self.register_buffer("alphas_cumprod", alphas_cumprod.double())
        size = height if height == width else (height, width)
        self.config = SimpleNamespace(
            sample_size=size, in_channels=channels, out_channels=channels, prediction_type=prediction_type
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.mixture.centres.dtype

    @property
    def device(self) -> torch.device:
        return self.mixture.centres.device

    def alpha_bar(self, timestep: float | Tensor) -> Tensor:
        """ᾱ at integer or fractional timesteps, float64, shaped like `timestep`."""
        t = torch.as_tensor(timestep, device=self.device).double().clamp(0, len(self.alphas_cumprod) - 1)
        below = t.floor().long()
        above = (below + 1).clamp(max=len(self.alphas_cumprod) - 1)
        return torch.lerp(self.alphas_cumprod[below], self.alphas_cumprod[above], t - below)

    def forward(
        self,
        sample: Tensor,
        timestep: float | Tensor,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The prediction for states (B, C, H, W) at one timestep or at (B,) of them."""
        abar = self.alpha_bar(timestep).reshape(-1)
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        x0 = self.mixture.posterior_mean(sample, alpha, sigma, class_labels)
        alpha, sigma = _per_sample(alpha, sample), _per_sample(sigma, sample)
        epsilon = (sample - alpha * x0) / sigma
        kind = self.config.prediction_type
        output = x0 if kind == "sample" else epsilon if kind == "epsilon" else alpha * epsilon - sigma * x0
        return Prediction(output) if return_dict else (output,)
