"""What the tabs do, without a page: the shown Python makes the same images, and nothing stays in a model."""

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

from dmkit import shipped, zoo
from dmkit.adapters import SPM, read_spm, save_spm
from dmkit.app import edit, erase, one_step, sample
from dmkit.app.jobs import Cancelled, Job, Progress
from dmkit.app.outcome import Shelf
from dmkit.app.store import ModelStore
from dmkit.errors import FileFormatError
from dmkit.zoo import opening


def picture(name="emoji"):
    with Image.open(zoo.examples(name)[0]) as file:
        return file.convert("RGB")


def test_sample_shows_the_code_that_makes_its_images(store, job, execute, same):
    outcome = sample.sample(
        store,
        job,
        model="emoji",
        prompt="a 'red' heart",
        negative_prompt="blue",
        other="dpm++",
        steps=3,
        seed=5,
    )
    assert list(outcome.images) == ["ddim", "dpm++"]
    assert not torch.equal(*outcome.images.values())
    same(outcome, execute(outcome.code))
    assert outcome.parameters["seed"] == 5
    json.dumps(outcome.parameters)


def test_sample_of_a_pixel_model_shows_its_shifts(unconditional, job, execute, same):
    options = {"steps": 10, "num_images": 2, "time_shift_window": "40", "time_shift_cutoff": 200}
    outcome = sample.sample(unconditional, job, model="tiny", **options)
    same(outcome, execute(outcome.code))
    assert {name for name, *_ in outcome.extra} == {"ts-ddim"}
    assert all(abs(shift) <= 20 for *_, shift in outcome.extra)


def test_progress_counts_every_step(unconditional):
    work = lambda job: sample.sample(unconditional, job, model="tiny", steps=4, num_images=1)  # noqa: E731
    steps = [(n.done, n.total) for n in Job().watch(work) if isinstance(n, Progress)]
    assert steps == [(k, 8) for k in range(1, 9)]


def test_a_run_stops_between_steps(unconditional):
    job, seen = Job(), []
    with pytest.raises(Cancelled):  # noqa: PT012
        for news in job.watch(lambda job: sample.sample(unconditional, job, model="tiny", steps=200)):
            seen.append(news)
            job.stop()
    assert len(seen) < 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "emojy"}, "Did you mean 'emoji'"),
        ({"model": "../emoji"}, "Unknown model"),
        ({"model": "google/ddpm-cat-256"}, "Unknown model"),
        ({"prompt": ""}, "The prompt is empty"),
        ({"sampler": "dimm"}, "Did you mean 'ddim'"),
        ({"other": "flow"}, "flow-matching"),
        ({"steps": 0}, "Steps must be a whole number"),
        ({"steps": float("nan")}, "Steps must be a whole number"),
        ({"num_images": 10**9}, "Images must be"),
        ({"seed": -1}, "The seed must be"),
        ({"guidance_scale": float("inf")}, "Guidance must be"),
        ({"other": "f-pndm", "steps": 3}, "at least 4 steps"),
        ({"other": "ts-ddim", "time_shift_window": "wide"}, "must be auto or a number"),
        ({"other": "ts-ddim", "time_shift_window": 2.5}, "The window must be a whole number"),
    ],
)
def test_sample_refuses_before_it_samples(store, job, changes, message):
    with pytest.raises(ValueError, match=message):
        sample.sample(store, job, **{"model": "emoji", "prompt": "a cat", "other": "dpm++", **changes})


@pytest.mark.parametrize("model", ["emoji", "tiny"])
def test_inversion_shows_the_code_that_makes_its_images(unconditional, job, execute, same, tmp_path, model):
    picture("fashion").save(tmp_path / "boot.png")
    outcome = edit.inversion(
        unconditional, job, model=model, picture=picture("fashion"), name="boot.png", steps=4
    )
    same(outcome, execute(outcome.code))
    ddim, bdia = outcome.figures
    assert float(bdia[1]) < 1e-9 < float(ddim[1])


@pytest.mark.parametrize("keep", [False, True])
def test_editing_shows_the_code_that_makes_its_images(store, job, execute, same, tmp_path, keep):
    picture().save(tmp_path / "die.png")
    prompts = {"source_prompt": "a die", "target_prompt": "a cat", "keep": keep}
    outcome = edit.editing(store, job, model="emoji", picture=picture(), name="die.png", steps=4, **prompts)
    same(outcome, execute(outcome.code))
    original, returned, edited = outcome.images.values()
    assert (original - returned).abs().max() < 1e-5
    assert (original - edited).abs().max() > 0.05


def test_an_inversion_stops_between_steps(store):
    job = Job()
    with pytest.raises(Cancelled):  # noqa: PT012
        for _ in job.watch(
            lambda job: edit.inversion(store, job, model="emoji", picture=picture(), steps=200)
        ):
            job.stop()


def test_editing_needs_a_model_that_takes_prompts(store, job):
    with pytest.raises(ValueError, match="Unknown model that takes prompts 'fashion'"):
        edit.editing(
            store, job, model="fashion", picture=picture(), source_prompt="a", target_prompt="b", steps=4
        )


def test_erase_shows_its_code_and_leaves_the_model_alone(
    store, job, adapters, execute, same, weights_of, tmp_path
):
    file = adapters / "heart" / "heart.safetensors"
    before = weights_of("emoji")
    options = {"prompt": "a heart", "control": "a pizza", "steps": 3, "num_images": 2}
    outcome = erase.erase(store, job, model="emoji", adapters=[(file, 0.8)], **options)
    assert weights_of("emoji") == before
    assert dict(((p), g) for _, p, g in outcome.extra)["a heart"] == pytest.approx(1)
    assert not torch.equal(outcome.images["a heart, before"], outcome.images["a heart, after"])
    (tmp_path / "heart.safetensors").write_bytes(file.read_bytes())
    code = outcome.code.replace(erase.shown_path(file), "'heart.safetensors'")
    same(outcome, execute(code))


def test_erase_with_a_shipped_adapter_shows_code_that_runs_anywhere(store, job, execute, same):
    file = Path(shipped.path("adapters/heart/heart.safetensors"))
    options = {"prompt": "a heart", "steps": 2, "num_images": 1}
    outcome = erase.erase(store, job, model="emoji", adapters=[(file, 1.0)], **options)
    assert "shipped.path('adapters/heart/heart.safetensors')" in outcome.code
    same(outcome, execute(outcome.code))


def test_erase_stops_and_leaves_the_model_alone(store, adapters, weights_of):
    before, job = weights_of("emoji"), Job()
    file = adapters / "heart" / "heart.safetensors"
    with pytest.raises(Cancelled):  # noqa: PT012
        for news in job.watch(
            lambda job: erase.erase(
                store, job, model="emoji", adapters=[(file, 1.0)], prompt="a heart", steps=5, num_images=1
            )
        ):
            if isinstance(news, Progress) and news.what == "after":
                job.stop()
    assert weights_of("emoji") == before


def test_bad_adapters_are_refused(store, job, adapters, tmp_path):
    good = adapters / "heart" / "heart.safetensors"
    pickled, cut = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    torch.save({"a": torch.zeros(1)}, pickled)
    cut.write_bytes(good.read_bytes()[:500])
    weights = read_spm(good)
    foreign = tmp_path / "c.safetensors"
    save_spm(type(weights)({"down_blocks.9.attn1.to_q": next(iter(weights.layers.values()))}), foreign)
    for file in (pickled, cut, foreign):
        with pytest.raises(FileFormatError) as raised:
            erase.erase(
                store, job, model="emoji", adapters=[(file, 1.0)], prompt="a heart", steps=1, num_images=1
            )
        if file is not foreign:
            assert str(tmp_path) not in str(raised.value)
    for several, message in (
        ([], "Choose 1 to 4"),
        ([(good, 1.0)] * 5, "not 5"),
        ([(good, 99)], "A factor must be"),
    ):
        with pytest.raises(ValueError, match=message):
            erase.erase(store, job, model="emoji", adapters=several, prompt="a heart", steps=1)


def test_adapter_names_are_safe(tmp_path):
    assert erase.adapter_name(tmp_path / "my heart.v1.safetensors") == "my_heart_v1"
    assert erase.adapter_name(tmp_path / "heart.safetensors", ["heart"]) == "heart_1"


@pytest.mark.parametrize("mode", ["nasa", "nag"])
def test_steering_shows_its_code_and_leaves_the_model_alone(store, job, execute, same, weights_of, mode):
    before = weights_of("emoji")
    options = {
        "prompt": "a car",
        "negative_prompt": "a red car",
        "scales": "0, 0.4",
        "steps": 2,
        "num_images": 1,
    }
    outcome = one_step.steer(store, job, model="emoji", mode=mode, **options)
    assert weights_of("emoji") == before
    assert not torch.equal(outcome.images["scale 0"], outcome.images["scale 0.4"])
    same(outcome, execute(outcome.code))


def test_comparing_shows_the_code_that_makes_its_images(store, job, execute, same):
    outcome = one_step.compare(store, job, model="emoji", prompt="a car", steps=12, few=2, num_images=1)
    same(outcome, execute(outcome.code))
    assert [row[:2] for row in outcome.figures] == [["emoji, 2 steps", 2], ["emoji, 12 steps", 12]]


def test_a_model_whose_card_says_so_is_a_student(tmp_path, text_pipe, job, execute, same):
    text_pipe.save_pretrained(tmp_path / "student")
    card = "---\ntags: [text-to-image, one-step]\nbase_model: emoji\n---\n# student\n"
    (tmp_path / "student" / "README.md").write_text(card)
    store = ModelStore(tmp_path, "cpu")
    assert one_step.students(store) == ["emoji-one-step", "student"]
    assert one_step.teacher_of(store, "student") == "emoji"
    outcome = one_step.compare(store, job, model="student", prompt="a car", steps=2, few=9, num_images=1)
    assert list(outcome.images) == ["student, 1 step", "emoji, 2 steps"]
    same(outcome, execute(outcome.code))


@pytest.mark.parametrize("scales", ["", "a", "0, -1", "nan", ",".join(map(str, range(7))), None])
def test_bad_scales(scales):
    with pytest.raises(ValueError, match=r"[Ss]cale"):
        one_step.scales_of(scales)


def test_models_asked_for_at_once_load_one_after_the_other(adapters, monkeypatch):
    """Diffusers' loading changes torch for all threads: what another builds meanwhile has no weights."""
    store, busy, started = ModelStore(), threading.Lock(), threading.Barrier(4)
    load, failed = opening.open_pipeline, []

    def open_alone(*arguments):
        assert busy.acquire(blocking=False), "two loads at once"
        try:
            return load(*arguments)
        finally:
            busy.release()

    monkeypatch.setattr(opening, "open_pipeline", open_alone)
    inject = SPM.load_spm_weights

    def inject_alone(*arguments):
        assert store.building.locked(), "an adapter built while a model may load"
        return inject(*arguments)

    monkeypatch.setattr(SPM, "load_spm_weights", inject_alone)
    file = adapters / "heart" / "heart.safetensors"
    few = {"steps": 2, "num_images": 1}
    works = [
        lambda: sample.sample(store, Job(), model="fashion", **few),
        lambda: sample.sample(store, Job(), model="emoji-one-step", prompt="a car", **few),
        lambda: sample.sample(store, Job(), model="emoji", prompt="a car", **few),
        lambda: erase.erase(store, Job(), model="emoji", adapters=[(file, 1)], prompt="a heart", **few),
    ]

    def run(work):
        started.wait()
        try:
            work()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_two_runs_at_once_give_what_each_gives_alone(store, adapters):
    """Plain sampling, adapters and steering on one network, from several threads."""
    file = adapters / "heart" / "heart.safetensors"
    works = [
        lambda: sample.sample(
            store, Job(), model="emoji", prompt="a heart", other="dpm++", steps=3, num_images=1
        ),
        lambda: erase.erase(
            store, Job(), model="emoji", adapters=[(file, 1)], prompt="a heart", steps=3, num_images=1
        ),
        lambda: one_step.steer(
            store,
            Job(),
            model="emoji",
            prompt="a car",
            negative_prompt="red",
            scales="0.4",
            steps=3,
            num_images=1,
        ),
        lambda: edit.inversion(store, Job(), model="emoji", picture=picture(), steps=3),
        lambda: sample.sample(
            store, Job(), model="emoji", prompt="a cat", sampler="dpm++", steps=4, num_images=1
        ),
    ]
    alone = [work() for work in works]
    together = [None] * len(works)

    def put(k):
        together[k] = works[k]()

    threads = [threading.Thread(target=put, args=(k,)) for k in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(alone, together, strict=True):
        for label, images in one.images.items():
            assert torch.equal(images, other.images[label]), label


def test_local_models_are_found_under_the_root_alone(tmp_path, tiny_pipeline):
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "mine", root / "deep" / "er", outside):
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text("{}")
    (root / "link").symlink_to(outside)
    shutil.copytree(tiny_pipeline, root / ".unfinished-mine-1")
    assert ModelStore(root).names() == ["emoji", "emoji-one-step", "fashion", "deep/er", "mine"]
    with pytest.raises(FileFormatError), ModelStore(root).borrow("mine"):
        pass


def test_png_files_carry_the_parameters(unconditional, job):
    outcome = sample.sample(unconditional, job, model="tiny", other="ddim", steps=2, num_images=2)
    shelf = Shelf()
    try:
        shown, files = shelf.keep(outcome)
        assert len(shown) == 1
        assert len(files) == 2
        with Image.open(files[1]) as file:
            about = json.loads(file.text["parameters"])
            assert file.size == (8, 8)
        assert (about["model"], about["steps"], about["image"], about["label"]) == ("tiny", 2, 1, "ddim")
        for _ in range(45):
            shelf.folder()
        assert len(list((shelf.root / "runs").iterdir())) == 40
    finally:
        shelf.close()
    assert not shelf.root.exists()
