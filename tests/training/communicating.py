"""What a process of `test_communication_processes.py` runs: every check in one launch of torchrun.

    torchrun --nproc_per_node 2 communicating.py FOLDER

Each check raises where it fails, on whichever rank sees it.
"""

import json
import logging
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dmkit.data import Rows
from dmkit.training.arguments import TrainingArguments
from dmkit.training.classifying import ClassificationTask
from dmkit.training.communication import EF21State, RandK, TopK, ef21_hook, register_ef21
from dmkit.training.networks import MLP
from dmkit.training.rules import PCGrad
from dmkit.training.trainer import Trainer


def wrapped(state: EF21State | None = None, cap_mb: float = 25.0, **options) -> DistributedDataParallel:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3))
    module = DistributedDataParallel(network, bucket_cap_mb=cap_mb, **options)
    if state is not None:
        module.register_comm_hook(state, ef21_hook)
    return module


def batch(step: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * step + dist.get_rank())
    inputs = torch.randn(size, 16, generator=generator) + dist.get_rank()  # workers differ
    return inputs, inputs[:, :3] * (1 + dist.get_rank())


def backward(module: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, share: float = 1.0) -> None:
    (share * (module(inputs) - targets).square().mean()).backward()


def descend(module: nn.Module, steps: int, rate: float = 0.02, first: int = 0) -> None:
    for step in range(first, first + steps):
        backward(module, *batch(step))
        with torch.no_grad():
            for p in module.parameters():
                p -= rate * p.grad
                p.grad = None


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def everywhere(tensor: torch.Tensor) -> list[torch.Tensor]:
    found = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(found, tensor.contiguous())
    return found


def same_on_all(tensor: torch.Tensor) -> None:
    for other in everywhere(tensor):
        assert torch.equal(tensor, other)


def mean_of_own_is_average(state: EF21State) -> float:
    own = torch.cat([state.own[p] for p in state.average])
    average = torch.cat(list(state.average.values()))
    workers = torch.stack(everywhere(own))
    return ((workers.mean(0) - average).abs().max() / workers.abs().max()).item()


def nothing_compressed_is_plain_ddp(folder: Path) -> None:
    plain, hooked = wrapped(), wrapped(state := EF21State(TopK(1.0)))
    descend(plain, 10)
    descend(hooked, 10)
    assert torch.equal(flat(plain), flat(hooked))
    assert not state.own
    assert state.bytes_sent == state.bytes_whole
    compressed = wrapped(EF21State(TopK(0.1)))
    descend(compressed, 10)
    assert not torch.equal(flat(plain), flat(compressed))  # the comparison can fail


def memory_follows_parameters_not_buckets(folder: Path) -> None:
    for compressor in (TopK(0.05), RandK(0.05)):
        one = wrapped(a := EF21State(compressor), cap_mb=25)
        many = wrapped(b := EF21State(compressor), cap_mb=0.002)
        for step in range(12):
            descend(one, 1, first=step)
            descend(many, 1, first=step)
            if step > 0:
                assert mean_of_own_is_average(a) < 1e-6
            same_on_all(flat(one))
        assert a.iteration == b.iteration == 12
        if isinstance(compressor, TopK) and dist.get_world_size() == 2:
            # More than two terms have an order, which in plain averaging depends on the bucket.
            assert torch.equal(flat(one), flat(many))
        sizes = [p.numel() for p in one.parameters()]
        # Two whole backward passes, then entries with places; a small one whole; and the flag.
        ks = [compressor.k(d) for d in sizes]
        words = 1 + sum(2 * k if 2 * k < d else d for k, d in zip(ks, sizes, strict=True))
        assert a.bytes_sent == 4 * (2 * sum(sizes) + 10 * words)
        assert a.bytes_whole == 4 * 12 * sum(sizes)


def the_hook_is_the_algorithm(folder: Path) -> None:
    """Two steps of (1), by hand from the gradients of all workers."""
    module = wrapped(state := EF21State(TopK(0.1), start_iter=1), cap_mb=0.002)
    alone = wrapped().module
    own = [None] * len(list(alone.parameters()))
    for step in range(3):
        alone.load_state_dict(module.module.state_dict())
        alone.zero_grad()
        backward(alone, *batch(step))
        backward(module, *batch(step))
        for j, (p, q) in enumerate(zip(alone.parameters(), module.parameters(), strict=True)):
            gradient = p.grad.flatten()
            if step == 0 or state.sends_whole(p):
                own[j] = gradient
            else:
                own[j] = own[j] + TopK(0.1)(gradient - own[j])
            expected = torch.stack(everywhere(own[j])).mean(0).view_as(q.grad)
            assert (expected - q.grad).abs().max() < 1e-6 * expected.abs().max(), (step, j)
        with torch.no_grad():
            for p in module.parameters():
                p -= 0.05 * p.grad
                p.grad = None


def a_gradient_that_is_not_finite_leaves_the_memory(folder: Path) -> None:
    module = wrapped(state := EF21State(TopK(0.1)))
    descend(module, 5)
    before = {p: (state.own[p].clone(), state.average[p].clone()) for p in state.own}
    inputs, targets = batch(5)
    if dist.get_rank() == 1:
        inputs[0, 0] = float("nan")
    backward(module, inputs, targets)
    assert all(p.grad.isnan().any() for p in module.parameters()), "all ranks must see it"
    module.zero_grad()
    for p, (own, average) in before.items():
        assert torch.equal(own, state.own[p])
        assert torch.equal(average, state.average[p])
    descend(module, 5, first=6)
    assert flat(module).isfinite().all()
    assert mean_of_own_is_average(state) < 1e-6
    # The same while the memory is filled.
    module = wrapped(state := EF21State(TopK(0.1), start_iter=1))
    backward(module, inputs, targets)
    module.zero_grad()
    assert all(not own.any() for own in state.own.values())
    descend(module, 3)
    assert flat(module).isfinite().all()


def accumulation_is_one_step(folder: Path) -> None:
    module, whole = wrapped(a := EF21State(TopK(0.1))), wrapped(EF21State(TopK(0.1)))
    for step in range(4):
        inputs, targets = batch(step)
        for half in (0, 1):
            with module.no_sync() if half == 0 else nullcontext():
                backward(module, inputs[4 * half : 4 * half + 4], targets[4 * half : 4 * half + 4], share=0.5)
        backward(whole, inputs, targets)
        for p, q in zip(module.parameters(), whole.parameters(), strict=True):
            assert (p.grad - q.grad).abs().max() < 1e-6
        module.zero_grad()
        whole.zero_grad()
    assert a.iteration == 4


def an_unused_parameter_fades(folder: Path) -> None:
    """Its gradient arrives as zeros, and so its memory decays instead of standing still."""
    module = wrapped(state := EF21State(TopK(0.25), start_iter=1), find_unused_parameters=True)
    descend(module, 1)
    last = module.module[4].weight
    first = state.average[last].norm()
    hidden = module.module[:4]
    module.module.forward = hidden.forward  # without the last layer
    sizes = []
    for step in range(5):
        inputs, _ = batch(step)
        module(inputs).square().mean().backward()
        sizes.append((state.average[last].norm() / first).item())
        module.zero_grad()
    assert all(a > b for a, b in zip([1.0, *sizes], sizes, strict=False) if b > 1e-5), sizes
    assert 0 < sizes[0] < 1
    assert sizes[-1] < 1e-5


def feedback_decides(folder: Path) -> None:
    """fᵢ(x) = |x - cᵢ|²/2 with large cᵢ that cancel: compressed gradients see only those, for ever."""
    distance = {}
    for feedback in (True, False):
        x = nn.Linear(20, 1, bias=False)
        nn.init.constant_(x.weight, 1.0)
        centre = torch.zeros(1, 20)
        centre[:, :5] = 10.0 * (1 - 2 * (dist.get_rank() % 2))
        module = DistributedDataParallel(x)
        module.register_comm_hook(EF21State(TopK(0.2), start_iter=1, feedback=feedback), ef21_hook)
        for _ in range(300):
            (module(torch.eye(20)).flatten() - centre.flatten()).square().sum().mul(0.5).backward()
            with torch.no_grad():
                x.weight -= 0.05 * x.weight.grad
            x.weight.grad = None
        distance[feedback] = x.weight.detach().norm().item()
    assert distance[True] < 0.01 < 1 < distance[False], distance


def trainer(output: Path, **changes) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    rows = Rows(
        inputs=torch.randn(64, 16, generator=generator),
        labels=torch.randint(3, (64,), generator=generator),
    )
    torch.manual_seed(1)
    arguments = {
        "output_dir": str(output),
        "train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_train_steps": 10,
        "learning_rate": 1e-2,
        "lr_warmup_steps": 0,
        "lr_scheduler": "constant",
        "checkpointing_steps": 5,
        "save_images_epochs": 0,
        "save_model_epochs": 0,
        "report_to": "none",
        "comm_hook": "ef21",
        "comm_ratio": 0.1,
    }
    return Trainer(ClassificationTask(MLP((16, 40, 3))), rows, TrainingArguments(**{**arguments, **changes}))


def resuming_is_exact(folder: Path) -> None:
    straight = trainer(folder / "straight")
    straight.train()
    assert straight.communication.figures()["comm_bytes"] > 0
    first = trainer(folder / "pieces")
    first.max_steps = 5
    first.train()
    trainer(folder / "pieces", resume_from_checkpoint="latest").train()
    dist.barrier()
    one, two = folder / "straight/checkpoint-10", folder / "pieces/checkpoint-10"
    names = sorted(str(p.relative_to(one)) for p in one.rglob("*") if p.is_file())
    world = dist.get_world_size()
    assert {f"communication/model-{rank}.safetensors" for rank in range(world)} <= set(names)
    assert names == sorted(str(p.relative_to(two)) for p in two.rglob("*") if p.is_file())
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert not list(folder.glob("*/.unfinished-*"))
    # The memory matters: without it the same run goes elsewhere.
    lost = trainer(folder / "lost", resume_from_checkpoint=str(folder / "pieces/checkpoint-5"))
    read = lost.communication.read
    lost.communication.read = lambda path, processes, counters: read(path, processes + 1, counters)
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("dmkit.training.communication.registration").addHandler(handler)
    lost.train()
    if dist.get_rank() == 0:
        expected = f"is of {world + 1} processes, this run has {world}"
        assert any(expected in text for text in messages), messages
    weights = "model/diffusion_pytorch_model.safetensors"
    assert (folder / "lost/checkpoint-10" / weights).read_bytes() != (one / weights).read_bytes()
    assert lost.communication.states["model"].iteration == 2 + 4  # one pass filled it, as pass 1 had
    with pytest.raises(ValueError, match=r"comm_ratio was 0.1, now 0.2"):
        trainer(folder / "pieces", resume_from_checkpoint="latest", comm_ratio=0.2).train()


def what_cannot_work_is_refused(folder: Path) -> None:
    rows = Rows(inputs=torch.randn(8, 16), labels=torch.zeros(8, dtype=torch.long))
    arguments = TrainingArguments(output_dir=str(folder / "no"), report_to="none", comm_hook="ef21")
    with pytest.raises(ValueError, match="PCGrad averages gradients over processes by itself"):
        Trainer(ClassificationTask(MLP((16, 3))), rows, arguments, rule=PCGrad())
    accelerator = Accelerator(cpu=True)
    with pytest.raises(ValueError, match="is a Linear"):
        register_ef21(accelerator, nn.Linear(2, 2), TopK(0.1))
    prepared = accelerator.prepare(nn.Linear(2, 2))
    register_ef21(accelerator, prepared, TopK(0.1))
    with pytest.raises(RuntimeError, match="register"):
        register_ef21(accelerator, prepared, TopK(0.1))


CHECKS = (
    nothing_compressed_is_plain_ddp,
    memory_follows_parameters_not_buckets,
    the_hook_is_the_algorithm,
    a_gradient_that_is_not_finite_leaves_the_memory,
    accumulation_is_one_step,
    an_unused_parameter_fades,
    feedback_decides,
    resuming_is_exact,
    what_cannot_work_is_refused,
)


def main() -> None:
    folder = Path(sys.argv[1])
    Accelerator(cpu=True)  # starts the process group
    for check in CHECKS:
        check(folder)
        dist.barrier()
    if dist.get_rank() == 0:
        (folder / "passed.json").write_text(json.dumps([check.__name__ for check in CHECKS]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
