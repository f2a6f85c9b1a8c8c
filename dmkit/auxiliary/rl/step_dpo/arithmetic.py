"""Generated word problems that a tiny model learns in a minute, and that tiny model.

A question names four numbers from 0 to 9. A solution adds them in any order, a line each with the number that
is added and the last digit of the sum so far; the last of these is the answer:

    Ann 3 Bob 7 Cem 1 Dot 8 ?
    7 7
    3 0
    8 8
    1 9

The check looks at the last digit only. Numbers used twice and wrong sums can end in the right one.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from torch import nn

from .solutions import Problem

NAMES, COUNT = ("Ann", "Bob", "Cem", "Dot"), 4
TEMPLATES = {"words": " ".join(f"{name} {{}}" for name in NAMES) + " ?\n", "digits": "{} {} {} {} =\n"}
LONGEST = 3 * COUNT


def make_problems(count: int, seed: int, *, template: str = "digits", start: int = 0) -> list[Problem]:
    """Different problems, each with a right solution in a random order.

    Args:
        count: how many; `start` + `count` are at most 10,000.
        seed: of a shuffle of all, and of the orders.
        template: "words", as above, or "digits", which says no more than the numbers.
        start: problems that are passed over, so that others with the same seed are apart.

    Raises:
        ValueError: more than there are.
    """
    if count < 1 or start < 0 or start + count > 10**COUNT:
        raise ValueError(f"There are {10**COUNT} problems; {count} after {start} cannot be had.")
    draw = random.Random(seed)
    numbers = draw.sample(range(10**COUNT), 10**COUNT)[start : start + count]
    problems = []
    for number in numbers:
        digits = [int(digit) for digit in f"{number:0{COUNT}}"]
        order, total, lines = draw.sample(digits, COUNT), 0, []
        for digit in order:
            total = (total + digit) % 10
            lines.append(f"{digit} {total}")
        problems.append(Problem(TEMPLATES[template].format(*digits), str(total), "\n".join(lines)))
    return problems


def check(problem: Problem, text: str) -> bool:
    """Whether a solution has four lines, and ends with the answer."""
    words = text.split()
    return len(words) == 2 * COUNT and words[-1] == problem.answer


def wrong_steps(problem: Problem, text: str) -> tuple[int, int]:
    """How many lines of a solution use a number that is not left or have a wrong sum, and how many there are.

    Sums are judged by the line before, so that a mistake counts once.
    """
    left = Counter(word for word in problem.question.split() if word.isdigit())
    total, wrong, lines = 0, 0, [line.split() for line in text.splitlines() if line.strip()]
    for words in lines:
        if len(words) != 2 or not all(word.isdigit() for word in words):
            wrong += 1
            continue
        digit, said = words
        fine = left[digit] > 0 and (total + int(digit)) % 10 == int(said)
        left[digit] -= 1
        total, wrong = int(said), wrong + (not fine)
    return wrong, len(lines)


def tiny_tokenizer() -> Any:
    """A word a token: digits, the questions' words, and the line's end."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", *map(str, range(10)), "\n", "=", "?", *NAMES]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(" "), "removed"), pre_tokenizers.Split(Regex("\n"), "isolated")]
    )
    tokenizer.decoder = decoders.Sequence(  # a space between words, none beside a line's end
        [
            decoders.Replace(Regex(r"\z"), " "),
            decoders.Fuse(),
            decoders.Replace(Regex(" *\n *"), "\n"),
            decoders.Replace(Regex(r" \z"), ""),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def tiny_model(tokenizer: Any, width: int = 48, layers: int = 2, heads: int = 4) -> nn.Module:
    """A Llama with random weights of the global random numbers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=64,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
