"""Negative prompts for pipelines that run without classifier-free guidance: one- and few-step models, for
which Diffusers ignores `negative_prompt`. The equations are in `dmkit.attention.steering`.

    nasa = NASA(pipe, scale=0.2)
    image = nasa("a field", negative_prompt="cow", num_inference_steps=1).images[0]

is short for

    with nasa.enabled():
        image = pipe(**nasa.encode("a field", "cow"), guidance_scale=1, num_inference_steps=1).images[0]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.layers import SteeredLayers
from ..attention.steering import Steering, checked_scale, join_tokens
from .encoding import encode_texts, has_guidance

Prompts = str | Sequence[str]
# A ControlNet reads the same text as the denoiser.
MODELS = ("unet", "transformer", "controlnet")
# Arguments of a pipeline's call that say how its texts are encoded.
TEXT_ARGUMENTS = (
    "prompt_2",
    "prompt_3",
    "negative_prompt_2",
    "negative_prompt_3",
    "clip_skip",
    "max_sequence_length",
    "clean_caption",
)


@dataclass
class _Rows:
    """What `encode` made: B prompts, n images of each, and an unsteered half before them if guided."""

    steered: list[bool]
    images: int
    guided: bool
    device: torch.device


class NASA:
    """A text-to-image pipeline with negative prompts in its attention, at no extra call of the denoiser.

    For pipelines that encode text as Stable Diffusion 1/2, SDXL, LCM or PixArt do; experimental: SD3, Flux.
    A ControlNet of the pipeline is steered too. Outside of calls, of `enabled`, and of `enable` … `disable`
    the pipeline is as it was.

    Args:
        pipe: the pipeline; its denoiser may be compiled and may have LoRA or other injected layers.
        scale: how far away from the negative prompt: α of NASA, φ of NAG; a number, or one for each prompt. 0
            is the plain pipeline. A negative number adds the concept, with a warning.
        mode: `nasa` or `nag`.
        tau: NAG's bound on how much longer a steered answer may be, at least 1.
        blend: NAG's part of the steered answer, in (0, 1].
        allow_cfg: allow a `guidance_scale` above 1: guidance away from the empty prompt, with its half of the
            batch not steered.

    Raises:
        ValueError: a pipeline without text, a scale that is not finite, or as `SteeredLayers`.
    """

    def __init__(
        self,
        pipe: Any,
        scale: float | Sequence[float] | Tensor,
        *,
        mode: str = "nasa",
        tau: float = 2.5,
        blend: float = 0.375,
        allow_cfg: bool = False,
    ):
        self.pipe, self.allow_cfg = pipe, allow_cfg
        self.steering = Steering(mode=mode, tau=tau, blend=blend)
        self._scale = checked_scale(scale)
        self._rows: _Rows | None = None
        self._on: list[SteeredLayers] = []
        self._find_layers()  # says at once what cannot be steered

    def _find_layers(self) -> list[SteeredLayers]:
        models = [getattr(self.pipe, name, None) for name in MODELS]
        found = [SteeredLayers(m, self.steering) for m in models if isinstance(m, nn.Module)]
        if not found or not hasattr(self.pipe, "encode_prompt"):
            raise ValueError(f"{type(self.pipe).__name__} has no denoiser that reads a prompt.")
        return found

    @property
    def scale(self) -> float | Tensor:
        return self._scale

    @scale.setter
    def scale(self, scale: float | Sequence[float] | Tensor) -> None:
        self._scale = checked_scale(scale)
        self._spread_scale()

    def enable(self) -> None:
        """Steers from here on, until `disable`.

        Raises:
            RuntimeError: it is on.
            ValueError: as `SteeredLayers`.
        """
        if self._on:
            raise RuntimeError("NASA is on already.")
        self._on = self._find_layers()
        for layers in self._on:
            layers.install()

    def disable(self) -> None:
        """Gives the attention layers their own processors back, the same objects.

        Raises:
            RuntimeError: it is not on; or a layer had lost its steering meanwhile, and images since are not
                steered. The layers are restored all the same.
        """
        if not self._on:
            raise RuntimeError("NASA is not on.")
        try:
            for layers in self._on:
                layers.check()
        finally:
            self._restore()

    def _restore(self) -> None:
        for layers in self._on:
            layers.remove()
        self._on = []

    @contextmanager
    def enabled(self) -> Iterator[NASA]:
        """Steers within a `with` block.

        Raises:
            RuntimeError, ValueError: as `enable` and `disable`.
        """
        self.enable()
        try:
            yield self
            self.disable()
        finally:
            self._restore()

    def encode(
        self,
        prompt: Prompts,
        negative_prompt: Prompts,
        *,
        num_images_per_prompt: int = 1,
        guided: bool = False,
        **settings: Any,
    ) -> dict[str, Tensor | None]:
        """Embeddings of prompts with their negative prompts behind, as arguments of the pipeline.

        The steered layers expect what was made last.

        Args:
            prompt: a text, or B.
            negative_prompt: one for all prompts, or B; an empty one steers nothing.
            num_images_per_prompt: n rows for each prompt; the pipeline's own argument stays 1.
            guided: for a `guidance_scale` above 1: add the embeddings of the empty prompt.
            settings: for the pipeline's `encode_prompt` (`clip_skip`, `max_sequence_length`, `prompt_2`,
                `negative_prompt_2`, …).

        Returns:
            `prompt_embeds` (B·n, L⁺ + L⁻, C), and where the pipeline has them `prompt_attention_mask` and the
            prompt's `pooled_prompt_embeds`; with `guided` each as `negative_…` too, and `negative_prompt`,
            None.

        Raises:
            ValueError: numbers of prompts, negative prompts and scales that do not pair; `guided` for a
                pipeline without guidance.
            TypeError: a setting that `encode_prompt` does not have.
        """
        prompts, negatives = _listed(prompt), _listed(negative_prompt)
        if len(negatives) not in (1, len(prompts)):
            raise ValueError(f"{len(prompts)} prompts and {len(negatives)} negative prompts do not pair.")
        if isinstance(self._scale, Tensor) and len(self._scale) != len(prompts):
            raise ValueError(f"{len(self._scale)} scales and {len(prompts)} prompts do not pair.")
        of_prompt = {name: value for name, value in settings.items() if not name.startswith("negative_")}
        of_negative = {name: value for name, value in of_prompt.items() if not name.startswith("prompt_")}
        for name in settings.keys() - of_prompt.keys():
            of_negative[name.removeprefix("negative_")] = settings[name]
        towards = encode_texts(self.pipe, prompts, guided, **of_prompt)
        away = encode_texts(self.pipe, negatives, False, **of_negative)
        joined: dict[str, Any] = {}
        for name, value in towards.items():
            if not name.endswith("pooled_prompt_embeds"):
                # The unsteered half needs as many tokens; it does not answer to the ones behind.
                value = join_tokens(value, away[name.removeprefix("negative_")])
            joined[name] = value.repeat_interleave(num_images_per_prompt, dim=0)
        steered = [bool(text.strip()) for text in negatives]
        if len(steered) < len(prompts):
            steered *= len(prompts)
        self._rows = _Rows(steered, num_images_per_prompt, guided, joined["prompt_embeds"].device)
        self._spread_scale()
        self.steering.num_prompt_tokens = towards["prompt_embeds"].shape[1]
        self.steering.num_negative_tokens = away["prompt_embeds"].shape[1]
        self.steering.batch_size = len(joined["prompt_embeds"]) * (2 if guided else 1)
        # PixArt's default is a text, which it does not take beside embeddings.
        return {**joined, "negative_prompt": None} if guided else joined

    def _spread_scale(self) -> None:
        """The scale of each row of the batch; one number where all have the same."""
        if (rows := self._rows) is None:
            return
        if isinstance(self._scale, float) and all(rows.steered) and not rows.guided:
            self.steering.scale = self._scale
            return
        if isinstance(self._scale, Tensor) and len(self._scale) != len(rows.steered):
            self.steering.scale = self._scale  # for other prompts, still to be encoded; these cannot run
            return
        scales = torch.tensor(rows.steered).to(rows.device) * torch.as_tensor(self._scale, device=rows.device)
        scales = scales.float().repeat_interleave(rows.images)
        # Pipelines put the unconditional half first.
        self.steering.scale = torch.cat([torch.zeros_like(scales), scales]) if rows.guided else scales

    def __call__(self, prompt: Prompts, negative_prompt: Prompts | None = None, **arguments: Any) -> Any:
        """Runs the pipeline, steered away from a negative prompt.

        Args:
            prompt: a text, or B.
            negative_prompt: one for all prompts, or B. Without one the pipeline runs as it is.
            arguments: the pipeline's. `guidance_scale` is 1 where not given, which is no guidance (Flux and
                consistency models keep their own default: for them it is another thing).

        Returns:
            What the pipeline returns.

        Raises:
            ValueError: a `guidance_scale` above 1 without `allow_cfg`; as `encode` and `enable`.
            RuntimeError: a layer lost its steering meanwhile.
        """
        guided = has_guidance(self.pipe) and arguments.setdefault("guidance_scale", 1.0) > 1
        if not self._on and not any(text.strip() for text in _listed(negative_prompt or "")):
            return self.pipe(prompt, **arguments)
        if guided and not self.allow_cfg:
            raise ValueError(
                f"guidance_scale={arguments['guidance_scale']} is classifier-free guidance, which takes a "
                "negative prompt by itself. For both at once: NASA(..., allow_cfg=True)."
            )
        settings = {name: arguments.pop(name) for name in TEXT_ARGUMENTS if name in arguments}
        # The weight of a LoRA, which in the text encoder is another argument.
        adapters = arguments.get("cross_attention_kwargs") or arguments.get("joint_attention_kwargs") or {}
        if "scale" in adapters:
            settings["lora_scale"] = adapters["scale"]
        images = arguments.pop("num_images_per_prompt", None) or 1
        embeddings = self.encode(
            prompt, negative_prompt or "", num_images_per_prompt=images, guided=guided, **settings
        )
        with nullcontext() if self._on else self.enabled():
            return self.pipe(**embeddings, **arguments)


def _listed(texts: Prompts) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)
