import math

import numpy as np
import pytest
import torch

from dmkit.metrics import max_abs_error, psnr, round_trip_error, ssim

IMAGES = torch.rand(3, 2, 20, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1


def test_by_hand():
    returned = IMAGES.clone()
    returned[1, 0, 3, 4] += 0.25
    assert max_abs_error(returned, IMAGES) == pytest.approx(0.25)
    assert psnr(returned, IMAGES) == pytest.approx(10 * math.log10(4 / (0.0625 / IMAGES.numel())))
    assert psnr(returned / 2, IMAGES / 2, data_range=1) == pytest.approx(psnr(returned, IMAGES))
    assert (max_abs_error(IMAGES, IMAGES), psnr(IMAGES, IMAGES)) == (0, math.inf)


def test_float64_errors_are_seen():
    """A difference that float32 cannot hold is not rounded away."""
    assert max_abs_error(IMAGES + 1e-12, IMAGES) == pytest.approx(1e-12, rel=1e-3)
    assert psnr(IMAGES + 1e-12, IMAGES) == pytest.approx(20 * math.log10(2e12), abs=0.01)


def test_nan_is_not_hidden():
    broken = IMAGES.clone()
    broken[0, 0, 0, 0] = math.nan
    assert math.isnan(max_abs_error(broken, IMAGES))
    assert math.isnan(psnr(broken, IMAGES))


def test_ssim_by_its_definition():
    ndimage = pytest.importorskip("scipy.ndimage")
    noise = torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    returned = IMAGES + 0.3 * noise

    def blur(values):
        return ndimage.gaussian_filter(values, (0, 0, 1.5, 1.5), truncate=3.5, mode="mirror")

    x, y = returned.numpy(), IMAGES.numpy()
    mx, my = blur(x), blur(y)
    vx, vy, cxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    expected = ((2 * mx * my + c1) * (2 * cxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()
    assert ssim(returned, IMAGES) == pytest.approx(expected, abs=1e-6)
    assert ssim(IMAGES, IMAGES) == pytest.approx(1)
    assert 0 < expected < 0.95


def test_all_at_once():
    found = round_trip_error(IMAGES.float() * 0.9, IMAGES.float())
    assert found.keys() == {"max_abs", "psnr_db", "ssim"}
    assert found["max_abs"] == pytest.approx(0.1 * IMAGES.abs().max().item(), rel=1e-5)
    assert np.isfinite(list(found.values())).all()


def test_what_does_not_compare_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 2, 20, 24\) and \(2, 2, 20, 24\) do not compare"):
        max_abs_error(IMAGES, IMAGES[:2])
    with pytest.raises(ValueError, match="do not compare"):
        psnr(IMAGES[:0], IMAGES[:0])
    with pytest.raises(TypeError, match=r"not torch.uint8"):
        psnr(IMAGES.byte(), IMAGES.byte())
    with pytest.raises(ValueError, match="11 pixels or more"):
        ssim(IMAGES[..., :8], IMAGES[..., :8])
