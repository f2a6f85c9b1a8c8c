"""Per-step negatives in the trainer: DPO's start, context, processes, the whole way, arguments."""

import json
import multiprocessing
import os
import socket
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dmkit import auxiliary
from dmkit.auxiliary.rl.step_dpo import (
    AdvantageTask,
    LanguageModel,
    Pair,
    PreferenceTask,
    Problem,
    StepSplitter,
    StepValues,
    SupervisedTask,
    load_pairs,
)
from dmkit.auxiliary.rl.step_dpo.arithmetic import check, make_problems, tiny_model, tiny_tokenizer
from dmkit.auxiliary.rl.step_dpo.solutions import tokenize
from dmkit.auxiliary.rl.step_dpo.tasks import (
    advantage_rows,
    fitting,
    preference_rows,
    supervised_rows,
)
from dmkit.auxiliary.rl.step_dpo.training import Arguments, collect, evaluate, fit, run, supervised
from dmkit.errors import FileFormatError
from dmkit.training.arguments import TrainingArguments

TOKENIZER = tiny_tokenizer()
PROBLEMS = make_problems(24, 0)


def training(folder: Path, **changes) -> TrainingArguments:
    values = {
        "output_dir": str(folder),
        "train_batch_size": 8,
        "max_train_steps": 3,
        "learning_rate": 1e-3,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "checkpointing_steps": 0,
        "save_images_epochs": 0,
        "save_model_epochs": 0,
        "report_to": "none",
    }
    return TrainingArguments(**{**values, **changes})


def small_model(**changes):
    torch.manual_seed(0)
    model = tiny_model(TOKENIZER, width=16, layers=1, heads=2)
    for name, value in changes.items():
        setattr(model.config, name, value)
    return model


def some_pairs(**changes) -> list[Pair]:
    """Right solutions, and the same with another last digit, cut off there."""
    pairs = []
    for problem in PROBLEMS:
        prompt, ids = (TOKENIZER(text)["input_ids"] for text in (problem.question, problem.solution))
        worse = [*ids[:-1], 2 + (ids[-1] - 1) % 10]
        pairs.append(Pair(prompt, [*ids, TOKENIZER.eos_token_id], worse, 4, **changes))
    return pairs


@pytest.mark.parametrize("options", [{}, {"soft_labels": True}, {"label_smoothing": 0.2}])
def test_dpo_starts_at_its_reference(options):
    """With a dropout in the model too: it is off for both."""
    model = small_model()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    pairs, soft = some_pairs(q_chosen=1.0, q_rejected=0.2), "soft_labels" in options
    rows, dropped = preference_rows(pairs, model, soft_labels=soft)
    task = PreferenceTask(model.train(), beta=0.3, **options)
    found = task.figures(rows)
    assert found["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert (found["rewards/accuracies"], dropped) == (0, 0)
    assert abs(found["rewards/margins"]) < 1e-6
    batch = {name: column[:8] for name, column in rows.columns.items()}
    loss = task.training_step(batch, None)["loss"]
    assert loss.item() == pytest.approx(0.693147, abs=1e-6)
    loss.backward()
    assert max(p.grad.abs().max() for p in model.parameters()) > 0
    probability = torch.sigmoid(torch.tensor(0.8)) if soft else torch.tensor(1.0)
    torch.testing.assert_close(rows.columns["probability"], probability.expand(24))


def test_dpo_learns_its_pairs(tmp_path):
    model = small_model()
    rows, _ = preference_rows(some_pairs(), model)
    before = deepcopy(model.state_dict())
    trained = fit(lambda m: PreferenceTask(m, beta=0.5), model, rows, training(tmp_path, max_train_steps=25))
    found = PreferenceTask(trained, beta=0.5).figures(rows)
    assert found["loss"] < 0.6
    assert found["rewards/accuracies"] > 0.9
    assert found["logps/rejected_change"] < found["logps/chosen_change"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_longer_than_the_context_is_left_out_whole():
    model = small_model(max_position_embeddings=17)
    pairs = some_pairs()
    assert len(pairs[0].prompt) + len(pairs[0].chosen) == 18
    short = Pair(pairs[0].prompt, pairs[0].chosen[:3], pairs[0].rejected[:4])
    rows, dropped = preference_rows([*pairs, short], model)
    assert (len(rows), dropped) == (1, 24)
    with pytest.raises(ValueError, match=r"no pair to learn from.*24 are longer"):
        preference_rows(pairs, model)
    assert fitting(["a", "b"], [17, 18], model) == (["a"], 1)
    assert fitting(["a", "b"], [17, 18], torch.nn.Linear(1, 1)) == (["a", "b"], 0)


def test_what_tasks_refuse():
    model = small_model()
    with pytest.raises(ValueError, match="need q_chosen and q_rejected of every pair"):
        preference_rows(some_pairs(), model, soft_labels=True)
    for options in ({"beta": 0}, {"label_smoothing": 0.5}):
        with pytest.raises(ValueError, match=r"beta is positive and label_smoothing in \[0, 0\.5\)"):
            PreferenceTask(model, **options)
    with pytest.raises(ValueError, match="label_smoothing must be 0"):
        PreferenceTask(model, soft_labels=True, label_smoothing=0.1)
    for nothing in (lambda: supervised_rows([]), lambda: advantage_rows([], {}, 1)):
        with pytest.raises(ValueError, match="no solution to learn"):
            nothing()


def test_rows_of_solutions():
    rows = supervised(TOKENIZER, {p: [p.solution] for p in PROBLEMS[:3]}, StepSplitter())
    columns = supervised_rows(rows).columns
    labels = columns["labels"][0]
    assert labels[:5].tolist() == [-100] * 5 or (labels == -100).sum() == len(rows[0][0])
    assert labels[labels != -100][-1] == TOKENIZER.eos_token_id
    # The mean over solutions of the mean over their tokens, whatever the padding is.
    task, batch = SupervisedTask(small_model().eval()), supervised_rows(rows).columns
    alone = [task.training_step(supervised_rows([row]).columns, None)["loss"] for row in rows]
    torch.testing.assert_close(task.training_step(batch, None)["loss"], sum(alone) / 3)


def test_advantages_of_steps(tmp_path):
    problem = Problem("3 7 1 8 =\n", "9")
    solutions = {"7 7\n3 0\n8 8\n1 9": [0.5, 1, 1, 1], "7 7\n3 1\n8 9\n1 0": [0.5, 0]}
    values = [
        StepValues(problem, text, tokenize(TOKENIZER, problem, text, StepSplitter()), q)
        for text, q in solutions.items()
    ]
    columns = advantage_rows(values, {problem.question: 0.25}, TOKENIZER.eos_token_id).columns
    assert columns["advantages"].tolist() == [[0.25, 0.5, 0, 0], [0.25, -0.5, 0, 0]]
    assert columns["step_ids"][0, 6:].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert columns["labels"][0, -1] == TOKENIZER.eos_token_id
    learnt = columns["labels"][1] != -100  # up to the pit; what comes after has no value
    assert (columns["step_ids"][1][learnt].tolist(), int(learnt.sum())) == ([0, 0, 0, 1, 1, 1], 6)
    model = small_model()
    rows = advantage_rows(values, {problem.question: 0.25}, 1)
    trained = fit(AdvantageTask, model, rows, training(tmp_path))
    assert not torch.equal(trained.lm_head.weight, model.lm_head.weight)


def test_experience():
    class Fixed(LanguageModel):
        def complete(self, prompts, count, seed):
            right = [p.solution for p in PROBLEMS[:3]]
            wrong = "1 1\n1 1\n1 1\n1 x"
            return [[right[0]] * 4, [wrong, right[1], wrong, "1 x"], ["", wrong, "2 x", "3 x"]]

    policy = Fixed(small_model(), TOKENIZER)
    found = collect(policy, PROBLEMS[:3], check, samples=4, negatives=2)
    assert [len(found.positives[p.question]) for p in PROBLEMS[:3]] == [1, 1, 0]
    assert [text for _, text in found.negatives] == ["1 1\n1 1\n1 1\n1 x", "1 x", "1 1\n1 1\n1 1\n1 x", "2 x"]
    assert list(found.starts.values()) == [1, 0.25, 0]


def in_group(rank: int, port: int, folder: Path) -> None:
    """A process of two: trains on half of each batch."""
    from accelerate.state import AcceleratorState, PartialState

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    AcceleratorState._reset_state(reset_partial_state=True)
    model = small_model()
    rows, _ = preference_rows(some_pairs(), model)
    fit(lambda m: PreferenceTask(m, beta=0.5), model, rows, training(folder, train_batch_size=4))
    PartialState().destroy_process_group()


def test_two_processes_train_what_one_trains(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # which has imported all that it needs
    both = [context.Process(target=in_group, args=(rank, port, tmp_path / "two")) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(300)
    assert [process.exitcode for process in both] == [0, 0]
    model = small_model()
    rows, _ = preference_rows(some_pairs(), model)
    alone = fit(lambda m: PreferenceTask(m, beta=0.5), model, rows, training(tmp_path / "one"))
    together = AutoModelForCausalLM.from_pretrained(tmp_path / "two/model")
    assert not torch.equal(alone.lm_head.weight, model.lm_head.weight)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(together.state_dict()[name], value, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "pit_prefix", "start": "rft"},
        {"objective": "shared_prefix", "soft_labels": True, "template": "words"},
        {"objective": "full", "label_smoothing": 0.1},
        {"objective": "advantage"},
        {"objective": "rft"},
    ],
)
def test_the_whole_way(tmp_path, changes):
    small = {"count": 30, "test_count": 10, "sft_steps": 100, "rft_steps": 2, "samples": 3, "k": 2}
    found = run(Arguments(**small, **changes), training(tmp_path, max_train_steps=2, train_batch_size=16))
    json.dumps(found)
    name = changes["objective"]
    assert {"sft", name} <= found.keys()
    assert all(0 <= found[key]["accuracy"] <= 1 for key in ("sft", name))
    assert 0 <= found[name]["wrong_steps"] <= 1
    if name not in ("advantage", "rft"):
        pairs, about = load_pairs(tmp_path / "pairs.jsonl")
        assert (about["pairing"], len(pairs)) == (name, found["pairs"])
    # Any causal language model by its folder's name: this one.
    policy = LanguageModel.from_pretrained(str(tmp_path / "model"), temperature=0, max_new_tokens=12)
    problems = make_problems(10, 0, template=changes.get("template", "digits"), start=30)
    assert evaluate(policy, problems, check)["accuracy"] == found[name]["accuracy"]


def test_a_run_that_was_cut_off_ends_as_the_whole_one(tmp_path):
    model = small_model()
    rows, _ = preference_rows(some_pairs(), model)

    def dpo(folder, steps, beta=0.5, **changes):
        options = training(tmp_path / folder, max_train_steps=steps, checkpointing_steps=2, **changes)
        return fit(lambda m: PreferenceTask(m, beta=beta), model, rows, options).state_dict()

    whole = dpo("whole", 5)
    dpo("cut", 2)
    cut = dpo("cut", 5, resume_from_checkpoint="latest")
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
    with pytest.raises(FileFormatError, match=r"beta was 0\.5, now 0\.1"):
        dpo("cut", 7, beta=0.1, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match="no problem to measure on"):
        evaluate(LanguageModel(model, TOKENIZER), [], check)


def test_a_model_by_name(tmp_path):
    model = small_model()
    for part in (model, TOKENIZER):
        part.save_pretrained(tmp_path / "model")
    lines = [json.dumps({"question": p.question, "answer": "7", "solution": p.solution}) for p in PROBLEMS]
    (tmp_path / "problems.jsonl").write_text("\n".join(lines))
    files = {name: str(tmp_path / "problems.jsonl") for name in ("problems", "test_problems")}
    arguments = Arguments(
        model=str(tmp_path / "model"), **files, objective="sft", sft_steps=2, samples=1, max_new_tokens=4
    )
    found = run(arguments, training(tmp_path / "out"))
    assert found["sft"] == {"accuracy": 0.0}  # nothing has "####"
    assert AutoTokenizer.from_pretrained(tmp_path / "out/model").eos_token == "<eos>"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "pit"}, "Unknown --objective 'pit'"),
        ({"start": "dpo"}, "Unknown --start"),
        ({"estimator": "all"}, "Unknown --estimator"),
        ({"template": "word"}, "Did you mean 'words'"),
        ({"samples": 0}, "--samples is 0"),
        ({"k": 0}, "--k is 0; it must be at least 1"),
        ({"temperature": -1.0}, "--temperature is -1"),
        ({"test_count": 0}, "--test_count is 0"),
        ({"beta": 0.0}, "--beta is 0.0; it must be positive"),
        ({"max_hopeless": 3.0}, "--max_hopeless is 3.0"),
        ({"label_smoothing": 0.5}, "--label_smoothing 0.5"),
        ({"soft_labels": True, "label_smoothing": 0.1}, "--label_smoothing must be 0"),
        ({"model": "other"}, "needs --problems and --test_problems"),
    ],
)
def test_bad_arguments(changes, message):
    kind, _ = auxiliary.training("step_dpo")
    with pytest.raises(ValueError, match=message):
        kind(**changes)
