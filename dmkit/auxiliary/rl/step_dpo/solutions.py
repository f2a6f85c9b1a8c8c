"""Problems, solutions cut into steps, and checks of answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import FileFormatError, compiled

# (problem, text of a solution) -> whether its answer is right
AnswerChecker = Callable[["Problem", str], bool]


@dataclass(frozen=True)
class Problem:
    """What a model is asked.

    Attributes:
        question: the prompt, as the model shall see it.
        answer: what is right.
        solution: one that was given, to begin with; "" for none.

    Raises:
        ValueError: no answer.
    """

    question: str
    answer: str
    solution: str = ""

    def __post_init__(self) -> None:
        if not self.answer.strip():
            raise ValueError(f"The problem {self.question!r} has no answer.")


def read_problems(path: str | Path) -> list[Problem]:
    """Problems from JSON lines with `question`, `answer` and, where there is one, `solution`.

    Raises:
        FileFormatError: no such file, a line that is none, or no line at all.
    """
    problems = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} is missing or no text: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question, solution = row["question"], row.get("solution") or ""
            if not isinstance(question, str) or not isinstance(solution, str):
                raise TypeError("question and solution are text")
            problems.append(Problem(question, str(row["answer"]), solution))
        except (ValueError, KeyError, TypeError) as error:
            raise FileFormatError(f"{path}, line {number}: expected question and answer: {error}") from error
    if not problems:
        raise FileFormatError(f"{path} has no problem.")
    return problems


@dataclass(frozen=True)
class NumericAnswerChecker:
    """Whether the last of what a pattern finds is the problem's answer, as numbers where both are.

    Args:
        pattern: a regular expression whose first group with a match is the answer; "#### 7" and "\\boxed{7}"
            by default.
    """

    pattern: str = r"####\s*([^\n]+)|\\boxed\{([^{}]*)\}"

    def __call__(self, problem: Problem, text: str) -> bool:
        found = [next(filter(None, m.groups()), "") for m in re.finditer(self.pattern, text)]
        return bool(found) and _number(found[-1]) == _number(problem.answer)


def _number(text: str) -> Any:
    plain = text.strip().rstrip(".").replace(",", "").replace("$", "")
    try:
        return float(plain)
    except ValueError:
        return plain


@dataclass(frozen=True)
class StepSplitter:
    """Cuts a solution after each delimiter; a step has its delimiter at its end, and no step is empty.

    Args:
        delimiter: a regular expression; a line's end by default.

    Raises:
        ValueError: no regular expression, or one that matches nothing at all.
    """

    delimiter: str = r"\n+"

    def __post_init__(self) -> None:
        if compiled("delimiter", self.delimiter).match(""):
            raise ValueError(f"The delimiter {self.delimiter!r} matches an empty text.")

    def ends(self, text: str) -> list[int]:
        """Where each step ends, in characters; the last is len(text).

        Raises:
            ValueError: an empty solution.
        """
        if not text.strip():
            raise ValueError("An empty solution has no steps.")
        found = [match.end() for match in re.finditer(self.delimiter, text)]
        # What is after the last delimiter is a step if it says something.
        return [*(e for e in found if e < len(text) and text[e:].strip()), len(text)]

    def split(self, text: str) -> list[str]:
        """The steps; together they are the text."""
        ends = self.ends(text)
        return [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]


@dataclass(frozen=True)
class Tokens:
    """A solution as tokens.

    Attributes:
        prompt: of the question.
        solution: of the whole solution, without an end of text.
        ends: where each step ends, in tokens of the solution; a token across a border is the earlier step's.
    """

    prompt: list[int]
    solution: list[int]
    ends: list[int]

    def prefix(self, steps: int) -> list[int]:
        """The solution's first steps."""
        return self.solution[: self.ends[steps - 1]] if steps else []


def tokenize(tokenizer: Any, problem: Problem, text: str, splitter: StepSplitter) -> Tokens:
    """Tokens of a problem and one whole solution, cut where steps end.

    The text is tokenised once, and never a part of it: tokens may run across a delimiter.
    """
    prompt = tokenizer(problem.question)["input_ids"]
    if prompt and prompt[-1] == tokenizer.eos_token_id:
        prompt = prompt[:-1]  # of tokenizers that end every text
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = [start for start, _ in found["offset_mapping"]]
    ends = [sum(start < end for start in starts) for end in splitter.ends(text)]
    return Tokens(prompt, found["input_ids"], ends)
