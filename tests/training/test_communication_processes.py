"""The communication hook between two and four processes, over gloo. The checks are in `communicating.py`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from running_scripts import ENVIRONMENT

WORKER = Path(__file__).with_name("communicating.py")


@pytest.mark.parametrize("processes", [2, 4])
def test_every_check_passes(processes, tmp_path):
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(processes),
    ]
    done = subprocess.run(
        [*launcher, str(WORKER), str(tmp_path)], capture_output=True, text=True, env=ENVIRONMENT, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(json.loads((tmp_path / "passed.json").read_text())) == 9
