"""Editing held-out emoji: BDIA against EDICT, DDIM inversion, DiffEdit and SDEdit at the same steps.

Pictures of compositions that training never saw are edited by prompt: another colour ("a red heart" to "a
blue heart"), drawing style, subject or background. Scenes are drawn, so what should change is known: the
pixels in which the drawn source and the drawn target differ. Figures, for each method, setting and kind:

* reconstruction under the source prompt: largest error of the latents, PSNR to the picture and to what the
  autoencoder alone makes of it;
* background, the pixels that should stay: PSNR to both, and the distance (1 - cosine) of EfficientNet-Lite0's
  features, the pixels that may change being filled with the source's in both images;
* target: the evaluator's score of the target prompt, and how often it sees the new concept.

Settings: strength / guidance on the way up - on the way down / mask. `auto` is the mask from the two
prompts, `drawn` the true one. BDIA's number is gamma; "unshifted" edits start from the pair as in the paper,
the others as `dmkit.schedulers.edit` says. DiffEdit is DDIM inversion with the states of the way up kept
outside the mask; SDEdit is `StableDiffusionImg2ImgPipeline`.

    python benchmarks/emoji_editing.py [--model emoji] [--evaluator emoji-evaluator] [--count 18] [--steps 20]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _edits import KINDS, Edits, held_out_edits
from _results import RESULTS, Cells
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

from dmkit import zoo
from dmkit.images import grid, save_png, side_by_side, to_uint8
from dmkit.metrics import max_abs_error, psnr
from dmkit.metrics.features import EfficientNetLite0, extract
from dmkit.schedulers import decode, difference_mask, edit, edit_image, encode, invert, reconstruct

STRENGTHS = (0.6, 0.8, 1.0)
GUIDANCE = ((1.0, 3.0), (3.0, 3.0), (1.0, 5.0))
MASKS = ("none", "auto", "drawn")


class Setting(NamedTuple):
    """How an image is edited; `name` is the key of its figures."""

    steps: int
    strength: float
    up: float
    down: float
    mask: str

    @property
    def name(self) -> str:
        return f"{self.strength}/{self.up:g}-{self.down:g}/{self.mask}"

    def mask_of(self, edits: Edits) -> Any:
        return {"none": None, "auto": "auto", "drawn": edits.changed}[self.mask]


class Result(NamedTuple):
    """Images (N, 3, H, W), unclamped; the reconstruction is None for methods that have none."""

    edited: torch.Tensor
    reconstruction: torch.Tensor | None
    latents: torch.Tensor | None


def exact(
    method: str, gamma: float = 1.0, shift_start: bool = True
) -> Callable[[Any, Edits, Setting], Result]:
    """An editor through `edit_image`."""

    def run(pipe: Any, edits: Edits, setting: Setting) -> Result:
        done = edit_image(
            pipe,
            edits.sources,
            edits.source_prompts,
            edits.target_prompts,
            num_inference_steps=setting.steps,
            gamma=gamma,
            guidance_scale=setting.down,
            source_guidance_scale=setting.up,
            strength=setting.strength,
            mask=setting.mask_of(edits),
            method=method,
            shift_start=shift_start,
        )
        return Result(done.edit.image, done.reconstruction.image, done.reconstruction.latents)

    return run


def diffedit(pipe: Any, edits: Edits, setting: Setting) -> Result:
    """DDIM inversion, blended with the states of the way up instead of those of its inexact way down."""
    levels = [encode(pipe, edits.sources)]

    def keep(_: Any, __: int, ___: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        levels.append(state["latents"].clone())
        return state

    pair = invert(
        pipe,
        edits.sources,
        edits.source_prompts,
        num_inference_steps=setting.steps,
        guidance_scale=setting.up,
        strength=setting.strength,
        method="ddim",
        callback_on_step_end=keep,
    )
    down = [level.double() for level in reversed(levels)]
    track = list(zip(down[1:], down[:-1], strict=True))
    mask = setting.mask_of(edits)
    if mask == "auto":
        mask = difference_mask(pipe, pair, edits.target_prompts, source=track)
    edited = edit(pipe, pair, edits.target_prompts, guidance_scale=setting.down, mask=mask, source=track)
    back = reconstruct(pipe, pair)
    return Result(edited.image, back.image, back.latents)


def sdedit(pipe: Any, edits: Edits, setting: Setting) -> Result:
    """Noise on the image and down again (Meng et al., ICLR 2022), by Diffusers' image-to-image pipeline."""
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    peer = StableDiffusionImg2ImgPipeline(**{**pipe.components, "scheduler": scheduler})
    peer.set_progress_bar_config(disable=True)
    latents = peer(
        edits.target_prompts,
        image=edits.sources / 2 + 0.5,
        strength=setting.strength,
        num_inference_steps=setting.steps,
        guidance_scale=setting.down,
        generator=[torch.Generator().manual_seed(k) for k in range(len(edits.edits))],
        output_type="latent",
    ).images
    return Result(decode(pipe, latents), None, None)


METHODS: dict[str, Callable[[Any, Edits, Setting], Result]] = {
    "bdia 1": exact("bdia", 1.0),
    "bdia 0.94": exact("bdia", 0.94),
    "bdia 0.85": exact("bdia", 0.85),
    "bdia 1, unshifted": exact("bdia", 1.0, shift_start=False),
    "bdia 0.96, unshifted": exact("bdia", 0.96, shift_start=False),
    "edict": exact("edict"),
    "ddim": exact("ddim"),
    "diffedit": diffedit,
    "sdedit": sdedit,
}


def applies(method: str, setting: Setting) -> bool:
    """SDEdit goes no way up and has no mask; DiffEdit without a mask is DDIM inversion."""
    if method == "sdedit":
        return setting.mask == "none" and setting.up == 1
    return method != "diffedit" or setting.mask != "none"


class Judge:
    """Measures results against the drawings, an evaluator and the autoencoder's own round trip."""

    def __init__(self, pipe: Any, edits: Edits, evaluator: Any):
        self.edits, self.evaluator = edits, evaluator
        self.z_0 = encode(pipe, edits.sources)
        self.through_vae = decode(pipe, self.z_0).float()
        self.extractor = EfficientNetLite0()

    def figures(self, result: Result) -> dict[str, dict[str, float | None]]:
        """By kind of edit, and over all."""
        kinds = [edit.kind for edit in self.edits.edits]
        groups = {kind: [k for k, other in enumerate(kinds) if other == kind] for kind in KINDS}
        targets = self._target(result.edited)
        return {
            name: {**self._reconstruction(result, rows), **self._background(result.edited, rows)}
            | {key: round(value[rows].mean().item(), 4) for key, value in targets.items()}
            for name, rows in {"all": list(range(len(kinds))), **groups}.items()
        }

    def _reconstruction(self, result: Result, rows: list[int]) -> dict[str, float | None]:
        if result.reconstruction is None or result.latents is None:
            return {}
        image = result.reconstruction[rows].float()
        return {
            "latents_max_abs": max_abs_error(result.latents[rows], self.z_0[rows].double()),
            "psnr_db": _decibels(image.clamp(-1, 1), self.edits.sources[rows]),
            "psnr_to_vae_db": _decibels(image, self.through_vae[rows]),
        }

    def _background(self, edited: torch.Tensor, rows: list[int]) -> dict[str, float | None]:
        edited, changed = edited[rows].float().clamp(-1, 1), self.edits.changed[rows]
        source, through_vae = self.edits.sources[rows], self.through_vae[rows].clamp(-1, 1)
        stays = ~changed.expand_as(edited)
        # What may change is the same in both, so that the features tell the rest apart.
        pasted = torch.where(changed, source, edited)
        ours, theirs = (extract(self.extractor, to_uint8(images)) for images in (pasted, source))
        return {
            "background_psnr_db": _decibels(edited[stays], source[stays]),
            "background_psnr_to_vae_db": _decibels(edited[stays], through_vae[stays]),
            "background_features": round(1 - torch.cosine_similarity(ours, theirs).mean().item(), 5),
        }

    def _target(self, edited: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.evaluator is None:
            return {}
        images = edited.float().clamp(-1, 1)
        names = list(self.evaluator.concept_names)
        columns = torch.tensor([names.index(edit.concept) for edit in self.edits.edits])
        seen = self.evaluator.concepts(images).gather(1, columns[:, None])[:, 0] >= 0.5
        scores = self.evaluator.score(images, self.edits.target_prompts)
        return {"target_score": scores, "target_seen": seen.double()}


def _decibels(images: torch.Tensor, others: torch.Tensor) -> float | None:
    """PSNR over all pixels together; None for equal images."""
    value = psnr(images, others)
    return None if math.isinf(value) else round(value, 2)


def picture(pipe: Any, edits: Edits, setting: Setting, each: int = 2) -> dict[str, Any]:
    """Draws a few edits of each kind, a row an edit, a column a method; returns what they are."""
    firsts: list[int] = []
    for kind in KINDS:
        firsts += [k for k, edit in enumerate(edits.edits) if edit.kind == kind][:each]
    few = edits.take(firsts)
    plain, masked = setting._replace(mask="none"), setting._replace(mask="auto")
    columns = {
        "source": few.sources,
        "through the VAE": decode(pipe, encode(pipe, few.sources)),
        "BDIA": METHODS["bdia 0.94"](pipe, few, plain).edited,
        "BDIA, auto mask": METHODS["bdia 0.94"](pipe, few, masked).edited,
        "EDICT": METHODS["edict"](pipe, few, plain).edited,
        "DDIM inversion": METHODS["ddim"](pipe, few, plain).edited,
        "DiffEdit, auto mask": METHODS["diffedit"](pipe, few, masked).edited,
        "SDEdit": METHODS["sdedit"](pipe, few, plain).edited,
        "drawn target": few.targets,
    }
    sheets = [grid(images.float(), columns=1, scale=3, gap=6) for images in columns.values()]
    prompts = [" → ".join(edit.prompts) for edit in few.edits]
    about = {**setting._asdict(), "prompts": prompts}
    save_png(side_by_side(sheets, list(columns)), RESULTS / "emoji_editing.png", about)
    return about


def load_evaluator(name: str) -> Any:
    """A `PromptEvaluator` by zoo name or folder."""
    from dmkit.metrics import PromptEvaluator

    return PromptEvaluator.from_pretrained(name if Path(name).is_dir() else zoo.path(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="emoji", help="zoo name or folder")
    parser.add_argument("--evaluator", default="emoji-evaluator", help="zoo name or folder; none: no scores")
    parser.add_argument("--count", type=int, default=18, help="edits of each of the four kinds")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    pipe = zoo.load(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    edits = held_out_edits(arguments.count, pipe.unet.config.sample_size * pipe.vae_scale_factor)
    judge = Judge(pipe, edits, None if arguments.evaluator == "none" else load_evaluator(arguments.evaluator))
    what = f"{len(edits.edits)} edits of held-out emoji, {arguments.steps} steps."
    cells = Cells("emoji_editing", {"what": what, "model": arguments.model, "steps": arguments.steps})
    for name, images in (
        ("source", edits.sources),
        ("vae", judge.through_vae),
        ("drawn target", edits.targets),
    ):
        cells.once(f"reference/{name}", lambda i=images: judge.figures(Result(i, None, None)))
    for up, down in GUIDANCE:
        for strength in STRENGTHS:
            for mask in MASKS:
                setting = Setting(arguments.steps, strength, up, down, mask)
                for method, run in METHODS.items():
                    if applies(method, setting):
                        key = f"{setting.name}/{method}"
                        cells.once(key, lambda r=run, s=setting: judge.figures(r(pipe, edits, s)))
    shown = Setting(arguments.steps, 0.8, *GUIDANCE[0], "none")
    cells.once("picture", lambda: picture(pipe, edits, shown))


if __name__ == "__main__":
    main()
