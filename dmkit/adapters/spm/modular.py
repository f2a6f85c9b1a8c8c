"""Facilitated transport as a block of Diffusers' modular pipelines; equations are in `transport`, `gating`.

    blocks = StableDiffusionXLAutoBlocks().get_workflow("text2image")
    blocks.sub_blocks["denoise.denoise"] = TransportedDenoising.around(blocks.sub_blocks["denoise.denoise"])
    pipe = blocks.init_pipeline(folder)
    pipe.load_components()
    ModularSPM(pipe).load_spm_weights("snoopy.safetensors", adapter_name="snoopy")
    images = pipe(prompt="a dog in the snow", output="images")

Blocks are code: a saved pipeline brings back its components, not this block. Assemble the blocks again and
call `blocks.init_pipeline(folder)`. Save adapters by `pipe.spm.save_spm_weights`, and unload them before the
pipeline is saved: Diffusers writes the layers of PEFT as they are, under names that no model knows.
"""

from __future__ import annotations

from typing import Any

from diffusers.modular_pipelines.modular_pipeline import (
    ModularPipeline,
    ModularPipelineBlocks,
    PipelineState,
    SequentialPipelineBlocks,
)
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam
from torch import Tensor

from .pipeline import SPM

# What Diffusers' families call the block that encodes texts.
TEXT_ENCODER = "text_encoder"


class _Host:
    """What `SPM` asks of a pipeline, for a modular one: its own block encodes texts."""

    def __init__(self, pipe: ModularPipeline):
        self._pipe = pipe

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_pipe"], name)

    def encode_prompt(self, prompt: list[str]) -> tuple[Tensor]:
        state = PipelineState()
        state.set("prompt", prompt)
        _, state = self._pipe.blocks.sub_blocks[TEXT_ENCODER](self._pipe, state)
        return (state.get("prompt_embeds"),)


class ModularSPM(SPM):
    """SPMs on a modular pipeline: loads, weighs, fuses and unloads them; prompts open them in its
    `TransportedDenoising`, whose component `spm` it makes itself.

    Args:
        pipe: a modular pipeline with its components, of a family whose texts are encoded by the block
            `text_encoder` from `prompt`.

    Raises:
        TypeError: another pipeline, or one without such a block, without a denoiser or without a tokenizer.
        ValueError: no `TransportedDenoising` among the blocks: nothing would open the adapters.
    """

    def __init__(self, pipe: ModularPipeline):
        if not isinstance(pipe, ModularPipeline):
            raise TypeError(f"ModularSPM needs a modular pipeline, not {type(pipe).__name__}; see SPM.")
        if TEXT_ENCODER not in pipe.blocks.sub_blocks:
            raise TypeError(f"{type(pipe).__name__} has no block {TEXT_ENCODER!r} that encodes texts.")
        if "spm" not in pipe.component_names:
            raise ValueError(
                "The pipeline has no block that opens SPMs by prompt: put TransportedDenoising around its "
                "denoising block before init_pipeline."
            )
        super().__init__(_Host(pipe))
        pipe.update_components(spm=self)

    def __call__(self, *args: Any, **arguments: Any) -> Any:
        """
        Raises:
            TypeError: always. The modular pipeline itself is called.
        """
        raise TypeError("Call the modular pipeline itself: its TransportedDenoising reads the prompt.")


class TransportedDenoising(SequentialPipelineBlocks):
    """A denoising block in which each prompt opens each active SPM as far as it is about its targets.

    Inputs of the pipeline: `prompt`, `num_images_per_prompt`, and `permeability`, `score` and
    `facilitated_transport` as in `SPM`'s call. Output: `gammas`, γ of each prompt by SPM.
    """

    @classmethod
    def around(cls, block: ModularPipelineBlocks) -> TransportedDenoising:
        """
        Args:
            block: the block of a pipeline that runs the denoiser over all steps.

        Raises:
            TypeError: no block.
        """
        if not isinstance(block, ModularPipelineBlocks):
            raise TypeError(f"Expected a block of Diffusers' modular pipelines, not {type(block).__name__}.")
        return cls.from_blocks_dict({"denoise": block})

    @property
    def description(self) -> str:
        return "Denoises with SPMs that each prompt opens as far as it is about their targets."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [*super().expected_components, ComponentSpec("spm", ModularSPM)]

    @property
    def inputs(self) -> list[InputParam]:
        own = [
            InputParam("prompt", required=True, description="The prompts that open the SPMs."),
            InputParam("num_images_per_prompt", default=1, description="Images of each prompt."),
            InputParam("permeability", default="linear", description="`linear` or `squared`."),
            InputParam("score", default="clipcos_tokenuni", description="How prompts and targets compare."),
            InputParam(
                "facilitated_transport",
                default=True,
                description="False lets the SPMs act on every prompt alike, at their weights.",
            ),
        ]
        names = {param.name for param in own}
        return [*(param for param in super().inputs if param.name not in names), *own]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        gammas = OutputParam("gammas", type_hint=dict, description="How far each prompt opens each SPM.")
        return [*super().intermediate_outputs, gammas]

    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """
        Raises:
            ValueError: no SPM was ever loaded, or as `SPM.transport`.
        """
        if components.spm is None:
            raise ValueError(
                "No SPM is there to be opened: ModularSPM(pipe).load_spm_weights(…) comes first."
            )
        given = self.get_block_state(state)
        if not given.facilitated_transport:
            state.set("gammas", {})
            return super().__call__(components, state)
        with components.spm.transport(
            given.prompt,
            given.num_images_per_prompt,
            permeability=given.permeability,
            score=given.score,
        ) as gammas:
            state.set("gammas", gammas)
            return super().__call__(components, state)
