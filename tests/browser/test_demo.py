"""A visitor's ways through the demo, in Chromium, with what ships. Every page is watched: see `conftest`."""

import io
import json
import re

import pytest

pytest.importorskip("playwright", reason="make test-browser installs it")

from PIL import Image
from playwright.sync_api import Page, expect

TABS = ("Sample", "Invert & edit", "Erase", "One step", "Train", "Neighbours")
WHEN = ("before", "after")
PHONE = {"width": 390, "height": 844, "is_mobile": True, "has_touch": True}


def tab(page: Page, name: str):
    """Opens a tab, by the menu of those that a phone has no room for; returns what it shows."""
    head = page.get_by_role("tab", name=name, exact=True)
    if not head.is_visible():
        page.get_by_label("More tabs").click()
        page.locator(".overflow-dropdown").get_by_role("button", name=name, exact=True).click()
    else:
        head.click()
    expect(head).to_have_attribute("aria-selected", "true")
    return page.get_by_role("tabpanel").filter(visible=True)


def slide(panel, **values) -> None:
    """Sets sliders by their number boxes; an underscore is a space."""
    for name, value in values.items():
        box = panel.get_by_label(f"number input for {name.replace('_', ' ')}", exact=True)
        box.fill(str(value))
        box.press("Tab")


def press(panel, name: str) -> None:
    panel.get_by_role("button", name=name, exact=True).click()


def captions(panel) -> list[str]:
    return [text.strip() for text in panel.locator(".dmkit-pictures .caption-label").all_inner_texts()]


def pictures(panel):
    return panel.locator(".dmkit-pictures .thumbnail-item img")


def read(page: Page, address: str) -> Image.Image:
    answer = page.request.get(address)
    assert answer.ok
    picture = Image.open(io.BytesIO(answer.body()))
    picture.load()
    return picture


def sideways(page: Page) -> int:
    """Pixels by which the page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def test_every_tab_opens(visit):
    page = visit()
    shown = [text.strip() for text in page.get_by_role("tab").all_inner_texts()]
    assert tuple(shown) == TABS[: len(shown)]
    assert len(shown) >= 5
    for name in shown:
        panel = tab(page, name)
        expect(panel.get_by_role("button").first).to_be_visible()
        assert sideways(page) == 0


def test_a_seed_gives_its_picture_again(visit):
    page = visit()
    panel = tab(page, "Sample")
    panel.get_by_label("Prompt", exact=True).fill("a yellow star")
    slide(panel, Steps=2, Images=1)
    made, last = [], ""
    for seed in (3, 4, 3):
        panel.get_by_label("Seed", exact=True).fill(str(seed))
        press(panel, "Sample")
        expect(pictures(panel)).to_have_count(2)
        expect(pictures(panel).first).not_to_have_attribute("src", last)
        last = pictures(panel).first.get_attribute("src")
        made.append(read(page, last))
    about = json.loads(made[0].text["parameters"])
    assert (about["prompt"], about["seed"], about["label"]) == ("a yellow star", 3, "ddim")
    assert made[0].convert("RGB").getextrema() != ((255, 255),) * 3
    assert made[0].tobytes() == made[2].tobytes()
    assert made[0].tobytes() != made[1].tobytes()
    assert captions(panel) == ["ddim", "dpm++"]
    expect(panel.get_by_text("Left: ddim; right: dpm++")).to_be_visible()


def test_time_shift_shows_its_shifts_and_its_code(visit):
    page = visit()
    panel = tab(page, "Sample")
    panel.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name="fashion", exact=True).click()
    expect(panel.get_by_label("Prompt", exact=True)).to_be_hidden()
    panel.get_by_label("Compared with", exact=True).click()
    page.get_by_role("option", name="ts-ddim", exact=True).click()
    slide(panel, Steps=4, Images=1)
    press(panel, "Sample")
    expect(panel.get_by_text("Left: ddim; right: ts-ddim")).to_be_visible()
    expect(panel.get_by_text("that Time-Shift chose")).to_be_visible()
    expect(panel.locator(".vega-embed")).to_contain_text("ts-ddim")
    panel.get_by_text("Download, parameters").click()
    expect(panel.locator(".cm-content")).to_contain_text("dmkit.zoo.load('fashion')")
    with page.expect_download() as kept:
        panel.locator("a[download]").first.click()
    assert Image.open(kept.value.path()).size == (32, 32)


def test_a_picture_is_inverted_and_edited(visit):
    page = visit()
    panel = tab(page, "Invert & edit")
    expect(panel.locator("#dmkit-examples img")).to_have_count(6)
    panel.locator("#dmkit-examples img").first.click()
    expect(panel.get_by_label("What it shows")).not_to_have_value("")
    slide(panel, Steps=3)
    press(panel, "Invert")
    expect(pictures(panel)).to_have_count(3)
    assert captions(panel) == ["original", "ddim", "bdia"]
    expect(panel.get_by_role("row").filter(has_text="bdia")).to_contain_text("e-1")
    panel.get_by_label("What it shall show").fill("a blue cat")
    press(panel, "Edit")
    expect(panel.get_by_alt_text("edit", exact=True)).to_be_visible()
    assert captions(panel) == ["original", "reconstruction", "edit"]


def test_an_adapter_erases(visit):
    page = visit()
    panel = tab(page, "Erase")
    expect(panel.get_by_text("Factor of heart")).to_be_visible()
    slide(panel, Steps=4, Images=1)
    press(panel, "Erase")
    expect(pictures(panel)).to_have_count(4)
    assert captions(panel) == [f"{what}, {when}" for what in ("a red heart", "a pizza") for when in WHEN]
    expect(panel.get_by_text("How far each prompt opens each adapter")).to_be_visible()
    expect(panel.locator(".vega-embed")).to_contain_text(re.compile("heart.*pizza"))
    before, after, control, kept = (
        read(page, image.get_attribute("src")).tobytes() for image in pictures(panel).all()
    )
    assert before != after
    assert control != before
    assert kept != after


def test_nasa_steers_and_few_steps_are_compared(visit):
    page = visit()
    panel = tab(page, "One step")
    slide(panel, Images=1, Many_steps=3)
    panel.get_by_label("Scales").fill("0, 0.4")
    press(panel, "Sweep the scales")
    expect(pictures(panel)).to_have_count(2)
    assert captions(panel) == ["scale 0", "scale 0.4"]
    unsteered, steered = (read(page, image.get_attribute("src")) for image in pictures(panel).all())
    assert unsteered.tobytes() != steered.tobytes()
    press(panel, "Compare")
    expect(panel.get_by_alt_text("emoji, 3 steps")).to_be_visible()
    expect(panel.get_by_role("row").filter(has_text="emoji-one-step, 1 step")).to_be_visible()


def test_a_wrong_value_is_said_and_the_page_goes_on(visit, tmp_path):
    page = visit()
    told = page.get_by_test_id("toast-body")
    panel = tab(page, "Sample")
    slide(panel, Steps=2, Images=1)
    panel.get_by_label("Prompt", exact=True).fill(" ")
    press(panel, "Sample")
    expect(told.filter(has_text="The prompt is empty.")).to_be_visible()
    panel = tab(page, "One step")
    panel.get_by_label("Scales").fill("<b>wide</b>")
    press(panel, "Sweep the scales")
    expect(told.filter(has_text="The scales must be numbers from 0 to 10")).to_be_visible()
    panel = tab(page, "Invert & edit")
    press(panel, "Invert")
    expect(told.filter(has_text="Choose a picture first.")).to_be_visible()
    (tmp_path / "no.png").write_text("no picture")
    panel.locator("input[type=file]").first.set_input_files(tmp_path / "no.png")
    expect(panel.locator(".dmkit-upload img")).to_be_visible()
    press(panel, "Invert")
    expect(told.filter(has_text="not a picture that can be read")).to_be_visible()
    assert "Traceback" not in page.content()
    panel = tab(page, "Sample")
    panel.get_by_label("Prompt", exact=True).fill("a cat")
    press(panel, "Sample")
    expect(pictures(panel)).to_have_count(2)


def test_a_run_and_a_training_can_be_stopped(visit):
    page = visit()
    panel = tab(page, "Sample")
    slide(panel, Steps=100, Images=16)
    press(panel, "Sample")
    expect(panel.get_by_text(re.compile("[0-9]+/[0-9]+ steps|ddim - ")).first).to_be_visible()
    press(panel, "Stop")
    expect(page.get_by_text("Stopped.")).to_be_visible()
    panel = tab(page, "Train")
    press(panel, "Start")
    expect(panel.get_by_text("digits-1 starts.")).to_be_visible()
    press(panel, "Stop")
    expect(panel.get_by_text("digits-1 was stopped")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_has_room_for_every_tab(visit, scheme):
    """Nothing to scroll sideways, with a result too; the theme is the one of the visitor's machine."""
    page = visit(**PHONE, color_scheme=scheme)
    paper, ink = page.evaluate(
        "['backgroundColor', 'color'].map(name => getComputedStyle(document.body)[name])"
    )
    darker, lighter = (ink, paper) if scheme == "light" else (paper, ink)
    assert sum(map(int, re.findall(r"\d+", darker)[:3])) < 150
    assert sum(map(int, re.findall(r"\d+", lighter)[:3])) > 600
    panel = tab(page, "Sample")
    slide(panel, Steps=2, Images=1)
    press(panel, "Sample")
    expect(pictures(panel)).to_have_count(2)
    panel.get_by_text("Download, parameters").click()
    expect(panel.locator(".cm-content")).to_be_visible()
    assert sideways(page) == 0
    for name in TABS[1:]:
        panel = tab(page, name)
        for closed in panel.locator("button.label-wrap:not(.open)").all()[:1]:
            closed.click()
        expect(panel.get_by_role("button").first).to_be_visible()
        assert sideways(page) == 0, name


def test_a_card_of_a_neighbour_opens(visit):
    page = visit()
    panel = tab(page, "Neighbours")
    panel.locator("button.label-wrap").first.click()
    expect(panel.locator(".cm-content").first).to_contain_text("import")
