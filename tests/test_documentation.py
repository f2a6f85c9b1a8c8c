"""Every example of the documentation runs, and every command in it is one that exists.

The Python blocks of a page run in their order, in one namespace, in an empty folder that has the repository's
`adapters`, `pipelines` and `scripts`. Commands are parsed by what would run them, and nothing is run.
"""

import importlib.util
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer
from PIL import Image

from dmkit import auxiliary
from dmkit.cli.methods import entries
from dmkit.data import emoji
from dmkit.data.roots import data_root

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.parent.name != "results"),
    *sorted(ROOT.glob("pipelines/*/README.md")),
    *sorted(ROOT.glob("adapters/*/README.md")),
]
BLOCK = re.compile(r"^[^\S\n]*```(\w*)[^\n]*\n(.*?)^[^\S\n]*```", re.MULTILINE | re.DOTALL)
NEEDS_DATA = "needs the packages of `make data`"


def blocks(page: Path, *languages: str) -> list[tuple[int, str]]:
    """The page's blocks in these languages, each with the number of the line before it."""
    text = page.read_text(encoding="utf-8")
    found = ((m[1], text[: m.start(2)].count("\n"), m[2]) for m in BLOCK.finditer(text))
    return [(line, code) for language, line, code in found if language in languages]


def commands(page: Path) -> list[str]:
    """The command lines of a page, continuation lines joined."""
    scripts = [code.replace("\\\n", " ") for _, code in blocks(page, "bash", "sh")]
    return [
        line.strip() for code in scripts for line in code.splitlines() if shlex.split(line, comments=True)
    ]


def named(pages: list[Path]) -> list:
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working folder with what a checkout has beside it."""
    for name in ("adapters", "pipelines", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    # What a reader of the page on SPM has, from its released code.
    (tmp_path / "config.yaml").write_text(
        "prompts_file: prompts.yaml\npretrained_model: {name_or_path: emoji}"
    )
    (tmp_path / "prompts.yaml").write_text("- target: a heart")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DMKIT_DATA", os.environ.get("DMKIT_DATA", str(ROOT / "data")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


# Python


# Examples of neighbouring methods run in tests/auxiliary/test_pages.py.
NEIGHBOURS = {method.name for method in auxiliary.methods()}


@pytest.mark.parametrize(
    "page", named([p for p in PAGES if blocks(p, "python") and p.stem not in NEIGHBOURS])
)
def test_examples_run(page):
    names = {"__name__": "example"}
    fetched = all((data_root() / emoji.archive(vendor)).is_file() for vendor in emoji.CREDITS)
    left_out = []
    for line, code in blocks(page, "python"):
        if NEEDS_DATA in code and not fetched:
            left_out.append(line)
            continue
        # Blank lines before the code, so that a traceback names the page's own line.
        exec(compile("\n" * line + code, str(page), "exec"), names)
    if left_out:
        pytest.skip(f"all but the examples after the lines {left_out}, whose data is not fetched")


def test_all_blocks_say_what_they_are():
    """A block in another language, or in none, would be tested by nothing."""
    known = {"python", "bash", "sh", "text", "json", "yaml"}
    found = {(page.name, m[1]) for page in PAGES for m in BLOCK.finditer(page.read_text(encoding="utf-8"))}
    assert not {(page, language) for page, language in found if language not in known}


def test_every_method_has_an_example_and_what_was_measured_of_it():
    for page in PAGES:
        if page.parent.name == "methods":
            assert blocks(page, "python"), f"{page} has no example"
            assert "## When to use it" in page.read_text(encoding="utf-8"), page


def test_every_page_of_a_method_is_of_one_that_is_listed():
    """And so every method has an example, which runs above or in tests/auxiliary/test_pages.py."""
    assert {entry.name for entry in entries()} == {p.stem for p in PAGES if p.parent.name == "methods"}


# Commands


class Parsed(Exception):  # noqa: N818
    """The arguments of a script were read; nothing after that shall happen."""


def parse_click(command, name: str, words: list[str]) -> tuple[dict, list[str]]:
    """What a command of click or Typer reads, and what it leaves to others; its errors are exceptions."""
    context = command.make_context(name, list(words))
    while hasattr(command, "resolve_command"):
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, list(words), parent=context)
    return context.params, context.args


def check_dmkit(words: list[str]) -> None:
    from dmkit.cli import app
    from dmkit.schedulers import registry

    given, rest = parse_click(typer.main.get_command(app), "dmkit", words)
    for option in ("scheduler", "schedulers", "compare"):
        for sampler in (given.get(option) or "").split(","):
            if sampler:
                registry.find(sampler.strip())
    if rest:
        assert words[:2] == ["erase", "train"], f"nothing reads {rest}"
        check_script("scripts/train_spm.py", rest)


def check_script(path: str, words: list[str]) -> None:
    """Reads the words as the script would, with its own dataclasses or Typer function."""
    source = ROOT / path
    assert source.is_file(), path
    if source.parent.name != "scripts":
        assert not words, f"who reads {words}?"
        return
    spec = importlib.util.spec_from_file_location(source.stem, source)
    module = importlib.util.module_from_spec(spec)
    sys.modules[source.stem] = module  # dataclasses look there for the names of their annotations
    try:
        spec.loader.exec_module(module)
        if "typer.run(main)" in source.read_text(encoding="utf-8"):
            app = typer.Typer()
            app.command()(module.main)
            parse_click(typer.main.get_command(app), source.stem, words)
        else:
            with pytest.raises(Parsed):
                module.main(words)
    finally:
        del sys.modules[source.stem]


@pytest.fixture
def parse_only(monkeypatch):
    """Training scripts end when their arguments are dataclasses."""
    from transformers import HfArgumentParser

    parse = HfArgumentParser.parse_args_into_dataclasses

    def stop(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(HfArgumentParser, "parse_args_into_dataclasses", stop)


def check_python(words: list[str]) -> None:
    if words[0] == "-c":
        compile(words[1], "command", "exec")
    elif words[0] == "-m":
        assert importlib.util.find_spec(words[1]) is not None, words
    else:
        check_script(words[0], words[1:])


def check_accelerate(words: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    if words == ["config"]:
        return
    assert words[0] == "launch"
    given = launch_command_parser().parse_args(words[1:])
    check_script(given.training_script, given.training_script_args)


def check_torchrun(words: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    given = get_args_parser().parse_args(words)
    check_script(given.training_script, given.training_script_args)


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert not set(words) - set(targets)


def check_pip(words: list[str]) -> None:
    extras = set(re.findall(r"\[([\w,]+)\]", " ".join(words)))
    known = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f"\n{extra} = [" in known for group in extras for extra in group.split(","))


CHECKS = {
    "dmkit": check_dmkit,
    "python": check_python,
    "accelerate": check_accelerate,
    "torchrun": check_torchrun,
    "make": check_make,
    "pip": check_pip,
    "tensorboard": lambda words: None,
    ".": lambda words: None,  # . .venv/bin/activate
}


def check(line: str, source: str) -> None:
    """Parses a command line as what would run it does."""
    words = shlex.split(line, comments=True)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    for word in words:  # pictures that the reader brings
        if re.fullmatch(r"\w+\.png", word):
            Image.new("RGB", (8, 8)).save(word)
    assert words[0] in CHECKS, f"{line}: not one of {sorted(CHECKS)}"
    try:
        CHECKS[words[0]](words[1:])
    except (Exception, SystemExit) as error:
        raise AssertionError(f"{source}: {line}\n{type(error).__name__}: {error}") from error


@pytest.mark.parametrize("page", named([page for page in PAGES if commands(page)]))
def test_commands_exist(page, folder, parse_only):
    for line in commands(page):
        check(line, str(page.relative_to(ROOT)))


def test_the_list_of_methods_has_every_paper_and_commands_that_exist(folder, parse_only):
    listed = entries()
    assert len({entry.paper for entry in listed}) == 22
    for entry in listed:
        check(entry.example, entry.name)
        for page in entry.pages:
            assert (ROOT / "docs" / page).is_file(), page


def test_a_wrong_command_is_noticed(folder, parse_only):
    with pytest.raises(Exception, match="No such option"):
        check_dmkit(["sample", "fashion", "--no-such-option"])
    with pytest.raises(ValueError, match="Did you mean 'ddim'"):
        check_dmkit(["sample", "fashion", "--scheduler", "ddin"])
    with pytest.raises(ValueError, match=r"not used by the HfArgumentParser.*no_such_flag"):
        check_python(["scripts/train_unconditional.py", "--dataset_name", "digits", "--no_such_flag", "3"])
    with pytest.raises(AssertionError):
        check_make(["nothing"])


# Links


@pytest.mark.parametrize("page", named(PAGES))
def test_links_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]
