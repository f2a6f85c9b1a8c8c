"""How good each step of a solution is, by letting the policy finish what comes before and after it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ....errors import unknown_name
from .sampling import Policy
from .solutions import AnswerChecker, Problem, StepSplitter, Tokens, tokenize

ESTIMATORS = ("any", "mean")


def best_of(q: float, k: int) -> float:
    """Q̃ = 1 - (1-q)^K: how often the best of K samples is right, if each is with probability q."""
    return 1 - (1 - q) ** k


def best_of_estimate(n: int, successes: int, k: int) -> float:
    """The unbiased estimate of `best_of` from n ≥ K samples, 1 - C(n-c, K)/C(n, K).

    Raises:
        ValueError: numbers that do not fit.
    """
    if not 0 <= successes <= n or not 1 <= k <= n:
        raise ValueError(f"{successes} right of {n} samples cannot tell of the best of {k}.")
    return 1 - math.comb(n - successes, k) / math.comb(n, k)


def step_advantages(q: Sequence[float], start: float) -> list[float]:
    """A_i of (1); their sum is Q_L - V(x).

    Args:
        q: Q_1 … Q_L.
        start: V(x).
    """
    return [now - before for before, now in zip([start, *q], q, strict=False)]


def first_pit(q: Sequence[float]) -> int:
    """c of (2), counted from 1.

    Raises:
        ValueError: no step.
    """
    if not q:
        raise ValueError("A solution without steps has no pit.")
    return min(range(len(q)), key=q.__getitem__) + 1


@dataclass
class StepValues:
    """What is known of a solution's steps.

    Attributes:
        problem: that it is for.
        text: the solution.
        tokens: the same, cut into steps.
        q: Q_1 …, up to the last step, or where `stop_at_zero` to the first with 0.
        found: by the number of steps before, a right ending that began there, if there was one.
    """

    problem: Problem
    text: str
    tokens: Tokens
    q: list[float] = field(default_factory=list)
    found: dict[int, str] = field(default_factory=dict)

    @property
    def pit(self) -> int:
        """c, from 1."""
        return first_pit(self.q)


def step_values(
    policy: Policy,
    solutions: Sequence[tuple[Problem, str]],
    checker: AnswerChecker,
    *,
    k: int = 5,
    estimator: str = "any",
    splitter: StepSplitter | None = None,
    stop_at_zero: bool = False,
    seed: int = 0,
) -> list[StepValues]:
    """Q of each step of each solution, by `k` endings of the prefix that it ends.

    The last step needs none: a whole solution is not continued. All solutions' prefixes of one number of
    steps are finished together.

    Args:
        policy: π_sft; another one may be better at telling steps apart.
        solutions: with their problems.
        checker: of answers.
        k: K endings of each prefix.
        estimator: "any", 1 if an ending is right, which estimates the best of K, or "mean".
        splitter: of steps; by lines by default.
        stop_at_zero: stops at the first Q of 0, which is the pit, whatever follows.
        seed: of the endings.

    Raises:
        ValueError: an unknown estimator, k below 1, or an empty solution.
    """
    if estimator not in ESTIMATORS:
        raise unknown_name("estimator", estimator, ESTIMATORS)
    if k < 1:
        raise ValueError(f"At least one ending is needed, not {k}.")
    splitter = splitter or StepSplitter()
    found = [
        StepValues(problem, text, tokenize(policy.tokenizer, problem, text, splitter))
        for problem, text in solutions
    ]
    steps, going = 0, list(found)
    while going:
        steps += 1
        done = [value for value in going if len(value.tokens.ends) == steps]
        for value in done:
            value.q.append(float(checker(value.problem, value.text)))
        going = [value for value in going if len(value.tokens.ends) > steps]
        prompts = [value.tokens.prompt + value.tokens.prefix(steps) for value in going]
        endings = policy.complete(prompts, k, seed + steps) if prompts else []
        for value, rests in zip(going, endings, strict=True):
            before = splitter.split(value.text)[:steps]
            right = [rest for rest in rests if checker(value.problem, "".join(before) + rest)]
            value.q.append(float(bool(right)) if estimator == "any" else len(right) / k)
            if right:
                value.found[steps] = right[0]
        if stop_at_zero:
            going = [value for value in going if value.q[-1] > 0]
    return found
