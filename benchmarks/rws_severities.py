"""Signatures against every corruption that grey images have a rule for, at all five severities.

The digits, networks and rates of `benchmarks/rws.py`; each θ_c sees severity 5 of its corruption, and its
signature (four convolutions, weight 1) is measured at severities 1 to 5, on 597 test images. Accuracy in per
cent, mean over three seeds. `saturate` needs colours and is left out. The rules and their numbers are those
for images of 32x32: what they have in pixels is stronger on 8x8, and what they have as noise is not.

    python benchmarks/rws_severities.py        (a quarter of an hour on a core)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from statistics import mean
from typing import Any

import torch
from _results import Cells
from _tables import head, number, table
from rws import LAYERS, SECOND, SEEDS, TEST, clean, percent, trained
from torch import nn

from dmkit.auxiliary.compression.rws import RobustWeightSignature, evaluate_corruptions, patch
from dmkit.data.corruptions import NAMES, Corruption, parameters
from dmkit.data.digits import digit_tensors

SEVERITIES = (1, 2, 3, 4, 5)
CORRUPTIONS = tuple(name for name in NAMES if name != "saturate")
ABOUT = {"what": " ".join(__doc__.split("\n    python")[0].split("\n\n", 1)[1].split())}

start = cache(clean)


def measure(name: str, seed: int) -> dict[str, dict[str, float]]:
    base, standard = start(seed)
    images, labels = digit_tensors(seed)
    robust = trained(base, SECOND, 25, 0.01, seed, Corruption(name, 5))
    signature = RobustWeightSignature.extract(base, standard, robust, LAYERS, corruption=name)
    rules = {str(severity): Corruption(name, severity) for severity in SEVERITIES}

    def score(model: nn.Module) -> dict[str, float]:
        return percent(evaluate_corruptions(model, images[TEST], labels[TEST], rules))

    found = {"standard": score(standard), "robust": score(robust)}
    with patch(standard, signature):
        found["patched"] = score(standard)
    return found


def averages(content: dict[str, Any], name: str) -> dict[str, list[float]]:
    """By network: clean, then by severity."""
    runs = [c for key, c in content["cells"].items() if key.startswith(f"{name}/")]
    keys = ("clean", *map(str, SEVERITIES))
    return {kind: [mean(run[kind][k] for run in runs) for k in keys] for kind in runs[0]}


def numbers(name: str) -> str:
    return ", ".join("/".join(map(number, parameters(name, s))) for s in SEVERITIES)


def render(content: dict[str, Any]) -> str:
    rows = []
    for name in CORRUPTIONS:
        for kind, values in averages(content, name).items():
            first = [f"`{name}`", numbers(name)] if kind == "standard" else ["", ""]
            rows.append([*first, kind, *(f"{value:.1f}" for value in values)])
    header = ["", "its numbers at 1 to 5", "network", "clean", *map(str, SEVERITIES)]
    return head(content, "Robust weight signatures over severities") + table(header, rows)


def beside_reference(content: dict[str, Any], reference: Mapping[str, str]) -> str:
    """The same in a row a corruption, with what the reference's small experiment has for it."""
    rows = []
    for name in CORRUPTIONS:
        found = averages(content, name)
        shown = [" / ".join(f"{value:.0f}" for value in found[kind][1:]) for kind in ("standard", "patched")]
        rows.append(
            [f"`{name}`", numbers(name), *shown, f"{found['patched'][0]:.0f}", reference.get(name, "")]
        )
    header = ["", "its numbers, severities 1 to 5", "standard RA", "patched RA", "patched TA"]
    return table([*header, "reference small experiment: standard → patched RA"], rows)


def main() -> None:
    torch.set_num_threads(1)
    cells = Cells("rws_severities", ABOUT)
    for seed in SEEDS:
        for name in CORRUPTIONS:
            cells.once(f"{name}/{seed}", lambda name=name, seed=seed: measure(name, seed))


if __name__ == "__main__":
    main()
