"""Trains a small CLIP (`CLIPModel`) on captioned images: its text tower conditions a text-to-image model.

    accelerate launch scripts/train_clip.py --config scripts/recipes/emoji-clip.yaml

A byte-level BPE tokenizer is learnt from the captions first. The finished folder loads with
`CLIPModel.from_pretrained`, `CLIPTextModel.from_pretrained` and `CLIPTokenizer.from_pretrained`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from accelerate.utils import set_seed
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from dmkit import data
from dmkit.training.arguments import TrainingArguments, hint, parse_arguments
from dmkit.training.contrastive import MAX_LENGTH, ContrastiveTask, train_tokenizer
from dmkit.training.trainer import Trainer


@dataclass
class ModelArguments:
    """What to train, and on what."""

    dataset_name: str = field(
        default="", metadata=hint("A captioned data set of dmkit.data, a folder, or `datasets`.")
    )
    caption_column: str = field(default="text", metadata=hint("Where folders and `datasets` keep captions."))
    resolution: int = field(default=32, metadata=hint("Side of the images in pixels."))
    vocab_size: int = field(default=1024, metadata=hint("Tokens of the tokenizer."))
    hidden_size: int = field(default=128, metadata=hint("Width of both towers."))
    text_layers: int = field(default=3, metadata=hint("Layers of the text tower."))
    vision_layers: int = field(default=4, metadata=hint("Layers of the image tower."))
    patch_size: int = field(default=8, metadata=hint("Side of the image tower's patches in pixels."))
    num_attention_heads: int = field(default=4, metadata=hint("Attention heads of both towers."))
    max_shift: int = field(default=1, metadata=hint("Images move at random by up to this many pixels."))
    opposites: list[str] = field(
        default_factory=list,
        metadata=hint("Pairs like left:right; captions with them exchanged are hard negatives."),
    )

    def __post_init__(self) -> None:
        if not self.dataset_name:
            raise ValueError("Give --dataset_name.")
        if bad := [pair for pair in self.opposites if not all(pair.partition(":")[::2])]:
            raise ValueError(f"--opposites takes pairs like left:right, not {', '.join(bad)}.")


def build_clip(model: ModelArguments, tokenizer: CLIPTokenizer, channels: int) -> CLIPModel:
    tower = {
        "hidden_size": model.hidden_size,
        "intermediate_size": 4 * model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "projection_dim": model.hidden_size,
    }
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_LENGTH,
        num_hidden_layers=model.text_layers,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **tower,
    )
    vision = CLIPVisionConfig(
        image_size=model.resolution,
        patch_size=model.patch_size,
        num_channels=channels,
        num_hidden_layers=model.vision_layers,
        **tower,
    )
    return CLIPModel(
        CLIPConfig(
            text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=model.hidden_size
        )
    )


def main(argv: list[str] | None = None) -> None:
    model, training = parse_arguments(ModelArguments, TrainingArguments, description=__doc__, argv=argv)
    set_seed(training.seed)
    dataset = data.load(
        model.dataset_name, split="train", resolution=model.resolution, caption_column=model.caption_column
    )
    if dataset.captions is None:
        raise ValueError(f"{model.dataset_name} has no captions.")
    tokenizer = train_tokenizer(dataset.captions[:20_000], model.vocab_size)
    clip = build_clip(model, tokenizer, dataset.channels)
    pairs = [(one, other) for one, _, other in (pair.partition(":") for pair in model.opposites)]
    task = ContrastiveTask(clip, tokenizer, max_shift=model.max_shift, opposites=pairs)
    Trainer(task, dataset, training).train()


if __name__ == "__main__":
    main()
