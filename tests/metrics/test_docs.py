"""The examples of the pages on data and metrics run as they are printed."""

import re
from pathlib import Path

import pytest

from dmkit.data import emoji
from dmkit.data.roots import data_root

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = [
    pytest.param(code, id=f"{page}-{k}")
    for page in ("data", "metrics")
    for k, code in enumerate(
        re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text("utf-8"), re.S)
    )
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs(code):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("sklearn")
    if "needs the packages of `make data`" in code:
        for vendor in emoji.CREDITS:
            if not (data_root() / emoji.archive(vendor)).is_file():
                pytest.skip(f"the art of {vendor} is not fetched")
    exec(compile(code, "example", "exec"), {"__name__": "example"})


def test_there_are_examples():
    assert len(EXAMPLES) == 8
