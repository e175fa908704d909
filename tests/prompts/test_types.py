"""Checks of prompts, their change of grid, and their file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptseg.files import read_json, write_json
from promptseg.preprocessing.resample import scale_coordinates
from promptseg.prompts.checks import lasso_slice
from promptseg.prompts.names import is_unnamed, label_of_value, object_number
from promptseg.prompts.types import (
    Prompts,
    joined,
    make_prompts,
    prompts_from_json,
    read_prompts_file,
    write_prompts_file,
)

SHAPE = (6, 20, 31)
BOX = [[1, 2, 3], [4, 8.5, 30]]
LINE = [[1, 2, 3], [4, 5.5, 30]]
LASSO = [[2, 3, 4], [2, 15.5, 4], [2, 9, 28]]


def test_prompts_become_arrays_and_boxes_are_clipped():
    prompts = make_prompts(
        boxes=[BOX, [[-4, 0, 5], [99, 3, 31]]], points=(5, 19.4, -0.5), shape=SHAPE, score=0.7
    )
    assert prompts.boxes.tolist() == [BOX, [[0, 0, 5], [6, 3, 31]]]
    assert prompts.points.tolist() == [[5, 19.4, -0.5]]  # the last voxel reaches to its far face
    assert prompts.point_labels.tolist() == [1]
    assert (prompts.source, prompts.score, prompts.reason) == ("user", 0.7, "ok")
    assert not prompts.is_empty
    assert make_prompts(boxes=BOX, shape=SHAPE).boxes.shape == (1, 2, 3)


@pytest.mark.parametrize("nothing", [None, [], np.zeros((0, 2, 3))])
def test_nothing_is_a_prompt_too(nothing):
    prompts = make_prompts(boxes=nothing, points=None, point_labels=None, shape=SHAPE)
    assert prompts.is_empty and prompts.boxes.shape == (0, 2, 3) and prompts.points.shape == (0, 3)
    assert not make_prompts(points=[[1, 1, 1]], shape=SHAPE).is_empty


BAD = [
    ({"boxes": [1, 2, 3]}, r"boxes: expected shape \(n, 2, 3\), found \(3,\)"),
    ({"boxes": [[1, 2, 3]]}, r"boxes: expected shape \(n, 2, 3\), found \(1, 3\)"),
    ({"boxes": [[[1, 2], [3, 4]]]}, r"boxes: expected shape \(n, 2, 3\)"),
    ({"boxes": 5}, r"boxes: expected shape \(n, 2, 3\), found \(\)"),
    ({"boxes": {"lower": [1, 2, 3]}}, "boxes: expected numbers, found"),
    ({"boxes": [["a", 2, 3], [4, 5, 6]]}, "boxes: expected numbers"),
    ({"boxes": [[1, 2, 3], [4, 5]]}, "boxes: expected numbers"),
    ({"boxes": [[1, 2, float("inf")], [4, 5, 6]]}, "boxes: must be finite"),
    ({"boxes": [[1, 2, 3], [4, 2, 6]]}, "is empty; corners are lower and upper, zyx"),
    ({"boxes": [BOX, [[4, 5, 6], [1, 2, 3]]]}, r"box \[\[4.0, 5.0, 6.0\], .* is empty"),
    ({"boxes": [[7, 2, 3], [9, 5, 6]]}, r"lies outside the image of shape \(6, 20, 31\) .*as xyz"),
    ({"boxes": [[-3, 2, 3], [0, 5, 6]]}, "lies outside the image"),
    ({"points": [[1, 2]]}, r"points: expected shape \(n, 3\), found \(1, 2\)"),
    ({"points": [[[1, 2, 3]]]}, r"points: expected shape \(n, 3\)"),
    ({"points": [[1, 2, None]]}, "points: (must be finite|expected numbers)"),
    ({"points": [[1, 2, 3], [31, 20, 6]]}, r"1 of 2 point prompts .* first \[31.0, 20.0, 6.0\]"),
    ({"points": [[-0.6, 2, 3]]}, "1 of 1 point prompts lie outside the image"),
    ({"points": [[1, 2, 3]], "point_labels": []}, "1 points need as many labels"),
    ({"points": [[1, 2, 3]], "point_labels": [-1]}, "1 points need as many labels, each 1"),
    ({"points": [[1, 2, 3]], "point_labels": ["1"]}, "1 points need as many labels"),
    ({"points": [[1, 2, 3]], "point_labels": 1}, "1 points need as many labels"),
    ({"point_labels": [1, 0]}, "0 points need as many labels"),
    ({"scribbles": 3}, "scribbles: expected lists of z, y, x, found 3"),
    ({"scribbles": [[1, 2, 3], [4, 5]]}, "scribble 1: expected numbers"),
    ({"scribbles": [LINE, []]}, r"scribble 2 needs 1 position\(s\) or more, z, y, x each, found 0"),
    ({"scribbles": [[[1, 2]]]}, r"scribble 1: expected shape \(n, 3\), found \(1, 2\)"),
    ({"scribbles": [LINE, [[1, 2, np.nan]]]}, "scribble 2: must be finite"),
    ({"scribbles": [LINE, [[1, 2, 3], [6, 2, 3]]]}, r"1 of 2 positions of scribble 2 lie outside"),
    ({"scribbles": [LINE, LINE], "scribble_labels": [1]}, "2 scribbles need as many labels"),
    ({"scribbles": [LINE], "scribble_labels": [2]}, r"1 scribbles need as many .* found \[2\]"),
    ({"scribble_labels": [0]}, "0 scribbles need as many labels"),
    ({"lassos": [LINE]}, r"lasso 1 needs 3 position\(s\) or more, z, y, x each, found 2"),
    ({"lassos": "around"}, "lassos: expected lists of z, y, x, found 'around'"),
    ({"lassos": [[[1, 2, 3, 4]] * 3]}, r"lasso 1: expected shape \(n, 3\), found \(3, 4\)"),
    ({"lassos": [[[1, 2, 3], [1, 9, 3], [1, 9, 31]]]}, "1 of 3 vertices of lasso 1 lie outside"),
    (
        {"lassos": [LASSO, [[1, 2, 3], [1, 9, 3], [2, 9, 30]]]},
        "lasso 2 reaches over z 1 to 2, y 2 to 9, x 3 to 30; expected a polygon in one slice: all",
    ),
    ({"lassos": [[[1, 2, 3], [1, 4, 5], [1, 6, 7]]]}, "lasso 1 encloses nothing: its 3 vertices"),
    ({"lassos": [[[1, 2, 3]] * 4]}, "lasso 1 encloses nothing"),
    ({"mask": np.ones((20, 6, 31))}, r"mask: expected the shape .*\(6, 20, 31\) .*\(20, 6, 31\);"),
    ({"mask": [[1], [1, 2]]}, r"mask: expected the shape of the image.*found \(\)"),
    ({"mask": np.full(SHAPE, 2)}, r"mask: expected true and false, or 1 and 0, found int64 \[2\]"),
    ({"mask": np.full(SHAPE, np.nan)}, "mask: expected true and false.*found float64 .nan"),
    ({"mask": np.full(SHAPE, "x")}, "mask: expected true and false, or 1 and 0, found <U1"),
]


@pytest.mark.parametrize(("given", "message"), BAD)
def test_wrong_prompts_are_refused_and_the_error_says_where(given, message):
    with pytest.raises(ValueError, match=f"^here: .*{message}|^here: {message}"):
        make_prompts(**given, shape=SHAPE, where="here")


def test_scaling_keeps_every_prompt_on_the_same_place_of_the_image():
    prompts = make_prompts(
        boxes=BOX, points=[[0, 0, 0], [5, 19, 30]], point_labels=[1, 0], shape=SHAPE, reason="odd"
    )
    to_shape = (12, 10, 62)
    scaled = prompts.scaled(SHAPE, to_shape)
    # Factors 2, 1/2 and 2; the centre of voxel 0 is at 0.5, then at 1, 0.25 and 1.
    assert scaled.boxes.tolist() == [[[2, 1, 6], [8, 4.25, 60]]]
    assert scaled.points[0].tolist() == [0.5, -0.25, 0.5]
    np.testing.assert_allclose(scaled.boxes, scale_coordinates(prompts.boxes, SHAPE, to_shape))
    back = scaled.scaled(to_shape, SHAPE)
    np.testing.assert_allclose(back.points, prompts.points)
    np.testing.assert_allclose(back.boxes, prompts.boxes)
    assert scaled.point_labels.tolist() == [1, 0] and scaled.reason == "odd"


def test_prompts_survive_their_file(tmp_path):
    path = tmp_path / "prompts.json"
    prompts = make_prompts(
        boxes=[BOX, BOX], points=[[1, 2, 3.25]], point_labels=[0], shape=SHAPE,
        source="atlas", score=0.625, reason="small",
    )  # fmt: skip
    write_prompts_file(path, {"case": {"liver": prompts.to_json(), "spleen": {}}})
    content = read_prompts_file(path)
    read = prompts_from_json(content["case"]["liver"], SHAPE, "liver")
    assert read.to_json() == prompts.to_json()
    default = prompts_from_json(content["case"]["spleen"], SHAPE, "spleen")
    assert default.is_empty and default.source == "file" and default.score is None
    assert read_json(path)["frame"] == "voxel zyx"


GOOD_FILE = {"format_version": 1, "frame": "voxel", "axes": "zyx", "cases": {"a": {"liver": {}}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cases": None}, 'expected {"format_version": 1, "cases"'),
        ({"cases": [1]}, 'expected {"format_version": 1, "cases"'),
        ({"cases": {"a": [[1, 2, 3]]}}, "case 'a': expected {LABEL"),
        ({"cases": {"a": {"liver": [[1, 2, 3]]}}}, "case 'a': expected {LABEL"),
        ({"format_version": 2}, "expected format_version 1, found 2"),
        ({"format_version": None}, "expected format_version 1, found None"),
        ({"axes": "xyz"}, "expected axes 'zyx', found 'xyz'"),
        ({"frame": "world"}, "expected frame to be one of 'voxel zyx', .*, found 'world'"),
        ({"frame": "world mm"}, "expected frame 'voxel zyx', found 'world mm'"),
        ({"frame": ["voxel zyx"]}, "expected frame to be one of"),
        ({"Frame": "world mm"}, "unknown Frame; known: format_version, frame"),
    ],
)
def test_wrong_prompts_files_are_refused_by_name(tmp_path, changes, message):
    path = tmp_path / "prompts.json"
    write_json(path, {**GOOD_FILE, **changes})
    with pytest.raises(ValueError, match=f"prompts.json: {message}"):
        read_prompts_file(path)


def test_missing_and_damaged_files_and_unknown_fields_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_prompts_file(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"format_version": 1, "ca')
    with pytest.raises(ValueError, match=r"cut\.json"):
        read_prompts_file(tmp_path / "cut.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=r"list\.json: expected"):
        read_prompts_file(tmp_path / "list.json")
    with pytest.raises(ValueError, match="liver: unknown box, colour; known:"):
        prompts_from_json({"box": BOX, "colour": 1}, SHAPE, "liver")


def test_lines_and_masks_become_arrays():
    mask = np.zeros(SHAPE, np.uint8)
    mask[1, 2, 3] = 1
    prompts = make_prompts(
        scribbles=[LINE, [[0, 0, 0]]], scribble_labels=[1, 0], lassos=LASSO, mask=mask, shape=SHAPE
    )
    assert [line.tolist() for line in prompts.scribbles] == [LINE, [[0, 0, 0]]]
    assert prompts.scribble_labels.tolist() == [1, 0]
    assert [line.tolist() for line in prompts.lassos] == [LASSO]
    assert prompts.mask.dtype == bool and prompts.mask.sum() == 1 and prompts.mask[1, 2, 3]
    alone = make_prompts(scribbles=np.array(LINE), shape=SHAPE)
    assert [line.tolist() for line in alone.scribbles] == [LINE]
    assert alone.scribble_labels.tolist() == [1]


@pytest.mark.parametrize(
    "something", [{"scribbles": [[1, 2, 3]]}, {"lassos": LASSO}, {"mask": np.ones(SHAPE, bool)}]
)
def test_a_line_or_a_mask_alone_is_a_prompt(something):
    assert not make_prompts(**something, shape=SHAPE).is_empty


def test_a_mask_without_a_voxel_is_none():
    prompts = make_prompts(mask=np.zeros(SHAPE), shape=SHAPE)
    assert prompts.mask is None and prompts.is_empty


def test_what_knows_boxes_and_points_only_still_makes_prompts():
    prompts = Prompts(
        boxes=np.zeros((0, 2, 3)), points=np.ones((1, 3)), point_labels=np.ones(1, int)
    )
    assert prompts.scribbles == prompts.lassos == () and prompts.mask is None
    assert set(prompts.to_json()) == {
        "boxes", "points", "point_labels", "source", "score", "reason",
    }  # fmt: skip


@pytest.mark.parametrize(("axis", "index"), [(0, 5), (1, 0), (2, 30)])
def test_a_lasso_lies_in_a_slice_of_any_axis(axis, index):
    lasso = np.insert([[0, 0.25], [4, 1], [2, 5.0]], axis, index, axis=1)
    [found] = make_prompts(lassos=[lasso], shape=SHAPE).lassos
    assert lasso_slice(found) == (axis, index) and found.tolist() == lasso.tolist()
    # As it comes from mm: not quite in the voxels' centres, and to the far face of the last one.
    tilted = lasso + np.insert([[0.0, 0], [0, 0], [0, 0]], axis, [-0.3, 0.1, 0.45], axis=1)
    tilted[:, axis] = np.minimum(tilted[:, axis], SHAPE[axis] - 0.5)
    [found] = make_prompts(lassos=[tilted], shape=SHAPE).lassos
    assert found.tolist() == lasso.tolist()


def test_of_two_slices_a_lasso_lies_in_the_one_along_which_it_varies_least():
    flat = [[2, 3.2, 0], [2, 2.8, 8], [2, 3.1, 4]]  # within y 3 too, but exactly in z 2
    [found] = make_prompts(lassos=flat, shape=SHAPE).lassos
    assert found.tolist() == flat and lasso_slice(found) == (0, 2)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_lines_survive_json_and_another_grid(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(2, 40, 3).tolist())

    def positions(count: int) -> np.ndarray:
        found = rng.uniform(-0.5, np.array(shape) - 0.5, (count, 3))
        return np.clip(np.rint(found), 0, np.array(shape) - 1) if rng.integers(2) else found

    lasso, axis = positions(5), rng.integers(3)
    lasso[:, axis] = np.clip(np.rint(lasso[0, axis]), 0, shape[axis] - 1)
    across = [a for a in range(3) if a != axis]
    lasso[:3, across] = [[0, 0], [0, 1], [1, 0]]  # of some area
    prompts = make_prompts(
        scribbles=[positions(n) for n in rng.integers(1, 9, 3)], scribble_labels=[1, 0, 1],
        lassos=[lasso], shape=shape,
    )  # fmt: skip
    read = prompts_from_json(json.loads(json.dumps(prompts.to_json())), shape, "here")
    assert read.to_json() == {**prompts.to_json(), "source": "user"}
    to_shape = tuple(rng.integers(2, 60, 3).tolist())
    scaled = prompts.scaled(shape, to_shape)
    assert lasso_slice(scaled.lassos[0])[0] == axis
    for before, after in zip(prompts.scribbles, scaled.scribbles, strict=True):
        as_points = make_prompts(points=before, shape=shape).scaled(shape, to_shape).points
        np.testing.assert_array_equal(after, as_points)
    np.testing.assert_allclose(scaled.scaled(to_shape, shape).lassos, prompts.lassos, atol=1e-9)


def test_scaling_leaves_a_mask_as_it_is():
    mask = np.ones(SHAPE, bool)
    assert make_prompts(mask=mask, shape=SHAPE).scaled(SHAPE, (3, 3, 3)).mask is mask


def test_prompts_of_several_files_add_up():
    masks = np.zeros((2, *SHAPE), bool)
    masks[0, 0], masks[1, 1] = True, True
    one = make_prompts(boxes=BOX, scribbles=[LINE], mask=masks[0], shape=SHAPE, source="file")
    two = make_prompts(
        points=[[1, 2, 3]], point_labels=[0], scribbles=[LINE[:1]], scribble_labels=[0],
        lassos=LASSO, mask=masks[1], shape=SHAPE, source="user", reason="odd",
    )  # fmt: skip
    both = joined([one, two])
    assert both.boxes.tolist() == [BOX] and both.point_labels.tolist() == [0]
    assert both.scribble_labels.tolist() == [1, 0] and len(both.scribbles) == 2
    assert len(both.lassos) == 1 and (both.source, both.reason) == ("file, user", "odd")
    np.testing.assert_array_equal(both.mask, masks.any(axis=0))
    assert joined([one]) is one and joined([one, one]).source == "file"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("object", True), ("Object", True), ("object 2", True), ("object_2", True),
        ("object-2", True), ("object2", True), ("OBJECT tumour left", True), ("object ", True),
        ("objects", False), ("objective", False), ("an object", False), (" object", False),
        ("", False), ("liver", False), ("object 7", False), ("object\n", False),
    ],
)  # fmt: skip
def test_unnamed_objects_are_told_by_their_name(name, expected):
    assert is_unnamed(name, {"liver": 1, "object 7": 2}) == expected


def test_values_after_the_last_label_are_unnamed_objects():
    labels = {"lesion": 5, "liver": 1}
    names = {value: label_of_value(value, labels) for value in range(8)}
    assert {value: name for value, name in names.items() if name} == {
        1: "liver", 5: "lesion", 6: "object 1", 7: "object 2",
    }  # fmt: skip
    assert label_of_value(3, {}) == "object 3" and label_of_value(-1, labels) is None


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("object", 1), ("object 1", 1), ("Object_2", 2), ("object-12", 12), ("object3", 3),
        ("object left", None), ("object 2 left", None), ("objects", None), ("object ", 1),
    ],
)  # fmt: skip
def test_unnamed_objects_have_numbers(name, number):
    assert object_number(name) == number


@given(st.integers(6, 300))
def test_the_name_of_a_value_has_its_number(value):
    assert object_number(label_of_value(value, {"liver": 1, "lesion": 5})) == value - 5
