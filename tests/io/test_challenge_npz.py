from __future__ import annotations

import logging

import numpy as np
import pytest

from promptseg.io.case_files import cases_in_folder
from promptseg.io.challenge_npz import npz_prompts, read_npz_prompts, spacing_zyx, write_npz_labels
from promptseg.io.images import Geometry, count_channels, read_image, read_segmentation, write_image
from tests.real_data import require_real_data

SHAPE = (3, 6, 5)
BOX = {
    **{"z_min": 0, "z_max": 1, "z_mid": 1},
    **{"z_mid_y_min": 2, "z_mid_y_max": 4, "z_mid_x_min": 1, "z_mid_x_max": 3},
}


def save(path, **arrays):
    content = {"imgs": np.arange(90, dtype=np.uint8).reshape(SHAPE), "spacing": [0.7, 0.7, 4.0]}
    np.savez_compressed(path, **content | arrays)
    return path


def test_an_image_has_the_spacing_of_its_axes(tmp_path):
    image, geometry = read_image(save(tmp_path / "a.npz"))
    np.testing.assert_array_equal(image, np.arange(90).reshape(1, *SHAPE))
    assert image.dtype == np.uint8
    assert geometry == Geometry(shape=SHAPE, spacing=(4.0, 0.7, 0.7))
    assert count_channels(tmp_path / "a.npz") == 1


@pytest.mark.parametrize(
    ("written", "order", "zyx", "warns"),
    [
        ((0.7, 0.7, 4), "auto", (4, 0.7, 0.7), False),
        ((4, 0.7, 0.7), "auto", (4, 0.7, 0.7), False),
        ((1, 1, 1), "auto", (1, 1, 1), False),
        ((0.7, 0.7001, 4), "auto", (4, 0.7001, 0.7), False),
        ((0.7, 4, 0.7), "auto", (0.7, 4, 0.7), False),
        ((0.7, 0.8, 4), "auto", (4, 0.8, 0.7), True),
        ((4, 0.8, 0.7), "auto", (0.7, 0.8, 4), True),
        ((4, 0.7, 0.7), "xyz", (0.7, 0.7, 4), False),
        ((0.7, 0.7, 4), "zyx", (0.7, 0.7, 4), False),
    ],
)
def test_the_order_of_a_spacing_is_guessed_or_given(written, order, zyx, warns, caplog):
    with caplog.at_level(logging.WARNING, logger="promptseg"):
        assert spacing_zyx(np.array(written), order, "a.npz") == zyx
    assert ("a.npz: spacing" in caplog.text and "--spacing-order" in caplog.text) == warns


@pytest.mark.parametrize(
    "spacing",
    [(1, 1), (1, 1, 1, 1), (0, 1, 1), (-1, 1, 1), (np.nan, 1, 1), (np.inf, 1, 1), 1, ("a",) * 3],
)
def test_other_spacings_are_refused(tmp_path, spacing):
    file = save(tmp_path / "a.npz", spacing=spacing)
    with pytest.raises(ValueError, match=r"a\.npz: spacing: expected three positive numbers"):
        read_image(file)


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match="spacing order 'yxz': expected one of auto, xyz, zyx"):
        spacing_zyx((1, 1, 1), "yxz")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"imgs": np.zeros((3, 4), np.uint8)}, r"imgs: expected three dimensions .* \(3, 4\)"),
        ({"imgs": np.zeros((3, 4, 5, 3), np.uint8)}, r"imgs: expected three dimensions"),
        (
            {"imgs": np.zeros((3, 0, 5), np.uint8)},
            r"imgs: .* none of them empty, found shape \(3, 0, 5\)",
        ),
        ({"imgs": np.array(["a"])}, "imgs: expected an array of numbers"),
        ({"imgs": np.array([{}], object)}, "imgs: expected an array of numbers"),
    ],
)
def test_images_of_other_kinds_are_refused(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=rf"a\.npz: {message}"):
        read_image(save(tmp_path / "a.npz", **arrays))


def test_a_file_without_the_array_lists_what_it_has(tmp_path):
    np.savez(tmp_path / "a.npz", gts=np.zeros(SHAPE, np.uint8), other=1)
    with pytest.raises(ValueError, match=r"a\.npz: expected an array imgs, found gts, other"):
        read_image(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="expected an array segs or gts, found imgs, spacing"):
        read_segmentation(save(tmp_path / "b.npz"))


def test_predictions_come_before_ground_truth(tmp_path):
    truth, prediction = np.zeros(SHAPE, np.int64), np.ones(SHAPE, np.uint8)
    file = save(tmp_path / "a.npz", gts=truth)
    np.testing.assert_array_equal(read_segmentation(file)[0], truth)
    file = save(tmp_path / "a.npz", gts=truth, segs=prediction)
    np.testing.assert_array_equal(read_segmentation(file)[0], prediction)


@pytest.mark.parametrize("spacing", [(4, 0.7, 0.8), (0.8, 0.8, 5), (5, 0.8, 0.8), (1, 1, 2)])
@pytest.mark.parametrize(("highest", "dtype"), [(0, "uint8"), (255, "uint8"), (256, "uint16")])
def test_a_segmentation_survives_a_round_trip(tmp_path, spacing, highest, dtype, caplog):
    segmentation = np.arange(90).reshape(SHAPE).astype(np.int32) % (highest + 1)
    segmentation[0, 0, 1] = highest
    geometry = Geometry(shape=SHAPE, spacing=spacing)

    write_image(tmp_path / "a.npz", segmentation, geometry)
    found, found_geometry = read_segmentation(tmp_path / "a.npz")

    np.testing.assert_array_equal(found, segmentation)
    assert found_geometry == geometry and not caplog.text
    with np.load(tmp_path / "a.npz") as content:  # as the challenge's script reads it
        assert content["segs"].dtype == dtype
        np.testing.assert_array_equal(content["segs"], segmentation)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(SHAPE, -1), "labels -1 to -1 do not fit into uint16"),
        (np.full(SHAPE, 70000), "labels 70000 to 70000 do not fit"),
        (np.zeros(SHAPE, np.float32), r"found float32 of shape \(3, 6, 5\)"),
        (np.zeros(SHAPE[1:], np.uint8), r"found uint8 of shape \(6, 5\)"),
    ],
)
def test_what_the_challenge_cannot_hold_is_not_written(tmp_path, labels, message):
    with pytest.raises(ValueError, match=rf"a\.npz: .*{message}"):
        write_npz_labels(tmp_path / "a.npz", labels)
    assert not list(tmp_path.iterdir())


def test_a_number_at_the_end_of_a_name_is_no_channel(tmp_path):
    for name in ("CT_AMOS_amos_0000", "CT_AMOS_amos_0018"):
        save(tmp_path / f"{name}.npz")
    cases, notes, problems = cases_in_folder(tmp_path, 1)
    assert [case.case_id for case in cases] == ["CT_AMOS_amos_0000", "CT_AMOS_amos_0018"]
    assert not notes and not problems
    cases, _, _ = cases_in_folder(tmp_path / "CT_AMOS_amos_0018.npz", 1)
    assert [case.case_id for case in cases] == ["CT_AMOS_amos_0018"]
    _, _, problems = cases_in_folder(tmp_path, 2)
    assert len(problems) == 2 and "holds 1 channel(s)" in problems["CT_AMOS_amos_0018"]


def test_boxes_and_clicks_become_half_open_boxes_and_points():
    # z 0..1, y 2..4, x 1..3 inclusive.
    content = {
        "boxes": [BOX, BOX | {"z_max": 2}],
        "clicks": [{"fg": [[1, 2, 3]], "bg": [[0, 0, 4], [2, 5, 0]]}, {"fg": [], "bg": []}],
    }
    assert npz_prompts(content) == {
        1: {
            "boxes": [[[0, 2, 1], [2, 5, 4]]],
            "points": [[1, 2, 3], [0, 0, 4], [2, 5, 0]],
            "point_labels": [1, 0, 0],
        },
        2: {"boxes": [[[0, 2, 1], [3, 5, 4]]], "points": [], "point_labels": []},
    }


def test_the_texts_give_the_label_values_of_boxes_and_clicks():
    texts = {"11": "spleen", "2": "liver", "instance_label": 0}
    assert list(npz_prompts({"boxes": [BOX, BOX], "text_prompts": texts})) == [2, 11]
    assert list(npz_prompts({"clicks": [{}, {}, {}], "text_prompts": texts})) == [1, 2, 3]
    assert npz_prompts({"text_prompts": texts}) == {} == npz_prompts({})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"boxes": 1}, "boxes: expected a list of dicts, found 1"),
        ({"boxes": [[1, 2]]}, "boxes: expected a list of dicts"),
        ({"boxes": [{}]}, r"boxes\[0\]: expected a field 'z_min', found \[\]"),
        ({"boxes": [BOX | {"z_min": "a"}]}, r"boxes\[0\]: expected whole numbers"),
        ({"boxes": [BOX | {"z_min": 0.5}]}, r"boxes\[0\]: expected whole numbers"),
        ({"boxes": [BOX | {"z_max": np.inf}]}, r"boxes\[0\]: expected whole numbers"),
        ({"boxes": [BOX | {"z_max": np.nan}]}, r"boxes\[0\]: expected whole numbers"),
        ({"boxes": [BOX | {"z_max": None}]}, r"boxes\[0\]: expected whole numbers"),
        ({"boxes": [BOX], "clicks": [{}, {}]}, "boxes for 1 labels, but clicks for 2"),
        ({"clicks": [{"fg": [[1, 2]]}]}, r"clicks\[0\]: fg: expected \[\[z, y, x\], ...\]"),
        ({"clicks": [{"bg": "text"}]}, r"clicks\[0\]: bg: expected \[\[z, y, x\], ...\]"),
        ({"clicks": [{"fg": [["a", 1, 2]]}]}, r"clicks\[0\]: fg: expected"),
        ({"clicks": [{"fg": [None]}]}, r"clicks\[0\]: fg: expected"),
        ({"clicks": ["x"]}, "clicks: expected a list of dicts"),
        ({"boxes": [BOX], "text_prompts": {"liver": 1}}, "text_prompts: expected {'1': TEXT"),
        ({"boxes": [BOX], "text_prompts": 5}, "text_prompts: expected {'1': TEXT"),
        ({"boxes": [BOX], "text_prompts": "liver"}, "text_prompts: expected {'1': TEXT"),
    ],
)
def test_malformed_prompts_are_refused(content, message):
    with pytest.raises(ValueError, match=f"a: {message}"):
        npz_prompts(content, "a")


def test_boxes_of_a_challenge_file_hold_their_structures():
    # The challenge cuts a box from the middle slice and widens it, so it holds that slice's voxels.
    folder = require_real_data("npz")
    labels, geometry = read_segmentation(folder / "CT_AMOS_amos_0018_gt.npz")
    image, image_geometry = read_image(folder / "CT_AMOS_amos_0018_img.npz")
    prompts = read_npz_prompts(folder / "CT_AMOS_amos_0018_img.npz")

    assert image.dtype == np.uint8 and image[0].shape == labels.shape
    assert geometry.difference_from(image_geometry) is None
    assert geometry.spacing == pytest.approx((5.0, 0.846, 0.846))
    assert list(prompts) == list(range(1, 16))
    for value, entry in prompts.items():
        ((lower, upper),) = np.array(entry["boxes"])
        places = np.argwhere(labels == value)
        assert (lower[0], upper[0]) == (places[:, 0].min(), places[:, 0].max() + 1)
        slices = np.unique(places[:, 0])
        middle = places[places[:, 0] == slices[len(slices) // 2]][:, 1:]
        assert (middle >= lower[1:]).all() and (middle < upper[1:]).all()
