"""NASA and NAG as a block of Diffusers' modular pipelines; the equations are in `dmkit.attention.steering`.

    blocks = StableDiffusionXLAutoBlocks().get_workflow("text2image")
    blocks.sub_blocks["denoise.denoise"] = SteeredDenoising.around(blocks.sub_blocks["denoise.denoise"])
    pipe = blocks.init_pipeline(folder)
    pipe.load_components()
    pipe.update_components(guider=NegativeAwaySteer(scale=0.2))

`NegativeAwaySteer` alone can be put into any modular pipeline; but there a saved pipeline forgets it and
comes back with classifier-free guidance, since Diffusers' blocks create their guider anew. This block makes
the guider a component that is saved and loaded with the others.
"""

from __future__ import annotations

from typing import Any

from diffusers.modular_pipelines.modular_pipeline import ModularPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec

from .guider import NegativeAwaySteer


class SteeredDenoising(SequentialPipelineBlocks):
    """A denoising block whose attention is steered away from the negative prompt: one network call a step.

    The guider is a component `guider` of class `NegativeAwaySteer`, which `save_pretrained` writes into a
    folder of its own. Blocks themselves are code: assemble them again, and `blocks.init_pipeline(folder)`
    with `load_components()` brings the pipeline back.
    """

    @classmethod
    def around(cls, block: ModularPipelineBlocks) -> SteeredDenoising:
        """
        Args:
            block: the block of a pipeline that runs the denoiser over all steps, with a guider.

        Raises:
            TypeError: no block.
            ValueError: a block without a guider; one with a ControlNet, which would be handed both texts at
                once, unsteered.
        """
        if not isinstance(block, ModularPipelineBlocks):
            raise TypeError(f"Expected a block of Diffusers' modular pipelines, not {type(block).__name__}.")
        components = {spec.name for spec in block.expected_components}
        if "guider" not in components:
            raise ValueError(f"{type(block).__name__} has no guider that could steer.")
        if "controlnet" in components:
            raise ValueError(
                f"{type(block).__name__} may run a ControlNet, which cannot be steered. Take a workflow "
                "without one: blocks.get_workflow('text2image')."
            )
        return cls.from_blocks_dict({"denoise": block})

    @property
    def description(self) -> str:
        return "Denoises with attention that is steered away from the negative prompt (NASA or NAG)."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        others = [spec for spec in super().expected_components if spec.name != "guider"]
        return [*others, ComponentSpec("guider", NegativeAwaySteer)]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """
        Raises:
            TypeError: the pipeline's guider is another.
        """
        if not isinstance(components.guider, NegativeAwaySteer):
            raise TypeError(
                f"The guider is a {type(components.guider).__name__}; give "
                "pipe.update_components(guider=NegativeAwaySteer(scale=…))."
            )
        return super().__call__(components, state)
