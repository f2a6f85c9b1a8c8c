"""The whole way: a model that has seen solutions, its own right and wrong ones, pairs, and DPO.

    python scripts/train_auxiliary.py --config scripts/recipes/step_dpo.yaml

`--model tiny` trains a tiny model on generated problems from nothing. Otherwise it is the name or folder of a
causal language model of transformers, and `--problems` are JSON lines with question, answer and solution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import Dataset

from ....errors import unknown_name
from ....training.arguments import TrainingArguments, hint
from ....training.trainer import Task, Trainer
from ... import stage
from . import arithmetic
from .pairs import PAIRINGS, build_pairs, save_pairs
from .sampling import LanguageModel
from .solutions import AnswerChecker, NumericAnswerChecker, Problem, StepSplitter, read_problems, tokenize
from .tasks import (
    AdvantageTask,
    PreferenceTask,
    Row,
    SupervisedTask,
    advantage_rows,
    fitting,
    preference_rows,
    supervised_rows,
)
from .values import ESTIMATORS, StepValues, step_values

OBJECTIVES = (*PAIRINGS, "advantage", "rft", "sft")


@dataclass
class Arguments:
    """Whose solutions, and what is learnt from them."""

    model: str = field(default="tiny", metadata=hint("tiny, or a causal language model of transformers."))
    problems: str = field(default="", metadata=hint("JSON lines of problems; generated ones for tiny."))
    test_problems: str = field(default="", metadata=hint("The same, to measure on."))
    template: str = field(default="digits", metadata=hint("Of generated problems: digits or words."))
    count: int = field(default=1500, metadata=hint("Generated problems to train on."))
    test_count: int = field(default=500, metadata=hint("Generated problems to measure on."))
    objective: str = field(default="pit_prefix", metadata=hint(f"One of {', '.join(OBJECTIVES)}."))
    start: str = field(default="sft", metadata=hint("Model that DPO starts from: sft or rft."))
    sft_steps: int = field(default=1500, metadata=hint("Steps on given solutions; 0: none."))
    rft_steps: int = field(default=500, metadata=hint("Steps on the right ones of its own, for RFT."))
    sft_learning_rate: float = field(default=1e-3, metadata=hint("Of both."))
    samples: int = field(default=8, metadata=hint("Solutions sampled for each problem."))
    positives: int = field(default=4, metadata=hint("Different right ones that are kept of them."))
    negatives: int = field(default=2, metadata=hint("Different wrong ones that are kept of them."))
    temperature: float = field(default=1.0, metadata=hint("Of samples and endings."))
    max_new_tokens: int = field(default=256, metadata=hint("Of a solution."))
    k: int = field(default=5, metadata=hint("Endings of each prefix."))
    estimator: str = field(default="any", metadata=hint("Value of a prefix: any right ending, or mean."))
    beta: float = field(default=0.1, metadata=hint("beta of DPO, and of advantage weights."))
    label_smoothing: float = field(default=0.0, metadata=hint("Of DPO."))
    soft_labels: bool = field(default=False, metadata=hint("Probabilities sigma(Q+ - Q-) instead of labels."))
    max_hopeless: float = field(default=1.0, metadata=hint("Share of pairs of problems never solved."))

    def __post_init__(self) -> None:
        for name, known in (
            ("objective", OBJECTIVES),
            ("start", ("sft", "rft")),
            ("estimator", ESTIMATORS),
            ("template", tuple(arithmetic.TEMPLATES)),
        ):
            if (value := getattr(self, name)) not in known:
                raise unknown_name(f"--{name}", value, known)
        for name, least in {
            "count": 1,
            "test_count": 1,
            "samples": 1,
            "positives": 1,
            "negatives": 1,
            "sft_steps": 0,
            "rft_steps": 1,
            "temperature": 0,
            "max_new_tokens": 1,
            "k": 1,
        }.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least {least}.")
        # Here, and not after hours of sampling.
        if not self.beta > 0:
            raise ValueError(f"--beta is {self.beta}; it must be positive.")
        if not 0 <= self.max_hopeless <= 1 or not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"--max_hopeless is {self.max_hopeless} and --label_smoothing {self.label_smoothing}; they "
                "must be in [0, 1] and [0, 0.5)."
            )
        if self.soft_labels and self.label_smoothing:
            raise ValueError("--soft_labels have their own probabilities; --label_smoothing must be 0.")
        if self.model != "tiny" and not (self.problems and self.test_problems):
            raise ValueError("A model by name needs --problems and --test_problems.")


@dataclass
class Experience:
    """A model's own solutions.

    Attributes:
        positives: different right ones by question.
        negatives: different wrong ones with their problems.
        starts: V(x) by question, the share of right samples.
    """

    positives: dict[str, list[str]]
    negatives: list[tuple[Problem, str]]
    starts: dict[str, float]


def collect(
    policy: LanguageModel,
    problems: Sequence[Problem],
    checker: AnswerChecker,
    *,
    samples: int = 8,
    positives: int = 4,
    negatives: int = 2,
    seed: int = 0,
) -> Experience:
    """Samples solutions and sorts them; what is wrong by its answer only, whatever its steps are."""
    prompts = [policy.tokenizer(problem.question)["input_ids"] for problem in problems]
    found = Experience({}, [], {})
    for problem, texts in zip(problems, policy.complete(prompts, samples, seed), strict=True):
        right = [text for text in texts if checker(problem, text)]
        wrong = [text for text in texts if text.strip() and text not in right]
        found.positives[problem.question] = list(dict.fromkeys(right))[:positives]
        found.negatives += [(problem, text) for text in list(dict.fromkeys(wrong))[:negatives]]
        found.starts[problem.question] = len(right) / len(texts)
    return found


def supervised(
    tokenizer: Any, solutions: Mapping[Problem, Sequence[str]], splitter: StepSplitter
) -> list[Row]:
    """Rows of a supervised task."""
    rows = []
    for problem, texts in solutions.items():
        for text in texts:
            tokens = tokenize(tokenizer, problem, text, splitter)
            rows.append((tokens.prompt, [*tokens.solution, tokenizer.eos_token_id]))
    return rows


def fit(
    make: Callable[[nn.Module], Task], model: nn.Module, rows: Dataset, training: TrainingArguments
) -> nn.Module:
    """A copy of a model, trained by a task."""
    trainer = Trainer(make(deepcopy(model)), rows, training)
    trainer.train()
    return trainer.unwrapped()["model"].eval()


def evaluate(policy: LanguageModel, problems: Sequence[Problem], checker: AnswerChecker) -> dict[str, float]:
    """The share of problems that the likeliest solution is right for; of generated ones the share of its
    steps that are wrong, too.

    Raises:
        ValueError: no problem.
    """
    if not problems:
        raise ValueError("There is no problem to measure on.")
    greedy = LanguageModel(
        policy.model, policy.tokenizer, temperature=0, max_new_tokens=policy.max_new_tokens, batch_size=1000
    )
    prompts = [policy.tokenizer(problem.question)["input_ids"] for problem in problems]
    texts = [found[0] for found in greedy.complete(prompts, 1, 0)]
    right = sum(checker(problem, text) for problem, text in zip(problems, texts, strict=True))
    figures = {"accuracy": right / len(problems)}
    if checker is arithmetic.check:
        counts = [arithmetic.wrong_steps(p, text) for p, text in zip(problems, texts, strict=True)]
        figures["wrong_steps"] = sum(w for w, _ in counts) / max(1, sum(n for _, n in counts))
    return figures


def run(arguments: Arguments, training: TrainingArguments) -> dict[str, Any]:
    """Trains and measures; the model and its tokenizer are saved in "model", pairs in "pairs.jsonl".

    Returns:
        `sft`, with RFT `rft`, and the objective's name: accuracies as of `evaluate`; of pairs `pairs`,
        `left_out`, `mean_pit`, and how DPO moved them.
    """
    problems, test, checker, policy = _prepare(arguments, training.seed)
    splitter, tokenizer, model = StepSplitter(), policy.tokenizer, policy.model
    output, seed = Path(training.output_dir), training.seed
    figures: dict[str, Any] = {}

    def teach(name: str, solutions: Mapping[Problem, Sequence[str]], steps: int) -> nn.Module:
        rows = supervised(tokenizer, solutions, splitter)
        kept, figures[f"{name}_too_long"] = fitting(rows, [len(a + b) for a, b in rows], model)
        changes = {"learning_rate": arguments.sft_learning_rate, "max_train_steps": steps}
        return fit(SupervisedTask, model, supervised_rows(kept), stage(training, name, **changes))

    def measure(name: str) -> None:
        policy.model = model
        figures[name] = evaluate(policy, test, checker)

    given = {problem: [problem.solution] for problem in problems if problem.solution}
    if arguments.sft_steps and given:
        model = teach("sft", given, arguments.sft_steps)
    measure("sft")
    sampled = collect(
        policy,
        problems,
        checker,
        samples=arguments.samples,
        positives=arguments.positives,
        negatives=arguments.negatives,
        seed=seed,
    )
    values: list[StepValues] = []
    if arguments.objective not in ("sft", "rft"):
        solutions = sampled.negatives
        if arguments.objective == "advantage":
            right = [(p, text) for p in problems for text in sampled.positives[p.question]]
            solutions = solutions + right
        values = step_values(
            policy,
            solutions,
            checker,
            k=arguments.k,
            estimator=arguments.estimator,
            stop_at_zero=True,
            seed=seed + 1,
        )
    if "rft" in (arguments.objective, arguments.start):
        own = {p: [*given.get(p, ()), *sampled.positives[p.question]] for p in problems}
        model = teach("rft", own, arguments.rft_steps)
        measure("rft")
    if arguments.objective == "advantage":
        rows = advantage_rows(values, sampled.starts, tokenizer.eos_token_id)
        last = stage(training, "advantage")
        model = fit(lambda m: AdvantageTask(m, beta=arguments.beta), model, rows, last)
    elif values:
        pairs, left_out = build_pairs(
            tokenizer,
            sampled.positives,
            values,
            pairing=arguments.objective,
            starts=sampled.starts,
            max_hopeless=arguments.max_hopeless,
            seed=seed,
        )
        if PartialState().is_main_process:
            about = {"seed": seed, "model": arguments.model, "pairing": arguments.objective}
            save_pairs(output / "pairs.jsonl", pairs, tokenizer, **about)
        rows, dropped = preference_rows(pairs, model, soft_labels=arguments.soft_labels)
        figures |= {
            "pairs": len(rows),
            "left_out": {**left_out, "too long": dropped},
            "mean_pit": sum(value.pit for value in values) / len(values),
        }
        options = {name: getattr(arguments, name) for name in ("beta", "label_smoothing", "soft_labels")}
        last = stage(training, arguments.objective)
        model = fit(lambda m: PreferenceTask(m, **options), model, rows, last)
        figures["preferences"] = PreferenceTask(model, **options).figures(rows)
    measure(arguments.objective)
    if PartialState().is_main_process:
        model.save_pretrained(output / "model")  # type: ignore[operator]
        tokenizer.save_pretrained(output / "model")
    return figures


def _prepare(
    arguments: Arguments, seed: int
) -> tuple[list[Problem], list[Problem], AnswerChecker, LanguageModel]:
    options: dict[str, Any] = {
        "temperature": arguments.temperature,
        "max_new_tokens": arguments.max_new_tokens,
    }
    if arguments.model == "tiny":
        parts = [
            arithmetic.make_problems(count, seed, template=arguments.template, start=start)
            for count, start in ((arguments.count, 0), (arguments.test_count, arguments.count))
        ]
        torch.manual_seed(seed)
        tokenizer = arithmetic.tiny_tokenizer()
        options["max_new_tokens"] = arithmetic.LONGEST
        policy = LanguageModel(arithmetic.tiny_model(tokenizer), tokenizer, batch_size=2048, **options)
        return parts[0], parts[1], arithmetic.check, policy
    policy = LanguageModel.from_pretrained(arguments.model, **options)
    policy.model.to(PartialState().device)
    problems, test = (read_problems(path) for path in (arguments.problems, arguments.test_problems))
    return problems, test, NumericAnswerChecker(), policy
