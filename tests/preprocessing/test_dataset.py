import json

import blosc2
import numpy as np
import pytest

from promptseg.preprocessing.dataset import (
    PreprocessedDataset,
    case_files,
    remove_case,
    write_case,
)


def volume(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """A folder with the cases b, a and c.1."""
    for seed, case_id in enumerate(("b", "a", "c.1")):
        image = volume((2, 7, 150, 131), seed)
        write_case(tmp_path, case_id, image, image[0] // 100, {"labels": {1: {"voxels": 3}}})
    return tmp_path


def test_what_is_written_is_read_back(folder):
    dataset = PreprocessedDataset(folder)

    assert dataset.case_ids == ["a", "b", "c.1"]
    image, segmentation = dataset.image("a"), dataset.segmentation("a")
    expected = volume((2, 7, 150, 131), 1)
    assert image.dtype == segmentation.dtype == np.uint8
    np.testing.assert_array_equal(image[:], expected)
    np.testing.assert_array_equal(segmentation[:], expected[0] // 100)
    assert dataset.properties("a")["labels"] == {1: {"voxels": 3}}


def test_patches_are_read_without_the_rest(folder):
    image = PreprocessedDataset(folder).image("b")

    patch = image[:, 2:5, 100:140, 3:131]

    assert isinstance(image, blosc2.NDArray) and isinstance(patch, np.ndarray)
    np.testing.assert_array_equal(patch, volume((2, 7, 150, 131), 0)[:, 2:5, 100:140, 3:131])
    assert image.chunks == (1, 7, 128, 128) and image.blocks == (1, 7, 64, 64)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 200), (70, 5, 6)])
def test_segmentations_of_every_type_and_shape_come_back(tmp_path, dtype, shape):
    segmentation = volume(shape).astype(dtype) // 50
    write_case(tmp_path, "x", volume((1, *shape)), segmentation, {"labels": {}})

    result = PreprocessedDataset(tmp_path).segmentation("x")

    assert result.dtype == dtype
    np.testing.assert_array_equal(result[:], segmentation)


def test_a_case_without_its_json_is_unfinished_and_not_listed(folder):
    case_files(folder, "b")[2].unlink()

    assert PreprocessedDataset(folder).case_ids == ["a", "c.1"]


def test_writing_that_fails_leaves_no_case_behind(folder):
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_case(folder, "a", volume((1, 2, 3, 4)), None, {"labels": object()})

    assert PreprocessedDataset(folder).case_ids == ["b", "c.1"]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_case_is_replaced_while_an_old_patch_reader_is_open(folder):
    old = PreprocessedDataset(folder).image("a")
    before = old[:]

    write_case(folder, "a", volume((1, 3, 4, 5), 9), None, {"labels": {}})

    np.testing.assert_array_equal(old[:], before)
    assert PreprocessedDataset(folder).image("a").shape == (1, 3, 4, 5)


def test_removing_a_case_removes_its_files_only(folder):
    remove_case(folder, "a")
    remove_case(folder, "never there")

    assert sorted(path.name for path in folder.iterdir()) == [
        *("b.b2nd", "b.json", "b_seg.b2nd"),
        *("c.1.b2nd", "c.1.json", "c.1_seg.b2nd"),
    ]


def test_what_is_missing_is_named_with_the_command_that_makes_it(folder):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder; `promptseg_plan` makes"):
        PreprocessedDataset(folder / "nowhere")
    dataset = PreprocessedDataset(folder)
    with pytest.raises(FileNotFoundError, match="z.b2nd: no such file; `promptseg_plan` makes it"):
        dataset.image("z")
    with pytest.raises(FileNotFoundError, match="z_seg.b2nd: no such file"):
        dataset.segmentation("z")
    with pytest.raises(FileNotFoundError, match="z.json: no such file; `promptseg_plan` makes it"):
        dataset.properties("z")


def damaged_files():
    good = blosc2.asarray(volume((1, 3, 4, 5))).to_cframe()
    return {
        "empty": b"",
        "short": good[:9],
        "cut in the header": good[:60],
        "cut in the data": good[: len(good) - 20],
        "text": b"this is not an array, whatever its name says" * 3,
        "huge header": good[:11] + b"\x7f\xff\xff\xff" + good[15:],
        "negative header": good[:11] + b"\xff\xff\xff\xff" + good[15:],
    }


@pytest.mark.parametrize("content", damaged_files().values(), ids=damaged_files().keys())
def test_a_damaged_file_is_named(folder, content):
    (folder / "a.b2nd").write_bytes(content)

    with pytest.raises(ValueError, match=r"a\.b2nd is damaged.*delete it, and `promptseg_plan`"):
        PreprocessedDataset(folder).image("a")


def test_an_array_of_other_dimensions_is_refused(folder):
    blosc2.asarray(volume((3, 4, 5)), urlpath=str(folder / "a.b2nd"), mode="w")

    with pytest.raises(ValueError, match="expected an array of 4 dimensions"):
        PreprocessedDataset(folder).image("a")


def test_a_file_that_holds_an_expression_is_never_opened(folder, monkeypatch):
    operand = blosc2.asarray(np.zeros((3, 4, 5)), urlpath=str(folder / "operand.b2nd"), mode="w")
    blosc2.lazyexpr("operand + 1", {"operand": operand}).save(str(folder / "a_seg.b2nd"))
    monkeypatch.setattr(blosc2, "open", lambda *_, **__: pytest.fail("the file was opened"))

    with pytest.raises(ValueError, match="(b2o|LazyArray).*it may hold code and is not opened"):
        PreprocessedDataset(folder).segmentation("a")


def test_a_properties_file_that_is_no_json_is_named(folder):
    (folder / "a.json").write_text("{")

    with pytest.raises(ValueError, match="a.json is not valid JSON"):
        PreprocessedDataset(folder).properties("a")


@pytest.mark.parametrize("name", ["", "..", "../victim", "a/../../victim", "/victim", "a/"])
def test_a_case_identifier_cannot_lead_out_of_the_folder(folder, name):
    with pytest.raises(ValueError, match="cannot be a case identifier: expected the name of a fi"):
        case_files(folder, name)
    with pytest.raises(ValueError, match="cannot be a case identifier"):
        write_case(folder, name, volume((1, 3, 4, 5)), None, {})


def test_properties_are_plain_json(folder):
    assert json.loads((folder / "a.json").read_text()) == {"labels": {"1": {"voxels": 3}}}
