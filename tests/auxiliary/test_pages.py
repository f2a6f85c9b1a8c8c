"""Every neighbouring method has its page with an example that runs, its recipe, and its figures."""

import re
from pathlib import Path

import pytest

from dmkit import auxiliary
from dmkit.app.neighbours import cards

ROOT = Path(__file__).parents[2]
METHODS = {method.name: method for method in auxiliary.methods()}


@pytest.mark.parametrize("name", METHODS)
def test_the_example_of_its_page_runs(name, tmp_path, monkeypatch):
    examples = re.findall(r"```python\n(.*?)```", (ROOT / f"docs/methods/{name}.md").read_text("utf-8"), re.S)
    assert examples
    monkeypatch.chdir(tmp_path)
    for code in examples:
        exec(compile(code, f"{name}.md", "exec"), {"__name__": "example"})


@pytest.mark.parametrize("name", METHODS)
def test_it_has_figures_and_a_picture_of_them(name):
    results = ROOT / "docs" / "results"
    assert (results / f"{name}.json").is_file()
    assert (results / f"{name}.md").read_text("utf-8").startswith("# ")
    assert list(results.glob(f"{name}*.png"))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.trains])
def test_its_recipe_names_it(name):
    assert f"method: {name}\n" in (ROOT / f"scripts/recipes/{name}.yaml").read_text("utf-8")


def test_every_card_of_the_demo_has_example_results_and_picture():
    found = cards(ROOT / "docs")
    assert {card.name.partition("/")[2] for card in found} == set(METHODS)
    for card in found:
        assert card.example, card.name
        assert card.table, card.name
        assert card.picture is not None, card.name
