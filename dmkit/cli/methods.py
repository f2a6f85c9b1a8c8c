"""`dmkit methods`: what dmkit can do, by wing."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import typer


class Entry(NamedTuple):
    """A method of dmkit, as it is listed.

    Attributes:
        name: what it is called.
        wing: the package that it is in.
        what: it does.
        paper: that it comes from.
        example: a command that runs it.
        pages: of docs/ about it, the first one its own, the others its results.
    """

    name: str
    wing: str
    what: str
    paper: str
    example: str
    pages: tuple[str, ...]


_MAIN = (
    Entry(
        "time_shift",
        "dmkit.schedulers",
        "better samples in few steps, without training",
        "Li, Qu, Yao, Sun and Moens, *Alleviating Exposure Bias in Diffusion Models through Sampling with "
        "Shifted Time Steps*, ICLR 2024, arXiv 2305.15583",
        "dmkit sample fashion --compare ddim,ts-ddim --steps 10",
        ("methods/time_shift.md", "results/time_shift_controlled.md", "results/time_shift_fashion.md"),
    ),
    Entry(
        "bdia",
        "dmkit.schedulers",
        "exact inversion of a sampler, and editing by it",
        "Zhang, Lewis and Kleijn, *Exact Diffusion Inversion via Bi-directional Integration Approximation*, "
        "ECCV 2024, arXiv 2307.10829",
        "dmkit invert fashion --image picture.png --steps 20",
        ("methods/bdia.md", "results/bdia_controlled.md", "results/bdia_fashion.md"),
    ),
    Entry(
        "nasa",
        "dmkit.guidance",
        "negative prompts for models of one or few steps; NAG too",
        "Nguyen et al., *Supercharged One-step Text-to-Image Diffusion Models with Negative Prompts*, "
        "ICCV 2025, arXiv 2412.02687",
        "dmkit sample emoji-one-step --steps 1 --prompt 'a dress' --negative-prompt 'a blue dress' "
        "--nasa 0.45",
        ("methods/nasa.md", "results/emoji_one_step.md"),
    ),
    Entry(
        "spm",
        "dmkit.adapters",
        "erase a concept with a small file that loads like a LoRA; ESD and UCE too",
        "Lyu et al., *One-dimensional Adapter to Rule Them All: Concepts, Diffusion Models and Erasing "
        "Applications*, CVPR 2024, arXiv 2312.16145",
        "dmkit erase generate emoji --spm adapters/heart --prompt 'a red heart' --prompt 'a pizza'",
        ("methods/spm.md",),
    ),
    Entry(
        "ant",
        "dmkit.training",
        "train against negative transfer between noise levels",
        "Go et al., *Addressing Negative Transfer in Diffusion Models*, NeurIPS 2023, arXiv 2306.00354",
        "python scripts/train_unconditional.py --config scripts/recipes/fashion.yaml "
        "--ant_clusters 5 --mtl uw",
        ("methods/ant.md", "results/ant_controlled.md"),
    ),
    Entry(
        "scalelong",
        "dmkit.models",
        "scale the long skips of a denoiser",
        "Huang, Zhou, Yan and Lin, *ScaleLong: Towards More Stable Training of Diffusion Model via Scaling "
        "Network Long Skip Connection*, NeurIPS 2023, arXiv 2310.13545",
        "python scripts/train_unconditional.py --config scripts/recipes/fashion.yaml "
        "--scalelong cs --kappa 0.7",
        ("methods/scalelong.md", "results/scalelong_controlled.md"),
    ),
    Entry(
        "snoopi",
        "dmkit.distillation",
        "distil a text-to-image model into one step, by PG-SB or SwiftBrush",
        "Nguyen et al., *Supercharged One-step Text-to-Image Diffusion Models with Negative Prompts*, "
        "ICCV 2025, arXiv 2412.02687",
        "python scripts/distill_one_step.py --config scripts/recipes/one-step-emoji.yaml",
        ("methods/snoopi.md", "results/snoopi_controlled.md", "results/emoji_one_step.md"),
    ),
)


def entries() -> tuple[Entry, ...]:
    """All methods, the neighbouring ones last; none of their code is run."""
    from .. import auxiliary

    neighbours = (
        Entry(
            method.name,
            method.module.rpartition(".")[0],
            method.summary,
            method.paper,
            f"python scripts/train_auxiliary.py --config scripts/recipes/{method.name}.yaml"
            if method.trains
            else "dmkit scaling fit results.csv --plot out.png",
            (f"methods/{method.name}.md", f"results/{method.name}.md"),
        )
        for method in auxiliary.methods()
    )
    return (*_MAIN, *neighbours)


def methods(
    name: Annotated[
        str | None, typer.Argument(help="One method, with its example and pages.", show_default=False)
    ] = None,
) -> None:
    """List the methods of dmkit, the neighbouring ones too.

    Examples:

        dmkit methods

        dmkit methods rws
    """
    from rich.console import Console
    from rich.table import Table

    from ..errors import unknown_name

    known = {entry.name: entry for entry in entries()}
    if name is None:
        rows = Table("method", "what it does, and the paper", "wing", title="Methods", show_lines=True)
        for entry in known.values():
            wing = entry.wing.rpartition(".")[2]
            rows.add_row(entry.name, f"{entry.what}\n[dim]{entry.paper}[/dim]", wing)
        Console().print(rows)
        print("`dmkit methods NAME` shows a command that runs it, and its pages.")
        return
    if name not in known:
        raise unknown_name("method", name, known)
    entry = known[name]
    print(f"{entry.name} ({entry.wing}): {entry.what}\n")
    print(f"paper    {entry.paper}")
    print(f"example  {entry.example}")
    print(f"page     docs/{entry.pages[0]}")
    for page in entry.pages[1:]:
        print(f"results  docs/{page}")
