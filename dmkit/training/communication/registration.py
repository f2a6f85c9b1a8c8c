"""From the flags of a training script to hooks on its modules, and their memory in a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..._files import UNFINISHED, load_tensors
from ..rules import GradientRule
from .compressors import Sparse, TopK
from .ef21 import EF21State, ef21_hook

if TYPE_CHECKING:
    from ..arguments import TrainingArguments

FOLDER = "communication"
logger = logging.getLogger(__name__)


def register_ef21(
    accelerator: Accelerator, module: nn.Module, compressor: Sparse, **options: Any
) -> EF21State | None:
    """Puts EF21 between the workers of a prepared module.

    Args:
        accelerator: the one that prepared it.
        module: what `accelerator.prepare` returned, before its first backward pass.
        compressor: `TopK` or `RandK`.
        options: of `EF21State`.

    Returns:
        The hook's state, or None in one process, where there is nothing to average.

    Raises:
        ValueError: the fp16 loss scaler, or FSDP, DeepSpeed and others that shard or average by themselves.
        RuntimeError: a module that has a hook already.
    """
    if accelerator.scaler is not None:
        raise ValueError(
            "EF21 remembers gradients, and the fp16 loss scaler changes their unit from step to step. "
            "Use --mixed_precision bf16 or no."
        )
    state = EF21State(compressor, **options)
    if accelerator.num_processes == 1:
        return None
    if not isinstance(module, DistributedDataParallel):
        raise ValueError(
            f"EF21 is a hook of DistributedDataParallel; under {accelerator.distributed_type.value} a module "
            f"is a {type(module).__name__}."
        )
    module.register_comm_hook(state, ef21_hook)
    return state


class Communication:
    """How the processes of a training average their gradients.

    Args:
        accelerator: the trainer's.
        modules: the prepared modules, by name.
        rule: the trainer's gradient rule.
        arguments: `comm_hook`, `comm_ratio` and `comm_start_iter` are looked at.

    Attributes:
        states: the hook's state of each module that has one.

    Raises:
        ValueError: as `register_ef21`; or a rule that averages gradients by itself, past DDP's hook.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        modules: Mapping[str, nn.Module],
        rule: GradientRule,
        arguments: TrainingArguments,
    ):
        self.states: dict[str, EF21State] = {}
        self._accelerator, self._modules = accelerator, modules
        if arguments.comm_hook == "none":
            return
        if type(rule).needs_each is not GradientRule.needs_each:
            raise ValueError(
                f"{type(rule).__name__} averages gradients over processes by itself, so that "
                f"--comm_hook {arguments.comm_hook} would not see them."
            )
        for name, module in modules.items():
            if not any(p.requires_grad for p in module.parameters()):
                continue
            state = register_ef21(
                accelerator,
                module,
                TopK(arguments.comm_ratio),
                start_iter=arguments.comm_start_iter,
                feedback=arguments.comm_hook == "ef21",
                seed=arguments.seed,
            )
            if state is not None:
                self.states[name] = state
        if accelerator.num_processes == 1:
            logger.warning("--comm_hook %s does nothing in one process.", arguments.comm_hook)

    def figures(self) -> dict[str, float]:
        """Bytes that this process gave to the wire, and those of whole gradients; nothing without a hook."""
        if not self.states:
            return {}
        return {
            "comm_bytes": float(sum(state.bytes_sent for state in self.states.values())),
            "comm_bytes_whole": float(sum(state.bytes_whole for state in self.states.values())),
        }

    def write(self, output: Path, step: int) -> Path | None:
        """Writes the memory of all processes into a draft in `output`, for the main one to move; every
        process calls it.
        """
        if not self.states:
            return None
        draft = output / f"{UNFINISHED}{FOLDER}-{step}"
        draft.mkdir(exist_ok=True)
        rank = self._accelerator.process_index
        for name, state in self.states.items():
            own, average = state.memory(self._accelerator.unwrap_model(self._modules[name]))
            save_file(own, str(draft / f"{name}-{rank}.safetensors"))
            if rank == 0:  # the same everywhere
                save_file(average, str(draft / f"{name}.safetensors"))
        self._accelerator.wait_for_everyone()
        return draft

    def counters(self) -> dict[str, Any]:
        """The rest of the state, as JSON."""
        return {
            name: {
                "iteration": state.iteration,
                "bytes_sent": state.bytes_sent,
                "bytes_whole": state.bytes_whole,
            }
            for name, state in self.states.items()
        }

    def read(self, checkpoint: Path, processes: int, counters: Mapping[str, Any]) -> None:
        """Puts the memory back that `write` saved.

        Memory belongs to processes: with another number of them it is filled anew from whole gradients.

        Raises:
            FileFormatError: a file that is missing or damaged.
            KeyError, ValueError: memory of another module.
        """
        if not self.states:
            return
        if processes != self._accelerator.num_processes:
            if self._accelerator.is_main_process:
                logger.warning(
                    "%s is of %d processes, this run has %d: its memory of gradients is filled anew.",
                    checkpoint,
                    processes,
                    self._accelerator.num_processes,
                )
            for state in self.states.values():
                state.refill()
            return
        rank = self._accelerator.process_index
        for name, state in self.states.items():
            own = load_tensors(checkpoint / FOLDER / f"{name}-{rank}.safetensors")
            average = load_tensors(checkpoint / FOLDER / f"{name}.safetensors")
            state.load_memory(self._accelerator.unwrap_model(self._modules[name]), own, average)
            for key, value in counters[name].items():
                setattr(state, key, int(value))
