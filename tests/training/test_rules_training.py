"""Gradient rules inside the trainer: accumulation, processes, resume, what is clipped, averaged and saved."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rule_cases import CLUSTERS, Tug, record_gradients, rules, tiny_task, train_all, trainer
from running_scripts import ENVIRONMENT
from safetensors.torch import load_file

from dmkit.errors import FileFormatError
from dmkit.training.ant.clustering import TimestepClusters
from dmkit.training.ant.sampling import ClusterTimestepSampler
from dmkit.training.rules import NashMTL, PCGrad, UncertaintyWeighting

RULES = list(rules(3))
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> dict[str, torch.Tensor]:
    """The gradients of every rule's training by two processes of batch 5, in one launch."""
    folder = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(HERE / "rule_cases.py"), str(folder), "5"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "gradients.safetensors")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("one")
    train_all(folder, 10)
    return load_file(folder / "gradients.safetensors")


@pytest.mark.parametrize("task", ["Tug", "tiny_task"])
@pytest.mark.parametrize("rule", RULES)
def test_two_processes_train_what_one_trains(one_process, two_processes, task, rule):
    """10 examples and 3 clusters: the processes hold unequal shares of a cluster."""
    alone, together = one_process[f"{task} {rule}"], two_processes[f"{task} {rule}"]
    plain = one_process[f"{task} sum"]
    own = plain.shape[1]  # what comes after the network's gradient is that of the uncertainty weights
    for part in (slice(None, own), slice(own, None)):
        assert (alone - together)[:, part].norm() <= 1e-3 * alone[:, part].norm()
    # The comparison can fail: it tells the rules apart (the tiny denoiser's clusters need not conflict).
    if rule != "sum" and not (task == "tiny_task" and "pcgrad" in rule):
        assert (alone[:, :own] - plain).norm() > 0.1 * plain.norm()


@pytest.mark.parametrize("rule", RULES)
def test_micro_batches_add_up_to_the_batch(tmp_path, rule):
    ends = []
    for accumulation in (1, 2):
        run = trainer(
            Tug(),
            rules(3)[rule],
            tmp_path / str(accumulation),
            train_batch_size=20 // accumulation,
            gradient_accumulation_steps=accumulation,
        )
        run.train()
        ends.append(run.unwrapped()["rope"].place.detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)


def test_a_rule_leaves_unused_parameters_alone(tmp_path):
    task = Tug()
    task.modules["rope"].idle = torch.nn.Parameter(torch.ones(2))
    run = trainer(task, PCGrad(), tmp_path, adam_weight_decay=0.5)
    run.train()
    assert torch.equal(run.unwrapped()["rope"].idle, torch.ones(2))


def test_conflict_is_projected_away_in_training(tmp_path):
    """The gradients (1, 0) and (-1, 1) become (1/2, 1/2) and (0, 1)."""

    class Opposed(Tug):
        def training_step(self, batch, step):
            place = self.modules["rope"]()
            return {"right": place[0], "left": place[1] - place[0]}

    run = trainer(Opposed(), PCGrad(), tmp_path, max_grad_norm=0, max_train_steps=1)
    seen = record_gradients(run)
    run.train()
    torch.testing.assert_close(seen, [torch.tensor([0.5, 1.5, 0.0])])


@pytest.mark.parametrize("rule", ["uw", "pcgrad", "pcgrad, held", "nash"])
def test_resume_is_exact(tmp_path, rule):
    settings = {"max_train_steps": 4, "checkpointing_steps": 1, "use_ema": True}

    def training(folder, **changes):
        return trainer(tiny_task(), rules(3)[rule], tmp_path / folder, **settings, **changes)

    training("straight").train()
    first = training("pieces")
    first.max_steps = 3  # an odd step: those that update every second hold their weights over the cut
    first.train()
    training("pieces", resume_from_checkpoint="latest").train()
    files = [
        {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (tmp_path / "straight" / "checkpoint-4", tmp_path / "pieces" / "checkpoint-4")
    ]
    assert files[0] == files[1]
    assert ("rule.safetensors" in files[0]) == (rule != "pcgrad")


def test_uncertainty_weights_are_trained_apart_from_the_network(tmp_path):
    rule = UncertaintyWeighting(3)
    run = trainer(
        tiny_task(), rule, tmp_path, use_ema=True, checkpointing_steps=3, lr_warmup_steps=0,
        lr_scheduler="constant", adam_weight_decay=0.1, max_grad_norm=1e-9,
    )  # fmt: skip
    run.train()
    network, own = run.optimizers["main"].param_groups
    assert (own["lr"], own["weight_decay"]) == (0.025, 0.0)
    assert (network["lr"], network["weight_decay"]) == (1e-2, 0.1)
    assert own["params"][0] is rule.s
    # The clip to nothing is of the network alone: s has moved by its rate a step, towards ln(L / k) < 0.
    torch.testing.assert_close(rule.s, torch.full((3,), -0.075), atol=0.02, rtol=0)
    sizes = [p.numel() for p in run.unwrapped()["unet"].parameters()]
    assert [p.numel() for p in run.ema["unet"].shadow_params] == sizes
    for folder in ("unet", "checkpoint-3/unet", "checkpoint-3/unet_ema"):
        saved = load_file(tmp_path / folder / "diffusion_pytorch_model.safetensors")
        assert sum(t.numel() for t in saved.values()) == sum(sizes)


def test_bf16_keeps_float32_gradients_and_every_rule_runs(tmp_path):
    for name, rule in rules(3).items():
        run = trainer(tiny_task(), rule, tmp_path / name, mixed_precision="bf16", max_train_steps=2)
        assert all(map(torch.isfinite, map(torch.tensor, run.train().values())))


def test_another_rule_or_other_clusters_are_refused_on_resume(tmp_path):
    def training(rule, sampler=None, **changes):
        task = tiny_task() if sampler is None else tiny_task(sampler=sampler)
        return trainer(task, rule, tmp_path, checkpointing_steps=3, **changes)

    training(NashMTL(2)).train()
    again = {"resume_from_checkpoint": "latest", "max_train_steps": 4}
    with pytest.raises(FileFormatError, match="rule was NashMTL, now None; update_every was 2, now None"):
        training(rules(3)["sum"], **again).train()
    with pytest.raises(FileFormatError, match="update_every was 2, now 3"):
        training(NashMTL(3), **again).train()
    moved = ClusterTimestepSampler(TimestepClusters((0, 100, 500), 1000))
    with pytest.raises(FileFormatError, match=r"clusters was \[0, 100, 400\], now \[0, 100, 500\]"):
        training(NashMTL(2), moved, **again).train()
    sized = ClusterTimestepSampler(CLUSTERS, weighting="size")
    with pytest.raises(FileFormatError, match="cluster_weighting was equal, now size"):
        training(NashMTL(2), sized, **again).train()
    training(NashMTL(2), **again).train()


def test_a_rule_with_memory_serves_one_optimiser(tmp_path):
    class Two(Tug):
        def parameters(self):
            return {"first": list(self.modules["rope"].parameters()), "second": []}

    with pytest.raises(ValueError, match="NashMTL serves one optimiser, not 2"):
        trainer(Two(), NashMTL(), tmp_path)
