import numpy as np
import pytest

from promptseg.boxes import mask_box
from promptseg.training.augmentation import (
    augment,
    augmentation_margin,
    make_augmentation,
    spatial_transform,
)

THICK, ALIKE = (1.5, 8.0, 1.5), (2.0, 1.0, 1.5)


def with_margin(patch_size, spacing):
    return np.add(patch_size, 2 * augmentation_margin(patch_size, spacing))


@pytest.mark.parametrize(
    ("spacing", "expected"), [(THICK, (6, 0, 4)), (ALIKE, (6, 3, 4)), ((9, 3, 3.0), (6, 3, 4))]
)
def test_a_fifth_of_a_patch_is_cut_beyond_it_but_not_across_thick_slices(spacing, expected):
    np.testing.assert_array_equal(augmentation_margin((28, 12, 20), spacing), expected)


def test_thick_slices_are_moved_all_alike_and_not_mixed():
    size = np.array((28, 12, 20))
    shape = with_margin(size, THICK)
    plane = np.random.default_rng(0).uniform(size=(shape[0], 1, shape[2]))
    image = np.broadcast_to(plane, shape)[None, None].astype(np.float32)
    numbers = np.broadcast_to(np.arange(1, 13)[:, None], shape)[None, None].astype(np.float32)
    transform, moved = spatial_transform(size, THICK), 0
    for seed in range(12):
        np.random.seed(seed)
        after = transform(data=image, seg=numbers)
        assert after["data"].shape == after["seg"].shape == (1, 1, *size)
        np.testing.assert_array_equal(after["data"] - after["data"][..., :1, :], 0)
        for k in range(12):
            assert set(np.unique(after["seg"][..., k, :])) <= {0, k + 1}
        centre = plane[6:-6, :, 4:-4]
        moved += not np.array_equal(after["data"][0, 0, :, :1], centre.astype(np.float32))
    assert 4 < moved < 12  # a third of the samples is neither rotated nor scaled


def test_volumes_of_similar_spacing_are_rotated_in_every_plane():
    size = np.array((20, 16, 24))
    image = np.zeros(with_margin(size, ALIKE), np.float32)
    image[:, image.shape[1] // 2, image.shape[2] // 2] = 1  # a line along z
    leaves = set()
    for seed in range(20):
        np.random.seed(seed)
        after = spatial_transform(size, ALIKE)(data=image[None, None], seg=image[None, None])
        z, y, x = np.nonzero(after["data"][0, 0] > 0.3)
        if len(z):
            leaves |= {axis for axis, v in zip("yx", (y, x), strict=True) if np.ptp(v) > 3}
    assert leaves == {"y", "x"}


@pytest.mark.parametrize("spacing", [THICK, ALIKE])
def test_what_is_rotated_in_comes_from_the_volume(spacing):
    # without the margin the same draws leave corners black
    size = (30, 24, 26)
    black = []
    for shape in (with_margin(size, spacing), size):
        image, empty = np.full((1, *shape), 200.0), 0
        for seed in range(30):
            rng = np.random.default_rng(seed)
            made, _ = augment(make_augmentation(size, spacing), image, image[0] > 0, rng)
            assert made.shape == (1, *size)
            empty += (made == 0).mean() / 30
        black.append(empty)
    assert black[0] < 0.03 < 0.05 < black[1]


def test_an_object_shrinks_and_grows_by_as_much_as_is_said():
    size = np.array((60, 10, 60))
    image = np.zeros((1, *with_margin(size, THICK)))
    image[:, 30:-30, :, 36:-36] = 100
    lengths = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        _, segmentation = augment(make_augmentation(size, THICK), image, image[0] > 0, rng)
        lengths.append(np.sqrt((segmentation > 0).sum() / 10))
    side = np.sqrt((image > 0).sum() / 10)
    assert 0.67 < min(lengths) / side < 0.75 and 1.3 < max(lengths) / side < 1.47
    assert mask_box(segmentation > 0)[:, 1].tolist() == [0, 10]
