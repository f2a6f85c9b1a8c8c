"""The packages of Debian as a graph: who depends on whom, words of the description, the section as label.

    python -m dmkit.data.packages [--root FOLDER]

reads the package index of this machine's apt and writes the graph into the data folder, whole and as a small
extract. The index changes with the release, so figures name their own number of packages.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from .._files import atomic_file, load_tensors
from ..errors import FileFormatError, MissingDataError
from .graphs import graph_data, undirected
from .roots import data_root, find

if TYPE_CHECKING:
    from torch_geometric.data import Data

FILES = {False: "debian/packages.safetensors", True: "debian/packages-small.safetensors"}
LEAST = 100  # packages of a section that is a class
# The small extract: sections that are topics, and how many packages of each.
TOPICS = ("games", "gnu-r", "graphics", "mail", "net", "perl", "python", "science", "sound", "text")
EACH = 300
WORD = re.compile(r"[a-z][a-z0-9+]+")


class Packages(NamedTuple):
    """Packages in the order of the index.

    Attributes:
        names: of packages.
        sections: of each.
        descriptions: the line of each.
        depends: (2, E) int64, a package and one that it depends on, every alternative.
    """

    names: list[str]
    sections: list[str]
    descriptions: list[str]
    depends: Tensor


def parse(lines: Iterable[str]) -> Packages:
    """Reads an index as `apt-cache dumpavail` prints it; of a package that is there twice, the first.

    Raises:
        FileFormatError: no package at all.
    """
    stanzas: dict[str, dict[str, str]] = {}
    fields: dict[str, str] = {}
    for line in [*lines, ""]:
        key, colon, value = line.rstrip("\n").partition(": ")
        if line.strip() and colon and not line[0].isspace():
            fields[key] = value
        elif not line.strip() and "Package" in fields:
            stanzas.setdefault(fields["Package"], fields)
            fields = {}
    if not stanzas:
        raise FileFormatError("This index holds no package.")
    place = {name: k for k, name in enumerate(stanzas)}
    edges = []
    for name, stanza in stanzas.items():
        wanted = ", ".join(stanza.get(key, "") for key in ("Pre-Depends", "Depends"))
        for one in re.split(r"[,|]", wanted):
            other = one.split("(")[0].strip().partition(":")[0]
            if other in place:
                edges.append((place[name], place[other]))
    return Packages(
        list(stanzas),
        # "contrib/games" is of the same topic as "games".
        [stanza.get("Section", "").rpartition("/")[2] for stanza in stanzas.values()],
        [stanza.get("Description", "") for stanza in stanzas.values()],
        torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).t().contiguous(),
    )


def tensors(packages: Packages, classes: Sequence[str]) -> dict[str, Tensor]:
    """What is stored: dependencies, labels, and each description's words as numbers of 32 bits."""
    words = [[zlib.crc32(w.encode()) for w in WORD.findall(d.lower())] for d in packages.descriptions]
    label = {name: k for k, name in enumerate(classes)}
    return {
        "depends": packages.depends.unique(dim=1).contiguous(),
        "y": torch.tensor([label.get(section, -1) for section in packages.sections]),
        "words": torch.tensor([w for row in words for w in row], dtype=torch.int64),
        "counts": torch.tensor([len(row) for row in words]),
    }


def extract(packages: Packages, topics: Sequence[str] = TOPICS, each: int = EACH) -> Packages:
    """Up to `each` packages of some sections, those with most dependencies to and fro within these."""
    inside = torch.tensor([section in topics for section in packages.sections])
    pairs = packages.depends[:, inside[packages.depends].all(0)]
    degree = torch.bincount(pairs.flatten(), minlength=len(packages.names))
    order = degree.argsort(descending=True, stable=True)
    order = order[: int((degree > 0).sum())].tolist()
    chosen = sorted(k for topic in topics for k in [k for k in order if packages.sections[k] == topic][:each])
    place = torch.full((len(packages.names),), -1)
    place[chosen] = torch.arange(len(chosen))
    depends = place[packages.depends]
    names, sections, descriptions = ([column[k] for k in chosen] for column in packages[:3])
    return Packages(names, sections, descriptions, depends[:, (depends >= 0).all(0)])


def debian_graph(small: bool = False, dimensions: int = 256, root: str | Path | None = None) -> Data:
    """Debian's packages: dependencies as edges, descriptions as features, sections as labels.

    Features are hashed words, counted, each row of length 1. The whole graph has a class for each section of
    100 packages or more, the small extract ten topics.

    Args:
        small: the extract of 3,000 packages or fewer.
        dimensions: of the features.
        root: folder of fetched data, as for `dmkit.data.load`.

    Returns:
        `x`, `edge_index`, `y` (-1 for packages of small sections), and `depends`: a package in the first row
        depends on the one in the second.

    Raises:
        MissingDataError: the graph has not been built.
        FileFormatError: a damaged file.
        MissingExtraError: `torch_geometric` is not installed.
    """
    path = find(
        "The graph of Debian's packages", [data_root(root) / FILES[small]], "python -m dmkit.data.packages"
    )
    stored = load_tensors(path)
    try:
        counts, nodes = stored["counts"], len(stored["y"])
        place = torch.arange(nodes).repeat_interleave(counts) * dimensions + stored["words"] % dimensions
        x = torch.zeros(nodes * dimensions).index_add_(0, place, torch.ones(len(place)))
        x = torch.nn.functional.normalize(x.view(nodes, dimensions))
        data = graph_data(x, undirected(stored["depends"], nodes), stored["y"])
        data.depends = stored["depends"]
        return data
    except (KeyError, RuntimeError) as error:
        raise FileFormatError(f"{path} is no graph of packages: {error!r}") from error


def build(packages: Packages, root: Path) -> None:
    """Writes the whole graph and the small one."""
    (root / "debian").mkdir(parents=True, exist_ok=True)
    of_section = Counter(packages.sections)
    classes = sorted(section for section, count in of_section.items() if section and count >= LEAST)
    for small, content in {
        False: tensors(packages, classes),
        True: tensors(extract(packages), TOPICS),
    }.items():
        with atomic_file(root / FILES[small]) as draft:
            save_file(content, str(draft))
        nodes, edges = len(content["y"]), content["depends"].shape[1]
        kinds = int(content["y"].max()) + 1
        print(f"{FILES[small]}: {nodes:,} packages, {edges:,} dependencies, {kinds} classes")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m dmkit.data.packages", description=__doc__)
    parser.add_argument("--root", type=Path, help="data folder; $DMKIT_DATA or ./data by default")
    root = data_root(parser.parse_args(argv).root)
    try:
        done = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=True, timeout=900)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"The package index cannot be read, apt is needed for it: {error}", file=sys.stderr)
        return 1
    try:
        build(parse(done.stdout.decode("utf-8", "replace").splitlines()), root)
    except (FileFormatError, MissingDataError, OSError) as error:
        print(f"No graph was built: {error}. Has apt any package lists (apt-get update)?", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
