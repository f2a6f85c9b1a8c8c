"""IBCL, RWS and BT² in two processes: the same weights on both, and those of one process without chance."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_in_pairs import trained

from dmkit.auxiliary.compression.rws import RobustWeightSignature

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from running_scripts import ENVIRONMENT


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    worker = Path(__file__).with_name("training_in_pairs.py")
    done = subprocess.run(
        [*launcher, str(worker), str(two)], capture_output=True, text=True, env=ENVIRONMENT, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    trained(one)
    torch.set_num_threads(threads)
    return one, two


@pytest.fixture(scope="module")
def weights(folders):
    """Of one process alone, and of either of two."""
    one, two = folders
    return (
        load_file(one / "0.safetensors"),
        load_file(two / "0.safetensors"),
        load_file(two / "1.safetensors"),
    )


def test_both_processes_end_with_the_same_weights(weights):
    _, first, second = weights
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == ["draws"]


def test_without_chance_they_are_those_of_one_process(weights):
    alone, pair, _ = weights
    compared = [key for key in alone if key == "sure" or key.startswith(("contrast.", "bct.", "bt2."))]
    assert len(compared) > 20
    for key in compared:
        torch.testing.assert_close(
            alone[key], pair[key], atol=2e-5, rtol=1e-4, msg=lambda m, key=key: f"{key}: {m}"
        )
    # The comparison can fail: where images are struck by noise, or weights have a spread, draws differ.
    for key in ("gaussian_noise.head.weight", "ibcl.0.0"):
        assert (alone[key] - pair[key]).abs().max() > 1e-5, key


def test_processes_draw_the_weights_of_their_examples_apart(weights):
    """All inputs and means are alike, so outputs differ by draws alone."""
    _, first, second = weights
    assert first["draws"].shape == second["draws"].shape == (4, 2)
    assert (first["draws"] - second["draws"]).abs().min() > 0


def test_a_signature_is_written_once_and_whole(folders):
    one, two = (RobustWeightSignature.from_pretrained(f / "rws" / "signature-contrast") for f in folders)
    assert one.tensors.keys() == two.tensors.keys()
    for name, value in one.tensors.items():
        torch.testing.assert_close(value, two.tensors[name], atol=1e-5, rtol=1e-3)
    assert not list((folders[1] / "rws").glob(".unfinished-*"))
