"""Fetching, with stand-ins for apt-get, dpkg-deb and npm on the PATH."""

import os
import stat

import pytest
from data_files import digest

from dmkit.data import fetch
from dmkit.errors import MissingDataError

FILES = {"set/one.gz": b"one", "set/two.gz": b"two"}


def source(**changes) -> fetch.Source:
    arguments = {
        "name": "toy",
        "files": {name: digest(content) for name, content in FILES.items()},
        "download": fetch.debian("toy-package"),
    }
    return fetch.Source(**{**arguments, **changes})


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Puts shell scripts on the PATH and returns the log that they write; `damage` spoils the download."""
    programs, log = tmp_path / "bin", tmp_path / "log"
    programs.mkdir()
    log.touch()

    def install(name: str, script: str) -> None:
        path = programs / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {log}\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    install("apt-get", "touch toy.deb")
    install("dpkg-deb", "mkdir -p usr/share; printf one > usr/share/one.gz; printf two > usr/share/two.gz")
    return install, log


def left_over(root) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_fetches_once_and_checks_afterwards(tmp_path, tools, capsys):
    _, log = tools
    root = tmp_path / "data"
    assert fetch.main(["--root", str(root)], [source()]) == 0
    assert "toy: fetched into" in capsys.readouterr().out
    assert {name: (root / name).read_bytes() for name in FILES} == FILES
    assert left_over(root) == ["set"]
    assert log.read_text().splitlines() == ["apt-get download toy-package", "dpkg-deb -x toy.deb ."]
    assert fetch.main(["toy", "--root", str(root)], [source()]) == 0
    assert "already in" in capsys.readouterr().out
    assert len(log.read_text().splitlines()) == 2


def test_a_damaged_file_is_fetched_again(tmp_path, tools):
    fetch.fetch(source(), tmp_path / "data")
    (tmp_path / "data/set/one.gz").write_bytes(b"onf")
    assert "fetched" in fetch.fetch(source(), tmp_path / "data")
    assert (tmp_path / "data/set/one.gz").read_bytes() == b"one"


def test_the_systems_copy_is_used_only_if_whole_and_not_hidden(tmp_path, tools):
    system = tmp_path / "system"
    system.mkdir()
    (system / "one.gz").write_bytes(b"one")
    assert "fetched" in fetch.fetch(source(elsewhere=system), tmp_path / "a")
    (system / "two.gz").write_bytes(b"two")
    assert "already in" in fetch.fetch(source(elsewhere=system), tmp_path / "b")
    (tmp_path / "c/set").mkdir(parents=True)
    (tmp_path / "c/set/one.gz").write_bytes(b"damaged")
    assert "fetched" in fetch.fetch(source(elsewhere=system), tmp_path / "c")


def test_another_version_is_refused_and_nothing_kept(tmp_path, tools, capsys):
    install, _ = tools
    install("dpkg-deb", "printf one > one.gz; printf TWO > two.gz")
    assert fetch.main(["--root", str(tmp_path / "data")], [source()]) == 1
    printed = capsys.readouterr()
    assert "two.gz is another version or damaged: SHA-256" in printed.out
    assert "Could not get toy" in printed.err
    assert left_over(tmp_path / "data") == []


def test_failures_say_why_and_do_not_stop_the_others(tmp_path, tools, capsys, monkeypatch):
    install, log = tools
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    install("apt-get", "echo warning >&2; echo 'E: Unable to locate package toy' >&2; exit 100")
    install("npm", "printf one > one.gz; printf two > two.gz")
    sources = [source(), source(name="other", download=fetch.npm("other@1"))]
    assert fetch.main(["--root", str(tmp_path / "data")], sources) == 1
    out = capsys.readouterr().out
    assert "toy: NOT there: apt-get download toy-package failed: E: Unable to locate package toy" in out
    assert "other: fetched" in out
    assert log.read_text().splitlines() == ["apt-get download toy-package", "npm pack other@1"]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDataError, match="npm is not installed"):
        fetch.fetch(source(download=fetch.npm("x")), tmp_path / "empty")


def test_an_administrator_without_package_lists_updates_them(tmp_path, tools, monkeypatch):
    install, log = tools
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    lists = tmp_path / "lists"
    install("apt-get", f'[ "$1" = update ] && touch {lists}; [ -e {lists} ] && touch toy.deb')
    assert "fetched" in fetch.fetch(source(), tmp_path / "data")
    actions = [line.split()[1] for line in log.read_text().splitlines()]
    assert actions == ["download", "update", "download", "-x"]


def test_a_download_without_the_file_is_named(tmp_path, tools):
    with pytest.raises(MissingDataError, match=r"holds no three.gz"):
        fetch.fetch(source(files={"three.gz": "0"}), tmp_path / "data")


def test_unknown_names_suggest_the_near_one(tmp_path, capsys):
    with pytest.raises(SystemExit):
        fetch.main(["fashion", "--root", str(tmp_path)])
    assert "Did you mean 'fashion-mnist'" in capsys.readouterr().err


def test_what_is_fetched_is_what_is_loaded():
    from dmkit import data
    from dmkit.data import emoji

    images = {source.name for source in fetch.SOURCES} - {"movielens"}  # ratings have a loader of their own
    assert images < set(data.names())
    files = [name for source in fetch.SOURCES for name in source.files]
    assert len(files) == 8
    assert emoji.archive("google") in files
