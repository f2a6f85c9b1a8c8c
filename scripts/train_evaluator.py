"""Trains the evaluator of prompts (`dmkit.metrics.PromptEvaluator`) on captioned emoji scenes.

    accelerate launch scripts/train_evaluator.py --config scripts/recipes/emoji-evaluator.yaml

The frozen networks (EfficientNet-Lite0, MiniLM) see the data once; their features are kept in `--cache_dir`,
23 KB for each image, so that a step costs only the heads. It shares neither weights nor architecture with the
CLIP that conditions the text-to-image model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from accelerate.utils import set_seed

from dmkit.data import scenes
from dmkit.metrics import PromptEvaluator
from dmkit.training.arguments import TrainingArguments, hint, parse_arguments
from dmkit.training.caching import CachedTensors, cached
from dmkit.training.evaluating import EvaluatorTask, encode_scenes, judged_scenes
from dmkit.training.trainer import Trainer


@dataclass
class ModelArguments:
    """What to train, and on what."""

    num_scenes: int = field(default=24_000, metadata=hint("Scenes to learn from."))
    resolution: int = field(default=32, metadata=hint("Side of the scenes in pixels."))
    cache_dir: str = field(default="outputs/cache", metadata=hint("Where encoded data is kept."))
    image_size: int = field(default=96, metadata=hint("Side in pixels that EfficientNet-Lite0 sees."))
    cell_dim: int = field(default=128, metadata=hint("Channels that are left at each position."))
    hidden_dim: int = field(default=768, metadata=hint("Width of the hidden layers."))
    embedding_dim: int = field(default=256, metadata=hint("Size of the embeddings."))
    dropout: float = field(default=0.2, metadata=hint("Dropout of features and hidden layers."))
    rarity: float = field(default=0.5, metadata=hint("Exponent of the weight of rare concepts."))

    def __post_init__(self) -> None:
        if self.num_scenes < 1:
            raise ValueError(f"--num_scenes is {self.num_scenes}; it must be at least 1.")


def rows_of(model: ModelArguments) -> CachedTensors:
    dataset, present = judged_scenes(model.num_scenes, model.resolution)
    path = Path(model.cache_dir) / f"evaluator-{model.num_scenes}-{model.resolution}.safetensors"
    return cached(
        path,
        f"{dataset.fingerprint()}-{model.image_size}",
        lambda: encode_scenes(dataset, present, list(scenes.concepts()), image_size=model.image_size),
    )


def main(argv: list[str] | None = None) -> None:
    model, training = parse_arguments(ModelArguments, TrainingArguments, description=__doc__, argv=argv)
    rows = rows_of(model)
    set_seed(training.seed)
    evaluator = PromptEvaluator(
        concepts=list(scenes.concepts().items()),
        image_size=model.image_size,
        cell_dim=model.cell_dim,
        hidden_dim=model.hidden_dim,
        embedding_dim=model.embedding_dim,
        dropout=model.dropout,
    )
    task = EvaluatorTask(evaluator, rows.tensors["concepts"], rarity=model.rarity)
    Trainer(task, rows, training).train()


if __name__ == "__main__":
    main()
