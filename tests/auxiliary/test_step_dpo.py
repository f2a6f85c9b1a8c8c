"""Per-step negatives: values, pits, pairs, losses and their optima, and where texts are cut."""

import json
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from dmkit.auxiliary.rl.step_dpo import (
    LanguageModel,
    NumericAnswerChecker,
    Pair,
    Problem,
    StepSplitter,
    StepValues,
    advantage_weighted_loss,
    best_of,
    best_of_estimate,
    build_pairs,
    dpo_loss,
    first_pit,
    load_pairs,
    save_pairs,
    sequence_logps,
    step_advantages,
    step_values,
)
from dmkit.auxiliary.rl.step_dpo.arithmetic import (
    check,
    make_problems,
    tiny_model,
    tiny_tokenizer,
    wrong_steps,
)
from dmkit.auxiliary.rl.step_dpo.losses import IGNORED
from dmkit.auxiliary.rl.step_dpo.solutions import read_problems, tokenize
from dmkit.auxiliary.rl.step_dpo.tasks import pad_right
from dmkit.errors import FileFormatError

TOKENIZER = tiny_tokenizer()
PROBLEM = Problem("3 7 1 8 =\n", "9")
WRONG = "7 7\n3 1\n8 9\n1 0"  # 7 + 3 is 10: the second line
RIGHT = "7 7\n3 0\n8 8\n1 9"


class Rule:
    """A policy that solves from each prefix with a probability that is known."""

    tokenizer = TOKENIZER

    def __init__(self, chances: dict[int, float], seed: int = 0):
        self.chances, self.calls = chances, []
        self.generator = torch.Generator().manual_seed(seed)

    def complete(self, prompts, count, seed):
        self.calls.append(len(prompts))
        found = []
        for prompt in prompts:
            steps = TOKENIZER.decode(prompt).count("\n") - 1
            lines = RIGHT.split("\n")[steps:]
            lost = [*lines[:-1], lines[-1][:-1] + "4"]
            right = torch.rand(count, generator=self.generator) < self.chances[steps]
            found.append(["\n".join(lines if good else lost) for good in right.tolist()])
        return found


# Values


def test_the_best_of_k():
    for q, value in {0.1: 0.4095, 0.2: 0.6723, 0.5: 0.9688, 0.9: 1.0}.items():
        assert best_of(q, 5) == pytest.approx(value, abs=5e-5)
    for n in (5, 6, 7, 8):
        for q in (0.1, 0.37, 0.9):
            mean = sum(
                math.comb(n, c) * q**c * (1 - q) ** (n - c) * best_of_estimate(n, c, 5) for c in range(n + 1)
            )
            assert mean == pytest.approx(best_of(q, 5), abs=1e-12)
    assert [best_of_estimate(5, c, 5) for c in range(6)] == [0, 1, 1, 1, 1, 1]  # any success
    for bad in ((4, 1, 5), (5, 6, 5), (5, -1, 5), (5, 1, 0)):
        with pytest.raises(ValueError, match="cannot tell"):
            best_of_estimate(*bad)


def test_advantages_add_up():
    q = [0.6, 0.2, 0.4, 1.0]
    found = step_advantages(q, 0.5)
    assert found == pytest.approx([0.1, -0.4, 0.2, 0.6])
    assert 0.5 + sum(found) == pytest.approx(q[-1])


def test_the_pit_is_the_first_least():
    assert first_pit([0.6, 0.2, 0.2, 0.0]) == 4
    assert first_pit([0.6, 0, 0, 0]) == 2
    assert first_pit([0.0]) == 1
    with pytest.raises(ValueError, match="without steps"):
        first_pit([])


def test_known_chances_are_found():
    chances = {1: 0.8, 2: 0.5, 3: 0.1}
    k = 400
    (found,) = step_values(Rule(chances), [(PROBLEM, WRONG)], check, k=k, estimator="mean")
    for steps, q in chances.items():
        assert abs(found.q[steps - 1] - q) < 3 * math.sqrt(q * (1 - q) / k)
    assert found.q[3] == 0  # a wrong answer is the last pit that there can be
    assert found.pit == 4
    many = [(PROBLEM, WRONG)] * 400
    rate = [v.q[2] for v in step_values(Rule(chances), many, check, k=5, estimator="any")]
    assert abs(sum(rate) / 400 - best_of(0.1, 5)) < 3 * math.sqrt(0.41 * 0.59 / 400)


def test_a_noisy_any_misses_good_steps():
    """Q of 0 for a step from which one in five endings is right: a third of the time."""
    found = step_values(Rule({1: 0.2, 2: 1, 3: 1}), [(PROBLEM, WRONG)] * 600, check, k=5)
    missed = sum(v.q[0] == 0 for v in found) / 600
    assert abs(missed - 0.8**5) < 3 * math.sqrt(0.33 * 0.67 / 600)


def test_the_scan_stops_where_nothing_is_right():
    rule = Rule({1: 1.0, 2: 0.0, 3: 1.0})
    (found,) = step_values(rule, [(PROBLEM, WRONG)], check, k=5, stop_at_zero=True)
    assert (found.q, found.pit, rule.calls) == ([1.0, 0.0], 2, [1, 1])
    assert found.found == {1: "3 0\n8 8\n1 9"}
    rule = Rule({1: 1.0, 2: 0.0, 3: 1.0})
    (whole,) = step_values(rule, [(PROBLEM, WRONG)], check, k=5)
    assert (whole.q, whole.pit, rule.calls) == ([1.0, 0.0, 1.0, 0.0], 2, [1, 1, 1])
    # A whole solution is not continued, however it ends.
    rule = Rule({})
    (short,) = step_values(rule, [(PROBLEM, "7 7 3 0 8 8 1 9")], check)
    assert (short.q, rule.calls) == ([1.0], [])


def test_what_values_refuse():
    for changes, message in (({"estimator": "max"}, "Unknown estimator"), ({"k": 0}, "At least one ending")):
        with pytest.raises(ValueError, match=message):
            step_values(Rule({}), [(PROBLEM, WRONG)], check, **changes)
    with pytest.raises(ValueError, match="empty solution has no steps"):
        step_values(Rule({}), [(PROBLEM, " \n")], check)


# Texts


def test_steps_are_cut_after_their_delimiter():
    splitter = StepSplitter()
    assert splitter.split("a\nb\n\nc") == ["a\n", "b\n\n", "c"]
    assert splitter.split("a\nb\n") == ["a\n", "b\n"]
    assert StepSplitter(r"(?<=\.) ").split("One. Two. 3") == ["One. ", "Two. ", "3"]
    for text in ("a\nb\n\nc", "\n\na", "a", "a\n \n"):
        assert "".join(splitter.split(text)) == text
    for bad, message in (("(", "no regular expression"), ("x*", "matches an empty text")):
        with pytest.raises(ValueError, match=message):
            StepSplitter(bad)


def merging_tokenizer():
    """Letters in pairs, across the end of a line, too."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    letters = ["<eos>", "a", "b", "\n", "b\n", "\na", "b\na"]
    model = models.BPE({t: k for k, t in enumerate(letters)}, [("b", "\n"), ("b\n", "a")])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="<eos>")


def test_tokens_are_cut_where_the_whole_text_has_them():
    tokenizer = merging_tokenizer()
    cut = tokenize(tokenizer, Problem("a", "a"), "ab\nab", StepSplitter())
    assert tokenizer.convert_ids_to_tokens(cut.solution) == ["a", "b\na", "b"]
    assert cut.ends == [2, 3]  # the token across the border belongs to the earlier step
    assert cut.prefix(1) + cut.solution[cut.ends[0] :] == cut.solution
    # A part of the text has other tokens: it must not be tokenised anew.
    assert tokenizer("ab\n", add_special_tokens=False)["input_ids"] != cut.prefix(1)


def test_answers_are_compared_as_numbers():
    right = NumericAnswerChecker()
    problem = Problem("How many?", "1,200")
    assert right(problem, "so\n#### 1200")
    assert right(problem, "#### 5\nno:\n#### 1200.0")
    assert right(problem, r"it is $\boxed{1200}$.")
    assert not right(problem, "1200")
    assert not right(problem, "#### 1201")
    assert right(Problem("Which?", "x + 1"), r"\boxed{x + 1}")
    with pytest.raises(ValueError, match="has no answer"):
        Problem("How many?", " ")


def test_problems_are_read(tmp_path):
    path = tmp_path / "problems.jsonl"
    rows = [{"question": "1+1", "answer": 2}, {"question": "2+2", "answer": "4", "solution": "#### 4"}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert read_problems(path) == [Problem("1+1", "2"), Problem("2+2", "4", "#### 4")]
    for broken in ('{"question": "1"}', "no", '{"question": "1", "answer": ""}', "[1]"):
        path.write_text(broken)
        with pytest.raises(FileFormatError, match="line 1"):
            read_problems(path)
    path.write_text('{"question": 3, "answer": 4}')
    with pytest.raises(FileFormatError, match="question and solution are text"):
        read_problems(path)
    path.write_text('{"question": "1+1", "answer": 2, "solution": null}')
    assert read_problems(path) == [Problem("1+1", "2")]
    path.write_text("\n")
    with pytest.raises(FileFormatError, match="has no problem"):
        read_problems(path)
    path.write_bytes(b"\xff\xfe\x00")
    for bad in (path, tmp_path / "nowhere"):
        with pytest.raises(FileFormatError, match="is missing or no text"):
            read_problems(bad)


def test_generated_problems():
    problems = make_problems(50, 3, template="words")
    assert len({p.question for p in problems}) == 50
    assert not {p.question for p in problems} & {p.question for p in make_problems(9, 3, start=50)}
    for problem in problems:
        assert check(problem, problem.solution)
        assert wrong_steps(problem, problem.solution) == (0, 4)
        ids = TOKENIZER(problem.question + problem.solution)["input_ids"]
        assert TOKENIZER.pad_token_id not in ids
        assert TOKENIZER.decode(ids) == problem.question + problem.solution
    assert wrong_steps(PROBLEM, WRONG) == (1, 4)  # what follows from a mistake is none
    assert wrong_steps(PROBLEM, "7 7\n7 4\n8 2\nx") == (2, 4)
    # Wrong steps whose answer is right: the check does not see them, and shall not.
    assert check(PROBLEM, "7 7\n7 4\n8 2\n7 9")
    assert not check(PROBLEM, "7 7\n3 0\n9")
    for bad in ((0, 0), (10_001, 0), (10, 9_995)):
        with pytest.raises(ValueError, match="There are 10000 problems"):
            make_problems(bad[0], 0, start=bad[1])


# Pairs


def negative(q: list[float], text: str = WRONG, **changes) -> StepValues:
    return StepValues(PROBLEM, text, tokenize(TOKENIZER, PROBLEM, text, StepSplitter()), q, **changes)


def pair(value: StepValues, pairing: str, right=(RIGHT,), **changes):
    pairs, left_out = build_pairs(TOKENIZER, {PROBLEM.question: right}, [value], pairing=pairing, **changes)
    return (pairs[0] if pairs else None), left_out


def words(ids: list[int]) -> str:
    return TOKENIZER.decode(ids)


def test_a_prefix_that_is_cut_off_has_no_end_of_text():
    found, _ = pair(negative([1.0, 0.0]), "pit_prefix")
    assert words(found.prompt) == PROBLEM.question
    assert words(found.chosen) == RIGHT + " <eos>"
    assert found.rejected == TOKENIZER("7 7\n3 1\n")["input_ids"]
    assert (found.pit, found.q_chosen, found.q_rejected) == (2, 1.0, 0.0)


def test_a_pit_at_the_end_is_the_whole_solution():
    value = negative([1.0, 0.6, 0.2, 0.0])
    cut, _ = pair(value, "pit_prefix")
    whole, _ = pair(value, "full")
    assert (cut.prompt, cut.chosen) == (whole.prompt, whole.chosen)
    assert [*cut.rejected, TOKENIZER.eos_token_id] == whole.rejected
    assert whole.pit == 0


def test_a_shared_prefix_is_prompt():
    found, _ = pair(negative([1.0, 0.0], found={1: "3 0\n8 8\n1 9"}), "shared_prefix")
    assert words(found.prompt) == PROBLEM.question + "7 7\n"
    assert (words(found.chosen), words(found.rejected)) == ("3 0\n", "3 1\n")
    assert (found.q_chosen, found.q_rejected) == (1.0, 0.0)
    # In the first step it is a right solution's, worth what the problem is.
    first, _ = pair(negative([0.0], "9 9\n3 2\n8 0\n1 1"), "shared_prefix", starts={PROBLEM.question: 0.25})
    assert (words(first.prompt), words(first.chosen)) == (PROBLEM.question, "7 7\n")
    assert first.q_chosen == 0.25
    # In the last one both are whole, and end.
    value = negative([1.0, 1.0, 0.4, 0.0], "7 7\n3 0\n8 8\n1 0", found={3: "1 9"})
    last, _ = pair(value, "shared_prefix")
    assert (words(last.chosen), words(last.rejected)) == ("1 9 <eos>", "1 0 <eos>")


def test_what_makes_no_pair():
    alike = negative([1.0, 0.0], found={1: "3 1\n8 9\n1 9"})
    with pytest.warns(UserWarning, match="no pair to learn from.*alike"):
        found, left_out = pair(alike, "shared_prefix")
    assert (found, left_out["alike"]) == (None, 1)
    for value, pairing, right in ((negative([0.0]), "full", ()), (negative([1.0, 0.0]), "shared_prefix", ())):
        with pytest.warns(UserWarning, match="no right solution"):
            assert pair(value, pairing, right)[0] is None
    with pytest.raises(ValueError, match=r"Unknown pairing 'ful'\. Did you mean 'full'"):
        pair(alike, "ful")
    with pytest.raises(ValueError, match="Step 5 of a solution with 4 steps"):
        pair(negative([1, 1, 1, 1, 0]), "pit_prefix")
    with pytest.raises(ValueError, match="is empty"):
        Pair([1], [], [2])
    with pytest.raises(ValueError, match="chosen continuation is the rejected one"):
        Pair([1], [2, 3], [2, 3])


def test_problems_that_are_never_solved_are_capped():
    easy = [Problem(f"{k} 7 1 8 =\n", "9") for k in range(8)]
    values = [StepValues(p, WRONG, tokenize(TOKENIZER, p, WRONG, StepSplitter()), [0.0]) for p in easy]
    starts = {p.question: 0.0 if k < 6 else 0.5 for k, p in enumerate(easy)}
    right = {p.question: [RIGHT] for p in easy}
    for share, left in ((1.0, 8), (0.5, 6), (0.0, 2)):
        found, left_out = build_pairs(TOKENIZER, right, values, starts=starts, max_hopeless=share)
        assert (len(found), left_out["hopeless"]) == (left, 8 - left)


def test_pairs_are_saved_and_read(tmp_path):
    found, _ = pair(negative([1.0, 0.0]), "pit_prefix")
    path = tmp_path / "new" / "pairs.jsonl"
    save_pairs(path, [found], TOKENIZER, seed=3, model="tiny")
    pairs, about = load_pairs(path)
    assert pairs == [found]
    assert about == {"format": 1, "seed": 3, "model": "tiny"}
    assert json.loads(path.read_text().splitlines()[1])["chosen_text"] == RIGHT + " <eos>"
    for broken in ("", "{}\n", '{"format": 2}\n', '{"format": 1}\n{"prompt": [1]}\n'):
        path.write_text(broken)
        with pytest.raises(FileFormatError, match="holds no pairs"):
            load_pairs(path)


# Losses

REFERENCE = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
Q = torch.tensor([0.9, 0.5, 0.2, 0.0], dtype=torch.float64)


def population(theta: torch.Tensor, beta: float, soft: bool) -> torch.Tensor:
    """The loss over all ordered pairs of next steps that π_ref draws."""
    log, ref = theta.log_softmax(0), REFERENCE.log()
    i, j = torch.cartesian_prod(torch.arange(4), torch.arange(4)).unbind(1)
    better = (Q[i] - Q[j]).sigmoid() if soft else (Q[i] > Q[j]).double() + 0.5 * (Q[i] == Q[j])
    losses, _ = dpo_loss(log[i], log[j], ref[i], ref[j], beta=beta, probability=better)
    return (REFERENCE[i] * REFERENCE[j] * losses).sum()


@pytest.mark.parametrize(
    ("beta", "expected"), [(0.3, (0.4957, 0.2613, 0.1442, 0.0987)), (1.0, (0.1833, 0.2457, 0.2730, 0.2980))]
)
def test_soft_labels_have_the_optimum_of_advantage_weights(beta, expected):
    theta = REFERENCE.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=300, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = population(theta, beta, soft=True)
        loss.backward()
        return loss

    optimizer.step(closure)
    found = theta.detach().softmax(0)
    weighted = REFERENCE * torch.exp(Q / beta)
    torch.testing.assert_close(found, weighted / weighted.sum(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=6e-5, rtol=0)
    # (3) has it, too: at the optimum its gradient is 0 for every direction of θ.
    theta = found.log().requires_grad_()
    loss = -(REFERENCE * torch.exp((Q - 0.4) / beta) * theta.log_softmax(0)).sum()
    (gradient,) = torch.autograd.grad(loss, theta)
    torch.testing.assert_close(gradient, torch.zeros(4, dtype=torch.float64), atol=1e-5, rtol=0)


def test_hard_labels_have_no_optimum():
    theta = REFERENCE.log().clone().requires_grad_()
    best = []
    for _ in range(60):
        (gradient,) = torch.autograd.grad(population(theta, 0.3, soft=False), theta)
        with torch.no_grad():
            theta -= 20 * gradient
        best.append(theta.detach().softmax(0)[0].item())
    assert all(b > a for a, b in pairwise(best))
    assert best[-1] > 0.9 > 0.4957


def test_the_loss_at_the_start():
    chosen = torch.tensor([-3.0, -40.0], requires_grad=True)
    rejected = torch.tensor([-5.0, -1.0], requires_grad=True)
    losses, margins = dpo_loss(chosen, rejected, chosen.detach(), rejected.detach(), beta=0.3)
    assert losses.tolist() == pytest.approx([0.693147] * 2, abs=1e-6)
    assert margins.tolist() == [0, 0]
    for gradient, sign in zip(torch.autograd.grad(losses.sum(), (chosen, rejected)), (-1, 1), strict=True):
        assert gradient.tolist() == pytest.approx([sign * 0.15] * 2)


def test_smoothed_and_sure_labels():
    a = [torch.tensor([x]) for x in (-2.0, -3.0, -2.5, -2.8)]
    sure, h = dpo_loss(*a, beta=2.0)
    assert h.item() == pytest.approx(2 * (0.5 + 0.2))
    turned, _ = dpo_loss(a[1], a[0], a[3], a[2], beta=2.0)
    smooth, _ = dpo_loss(*a, beta=2.0, probability=0.9)
    torch.testing.assert_close(smooth, 0.9 * sure + 0.1 * turned)


def test_what_the_loss_refuses():
    two, three = torch.zeros(2), torch.zeros(3)
    with pytest.raises(ValueError, match="beta is positive, not 0"):
        dpo_loss(two, two, two, two, beta=0)
    with pytest.raises(ValueError, match=r"four of one shape, not \[\(2,\), \(3,\)"):
        dpo_loss(two, three, two, two)
    with pytest.raises(ValueError, match=r"max_hopeless is a share in \[0, 1\], not 2"):
        build_pairs(TOKENIZER, {}, [], max_hopeless=2)


def logits_and_labels(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 5, 7, generator=generator)
    labels = torch.randint(7, (2, 5), generator=generator)
    labels[:, :2] = IGNORED
    return logits, labels


def test_log_probabilities_are_sums_over_the_answer():
    logits, labels = logits_and_labels()
    found = sequence_logps(logits, labels)
    by_hand = [
        sum(logits[b, t - 1].log_softmax(0)[labels[b, t]].item() for t in range(2, 5)) for b in range(2)
    ]
    assert found.tolist() == pytest.approx(by_hand, abs=1e-5)  # not a mean
    other = logits.clone()
    other[:, 0] += torch.randn(7)  # what predicts a token of the prompt
    assert torch.equal(sequence_logps(other, labels), found)


def test_advantage_weights():
    logits, labels = logits_and_labels()
    logits.requires_grad_()
    steps = torch.tensor([[9, 9, 0, 0, 1]] * 2)
    advantages = torch.tensor([[0.5, -0.5], [0.0, 40.0]])
    loss = advantage_weighted_loss(logits, labels, steps, advantages, beta=0.5, max_weight=20)
    logs = logits.log_softmax(2)
    each = torch.stack([logs[b, t - 1, labels[b, t]] for b in range(2) for t in (2, 3, 4)]).view(2, 3)
    weights = torch.tensor([[math.e, math.e, 1 / math.e], [1, 1, 20]])
    torch.testing.assert_close(loss, -(weights * each).sum() / 2)
    with pytest.raises(ValueError, match="beta is positive"):
        advantage_weighted_loss(logits, labels, steps, advantages, beta=0)


# A model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return tiny_model(TOKENIZER, width=16, layers=1, heads=2).eval()


def logps_of(model, rows) -> torch.Tensor:
    found = pad_right(rows)
    with torch.no_grad():
        logits = model(input_ids=found["input_ids"], attention_mask=found["attention_mask"]).logits
    return sequence_logps(logits, found["labels"])


def test_the_shared_prefix_cancels(model):
    prompt = TOKENIZER(PROBLEM.question)["input_ids"]
    shared, a, b = (TOKENIZER(text)["input_ids"] for text in ("7 7\n", "3 0\n", "3 1\n"))
    as_prompt = logps_of(model, [(prompt + shared, a), (prompt + shared, b)])
    counted = logps_of(model, [(prompt, shared + a), (prompt, shared + b)])
    torch.testing.assert_close(as_prompt[0] - as_prompt[1], counted[0] - counted[1])
    assert (counted < as_prompt).all()


def test_padding_changes_nothing(model):
    short = (TOKENIZER("1 2\n")["input_ids"], [5, 1])
    long = (TOKENIZER(PROBLEM.question)["input_ids"], TOKENIZER(RIGHT)["input_ids"] + [1])
    together = logps_of(model, [short, long])
    torch.testing.assert_close(together, torch.cat([logps_of(model, [short]), logps_of(model, [long])]))
    # On the left, for generation, with the end of text as padding.
    policy = LanguageModel(model, TOKENIZER, temperature=0, max_new_tokens=6)
    prompts = [short[0], long[0]]
    alone = [policy.complete([prompt], 1, 0)[0] for prompt in prompts]
    assert policy.complete(prompts, 1, 0) == alone
    before, TOKENIZER.pad_token = TOKENIZER.pad_token, None
    try:
        assert policy.complete(prompts, 1, 0) == alone
    finally:
        TOKENIZER.pad_token = before


def test_log_probabilities_are_those_of_generation(model):
    prompt = torch.tensor([TOKENIZER(PROBLEM.question)["input_ids"]])
    torch.manual_seed(1)
    out = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=6,
        do_sample=True,
        top_k=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    new = out.sequences[0, prompt.shape[1] :].tolist()
    scored = sum(s[0].log_softmax(0)[t].item() for s, t in zip(out.scores, new, strict=True))
    assert logps_of(model, [(prompt[0].tolist(), new)]).item() == pytest.approx(scored, abs=1e-4)


def test_samples(model):
    policy = LanguageModel(model, TOKENIZER, max_new_tokens=5, batch_size=3)
    prompts = [TOKENIZER(p.question)["input_ids"] for p in make_problems(3, 0)]
    before = torch.random.get_rng_state()
    found = policy.complete(prompts, 4, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [len(texts) for texts in found] == [4, 4, 4]
    assert policy.complete(prompts, 4, seed=1) == found != policy.complete(prompts, 4, seed=2)
    assert not any("<eos>" in text for texts in found for text in texts)


def test_what_a_language_model_refuses(model):
    nameless = merging_tokenizer()
    nameless.eos_token = None
    with pytest.raises(ValueError, match="has no end of text"):
        LanguageModel(model, nameless)
    with pytest.raises(ValueError, match="batches at least 1"):
        LanguageModel(model, TOKENIZER, max_new_tokens=0)
