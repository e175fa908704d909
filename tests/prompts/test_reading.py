"""Prompts of many cases from a file or a folder; what is wrong is all told and spoils one case."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from promptseg.evaluation.inputs import read_prompts
from promptseg.files import read_json, write_json
from promptseg.inference.batch.predict_files import predict_files
from promptseg.io.images import Geometry, read_image, write_image
from promptseg.prompts.reading import read_case_prompts
from promptseg.prompts.types import read_prompts_file, write_prompts_file
from promptseg.prompts.world import voxel_to_world
from tests.inference.batch.test_predict_files import GEOMETRY
from tests.inference.test_predictor import SMALL, blocks, save_fold
from tests.prompts.test_slicer import fiducials, roi
from tests.prompts.test_world import TURNED
from tests.small_plans import small_plans

LABELS = {"liver": 1, "spleen": 2, "lesion": 5}
BOX = [[1, 2, 3], [4, 5, 6]]
PLAIN = Geometry(shape=(6, 7, 8), spacing=(3.0, 2.0, 1.0))


def boxes_of(path, cases, geometry=PLAIN) -> dict:
    given = read_case_prompts(path, cases, LABELS)
    return {
        case_id: {label: p.boxes.tolist() for label, p in case.on(geometry).items()}
        for case_id, case in given.items()
    }


def one(frame="voxel zyx", **labels) -> dict:
    return {"format_version": 1, "frame": frame, "labels": labels}


def save_npz(path, *boxes, clicks=None):
    names = ("z_min", "z_mid_y_min", "z_mid_x_min", "z_max", "z_mid_y_max", "z_mid_x_max")
    entries = [dict(zip(names, box, strict=True)) for box in boxes]
    arrays = {"boxes": np.array(entries, dtype=object)} if boxes else {}
    if clicks is not None:
        arrays["clicks"] = np.array(clicks, dtype=object)
    np.savez(path, imgs=np.zeros((6, 7, 8), np.uint8), **arrays)


def test_one_file_for_all_cases(tmp_path, caplog):
    path = tmp_path / "prompts.json"
    write_prompts_file(path, {"a": {"liver": {"boxes": [BOX]}}, "b": {"spleen": {}}, "z": {}})
    assert boxes_of(path, ["a", "b", "c"]) == {"a": {"liver": [BOX]}, "b": {"spleen": []}}
    assert "prompts.json: left out, as no image has this name: z" in caplog.text


def test_the_examples_of_the_documentation_are_read(tmp_path):
    reference = Path(__file__).parents[2] / "documentation" / "reference"
    page = (reference / "prompts-files.md").read_text(encoding="utf-8")
    own, slicers = (block.split("```")[0] for block in page.split("```json\n")[1:])
    image = Geometry(shape=(80, 260, 200), spacing=(1.0, 1.0, 1.0), origin=(-50.0, -90.0, 10.0))
    (tmp_path / "scan_01.json").write_text(own)
    (tmp_path / "scan_02.mrk.json").write_text(slicers)
    given = read_case_prompts(tmp_path, ["scan_01", "scan_02"], LABELS)
    found = given["scan_01"].on(image)
    assert found["liver"].boxes.tolist() == [[[12, 40, 30], [60, 200, 190]]]
    assert found["lesion"].point_labels.tolist() == [1, 0] and found["spleen"].is_empty
    found = given["scan_02"].on(image)
    assert len(found["liver"].boxes) == 1 and found["lesion"].point_labels.tolist() == [1, 0]


def test_older_files_are_read(tmp_path):
    path = tmp_path / "prompts.json"
    cases = {"a": {"liver": {"boxes": [BOX]}}}
    write_json(path, {"format_version": 1, "frame": "voxel", "axes": "zyx", "cases": cases})
    assert boxes_of(path, ["a"]) == {"a": {"liver": [BOX]}}
    write_json(path, {"format_version": 1, "cases": cases})
    assert boxes_of(path, ["a"]) == {"a": {"liver": [BOX]}}


def test_a_folder_with_all_kinds_of_files(tmp_path, caplog):
    write_json(tmp_path / "a.json", one(liver={"boxes": [BOX]}))
    write_prompts_file(tmp_path / "b_0000.json", {"b": {"spleen": {"boxes": [BOX]}}})
    save_npz(tmp_path / "c.npz", (1, 2, 3, 3, 4, 5))
    # Edges in mm, x, y, z: voxel box [[1, 2, 3], [4, 5, 6]] reaches over x 2.5 to 5.5, and so on.
    in_mm = {"center": [4.0, 6.0, 6.0], "size": [3.0, 6.0, 9.0]}
    write_json(tmp_path / "d.mrk.json", {"markups": [roi(**in_mm)]})
    write_json(tmp_path / "d_spleen.mrk.json", {"markups": [roi(name="", **in_mm)]})
    write_json(tmp_path / "d.left.lesion-1.mrk.json", {"markups": [roi(name="", **in_mm)]})
    write_json(tmp_path / "d_x.lesion.mrk.json", {"markups": [roi(name="", **in_mm)]})
    write_json(tmp_path / "dataset.json", {"labels": {}})
    (tmp_path / "notes.txt").write_text("no prompts")
    (tmp_path / ".a.json").write_text("hidden")
    found = boxes_of(tmp_path, ["a", "b", "c", "d", "d.left", "d_x", "e"])
    expected = {
        "a": {"liver": [BOX]}, "b": {"spleen": [BOX]}, "c": {"liver": [BOX]},
        "d": {"liver": [BOX], "spleen": [BOX]}, "d.left": {"lesion": [BOX]},
        "d_x": {"lesion": [BOX]},
    }  # fmt: skip
    assert found == expected
    assert "left out, as no image has this name: dataset.json" in caplog.text
    assert "not read: notes.txt; expected CASE.json, CASE_LABEL.mrk.json or" in caplog.text
    assert ".a.json" not in caplog.text


@pytest.mark.parametrize("name", ["whatever.json", "x.mrk.json", "x_spleen.mrk.json", "y.npz"])
def test_a_file_is_for_the_only_image_whatever_its_name(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".npz"):
        save_npz(path, (1, 2, 3, 3, 4, 5))
    elif ".mrk" in name:
        write_json(path, {"markups": [roi(center=[4, 6, 6], size=[3, 6, 9])]})
    else:
        write_json(path, one(liver={"boxes": BOX}))
    assert boxes_of(path, ["x"]) == {"x": {"liver": [BOX]}}


def test_label_values_of_npz_files_are_those_of_the_model(tmp_path):
    path = tmp_path / "a.npz"
    texts = {"1": "a liver", "5": "a lesion", "instance_label": 0}
    clicks = [{"fg": [[1, 2, 3]], "bg": []}, {"fg": [], "bg": [[0, 0, 0], [5, 6, 7]]}]
    np.savez(path, text_prompts=texts, clicks=np.array(clicks, dtype=object))
    found = read_case_prompts(path, ["a"], LABELS)["a"].on(PLAIN)
    assert found["liver"].points.tolist() == [[1, 2, 3]]
    assert found["lesion"].point_labels.tolist() == [0, 0] and list(found) == ["liver", "lesion"]
    save_npz(path, *[(1, 2, 3, 3, 4, 5)] * 4)
    [problem] = read_case_prompts(path, ["a"], LABELS)["a"].problems
    assert "case 'a': unknown label(s) 3, 4, by value; the model knows 1 (liver), 2" in problem


@pytest.mark.parametrize(("frame", "turn"), [("world mm", 1), ("world mm RAS", [-1, -1, 1])])
def test_world_frames_are_put_onto_the_image(tmp_path, frame, turn):
    # TURNED: x 3 to 7 is y of the array: (11 - 7) / 2 to (11 - 3) / 2; see test_world.py.
    corners = np.array([[3, 20.75, 24], [7, 21.25, 30]])[:, [0, 1, 2]] * turn
    point = voxel_to_world(np.array([[3.25, 0.0, 5.0]]), TURNED) * turn
    path = tmp_path / "a.json"
    for box in (corners, corners[::-1]):  # any two opposite corners
        liver = {"boxes": [box.tolist()], "points": point.tolist(), "point_labels": [0]}
        write_json(path, one(frame, liver=liver))
        found = read_case_prompts(path, ["a"], LABELS)["a"].on(TURNED)["liver"]
        assert found.boxes.tolist() == [[[0.5, 2, 2], [2.5, 4, 3]]]
        assert found.points.tolist() == [[3.25, 0, 5]] and found.point_labels.tolist() == [0]


@pytest.mark.parametrize(("frame", "turn"), [("world mm", 1), ("world mm RAS", [-1, -1, 1])])
def test_lines_in_world_frames_are_put_onto_the_image(tmp_path, frame, turn):
    line = np.array([[0.25, 0, 1], [1, 4, 5], [3, 2, 0]])
    lasso = np.array([[0.0, 2, 0], [3, 2, 1], [2, 2, 5]])  # in a slice along y
    in_mm = [(voxel_to_world(positions, TURNED) * turn).tolist() for positions in (line, lasso)]
    liver = {"scribbles": [in_mm[0]], "scribble_labels": [0], "lassos": in_mm[1]}
    write_json(tmp_path / "a.json", one(frame, liver=liver))
    found = read_case_prompts(tmp_path, ["a"], LABELS)["a"].on(TURNED)["liver"]
    np.testing.assert_allclose(found.scribbles, [line], atol=1e-6)
    assert found.scribble_labels.tolist() == [0] and found.lassos[0][:, 1].tolist() == [2, 2, 2]
    np.testing.assert_allclose(found.lassos, [lasso], atol=1e-6)


def test_a_world_box_that_reaches_out_of_the_image_is_clipped(tmp_path):
    write_json(tmp_path / "a.json", one("world mm", liver={"boxes": [[0, 20, 0], [99, 21, 99]]}))
    # x from 0 on reaches beyond y of the array (11 - 1 mm), 20 to 21 mm of y are x 0.5 to 2.5.
    assert boxes_of(tmp_path, ["a"], TURNED) == {"a": {"liver": [[[0, 0, 0.5], [4, 5, 2.5]]]}}


OUTSIDE = [
    ("world mm", {"boxes": [[50, 0, 0], [60, 1, 1]]}, r"box \[\[50.0, 0.0, 0.0\], \[60.0, 1.0, "),
    ("world mm", {"points": [[3, 21, 24], [3, 21, 99]]}, r"point \[3.0, 21.0, 99.0\] lies outs"),
    ("world mm RAS", {"points": [[3, 21, 24]]}, "x -11.0 to -1.0, y -22.8 to -19.8, z 19.5 to 31"),
    ("world mm RAS", {"points": [[3, 21, 24]]}, r"the point is at .* of shape \(4, 5, 6\).*RAS"),
    ("world mm", {"boxes": [[3, 21, 40], [4, 22, 50]]}, "x 1.0 to 11.0, y 19.8 to 22.8, z 19.5"),
    ("voxel zyx", {"boxes": [[4, 0, 0], [5, 1, 1]]}, r"outside the image of shape \(4, 5, 6\)"),
    ("voxel zyx", {"points": [[0, 0, 7]]}, "1 of 1 point prompts lie outside"),
    ("world mm", {"scribbles": [[[3, 21, 99]]]}, r"of a scribble \[3.0, 21.0, 99.0\]"),
    ("world mm", {"lassos": [[[3, 21, 24], [4, 22, 24], [3, 22, 99]]]}, "vertex of a lasso .* l"),
    (
        "world mm",
        {"lassos": [[[3, 21, 24], [4, 22, 27], [9, 20, 21]]]},
        "lasso 1 reaches over z 1 ",
    ),
    ("voxel zyx", {"scribbles": [[[0, 0, 7]]]}, "1 of 1 positions of scribble 1 lie outside"),
    ("voxel zyx", {"lassos": [[[0, 0, 0], [0, 0, 1], [0, 7, 7]]]}, "1 of 3 vertices of lasso 1 l"),
]


@pytest.mark.parametrize(("frame", "prompts", "message"), OUTSIDE)
def test_what_lies_outside_the_image_is_refused_with_its_extent(tmp_path, frame, prompts, message):
    write_json(tmp_path / "a.json", one(frame, liver=prompts))
    case = read_case_prompts(tmp_path, ["a"], LABELS)["a"]
    with pytest.raises(ValueError, match=f"a.json: case 'a', label 'liver': .*{message}"):
        case.on(TURNED)


BAD = [
    ({"lung": {}}, "case 'a': unknown label(s) lung; the model knows liver, spleen, lesion"),
    ({"liver": {"box": BOX}}, "case 'a', label 'liver': unknown box; known: ['boxes', 'l"),
    ({"liver": [BOX]}, "case 'a': expected {LABEL: "),
    ([1, 2], "case 'a': expected {LABEL: "),
    (None, "case 'a': expected {LABEL: "),
    ({"liver": {"boxes": [1, 2, 3]}}, "label 'liver': boxes: expected shape (n, 2, 3), found (3,)"),
    ({"liver": {"boxes": [[["1", 2, 3], [4, 5, 6]]]}}, "label 'liver': boxes: expected numbers"),
    ({"liver": {"boxes": [[[float("nan"), 2, 3], [4, 5, 6]]]}}, "boxes: must be finite"),
    ({"liver": {"boxes": [[[1, 2, 3], [1, 5, 6]]]}}, "box [[1.0, 2.0, 3.0], [1.0, 5.0, 6.0]] is "),
    ({"liver": {"boxes": "all"}}, "boxes: expected numbers, found 'all'"),
    ({"liver": {"boxes": True}}, "boxes: expected numbers, found True"),
    ({"liver": {"boxes": {}}}, "boxes: expected numbers, found {}"),
    ({"liver": {"points": [[1, 2, None]]}}, "points: expected numbers"),
    ({"liver": {"points": [[1, 2, 3], [1]]}}, "points: expected numbers"),
    ({"liver": {"points": [[1, 2, 3]], "point_labels": [2]}}, "1 points need as many labels"),
    ({"liver": {"points": [[1, 2, 3]], "point_labels": [[1], [1, 0]]}}, "1 points need as many"),
    ({"liver": {"points": [[1, 2, 3]], "point_labels": "1"}}, "1 points need as many labels"),
    ({"liver": {"scribbles": [[1, 2]]}}, "label 'liver': scribble 1: expected shape (n, 3), found"),
    ({"liver": {"scribbles": "line"}}, "label 'liver': scribbles: expected lists of z, y, x, f"),
    ({"liver": {"scribbles": [[[1, 2, "3"]]]}}, "label 'liver': scribble 1: expected numbers"),
    ({"liver": {"scribbles": [[]]}}, "scribble 1 needs 1 position(s) or more, z, y, x each, found"),
    ({"liver": {"scribbles": [[[1, 2, 3]]], "scribble_labels": []}}, "1 scribbles need as many"),
    ({"liver": {"scribble_labels": [1]}}, "0 scribbles need as many labels, each 1"),
    ({"liver": {"lassos": [[[1, 2, 3], [1, 4, 3]]]}}, "lasso 1 needs 3 position(s) or more"),
    ({"liver": {"lassos": [[[1, 2, 3], [1, 4, None]]]}}, "label 'liver': lasso 1: expected num"),
    ({"liver": {"mask": []}}, "label 'liver': unknown mask; known: ['boxes', 'l"),
    ({"liver": {"score": "high"}}, "score is a number from 0 to 1 or null, found 'high'"),
    ({"liver": {"score": 1e999}}, "score is a number from 0 to 1 or null, found inf"),
    ({"liver": {"source": 3}}, "source and reason are texts, found 3 and 'ok'"),
]


def test_unnamed_objects_are_read_beside_the_labels_of_the_model(tmp_path):
    names = ("liver", "object", "Object 2", "object_left tumour", "OBJECT-x", "object3")
    write_json(tmp_path / "a.json", one(**dict.fromkeys(names, {"boxes": BOX})))
    assert set(boxes_of(tmp_path, ["a"])["a"]) == set(names)
    for name in ("objects", "my object", "objective", "obj"):
        write_json(tmp_path / "a.json", one(**{name: {"boxes": BOX}}))
        [problem] = read_case_prompts(tmp_path, ["a"], LABELS)["a"].problems
        assert f"unknown label(s) {name}; the model knows liver, spleen, lesion" in problem


def test_values_after_the_last_label_are_unnamed_objects_in_npz_files(tmp_path):
    texts = {"2": "a spleen", "6": "something", "8": "something else"}
    clicks = [{"fg": [[1, 2, number]], "bg": []} for number in range(3)]
    np.savez(tmp_path / "a.npz", text_prompts=texts, clicks=np.array(clicks, dtype=object))
    found = read_case_prompts(tmp_path, ["a"], LABELS)["a"].on(PLAIN)
    assert {label: p.points.tolist() for label, p in found.items()} == {
        "spleen": [[1, 2, 0]], "object 1": [[1, 2, 1]], "object 3": [[1, 2, 2]],
    }  # fmt: skip


@pytest.mark.parametrize("as_folder", [False, True])
@pytest.mark.parametrize(("labels", "message"), BAD)
def test_wrong_prompts_spoil_their_case_only(tmp_path, caplog, labels, message, as_folder):
    cases = {"a": labels, "b": {"liver": {"boxes": BOX}}}
    path = tmp_path / "prompts"
    for name, content in {"a": {"a": labels}, "b": {"b": cases["b"]}}.items():
        path.mkdir(exist_ok=True)
        (path / f"{name}.json").write_text(json.dumps({"format_version": 1, "cases": content}))
    if not as_folder:
        path = tmp_path / "prompts.json"
        path.write_text(json.dumps({"format_version": 1, "cases": cases}))
    given = read_case_prompts(path, ["a", "b"], LABELS)
    assert given["b"].on(PLAIN)["liver"].boxes.tolist() == [BOX]
    [problem] = given["a"].problems
    assert message in problem and str(path) in problem
    with pytest.raises(ValueError) as raised:
        given["a"].on(PLAIN)
    assert str(raised.value) == problem
    assert "prompts of 1 of 2 cases cannot be used" in caplog.text and problem in caplog.text


def test_all_broken_cases_are_told_at_once_and_all_of_each(tmp_path, caplog):
    write_json(tmp_path / "a.json", one(liver={"boxes": [1]}, lung={}, spleen={"points": [1]}))
    (tmp_path / "b.json").write_text("{")
    write_json(tmp_path / "c.json", one("voxels", liver={}))
    write_json(tmp_path / "d.json", {"format_version": 1, "cases": {"e": {}}})
    write_json(tmp_path / "e.json", one(liver={"boxes": BOX}))
    write_json(tmp_path / "e.mrk.json", {"markups": [roi()]})
    save_npz(tmp_path / "f.npz")
    (tmp_path / "g.npz").write_bytes(b"no archive")
    write_json(tmp_path / "h.json", one(liver={"boxes": BOX}))
    write_json(tmp_path / "i_liver.mrk.json", {"markups": [roi(type="Plane"), fiducials()]})
    with caplog.at_level(logging.WARNING):
        given = read_case_prompts(tmp_path, list("abcdefghi"), LABELS)
    assert (
        "prompts of 8 of 9 cases cannot be used; these will fail, the others will not"
        in caplog.text
    )
    found = {case_id: "\n".join(case.problems) for case_id, case in given.items()}
    assert found.pop("h") == ""
    assert all(line in caplog.text for text in found.values() for line in text.splitlines())
    assert all(f"case {case_id!r}" in text for case_id, text in found.items() if case_id != "d")
    assert len(found["a"].splitlines()) == 3 and "unknown label(s) lung" in found["a"]
    assert "b.json is not valid JSON" in found["b"]
    assert (
        "c.json: expected frame to be one of 'voxel zyx', 'world mm', 'world mm RAS', found 'v"
        in (found["c"])
    )
    assert "d.json: expected the case 'd', found e" in found["d"]
    assert "case 'e': found e.json, e.mrk.json; keep one" in found["e"]
    assert "f.npz: case 'f': has neither boxes nor clicks" in found["f"]
    assert "g.npz cannot be read as .npz" in found["g"]
    assert "type 'Plane' is not a prompt" in found["i"] and "no point that is placed" in found["i"]


WHOLE = [
    ({"format_version": 1}, 'expected {"format_version": 1, "cases": '),
    ({"format_version": 1, "cases": {}, "labels": {}}, "expected either `cases` or `labels`"),
    ({"format_version": 1, "labels": {"liver": {}}}, "has `labels` of one case; several images"),
    ({"format_version": 3, "cases": {}}, "expected format_version 1, found 3"),
    ({"format_version": 1, "frame": "world", "cases": {}}, "expected frame to be one of 'voxel"),
    ({"format_version": 1, "frame": 1, "cases": {}}, "expected frame to be one of 'voxel zyx'"),
    ({"format_version": 1, "Frame": "world mm", "cases": {}}, "unknown Frame; known:"),
    ({"format_version": 1, "cases": {}}, "has prompts for nothing, none of which is among"),
    ({"format_version": 1, "cases": {"z": {}}}, "has prompts for z, none of which .*: a, b"),
    ([], 'expected {"format_version": 1, "cases": '),
]


@pytest.mark.parametrize(("content", "message"), WHOLE)
def test_files_that_fit_nothing_are_refused_as_a_whole(tmp_path, content, message):
    write_json(tmp_path / "prompts.json", content)
    with pytest.raises(ValueError, match=f"prompts.json:? {message}"):
        read_case_prompts(tmp_path / "prompts.json", ["b", "a"], LABELS)


def test_nothing_there_is_said_with_what_is_there(tmp_path):
    for name in (
        "none.json",
        "none.mrk.json",
        "none.fcsv",
        "none.csv",
        "none.mha",
        "none.npz",
        "none",
    ):
        with pytest.raises(FileNotFoundError, match=f"{name}: no such file"):
            read_case_prompts(tmp_path / name, ["a"], LABELS)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"expected CASE.json, .* found notes.txt"):
        read_case_prompts(tmp_path, ["a"], LABELS)
    with pytest.raises(
        ValueError, match=r"notes.txt: is not a file of prompts; expected CASE.json"
    ):
        read_case_prompts(tmp_path / "notes.txt", ["a"], LABELS)
    for number in range(12):
        write_json(tmp_path / f"{number:02}.json", {})
    with pytest.raises(ValueError, match=r"has prompts for 00.json, .*, 09.json and 2 more, none"):
        read_case_prompts(tmp_path, ["a"], LABELS)
    write_json(tmp_path / "z.mrk.json", {"markups": [roi()]})
    with pytest.raises(ValueError, match="has prompts for z.mrk.json, none of which is among"):
        read_case_prompts(tmp_path / "z.mrk.json", ["a", "b"], LABELS)


def test_all_that_is_drawn_for_a_case_adds_up(tmp_path):
    in_mm = {"center": [4.0, 6.0, 6.0], "size": [3.0, 6.0, 9.0]}
    write_json(tmp_path / "a.mrk.json", {"markups": [roi(**in_mm)]})
    header = "# CoordinateSystem = LPS\n# columns = id,x,y,z,label\n"
    (tmp_path / "a_liver.fcsv").write_text(f"{header}1,3,4,6,F-1\n")
    (tmp_path / "a_liver negative.csv").write_text("index,axis-0,axis-1,axis-2\n0,5,6,7\n")
    (tmp_path / "a_object.csv").write_text("index,axis-0,axis-1,axis-2\n0,1,1,1\n")
    scribbles = np.zeros(PLAIN.shape, np.uint8)
    scribbles[0, 0, :3], scribbles[5, 5, 5] = 1, 2
    write_image(tmp_path / "a.nrrd", scribbles, PLAIN)
    found = read_case_prompts(tmp_path, ["a", "b"], LABELS)["a"].on(PLAIN)
    liver = found["liver"]
    assert set(found) == {"liver", "spleen", "object"} and liver.source == "file"
    assert liver.boxes.tolist() == [BOX]
    assert liver.points.tolist() == [[2, 2, 3], [5, 6, 7]]
    assert liver.point_labels.tolist() == [1, 0] and liver.scribble_labels.tolist() == [1, 0]
    assert found["spleen"].scribbles[0].tolist() == [[5, 5, 5]]
    assert found["object"].points.tolist() == [[1, 1, 1]]


def test_images_beside_prompts_are_no_scribbles(tmp_path):
    write_image(tmp_path / "a.nii.gz", np.full(PLAIN.shape, 999, np.int16), PLAIN)
    write_json(tmp_path / "a_liver.mrk.json", {"markups": [roi(center=[4, 6, 6], size=[3, 6, 9])]})
    images = [tmp_path / "." / "a.nii.gz"]
    given = read_case_prompts(tmp_path, ["a"], LABELS, images=images)
    assert given["a"].on(PLAIN)["liver"].boxes.tolist() == [BOX]
    assert "the value 999 fills" in read_case_prompts(tmp_path, ["a"], LABELS)["a"].problems[0]


def test_a_label_map_is_for_a_case_of_its_name(tmp_path):
    scribbles = np.zeros(PLAIN.shape, np.uint8)
    scribbles[2, 3, 4] = 2
    for name in ("a.nii.gz", "b_0000.nii.gz", "c_liver.nii.gz"):
        write_image(tmp_path / name, scribbles, PLAIN)
    given = read_case_prompts(tmp_path, ["a", "b", "c"], LABELS)
    assert list(given) == ["a"] and list(given["a"].labels) == ["spleen"]
    alone = read_case_prompts(tmp_path / "c_liver.nii.gz", ["x"], LABELS)
    assert list(alone["x"].labels) == ["spleen"]


@pytest.mark.parametrize("value", [1, 5])
def test_a_background_value_is_no_labels(tmp_path, value):
    with pytest.raises(
        ValueError, match=f"scribbles is {value}, which is the label 'l.*; expected"
    ):
        read_case_prompts(tmp_path, ["a"], LABELS, background_value=value)


def test_the_evaluation_reads_as_strictly(tmp_path):
    path = tmp_path / "prompts_used.json"
    write_prompts_file(path, {"a": {"liver": {"boxes": [BOX]}}})
    assert read_prompts(tmp_path) == ({"a": {"liver": {"boxes": [BOX]}}}, [])
    for content, message in WHOLE[:7]:
        write_json(path, content)
        found, [problem] = read_prompts(tmp_path)
        assert found == {} and "box IoU left out" in problem
        assert message.split("`")[0][:20] in problem
    for labels, message in BAD[1:]:  # it asks no model for its labels
        path.write_text(json.dumps({"format_version": 1, "cases": {"a": labels}}))
        found, [problem] = read_prompts(tmp_path)
        assert found == {} and message in problem
    write_json(path, {"format_version": 1, "frame": "world mm", "cases": {}})
    assert "expected frame 'voxel zyx', found 'world mm'" in read_prompts(tmp_path)[1][0]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "fold_0").mkdir()
    save_fold(folder, "0", small_plans())
    return folder


def test_every_way_to_say_a_box_makes_the_same_segmentation(model_folder, tmp_path):
    # An oblique image; a voxel box has no world box there, but a turned ROI says it exactly.
    images = tmp_path / "images"
    write_image(images / "a_0000.nii.gz", blocks(SMALL)[0], GEOMETRY)
    _, geometry = read_image(images / "a_0000.nii.gz")  # as NIfTI rounds it
    box, point = np.array([[1, 2, 1], [4, 8, 7]]), np.array([[2.0, 3.0, 4.0]])
    voxels = {"liver": {"boxes": box, "points": point}}
    center, at = voxel_to_world(np.array([box.mean(axis=0) - 0.5, point[0]]), geometry)
    markups = [
        roi(
            center=center.tolist(),
            size=((box[1] - box[0]) * geometry.spacing)[::-1].tolist(),
            orientation=list(geometry.direction),
        ),
        fiducials({"label": "liver-1", "position": at.tolist()}),
    ]
    write_prompts_file(tmp_path / "voxels.json", {"a": voxels})
    write_json(tmp_path / "slicer" / "a.mrk.json", {"markups": markups})
    done = {}
    for name in ("voxels.json", "slicer"):
        report = predict_files(model_folder, images, tmp_path / "out", prompts=tmp_path / name)
        assert report["failed"] == 0
        used = tmp_path / "out" / "prompts_used.json"
        assert read_json(used)["frame"] == "voxel zyx"
        assert read_prompts_file(used)["a"]["liver"]["boxes"] == [box.tolist()]
        done[name], _ = read_image(tmp_path / "out" / "a.nii.gz")
        again = predict_files(model_folder, images, tmp_path / "again", prompts=used)
        assert again["failed"] == 0
        assert read_json(tmp_path / "again" / "prompts_used.json") == read_json(used)
        repeated, _ = read_image(tmp_path / "again" / "a.nii.gz")
        np.testing.assert_array_equal(repeated, done[name])
    np.testing.assert_array_equal(done["slicer"], done["voxels.json"])


def test_a_world_box_is_used_and_written_in_voxels(model_folder, tmp_path):
    images = tmp_path / "images"
    straight = Geometry(
        shape=SMALL, spacing=(2.5, 1.0, 0.75), origin=(-9.0, 4.0, 1.5),
        direction=(-1.0, 0, 0, 0, 1.0, 0, 0, 0, -1.0),
    )  # fmt: skip
    for name in "ab":
        write_image(images / f"{name}.nrrd", blocks(SMALL)[0], straight)
    edges = voxel_to_world(np.array([[1, 2, 1], [4, 8, 7]]) - 0.5, straight).tolist()
    content = {"a": {"liver": {"boxes": [edges]}}, "b": {"liver": {"points": [[0, 0, 0]]}}}
    write_json(tmp_path / "w.json", {"format_version": 1, "frame": "world mm", "cases": content})
    report = predict_files(model_folder, images, tmp_path / "out", prompts=tmp_path / "w.json")
    assert report["cases"]["a"]["labels"]["liver"]["boxes"] == [[[1, 2, 1], [4, 8, 7]]]
    assert report["failed"] == 1
    assert (
        "w.json: case 'b', label 'liver': point [0.0, 0.0, 0.0] lies outside the image, which "
        in (report["cases"]["b"]["error"])
    )
    assert list(read_prompts_file(tmp_path / "out" / "prompts_used.json")) == ["a"]
