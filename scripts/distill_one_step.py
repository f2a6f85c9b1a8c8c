"""Distils a text-to-image model into one step, from prompts alone: PG-SB, or SwiftBrush.

    accelerate launch scripts/distill_one_step.py --config scripts/recipes/one-step-emoji.yaml

The finished folder is a pipeline with the right scheduler:

    DiffusionPipeline.from_pretrained(output_dir)(prompt, num_inference_steps=1, guidance_scale=1)

Encoded prompts are kept in `--cache_dir`. NASA-T: `--negative_prompts_file`. A CLIP loss:
`--clip_model_name_or_path`.
"""

from __future__ import annotations

from dmkit.distillation.configure import distil, parse


def main(argv: list[str] | None = None) -> None:
    distil(*parse(argv, description=__doc__ or ""))


if __name__ == "__main__":
    main()
