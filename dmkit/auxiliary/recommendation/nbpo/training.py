"""Trains a recommender and ranks all items for each user: NBPO, its variants, BPO and BPR, any sampler."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ....data import ratings
from ....errors import unknown_name
from ....training.arguments import TrainingArguments, hint
from ....training.checkpoint import checkpoints, save_into, step_of
from ....training.trainer import Trainer
from .generating import generate
from .interactions import Interactions, Split, k_core, read_interactions, split
from .losses import BPOLoss, BPRLoss, NBPOLoss, PairLoss
from .models import FlipModel, MatrixFactorization
from .ranking import evaluate_ranking
from .recommender import Recommender
from .samplers import AdaptiveOversampler, DynamicNegativeSampler, Sampler, UniformNegativeSampler
from .task import Clicks, RecommendationTask, as_it_is

OBJECTIVES = {"nbpo": "surrogate", "nbpo-o": "likelihood", "nbpo-s": "surrogate_likelihood"}
LOSSES = (*OBJECTIVES, "bpo", "bpr")
SAMPLERS = ("uniform", "dynamic", "adaptive")
CHOSEN_BY = "F1@5"  # of the validation set


@dataclass
class Arguments:
    """NBPO on a table of clicks."""

    data: str = field(
        default="movielens", metadata=hint("movielens, generated (known truth), or a table's path.")
    )
    k_core: int = field(default=20, metadata=hint("Users and items have at least so many of each other."))
    min_rating: float | None = field(default=None, metadata=hint("Lower ratings count as no click."))
    split_seed: int = field(
        default=0, metadata=hint("Fixes which clicks are held out, or what is generated.")
    )
    objective: str = field(default="nbpo", metadata=hint("nbpo, nbpo-o, nbpo-s, bpo or bpr."))
    reduction: str = field(default="sum", metadata=hint("sum (the paper's settings) or mean over pairs."))
    sampler: str = field(default="uniform", metadata=hint("uniform, dynamic (DNS) or adaptive (AOBPR)."))
    negatives: int = field(default=4, metadata=hint("Sampled items for each clicked one."))
    dim: int = field(default=50, metadata=hint("Factors of the scores."))
    flip_dim: int = field(default=50, metadata=hint("Factors of the flips."))
    flip_constant: float | None = field(
        default=None, metadata=hint("One flip probability for all pairs, instead of learnt ones.")
    )
    flip_decay: float = field(
        default=1.0, metadata=hint("Weight decay of the flips; that of the scores is --sgd_weight_decay.")
    )
    ks: list[int] = field(default_factory=lambda: [2, 5, 10, 20], metadata=hint("Lengths of the lists."))

    def __post_init__(self) -> None:
        for what, name, known in (
            ("--objective", self.objective, LOSSES),
            ("--sampler", self.sampler, SAMPLERS),
        ):
            if name not in known:
                raise unknown_name(what, name, known)
        if self.flip_constant is not None and not 0 <= self.flip_constant < 1:
            raise ValueError(f"--flip_constant is {self.flip_constant}; it must be in [0, 1).")


def read_parts(arguments: Arguments) -> tuple[Split, list[Any] | None, list[Any] | None]:
    """The three parts of the data, and the names of its users and items."""
    generator = torch.Generator().manual_seed(arguments.split_seed)
    if arguments.data == "generated":
        return generate(generator).parts, None, None
    if arguments.data == "movielens":
        films = ratings.movielens()
        keep = films.ratings >= (arguments.min_rating or 0)
        table = k_core(films.users[keep], films.items[keep], arguments.k_core)
    else:
        table = read_interactions(arguments.data, k=arguments.k_core, min_rating=arguments.min_rating)
    return split(table.interactions, generator), table.user_ids, table.item_ids


def build_loss(arguments: Arguments) -> PairLoss:
    """The loss that the arguments name."""
    if arguments.objective in OBJECTIVES:
        return NBPOLoss(OBJECTIVES[arguments.objective], arguments.reduction)
    return {"bpo": BPOLoss, "bpr": BPRLoss}[arguments.objective](arguments.reduction)


def build_sampler(arguments: Arguments, seen: Interactions) -> Sampler:
    """The sampler that the arguments name."""
    kinds = {
        "uniform": UniformNegativeSampler,
        "dynamic": DynamicNegativeSampler,
        "adaptive": AdaptiveOversampler,
    }
    return kinds[arguments.sampler](seen, arguments.negatives)


def train(
    parts: Split,
    arguments: Arguments,
    training: TrainingArguments,
    user_ids: list[Any] | None = None,
    item_ids: list[Any] | None = None,
) -> tuple[Recommender, int]:
    """Trains on the first part; of all checkpoints and the end, keeps what is best on the second.

    Returns:
        The recommender, which is also in the output folder, and the step that it is of.
    """
    seen = parts.train
    torch.manual_seed(training.seed)
    scores = MatrixFactorization(seen.num_users, seen.num_items, arguments.dim)
    flip: FlipModel | float | None = None
    if arguments.objective in OBJECTIVES:
        flip = arguments.flip_constant
        if flip is None:
            flip = FlipModel(seen.num_users, seen.num_items, arguments.flip_dim)
    task = RecommendationTask(
        scores,
        build_loss(arguments),
        build_sampler(arguments, seen),
        seen,
        flip=flip,
        flip_decay=arguments.flip_decay,
        user_ids=user_ids,
        item_ids=item_ids,
    )
    trainer = Trainer(task, Clicks(seen), training, collate_fn=as_it_is)
    trainer.train()
    with trainer.averaged() as modules:
        best, step = task.recommender({name: module.cpu() for name, module in modules.items()}), trainer.step
        if len(parts.validation):
            best, step = _best(task, best, step, parts, Path(training.output_dir))
        if PartialState().is_main_process and step != trainer.step:
            save_into(Path(training.output_dir), best.write)
    return best, step


def _best(
    task: RecommendationTask, last: Recommender, step: int, parts: Split, folder: Path
) -> tuple[Recommender, int]:
    """The one of the highest validation score; the earliest of equals."""

    def score(recommender: Recommender) -> float:
        found = evaluate_ranking(recommender.scores.all_scores, [parts.train], parts.validation, [5])
        return found[CHOSEN_BY]

    best = (score(last), last, step)
    for checkpoint in reversed(checkpoints(folder)):
        suffix = "_ema" if (checkpoint / "scores_ema").is_dir() else ""
        parts_of: dict[str, Any] = {
            "scores": MatrixFactorization.from_pretrained(checkpoint / f"scores{suffix}").eval()
        }
        if "flip" in task.modules:
            parts_of["flip"] = FlipModel.from_pretrained(checkpoint / f"flip{suffix}").eval()
        candidate = task.recommender(parts_of)
        if (found := score(candidate)) >= best[0]:
            best = (found, candidate, step_of(checkpoint))
    return best[1], best[2]


def run(arguments: Arguments, training: TrainingArguments) -> dict[str, Any]:
    """Trains, and ranks all items for each user; returns the figures on the validation and the test set."""
    parts, user_ids, item_ids = read_parts(arguments)
    recommender, step = train(parts, arguments, training, user_ids, item_ids)
    rank = recommender.scores.all_scores
    figures: dict[str, Any] = {"step": step}
    for name, seen, wanted in (
        ("validation", [parts.train], parts.validation),
        ("test", [parts.train], parts.test),
    ):
        if len(wanted):
            found = evaluate_ranking(rank, seen, wanted, arguments.ks)
            figures[name] = {key: round(value, 5) for key, value in found.items()}
    return figures
