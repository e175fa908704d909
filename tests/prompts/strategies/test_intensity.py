"""Algorithm 1: equal to the literal chain in SciPy, its properties, and bad inputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from benchmarks.literal_chain import scipy_box, scipy_mask, simpleitk_box
from promptseg.components import largest_component_box
from promptseg.io.images import read_image
from promptseg.preprocessing.normalize import (
    CT_WINDOWS,
    ct_window,
    normalize,
    percentile_clipping,
    to_uint8,
)
from promptseg.prompts.automatic import auto_prompt
from promptseg.prompts.strategies import AUTO_PROMPTERS
from promptseg.prompts.strategies.intensity import IntensityPrompter
from tests.real_data import raw_folder, require_real_data


def blobs(shape, seed=0, sigma=2.0):
    """A cloudy float32 volume in [0, 255]."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    cloud = ndimage.gaussian_filter(noise, sigma, mode="wrap")
    spread = max(float(np.ptp(cloud)), 1e-12)
    return ((cloud - cloud.min()) * (255 / spread)).clip(0, 255).astype(np.float32)


def bright_block(shape, lower, upper, value=200.0):
    image = np.full(shape, 20.0, np.float32)
    image[tuple(slice(a, b) for a, b in zip(lower, upper, strict=True))] = value
    return image


# exactness


@pytest.mark.parametrize("depth", range(1, 8))
def test_thin_volumes_give_scipys_box(depth):
    for seed in range(4):
        image = blobs((depth, 34, 47), seed)
        np.testing.assert_array_equal(auto_prompt(image).box, scipy_box(image))


@pytest.mark.parametrize(
    "shape", [(30, 41, 25), (12, 20, 130), (50, 3, 8), (1, 1, 40), (64, 64, 1), (2, 90, 65)]
)
def test_volumes_of_any_shape_give_scipys_box(shape):
    for seed in range(3):
        image = blobs(shape, seed)
        np.testing.assert_array_equal(auto_prompt(image).box, scipy_box(image))


@pytest.mark.parametrize("corner", [(0, 0, 0), (0, 0, 33), (14, 22, 33), (14, 0, 17), (7, 11, 16)])
def test_a_block_at_a_border_gives_scipys_box(corner):
    image = bright_block((20, 30, 41), corner, np.add(corner, (6, 8, 8)))

    np.testing.assert_array_equal(auto_prompt(image).box, scipy_box(image))


@pytest.mark.parametrize("position", [(0, 0, 0), (4, 7, 9), (8, 14, 19)])
def test_a_single_bright_voxel_gives_scipys_box(position):
    image = np.zeros((9, 15, 20), np.float32)
    image[position] = 255

    np.testing.assert_array_equal(auto_prompt(image).box, scipy_box(image))


def test_of_two_equal_blocks_the_first_in_raster_order_is_boxed():
    image = np.zeros((15, 40, 61), np.float32)
    image[4:11, 8:14, 40:46] = 180
    image[4:11, 26:32, 14:20] = 180  # its mirror image under y -> 39 - y, x -> 59 - x

    proposal = auto_prompt(np.ascontiguousarray(image[:, :, :60]))

    np.testing.assert_array_equal(proposal.box, scipy_box(image[:, :, :60]))
    assert proposal.box[0, 1] < 20  # the one with smaller y comes first in every slice


@pytest.mark.parametrize("seed", range(3))
def test_images_with_two_values_give_scipys_box(seed):
    image = 255 * (blobs((18, 33, 40), seed) > 140).astype(np.uint8)

    np.testing.assert_array_equal(auto_prompt(image).box, scipy_box(image))


@pytest.mark.parametrize(
    "dataset",
    ["Dataset004_Hippocampus", "Dataset010_SarcomaPET", "Dataset012_SarcomaMR"]
    + ["Dataset013_ProstateUS"],
)
def test_real_volumes_give_scipys_box_and_mask(dataset):
    for path in sorted((raw_folder() / dataset / "imagesTr").iterdir())[:2]:
        image = normalize(read_image(path)[0][0], percentile_clipping())
        expected = scipy_mask(image)
        np.testing.assert_array_equal(IntensityPrompter().candidate_mask(image), expected)
        np.testing.assert_array_equal(auto_prompt(image).box, scipy_box(image))
        np.testing.assert_array_equal(auto_prompt(to_uint8(image)).box, scipy_box(to_uint8(image)))


@pytest.mark.parametrize("window", CT_WINDOWS)
def test_a_real_ct_gives_scipys_box_in_every_window(window):
    ct = read_image(require_real_data("single/totalsegmentator_example_ct_sm.nii.gz"))[0][0]
    image = normalize(ct, ct_window(window))

    np.testing.assert_array_equal(auto_prompt(image).box, scipy_box(image))


def test_simpleitks_chain_finds_nearly_the_same_box():
    # Its recursive Gaussian only approximates one, so faces may lie a few voxels off.
    image = bright_block((40, 50, 60), (14, 15, 20), (26, 33, 44))

    assert np.abs(auto_prompt(image).box - simpleitk_box(image)).max() <= 3


# properties


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.integers(0, 10**6), st.tuples(*[st.integers(4, 24)] * 3))
def test_the_box_contains_the_closed_component_with_its_margin(seed, shape):
    image = blobs(shape, seed)
    found = largest_component_box(IntensityPrompter().candidate_mask(image))
    assume(found)

    proposal = auto_prompt(image, clip=False)

    np.testing.assert_array_equal(proposal.box, found[0] + np.array([[-5], [5]]))
    np.testing.assert_array_equal(auto_prompt(image).box, proposal.box.clip(0, shape))


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.tuples(st.integers(-9, 9), st.integers(-12, 12), st.integers(-15, 15)))
def test_shifting_the_image_shifts_the_box(offset):
    # The background fills what the shift leaves, far enough from the kernel and the margin.
    lower, upper = np.array([24, 28, 34]), np.array([32, 38, 45])
    still = bright_block((56, 66, 80), lower, upper)
    moved = bright_block((56, 66, 80), lower + offset, upper + offset)

    np.testing.assert_array_equal(auto_prompt(moved).box, auto_prompt(still).box + offset)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0.25, 0.5, 0.37, 0.9]), st.floats(0, 20))
def test_scaling_intensities_does_not_change_the_box(seed, factor, offset):
    image = blobs((9, 20, 31), seed)
    scaled = (image * np.float32(factor) + np.float32(offset)).astype(np.float32)

    np.testing.assert_array_equal(auto_prompt(scaled).box, auto_prompt(image).box)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.integers(0, 10**6), st.permutations([0, 1, 2]))
def test_permuting_axes_permutes_the_box(seed, axes):
    image = blobs((9, 20, 31), seed)

    permuted = auto_prompt(image.transpose(axes)).box

    np.testing.assert_array_equal(permuted, auto_prompt(image).box[:, axes])


@pytest.mark.parametrize("flip", [0, 1, 2])
def test_flipping_an_axis_flips_the_box(flip):
    image = blobs((9, 20, 31), 5)
    length = image.shape[flip]
    expected = auto_prompt(image).box.copy()
    expected[:, flip] = length - expected[::-1, flip]

    np.testing.assert_array_equal(auto_prompt(np.flip(image, flip)).box, expected)


@pytest.mark.parametrize(
    "dtype",
    [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint64, np.float16]
    + [np.float64, np.longdouble, ">i2", ">f4"],
)
def test_number_types_agree(dtype):
    image = np.floor(blobs((9, 20, 31), 3) / 2)  # whole numbers up to 127 fit into all of them

    np.testing.assert_array_equal(auto_prompt(image.astype(dtype)).box, auto_prompt(image).box)


@pytest.mark.parametrize("order", ["F", "strided", "list", "read-only"])
def test_memory_layout_does_not_matter(order):
    image = blobs((9, 20, 31), 4)
    expected = auto_prompt(image).box
    if order == "strided":
        other = np.repeat(image, 2, axis=2)[:, :, ::2]
    elif order == "list":
        other = image.tolist()
    else:
        other = np.array(image, order="F" if order == "F" else "C")
        other.flags.writeable = False

    np.testing.assert_array_equal(auto_prompt(other).box, expected)


def test_the_image_is_left_as_it_was():
    image = blobs((9, 20, 31), 6)
    before = image.copy()
    auto_prompt(image)

    np.testing.assert_array_equal(image, before)


# what a proposal says


@pytest.mark.parametrize("value", [0, 0.1, 77, 255])
def test_a_constant_image_gives_no_box_and_says_so(value):
    proposal = auto_prompt(np.full((5, 8, 30), value, np.float32))

    assert proposal.box is None
    assert proposal.boxes == ()
    assert (proposal.score, proposal.reason) == (0.0, "constant_image")


def test_one_voxel_alone_is_a_constant_image():
    assert auto_prompt(np.full((1, 1, 1), 3)).reason == "constant_image"


def test_nothing_between_the_thresholds_gives_no_box_and_says_so():
    proposal = auto_prompt(blobs((9, 20, 31)), low=50, high=60)

    assert (proposal.box, proposal.score, proposal.reason) == (None, 0.0, "no_component")


def test_a_box_of_nearly_the_whole_volume_is_called_so():
    proposal = auto_prompt(bright_block((12, 14, 16), (2, 2, 2), (10, 12, 14), 60.0))

    assert proposal.box.tolist() == [[0, 0, 0], [12, 14, 16]]
    assert (proposal.score, proposal.reason) == (0.0, "box_is_whole_volume")


def test_the_box_of_a_bright_block_is_worked_out_by_hand():
    # Without smoothing, closing and margin: mean 56, deviation 72, so thresholds 92 and 200.
    # 200 of 1000 voxels are 200, the others 20: mean 56, deviation 180 sqrt(0.2 0.8) = 72.
    image = bright_block((5, 10, 20), (1, 3, 4), (5, 8, 14))

    proposal = auto_prompt(image, sigma=0, radius=0, margin=0, high=2.01)

    assert proposal.box.tolist() == [[1, 3, 4], [5, 8, 14]]
    assert proposal.reason == "ok"
    assert proposal.score == pytest.approx(1 * (1 - 200 / 1000))
    assert auto_prompt(image, sigma=0, radius=0, high=2.0).reason == "no_component"  # strict


def scattered():
    image = np.zeros((20, 60, 80), np.float32)
    image[4:16, 5:20, 5:20] = 100  # largest
    image[4:16, 40:52, 50:60] = 100
    image[8:12, 40:46, 8:14] = 100  # smallest
    return image


def test_several_objects_get_several_boxes_largest_first():
    exact = dict(sigma=0, radius=0, margin=0, high=9)
    three = auto_prompt(scattered(), components="all_above", **exact)

    assert [box.tolist() for box in three.boxes] == [
        [[4, 5, 5], [16, 20, 20]],
        [[4, 40, 50], [16, 52, 60]],
        [[8, 40, 8], [12, 46, 14]],
    ]
    np.testing.assert_array_equal(three.box, three.boxes[0])
    assert len(auto_prompt(scattered(), components=2, **exact).boxes) == 2
    assert len(auto_prompt(scattered(), components=7, **exact).boxes) == 3
    above = auto_prompt(scattered(), components="all_above", min_voxels=145, **exact)
    assert len(above.boxes) == 2  # the smallest has 4 x 6 x 6 = 144 voxels


@pytest.mark.parametrize("components", ["largest", 1, 5, "all_above"])
def test_the_first_box_does_not_depend_on_how_many_are_asked_for(components):
    image = blobs((9, 40, 51), 8)

    np.testing.assert_array_equal(
        auto_prompt(image, components=components).box, auto_prompt(image).box
    )


def test_min_voxels_applies_to_the_largest_component_too():
    proposal = auto_prompt(scattered(), min_voxels=10**6)

    assert (proposal.box, proposal.reason) == (None, "no_component")


def test_boxes_are_integers():
    assert np.issubdtype(auto_prompt(blobs((9, 20, 31))).box.dtype, np.integer)


def test_the_defaults_are_the_papers():
    prompter = IntensityPrompter()

    assert (prompter.sigma, prompter.low, prompter.high) == (2.0, 0.5, 2.0)
    assert (prompter.radius, prompter.margin, prompter.components) == (3, 5, "largest")
    assert AUTO_PROMPTERS.get("intensity") is IntensityPrompter


# bad input


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5)), r"three-dimensional \(z, y, x\), found shape \(4, 5\).*\(1, y, x\)"),
        (np.zeros((1, 4, 5, 6)), r"three-dimensional .* found shape \(1, 4, 5, 6\); prompt one"),
        (np.float32(3), r"three-dimensional"),
        (np.zeros((0, 4, 5)), r"the image is empty: shape \(0, 4, 5\)"),
        (np.zeros((2, 3, 4), complex), "must hold real numbers, found complex128"),
        (np.full((2, 3, 4), "a"), "must hold real numbers, found <U1"),
        (np.full((2, 3, 4), None), "must hold real numbers, found object"),
        (np.full((2, 3, 4), np.nan), "24 voxels that are NaN or infinite, of 24"),
        (np.array([[[1.0, np.inf, 2.0]]]), "1 voxels that are NaN or infinite, of 3"),
        (np.array([[[1.0, -np.inf, np.nan]]]), "2 voxels that are NaN or infinite, of 3"),
        (np.array([[[-1000, 40]]]), r"in \[0, 255\], found -1000 to 40; normalize"),
        (np.array([[[0.0, 255.5]]]), r"in \[0, 255\], found 0 to 255.5"),
    ],
)
def test_images_that_cannot_be_prompted_say_why(image, message):
    with pytest.raises(ValueError, match=message):
        auto_prompt(image)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sigam": 2}, "has no parameter 'sigam'; its parameters: sigma, low, high, radius"),
        ({"a": 1, "b": 2}, "has no parameter 'a', 'b'"),
        ({"sigma": -1}, "sigma must be voxels, at least 0, found -1"),
        ({"sigma": "2"}, "sigma must be .* found '2'"),
        ({"sigma": np.nan}, "sigma must be"),
        ({"low": None}, "low must be standard deviations, found None"),
        ({"low": 2.0}, r"high must be standard deviations above low \(2.0\), found 2.0"),
        ({"high": np.inf}, "high must be"),
        ({"radius": -3}, "radius must be voxels, at least 0, found -3"),
        ({"margin": 1.5}, "margin must be whole voxels, at least 0, found 1.5"),
        ({"margin": -1}, "margin must be whole voxels"),
        ({"margin": True}, "margin must be whole voxels"),
        ({"min_voxels": -1}, "min_voxels must be whole voxels"),
        ({"components": 0}, "components must be 'largest', 'all_above' or a whole number"),
        ({"components": 1.5}, "components must be"),
        ({"components": "smallest"}, "components must be .* found 'smallest'"),
    ],
)
def test_parameters_that_make_no_sense_say_why(parameters, message):
    with pytest.raises(ValueError, match=message):
        auto_prompt(blobs((5, 6, 7)), **parameters)


def test_an_unknown_strategy_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown automatic prompt 'magic'; registered: .*inten"):
        auto_prompt(blobs((5, 6, 7)), strategy="magic")


def test_a_strategy_that_needs_a_fit_says_so():
    with pytest.raises(ValueError, match="'atlas' needs .* promptseg_plan fits on training cases"):
        auto_prompt(blobs((5, 6, 7)), strategy="atlas")


@pytest.mark.parametrize("spacing", [(1, 1), (1, 0, 1), (1, -1, 1), (1, np.nan, 1), 1.0])
def test_spacing_that_makes_no_sense_says_so(spacing):
    with pytest.raises(ValueError, match="spacing must be three positive numbers of mm, zyx"):
        auto_prompt(blobs((5, 6, 7)), spacing=spacing)


def test_importing_automatic_prompts_imports_neither_torch_nor_matplotlib():
    import subprocess
    import sys

    code = (
        "import sys, promptseg.prompts.automatic;"
        "print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
