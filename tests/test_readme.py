"""The Python examples of the README, and of the page on SPM, run as they are printed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = [
    pytest.param(code, id=f"{Path(page).stem}-{k}")
    for page in ("README.md", "docs/methods/spm.md")
    for k, code in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.S))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapters").symlink_to(ROOT / "adapters")
    exec(compile(code, "example", "exec"), {"__name__": "example"})


def test_there_are_examples():
    assert len(EXAMPLES) == 6


def test_pictures_and_pages_that_the_readme_names_exist():
    text = (ROOT / "README.md").read_text("utf-8")
    named = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert len(named) > 10
    assert not [link for link in named if not (ROOT / link).exists()]
