"""SPMs on a pipeline: load, stack, weigh, let prompts open them, fuse, unload.

    spm = SPM(pipe)
    spm.load_spm_weights("snoopy.safetensors", adapter_name="snoopy")
    images = spm("a dog in the snow", guidance_scale=7.5).images

The pipeline stays the user's: an SPM is a LoRA of its denoiser, beside others that are never touched, and
`pipe.get_list_adapters()`, `pipe.set_adapters(…)` or `pipe.disable_lora()` mean what they always do. So does
`pipe.load_lora_weights(…)`, which leaves only its own LoRA switched on: `spm.set_adapters` brings the SPMs
back, and a call that finds them off warns. See `transport` for the equations of the permeability γ and
`gating` for what it does in a layer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import unknown_name
from ...sampling import accepted
from . import fusing
from .files import parse, read_spm, save_spm
from .gating import MODES, gated
from .layers import (
    active_adapters,
    adapter_layers,
    adapter_names,
    check_adapter_name,
    check_separate_qkv,
    is_fused,
    lora_layers,
    remove,
    set_active,
)
from .transport import Texts, content_tokens, permeability
from .weights import SPMMetadata, SPMWeights, from_model, into_model, resolve

logger = logging.getLogger(__name__)

# Arguments of a call that change what a prompt is encoded to, or bring its encoding along.
REENCODING = {"prompt_embeds", "clip_skip", "cross_attention_kwargs", "ip_adapter_image"}


@dataclass(frozen=True)
class _Loaded:
    """What SPM knows of an adapter; its weights are in the denoiser. `concepts` is None without targets."""

    metadata: SPMMetadata
    header: Mapping[str, str]
    concepts: Texts | None


class SPM:
    """Loads SPMs into a pipeline and calls it with facilitated transport.

    Args:
        pipe: a text-to-image pipeline with a `unet` or `transformer`, a `tokenizer` and `encode_prompt`:
            Stable Diffusion and SDXL, image-to-image and inpainting with them, PixArt.

    Raises:
        TypeError: a pipeline without these.
    """

    def __init__(self, pipe: Any):
        names = [name for name in ("unet", "transformer") if isinstance(getattr(pipe, name, None), nn.Module)]
        if not names or getattr(pipe, "tokenizer", None) is None or not hasattr(pipe, "encode_prompt"):
            raise TypeError(
                f"SPM needs a text-to-image pipeline with a denoiser, a tokenizer and encode_prompt; "
                f"{type(pipe).__name__} lacks some of them."
            )
        self.pipe = pipe
        self._component = names[0]
        self._loaded: dict[str, _Loaded] = {}
        # What was switched on here.
        self._on: list[str] = []
        # What is fused: the SPMs, and the weights as they were.
        self._fused: list[str] = []
        self._originals: dict[str, Tensor] = {}

    @property
    def denoiser(self) -> nn.Module:
        """The pipeline's `unet` or `transformer`."""
        return getattr(self.pipe, self._component)

    @property
    def metadata(self) -> dict[str, SPMMetadata]:
        """The loaded SPMs, by adapter name; what the pipeline has deleted itself is gone from here too."""
        present = adapter_names(self.denoiser)
        self._loaded = {name: spm for name, spm in self._loaded.items() if name in present}
        return {name: spm.metadata for name, spm in self._loaded.items()}

    # Loading and unloading

    def load_spm_weights(
        self,
        source: str | Path | Mapping[str, Tensor] | SPMWeights,
        adapter_name: str,
        targets: Sequence[str] | None = None,
    ) -> None:
        """Loads an SPM, active at weight 1 beside whatever is active. Costs one pass of the text encoder.

        Args:
            source: a `.safetensors` file in either layout of `files`, its tensors by key, or read weights.
            adapter_name: its name in the pipeline: letters, digits, `_` and `-`.
            targets: the concepts that open it, instead of those that the file names.

        Raises:
            FileFormatError: as `files.read_spm`, or it is for another architecture.
            ValueError: a name that is taken or not allowed, an empty target, fused weights or projections.
            TypeError: `targets` that are one string. In all cases the pipeline is as it was.
        """
        check_adapter_name(adapter_name)
        if isinstance(source, SPMWeights):
            weights = source
        else:
            weights = parse(source) if isinstance(source, Mapping) else read_spm(source)
        if targets is not None:
            weights = replace(weights, metadata=replace(weights.metadata, targets=targets))  # type: ignore[arg-type]
        resolved = resolve(weights, self.denoiser)
        concepts = self._encode(resolved.metadata.targets)[0] if resolved.metadata.targets else None
        into_model(self.denoiser, adapter_name, resolved)
        self._on.append(adapter_name)
        self._loaded[adapter_name] = _Loaded(resolved.metadata, resolved.header, concepts)

    def save_spm_weights(self, folder: str | Path, adapter_name: str, format: str = "kohya") -> Path:
        """Writes an SPM as `folder/adapter_name.safetensors`, in the denoiser's type; returns the path.

        Raises:
            ValueError: no SPM of this name, or an unknown format.
        """
        self._check_known(adapter_name)
        spm = self._loaded[adapter_name]
        weights = replace(from_model(self.denoiser, adapter_name, spm.metadata), header=spm.header)
        path = Path(folder) / f"{adapter_name}.safetensors"
        save_spm(weights, path, format)
        return path

    def delete_adapters(self, names: str | Sequence[str]) -> None:
        """Takes SPMs out of the pipeline.

        Raises:
            ValueError: no SPM of such a name; SPMs are fused.
        """
        names = [names] if isinstance(names, str) else list(names)
        self._check_known(*names)
        self._check_unfused("Deleting")
        for name in names:
            remove(self.denoiser, name)
            del self._loaded[name]

    def unload_spm_weights(self) -> None:
        """Takes all SPMs out, fused ones too: the pipeline computes what it did before them, to the bit."""
        self.unfuse()
        self.delete_adapters(list(self.metadata))

    # Weights

    def set_adapters(
        self, names: str | Sequence[str], adapter_weights: float | Sequence[float] | None = None
    ) -> None:
        """Switches on exactly these SPMs; the user's LoRAs stay as they are.

        Args:
            names: SPMs.
            adapter_weights: one weight for each (the paper's factor on γ; 2 for styles and nudity), or one
                for all; 1 by default. Without transport the adapter acts with it as a LoRA does.

        Raises:
            ValueError: no SPM of such a name, a name twice, another number of weights, one that is not
                finite, or SPMs that are fused.
        """
        names = [names] if isinstance(names, str) else list(names)
        self._check_known(*names)
        if len(set(names)) < len(names):
            raise ValueError(f"An SPM acts once: {names} names one twice.")
        if self._fused:
            raise ValueError("The SPMs are fused into the weights; unfuse first.")
        if adapter_weights is None or isinstance(adapter_weights, int | float):
            adapter_weights = [1.0 if adapter_weights is None else adapter_weights] * len(names)
        if len(adapter_weights) != len(names):
            raise ValueError(f"{len(names)} adapters need as many weights, not {len(adapter_weights)}.")
        if not all(math.isfinite(weight) for weight in adapter_weights):
            raise ValueError(f"Weights should be finite numbers, not {list(adapter_weights)}.")
        for name, weight in zip(names, adapter_weights, strict=True):
            for layer in adapter_layers(self.denoiser, name).values():
                layer.set_scale(name, weight)
        others = [name for name in active_adapters(self.denoiser) if name not in self._loaded]
        set_active(self.denoiser, [*others, *names])
        self._on = names

    def fuse(self) -> None:
        """Adds the active SPMs, at their weights, to the denoiser's own weights, until `unfuse`.

        Raises:
            ValueError: something is fused already, or adapters are switched off (`pipe.disable_lora()`).
        """
        self._check_unfused("Fusing again")
        if any(layer.disable_adapters for layer in lora_layers(self.denoiser).values()):
            raise ValueError("The adapters are switched off; enable them before fusing.")
        active = active_adapters(self.denoiser)
        names = [name for name in self.metadata if name in active]
        self._originals, self._fused = fusing.fuse(self.denoiser, names), names
        set_active(self.denoiser, [name for name in active if name not in names])

    def unfuse(self) -> None:
        """Takes back `fuse`, to the bit; the SPMs act as adapters again. Nothing happens if none is fused.

        Raises:
            ValueError: the pipeline has fused LoRAs in the meantime; its `unfuse_lora` comes first.
        """
        if not self._fused:
            return
        if is_fused(self.denoiser):
            raise ValueError("LoRAs were fused after the SPMs; call the pipeline's unfuse_lora() first.")
        fusing.unfuse(self.denoiser, self._originals)
        still = [name for name in self._fused if name in self.metadata]
        self._originals, self._fused = {}, []
        set_active(self.denoiser, [*active_adapters(self.denoiser), *still])

    # Prompts

    def permeability(
        self, prompts: str | Sequence[str], score: str = "clipcos_tokenuni"
    ) -> dict[str, Tensor]:
        """γ of each prompt (B,), by SPM: what `transport` would open it by, before the adapter's weight.

        Costs one pass of the text encoder.

        Raises:
            ValueError: an SPM without targets, an unknown score, or targets without tokens to match.
            TypeError: prompts that are no texts.
        """
        return self._permeability(list(self.metadata), prompts, score)[0]

    @contextmanager
    def transport(
        self,
        prompts: str | Sequence[str],
        num_images_per_prompt: int = 1,
        *,
        permeability: str = "linear",
        score: str = "clipcos_tokenuni",
    ) -> Iterator[dict[str, Tensor]]:
        """Inside, the active SPMs act by prompt in whatever calls the denoiser. Yields γ, by SPM.

        Args:
            prompts: P of them.
            num_images_per_prompt: images of each, in a row; the denoiser's batch is a multiple of all images,
                twice them with classifier-free guidance. Both halves are treated alike.
            permeability: an adapter of weight f acts with f γ (`linear`, the paper's equation 9) or (f γ)²
                (`squared`, what the released code computes for one SPM).
            score: see `transport.permeability`.

        Raises:
            ValueError: an SPM without targets, an unknown mode or score, SPMs or LoRAs that are fused, fused
                QKV projections.
        """
        gammas, _ = self._open(prompts, permeability, score)
        with gated(self.denoiser, gammas, num_images_per_prompt, permeability):
            yield gammas

    def _open(
        self, prompts: str | Sequence[str], mode: str, score: str
    ) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """γ of each prompt by active SPM, after all checks, and what the prompts were encoded to."""
        if mode not in MODES:
            raise unknown_name("permeability", mode, MODES)
        # A LoRA that the user has fused is no obstacle.
        merged = {name for layer in lora_layers(self.denoiser).values() for name in layer.merged_adapters}
        known = self.metadata
        if self._fused or merged & set(known):
            raise ValueError(
                "The SPMs are fused into the weights, where no prompt can close them; unfuse first."
            )
        check_separate_qkv(self.denoiser)
        return self._permeability(self._acting(), prompts, score)

    def _acting(self) -> list[str]:
        """The SPMs that are switched on; warns of those that only the pipeline has switched off."""
        active = [*active_adapters(self.denoiser), *self._fused]
        if off := [name for name in self.metadata if name in self._on and name not in active]:
            logger.warning(
                "Not acting, since loading a LoRA or the pipeline's set_adapters has switched it off: SPM "
                "%s. SPM.set_adapters switches it on again.",
                ", ".join(off),
            )
        return [name for name in self.metadata if name in active]

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *args: Any,
        facilitated_transport: bool = True,
        permeability: str = "linear",
        score: str = "clipcos_tokenuni",
        num_images_per_prompt: int = 1,
        **arguments: Any,
    ) -> Any:
        """Calls the pipeline, with each prompt opening each active SPM as far as it is about its targets.

        Args:
            prompt: texts; with transport they cannot come as `prompt_embeds` alone.
            facilitated_transport: False lets the SPMs act as LoRAs, at their weights, on every prompt.
            permeability: as for `transport`.
            score: as for `transport`.
            num_images_per_prompt: the pipeline's own.
            args, arguments: passed to the pipeline.

        Returns:
            What the pipeline returns.

        Raises:
            ValueError: as `transport`; no text with transport on.
            TypeError: prompts that are no texts.
        """
        arguments["num_images_per_prompt"] = num_images_per_prompt
        # Pipelines take a text or a list.
        prompt = list(prompt) if isinstance(prompt, tuple) else prompt
        if not facilitated_transport:
            check_separate_qkv(self.denoiser)
            self._acting()
            return self.pipe(prompt, *args, **arguments)
        if prompt is None:
            raise ValueError(
                "Facilitated transport reads the prompt's text: give prompt, or facilitated_transport=False."
            )
        gammas, encoded = self._open(prompt, permeability, score)
        # Where a prompt is one tensor to the pipeline, and nothing asks for another encoding, it need not be
        # encoded twice. Negative prompts that do not fit it are the pipeline's to refuse.
        negative = arguments.get("negative_prompt")
        alike = negative is None or type(negative) is type(prompt)
        if len(encoded) == 2 and alike and not REENCODING & arguments.keys():
            prompt, arguments["prompt_embeds"] = None, encoded[0]
        with gated(self.denoiser, gammas, num_images_per_prompt, permeability):
            return self.pipe(prompt, *args, **arguments)

    def _permeability(
        self, names: Sequence[str], prompts: str | Sequence[str], score: str
    ) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        for name in names:
            if self._loaded[name].concepts is None:
                raise ValueError(
                    f"SPM {name!r} does not say what it erases. Load it with targets=[…], or call with "
                    "facilitated_transport=False (on the command line: --no-transport)."
                )
        if not names:
            return {}, ()
        texts = [prompts] if isinstance(prompts, str) else prompts
        if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"A prompt should be a text, or several a list of them, not {prompts!r}.")
        if not texts:
            raise ValueError("Facilitated transport needs at least one prompt.")
        seen, encoded = self._encode(texts)
        gammas = {name: permeability(seen, self._loaded[name].concepts, score) for name in names}  # type: ignore[arg-type]
        return gammas, encoded

    @torch.no_grad()
    def _encode(self, texts: Sequence[str]) -> tuple[Texts, tuple[Tensor, ...]]:
        """Texts as the scores see them, and all that the pipeline's `encode_prompt` makes of them."""
        options = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        encode, device = self.pipe.encode_prompt, self.pipe._execution_device
        encoded = encode(prompt=list(texts), **accepted(encode, {**options, "device": device}))
        return Texts(tuple(texts), encoded[0], content_tokens(self.pipe.tokenizer, texts)), encoded

    def _check_known(self, *names: str) -> None:
        for name in names:
            if name not in self.metadata:
                raise unknown_name("SPM", name, self._loaded)

    def _check_unfused(self, what: str) -> None:
        if self._fused or is_fused(self.denoiser):
            raise ValueError(f"{what} needs adapters that are not fused into the weights; unfuse them first.")
