"""Renders the committed result files to tables and plots: docs/results/*.json -> *.md, *.png. Nothing by
hand. A benchmark with a function `render(content) -> Markdown`, which may draw plots beside, does its own; if
it has `beside(content)` too, its method's page gets two tables, beside the paper's figures.

python benchmarks/render.py
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
from _beside import fill
from _results import RESULTS
from _tables import few, head, number, spread, table
from matplotlib.ticker import NullFormatter, NullLocator

from dmkit._files import load_json

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FRECHET = "frechet_efficientnet_lite0"
NAMES = {
    "plain": "plain",
    "label": "Time-Shift, label",
    "level": "Time-Shift, level",
    "marginal": "Time-Shift, marginal",
    "epsilon": "epsilon scaling",
}


def time_shift_fashion(content: dict[str, Any]) -> str:
    """Fréchet distance by family and steps, a row a variant; and a plot."""
    by_cell: dict[tuple[int, str, str], list[dict[str, Any]]] = {}
    for key, figures in content["cells"].items():
        if key.startswith("quality/"):
            _, steps, family, variant, _ = key.split("/")
            by_cell.setdefault((int(steps), family, variant), []).append(figures)
    steps = sorted({cell[0] for cell in by_cell})
    families = [f for f in ("ddim", "ddpm", "pndm", "dpm++") if any(cell[1] == f for cell in by_cell)]
    text = head(content, "Time-Shift on `fashion`")
    text += (
        "Fréchet distance (EfficientNet-Lite0 features, not FID) of 2,000 samples to the 10,000 test images, "
        "mean ± standard deviation over seeds that the settings were not tuned on; lower is better.\n\n"
    )
    for family in families:
        rows = []
        for variant in NAMES:
            cells = [by_cell.get((s, family, variant)) for s in steps]
            if any(cells):
                found = [spread([c[FRECHET] for c in cell]) if cell else "" for cell in cells]
                rows.append([NAMES[variant], *found])
        text += f"## {family}\n\n" + table(["", *(f"{s} steps" for s in steps)], rows) + "\n"
    text += "## All figures\n\n"
    rows = []
    for (s, family, variant), cell in sorted(by_cell.items()):
        means = [statistics.mean(c[k] for c in cell) for k in cell[0] if k != "settings"]
        setting = ", ".join(
            f"{k.removeprefix('time_shift_')} {number(v)}" for k, v in cell[0]["settings"].items()
        )
        rows.append([s, family, variant, len(cell), *(f"{m:.4g}" for m in means), setting])
    names = [k.replace("_efficientnet_lite0", "") for k in next(iter(by_cell.values()))[0] if k != "settings"]
    text += table(["steps", "family", "variant", "seeds", *names, "tuned settings"], rows)
    figure, axes = plt.subplots(
        1, len(families), figsize=(4 * len(families), 3.6), sharey=True, squeeze=False
    )
    for axis, family in zip(axes[0], families, strict=True):
        for variant in NAMES:
            measured = [s for s in steps if (s, family, variant) in by_cell]
            points = [(s, [c[FRECHET] for c in by_cell[s, family, variant]]) for s in measured]
            if points:
                axis.errorbar(
                    [s for s, _ in points],
                    [statistics.mean(v) for _, v in points],
                    [statistics.stdev(v) if len(v) > 1 else 0 for _, v in points],
                    marker="o", capsize=3, label=NAMES[variant],
                )  # fmt: skip
        axis.set(title=family, xscale="log", yscale="log", xlabel="steps")
        axis.set_xticks(steps, labels=steps)
        axis.xaxis.set_minor_locator(NullLocator())
    axes[0][0].set_ylabel("Fréchet distance (EfficientNet-Lite0)")
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(RESULTS / "time_shift_fashion.png", dpi=120)
    plt.close(figure)
    return text + "\n![Fréchet distance over steps](time_shift_fashion.png)\n"


def bdia_fashion(content: dict[str, Any]) -> str:
    text = head(content, "BDIA on `fashion`")
    cells = content["cells"]
    text += (
        "## Reconstruction of 64 held-out images\n\nThrough an unmodified pipeline; calls are up + down.\n\n"
    )
    for network in ("float32", "float16"):
        rows = []
        for key, c in cells.items():
            if key.startswith(f"reconstruction/{network}/"):
                steps, name = key.split("/")[2:]
                if "refused" in c:
                    rows.append([int(steps), name, "refused", "", "", "", ""])
                else:
                    psnr = "exact" if c["bit_equal"] else f"{c['psnr_db']:.1f}"
                    rows.append([int(steps), name, f"{c['max_abs']:.2g}", psnr, c["std_of_code"],
                                 " + ".join(map(str, c["calls"])), c["peak_mib"]])  # fmt: skip
        if rows:
            header = ["steps", "method", "largest error", "PSNR dB", "std of z_N", "calls", "peak MiB"]
            text += f"### {network} network\n\n" + table(header, sorted(rows, key=lambda r: r[0])) + "\n"
    found: dict[tuple[int, str], list[float]] = {}
    for key, c in cells.items():
        if key.startswith("sampling/"):
            _, steps, name, _ = key.split("/")
            found.setdefault((int(steps), name), []).append(c[FRECHET])
    if found:
        text += "## Sampling at equal network calls\n\n"
        text += "Fréchet distance (EfficientNet-Lite0) of 2,000 samples.\n\n"
        text += table(
            ["calls", "sampler", "distance"], [[s, n, spread(v)] for (s, n), v in sorted(found.items())]
        )
    return text


EDITING = {
    "background_psnr_db": "background, PSNR dB",
    "background_psnr_to_vae_db": "to the VAE's",
    "background_features": "features",
    "target_score": "target score",
    "target_seen": "concept seen",
}


def emoji_editing(content: dict[str, Any]) -> str:
    """Reconstruction; edits, a row a method and setting; the same by kind at one setting; the picture."""

    def decibels(value: float | None) -> str:
        return "exact" if value is None else f"{value:.1f}"

    def figures(c: dict[str, Any]) -> list[str]:
        return [decibels(c[k]) if k.endswith("_db") else f"{c[k]:.3f}" for k in columns]

    cells = dict(content["cells"])
    picture = cells.pop("picture")
    columns = [key for key in EDITING if key in cells["reference/source"]["all"]]
    names = [EDITING[key] for key in columns]
    edits = {tuple(key.split("/")): c for key, c in cells.items() if not key.startswith("reference/")}
    text = head(content, "Editing held-out emoji")
    text += (
        "Guidance a-b: a on the way up, b on the way down. Background: the pixels in which drawn source and "
        "drawn target agree. Features: 1 - cosine of EfficientNet-Lite0's. Higher is better, but for "
        "features.\n\n## Reconstruction under the source prompt\n\n"
    )
    returned = {
        (strength, guidance.partition("-")[0], method): c["all"]
        for (strength, guidance, _, method), c in edits.items()
        if "latents_max_abs" in c["all"] and method != "diffedit"  # which reconstructs as DDIM does
    }
    rows = [
        [*key, f"{c['latents_max_abs']:.2g}", decibels(c["psnr_db"]), decibels(c["psnr_to_vae_db"])]
        for key, c in returned.items()
    ]
    header = ["strength", "guidance", "method", "largest error of latents", "PSNR dB", "to the VAE's"]
    text += table(header, rows) + "\n## Edits\n\n"
    rows = [[*key, *figures(c["all"])] for key, c in edits.items()]
    rows += [["", "", "", k.partition("/")[2], *figures(c["all"])] for k, c in cells.items() if "ref" in k]
    text += table(["strength", "guidance", "mask", "method", *names], rows)
    strength, guidance = str(picture["strength"]), f"{picture['up']:g}-{picture['down']:g}"
    text += f"\n## By kind of edit, strength {strength}, guidance {guidance}\n\n"
    rows = [
        [kind, *key[2:], *figures(c[kind])]
        for kind in next(iter(edits.values()))
        for key, c in edits.items()
        if kind != "all" and key[:2] == (strength, guidance)
    ]
    text += table(["kind", "mask", "method", *names], rows)
    text += "\n![Edits, a column a method](emoji_editing.png)\n\nRows, from the top:\n\n"
    return text + "".join(f"1. {prompts}\n" for prompts in picture["prompts"])


def generic(content: dict[str, Any], title: str) -> str:
    """One row a cell, one table for each kind of cell."""
    text = head(content, title)
    groups: dict[tuple[str, ...], list[list[str]]] = {}
    for key, figures in content["cells"].items():
        figures = figures if isinstance(figures, dict) else {"value": figures}
        groups.setdefault(tuple(figures), []).append([key, *map(number, figures.values())])
    return text + "\n".join(table(["", *columns], rows) for columns, rows in groups.items())


def emoji_quality(content: dict[str, Any]) -> str:
    """The judge on real images, the model over guidance, and samplers beside each other."""
    cells = content["cells"]
    text = head(content, "The `emoji` model")

    def rows(keys: dict[str, str], names: Sequence[str]) -> str:
        found = [
            [label, *(number(cells[key].get(n)) for n in names)]
            for label, key in keys.items()
            if key in cells
        ]
        return table(["", *names], found) + "\n" if found else "Not measured yet.\n\n"

    prompts = ["prompt_score", "retrieval_top1", "retrieval_top5"]
    kinds = [f"concepts_{kind}" for kind in ("subject", "colour", "background", "style")]
    splits = {"test": "compositions seen in training", "unseen": "compositions never seen"}
    text += "## Prompts\n\n"
    for split, what in splits.items():
        keys = {"real images": f"real/{split}"}
        scales = sorted(float(k.rpartition("/")[2]) for k in cells if k.startswith(f"guidance/{split}/"))
        keys |= {f"guidance {scale:g}": f"guidance/{split}/{scale:g}" for scale in scales}
        text += f"Captions of {what}: retrieval among 100, and the share of named concepts that are seen.\n\n"
        text += rows(keys, [*prompts, *kinds])
    text += (
        "## Images\n\nFréchet distance and KID (EfficientNet-Lite0 features, not FID) of 2,000 samples to "
        "the 2,000 test images.\n\n"
    )
    scales = sorted(float(k.partition("/")[2]) for k in cells if k.startswith("frechet/"))
    text += rows({f"guidance {s:g}": f"frechet/{s:g}" for s in scales}, [FRECHET, "kid_efficientnet_lite0"])
    text += "## The judge\n\nBalanced accuracy of its concepts on real images.\n\n"
    kinds = [f"balanced_accuracy_{kind}" for kind in ("subject", "colour", "background", "style")]
    text += rows({what: f"real/{split}" for split, what in splits.items()}, [*kinds, "worst_concepts"])
    text += "## Samplers\n\n10 steps, 500 captions, the same seeds.\n\n"
    names = [k.partition("/")[2] for k in cells if k.startswith("samplers/")]
    text += rows({n: f"samplers/{n}" for n in names}, [FRECHET, *prompts])
    if "latents" in cells:
        text += f"Variance of the scaled latents: {number(cells['latents'])}.\n\n"
    for scale in (1, 3, 5, 8):
        text += f"## Guidance {scale}\n\n![A grid of prompts at guidance {scale}](emoji_grid_{scale}.png)\n\n"
    return text


def scalelong_controlled(content: dict[str, Any]) -> str:
    return (
        generic(content, "ScaleLong controlled")
        + "\n![Losses, growth, sensitivity](scalelong_controlled.png)\n"
    )


def snoopi_controlled(content: dict[str, Any]) -> str:
    """The summaries; the curves are in the plot."""
    cells = content["cells"]
    found = {key.partition("/")[2]: c for key, c in cells.items() if key.startswith("summary/")}
    rows = [[name, *map(number, figures.values())] for name, figures in found.items()]
    text = head(content, "PG-SB where the answer is known")
    text += table(["kappa", *next(iter(found.values()))], rows)
    text += f"\n{number(cells['bar'])}.\n\n![Distance over steps](snoopi_controlled.png)\n"
    return text


ERASING = {
    "share_after": "still seen",
    "drift_mse": "pixels, mse",
    "drift_prompt_score_change": "prompt score, change",
    "drift_concepts_subject_change": "subjects seen, change",
    "drift_frechet_efficientnet_lite0": "Fréchet to its own",
}
ERASERS = ("spm", "spm, no transport", "spm, no anchoring", "spm, neither", "esd-x", "esd-u", "uce")


def emoji_erasing(content: dict[str, Any]) -> str:
    """SPM beside ESD; a table for each concept, mean ± deviation over seeds; then the stack and the times."""
    cells = content["cells"]
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for key, figures in cells.items():
        if key.startswith("erase/"):
            _, concept, method, seed = key.split("/")
            found.setdefault(concept, {}).setdefault(method, {})[seed] = figures
    text = head(content, "Erasing concepts from `emoji`")
    text += "![still seen over drift](emoji_erasing.png)\n\n## SPM's drift over that of ESD, seed by seed\n\n"
    rows = []
    for concept, methods in found.items():
        row = [concept]
        for other, name in product(("esd-x", "esd-u"), ("drift_mse", "drift_frechet_efficientnet_lite0")):
            mine, theirs = methods["spm"], methods.get(other, {})
            ratios = [mine[seed][name] / theirs[seed][name] for seed in mine if seed in theirs]
            row.append(few(ratios) if ratios else "")
        rows.append(row)
    columns = ("pixels, ESD-x", "Fréchet, ESD-x", "pixels, ESD-u", "Fréchet, ESD-u")
    text += table(["", *columns], rows) + "\n"
    for concept, methods in found.items():
        runs = [run for by_seed in methods.values() for run in by_seed.values()]
        before = statistics.mean(run["share_before"] for run in runs)
        text += f"## {concept}\n\nSeen before in {before:.0%} of the images.\n\n"
        rows = []
        surrogate = {"surrogate_after": "surrogate seen"} if "surrogate_after" in runs[0] else {}
        for method in (method for method in ERASERS if method in methods):
            by_seed = methods[method].values()
            columns = [[run[name] for run in by_seed] for name in (*surrogate, *ERASING)]
            rows.append([method, len(by_seed), *(few(column) for column in columns)])
        text += table(["", "seeds", *surrogate.values(), *ERASING.values()], rows) + "\n"
    for key, figures in cells.items():
        if key.startswith("stack/"):
            names = ("share_before", "share_after", "drift_mse")
            text += f"## Three at once: {key.partition('/')[2]}\n\n"
            text += table(["", *names], [[k, *(number(v[n]) for n in names)] for k, v in figures.items()])
    if "time" in cells:
        kinds = list(next(iter(cells["time"].values())))
        text += "\n## Time over the plain pipeline\n\n"
        text += table(["", *kinds], [[k, *(number(v[n]) for n in kinds)] for k, v in cells["time"].items()])
    _plot_erasing(found)
    return text


def _plot_erasing(found: dict[str, dict[str, dict[str, dict[str, float]]]]) -> None:
    """Of each concept: share of images in which it is still seen, over the drift of the others."""
    figure, axes = plt.subplots(
        1, len(found), figsize=(3.2 * len(found), 3.4), sharex=True, sharey=True, squeeze=False
    )
    for axis, (concept, methods) in zip(axes[0], found.items(), strict=True):
        for k, method in enumerate(ERASERS):
            runs = methods.get(method, {}).values()
            drifts, shares = [r["drift_mse"] for r in runs], [r["share_after"] for r in runs]
            axis.plot(drifts, shares, "o*^vsDP"[k], color=f"C{k}", label=method, alpha=0.8)
        axis.axhline(0.15, color="gray", linewidth=0.8, linestyle=":")
        axis.set(title=concept, xscale="log", xlabel="drift of others, pixels")
        axis.xaxis.set_minor_formatter(NullFormatter())
    axes[0][0].set_ylabel("concept still seen")
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(RESULTS / "emoji_erasing.png", dpi=100, metadata={"Software": None})
    plt.close(figure)


def training_latents(content: dict[str, Any]) -> str:
    """Distance and held-out losses at the end, by network and method; rates and gaps as they are."""
    runs: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for key, figures in content["cells"].items():
        if key.startswith("runs/"):
            _, kind, name, _, step = key.split("/")
            runs.setdefault((kind, name, int(step)), []).append(figures)
    steps = sorted({step for _, _, step in runs})
    text = head(content, "ANT and ScaleLong on emoji latents")
    for kind in dict.fromkeys(kind for kind, _, _ in runs):
        rows = []
        for name in dict.fromkeys(name for other, name, _ in runs if other == kind):
            cells = [runs.get((kind, name, step), []) for step in steps]
            distances = [few([c["frechet"] for c in cell]) if cell else "" for cell in cells]
            last = cells[-1] or [{"losses": [float("nan")], "seconds": float("nan")}]
            losses = " / ".join(few([c["losses"][k] for c in last]) for k in range(len(last[0]["losses"])))
            rows.append([name, len(last), *distances, losses, few([c["seconds"] for c in last])])
        header = ["", "seeds", *(f"Fréchet, {step}" for step in steps), "loss by cluster", "seconds"]
        text += f"## {kind}\n\n" + table(header, rows) + "\n"
    others = {key: c for key, c in content["cells"].items() if not key.startswith("runs/")}
    return text + table(["", "figures"], [[key, number(c)] for key, c in others.items()])


def main() -> None:
    special = {
        "emoji_erasing": emoji_erasing,
        "snoopi_controlled": snoopi_controlled,
        "scalelong_controlled": scalelong_controlled,
        "training_latents": training_latents,
        "time_shift_fashion": time_shift_fashion,
        "bdia_fashion": bdia_fashion,
        "emoji_editing": emoji_editing,
        "emoji_quality": emoji_quality,
    }
    here = Path(__file__).parent
    own = {path.stem for path in here.glob("[a-z]*.py") if "\ndef render(" in path.read_text("utf-8")}
    for path in sorted(RESULTS.glob("*.json")):
        content = load_json(path)
        title = path.stem.replace("_", " ").capitalize()
        for word, name in (("Bdia", "BDIA"), ("Ant ", "ANT "), ("Scalelong", "ScaleLong")):
            title = title.replace(word, name)
        if path.stem in special:
            text = special[path.stem](content)
        elif path.stem in own:
            benchmark = importlib.import_module(path.stem)
            text = benchmark.render(content)
            if hasattr(benchmark, "beside"):
                fill(path.stem, benchmark.beside(content))
        else:
            text = generic(content, title)
        path.with_suffix(".md").write_text(text, encoding="utf-8")
        print(f"{path.stem}: {len(content['cells'])} cells")


if __name__ == "__main__":
    main()
