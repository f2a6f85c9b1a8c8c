"""Several SPMs as one file, for tools that load one adapter at a fixed strength."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from .weights import SPMLayer, SPMMetadata, SPMWeights, flat


def merge_spms(spms: Sequence[SPMWeights], weights: Sequence[float] | None = None) -> SPMWeights:
    """One adapter that computes the weighted sum of several, exactly: Σ_c w_c (α_c / r_c) U_c D_c.

    The D_c are stacked as rows and the weighted U_c as columns, so the rank is the sum of the ranks. Adding
    up D and U instead would also multiply each D with the other adapters' U. A layer that an adapter lacks
    gets zeros from it.

    Args:
        spms: at least one; of models of one architecture.
        weights: w_c; 1 each by default.

    Returns:
        An adapter with the targets of all, α = r.

    Raises:
        ValueError: none given, another number of weights, weights that are not finite or so large that the
            result is not, layers whose shapes differ, or adapters of different architectures.
    """
    factors = [1.0] * len(spms) if weights is None else list(weights)
    if not spms or len(factors) != len(spms):
        raise ValueError(
            f"{len(spms)} SPMs and {len(factors)} weights; give at least one and as many of each."
        )
    if not all(math.isfinite(factor) for factor in factors):
        raise ValueError(f"Weights should be finite numbers, not {factors}.")
    architectures = {spm.metadata.architecture for spm in spms} - {None}
    if len(architectures) > 1 or len({spm.component for spm in spms}) > 1:
        raise ValueError("The SPMs are for different architectures.")
    # A file's names may have underscores for dots; a name with dots says more.
    names: dict[str, str] = {}
    for spm in spms:
        for name in spm.layers:
            names[flat(name)] = max(names.get(flat(name), name), name, key=lambda n: n.count("."))
    by_flat = [{flat(name): layer for name, layer in spm.layers.items()} for spm in spms]
    layers = {}
    for key, name in names.items():
        known = next(layers_of[key] for layers_of in by_flat if key in layers_of)
        downs, ups = [], []
        for spm, layers_of, factor in zip(spms, by_flat, factors, strict=True):
            shape_d, shape_u = known.down.shape, known.up.shape
            nothing = SPMLayer(
                known.down.new_zeros(spm.rank, *shape_d[1:]),
                known.up.new_zeros(shape_u[0], spm.rank, *shape_u[2:]),
                torch.tensor(1.0),
            )
            layer = layers_of.get(key, nothing)
            if layer.down.shape[1:] != shape_d[1:] or layer.up.shape[0] != shape_u[0]:
                raise ValueError(
                    f"{name} maps {shape_d[1]} to {shape_u[0]} features in one SPM and {layer.down.shape[1]} "
                    f"to {layer.up.shape[0]} in another; they are for different architectures."
                )
            downs.append(layer.down)
            ups.append(layer.up * (factor * layer.scale))
        down, up = torch.cat(downs), torch.cat(ups, dim=1)
        if not bool(up.isfinite().all()):
            raise ValueError(f"The weights {factors} are too large: {name} overflows.")
        layers[name] = SPMLayer(down, up, torch.tensor(float(down.shape[0]), dtype=up.dtype))
    surrogates = {spm.metadata.surrogate for spm in spms}
    of_all = SPMMetadata(
        surrogate=surrogates.pop() if len(surrogates) == 1 else "",
        targets=tuple(dict.fromkeys(target for spm in spms for target in spm.metadata.targets)),
        base_model=spms[0].metadata.base_model,
        architecture=spms[0].metadata.architecture,
    )
    return replace(spms[0], layers=layers, metadata=of_all, header={})
