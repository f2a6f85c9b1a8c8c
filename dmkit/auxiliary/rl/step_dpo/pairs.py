"""Pairs of a better and a worse continuation, from wrong solutions whose steps have values."""

from __future__ import annotations

import json
import random
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...._files import atomic_file
from ....errors import FileFormatError, unknown_name
from .solutions import Problem, StepSplitter, tokenize
from .values import StepValues

PAIRINGS = ("pit_prefix", "shared_prefix", "full")
FORMAT, TEXTS = 1, ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """A row of preference data, in token ids; `prompt + chosen` is never tokenised anew.

    Attributes:
        prompt: what both continue.
        chosen: ends with the end of text only where it is a whole solution.
        rejected: the same; a prefix that is cut off at its pit has no end of text, which would teach not to
            stop there.
        pit: c, from 1; 0 where the whole solution is rejected.
        q_chosen: Q of the chosen continuation.
        q_rejected: Q of the rejected one.

    Raises:
        ValueError: an empty continuation, or both alike.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    pit: int = 0
    q_chosen: float | None = None
    q_rejected: float | None = None

    def __post_init__(self) -> None:
        if not self.chosen or not self.rejected:
            raise ValueError("A continuation is empty.")
        if self.chosen == self.rejected:
            raise ValueError("The chosen continuation is the rejected one.")


def build_pairs(
    tokenizer: Any,
    positives: Mapping[str, Sequence[str]],
    negatives: Sequence[StepValues],
    *,
    pairing: str = "pit_prefix",
    splitter: StepSplitter | None = None,
    starts: Mapping[str, float] | None = None,
    max_hopeless: float = 1.0,
    seed: int = 0,
) -> tuple[list[Pair], Counter[str]]:
    """A pair for each wrong solution that has one.

    Args:
        tokenizer: of the model.
        positives: right solutions by question.
        negatives: wrong solutions with the values of their steps.
        pairing: "pit_prefix", (x, a right solution, ŷ_1 … ŷ_c), the paper's; "shared_prefix", (x and
            ŷ_1 … ŷ_(c-1), the first step of a right ending from there, ŷ_c), the theory's; or "full", (x, a
            right solution, ŷ).
        splitter: as for the values.
        starts: V(x) by question, for `max_hopeless`, and for what a shared prefix of no step is worth.
        max_hopeless: largest share of pairs whose problem has V(x) = 0, in [0, 1]: too hard to learn from.
        seed: of which right solution a wrong one is paired with.

    Returns:
        The pairs, and how many wrong solutions had none: "no right solution", "alike", "hopeless".

    Raises:
        ValueError: an unknown pairing, a share outside [0, 1], or a pit beyond a solution's steps.

    Warns:
        UserWarning: no pair at all.
    """
    if pairing not in PAIRINGS:
        raise unknown_name("pairing", pairing, PAIRINGS)
    if not 0 <= max_hopeless <= 1:
        raise ValueError(f"max_hopeless is a share in [0, 1], not {max_hopeless}.")
    splitter, draw, left_out = splitter or StepSplitter(), random.Random(seed), Counter[str]()
    made: list[tuple[Problem, Pair]] = []
    for value in negatives:
        parts = _continuations(
            tokenizer, value, positives.get(value.problem.question, ()), pairing, splitter, draw
        )
        if parts is None:
            left_out["no right solution"] += 1
        elif parts[1] == parts[2]:
            left_out["alike"] += 1
        else:
            pit, better = 0 if pairing == "full" else value.pit, 1.0
            if pairing == "shared_prefix":  # V of the prefix, which its next steps have on average
                before = (starts or {}).get(value.problem.question, 1.0)
                better = value.q[pit - 2] if pit > 1 else before
            made.append((value.problem, Pair(*parts, pit, better, min(value.q))))
    if starts is not None:
        hopeless = [k for k, (problem, _) in enumerate(made) if starts.get(problem.question) == 0]
        allowed = int(max_hopeless * len(made))
        dropped = set(draw.sample(hopeless, max(0, len(hopeless) - allowed)))
        left_out["hopeless"] += len(dropped)
        made = [one for k, one in enumerate(made) if k not in dropped]
    if not made:
        warnings.warn(f"There is no pair to learn from: {dict(left_out)}.", stacklevel=2)
    return [pair for _, pair in made], left_out


def _continuations(
    tokenizer: Any,
    value: StepValues,
    right: Sequence[str],
    pairing: str,
    splitter: StepSplitter,
    draw: random.Random,
) -> tuple[list[int], list[int], list[int]] | None:
    tokens, eos, pit = value.tokens, tokenizer.eos_token_id, value.pit
    if pit > len(tokens.ends):
        raise ValueError(f"Step {pit} of a solution with {len(tokens.ends)} steps.")
    if pairing == "shared_prefix" and pit > 1:
        if (rest := value.found.get(pit - 1)) is None:
            return None
        before = "".join(splitter.split(value.text)[: pit - 1])
        whole = tokenize(tokenizer, value.problem, before + rest, splitter)
        shared = tokens.prefix(pit - 1)
        if len(whole.ends) < pit or whole.prefix(pit - 1) != shared:  # it merges over the border
            return None
    elif right:
        whole, shared = tokenize(tokenizer, value.problem, draw.choice(right), splitter), []
    else:
        return None
    prompt = tokens.prompt + shared
    if pairing == "full":
        return prompt, [*whole.solution, eos], [*tokens.solution, eos]
    if pairing == "pit_prefix":
        return prompt, [*whole.solution, eos], tokens.prefix(pit)
    ending = [eos] if len(whole.ends) == pit else []
    rejected = tokens.prefix(pit)[len(shared) :] + ([eos] if len(tokens.ends) == pit else [])
    return prompt, whole.prefix(pit)[len(shared) :] + ending, rejected


def save_pairs(path: str | Path, pairs: Sequence[Pair], tokenizer: Any, **about: Any) -> None:
    """JSON lines: what the pairs are of, then one a line, in ids and as text."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as draft, draft.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"format": FORMAT, **about}) + "\n")
        for pair in pairs:
            text = {
                f"{name}_text": tokenizer.decode(ids) for name, ids in asdict(pair).items() if name in TEXTS
            }
            file.write(json.dumps({**asdict(pair), **text}) + "\n")


def load_pairs(path: str | Path) -> tuple[list[Pair], dict[str, Any]]:
    """What `save_pairs` wrote.

    Raises:
        FileFormatError: another file, or a damaged one.
    """
    try:
        first, *lines = Path(path).read_text(encoding="utf-8").splitlines()
        about = json.loads(first)
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']}")
        rows = [json.loads(line) for line in lines]
        names = Pair.__dataclass_fields__
        return [Pair(**{name: row[name] for name in names}) for row in rows], about
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{path} holds no pairs of this format: {error}") from error
