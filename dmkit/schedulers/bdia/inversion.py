"""`invert` and `reconstruct`: exact inversion through an unmodified Diffusers pipeline.

They run the pipeline as any user would, with a scheduler of ours in the place of its own (`calling`).

An inversion follows the model's ODE: `clip_sample` and `thresholding`, which are no part of it, are off here
whatever the pipeline's scheduler says.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from diffusers import DDIMInverseScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

from ...errors import unknown_name
from .calling import call, denoiser
from .ddim import BDIADDIMInverseScheduler, BDIADDIMScheduler
from .edict import EDICTInverseScheduler, EDICTScheduler
from .flow import BDIAFlowMatchEulerDiscreteInverseScheduler, BDIAFlowMatchEulerDiscreteScheduler
from .images import decode, encode
from .pair import BDIALatentPair, fingerprint
from .trajectory import StatePair, States, Watch, check_steps
from .vp import refuse_noise

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

METHODS = ("bdia", "edict", "ddim")
_MODEL_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
)
"""The entries of a scheduler's configuration that belong to the model, not to the sampler."""


class Regenerated(NamedTuple):
    """What running a pair back gives.

    Attributes:
        latents: [B, C, H, W] float64, the state z_0 itself. Compare this with what was inverted (`encode`)
            for the inversion's own error.
        image: [B, C, H, W] in the model's range [-1, 1]: the decoded latents, or the latents of a pixel-space
            model. Its error includes the autoencoder's, which no inversion can undo.
    """

    latents: torch.Tensor
    image: torch.Tensor


class PlainDDIMInverseScheduler(DDIMInverseScheduler):
    """Diffusers' own DDIM inversion, the approximate baseline, behind the surface of the exact schedulers."""

    timesteps: torch.Tensor
    _num_levels: int | None = None

    def set_start(self, end: torch.Tensor, *, num_levels: int | None = None) -> torch.Tensor:
        """The run covers the lowest `num_levels` levels; returns the state to start from."""
        self._num_levels = num_levels
        return end.contiguous()

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Lays out the run, t_1 … t_K."""
        super().set_timesteps(num_inference_steps, device=device)
        self.timesteps = self.timesteps[: self._num_levels]

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = False,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The parent's step, with the arguments that unconditional pipelines pass."""
        refuse_noise(eta)
        output = super().step(model_output, timestep, sample)
        self._last = output.prev_sample
        return output if return_dict else (output.prev_sample, output.pred_original_sample)

    def pop_pair(self) -> StatePair:
        """(z_K, None, timesteps): plain DDIM inversion has no second state."""
        return StatePair(self._last.double().contiguous(), None, self.timesteps.flip(0))


def invert(
    pipe: DiffusionPipeline,
    image: torch.Tensor | PIL.Image.Image | Sequence[PIL.Image.Image] | None = None,
    prompt: str | list[str] | None = None,
    *,
    latents: torch.Tensor | None = None,
    num_inference_steps: int = 50,
    gamma: float = 1.0,
    guidance_scale: float = 1.0,
    strength: float = 1.0,
    method: str = "bdia",
    reversible: str = "algebraic",
    max_amplification: float = 1e3,
    **pipe_kwargs: Any,
) -> BDIALatentPair:
    """Finds the noise code of an image, in as many network calls as there are levels (EDICT: twice as many).

    Args:
        pipe: any pipeline whose scheduler is of the DDIM/DDPM family or flow matching.
        image: [B, C, H, W] in [-1, 1], or PIL images; encoded first where the pipeline has an autoencoder.
        prompt: what the image shows; text-to-image pipelines only. One prompt serves the whole batch.
        latents: [B, …] the state z_0 itself instead of an image, at any precision: it is kept in float64.
        num_inference_steps: N >= 2 levels of the grid.
        gamma: in (0, 1]; 0.92 … 1 for inversion. Small values make rounding explode like gamma^-N and are
        refused.
        guidance_scale: guidance on the way up. 0 … 1 keeps the code Gaussian; any value is inverted exactly.
        strength: in (0, 1]; the lowest int(N strength) levels are covered, as in image-to-image pipelines.
        method: `"bdia"`, or a baseline: `"edict"` (exact, twice the calls) or `"ddim"` (approximate).
        reversible: `"bitwise"` for bit-exact inversion (BDIA with gamma = 1).
        max_amplification: the largest gamma^-N that is accepted.
        pipe_kwargs: passed to the pipeline; `reconstruct` and `edit` must be given them again.

    Returns:
        The pair, on the pipeline's device, in float64.

    Raises:
        ValueError: bad arguments, an image that is not finite, in range or of the model's shape, or a
            scheduler that cannot be inverted.
        RuntimeError: something changed the latents on the way (a callback), so the pair would not run back.
    """
    if (image is None) == (latents is None):
        raise ValueError("Give either image or latents.")
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie in (0, 1], got {strength!r}.")
    check_steps(num_inference_steps)
    num_levels = min(int(num_inference_steps * strength), num_inference_steps)
    if num_levels < 2:
        raise ValueError(
            f"strength={strength} of {num_inference_steps} steps covers {num_levels} level(s), fewer than 2."
        )
    z_0 = encode(pipe, image) if latents is None else latents
    if not bool(torch.isfinite(z_0).all()):
        raise ValueError("The image or latents hold NaN or infinite values.")
    options = {"gamma": gamma, "reversible": reversible, "max_amplification": max_amplification}
    sampler, inverse = _schedulers(pipe, method, options)
    start = inverse.set_start(z_0, num_levels=num_levels)
    end, before, timesteps = call(
        pipe, inverse, start, num_inference_steps, prompt, guidance_scale, pipe_kwargs
    )
    model = denoiser(pipe)
    return BDIALatentPair(
        z_T=end,
        z_T_prev=before,
        timesteps=timesteps.cpu(),
        method=method,
        num_inference_steps=num_inference_steps,
        strength=strength,
        gamma=gamma,
        guidance_scale=guidance_scale,
        prompt=prompt,
        scheduler_config=_plain(sampler.config),
        model_fingerprint=fingerprint(model),
        model_dtype=str(model.dtype).removeprefix("torch."),
    )


def reconstruct(
    pipe: DiffusionPipeline, pair: BDIALatentPair, *, watch: Watch | None = None, **pipe_kwargs: Any
) -> Regenerated:
    """Runs a pair back under the conditions it was made with: the image that was inverted.

    BDIA takes one network call less than the inversion, EDICT and DDIM as many.

    Args:
        pipe: the pipeline the pair was made with.
        pair: from `invert`.
        watch: is shown the states after each network call.
        pipe_kwargs: what `invert` was given.

    Raises:
        ValueError: the pair was made with another model, noise schedule or shape, or lacks its second state.
    """
    made_with, here = pair.model_fingerprint, fingerprint(denoiser(pipe))
    if made_with != here:
        raise ValueError(
            f"The pair was made with model {made_with}, this pipeline's is {here}: not reversible."
        )
    return run_back(pipe, pair, pair.prompt, pair.guidance_scale, pipe_kwargs, watch)


def run_back(
    pipe: DiffusionPipeline,
    pair: BDIALatentPair,
    prompt: str | list[str] | None,
    guidance_scale: float,
    pipe_kwargs: dict[str, Any],
    watch: Watch | None = None,
) -> Regenerated:
    """Runs a pair back under any prompt and guidance; what `reconstruct` and `edit` share.

    Raises:
        ValueError: the pair was made with another noise schedule or shape, or lacks its second state.
    """
    if pair.z_T_prev is None and pair.method != "ddim":
        raise ValueError("The pair lacks z_T_prev: z_T alone does not bring the image back.")
    sampler = _sampler(pipe, pair, watch)
    start = sampler.set_start(pair.z_T, pair.z_T_prev, pair.timesteps)
    latents = call(pipe, sampler, start, pair.num_inference_steps, prompt, guidance_scale, pipe_kwargs).end
    return Regenerated(latents, decode(pipe, latents))


class _Enough(Exception):  # noqa: N818
    """Ends a pipeline's run after its first network call."""


def first_step(
    pipe: DiffusionPipeline,
    pair: BDIALatentPair,
    prompt: str | list[str] | None,
    guidance_scale: float,
    pipe_kwargs: dict[str, Any],
) -> torch.Tensor:
    """F_N(N-1): where a plain DDIM step from z_N leads under any prompt and guidance, for one network call.

    Returns:
        [B, C, H, W] float64.

    Raises:
        ValueError: as `run_back`.
    """

    def stop(_: int, states: States) -> States:
        raise _Enough(states[0])

    sampler = _sampler(pipe, pair, stop)
    start = sampler.set_start(pair.z_T, None, pair.timesteps)
    try:
        call(pipe, sampler, start, pair.num_inference_steps, prompt, guidance_scale, pipe_kwargs)
    except _Enough as enough:
        return enough.args[0]
    raise AssertionError("The pipeline made no step.")


def _sampler(pipe: DiffusionPipeline, pair: BDIALatentPair, watch: Watch | None) -> Any:
    """The sampler that runs the pair back, once the pipeline's schedule is the one that it was made with."""
    for key in _MODEL_KEYS:
        made_with, here = pair.scheduler_config.get(key), _plain(pipe.scheduler.config).get(key)
        if key in pair.scheduler_config and key in pipe.scheduler.config and made_with != here:
            raise ValueError(
                f"The pair was made with {key}={made_with!r}, this pipeline's scheduler has {here!r}."
            )
    dtype = str(denoiser(pipe).dtype).removeprefix("torch.")
    if dtype != pair.model_dtype:
        warnings.warn(
            f"The pair was made in {pair.model_dtype}, the model is in {dtype}: not exact.", stacklevel=4
        )
    sampler_class, _ = _classes(pair.method, "shift" in pair.scheduler_config)
    sampler = sampler_class.from_config(pair.scheduler_config)
    sampler.watch = watch
    return sampler


def _classes(method: str, flow: bool) -> tuple[Any, Any]:
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if flow:
        if method != "bdia":
            raise ValueError(f"method={method!r} is not defined for flow-matching models; use 'bdia'.")
        return BDIAFlowMatchEulerDiscreteScheduler, BDIAFlowMatchEulerDiscreteInverseScheduler
    return {
        "bdia": (BDIADDIMScheduler, BDIADDIMInverseScheduler),
        "edict": (EDICTScheduler, EDICTInverseScheduler),
        "ddim": (BDIADDIMScheduler, PlainDDIMInverseScheduler),
    }[method]


def _schedulers(pipe: DiffusionPipeline, method: str, options: dict[str, Any]) -> tuple[Any, Any]:
    """(sampler, its inverse) on the noise schedule of the pipeline's own scheduler."""
    config = dict(pipe.scheduler.config)
    flow = "shift" in config
    if not flow and "beta_start" not in config:
        raise ValueError(
            f"{type(pipe.scheduler).__name__} cannot be inverted: it is neither VP nor flow matching."
        )
    sampler_class, inverse_class = _classes(method, flow)
    if method != "bdia" and (options["reversible"] != "algebraic"):
        raise ValueError(
            f"reversible={options['reversible']!r} is BDIA's; method={method!r} has no such mode."
        )
    if method == "ddim":
        options = {**options, "gamma": 0.0}  # the sampler at gamma = 0 is DDIM
    if method == "edict":
        options = {}
    off = {} if flow else {"clip_sample": False, "thresholding": False}
    sampler = _from_known(sampler_class, config, {**off, **options})
    return sampler, _from_known(inverse_class, config, {**off, **(options if method == "bdia" else {})})


def _from_known(scheduler_class: Any, config: dict[str, Any], changes: dict[str, Any]) -> Any:
    """A scheduler from what it knows of another one's configuration, without warnings for the rest."""
    known = inspect.signature(scheduler_class.__init__).parameters
    config = {key: value for key, value in {**config, **changes}.items() if key in known}
    return scheduler_class.from_config(config)


def _plain(config: Any) -> dict[str, Any]:
    """A scheduler's configuration as JSON has it."""
    kept = {key: value for key, value in dict(config).items() if not key.startswith("_")}
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in kept.items()}
