import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from dmkit import zoo
from dmkit.adapters import SPMLayer, SPMMetadata, SPMWeights, save_spm
from dmkit.adapters.spm.layers import component_of, target_layers
from dmkit.adapters.spm.weights import shapes
from dmkit.app.jobs import Job
from dmkit.app.store import ModelStore


@pytest.fixture(scope="package")
def store() -> ModelStore:
    return ModelStore(device="cpu")


@pytest.fixture
def job() -> Job:
    return Job()


@pytest.fixture(scope="session")
def unconditional(tmp_path_factory, tiny_pipeline) -> ModelStore:
    """A store with a tiny pixel model under a root, by the name `tiny`."""
    root = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny_pipeline, root / "tiny")
    return ModelStore(root, "cpu")


@pytest.fixture(scope="session")
def adapters(tmp_path_factory) -> Path:
    """A folder with one random adapter for the emoji model, which erases "a heart"."""
    from diffusers import UNet2DConditionModel

    folder = tmp_path_factory.mktemp("adapters")
    unet = UNet2DConditionModel.from_pretrained(zoo.path("emoji"), subfolder="unet")
    draw = torch.Generator().manual_seed(0)
    layers = {}
    for name, layer in target_layers(unet).items():
        down, up = shapes(layer, 1)
        layers[name] = SPMLayer(
            0.3 * torch.randn(down, generator=draw), 0.3 * torch.randn(up, generator=draw), torch.tensor(1.0)
        )
    weights = SPMWeights(layers, SPMMetadata(targets=("a heart",)), component_of(unet))
    save_spm(weights, folder / "heart" / "heart.safetensors")
    return folder


@pytest.fixture
def weights_of(store):
    """A hash of all weights of a model's networks, to see that nothing stays in them."""

    def read(name: str) -> str:
        digest = hashlib.sha256()
        with store.borrow(name) as pipe:
            for key, value in sorted(pipe.unet.state_dict().items()):
                digest.update(key.encode())
                digest.update(value.contiguous().numpy().tobytes())
        return digest.hexdigest()

    return read


def run(code: str, monkeypatch, folder: Path, **names) -> dict:
    """Executes the Python that a result shows, in a folder of its own; returns its names."""
    monkeypatch.chdir(folder)
    space = dict(names)
    exec(compile(code, "shown", "exec"), space)
    return space


@pytest.fixture
def execute(monkeypatch, tmp_path):
    return lambda code, **names: run(code, monkeypatch, tmp_path, **names)


@pytest.fixture
def same():
    """The images that the code made are those of the outcome."""

    def check(outcome, space) -> None:
        assert list(space["images"]) == list(outcome.images)
        for label, images in outcome.images.items():
            made = space["images"][label].float().clamp(-1, 1)
            torch.testing.assert_close(made, images, atol=1e-5, rtol=0)

    return check
