"""`dmkit scaling`, end to end: what it says and writes, and what it refuses."""

import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from dmkit.cli import app

DATA = np.array([1e8, 3e8, 1e9, 3e9, 1e10, 3e10, 1e11])
SCORES = (-2 + 0.35 * np.log(DATA)) ** 1.9


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def runs(workdir):
    """Two mixtures: one by the law, one that falls while its cross-entropy falls too."""
    lines = ["mixture,D_p,seed,bleu,ce"]
    for d, score, entropy in zip(DATA, SCORES, 1.2 + 50 / DATA**0.2, strict=True):
        lines.append(f"fr-en,{d:g},0,{score:.6f},{entropy:.6f}")
        lines.append(f"en,{d:g},0,{60 - score:.6f},{entropy:.6f}")
    (workdir / "runs.csv").write_text("\n".join(lines) + "\n")
    return workdir / "runs.csv"


def run(*arguments):
    return CliRunner().invoke(app, ["scaling", *map(str, arguments)], catch_exceptions=False)


def refusal(*arguments) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line]
    assert line.startswith("dmkit: ")
    return line


def test_fit_says_what_to_do_draws_and_writes(runs, recwarn):
    result = run(
        *("fit", runs, "--metric", "bleu", "--cross-entropy", "ce", "--predict", 5e11),
        *("--plot", "out.png", "--out", "out.json"),
    )
    assert result.exit_code == 0, result.output
    assert "fr-en: continue (improving)" in result.stdout
    assert "en: change the data (misaligned)" in result.stdout
    assert "do not choose data by cross-entropy" in result.stdout
    assert (runs.parent / "out.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((runs.parent / "out.json").read_text())
    law = found["curves"]["fr-en"]
    assert law["coefficients"]["beta"] == pytest.approx(1.9, abs=1e-3)
    assert law["predictions"][0]["score"] == pytest.approx((-2 + 0.35 * np.log(5e11)) ** 1.9, rel=1e-4)
    assert found["about"]["metric"] == "bleu"
    assert not list(runs.parent.glob(".unfinished*"))


def test_the_only_score_needs_no_name(workdir):
    rows = [f"{d:g},{s}" for d, s in zip(DATA, 100 + 2e6 / DATA**0.5, strict=True)]
    (workdir / "results.csv").write_text("D_p,frechet\n" + "\n".join(rows))
    said = run("fit", "results.csv", "--law", "power").stdout
    assert "E 100" in said
    assert "alpha 0.5" in said


def test_compare_orders(runs):
    lines = run("compare", runs, "--metric", "bleu", "--at", 2e11).stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["fr-en", "en"]
    assert "not to be extrapolated; misaligned" in lines[1]


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (None, "", r"results.csv cannot be read as CSV: .*No such file"),
        ("", "", "results.csv has no rows; expected a header with D_p and a score"),
        ("D_p,bleu\n", "", "results.csv has no rows"),
        ("Dp,bleu\n1,2\n", "", "has no column D_p. Unknown column 'D_p'. Did you mean 'Dp'?"),
        ("D_p,bleu,ce\n1,2,3\n", "", "which column is the score? It has bleu, ce."),
        ("D_p\n1\n", "", "which column is the score? It has none."),
        ("D_p,bleu\n1,2\n", "--metric blue", "Unknown column 'blue'. Did you mean 'bleu'?"),
        ("D_p,bleu\n1,2\n2,many\n", "", "line 3: bleu must be a positive number, not 'many'"),
        ("D_p,bleu\n1,2\n2\n", "", "line 3: bleu must be a positive number, not None"),
        ("D_p,bleu\n0,2\n", "", "line 2: D_p must be a positive number, not '0'"),
        ("D_p,bleu\n1,nan\n", "", "line 2: bleu must be a positive number, not 'nan'"),
        ("D_p,bleu\n1,-2\n", "", "line 2: bleu must be a positive number, not '-2'"),
        ("D_p,bleu\n1,2\n2,3\n", "--plot a.png", "has no curve with 3 distinct D to draw"),
        ("D_p;bleu\n1;2\n", "", "Did you mean 'D_p;bleu'? Known: D_p;bleu. Columns are separated by commas."),
        ("D_p,bleu,bleu\n1,2,3\n", "--metric bleu", "results.csv has more than one column bleu"),
        ("D_p,bleu\n1,2\n2,17,5\n", "", "line 3: more cells than the header has columns"),
        ("D_p,bleu\n1,2\n2,3\n3,4\n", "--baseline -1", "baseline must be a positive finite number, got -1"),
        ("D_p,bleu\n1,2\n", "--predict -3", "--predict takes a positive number, not -3"),
        ("D_p,bleu\n1,2\n", "--fit-first 2", "Invalid value for '--fit-first'"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(workdir, content, options, says):
    if content is not None:
        (workdir / "results.csv").write_text(content)
    said = refusal("fit", "results.csv", *options.split())
    assert says.replace(r".*", "") in said or all(part in said for part in says.split(".*"))


def test_a_header_without_a_name_is_no_score(workdir):
    (workdir / "results.csv").write_text("D_p,bleu,\n1,2,\n2,3,\n3,3.5,\n")
    assert "improving" in run("fit", "results.csv").stdout


def test_where_the_law_has_no_value_there_is_none(runs):
    options = ("--metric", "bleu", "--predict", 1, "--out", "out.json")
    assert "at 1: the law has no value" in run("fit", runs, *options).stdout
    text = (runs.parent / "out.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["curves"]["fr-en"]["predictions"] == [{"D": 1.0, "score": None}]
    assert "fr-en: not to be extrapolated; improving" in run("compare", runs, *options[:2], "--at", 1).stdout


def test_two_points_are_not_enough_to_say(workdir):
    (workdir / "results.csv").write_text("D_p,bleu\n1,2\n2,3\n")
    assert "measure more (insufficient)" in run("fit", "results.csv").stdout


@pytest.mark.parametrize("command", ["fit", "compare"])
def test_help_has_examples_and_imports_nothing_heavy(command):
    assert f"dmkit scaling {command}" in run(command, "--help").stdout.partition("Example")[2]
    code = (
        "import sys, contextlib\nfrom dmkit.cli import app\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(None):\n"
        f"    app(['scaling', '{command}', '--help'])\n"
        "print(*{m.partition('.')[0] for m in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "scipy", "matplotlib"} & set(done.stdout.split())
