"""The rules of the house: who imports whom, what `import dmkit` costs, what the wheel carries."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_rules_hold():
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_import_is_light():
    loaded = python("import sys, dmkit; print(*sorted({m.partition('.')[0] for m in sys.modules}))").split()
    heavy = {"gradio", "transformers", "scipy", "datasets", "accelerate", "peft", "matplotlib", "sklearn"}
    assert not heavy & set(loaded)


def test_import_runs_no_more_than_diffusers_ddim():
    """Beyond what `from diffusers import DDIMScheduler` loads, `import dmkit` runs a few small modules."""
    extra = python(
        "import sys, torch\nfrom diffusers import DDIMScheduler\nbefore = set(sys.modules)\nimport dmkit\n"
        "print(*sorted(m for m in set(sys.modules) - before if not m.startswith('dmkit')))"
    ).split()
    assert not [m for m in extra if m.partition(".")[0] in ("torch", "diffusers", "numpy", "PIL")]


def test_every_scheduler_is_registered_but_not_run():
    out = python(
        "import sys, dmkit.schedulers as s\n"
        "from dmkit._lazy import DeferredModule\n"
        "mods = [m for n, m in sys.modules.items() if n.startswith('dmkit.schedulers.')]\n"
        "print(sum(type(m) is DeferredModule for m in mods), len(s.__all__))"
    ).split()
    assert int(out[0]) >= 5
    assert int(out[1]) >= 15


def test_every_public_name_resolves():
    import dmkit.schedulers

    for name in dmkit.schedulers.__all__:
        assert getattr(dmkit.schedulers, name).__name__
    with pytest.raises(AttributeError, match="no attribute 'TimeShiftDIMScheduler'"):
        dmkit.schedulers.TimeShiftDIMScheduler  # noqa: B018


def test_unknown_zoo_model_suggests_the_near_one():
    from dmkit import zoo

    with pytest.raises(ValueError, match=r"Unknown zoo model 'fashon'\. Did you mean 'fashion'"):
        zoo.path("fashon")


def test_scanning_modules_does_not_run_them():
    """`inspect.getmodule` reads `__file__` of every module; PyTorch calls it while it is being imported."""
    ran = python(
        "import dmkit, inspect, sys\ninspect.getmodule(inspect.currentframe())\nimport diffusers\n"
        "print('scipy' in sys.modules)"
    )
    assert ran.strip() == "False"


def test_a_deferred_module_that_fails_can_be_tried_again(tmp_path, monkeypatch):
    from dmkit import _lazy

    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "__init__.py").write_text("")
    (tmp_path / "room" / "shy.py").write_text("import os\nvalue = int(os.environ['SHY'])\n")
    import room

    module = _lazy.register("room.shy")
    assert room.shy is module
    with pytest.raises(KeyError):
        module.value  # noqa: B018
    monkeypatch.setenv("SHY", "3")
    assert module.value == 3
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        module.other  # noqa: B018
