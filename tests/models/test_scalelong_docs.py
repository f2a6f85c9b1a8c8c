"""The example of the page on ScaleLong runs as it is printed."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "methods" / "scalelong.md"


def test_example_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {"__name__": "example"})
    assert "theorem 3" in capsys.readouterr().out
    assert (tmp_path / "scaled" / "config.json").exists()
