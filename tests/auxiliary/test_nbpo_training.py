"""NBPO in the trainer: the paper's update, resumption, processes, the choice of a checkpoint, the script."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nbpo_cases import GENERATED, settings, train_steps
from safetensors.torch import load_file

from dmkit import auxiliary
from dmkit.auxiliary.recommendation.nbpo import MatrixFactorization, Recommender, evaluate_ranking
from dmkit.auxiliary.recommendation.nbpo.training import Arguments, read_parts, run, train
from dmkit.errors import FileFormatError

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from running_scripts import ENVIRONMENT, script_main

HERE = Path(__file__).parent


def factors(folder: Path) -> dict[str, torch.Tensor]:
    parts = ("scores", "flip")
    found = {part: load_file(next((folder / part).glob("*.safetensors"))) for part in parts}
    return {f"{part}.{name}": value for part in parts for name, value in found[part].items()}


def test_a_step_is_the_papers_update(tmp_path):
    """U += lr (dU - λ_r U) and the like, with sums over the pairs, and all factors as they were before."""
    run_ = train_steps(tmp_path, 1, batch_size=40)
    task = run_.task
    before, batch, negatives, lr = run_.before, run_.batch, run_.negatives, 0.05
    after = {name: {k: p.detach() for k, p in m.named_parameters()} for name, m in task.modules.items()}
    users, items = batch["users"], batch["items"]
    keys = ("user_factors.weight", "item_factors.weight")
    U, V = (before["scores"][key].double() for key in keys)
    P, Q = (before["flip"][key].double() for key in keys)
    d = [torch.zeros_like(x) for x in (U, V, P, Q)]
    s = torch.sigmoid
    for u, i, row in zip(users.tolist(), items.tolist(), negatives.tolist(), strict=True):
        for j in row:
            R_i, R_j, g_i, g_j = U[u] @ V[i], U[u] @ V[j], P[u] @ Q[i], P[u] @ Q[j]
            a_i, b_i = s(-g_i) * s(-R_i), -s(g_i) * s(R_i)
            a_j, b_j = s(g_j) * s(-R_j) - s(R_j), s(-g_j) * s(R_j)
            d[0][u] += a_i * V[i] + a_j * V[j]
            d[1][i] += a_i * U[u]
            d[1][j] += a_j * U[u]
            d[2][u] += b_i * Q[i] + b_j * Q[j]
            d[3][i] += b_i * P[u]
            d[3][j] += b_j * P[u]
    found = [after[part][key] for part in ("scores", "flip") for key in keys]
    for old, new, rise, decay in zip((U, V, P, Q), found, d, (0.3, 0.3, 0.7, 0.7), strict=True):
        torch.testing.assert_close(new.double(), old + lr * (rise - decay * old), rtol=1e-5, atol=1e-6)


def test_flips_vanish_under_a_strong_decay_and_not_under_a_weak_one(tmp_path):
    """The authors' 0.05 · 5 for Amazon leaves label smoothing: 0.5 for all pairs."""

    def flips(decay):
        flip = train_steps(tmp_path / str(decay), 40, flip_decay=decay).task.modules["flip"]
        return (flip.user_factors.weight @ flip.item_factors.weight.T).detach().sigmoid()

    torch.testing.assert_close(flips(5.0), torch.full((20, 30), 0.5), rtol=0, atol=1e-5)
    assert flips(0.7).std() > 0.05


def test_two_processes_train_what_one_trains(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(HERE / "nbpo_cases.py"), str(tmp_path / "two"), "25"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    train_steps(tmp_path / "one", 4, batch_size=50)
    alone, together = factors(tmp_path / "one"), factors(tmp_path / "two")
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-5, atol=1e-6)


def test_a_run_that_was_cut_off_ends_as_the_whole_one(tmp_path):
    common = {"train_batch_size": 50, "checkpointing_steps": 3}
    train_steps(tmp_path / "whole", 7, **common)
    train_steps(tmp_path / "cut", 3, **common)
    train_steps(tmp_path / "cut", 7, **common, resume_from_checkpoint="latest")
    whole, cut = factors(tmp_path / "whole"), factors(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    with pytest.raises(FileFormatError, match=r"cannot be continued exactly: flip was 0.7, now 0.1"):
        train_steps(tmp_path / "cut", 9, **common, resume_from_checkpoint="latest", flip_decay=0.1)


def test_the_best_checkpoint_by_the_validation_set_becomes_the_model(tmp_path):
    given = Arguments(**GENERATED, objective="bpo")
    parts, *_ = read_parts(given)
    training = settings(tmp_path, max_train_steps=8, checkpointing_steps=2, learning_rate=0.4)
    kept, step = train(parts, given, training)

    def score(folder: Path) -> float:
        model = MatrixFactorization.from_pretrained(folder)
        return evaluate_ranking(model.all_scores, [parts.train], parts.validation, [5])["F1@5"]

    scores = {s: score(tmp_path / f"checkpoint-{s}/scores") for s in (2, 4, 6, 8)}
    assert step == max(scores, key=lambda s: (scores[s], -s))
    assert score(tmp_path / "scores") == scores[step]
    again = Recommender.load(tmp_path)
    users = torch.arange(5)
    assert torch.equal(again.recommend(users, 4), kept.recommend(users, 4))


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "nbpo-o", "sampler": "dynamic"},
        {"objective": "nbpo-s", "reduction": "mean"},
        {"objective": "bpr", "sampler": "adaptive"},
        {"objective": "nbpo", "flip_constant": 0.5},
    ],
)
def test_every_choice_trains(tmp_path, changes):
    found = run(Arguments(**GENERATED, **changes), settings(tmp_path, max_train_steps=2))
    assert found["step"] == 2
    assert 0 <= found["test"]["NDCG@10"] <= 1
    assert isinstance(Recommender.load(tmp_path).flip, float) == ("flip_constant" in changes)


def test_the_script_trains_from_a_table(tmp_path, capsys):
    table = tmp_path / "clicks.csv"
    lines = [f"u{u},i{(u * 7 + i * i) % 23}" for u in range(30) for i in range(12)]
    table.write_text("user,item\n" + "\n".join(lines) + "\n")
    flags = {
        "method": "nbpo",
        "data": table,
        "k_core": 3,
        "output_dir": tmp_path / "out",
        "max_train_steps": 3,
        "train_batch_size": 20,
        "checkpointing_steps": 0,
        "optimizer": "sgd",
        "save_images_epochs": 0,
        "report_to": "none",
    }
    with script_main("train_auxiliary") as main:
        main([word for name, value in flags.items() for word in (f"--{name}", str(value))])
    found = json.loads((tmp_path / "out/result.json").read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert Recommender.load(tmp_path / "out").user_ids[0] == "u0"


def test_unknown_choices_are_refused():
    kind, _ = auxiliary.training("nbpo")
    with pytest.raises(ValueError, match=r"Unknown --objective 'nbp'. Did you mean 'nbpo'"):
        kind(objective="nbp")
    with pytest.raises(ValueError, match="Unknown --sampler"):
        kind(sampler="popular")
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        kind(flip_constant=1.0)
