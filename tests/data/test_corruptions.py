"""Corruptions: against independent arithmetic, ranges, types, seeds, errors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from dmkit.data import corruptions
from dmkit.data.corruptions import NAMES, Corruption

RANDOM = {
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    *("glass_blur", "motion_blur", "fog", "elastic_transform"),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=4, channels=3, size=16, seed=5):
    return torch.rand(count, channels, size, size, generator=seeded(seed))


def test_the_nineteen_are_all_known():
    assert len(NAMES) + len(corruptions.ABSENT) == 19


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_corruption_keeps_shape_type_and_range(name, channels):
    if name == "saturate" and channels == 1:
        pytest.skip("has no meaning in grey")
    for severity in range(1, 6):
        for x in (pictures(2, channels), (pictures(2, channels) * 255).to(torch.uint8)):
            before = x.clone()
            y = Corruption(name, severity)(x, seeded())
            assert y.shape == x.shape
            assert y.dtype == x.dtype
            assert y.min() >= 0
            assert y.max() <= (255 if y.dtype == torch.uint8 else 1)
            assert torch.equal(x, before)
    assert not torch.equal(y, x)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_generator_is_the_only_source_of_chance(name):
    x = pictures(size=32)
    torch.manual_seed(1)
    first = Corruption(name)(x, seeded(3))
    torch.manual_seed(2)
    assert torch.equal(first, Corruption(name)(x, seeded(3)))
    assert torch.equal(first, Corruption(name)(x, seeded(4))) == (name not in RANDOM)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"fog", "saturate", "elastic_transform"}))
def test_more_severe_is_farther_from_the_image(name):
    """But for rules whose five parameters are no order: fog's grain, desaturation, local or global warps."""
    x = pictures(24, 3, 32)
    smooth = corruptions.gaussian_blur(x, 2.0)
    x = (smooth - smooth.amin()) / (smooth.amax() - smooth.amin())
    away = [float((Corruption(name, s)(x, seeded()) - x).abs().mean()) for s in (1, 5)]
    assert away[1] > away[0]


def test_gaussian_blur_and_displacement_smoothing_are_scipys():
    x = pictures(1, 1)[0, 0].double()
    for border, mode in ((corruptions._nearest, "nearest"), (corruptions._reflected, "reflect")):
        for truncate in (3.0, 4.0):
            mine = corruptions._smooth(x[None, None], 1.3, border, truncate)[0, 0]
            theirs = ndimage.gaussian_filter(x.numpy(), 1.3, mode=mode, truncate=truncate)
            np.testing.assert_allclose(mine, theirs, atol=1e-12)


def test_zoom_is_scipys():
    x = pictures(1, 1, 32)[0, 0].double()
    for zoom in (1.0, 1.01, 1.07, 1.25):
        part = math.ceil(32 / zoom)
        first = (32 - part) // 2
        grown = ndimage.zoom(x[first : first + part, first : first + part].numpy(), zoom, order=1)
        trim = (len(grown) - 32) // 2
        mine = corruptions._zoomed(x[None, None], zoom)[0, 0]
        np.testing.assert_allclose(mine, grown[trim : trim + 32, trim : trim + 32], atol=1e-12)


def test_zoom_blur_takes_its_last_zoom_exclusively(monkeypatch):
    seen = []
    monkeypatch.setattr(corruptions, "_zoomed", lambda x, zoom: seen.append(zoom) or x)
    corruptions.zoom_blur(pictures(), 1.06)
    assert seen == pytest.approx([1, 1.01, 1.02, 1.03, 1.04, 1.05])


def test_looking_up_mirrors_as_scipy_does():
    x = pictures(1, 1)[0, 0].double()
    places = torch.rand(1, 16, 16, 2, generator=seeded()).double() * 30 - 7
    for centres, mode in ((True, "mirror"), (False, "reflect")):
        mine = corruptions._looked_up(x[None, None], places, centres)[0, 0]
        theirs = ndimage.map_coordinates(
            x.numpy(), [places[0, ..., 1].numpy(), places[0, ..., 0].numpy()], order=1, mode=mode
        )
        np.testing.assert_allclose(mine, theirs, atol=1e-12)


def test_an_elastic_map_without_jitter_or_displacement_is_none():
    x = pictures()
    torch.testing.assert_close(corruptions.elastic_transform(x, 0, 0, 0.0, seeded()), x, atol=1e-5, rtol=0)


def test_defocus_of_a_point_is_its_disc():
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = 1
    y = corruptions.defocus_blur(x, 1.5, 0.1)[0, 0]  # the rim of sigma 0.1 is below rounding
    disc = torch.zeros(9, 9)
    disc[3:6, 3:6] = 1 / 9
    torch.testing.assert_close(y, disc)


def test_motion_blur_is_one_sided_and_edges_go_on():
    x = torch.zeros(1, 1, 21, 21)
    x[0, 0, 10, 10] = 1
    y = corruptions.motion_blur(x, 3, 1.0, seeded())[0, 0]
    weights = torch.exp(-0.5 * torch.arange(7.0) ** 2)
    assert torch.allclose(y[y > 0].sort().values, (weights / weights.sum()).sort().values)
    assert y[:, 11:].sum() == 0  # a row reads to its right, so a point spreads to its left
    flat = torch.full((1, 3, 9, 9), 0.4)
    torch.testing.assert_close(corruptions.motion_blur(flat, 9, 2.5, seeded()), flat)


def test_glass_blur_only_moves_pixels_between_its_blurs():
    x = torch.arange(256.0).view(1, 1, 16, 16).repeat(3, 1, 1, 1) / 255
    y = corruptions.glass_blur(x, 0.05, 1, 2, seeded())  # a blur of 0.05 pixels does nothing
    for image in y:
        torch.testing.assert_close(image.flatten().sort().values, x[0].flatten().sort().values)
    assert not torch.equal(y[0], y[1])


def test_plasma_fills_zero_to_one_and_decays():
    rough, smooth = (corruptions.plasma(3, 32, decay, seeded()) for decay in (1.2, 3.0))
    for field in (rough, smooth):
        assert field.shape == (3, 32, 32)
        assert (field.amin((1, 2)) == 0).all()
        assert (field.amax((1, 2)) == 1).all()
    # The last level is a chequered quarter of the pixels: what it adds is the roughness.
    assert (rough.diff(dim=1).abs().mean() > 2 * smooth.diff(dim=1).abs().mean()).item()


def test_fog_keeps_black_pictures_black():
    assert not Corruption("fog")(torch.zeros(1, 3, 8, 8), seeded()).any()


def test_noise_has_its_moments():
    x = torch.full((1, 1, 400, 400), 0.5)
    for rule, level, deviation in (
        (corruptions.gaussian_noise, 0.1, 0.1),
        (corruptions.speckle_noise, 0.2, 0.1),
        (corruptions.shot_noise, 50.0, math.sqrt(0.5 / 50)),
    ):
        y = rule(x, level, seeded())
        assert float(y.mean()) == pytest.approx(0.5, abs=2e-3)
        assert float(y.std()) == pytest.approx(deviation, rel=0.02)
    struck = corruptions.impulse_noise(x, 0.3, seeded())
    assert float((struck == 1).float().mean()) == pytest.approx(0.15, abs=5e-3)
    assert float((struck == 0).float().mean()) == pytest.approx(0.15, abs=5e-3)


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(0, 255)] * 3), st.integers(1, 5))
def test_brightness_and_saturation_are_those_of_hsv(colour, severity):
    import colorsys

    rgb = [c / 255 for c in colour]
    x = torch.tensor(rgb).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
    (amount,) = corruptions._RULES["brightness"][1][severity - 1]
    bright = colorsys.hsv_to_rgb(hue, saturation, min(1, value + amount))
    a, b = corruptions._RULES["saturate"][1][severity - 1]
    colourful = colorsys.hsv_to_rgb(hue, min(1, max(0, saturation * a + b)), value)
    for name, expected in (("brightness", bright), ("saturate", colourful)):
        y = Corruption(name, severity)(x, seeded())[0, :, 0, 0]
        np.testing.assert_allclose(y, expected, atol=2e-6)


def test_contrast_keeps_the_mean_of_each_channel():
    x = pictures() * 0.5 + 0.25
    y = Corruption("contrast", 5)(x, seeded())
    torch.testing.assert_close(y.mean((2, 3)), x.mean((2, 3)))
    torch.testing.assert_close(y.std((2, 3)), 0.15 * x.std((2, 3)))


def test_pixelate_leaves_int_of_its_share():
    x = pictures(1, 3, 32)
    y = Corruption("pixelate", 5)(x, seeded())
    rows = {tuple(row.tolist()) for row in y[0, 0]}
    assert len(rows) == int(0.65 * 32)


def test_what_is_absent_says_why():
    for name, reason in corruptions.ABSENT.items():
        with pytest.raises(NotImplementedError, match=f"{name} is not available: {reason.split()[0]}"):
            Corruption(name)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"Unknown corruption 'gausian_blur'\. Did you mean 'gaussian_blur'"):
        Corruption("gausian_blur")
    for severity in (0, 6, 2.5):
        with pytest.raises(ValueError, match="severity is 1 to 5, not"):
            Corruption("fog", severity)
    blur = Corruption("gaussian_blur")
    with pytest.raises(ValueError, match=r"Values of images lie in \[0, 1\], not in \[-1"):
        blur(pictures() * 2 - 1 - 1e-3, seeded())
    with pytest.raises(TypeError, match=r"uint8 or floating point, not torch\.int64"):
        blur(torch.zeros(1, 1, 8, 8, dtype=torch.int64), seeded())
    for shape in ((1, 2, 8, 8), (3, 8, 8), (1, 3, 4, 8)):
        with pytest.raises(ValueError, match=r"Expected images \(N, 1 or 3, H, W\) of 8 pixels"):
            blur(torch.zeros(shape), seeded())
    with pytest.raises(ValueError, match="saturate changes colours"):
        Corruption("saturate")(torch.zeros(1, 1, 8, 8), seeded())
