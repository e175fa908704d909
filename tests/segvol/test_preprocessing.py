"""SegVol's preprocessing against a literal one, written from its description step by step."""

import numpy as np
import pytest
import torch

from promptseg.plans import Normalization
from promptseg.preprocessing.normalize import foreground_clipping, intensity_range, normalize
from promptseg.segvol.preprocessing import NormalizedView, SegVolImage, nearest_indices

PATCH_SIZE = (8, 24, 20)


def literal(volume_xyz: np.ndarray, patch_size) -> dict[str, np.ndarray]:
    """Mean threshold, percentiles, z-score, transpose, min-max, pad, crop, resize.

    Everything in (z, y, x) and [0, 1] but the input, which is as a NIfTI reader gives it.
    """
    x = volume_xyz.astype(np.float32)
    foreground = x[x > x.mean()]
    low, high = np.percentile(foreground, 0.05), np.percentile(foreground, 99.95)
    x = (np.clip(x, low, high) - foreground.mean()) / max(foreground.std(), 1e-8)
    x = x.swapaxes(-1, -3)
    x = (x - x.min()) / (x.max() - x.min())
    missing = [max(w - n, 0) for w, n in zip(patch_size, x.shape, strict=True)]
    padded = np.pad(x, [(m // 2, m - m // 2) for m in missing])
    voxels = np.argwhere(padded > 0)
    crop = padded[tuple(slice(a, b + 1) for a, b in zip(voxels.min(0), voxels.max(0), strict=True))]
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(crop.copy())[None, None], patch_size, mode="nearest-exact"
    )
    return {"normalized": x, "crop": crop, "resized": resized[0, 0].numpy()}


def volume(shape, dtype, seed=0) -> np.ndarray:
    """(z, y, x): a bright noisy body with a very bright spot in a dark noisy surround."""
    rng = np.random.default_rng(seed)
    image = rng.normal(-900, 20, shape)
    z, y, x = shape
    body = np.s_[1 : z - 1, 3 : y - 2, 2 : x - 5]
    image[body] = rng.normal(60, 40, image[body].shape)
    image[z // 2, y // 2, x // 2] = 3000
    return image.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.float64])
@pytest.mark.parametrize("shape", [(7, 30, 19), (21, 15, 40), (8, 24, 20), (3, 90, 61)])
def test_every_voxel_is_as_segvol_makes_it(shape, dtype):
    raw = volume(shape, dtype)
    expected = literal(raw.swapaxes(0, 2), PATCH_SIZE)

    image = SegVolImage(raw[None], foreground_clipping())

    close = {"rtol": 0, "atol": 255 * 2e-5}
    np.testing.assert_allclose(
        normalize(raw, foreground_clipping()), 255 * expected["normalized"], **close
    )
    cropped = image.part(image.foreground)
    assert cropped.shape[1:] == expected["crop"].shape != shape
    np.testing.assert_allclose(cropped[:, :, :, :][0], 255 * expected["crop"], **close)
    resized = image.resized(PATCH_SIZE)
    assert resized.dtype == np.float32 and resized.shape == (1, *PATCH_SIZE)
    np.testing.assert_allclose(resized[0], 255 * expected["resized"], **close)
    assert np.ptp(resized) > 60


def test_a_part_keeps_the_limits_of_the_whole():
    raw = volume((9, 20, 14), np.float32)
    image = SegVolImage(raw[None], foreground_clipping())
    part = image.part(np.array([[2, 5, 3], [6, 17, 8]]))
    assert part.shape == (1, 4, 12, 5)
    whole = normalize(raw, foreground_clipping())
    np.testing.assert_array_equal(part[:, 1:3, :, 2:4][0], whole[3:5, 5:17, 5:7])


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("old, new", [(7, 32), (32, 7), (41, 256), (300, 256), (1, 5), (5, 1)])
def test_indices_are_those_of_pytorchs_resizing_of_volumes(old, new, mode):
    lines = torch.arange(float(old)).view(1, 1, old, 1, 1).expand(1, 1, old, 3, 2)
    expected = torch.nn.functional.interpolate(lines, (new, 3, 2), mode=mode)[0, 0, :, 0, 0]
    np.testing.assert_array_equal(nearest_indices(old, new, mode), expected.numpy())


def test_a_constant_volume_is_0_and_has_no_crop():
    raw = np.full((1, 4, 6, 9), -1000.0)
    image = SegVolImage(raw, foreground_clipping())
    np.testing.assert_array_equal(image.foreground, [[0, 0, 0], [4, 6, 9]])
    assert (
        not image.resized(PATCH_SIZE).any() and not normalize(raw[0], foreground_clipping()).any()
    )


def test_two_values_become_0_and_255():
    # all voxels above the mean are equal: both percentiles coincide, where SegVol divides 0 by 0
    raw = np.zeros((5, 7, 11), np.int16)
    raw[1:3, 2:6, 4:9] = 7
    assert intensity_range(raw, foreground_clipping()) == (0.0, 7.0)
    image = SegVolImage(raw[None], foreground_clipping())
    np.testing.assert_array_equal(image.foreground, [[1, 2, 4], [3, 6, 9]])
    assert (image.resized(PATCH_SIZE) == 255).all()


def test_the_raw_volume_is_neither_copied_nor_changed():
    raw = volume((9, 20, 14), np.int16)[None]
    before = raw.copy()
    image = SegVolImage(raw, foreground_clipping())
    image.resized(PATCH_SIZE)
    assert image.raw is raw and np.shares_memory(image.part(image.foreground).raw, raw)
    np.testing.assert_array_equal(raw, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_refused(bad):
    raw = volume((5, 6, 7), np.float32)
    raw[1, 2, 3] = bad
    with pytest.raises(ValueError, match="1 of 210 voxels are NaN or infinite"):
        SegVolImage(raw[None], foreground_clipping())


@pytest.mark.parametrize("shape", [(2, 5, 6, 7), (5, 6, 7), (0, 5, 6, 7)])
def test_other_than_one_channel_is_refused(shape):
    with pytest.raises(ValueError, match=r"one channel, \(1, z, y, x\); got shape"):
        SegVolImage(np.zeros(shape), foreground_clipping())


def test_the_normalization_goes_through_json():
    content = foreground_clipping().to_json()
    assert content == {"kind": "foreground", "lower": 0.05, "upper": 99.95}
    assert Normalization(**content) == foreground_clipping()


def test_a_view_of_what_is_constant_is_0():
    view = NormalizedView(np.full((1, 2, 3, 4), 5.0), (5.0, 5.0))
    assert not view[:, 0:1, 0:2, 0:3].any()
