import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional

from promptseg.io.images import read_segmentation
from promptseg.preprocessing.resample import (
    coarse_axes,
    resample_image,
    resample_logits,
    resample_segmentation,
    resampled_shape,
    scale_coordinates,
)
from tests.real_data import require_real_data

ALL_AXES = (0, 1, 2)
SHAPES = [((7, 9, 11), (13, 12, 30)), ((7, 20, 31), (3, 9, 50)), ((1, 8, 5), (4, 3, 5))]


def noise(shape, dtype=np.float32, seed=0):
    values = np.random.default_rng(seed).uniform(0, 255, shape)
    return (
        np.rint(values).astype(dtype) if np.issubdtype(dtype, np.integer) else values.astype(dtype)
    )


def balls(shape, count, seed=0):
    """Labels 1 to `count` as random ellipsoids over each other."""
    rng = np.random.default_rng(seed)
    grid = np.indices(shape)
    labels = np.zeros(shape, np.int16)
    for label in range(1, count + 1):
        centre = rng.uniform(0, shape).reshape(3, 1, 1, 1)
        radii = rng.uniform(1.5, np.array(shape) / 3).reshape(3, 1, 1, 1)
        labels[(((grid - centre) / radii) ** 2).sum(axis=0) < 1] = label
    return labels


def nearest(segmentation, shape):
    indices = [
        ((np.arange(m) + 0.5) * n / m).astype(int)
        for n, m in zip(segmentation.shape, shape, strict=True)
    ]
    return segmentation[np.ix_(*indices)]


# shapes and axes


def test_the_resampled_shape_keeps_the_extent_to_half_a_voxel():
    # 48 x 3.27 mm / 1.5 mm = 104.64; 143 x 0.9766 / 2 = 69.83; 161 x 0.9766 / 0.5 = 314.5
    assert resampled_shape((48, 143, 161), (3.27, 0.9766, 0.9766), (1.5, 2.0, 0.5)) == (
        105,
        70,
        314,
    )
    assert resampled_shape((3, 4, 5), (1, 1, 1), (50, 1, 1)) == (1, 4, 5)


@pytest.mark.parametrize("bad", [(0, 1, 1), (-1, 1, 1), (float("nan"), 1, 1), (1, 1)])
def test_a_spacing_that_is_no_length_is_refused(bad):
    with pytest.raises(ValueError, match="spacing must be three positive lengths in mm"):
        resampled_shape((3, 4, 5), bad, (1, 1, 1))
    with pytest.raises(ValueError, match="new spacing must be three positive lengths in mm"):
        resampled_shape((3, 4, 5), (1, 1, 1), bad)


def test_axes_of_thick_slices_are_those_beyond_three_times_the_finest():
    assert coarse_axes((5.0, 1.0, 1.0), (1.0, 1.0, 1.0)) == (0,)
    assert coarse_axes((1.0, 1.0, 1.0), (1.0, 1.0, 3.5)) == (2,)
    assert coarse_axes((3.0, 1.0, 1.0), (2.0, 1.0, 1.0)) == ()


# images


@pytest.mark.parametrize("old, new", SHAPES)
def test_linear_resampling_without_shrinking_is_that_of_pytorch(old, new):
    new = tuple(max(n, m) for n, m in zip(old, new, strict=True))
    image = noise((2, *old))

    result = resample_image(image, new, linear_axes=ALL_AXES)

    expected = functional.interpolate(torch.tensor(image)[None], new, mode="trilinear")[0]
    np.testing.assert_allclose(result, expected.numpy(), atol=1e-3)


@pytest.mark.parametrize("old, new", SHAPES)
def test_cubic_resampling_is_that_of_pillow_axis_by_axis(old, new):
    image = noise(old)

    result = resample_image(image[None], new)[0]

    expected = np.stack(
        [np.asarray(Image.fromarray(s).resize(new[:0:-1], Image.BICUBIC)) for s in image]
    )
    flat = Image.fromarray(expected.reshape(old[0], -1))
    expected = np.asarray(flat.resize((new[1] * new[2], new[0]), Image.BICUBIC)).reshape(new)
    np.testing.assert_allclose(result, expected, atol=1e-3)


def test_cubic_resampling_of_a_smooth_image_is_near_a_cubic_spline():
    image = ndimage.gaussian_filter(noise((12, 20, 26)), 2.0)
    new = (18, 31, 30)

    result = resample_image(image[None], new)[0]

    factors = np.divide(new, image.shape)
    spline = ndimage.zoom(image, factors, order=3, mode="nearest", grid_mode=True)
    inside = (slice(3, -3),) * 3
    assert np.abs(result - spline)[inside].max() < 0.02 * np.ptp(image)


@pytest.mark.parametrize("old, new", SHAPES)
@pytest.mark.parametrize("linear_axes", [(), (0,), ALL_AXES])
def test_a_constant_stays_constant(old, new, linear_axes):
    for dtype in (np.uint8, np.float32):
        result = resample_image(np.full((1, *old), 37, dtype), new, linear_axes=linear_axes)

        assert result.dtype == dtype
        np.testing.assert_allclose(result, np.full((1, *new), 37), atol=1e-4)


@pytest.mark.parametrize(
    "new, tolerance",
    [  # a widened kernel meets its moments exactly only where the factor is a whole number
        ((25, 30, 45), 1e-3),
        ((10, 11, 12), 1e-3),
        ((10, 9, 11), 0.05),
        ((12, 35, 17), 0.05),
    ],
)
def test_a_linear_ramp_stays_linear_inside(new, tolerance):
    old = (20, 22, 24)
    ramp = np.zeros(old) + 3.0
    expected = np.zeros(new) + 3.0
    for axis, slope in enumerate((2.0, -1.0, 0.5)):
        along = [1, 1, 1]
        along[axis] = -1
        ramp = ramp + slope * (np.arange(old[axis]) + 0.5).reshape(along)
        centres = (np.arange(new[axis]) + 0.5) * old[axis] / new[axis]
        expected = expected + slope * centres.reshape(along)

    result = resample_image(ramp[None].astype(np.float32), new)[0]

    inside = tuple(slice(4, m - 4) if m > 12 else slice(3, m - 3) for m in new)
    np.testing.assert_allclose(result[inside], expected[inside], atol=tolerance)


def test_shrinking_averages_so_that_a_checkerboard_becomes_grey():
    checkerboard = (np.indices((12, 16, 20)).sum(axis=0) % 2 * 200).astype(np.float32)

    result = resample_image(checkerboard[None], (6, 8, 10))[0]

    # the border's cut kernels are not symmetric, and there some of the pattern stays
    np.testing.assert_allclose(result[2:-2, 2:-2, 2:-2], 100.0, atol=5.0)


def test_the_same_shape_gives_the_same_array():
    image = noise((2, 4, 5, 6))

    assert resample_image(image, (4, 5, 6)) is image
    as_uint8 = resample_image(image, (4, 5, 6), dtype=np.uint8)
    np.testing.assert_array_equal(as_uint8, np.rint(image).astype(np.uint8))


def test_uint8_is_rounded_and_clipped_where_the_cubic_overshoots():
    image = np.zeros((1, 4, 12, 10), np.uint8)
    image[..., 5:] = 255
    new = (4, 12, 23)

    as_float = resample_image(image.astype(np.float32), new)
    as_uint8 = resample_image(image, new)

    assert as_float.min() < -1 and as_float.max() > 256
    assert as_uint8.dtype == np.uint8
    np.testing.assert_array_equal(as_uint8, np.rint(as_float).clip(0, 255))


def test_linear_axes_never_overshoot_across_thick_slices():
    image = np.zeros((1, 8, 5, 6), np.float32)
    image[:, 4:] = 100.0

    assert np.ptp(resample_image(image, (21, 5, 6), linear_axes=(0,))) <= 100.0 + 1e-4
    assert np.ptp(resample_image(image, (21, 5, 6))) > 101.0


def test_growing_and_shrinking_back_nearly_gives_the_image_again():
    image = ndimage.gaussian_filter(noise((9, 14, 21)), 1.5)

    back = resample_image(resample_image(image[None], (18, 28, 42)), image.shape)[0]

    assert np.abs(back - image)[2:-2, 2:-2, 2:-2].max() < 0.05 * np.ptp(image)


def test_flipping_and_transposing_commute_with_resampling():
    image = noise((1, 6, 9, 13))
    result = resample_image(image, (8, 5, 20))

    flipped = resample_image(image[:, ::-1, :, ::-1], (8, 5, 20))
    transposed = resample_image(image.transpose(0, 3, 1, 2), (20, 8, 5))

    np.testing.assert_allclose(flipped, result[:, ::-1, :, ::-1], atol=1e-3)
    np.testing.assert_allclose(transposed, result.transpose(0, 3, 1, 2), atol=1e-3)


@pytest.mark.parametrize(
    "image, shape, message",
    [
        (np.zeros((3, 4, 5)), (3, 4, 5), r"is \(c, z, y, x\), got shape \(3, 4, 5\)"),
        (np.zeros((1, 3, 4, 5), np.int16), (6, 4, 5), "uint8 or float, got int16"),
        (np.zeros((1, 3, 4, 5)), (6, 4), "three positive voxel counts"),
        (np.zeros((1, 3, 4, 5)), (6, 4, 0), "three positive voxel counts"),
        (np.zeros((1, 3, 4, 5)), (6, 4, 2.5), "three positive voxel counts"),
    ],
)
def test_what_cannot_be_resampled_is_refused(image, shape, message):
    with pytest.raises(ValueError, match=message):
        resample_image(image, shape)


# segmentations


@pytest.mark.parametrize("new", [(18, 33, 25), (7, 11, 40), (11, 10, 9)])
def test_labels_are_the_argmax_of_linear_shares_wherever_that_is_clear(new):
    segmentation = balls((11, 21, 17), 6)
    values = np.unique(segmentation)
    masks = torch.stack([torch.tensor(segmentation == v) for v in values])[None].float()
    shares = functional.interpolate(masks, new, mode="trilinear")[0].numpy()
    ordered = np.sort(shares, axis=0)
    clear = ordered[-1] - ordered[-2] > 0.01

    result = resample_segmentation(segmentation, new)

    differs = result[clear] != values[shares.argmax(axis=0)][clear]
    assert result.dtype == segmentation.dtype and clear.mean() > 0.8
    # what differs are pieces that were put back as the nearest voxels have them
    np.testing.assert_array_equal(
        result[clear][differs], nearest(segmentation, new)[clear][differs]
    )
    assert differs.mean() < 0.005


@pytest.mark.parametrize("new", [(14, 12, 20), (4, 4, 6), (10, 5, 13)])
def test_every_piece_that_nearest_keeps_is_kept(new):
    rng = np.random.default_rng(3)
    segmentation = np.zeros((7, 9, 13), np.uint8)
    segmentation[rng.random(segmentation.shape) < 0.03] = 1  # single voxels
    segmentation[3, 4, :] = 2  # a line
    by_nearest = nearest(segmentation, new)

    result = resample_segmentation(segmentation, new)

    for label in (1, 2):
        pieces, count = ndimage.label(by_nearest == label, np.ones((3, 3, 3)))
        assert set(np.unique(pieces[result == label])) - {0} == set(range(1, count + 1))


def test_a_single_voxel_is_doubled_to_eight():
    # its largest linear share is 0.75^3 = 0.42, less than the background's
    segmentation = np.zeros((5, 6, 7), np.int32)
    segmentation[2, 3, 4] = 9

    result = resample_segmentation(segmentation, (10, 12, 14))

    assert (result[4:6, 6:8, 8:10] == 9).all() and (result == 9).sum() == 8


def test_an_integer_factor_up_and_back_gives_the_labels_again():
    segmentation = balls((9, 13, 11), 5, seed=2)

    back = resample_segmentation(resample_segmentation(segmentation, (27, 39, 33)), (9, 13, 11))

    # one-voxel corners of a label may go; nothing else
    assert (back != segmentation).mean() < 0.01
    assert set(np.unique(back)) == set(np.unique(segmentation))


def test_volumes_of_labels_are_kept():
    segmentation = balls((30, 41, 37), 3, seed=1)
    new = (40, 30, 56)
    voxel = segmentation.size / np.prod(new)

    result = resample_segmentation(segmentation, new)

    for label in np.unique(segmentation):
        assert (result == label).sum() * voxel == pytest.approx(
            (segmentation == label).sum(), rel=0.03
        )


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64])
def test_label_values_and_types_are_kept(dtype):
    segmentation = balls((5, 9, 7), 3).astype(dtype) * 40

    result = resample_segmentation(segmentation, (7, 7, 7))

    assert result.dtype == dtype and set(np.unique(result)) <= set(np.unique(segmentation))


def test_negative_labels_are_resampled_like_others():
    segmentation = balls((9, 12, 14), 2)
    new = (7, 15, 10)

    result = resample_segmentation(segmentation - 1, new)

    assert ((result + 1) == resample_segmentation(segmentation, new)).mean() > 0.99


def test_the_same_shape_gives_the_same_segmentation():
    segmentation = balls((5, 6, 7), 2)

    assert resample_segmentation(segmentation, (5, 6, 7)) is segmentation


def test_a_segmentation_of_floats_or_with_channels_is_refused():
    with pytest.raises(ValueError, match=r"\(z, y, x\) integers, got shape \(3, 4, 5\) of float64"):
        resample_segmentation(np.zeros((3, 4, 5)), (6, 8, 10))
    with pytest.raises(ValueError, match=r"got shape \(1, 3, 4, 5\)"):
        resample_segmentation(np.zeros((1, 3, 4, 5), np.uint8), (6, 8, 10))


def test_forty_real_organs_survive_as_well_as_with_nearest():
    path = require_real_data("single/totalsegmentator_example_seg.nii.gz")
    segmentation, geometry = read_segmentation(path)
    new = resampled_shape(geometry.shape, geometry.spacing, (4.0, 4.0, 5.0))

    result, by_nearest = resample_segmentation(segmentation, new), nearest(segmentation, new)

    assert set(np.unique(result)) >= set(np.unique(by_nearest))
    for label in np.unique(by_nearest):
        a, b = result == label, by_nearest == label
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.7


# logits and coordinates


def test_logits_are_resampled_as_images_are():
    logits = noise((3, 6, 9, 13))

    result = resample_logits(torch.tensor(logits), (8, 12, 15))

    np.testing.assert_allclose(
        result.numpy(), resample_image(logits, (8, 12, 15), linear_axes=ALL_AXES), atol=1e-3
    )
    same = torch.zeros(2, 3, 4, 5)
    assert resample_logits(same, (3, 4, 5)) is same


def test_boxes_scale_with_the_grid_and_back():
    box = np.array([[0, 3, 10], [4, 9, 22]])

    scaled = scale_coordinates(box, (4, 9, 22), (8, 3, 11))

    np.testing.assert_allclose(scaled, [[0, 1, 5], [8, 3, 11]])
    np.testing.assert_allclose(scale_coordinates(scaled, (8, 3, 11), (4, 9, 22)), box)


def test_coordinates_follow_an_image_through_resampling():
    image = np.zeros((1, 10, 20, 30), np.float32)
    image[0, 6, 11, 20] = 1.0

    result = resample_image(image, (25, 30, 45), linear_axes=ALL_AXES)[0]

    centre = np.array(ndimage.center_of_mass(result)) + 0.5
    expected = scale_coordinates([6.5, 11.5, 20.5], (10, 20, 30), (25, 30, 45))
    np.testing.assert_allclose(centre, expected, atol=0.05)


def test_coordinates_that_do_not_end_in_three_are_refused():
    with pytest.raises(ValueError, match=r"end in an axis of 3 \(zyx\), got shape \(2, 2\)"):
        scale_coordinates(np.zeros((2, 2)), (1, 1, 1), (2, 2, 2))


def test_workers_do_not_import_torch():
    code = "import sys, promptseg.preprocessing.preprocess; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
