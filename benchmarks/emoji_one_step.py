"""One step beside many: the shipped student of `emoji`, and negative prompts without guidance.

"quality": prompt figures on 200 captions of seen and 200 of unseen compositions, and the Fréchet distance of
2,000 samples to the test images, for the teacher (DDIM, 20 steps, guidance 3), for the teacher in four and in
one step, and for the student. "speed": images a second of student and teacher, in turn. "negative": pairs of
a prompt and of what should not be there, 50 images each, on the student in one step and on the teacher in
four: the share of images in which `emoji-evaluator` still finds it, and the mean cosine to the prompt.
"kappa": students of 500 steps with the range of PG-SB, with SwiftBrush's fixed 4.5, and with PG-SB's range
and NASA-T, by seed; then the two of PG-SB under negative prompts, with NASA and without.

    python benchmarks/emoji_one_step.py [--parts quality speed negative kappa] [--student emoji-one-step]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from _results import RESULTS, Cells
from _tables import few, head, number, table
from diffusers import UNet2DConditionModel

from dmkit import data, zoo
from dmkit.data.scenes import concepts
from dmkit.distillation.configure import distil, parse
from dmkit.evaluation import Reference, load_evaluator, quality
from dmkit.guidance import NASA
from dmkit.images import grid, save_png, side_by_side
from dmkit.metrics import describe, pairwise_diversity
from dmkit.metrics.erasure import concept_share
from dmkit.sampling import generate
from dmkit.schedulers.registry import build

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "scripts" / "recipes" / "one-step-emoji.yaml"
GUIDANCE, PROMPTS, SAMPLES, EACH = 3.0, 200, 2000, 50
FRECHET = "frechet_efficientnet_lite0"
# A prompt, what should not be in its images, and the judge's name of it.
PAIRS = (
    ("a car", "a red car", "red"),
    ("an apple", "a red apple", "red"),
    ("a heart", "a red heart", "red"),
    ("a rose", "a red rose", "red"),
    ("a fish", "a blue fish", "blue"),
    ("a house", "a house in noto style", "noto style"),
    ("a dog", "a dog in twemoji style", "twemoji style"),
    ("a cat and a heart", "a heart", "heart"),
    ("a rocket and a star", "a star", "star"),
    ("a cat and a dog", "a dog", "dog"),
    ("a car and a tree", "a car", "car"),
    ("an apple and a banana", "a banana", "banana"),
    ("a cat on a blue background", "blue background", "blue background"),
    ("a star", "a yellow star", "yellow"),
    ("a balloon", "a red balloon", "red"),
    ("a dress", "a pink dress", "pink"),
    ("a fox on a yellow background", "yellow background", "yellow background"),
    ("a penguin and a key", "a key", "key"),
)
VARIED = (
    "a cat",
    "a heart",
    "a car",
    "a house",
    "a rocket and a star",
    "a fish in noto style",
)  # 16 seeds each
THERE = 0.3  # Means are over pairs whose thing is seen in so many images without steering: else none can go.
SCALES = {"nasa": (0.1, 0.2, 0.3, 0.4), "nag": (0.75, 1.5, 3.0)}
# Students of a small budget. NASA-T draws from the judge's words; at scales near 1, the paper's for Stable
# Diffusion, nothing of the prompt is left on this model.
STUDENTS = ROOT / "outputs" / "kappa"
NEGATIVES = STUDENTS / "negatives.txt"
PLAIN, STEERED = "pg-sb, 0.5 to 4", "pg-sb with NASA-T"
KAPPAS = {
    PLAIN: ["--kappa", "0.5", "4.0"],
    "fixed 4.5": ["--method", "swiftbrush", "--kappa", "4.5"],
    STEERED: ["--kappa", "0.5", "4.0", "--negative_prompts_file", str(NEGATIVES), "--nasa_scale", "0", "0.5"],
}
STEPS_OF_KAPPA, EVERY = 500, 125
NASA_SCALES = (0.0, 0.2, 0.3, 0.4)


def few_steps(pipe: Any) -> Any:
    """DDIM that starts at pure noise and ends at the image, for few steps."""
    return build("ddim", pipe.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True)


def ways(teacher: Any, student: Any) -> dict[str, tuple[Any, Any, int, float]]:
    """What is compared: pipeline, scheduler, steps, guidance."""
    return {
        "teacher, 20 steps, guidance 3": (teacher, build("ddim", teacher.scheduler.config), 20, GUIDANCE),
        "teacher, 4 steps, guidance 3": (teacher, few_steps(teacher), 4, GUIDANCE),
        "teacher, 4 steps": (teacher, few_steps(teacher), 4, 1.0),
        "teacher, 1 step, guidance 3": (teacher, few_steps(teacher), 1, GUIDANCE),
        "teacher, 1 step": (teacher, few_steps(teacher), 1, 1.0),
        "student, 1 step": (student, student.scheduler, 1, 1.0),
    }


def measure_quality(cells: Cells, teacher: Any, student: Any, evaluator: Any) -> None:
    reference = Reference.load("emoji:test", teacher)
    for name, (pipe, scheduler, steps, scale) in ways(teacher, student).items():
        for split in ("test", "unseen"):
            captions = data.load("emoji", split=split).captions[:PROMPTS]
            cells.once(
                f"quality/{name}/{split}",
                lambda p=pipe, s=scheduler, n=steps, g=scale, c=captions: quality(
                    p,
                    s,
                    n,
                    PROMPTS,
                    None,
                    metrics=("prompt_score", "retrieval", "concepts"),
                    seed=1_000_000,
                    prompt=c,
                    evaluator=evaluator,
                    guidance_scale=g,
                ),
            )
        captions = data.load("emoji", split="test").captions[:SAMPLES]
        cells.once(
            f"variety/{name}",
            lambda p=pipe, s=scheduler, n=steps, g=scale: round(
                statistics.mean(
                    pairwise_diversity(
                        describe(
                            generate(p, s, n, range(16), prompt=prompt, guidance_scale=g), reference.extractor
                        ).features
                    )
                    for prompt in VARIED
                ),
                3,
            ),
        )
        cells.once(
            f"distance/{name}",
            lambda p=pipe, s=scheduler, n=steps, g=scale, c=captions: quality(
                p,
                s,
                n,
                SAMPLES,
                reference,
                metrics=("frechet", "kid"),
                seed=2_000_000,
                prompt=c,
                guidance_scale=g,
            ),
        )


def measure_speed(teacher: Any, student: Any, rounds: int = 9) -> dict[str, Any]:
    """Images a second of student and teacher in turn, decoding and the text encoder included."""
    compared = {
        name: way for name, way in ways(teacher, student).items() if "20" in name or "student" in name
    }
    result = {}
    for batch in (1, 16, 64):
        spent: dict[str, list[float]] = {name: [] for name in compared}
        for _ in range(rounds if batch < 64 else 3):
            for name, (pipe, scheduler, steps, scale) in compared.items():
                began = time.perf_counter()
                generate(pipe, scheduler, steps, range(batch), prompt="a red heart", guidance_scale=scale)
                spent[name].append(time.perf_counter() - began)
        slow, fast = spent.values()
        result[f"batch {batch}"] = {
            **{f"{name}, images/s": round(batch / statistics.median(t), 2) for name, t in spent.items()},
            "ratio": round(statistics.median(a / b for a, b in zip(slow, fast, strict=True)), 2),
        }
    return result


def measure_negative(cells: Cells, teacher: Any, student: Any, evaluator: Any) -> None:
    """Each pair under each way to take something away; the last two prompts of a model fill a picture."""
    models = {
        "student, 1 step": (student, student.scheduler, 1),
        "teacher, 4 steps": (teacher, few_steps(teacher), 4),
    }
    for model, (pipe, scheduler, steps) in models.items():
        for prompt, negative, concept in PAIRS:

            def draw(
                pipe: Any = pipe,
                scheduler: Any = scheduler,
                steps: int = steps,
                prompt: str = prompt,
                **more: Any,
            ) -> torch.Tensor:
                return generate(pipe, scheduler, steps, range(EACH), prompt=prompt, **more)

            def judge(images: torch.Tensor, concept: str = concept, prompt: str = prompt) -> dict[str, float]:
                return {
                    "still_seen": concept_share(evaluator, images, concept),
                    "prompt_score": float(evaluator.score(images, [prompt] * len(images)).mean()),
                }

            where = f"negative/{model}/{prompt} - {negative}"
            cells.once(f"{where}/none", lambda: judge(draw(guidance_scale=1.0)))
            cells.once(
                f"{where}/guidance 3",
                lambda: judge(draw(negative_prompt=negative, guidance_scale=GUIDANCE)),  # noqa: B023
            )
            for mode, scales in SCALES.items():
                for scale in scales:
                    cells.once(
                        f"{where}/{mode} {scale:g}",
                        lambda m=mode, s=scale: judge(
                            draw(negative_prompt=negative, call=NASA(pipe, s, mode=m))  # noqa: B023
                        ),
                    )


def measure_kappa(cells: Cells, teacher: Any, evaluator: Any, seeds: list[int]) -> None:
    """Prompt score and Fréchet distance along the training of small budgets; then what NASA-T is worth."""
    captions = data.load("emoji", split="test").captions
    reference = Reference.load("emoji:test", teacher)
    NEGATIVES.parent.mkdir(parents=True, exist_ok=True)
    NEGATIVES.write_text("\n".join(concepts()), encoding="utf-8")
    for seed, (name, flags) in itertools.product(seeds, KAPPAS.items()):
        folder = STUDENTS / f"{'-'.join(name.split())}-{seed}"
        budget = ["--max_train_steps", str(STEPS_OF_KAPPA), "--checkpointing_steps", str(EVERY)]
        keep = ["--checkpoints_total_limit", "9", "--save_images_epochs", "0", "--seed", str(seed)]
        distil(
            *parse(["--config", str(RECIPE), *flags, *budget, *keep, "--output_dir", str(folder)], "kappa")
        )
        student = zoo.load(str(folder))
        student.set_progress_bar_config(disable=True)
        for step in range(EVERY, STEPS_OF_KAPPA + 1, EVERY):
            student.unet = UNet2DConditionModel.from_pretrained(folder / f"checkpoint-{step}" / "student_ema")
            cells.once(
                f"kappa/{name}/{step}/seed{seed}",
                lambda s=student: quality(
                    s,
                    s.scheduler,
                    1,
                    500,
                    reference,
                    metrics=("frechet", "prompt_score"),
                    seed=4_000_000,
                    prompt=captions[:500],
                    evaluator=evaluator,
                    guidance_scale=1.0,
                ),
            )
        if name in (PLAIN, STEERED):
            measure_nasa_t(cells, student, evaluator, f"{name}/seed{seed}")


def measure_nasa_t(cells: Cells, student: Any, evaluator: Any, name: str) -> None:
    """All pairs under NASA, on a student that was trained with NASA-T or without."""
    for scale in NASA_SCALES:

        def steered(scale: float = scale) -> dict[str, float]:
            found = []
            for prompt, negative, concept in PAIRS:
                nasa = NASA(student, scale)
                images = generate(
                    student,
                    student.scheduler,
                    1,
                    range(EACH),
                    prompt=prompt,
                    negative_prompt=negative,
                    call=nasa,
                )
                score = float(evaluator.score(images, [prompt] * EACH).mean())
                found.append((concept_share(evaluator, images, concept), score))
            seen, scores = zip(*found, strict=True)
            return {"still_seen": list(seen), "prompt_score": list(scores)}

        cells.once(f"nasa-t/{name}/{scale:g}", steered)


def picture(teacher: Any, student: Any, folder: Path) -> None:
    """The same prompts and seeds from the teacher's 20 steps, its one step, and the student."""
    from emoji_quality import PICTURED

    chosen = [name for name in ways(teacher, student) if "4 steps" not in name and name != "teacher, 1 step"]
    sheets = []
    for name in chosen:
        pipe, scheduler, steps, scale = ways(teacher, student)[name]
        images = generate(
            pipe, scheduler, steps, range(len(PICTURED)), prompt=list(PICTURED), guidance_scale=scale
        )
        sheets.append(grid(images, columns=6, scale=3))
    save_png(side_by_side(sheets, chosen), folder / "emoji_one_step.png")
    rows = []
    for prompt, negative, _ in (PAIRS[1], PAIRS[4], PAIRS[6], PAIRS[7]):
        rows.append(generate(student, student.scheduler, 1, range(6), prompt=prompt, guidance_scale=1.0))
        rows.append(
            generate(
                student,
                student.scheduler,
                1,
                range(6),
                prompt=prompt,
                negative_prompt=negative,
                call=NASA(student, 0.4),
            )
        )
    save_png(grid(torch.cat(rows), columns=6, scale=3), folder / "emoji_one_step_negative.png")


def render(content: dict[str, Any]) -> str:
    """Quality and speed; negative prompts, all pairs together and each; kappas along training."""
    cells = content["cells"]
    text = head(content, "One step: the student of `emoji`")
    text += (
        "Prompts are captions of compositions that training saw, and of such that it never saw; distances "
        "are of EfficientNet-Lite0 features, not FID; variety is the mean distance of two images of a prompt "
        f"from different seeds, over {len(VARIED)} prompts.\n\n"
    )
    rows = []
    for key in cells:
        if key.startswith("distance/"):
            name = key.partition("/")[2]
            seen, unseen = (cells.get(f"quality/{name}/{split}", {}) for split in ("test", "unseen"))
            figures = [seen.get("prompt_score"), seen.get("retrieval_top1"), seen.get("retrieval_top5")]
            more = [unseen.get("prompt_score"), unseen.get("retrieval_top5"), cells[key][FRECHET]]
            more.append(cells.get(f"variety/{name}"))
            rows.append([name, *(number(value) for value in figures + more)])
    unseen_columns = ["unseen: prompt score", "unseen: top-5"]
    columns = ["prompt score", "top-1", "top-5", *unseen_columns, "Fréchet distance", "variety"]
    text += table(["", *columns], rows) + "\n"
    text += "![The same prompts and seeds](emoji_one_step.png)\n\n"
    if "speed" in cells:
        names = list(next(iter(cells["speed"].values())))
        text += "## Speed\n\nThe teacher's 20 guided steps and the student's one, in turn.\n\n"
        text += table(["", *names], [[k, *map(number, v.values())] for k, v in cells["speed"].items()]) + "\n"
    text += negative_tables(cells)
    return text + kappa_table(cells) + nasa_t_table(cells)


def kappa_curves(cells: dict[str, Any]) -> dict[str, dict[str, dict[int, list[float]]]]:
    """{figure: {student: {step: values by seed}}}."""
    found: dict[str, dict[str, dict[int, list[float]]]] = {"prompt_score": {}, FRECHET: {}}
    for key, figures in cells.items():
        if key.startswith("kappa/"):
            _, name, step, _ = key.split("/")
            for what, by_name in found.items():
                by_name.setdefault(name, {}).setdefault(int(step), []).append(figures[what])
    return found


def kappa_table(cells: dict[str, Any]) -> str:
    curves = kappa_curves(cells)
    steps = [EVERY * k for k in range(1, STEPS_OF_KAPPA // EVERY + 1)]
    rows = [
        [f"{name}: {what}", *(few(by_step[s]) if s in by_step else "" for s in steps)]
        for what, by_name in curves.items()
        for name, by_step in by_name.items()
    ]
    if not rows:
        return ""
    text = "## Kappa\n\nStudents along their training, by steps; mean and deviation over seeds.\n\n"
    return text + table(["", *map(str, steps)], rows) + "\n![The same](emoji_one_step_kappa.png)\n\n"


def nasa_t_table(cells: dict[str, Any]) -> str:
    """Means over the pairs whose thing is there without steering, for each seed."""
    rows = []
    for key, plain in cells.items():
        if key.startswith("nasa-t/") and key.endswith("/0"):
            there = [k for k, share in enumerate(plain["still_seen"]) if share >= THERE]
            at = [cells.get(f"{key[:-1]}{scale:g}") for scale in NASA_SCALES]
            _, name, seed, _ = key.split("/")
            means = [
                "{:.2f} ({:.3f})".format(
                    *(statistics.mean(f[what][k] for k in there) for what in ("still_seen", "prompt_score"))
                )
                if f
                else ""
                for f in at
            ]
            rows.append([name, seed.removeprefix("seed"), str(len(there)), *means])
    if not rows:
        return ""
    text = (
        "## NASA-T\n\nStudents of the same budget, trained with negative prompts (scales 0 to 0.5) and "
        "without, sampled with NASA at a scale: the share that still shows the thing (cosine to the prompt), "
        f"over the pairs that show it in {THERE:.0%} of the images without steering.\n\n"
    )
    return text + table(["student", "seed", "pairs", *(f"NASA {s:g}" for s in NASA_SCALES)], rows)


def plot_kappa(cells: dict[str, Any], path: Path) -> None:
    """Both figures along training: means of seeds, the band between the lowest and the highest."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curves = kappa_curves(cells)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    titles = ("mean cosine to the prompt", "Fréchet distance (EfficientNet-Lite0)")
    for axis, by_name, title in zip(axes, curves.values(), titles, strict=True):
        for name, by_step in by_name.items():
            steps, values = list(by_step), list(by_step.values())
            order = sorted(range(len(steps)), key=steps.__getitem__)
            x = [steps[k] for k in order]
            (line,) = axis.plot(x, [statistics.mean(values[k]) for k in order], marker="o", label=name)
            low, high = [min(values[k]) for k in order], [max(values[k]) for k in order]
            axis.fill_between(x, low, high, color=line.get_color(), alpha=0.15)
        axis.set(title=title, xlabel="steps")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def negative_tables(cells: dict[str, Any]) -> str:
    """For each model: means over the pairs that have it, then still_seen (prompt_score) of each pair."""
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for key, figures in cells.items():
        if key.startswith("negative/"):
            _, model, pair, way = key.split("/")
            found.setdefault(model, {}).setdefault(pair, {})[way] = figures
    text = ""
    for model, pairs in found.items():
        order = ["none", "guidance 3", *(f"{m} {s:g}" for m, scales in SCALES.items() for s in scales)]
        usual = [way for way in order if all(way in figures for figures in pairs.values())]
        there = [figures for figures in pairs.values() if figures["none"]["still_seen"] >= THERE]
        text += (
            f"## Negative prompts: {model}\n\n{EACH} images a pair; the share that still shows it. First, "
            f"together, the pairs in which at least {THERE:.0%} show it without steering.\n\n"
        )
        rows = []
        for way in usual:
            seen, score = (
                statistics.mean(figures[way][what] for figures in there)
                for what in ("still_seen", "prompt_score")
            )
            base = statistics.mean(figures["none"]["prompt_score"] for figures in there)
            rows.append([way, f"{seen:.3f}", f"{score:.3f}", f"{score / base - 1:+.1%}"])
        text += table([f"{len(there)} pairs", "still seen", "prompt score", "change"], rows) + "\n"
        rows = [
            [pair, *(f"{f[w]['still_seen']:.2f} ({f[w]['prompt_score']:.2f})" for w in usual)]
            for pair, f in pairs.items()
        ]
        text += table(["prompt - negative prompt", *usual], rows) + "\n"
    return text + ("![Plain above, NASA 0.4 below](emoji_one_step_negative.png)\n\n" if found else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--student", default="emoji-one-step")
    parser.add_argument("--parts", nargs="+", default=["picture", "quality", "speed", "negative", "kappa"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="Of the students of kappa.")
    arguments = parser.parse_args()
    teacher, student = zoo.load("emoji"), zoo.load(arguments.student)
    for pipe in (teacher, student):
        pipe.set_progress_bar_config(disable=True)
    evaluator = load_evaluator()
    cells = Cells("emoji_one_step", {"what": "The one-step student of `emoji` beside its teacher."})
    if "picture" in arguments.parts:
        picture(teacher, student, RESULTS)
    if "quality" in arguments.parts:
        measure_quality(cells, teacher, student, evaluator)
    if "speed" in arguments.parts:
        cells.once("speed", lambda: measure_speed(teacher, student))
    if "negative" in arguments.parts:
        measure_negative(cells, teacher, student, evaluator)
    if "kappa" in arguments.parts:
        measure_kappa(cells, teacher, evaluator, arguments.seeds)
        plot_kappa(cells.read(), RESULTS / "emoji_one_step_kappa.png")


if __name__ == "__main__":
    main()
