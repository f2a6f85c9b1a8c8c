"""The communication hook between two processes, over gloo. The checks are in `communicating.py`."""

import json
import subprocess
import sys
from pathlib import Path

from running_scripts import ENVIRONMENT

WORKER = Path(__file__).with_name("communicating.py")


def test_every_check_passes(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, str(WORKER), str(tmp_path)], capture_output=True, text=True, env=ENVIRONMENT, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(json.loads((tmp_path / "passed.json").read_text())) == 9
