"""TIFF, PNG and BMP against tifffile and Pillow, in the layouts of nnU-Net's readers."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import tifffile
from PIL import Image

from promptseg.evaluation.inputs import label_files
from promptseg.inference.batch.case import target
from promptseg.io.case_files import RawCase, cases_in_folder
from promptseg.io.dataset import problems_of_content
from promptseg.io.geometry import Geometry
from promptseg.io.images import count_channels, read_image, read_segmentation, write_image
from promptseg.prompts.image_files import find_images

SHAPE = (4, 5, 7)
GRAY = {"photometric": "minisblack"}
TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64")


def noise(shape=SHAPE, dtype="uint16"):
    return (np.random.default_rng(3).random(shape) * 120).astype(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("ending", [".tif", ".tiff", ".TIF"])
def test_a_stack_is_read_in_its_dtype_with_the_spacing_beside_it(tmp_path, dtype, ending):
    path = tmp_path / f"case_0000{ending}"
    tifffile.imwrite(path, noise(dtype=dtype), **GRAY)
    (tmp_path / "case.json").write_text('{"spacing": [2.5, 0.8, 0.7]}')  # as nnU-Net has it
    array, geometry = read_image(path)
    np.testing.assert_array_equal(array, noise(dtype=dtype)[None])
    assert array.dtype == dtype and count_channels(path) == 1
    assert geometry == Geometry(shape=SHAPE, spacing=(2.5, 0.8, 0.7))


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True},
        {"byteorder": ">"},
        {"bigtiff": True},
        {"tile": (16, 16)},
        {"rowsperstrip": 2},
        {"metadata": None},
    ],
)
def test_however_a_stack_is_stored_its_values_are_the_same(tmp_path, options):
    tifffile.imwrite(tmp_path / "a.tif", noise(), **GRAY, **options)
    array, _ = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(array[0], noise())
    assert array.dtype.isnative and array.flags.c_contiguous


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        ("ZYX", (4, 5, 7), (1, 4, 5, 7)),
        ("YX", (5, 7), (1, 1, 5, 7)),
        ("CYX", (3, 5, 7), (3, 1, 5, 7)),
        ("ZCYX", (4, 3, 5, 7), (3, 4, 5, 7)),
        ("TZCYX", (1, 4, 2, 5, 7), (2, 4, 5, 7)),
    ],
)
def test_axes_that_imagej_names_are_slices_and_channels(tmp_path, axes, shape, expected):
    values = noise(shape)
    tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, metadata={"axes": axes})
    array, _ = read_image(tmp_path / "a.tif")
    assert array.shape == expected
    if axes == "ZCYX":
        values = np.moveaxis(values, 1, 0)
    if axes == "TZCYX":
        values = np.moveaxis(values[0], 1, 0)
    np.testing.assert_array_equal(array, values.reshape(expected))


def test_masks_of_one_bit_are_0_and_1(tmp_path):
    mask = noise() > 60
    tifffile.imwrite(tmp_path / "a.tif", mask)
    Image.fromarray(mask[0]).save(tmp_path / "a.png")
    found, _ = read_segmentation(tmp_path / "a.tif")
    np.testing.assert_array_equal(found, mask)
    assert (read_image(tmp_path / "a.png")[0][0, 0] > 0).tolist() == mask[0].tolist()


@pytest.mark.parametrize(
    ("channels", "dtype", "ending"),
    [
        *((1, "uint8", ending) for ending in (".png", ".bmp", ".tif")),
        *((3, "uint8", ending) for ending in (".png", ".bmp", ".tif")),
        *((4, "uint8", ending) for ending in (".png", ".tif")),
        *((1, "uint16", ending) for ending in (".png", ".tif")),
    ],
)
def test_a_picture_has_depth_1_and_its_colours_as_channels(tmp_path, channels, dtype, ending):
    values = noise((5, 7, channels) if channels > 1 else (5, 7), dtype)
    Image.fromarray(values).save(tmp_path / f"case{ending}")
    array, geometry = read_image(tmp_path / f"case{ending}")
    expected = np.moveaxis(values.reshape(5, 7, channels), -1, 0)[:, None]
    np.testing.assert_array_equal(array, expected)
    assert array.dtype == dtype and geometry == Geometry(shape=(1, 5, 7), spacing=(1, 1, 1))
    assert count_channels(tmp_path / f"case{ending}") == channels


def test_a_stack_of_colours_has_three_channels(tmp_path):
    values = noise((*SHAPE, 3), "uint8")
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[0], np.moveaxis(values, -1, 0))


def test_a_picture_of_three_colours_is_a_case_of_three_channels(tmp_path):
    Image.fromarray(noise((5, 7, 3), "uint8")).save(tmp_path / "case.png")
    (tmp_path / "case.json").write_text('{"spacing": [1, 2, 3]}')
    [case], _, problems = cases_in_folder(tmp_path, channel_count=3)
    assert case.case_id == "case" and not problems
    assert read_image(case.images)[1].spacing == (1, 2, 3)


def test_screenshots_beside_volumes_are_no_cases(tmp_path):
    grid = Geometry(shape=SHAPE, spacing=(2.5, 0.8, 0.7))
    for name in ("a.png", "b.png", "c.BMP"):
        Image.fromarray(noise((5, 7), "uint8")).save(tmp_path / name)
    assert [case.case_id for case in cases_in_folder(tmp_path, 1)[0]] == ["a", "b", "c"]
    assert set(find_images(tmp_path)) == set(label_files(tmp_path, "masks")[0]) == {"a", "b", "c"}
    write_image(tmp_path / "a.nii.gz", noise(dtype="uint8"), grid)
    [case], notes, problems = cases_in_folder(tmp_path, channel_count=1)
    assert case.images == (tmp_path / "a.nii.gz",) and not problems
    assert "3 file(s) or folder(s) are not images and are ignored: a.png, b.png, c.BMP" in notes[-1]
    assert find_images(tmp_path) == {"a": tmp_path / "a.nii.gz"}
    assert label_files(tmp_path, "masks") == ({"a": tmp_path / "a.nii.gz"}, {})


@pytest.mark.parametrize("ending", [".tif", ".tiff", ".png", ".bmp"])
def test_a_dataset_may_have_the_ending(ending):
    content = {"channel_names": {"0": "R"}, "labels": {"background": 0, "a": 1}}
    assert problems_of_content({**content, "file_ending": ending}) == []


@pytest.mark.parametrize("highest", [1, 255, 256, 65535])
def test_a_stack_of_labels_is_written_as_nnunet_writes_it(tmp_path, highest):
    labels = noise() % 2 * highest
    geometry = Geometry(shape=SHAPE, spacing=(2.5, 0.8, 0.7))
    write_image(tmp_path / "case.tif", labels.astype(np.int32), geometry)
    written = tifffile.imread(tmp_path / "case.tif")
    np.testing.assert_array_equal(written, labels)
    assert written.dtype == (np.uint8 if highest < 256 else np.uint16)
    assert json.loads((tmp_path / "case.json").read_text()) == {"spacing": [2.5, 0.8, 0.7]}
    found, grid = read_segmentation(tmp_path / "case.tif")
    np.testing.assert_array_equal(found, labels)
    assert grid == geometry


@pytest.mark.parametrize("ending", [".tif", ".tiff", ".png", ".bmp"])
def test_a_prediction_is_written_as_its_image(tmp_path, ending):
    case = RawCase(case_id="case", images=(tmp_path / f"case_0000{ending}",), label=None)
    assert target(case, tmp_path) == tmp_path / f"case{ending}"


@pytest.mark.parametrize(("ending", "highest"), [(".png", 3), (".png", 300), (".bmp", 255)])
def test_labels_of_one_slice_are_written_as_a_picture(tmp_path, ending, highest):
    labels = noise((1, 5, 7)) % 2 * highest
    write_image(tmp_path / f"a{ending}", labels, Geometry(shape=(1, 5, 7), spacing=(1, 1, 1)))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"a{ending}")), labels[0])
    np.testing.assert_array_equal(read_segmentation(tmp_path / f"a{ending}")[0], labels)
    assert [path.name for path in tmp_path.iterdir()] == [f"a{ending}"]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("a.png", np.zeros(SHAPE, np.uint8), "holds one slice, found 4; write .tif or .nii.gz"),
        ("a.bmp", np.full((1, 5, 7), 300), "holds labels up to 255, found 300; write .png"),
        ("a.tif", np.full(SHAPE, 2**16), "expected labels from 0 to 65535"),
        ("a.tif", np.full(SHAPE, -1), "expected labels from 0 to 65535"),
        ("a.tif", np.full(SHAPE, 0.5), "expected labels from 0 to 65535"),
    ],
)
def test_what_a_picture_cannot_hold_is_not_written(tmp_path, name, values, message):
    with pytest.raises(ValueError, match=message):
        write_image(tmp_path / name, values, Geometry(shape=values.shape, spacing=(1, 1, 1)))
    assert list(tmp_path.iterdir()) == []


def test_a_stack_without_spacing_is_warned_of(tmp_path, caplog):
    tifffile.imwrite(tmp_path / "case_0000.tif", noise(), **GRAY)
    with caplog.at_level(logging.WARNING):
        assert read_image(tmp_path / "case_0000.tif")[1].spacing == (1, 1, 1)
    assert "no case_0000.json or case.json beside it; voxels are taken as 1 mm" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        *('{"spacing": [1, 2]}', '{"spacing": [1, 2, 0]}', '{"spacing": [1, 2, -3]}', "[1, 2, 3]"),
        *('{"spacing": "1 2 3"}', '{"spacing": [1, 2, NaN]}', '{"spacing": [1, 2, Infinity]}'),
        *('{"other": 1}', '{"spacing": [1, 2, "3"]}', '{"spacing": [1, 2, 3', ""),
    ],
)
def test_other_than_three_positive_numbers_are_no_spacing(tmp_path, content):
    tifffile.imwrite(tmp_path / "case.tif", noise(), **GRAY)
    (tmp_path / "case.json").write_text(content)
    with pytest.raises(ValueError, match=r"case\.json"):
        read_image(tmp_path / "case.tif")


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("metadata", [{}, None])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_a_cut_stack_is_refused_or_whole(tmp_path, compression, metadata, bigtiff):
    path, values = tmp_path / "a.tif", noise((6, 30, 41))
    options = {"compression": compression, "metadata": metadata, "bigtiff": bigtiff}
    tifffile.imwrite(path, values, **GRAY, **options)
    whole = path.read_bytes()
    for length in (1, 9, 20, 300, len(whole) // 4, len(whole) // 2, len(whole) - 200):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.tif is damaged or cut short"):
            read_image(path)
    for length in range(len(whole) - 30, len(whole)):
        path.write_bytes(whole[:length])
        try:
            np.testing.assert_array_equal(read_image(path)[0][0], values)
        except ValueError as error:
            assert "a.tif is damaged or cut short" in str(error)


@pytest.mark.parametrize("ending", [".png", ".bmp"])
def test_a_cut_picture_is_refused_by_name(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    Image.fromarray(noise((50, 41), "uint8")).save(path)
    whole = path.read_bytes()
    for length in (1, 30, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.[a-z]+ is damaged or cut short"):
            read_image(path)


def test_pages_and_axes_that_are_no_volume_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(noise((5, 7)), **GRAY)
        file.write(noise((6, 8)), **GRAY)
    with pytest.raises(ValueError, match=r"a\.tif: its pages make 2 images"):
        read_image(path)
    tifffile.imwrite(path, noise((3, 4, 5, 7)), imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(ValueError, match=r"a\.tif: expected slices and channels.*axes TZYX"):
        read_image(path)
    tifffile.imwrite(path, noise().astype(np.complex64), **GRAY)
    with pytest.raises(ValueError, match=r"a\.tif: voxels of type complex64"):
        read_image(path)
    (tmp_path / "b.png").write_bytes(path.read_bytes())  # of another format than its name says
    with pytest.raises(ValueError, match=r"b\.png"):
        read_image(tmp_path / "b.png")
