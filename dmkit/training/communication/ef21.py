"""EF21 as a communication hook of `DistributedDataParallel`: gradients averaged over few of their entries.

Richtárik, Sokolov and Fatkhullin, *EF21: A New, Simpler, Theoretically Better, and Practically Faster Error
Feedback*, NeurIPS 2021 (arXiv:2106.05203), and Richtárik, Gasanov and Burlachenko, *Error Feedback Reloaded*,
ICLR 2024 (arXiv:2402.10774). Worker i of n remembers an estimate gᵢ of its gradient, and all remember g:

    uᵢ = C(∇fᵢ(x) - gᵢ),    gᵢ ← gᵢ + uᵢ,    g ← g + (1/n) Σ uᵢ          (1)

so that g = (1/n) Σ gᵢ always, and uᵢ is all that is sent. The optimiser gets g.

Weights of the workers (EF21-W) have no place here. On f̃ᵢ = fᵢ/(n wᵢ) a compressor with C(cv) = c C(v) sends
uᵢ/(n wᵢ), which the server weighs by wᵢ: the same u, the same g. `TopK` and `RandK` are such compressors.
"""

# No `from __future__ import annotations`: DDP reads the hook's annotations and takes no strings.

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter

from ..randomness import derive_seed
from .compressors import Sparse


class EF21State:
    """What the hook remembers between the steps of one module.

    Memory belongs to parameters, not to DDP's buckets, which are laid out anew after the first backward pass;
    and every parameter is compressed by itself, with α the least k/d of all. So neither a run nor its
    continuation depends on the buckets. A parameter whose entries cost as much with their places as all of it
    (2k ≥ d) is averaged whole and needs no memory: C is the identity and gᵢ = ∇fᵢ. With a ratio of 1 nothing
    else is left, and the hook computes what DDP does without one, bit for bit.

    Args:
        compressor: `TopK` or `RandK`.
        start_iter: backward passes at the start, at least 1, in which gradients are averaged whole; the last
            of them fills the memory, gᵢ = ∇fᵢ.
        process_group: the workers; all by default.
        feedback: without it there is no memory, and compressed gradients are averaged: the baseline that need
            not converge.
        seed: of `RandK`; its draws are a function of it, the iteration, the rank and the parameter.

    Attributes:
        iteration: backward passes so far.
        bytes_sent: what this worker gave to the wire so far.
        bytes_whole: what whole gradients would have been.

    Raises:
        TypeError: a compressor that does not send few entries as they are.
        ValueError: a number out of range.
    """

    def __init__(
        self,
        compressor: Sparse,
        *,
        start_iter: int = 2,
        process_group: dist.ProcessGroup | None = None,
        feedback: bool = True,
        seed: int = 0,
    ):
        if not isinstance(compressor, Sparse):
            raise TypeError(f"The hook sends entries and places: TopK or RandK, not {compressor!r}.")
        if start_iter < 1:
            raise ValueError(f"start_iter is at least 1, so that the memory can be filled, not {start_iter}.")
        self.compressor, self.start_iter, self.feedback, self.seed = compressor, start_iter, feedback, seed
        self.process_group = process_group
        self.iteration = self.bytes_sent = self.bytes_whole = 0
        self.own: dict[Parameter, Tensor] = {}  # gᵢ
        self.average: dict[Parameter, Tensor] = {}  # g
        # In its first backward pass DDP's buckets hold the parameters in an order that only the model fixes.
        self._order: dict[Parameter, int] = {}

    def sends_whole(self, parameter: Tensor) -> bool:
        """Whether a parameter's gradient is averaged as it is."""
        return 2 * self.compressor.k(parameter.numel()) >= parameter.numel()

    def generator(self, parameter: Parameter, iteration: int, rank: int) -> torch.Generator:
        """What `RandK` draws from for one parameter: no state of it has to be saved."""
        generator = torch.Generator(parameter.device)
        return generator.manual_seed(derive_seed(self.seed, iteration, rank, self._order[parameter]))

    def refill(self) -> None:
        """Lets the next backward pass average whole gradients and fill the memory with them."""
        self.own, self.average = {}, {}
        self.iteration = self.start_iter - 1

    def memory(self, module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """gᵢ of this worker, and g of all, by the names of the unwrapped module's parameters."""
        named = dict(module.named_parameters())
        return (
            {name: self.own[p].detach().cpu() for name, p in named.items() if p in self.own},
            {name: self.average[p].detach().cpu() for name, p in named.items() if p in self.average},
        )

    def load_memory(
        self, module: nn.Module, own: Mapping[str, Tensor], average: Mapping[str, Tensor]
    ) -> None:
        """The inverse of `memory`.

        Raises:
            KeyError, ValueError: memory of another module or ratio.
        """
        named = dict(module.named_parameters())
        for stored, here in ((own, self.own), (average, self.average)):
            here.clear()
            for name, value in stored.items():
                if value.numel() != named[name].numel():
                    raise ValueError(f"The memory of {name} has another size than the parameter.")
                here[named[name]] = value.to(named[name].device, torch.float32)

    def _memory_of(self, parameters: Sequence[Parameter]) -> tuple[list[Tensor], list[Tensor]]:
        def empty(p: Parameter) -> Tensor:
            return torch.zeros(p.numel(), dtype=torch.float32, device=p.device)

        if not self.feedback:
            return [empty(p) for p in parameters], [empty(p) for p in parameters]
        for p in parameters:
            if p not in self.own:
                self.own[p], self.average[p] = empty(p), empty(p)
        return [self.own[p] for p in parameters], [self.average[p] for p in parameters]


def ef21_hook(state: EF21State, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Averages a bucket of gradients by (1); for `model.register_comm_hook(state, ef21_hook)`.

    A worker whose gradient is not finite says so with its entries: all then return NaN and leave the memory
    as it was, which a single such entry would otherwise spoil for ever.

    Raises:
        TypeError: gradients that are not real floats.
    """
    buffer = bucket.buffer()
    if not buffer.is_floating_point():
        raise TypeError(f"EF21 averages real gradients, not {buffer.dtype}.")
    group = state.process_group or dist.group.WORLD
    iteration = state.iteration
    state.iteration += bucket.is_last()
    state.bytes_whole += buffer.numel() * buffer.element_size()
    pairs = list(zip(bucket.parameters(), bucket.gradients(), strict=True))
    for p, _ in pairs:
        state._order.setdefault(p, len(state._order))
    sparse = [(p, g) for p, g in pairs if not state.sends_whole(p)]
    if iteration < state.start_iter or not sparse:
        remember = sparse if state.feedback and iteration == state.start_iter - 1 else []
        return _whole(state, group, buffer, remember)
    whole = [g for p, g in pairs if state.sends_whole(p)]
    return _compressed(state, group, buffer, iteration, sparse, whole)


def _average(state: EF21State, group: dist.ProcessGroup, tensor: Tensor) -> torch.futures.Future:
    # Multiplied before the sum, as DDP itself does: the same bits.
    tensor.mul_(1.0 / group.size())
    state.bytes_sent += tensor.numel() * tensor.element_size()
    return dist.all_reduce(tensor, group=group, async_op=True).get_future()


def _whole(
    state: EF21State,
    group: dist.ProcessGroup,
    buffer: Tensor,
    remember: Sequence[tuple[Parameter, Tensor]],
) -> torch.futures.Future[Tensor]:
    """Plain averaging; `remember` are the gradients, views of the buffer, that fill the memory."""
    parameters = [p for p, _ in remember]
    local = [gradient.flatten().float().clone() for _, gradient in remember]

    def done(future: torch.futures.Future) -> Tensor:
        future.value()
        own, average = state._memory_of(parameters)
        for i, (_, gradient) in enumerate(remember):
            mean = gradient.flatten().float()
            # The mean is the same everywhere, and so is whether it is finite; 0 is a start as good as any.
            finite = mean.isfinite().all()
            own[i].copy_(torch.where(finite, local[i], 0.0))
            average[i].copy_(torch.where(finite, mean, 0.0))
        return buffer

    return _average(state, group, buffer).then(done)


def _compressed(
    state: EF21State,
    group: dist.ProcessGroup,
    buffer: Tensor,
    iteration: int,
    sparse: Sequence[tuple[Parameter, Tensor]],
    whole: Sequence[Tensor],
) -> torch.futures.Future[Tensor]:
    """One all-gather of [finite | entries | gradients that go whole | places]."""
    world = group.size()
    own, average = state._memory_of([p for p, _ in sparse])
    sent, places = [], []
    finite = torch.ones(1, dtype=torch.bool, device=buffer.device)
    for (p, gradient), mine in zip(sparse, own, strict=True):
        difference = gradient.flatten().float() - mine
        at = state.compressor.select(difference, state.generator(p, iteration, group.rank()))
        sent.append(difference[at])
        places.append(at)
        finite &= difference.isfinite().all()
    rest = torch.cat([buffer.new_empty(0), *(gradient.flatten() for gradient in whole)]).float()
    # Places travel as int32 beside the bits of the entries: no parameter has 2^31 of them.
    bits = [entries.view(torch.int32) for entries in (*sent, rest)]
    payload = torch.cat([finite.int(), *bits, *(at.int() for at in places)])
    state.bytes_sent += payload.numel() * payload.element_size()
    arrived = [torch.empty_like(payload) for _ in range(world)]
    counts = [len(at) for at in places]
    sizes = [1, *counts, len(rest), *counts]

    def done(future: torch.futures.Future) -> Tensor:
        future.value()
        good = torch.stack([message[0] for message in arrived]).all()
        total = torch.zeros_like(rest)
        for message in arrived:  # in the order of ranks everywhere, so that replicas agree to the bit
            parts = message.split(sizes)
            total += parts[1 + len(own)].view(torch.float32) / world
            for g, u, at in zip(average, parts[1:], parts[2 + len(own) :], strict=False):
                g.index_add_(0, at.long(), torch.where(good, u.view(torch.float32) / world, 0.0))
        for mine, u, at, g, (_, gradient) in zip(own, sent, places, average, sparse, strict=True):
            mine.index_add_(0, at, torch.where(good, u, 0.0))
            gradient.copy_(torch.where(good, g, math.nan).view_as(gradient))
        for gradient, mean in zip(whole, total.split([g.numel() for g in whole]), strict=True):
            gradient.copy_(mean.view_as(gradient))
        return buffer

    return dist.all_gather(arrived, payload, group=group, async_op=True).get_future().then(done)
