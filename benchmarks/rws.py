"""Robust weight signatures on scikit-learn's digits, and how large their files are for a VGG-16.

θ_0 learns 600 clean digits (50 epochs, rate 0.05), θ_s goes on with 600 others (10 epochs, rate 0.01), θ_c
with the same others, corrupted anew in every step (25 epochs, rate 0.01), and so does a network that sees all
corruptions in turn. SGD with momentum 0.9, decay 5e-4, cosine schedule, batch 64; four convolutions of 24,
24, 48, 48 channels and a linear head. Accuracies in per cent of the 597 digits that are left.

    python benchmarks/rws.py        (five minutes on a core)
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from _beside import Beside
from _results import RESULTS, Cells
from _tables import head, number, spread, table
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from dmkit._files import load_json
from dmkit.auxiliary.compression.rws import RobustWeightSignature, evaluate_corruptions, patch
from dmkit.auxiliary.compression.rws.training import fit
from dmkit.data.corruptions import gaussian_blur, gaussian_noise, impulse_noise
from dmkit.data.digits import digit_tensors
from dmkit.training.arguments import TrainingArguments
from dmkit.training.networks import ConvNet

SEEDS = (0, 1, 2)
LAYERS, STRENGTHS, DEPTHS = "conv:4", (0.0, 0.25, 0.5, 0.75, 1.0, 1.25), (1, 2, 3)
ABOUT = {
    "what": "Digits of 8x8 pixels under Gaussian noise (deviation 0.45), impulse noise (30 %), Gaussian blur "
    "(1.1 pixels) and contrast (x 0.15). Accuracy in %, mean ± deviation over seeds: TA on clean images, RA "
    "on corrupted ones. Signatures of the four convolutions, weight 1, unless another is named.",
    "paper": "storage up to 13x smaller than a full copy",
}


def contrast(x: Tensor, generator: Generator) -> Tensor:
    return (x - 0.5) * 0.15 + 0.5


RULES: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "noise": lambda x, g: gaussian_noise(x, 0.45, g).clamp(0, 1),
    "impulse": lambda x, g: impulse_noise(x, 0.3, g),
    "blur": lambda x, g: gaussian_blur(x, 1.1),
    "contrast": contrast,
}


def any_of_them(x: Tensor, generator: Generator) -> Tensor:
    """What data augmentation by all four sees: a batch under one of them."""
    drawn = int(torch.randint(len(RULES), (), generator=generator))
    return list(RULES.values())[drawn](x, generator)


def percent(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(100 * value, 2) for name, value in figures.items()}


FIRST, SECOND, TEST = slice(600), slice(600, 1200), slice(1200, None)


def trained(start: Any, rows: slice, epochs: int, rate: float, seed: int, rule: Any = None) -> ConvNet:
    """A network after so many epochs on some rows of the seed's digits."""
    images, labels = digit_tensors(seed)
    with tempfile.TemporaryDirectory() as folder:
        training = TrainingArguments(
            output_dir=folder,
            seed=seed,
            train_batch_size=64,
            num_epochs=epochs,
            learning_rate=rate,
            lr_warmup_steps=0,
            optimizer="sgd",
            sgd_momentum=0.9,
            sgd_weight_decay=5e-4,
            max_grad_norm=0,
            checkpointing_steps=0,
            save_images_epochs=0,
            save_model_epochs=0,
            report_to="none",
        )
        return fit(start, images[rows], labels[rows], training, rule=rule)


def clean(seed: int) -> tuple[ConvNet, ConvNet]:
    """θ_0 and θ_s."""
    base = trained({}, FIRST, 50, 0.05, seed)
    return base, trained(base, SECOND, 10, 0.01, seed)


def measure(seed: int) -> dict[str, Any]:
    images, labels = digit_tensors(seed)
    base, standard = clean(seed)
    robust = {name: trained(base, SECOND, 25, 0.01, seed, rule) for name, rule in RULES.items()}
    mixed = trained(base, SECOND, 25, 0.01, seed, any_of_them)

    def score(model: nn.Module = standard) -> dict[str, float]:
        return percent(evaluate_corruptions(model, images[TEST], labels[TEST], RULES))

    def patched(signatures: Any, **how: Any) -> dict[str, float]:
        with patch(standard, signatures, **how):
            return score()

    def extracted(layers: str = LAYERS, project: bool = True) -> dict[str, RobustWeightSignature]:
        return {
            name: RobustWeightSignature.extract(
                base, standard, model, layers, project=project, corruption=name
            )
            for name, model in robust.items()
        }

    own = extracted()
    by_corruption = {
        "robust": {n: score(model) for n, model in robust.items()},
        "patched": {n: patched(s) for n, s in own.items()},
        "plain difference": {n: patched(s) for n, s in extracted(project=False).items()},
        **{f"{k} levels": {n: patched(s.quantize(k)) for n, s in own.items()} for k in (16, 8, 4)},
        "16 levels, log": {n: patched(s.quantize(16, "log")) for n, s in own.items()},
        **{f"K = {k}": {n: patched(s) for n, s in extracted(f"conv:{k}").items()} for k in DEPTHS},
    }
    two = {n: own[n] for n in ("noise", "blur")}
    return {
        "base": score(base),
        "standard": score(),
        "mixed": score(mixed),
        "by corruption": by_corruption,
        "strength": {n: [patched(s, alpha=w)[n] for w in STRENGTHS] for n, s in own.items()},
        "noise + blur": patched(two),
        "all four": patched(own),
        "cosines": {f"{a} / {b}": round(own[a].cosine(own[b]), 4) for a in own for b in own if a < b},
    }


# Storage


def vgg16(classes: int = 10) -> nn.Module:
    """The 13 convolutions, a pooling to one pixel and one linear layer that the paper stores."""
    widths = (3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6)
    layers = [part for a, b in pairwise(widths) for part in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


def moved(model: nn.Module, step: float, generator: Generator) -> dict[str, Tensor]:
    """Weights some way off; how far does not matter for the size of a file."""
    return {
        name: value + step * value.std() * torch.randn(value.shape, generator=generator)
        for name, value in model.state_dict().items()
    }


def storage() -> dict[str, Any]:
    """Bytes of files on disk, and how many times smaller than the network's own."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    base = vgg16()
    standard = vgg16()
    standard.load_state_dict(moved(base, 0.1, generator))
    robust = moved(base, 0.1, generator)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        save_file(standard.state_dict(), f"{folder}/whole.safetensors")
        found["whole"] = {"bytes": (Path(folder) / "whole.safetensors").stat().st_size, "smaller": 1.0}
        for depth in (5, 6, 7):
            signature = RobustWeightSignature.extract(base, standard, robust, f"conv:{depth}")
            for levels in (0, 256, 16):
                one = signature.quantize(levels) if levels else signature
                one.save_pretrained(f"{folder}/{depth}-{levels}")
                size = sum(path.stat().st_size for path in Path(f"{folder}/{depth}-{levels}").iterdir())
                name = f"K = {depth}, {f'{levels} levels' if levels else 'float32'}"
                found[name] = {"bytes": size, "smaller": round(found["whole"]["bytes"] / size, 2)}
    return found


# Tables and the plot


def seeds(cells: dict[str, Any]) -> list[dict[str, Any]]:
    return [figures for key, figures in cells.items() if key.startswith("digits/")]


def mean(values: Iterable[float]) -> float:
    return round(statistics.mean(values), 2)


def bars(cells: dict[str, Any]) -> dict[str, Any]:
    """What is asked, what was measured, whether it is met."""
    runs = seeds(cells)
    of = {k: [run["by corruption"][k] for run in runs] for k in runs[0]["by corruption"]}

    def gain(name: str) -> float:
        return mean(
            one[name][name] - run["standard"][name] for one, run in zip(of["patched"], runs, strict=True)
        )

    def loss(name: str) -> float:
        drops = [
            run["standard"]["clean"] - one[name]["clean"]
            for one, run in zip(of["patched"], runs, strict=True)
        ]
        return mean(drops)

    def coarser(name: str) -> float:
        pairs = zip(of["patched"], of["16 levels"], strict=True)
        return mean(fine[name][name] - coarse[name][name] for fine, coarse in pairs)

    found: dict[str, Any] = {
        f"RA gain under {name} ≥ {least}": [gain(name), gain(name) >= least]
        for name, least in {"noise": 3, "impulse": 3, "blur": 8, "contrast": 25}.items()
    }
    for name in ("noise", "impulse", "blur"):
        found[f"TA drop by {name} ≤ 7"] = [loss(name), loss(name) <= 7]
    for name in ("noise", "blur"):
        more = mean(run["noise + blur"][name] - run["standard"][name] for run in runs)
        found[f"both at 1/2, RA under {name} above standard"] = [more, more > 0]
    for name in RULES:
        found[f"16 levels, RA drop under {name} ≤ 1.5"] = [coarser(name), coarser(name) <= 1.5]
    near = mean(run["cosines"]["impulse / noise"] for run in runs)
    far = mean(run["cosines"]["blur / noise"] for run in runs)
    found["cosine of noise and impulse > 0.6"] = [near, near > 0.6]
    found["cosine of noise and blur within 0.2 of 0"] = [far, abs(far) < 0.2]
    smaller = cells["storage"]["K = 6, float32"]["smaller"]
    found["VGG-16, K = 6, float32: 12 times smaller or more"] = [smaller, smaller >= 12]
    return found


def render(content: dict[str, Any]) -> str:
    cells = content["cells"]
    runs = seeds(cells)
    text = head(content, "Robust weight signatures")
    text += f"{len(runs)} seeds. A column is the corruption that a network was made robust against.\n\n"
    header = ["", *(f"{name} {what}" for name in RULES for what in ("RA", "TA"))]
    rows = []
    for label, key in {"standard": "standard", "one network, all four in training": "mixed"}.items():
        row = [label]
        for name in RULES:
            row += [spread([run[key][name] for run in runs]), spread([run[key]["clean"] for run in runs])]
        rows.append(row)
    for key in runs[0]["by corruption"]:
        row = [{"robust": "robust, a network each"}.get(key, key)]
        for name in RULES:
            found = [run["by corruption"][key][name] for run in runs]
            row += [spread([one[name] for one in found]), spread([one["clean"] for one in found])]
        rows.append(row)
    for label, key in {"noise and blur at 1/2": "noise + blur", "all four at 1/4": "all four"}.items():
        row = [label]
        for name in RULES:
            row += [spread([run[key][name] for run in runs]), spread([run[key]["clean"] for run in runs])]
        rows.append(row)
    text += table(header, rows)
    text += "\n## Bars\n\n" + table(
        ["", "measured", "met"], [[k, number(v[0]), number(v[1])] for k, v in bars(cells).items()]
    )
    text += "\n## Cosines\n\n" + table(
        ["", "cosine"],
        [[pair, f"{mean(run['cosines'][pair] for run in runs):.2f}"] for pair in runs[0]["cosines"]],
    )
    text += "\n## Files for a VGG-16 of ten classes\n\n" + table(
        ["", "bytes", "times smaller"],
        [[name, f"{c['bytes']:,}", c["smaller"]] for name, c in cells["storage"].items()],
    )
    draw(runs)
    return text + "\n![Accuracy over the weight, and what one signature does elsewhere](rws.png)\n"


def draw(runs: list[dict[str, Any]]) -> None:
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4), layout="constrained")
    for name in RULES:
        curves = [run["strength"][name] for run in runs]
        (line,) = left.plot(STRENGTHS, [mean(v) for v in zip(*curves, strict=True)], "o-", label=name)
        for curve in curves:
            left.plot(STRENGTHS, curve, color=line.get_color(), alpha=0.25, lw=0.8)
        best = mean(run["by corruption"]["robust"][name][name] for run in runs)
        left.axhline(best, color=line.get_color(), ls=":", lw=1)
    left.set(xlabel="weight of the signature", ylabel="accuracy under its corruption, %")
    left.set_title("dotted: the robust network itself", fontsize=9)
    left.legend(fontsize=8)
    columns = ["clean", *RULES]
    gains = [
        [mean(run["by corruption"]["patched"][row][c] - run["standard"][c] for run in runs) for c in columns]
        for row in RULES
    ]
    shown = right.imshow(gains, cmap="RdBu", vmin=-40, vmax=40, aspect="auto")
    for i, row in enumerate(gains):
        for j, value in enumerate(row):
            colour = "white" if abs(value) > 30 else "black"
            right.text(j, i, f"{value:+.1f}", ha="center", va="center", fontsize=9, color=colour)
    right.set_xticks(range(len(columns)), columns)
    right.set_yticks(range(len(RULES)), list(RULES))
    right.set(xlabel="measured on", ylabel="signature, weight 1")
    right.set_title("change in accuracy, points", fontsize=9)
    figure.colorbar(shown, ax=right)
    figure.savefig(RESULTS / "rws.png", dpi=110)
    plt.close(figure)


# In the reference's small experiment: standard, patched, robust RA, and patched TA, seeds 0 and 1.
REFERENCE = {
    "noise": ("61.1, 61.5", "64.5, 67.3", "70.7, 72.7", "92.5, 92.0"),
    "impulse": ("59.1, 58.1", "63.8, 64.7", "70.5, 69.7", "91.0, 92.1"),
    "blur": ("84.6, 66.7", "94.6, 88.3", "95.3, 95.3", "94.0, 93.1"),
    "contrast": ("10.7, 10.6", "46.1, 66.5", "94.5, 94.6", "74.2, 75.5"),
}
WHY = {
    "RA gain under noise ≥ 3": "Two thirds of what the robust network itself gains.",
    "RA gain under impulse ≥ 3": "Nearly four fifths of the robust network's gain.",
    "RA gain under blur ≥ 8": "Nearly all of the robust network's gain, at a smaller loss on clean images.",
    "RA gain under contrast ≥ 25": "Far above the bar, and still 14 points short of the robust network.",
    "TA drop by noise ≤ 7": "Less than half of what was allowed.",
    "TA drop by impulse ≤ 7": "Less than half of what was allowed.",
    "TA drop by blur ≤ 7": "The robust network loses more.",
    "both at 1/2, RA under noise above standard": "Half a patch has four fifths of the whole one's gain.",
    "both at 1/2, RA under blur above standard": "Half a patch has four fifths of the whole one's gain.",
    "16 levels, RA drop under noise ≤ 1.5": "Four bits a number cost nothing that three seeds can see.",
    "16 levels, RA drop under impulse ≤ 1.5": "As under noise; the sign is chance.",
    "16 levels, RA drop under blur ≤ 1.5": "As under noise; the sign is chance.",
    "16 levels, RA drop under contrast ≤ 1.5": "As under noise; with 8 levels it would be missed.",
    "cosine of noise and impulse > 0.6": "Signatures of kin corruptions are kin.",
    "cosine of noise and blur within 0.2 of 0": "Those of others are orthogonal, so that they can be added.",
    "VGG-16, K = 6, float32: 12 times smaller or more": "A count of weights, which no training changes; "
    "the paper's 13 is probably this K.",
}


def beside(content: dict[str, Any]) -> Beside:
    cells = content["cells"]
    runs, rows = seeds(cells), []
    unread = "not available"

    def row(what: str, name: str, of: Callable[[dict[str, Any]], float], reference: str) -> None:
        rows.append((f"{name}, {what}", spread([of(run) for run in runs]), reference, unread))

    for name, (standard, patched, robust, clean) in REFERENCE.items():
        row("standard RA", name, lambda run, name=name: run["standard"][name], standard)
        row("patched RA", name, lambda run, n=name: run["by corruption"]["patched"][n][n], patched)
        row("robust network's RA", name, lambda run, n=name: run["by corruption"]["robust"][n][n], robust)
        row("patched TA", name, lambda run, n=name: run["by corruption"]["patched"][n]["clean"], clean)
    for name, reference in {"noise": "68.2, 65.7", "blur": "91.1, 83.1"}.items():
        row("with noise and blur at 1/2", name, lambda run, n=name: run["noise + blur"][n], reference)
    smaller = cells["storage"]["K = 6, float32"]["smaller"]
    rows.append(("VGG-16, K = 6: times smaller", f"{smaller:.1f}", "12.9, counted", "up to 13"))
    return Beside(
        rows,
        "The reference is a separate script of the same set-up, two seeds (clean images: 97.3 and 97.0 "
        "before the patch); initial weights and draws are its own, and one of its standard networks is "
        "15 points better under blur. Its patch under contrast is far below ours: contrast about 0.5 at "
        "8x8 is where seeds differ most. The paper has a table of VGG-16 and ResNet-50 on CIFAR-10, "
        "CIFAR-100 and Tiny-ImageNet whose values were not available here; only its abstract's storage "
        "claim can be set beside ours.",
        bars(cells),
        WHY,
        over_severities(),
    )


def over_severities() -> str:
    from rws_severities import beside_reference  # which has its networks from here

    mean_of = {"noise": "61.3 → 65.9 (deviation 0.45)", "impulse": "58.6 → 64.3 (30 %)"}
    mean_of |= {"blur": "75.7 → 91.5 (1.1 pixels)", "contrast": "10.7 → 56.3 (x 0.15 about 0.5)"}
    names = {"noise": "gaussian_noise", "impulse": "impulse_noise", "blur": "gaussian_blur"}
    reference = {names.get(name, name): figures for name, figures in mean_of.items()}
    content = load_json(RESULTS / "rws_severities.json")
    return (
        "\nAll corruptions with a rule for grey images, at their five severities; each signature was "
        "learned at severity 5. The numbers of the rules are the reference's, one by one; accuracies "
        "over severities it has none, only the mean of two seeds at four strengths of its own, three of "
        "them beyond severity 5. At severity 5 no signature harms; at these strengths noise costs the "
        "standard network 1 to 7 points, and there is little to gain. At severity 1 the signatures of "
        "contrast, fog, motion blur, brightness and zoom blur cost 4 to 12 points: one for a condition "
        "that is not there is a loss.\n\n"
    ) + beside_reference(content, reference)


def main() -> None:
    torch.set_num_threads(1)
    cells = Cells("rws", ABOUT)
    cells.once("storage", storage)
    for seed in SEEDS:
        cells.once(f"digits/{seed}", lambda seed=seed: measure(seed))


if __name__ == "__main__":
    main()
