"""What the wheel carries, by the list of files that its builder makes, and how it is found."""

import subprocess
import sys
from pathlib import Path

import pytest

from dmkit import shipped

ROOT = Path(__file__).parents[1]


def tracked(*folders: str) -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode or not listed.stdout:
        pytest.skip("needs a git checkout, to know what belongs to it")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def carried() -> set[str]:
    wheel = pytest.importorskip("hatchling.builders.wheel")
    return {file.distribution_path for file in wheel.WheelBuilder(str(ROOT)).recurse_included_files()}


def test_the_wheel_carries_the_package_the_zoo_adapters_and_pipelines(carried):
    assert tracked("dmkit") <= carried
    assert {f"dmkit/_shipped/{name}" for name in tracked(*shipped.KINDS)} <= carried
    assert {name for name in carried if name.endswith("emoji/model_index.json")} == {
        "dmkit/zoo/emoji/model_index.json"
    }


def test_the_wheel_carries_nothing_else(carried):
    assert {name.partition("/")[0] for name in carried} == {"dmkit"}
    assert not [name for name in carried if name.endswith((".pyc", ".lock", ".bin", ".pt", ".ckpt", ".pkl"))]


def test_a_checkout_holds_what_ships_at_its_top():
    assert Path(shipped.HOME) == ROOT
    for kind in shipped.KINDS:
        assert shipped.path(kind) == str(ROOT / kind)
    assert Path(shipped.path("adapters/heart/heart.safetensors")).is_file()
    assert Path(shipped.path("pipelines/nasa")).joinpath("pipeline.py").is_file()


@pytest.mark.parametrize(
    "name", ["", ".", "/etc", "tests", "../x", "adapters/../tests", "pipelines/nope", "adapters/heart/x"]
)
def test_nothing_else_is_found(name):
    with pytest.raises(ValueError, match="Unknown shipped folder"):
        shipped.path(name)


def test_the_near_name_is_said():
    with pytest.raises(ValueError, match="Did you mean 'pipelines/nasa'"):
        shipped.path("pipelines/nassa")


def test_an_installed_package_looks_inside_itself(tmp_path):
    """Not beside itself, where another package may be called `adapters`."""
    package = tmp_path / "site" / "dmkit"
    (package / "_shipped" / "adapters" / "own").mkdir(parents=True)
    (tmp_path / "site" / "adapters" / "foreign").mkdir(parents=True)
    for name in ("shipped", "errors"):
        (package / f"{name}.py").write_text((ROOT / "dmkit" / f"{name}.py").read_text())
    (package / "__init__.py").write_text("")
    code = (
        "from dmkit import shipped\nprint(shipped.path('adapters/own'))\n"
        "try:\n    shipped.path('adapters/foreign')\nexcept ValueError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first == str((package / "_shipped" / "adapters" / "own").resolve())
    assert second.startswith("Unknown shipped folder 'adapters/foreign'")
