"""Networks of braindecode in dense form, or any other module, with what their input must be."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...._files import load_json, load_tensors, save_json
from ....errors import FileFormatError, MissingExtraError, unknown_name
from ....training.randomness import derive_seed
from .signal import Signal

FORMAT, WEIGHTS, CONFIG = 1, "model.safetensors", "config.json"
# Of the paper; name -> (classes of braindecode from the newest to the oldest, settings, strided).
_NETWORKS: dict[str, tuple[tuple[str, ...], dict[str, Any], bool]] = {
    "shallow": (("ShallowFBCSPNet",), {"final_conv_length": 35}, True),
    "deep4": (("Deep4Net",), {"final_conv_length": 1, "stride_before_pool": True}, True),
    "tcn": (("BDTCN", "TCN"), {"n_blocks": 5, "n_filters": 55, "kernel_size": 16, "drop_prob": 0.053}, False),
    "eegnet": (("EEGNet", "EEGNetv4"), {"final_conv_length": 18}, True),
}
NETWORKS = tuple(_NETWORKS)
_NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
# Names of weights that changed between versions of PyTorch and braindecode.
_RENAMED = (
    (".weight_g", ".parametrizations.weight.original0"),
    (".weight_v", ".parametrizations.weight.original1"),
    (".weight", ".parametrizations.weight.original"),
    ("fc.", "final_layer.fc."),
)


def import_models() -> Any:
    """`braindecode.models`.

    Raises:
        MissingExtraError: it is not installed, or does not import: from 1.0 on braindecode wants torchaudio,
            of which there must be a build for the PyTorch that is here.
    """
    try:
        from braindecode import models
    except (ImportError, OSError) as error:
        raise MissingExtraError(f"braindecode ({error})", "eeg") from error
    return models


def build(
    name: str, channels: int, classes: int, window: int, *, dense: bool = True, **changes: Any
) -> nn.Module:
    """A network of braindecode that gives logits (B, classes, predictions) of (B, channels, window).

    Args:
        name: one of `NETWORKS`.
        channels, classes, window: sizes.
        dense: strides become dilations, so that there is a prediction at every sample that has a whole
            receptive field before it.
        changes: settings of braindecode's class other than those above.

    Raises:
        ValueError: an unknown name or setting, or a window shorter than the receptive field.
        MissingExtraError: braindecode is not installed.
    """
    if name not in _NETWORKS:
        raise unknown_name("network", name, NETWORKS)
    models = import_models()
    kinds, settings, strided = _NETWORKS[name]
    kind = next(getattr(models, k) for k in kinds if hasattr(models, k))
    known = inspect.signature(kind.__init__).parameters
    for key in changes:
        if key not in known:
            raise unknown_name(f"setting of {kind.__name__}", key, known)
    settings = {"n_chans": channels, "n_outputs": classes, "n_times": window, **settings, **changes}
    if "add_log_softmax" in known:
        settings["add_log_softmax"] = False  # braindecode before 1.0; the loss here is of logits
    try:
        network = kind(**settings)
        network = getattr(network, "base_tcn", network)  # 1.x averages around it; 0.8 has it alone
        if strided and dense:
            network.to_dense_prediction_model()
        network.eval()(torch.zeros(1, channels, window))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(f"{name} cannot be built for windows of {window} samples: {error}") from error
    return network.train()


class EEGNetwork(nn.Module):
    """A classifier of windows, and its contract.

    Args:
        network: any module (B, C, window) -> logits (B, classes) or (B, classes, predictions).
        signal: of its input.
        window: samples.
        head: name of the child that classifies; the last child with parameters by default.
        stride: samples from one window to the next. By default predictions are dense, one for each sample,
            and windows follow each other so that none is made twice; or there is one, and windows do not
            overlap.
        built: how `build` made it, so that it can be loaded by itself.

    Attributes:
        predictions: dense predictions of a window; 1 where the network gives one.
        blocks: names of the modules below the head, in their order; a normalisation belongs to the block
            before it.

    Raises:
        ValueError: a network that takes other windows or gives something else, or a head that is not there.
    """

    def __init__(
        self,
        network: nn.Module,
        signal: Signal,
        window: int,
        head: str | None = None,
        stride: int | None = None,
        built: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.network, self.signal, self.window = network, signal, window
        self.built = dict(built) if built else None
        children = [name for name, child in network.named_children() if any(True for _ in child.parameters())]
        if not children or (head is not None and head not in children):
            raise ValueError(f"The head {head!r} is none of the children with parameters: {children}.")
        self.head = head or children[-1]
        self.blocks = _blocks(network, children, self.head)
        self.frozen: tuple[str, ...] = ()
        self.freeze_norm = False
        self.predictions = self._look()
        self.stride = stride or (self.predictions if self.predictions > 1 else window)

    @classmethod
    def build(cls, name: str, signal: Signal, window: int = 6000, **changes: Any) -> EEGNetwork:
        """One of `NETWORKS`; arguments and errors as those of the function `build`."""
        network = build(name, len(signal.ch_names), len(signal.classes), window, **changes)
        stride = None if changes.get("dense", True) else window
        return cls(network, signal, window, stride=stride, built={"name": name, **changes})

    def _look(self) -> int:
        shape = (1, len(self.signal.ch_names), self.window)
        reference = next(self.network.parameters())
        training = self.network.training
        try:
            with torch.no_grad():
                found = self.network.eval()(torch.zeros(shape, device=reference.device))
        except RuntimeError as error:
            raise ValueError(f"The network does not take windows {shape}: {error}") from error
        finally:
            self.network.train(training)
        classes = len(self.signal.classes)
        if not isinstance(found, Tensor) or found.ndim not in (2, 3) or found.shape[1] != classes:
            raise ValueError(
                f"The network gives {getattr(found, 'shape', type(found))}; (1, {classes}, P) is expected."
            )
        return found.shape[2] if found.ndim == 3 else 1

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, window) -> (B, classes, predictions)."""
        logits = self.network(x)
        return logits if logits.ndim == 3 else logits[:, :, None]

    # What is trained

    def freeze(self, blocks: int | None = None, norms: bool = False) -> EEGNetwork:
        """Leaves the first blocks as they are: no gradients, no dropout, no new statistics of batches.

        Args:
            blocks: how many, from 0 to all below the head; None for all but the head.
            norms: keep the statistics of batch norms everywhere.

        Raises:
            ValueError: more blocks than there are.
        """
        if blocks is not None and not 0 <= blocks <= len(self.blocks):
            raise ValueError(f"{blocks} blocks cannot be frozen; {len(self.blocks)} lie below the head.")
        chosen = self.blocks if blocks is None else self.blocks[:blocks]
        self.frozen, self.freeze_norm = tuple(name for block in chosen for name in block), norms
        for name, parameter in self.network.named_parameters():
            if blocks is None:
                held = not name.startswith(f"{self.head}.")
            else:
                held = name.startswith(tuple(f"{part}." for part in self.frozen))
            parameter.requires_grad_(not held)
        return self.train(self.training)

    def train(self, mode: bool = True) -> EEGNetwork:
        """As of any module, but what is frozen stays in eval mode."""
        super().train(mode)
        for name in self.frozen:
            self.network.get_submodule(name).eval()
        if self.freeze_norm:
            for module in self.network.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def rate_groups(self, decay: float) -> list[tuple[float, list[nn.Parameter]]]:
        """(share of the learning rate, parameters) of the head and, each `decay` times slower than the one
        above, of the blocks below it; what is frozen is left out.
        """
        parts = [*self.blocks, (self.head,)]
        groups = []
        for k, part in enumerate(parts):
            starts = tuple(f"{name}." for name in part)
            named = [
                p for n, p in self.network.named_parameters() if n.startswith(starts) and p.requires_grad
            ]
            if named:
                groups.append((decay ** (k + 1 - len(parts)), named))
        return groups

    def fresh(self, seed: int) -> EEGNetwork:
        """The same network with new random weights, and nothing of it frozen.

        Raises:
            ValueError: another module than braindecode's, some layer of which has no `reset_parameters`.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, 12))
            if self.built is not None:
                made = EEGNetwork.build(**{**self.built, "signal": self.signal, "window": self.window})
                return made.to(next(self.parameters()).device)
            network = copy.deepcopy(self.network)
            for name, module in network.named_modules():
                if [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
                    if not hasattr(module, "reset_parameters"):
                        raise ValueError(f"{name} ({type(module).__name__}) has no reset_parameters.")
                    module.reset_parameters()
        network.requires_grad_(True)
        return EEGNetwork(network, self.signal, self.window, self.head, self.stride)

    def copied(self) -> EEGNetwork:
        """A copy with the same weights, nothing of it frozen."""
        made = copy.deepcopy(self)
        made.frozen, made.freeze_norm = (), False
        made.requires_grad_(True)
        return made.train(self.training)

    # Files

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes weights and contract."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Clones, since networks may share a weight and safetensors refuses that.
        state = {k: v.detach().cpu().contiguous().clone() for k, v in self.network.state_dict().items()}
        save_file(state, str(folder / WEIGHTS))
        content = {"format": FORMAT, "network": self.built, "window": self.window, "head": self.head}
        save_json(folder / CONFIG, {**content, "stride": self.stride, "signal": self.signal.to_json()})

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike, network: nn.Module | None = None, **_: Any
    ) -> EEGNetwork:
        """The inverse of `save_pretrained`.

        Args:
            folder: with weights and contract.
            network: a module of the same form; needed for the ones that are not braindecode's.

        Raises:
            FileFormatError: missing, truncated or foreign files, or weights that do not fit.
        """
        folder = Path(folder)
        content = load_json(folder / CONFIG)
        if content.get("format") != FORMAT:
            raise FileFormatError(
                f"{folder} has format {content.get('format')}; this version reads {FORMAT}."
            )
        state = load_tensors(folder / WEIGHTS)
        try:
            signal, window, built = Signal.from_json(content["signal"]), content["window"], content["network"]
            if network is None and built is None:
                raise FileFormatError(f"{folder} holds a network of your own; give it as `network`.")
            if network is None:
                found = cls.build(**{**built, "signal": signal, "window": window})
            else:
                found = cls(network, signal, window, content["head"], content["stride"], built)
        except (KeyError, TypeError) as error:
            raise FileFormatError(f"{folder / CONFIG} lacks something: {error!r}") from error
        found.load_weights(state)
        return found

    def load_weights(self, state: Mapping[str, Tensor], head: bool = True) -> None:
        """Weights of the bare network, all of them; names that older versions used are understood.

        Args:
            state: by name.
            head: False leaves the head as it is, such as for other classes.

        Raises:
            FileFormatError: a weight that is missing, left over, or of another shape.
        """
        own = self.network.state_dict()
        state = translated(state, own)
        if not head:
            state = {k: v for k, v in state.items() if not k.startswith(f"{self.head}.")}
            state |= {k: v for k, v in own.items() if k.startswith(f"{self.head}.")}
        try:
            self.network.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise FileFormatError(f"The weights do not fit this network: {error}") from error

    # What it sees

    @torch.no_grad()
    def activations(self, x: Tensor) -> list[Tensor]:
        """Outputs of the blocks below the head, each (B, D), means over time, in eval mode."""
        with self._watched([block[-1] for block in self.blocks]) as seen:
            self(x)
        return [z.float().flatten(2).mean(2) if z.ndim > 2 else z.float() for z in seen]

    @contextmanager
    def _watched(self, names: list[str]) -> Iterator[list[Tensor]]:
        seen: list[Tensor] = []
        hooks = [
            self.network.get_submodule(name).register_forward_hook(
                lambda module, given, out: seen.append(out)
            )
            for name in names
        ]
        training = self.training
        self.eval()
        try:
            yield seen
        finally:
            self.train(training)
            for hook in hooks:
                hook.remove()


def _blocks(network: nn.Module, children: list[str], head: str) -> list[tuple[str, ...]]:
    names = []
    for name in children:
        if name == head:
            continue
        child = network.get_submodule(name)
        if isinstance(child, nn.Sequential):
            names += [f"{name}.{k}" for k, c in child.named_children() if any(True for _ in c.parameters())]
        else:
            names.append(name)
    blocks: list[tuple[str, ...]] = []
    for name in names:
        if blocks and isinstance(network.get_submodule(name), _NORMS):
            blocks[-1] += (name,)
        else:
            blocks.append((name,))
    return blocks


def translated(state: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights under the names that are wanted, where a known renaming leads there; others as they are."""

    def versions(name: str) -> list[str]:
        found = [name]
        for a, b in _RENAMED:
            for old, new in ((a, b), (b, a)):
                if old.startswith(".") and name.endswith(old):
                    found.append(name.removesuffix(old) + new)
                elif name.startswith(old):
                    found.append(new + name.removeprefix(old))
        return found

    return {next((n for n in versions(name) if n in wanted), name): value for name, value in state.items()}
