"""A learner's memory on the disk: `continual.safetensors` and `continual.json` in a folder.

pool.{layer}                    O (d, r)
grad.{task}.{layer}             g of CUBER (out, d)
scale.{task}.{layer}.{old}      Q (r, r)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor, nn

from ...._files import atomic_folder, load_json, load_tensors, save_json
from ....errors import FileFormatError, unknown_name
from ....training.subspaces import matrix
from .pools import Learned

if TYPE_CHECKING:
    from .gpm import GPM

FORMAT = 1
TENSORS, CONFIG = "continual.safetensors", "continual.json"


def save(learner: GPM, folder: str | os.PathLike) -> None:
    """Writes both files, in a folder of their own, which is replaced as a whole."""
    tensors = {f"pool.{name}": pool for name, pool in learner.pools.items()}
    tasks = []
    for t, learned in enumerate(learner.tasks):
        tensors |= {f"grad.{t}.{name}": gradient for name, gradient in learned.gradients.items()}
        for name, of_layer in learned.scales.items():
            tensors |= {f"scale.{t}.{name}.{j}": scale for j, scale in of_layer.items()}
        regimes = {name: {str(j): r for j, r in found.items()} for name, found in learned.regimes.items()}
        tasks.append({"columns": learned.columns, "regimes": regimes})
    with atomic_folder(folder) as draft:
        save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, str(draft / TENSORS))
        content = {"format": FORMAT, "learner": type(learner).__name__, "settings": learner.settings()}
        save_json(draft / CONFIG, {**content, "tasks": tasks})


def load(folder: str | os.PathLike, model: nn.Module) -> GPM:
    """See `GPM.load`."""
    from .gpm import GPM
    from .related import CUBER, TRGP

    content, tensors = load_json(Path(folder) / CONFIG), load_tensors(Path(folder) / TENSORS)
    if content.get("format") != FORMAT:
        raise FileFormatError(f"{folder} has format {content.get('format')}; this version reads {FORMAT}.")
    kinds = {kind.__name__: kind for kind in (GPM, TRGP, CUBER)}
    try:
        if (name := content["learner"]) not in kinds:
            raise unknown_name("learner", name, kinds)
        learner = kinds[name](model, **content["settings"])
        learner.pools = {name: _pool(name, learner, tensors) for name in learner.layers}
        for t, kept in enumerate(content["tasks"]):
            learner.tasks.append(_task(t, kept, learner, tensors))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{folder} does not fit this model: {error}") from error
    return learner


def _checked(key: str, tensors: dict[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    if key not in tensors:
        raise ValueError(f"{key} is missing.")
    if tuple(tensors[key].shape) != shape:
        raise ValueError(f"{key} has shape {tuple(tensors[key].shape)}, not {shape}.")
    if not tensors[key].isfinite().all():
        raise ValueError(f"{key} holds NaN or infinite values.")
    return tensors[key]


def _pool(name: str, learner: GPM, tensors: dict[str, Tensor]) -> Tensor:
    width = matrix(learner.layers[name]).shape[1]
    found = tensors.get(f"pool.{name}")
    rank = found.shape[-1] if found is not None and found.ndim else 0
    return _checked(f"pool.{name}", tensors, (width, min(rank, width)))


def _task(t: int, kept: dict[str, Any], learner: GPM, tensors: dict[str, Tensor]) -> Learned:
    learned = Learned()
    for name, layer in learner.layers.items():
        columns, rank = kept["columns"][name], learner.pools[name].shape[1]
        if not all(isinstance(c, int) and 0 <= c < rank for c in columns):
            raise ValueError(f"task {t} names columns of {name} beyond its {rank}.")
        learned.columns[name] = columns
        if learner._keeps_gradients:
            shape = tuple(matrix(layer).shape)
            learned.gradients[name] = _checked(f"grad.{t}.{name}", tensors, shape)
    for name, found in kept["regimes"].items():
        learned.regimes[learner._layer(name)] = {int(j): int(r) for j, r in found.items()}
        learned.scales[name] = {}
        for j in learned.regimes[name]:
            if not 0 <= j < t:
                raise ValueError(f"task {t} is related to task {j}, which does not come before it.")
            rank = len(learner.tasks[j].columns[name])
            learned.scales[name][j] = _checked(f"scale.{t}.{name}.{j}", tensors, (rank, rank))
    return learned
