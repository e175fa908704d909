"""Checks of prompts, their change of grid, and their file."""

from __future__ import annotations

import numpy as np
import pytest

from promptseg.files import read_json, write_json
from promptseg.preprocessing.resample import scale_coordinates
from promptseg.prompts.types import (
    make_prompts,
    prompts_from_json,
    read_prompts_file,
    write_prompts_file,
)

SHAPE = (6, 20, 31)
BOX = [[1, 2, 3], [4, 8.5, 30]]


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
