"""3D Slicer's markups, in both coordinate systems, to boxes and points in voxels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from promptseg.files import write_json
from promptseg.io.images import Geometry
from promptseg.prompts.slicer import label_named, read_markups
from promptseg.prompts.world import voxel_to_world
from tests.prompts.test_world import TURNED, itk_image

LABELS = ("liver", "left_kidney", "lesion")

# As Slicer saves a ROI called liver and a list of points, both drawn by hand: 40 x 20 x 30 mm,
# turned by 36.87 degrees (3-4-5) about the axis of the body.
FILE = """{
    "@schema": "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json#",
    "markups": [
        {
            "type": "ROI",
            "coordinateSystem": "LPS",
            "coordinateUnits": "mm",
            "locked": false,
            "fixedNumberOfControlPoints": true,
            "labelFormat": "%N-%d",
            "lastUsedControlPointNumber": 1,
            "roiType": "Box",
            "insideOut": false,
            "center": [12.0, -30.0, 55.0],
            "orientation": [-0.8, 0.6, 0.0, -0.6, -0.8, 0.0, 0.0, 0.0, 1.0],
            "size": [40.0, 20.0, 30.0],
            "controlPoints": [
                {"id": "1", "label": "liver-1", "description": "", "associatedNodeID": "",
                 "position": [12.0, -30.0, 55.0],
                 "orientation": [-1.0, -0.0, -0.0, -0.0, -1.0, -0.0, 0.0, 0.0, 1.0],
                 "selected": true, "locked": false, "visibility": true,
                 "positionStatus": "defined"}
            ],
            "measurements": [],
            "display": {"visibility": true, "opacity": 1.0}
        },
        {
            "type": "Fiducial",
            "coordinateSystem": "RAS",
            "controlPoints": [
                {"label": "lesion-1", "position": [-12.0, 30.0, 55.0]},
                {"label": "lesion-2", "description": "negative", "position": [-10.0, 31.0, 50.0]},
                {"label": "lesion-3", "position": [0.0, 0.0, 0.0], "positionStatus": "undefined"}
            ]
        }
    ]
}
"""
WIDE = Geometry(shape=(80, 90, 100), spacing=(1.0, 1.5, 1.25), origin=(-50.0, -90.0, 10.0))


def case_of(folder: Path, *markups: dict, rest: str = "", labels=LABELS):
    path = folder / "case.mrk.json"
    write_json(path, {"markups": list(markups)})
    return read_markups([(path, rest)], labels, "case")


def roi(**changes) -> dict:
    return {"type": "ROI", "name": "liver", "center": [5, 21, 25], "size": [2, 1, 6], **changes}


def fiducials(*points: dict, **changes) -> dict:
    return {"type": "Fiducial", "name": "liver", "controlPoints": list(points), **changes}


def curve(kind: str, count: int = 4, **changes) -> dict:
    """A closed or open curve within a slice along the array's z, of `TURNED`."""
    voxels = np.array([[1, 0, 0], [1, 4, 0.5], [1, 4, 5], [1, 1, 4.0]])[:count]
    positions = voxel_to_world(voxels, TURNED).tolist()
    return fiducials(*({"position": mm} for mm in positions), type=kind, **changes)


def test_a_file_as_slicer_saves_it(tmp_path):
    path = tmp_path / "case.mrk.json"
    path.write_text(FILE)
    found = read_markups([(path, "")], LABELS, "case").on(WIDE)
    assert list(found) == ["liver", "lesion"]
    # The ROI's half sides 20, 10 along (0.8, 0.6) and (0.6, -0.8) reach 22 mm to the left and
    # right of the centre (20 * 0.8 + 10 * 0.6), and 20 mm to front and back.
    lower = np.array([55 - 15 - 10, -30 - 20 + 90, 12 - 22 + 50]) / WIDE.spacing + 0.5
    upper = np.array([55 + 15 - 10, -30 + 20 + 90, 12 + 22 + 50]) / WIDE.spacing + 0.5
    np.testing.assert_allclose(found["liver"].boxes, [[lower, upper]], atol=1e-6)
    assert found["liver"].source == "file" and not len(found["liver"].points)
    # RAS (-12, 30, 55) is LPS (12, -30, 55).
    points = [[45 / 1, 60 / 1.5, 62 / 1.25], [40 / 1, 59 / 1.5, 60 / 1.25]]
    np.testing.assert_allclose(found["lesion"].points, points, atol=1e-6)
    assert found["lesion"].point_labels.tolist() == [1, 0]  # the third is not placed


def as_slicer_writes(center_ras, axes_ras, size, system: str) -> dict:
    """A ROI held in RAS, as Slicer's scene has it: for LPS it turns two rows of both round."""
    turn = np.diag([-1.0, -1.0, 1.0]) if system == "LPS" else np.eye(3)
    return roi(
        center=(turn @ center_ras).tolist(),
        orientation=(turn @ axes_ras).ravel().tolist(),
        size=list(size),
        coordinateSystem=system,
    )


@pytest.mark.parametrize("seed", range(5))
def test_both_coordinate_systems_give_the_box_round_every_point_of_the_roi(tmp_path, seed):
    rng = np.random.default_rng(seed)
    direction = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    geometry = Geometry(
        shape=(70, 80, 90), spacing=(2.0, 1.0, 0.75), origin=(-40.0, 30.0, 5.0),
        direction=tuple(direction.ravel()),
    )  # fmt: skip
    image = itk_image(geometry)
    center = np.array(image.TransformContinuousIndexToPhysicalPoint((45.0, 38.0, 33.0)))
    to_ras = np.array([-1, -1, 1])
    axes, size = np.linalg.qr(rng.normal(size=(3, 3)))[0], rng.uniform(5, 20, 3)
    # Points of the ROI, by Slicer's words: centre plus shares of the sides along the columns.
    shares = np.vstack(
        [rng.uniform(-0.5, 0.5, (50, 3)), np.indices((2, 2, 2)).reshape(3, 8).T - 0.5]
    )
    inside_lps = center + (shares * size @ axes.T) * to_ras
    edges = np.array(
        [image.TransformPhysicalPointToContinuousIndex(p.tolist())[::-1] for p in inside_lps]
    ) + 0.5  # fmt: skip
    for system in ("LPS", "RAS"):
        given = case_of(tmp_path, as_slicer_writes(center * to_ras, axes, size, system))
        [box] = given.on(geometry)["liver"].boxes
        np.testing.assert_allclose(box, [edges.min(axis=0), edges.max(axis=0)], atol=1e-5)


def test_points_lie_where_simpleitk_finds_them(tmp_path):
    positions = [[4.0, 21.5, 27.0], [8.0, 20.25, 30.0]]
    image = itk_image(TURNED)
    expected = [image.TransformPhysicalPointToContinuousIndex(p)[::-1] for p in positions]
    for system, factor in (("LPS", 1), ("RAS", np.array([-1, -1, 1]))):
        points = [{"label": "F-1", "position": (np.array(p) * factor).tolist()} for p in positions]
        found = case_of(tmp_path, fiducials(*points, coordinateSystem=system)).on(TURNED)
        np.testing.assert_allclose(found["liver"].points, expected, atol=1e-6)


def test_lines_are_scribbles_and_closed_curves_are_lassos(tmp_path):
    ring = curve("ClosedCurve")
    given = case_of(
        tmp_path, ring, curve("Curve", name="liver negative"), curve("Line", count=2, name="lesion")
    ).on(TURNED)
    expected = [[1, 0, 0], [1, 4, 0.5], [1, 4, 5], [1, 1, 4]]
    [lasso], [scribble] = given["liver"].lassos, given["liver"].scribbles
    np.testing.assert_allclose(lasso, expected, atol=1e-6)
    np.testing.assert_allclose(scribble, expected, atol=1e-6)
    assert given["liver"].scribble_labels.tolist() == [0]
    np.testing.assert_allclose(given["lesion"].scribbles, [expected[:2]], atol=1e-6)
    assert given["lesion"].scribble_labels.tolist() == [1]
    ring["controlPoints"][2]["position"][2] -= 9  # three slices away
    with pytest.raises(ValueError, match=r"label 'liver': lasso 1 reaches over z 1 to 4, y 0 to 4"):
        case_of(tmp_path, ring).on(Geometry(**{**vars(TURNED), "shape": (9, 5, 6)}))


def test_micrometres_and_a_coded_unit_are_understood(tmp_path):
    expected = case_of(tmp_path, roi()).on(TURNED)["liver"].boxes
    small = roi(
        center=[5e3, 21e3, 25e3], size=[2e3, 1e3, 6e3],
        coordinateUnits=["um", "UCUM", "micrometer"],
    )  # fmt: skip
    np.testing.assert_allclose(case_of(tmp_path, small).on(TURNED)["liver"].boxes, expected)


def test_several_files_of_a_case_add_up(tmp_path):
    files = []
    for number, markup in enumerate([roi(), roi(center=[3, 21, 25]), fiducials(
        {"position": [4, 21.5, 27]}, name="background"), roi(name="ROI")]):  # fmt: skip
        path = tmp_path / f"{number}.mrk.json"
        write_json(path, {"markups": [markup]})
        files.append((path, ("", "", "liver", "left kidney")[number]))
    found = read_markups(files, LABELS, "case").on(TURNED)
    assert list(found) == ["liver", "left_kidney"]
    assert found["liver"].boxes.shape == (2, 2, 3)
    assert found["liver"].point_labels.tolist() == [0]  # the list is called background
    assert found["left_kidney"].boxes.shape == (1, 2, 3)


@pytest.mark.parametrize(
    ("text", "label", "negative"),
    [
        ("liver", "liver", False),
        ("Liver", "liver", False),
        ("liver-1", "liver", False),
        ("liver_12", "liver", False),
        ("liver 3", "liver", False),
        ("Left Kidney", "left_kidney", False),
        ("left-kidney-2", "left_kidney", False),
        ("liver-", "liver", True),
        ("liver--1", "liver", True),
        ("liver -", "liver", True),
        ("liver+", "liver", False),
        ("liver positive 2", "liver", False),
        ("liver negative", "liver", True),
        ("Negative-liver-7", "liver", True),
        ("liver-3 background", "liver", True),
        ("liver_neg", "liver", True),
        ("-", None, True),
        ("neg-4", None, True),
        ("F-1", None, False),
        ("-1", None, False),
        ("12", None, False),
        ("", None, False),
        ("livers", None, False),
        ("negatively", None, False),
        ("grade 2", "grade 2", False),
        ("grade 2-1", "grade 2", False),
        ("grade 2 -", "grade 2", True),
        ("grade 3", None, False),
        ("negative margin", "negative margin", False),
        ("Object", "object", False),
        ("object_2", "object 2", False),
        ("object-tumour left", "object tumour left", False),
        ("object 2 negative", "object 2", True),
        ("object-", "object", True),
        ("neg object", "object", True),
        ("objects", None, False),
    ],
)
def test_names_name_labels(text, label, negative):
    labels = [*LABELS, "grade 2", "negative margin"]
    assert label_named(text, labels) == (label, negative)


def test_the_most_specific_name_counts(tmp_path):
    point = {"label": "lesion-1", "position": [4, 21.5, 27]}
    other = {"label": "F-2", "description": "left kidney", "position": [4, 21.5, 27]}
    plain = {"label": "F-3", "position": [4, 21.5, 27]}
    given = case_of(tmp_path, fiducials(point, other, plain), rest="somewhere")
    assert {label: len(g.points) for label, [g] in given.labels.items()} == {
        "lesion": 1, "left_kidney": 1, "liver": 1,
    }  # fmt: skip
    assert list(case_of(tmp_path, roi(name=""), rest="lesion").labels) == ["lesion"]


BAD = [
    (roi(type="Plane"), r" \(Plane 'liver'\): type 'Plane' is not a prompt; ROI"),
    (curve("ClosedCurve", name="liver-"), "a lasso cannot mark the background"),
    (curve("ClosedCurve", count=2), "a lasso needs 3 points or more, found 2"),
    (curve("Curve", count=0), r"\(Curve 'liver'\): has no point that is placed"),
    (curve("Line", name="R"), "found the names 'R', expected one of liver, left_kidney, lesion"),
    (roi(type=None), "type None is not a prompt"),
    (roi(name=7), "expected name to be a text, found 7"),
    (roi(name="R"), "unknown label.*found the names 'R', expected one of liver, left_kidney, les"),
    (roi(name="R", controlPoints=[{"label": "R-1"}]), "found the names 'R', 'R-1', expected"),
    (roi(name="liver negative"), "a box cannot mark the background"),
    (roi(size=[2, 1]), r"expected size of 3 finite numbers, found \[2, 1\]"),
    (roi(size=[2, 0, 1]), r"size must be positive, found \[2.0, 0.0, 1.0\]; the box is empty"),
    (roi(size=[2, -1, 1]), "size must be positive"),
    (roi(center=None), "expected center of 3 finite numbers, found None"),
    (roi(center=["1", 2, 3]), "expected center of 3 finite numbers"),
    (roi(center=[True, 2, 3]), "expected center of 3 finite numbers"),
    (roi(center=[float("nan"), 2, 3]), "expected center of 3 finite numbers"),
    (roi(orientation=[1, 0, 0]), "expected orientation of 9 finite numbers"),
    (roi(orientation=[0.0] * 9), "orientation must be three perpendicular unit vectors"),
    (roi(orientation=[1, 1, 0, 0, 1, 0, 0, 0, 1]), "orientation must be three perpendicular"),
    (roi(coordinateSystem="LAS"), "expected coordinateSystem 'LPS' or 'RAS', found 'LAS'"),
    (roi(coordinateSystem=["LPS"]), "expected coordinateSystem"),
    (roi(coordinateUnits="cm"), "expected coordinateUnits 'mm' or 'um', found 'cm'"),
    (roi(coordinateUnits=[]), "expected coordinateUnits"),
    (roi(insideOut=True), "inside-out ROI"),
    (roi(controlPoints={"1": {}}), "controlPoints must be a list of objects"),
    (roi(controlPoints=[5]), "controlPoints must be a list of objects"),
    (fiducials(), "has no point that is placed"),
    (fiducials({"positionStatus": "undefined"}), "has no point that is placed"),
    (fiducials({"label": "F-1"}), "control point 1: expected position of 3 finite numbers"),
    (fiducials({"position": [1, 2]}), r"control point 1: expected position .* found \[1, 2\]"),
    (
        fiducials({"position": [1, 2, 3], "label": 4}),
        "control point 1: expected label to be a text",
    ),
    (
        fiducials({"position": [1, 2, 3], "label": "F-1"}, name=""),
        "control point 1: unknown label.*found the names 'F-1', expected one of liver",
    ),
]


@pytest.mark.parametrize(("markup", "message"), BAD)
def test_wrong_markups_are_named_and_spoil_no_other(tmp_path, markup, message):
    path = tmp_path / "case.mrk.json"
    path.write_text(json.dumps({"markups": [markup, roi(name="lesion")]}))
    given = read_markups([(path, "")], LABELS, "case")
    assert list(given.labels) == ["lesion"]
    with pytest.raises(ValueError, match=rf"case\.mrk\.json: case 'case', markup 1.*{message}"):
        given.on(TURNED)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("[]", "expected 3D Slicer's"),
        ('{"markups": {}}', "expected 3D Slicer's"),
        ('{"markups": [1]}', "expected 3D Slicer's"),
        ('{"format_version": 1, "cases": {}}', "expected 3D Slicer's"),
        ('{"markups": []}', "has no markup; draw a ROI"),
    ],
)
def test_files_that_are_no_markups_are_named(tmp_path, text, message):
    path = tmp_path / "case.mrk.json"
    path.write_text(text)
    [problem] = read_markups([(path, "")], LABELS, "case").problems
    assert problem.startswith("case 'case': ") and "case.mrk.json" in problem
    assert message in problem


def test_every_problem_of_a_case_is_listed(tmp_path):
    given = case_of(tmp_path, roi(name="R"), roi(type="Angle"), roi(center=[500, 0, 0]))
    with pytest.raises(ValueError) as raised:
        given.on(TURNED)
    lines = str(raised.value).splitlines()
    assert len(lines) == 3
    assert "'R'" in lines[0] and "'Angle'" in lines[1]
    assert "label 'liver': box [[499.0, -0.5, -3.0], [501.0, 0.5, 3.0]] lies outside" in lines[2]
    assert "x 1.0 to 11.0, y 19.8 to 22.8, z 19.5 to 31.5 (mm, LPS)" in lines[2]


def test_the_geometry_is_that_of_a_written_image(tmp_path):
    # The whole way: an image file with a direction, and a ROI round one bright block of it.
    from promptseg.io.images import read_image

    image = itk_image(WIDE)
    image.SetDirection(np.diag([-1.0, 1.0, -1.0]).ravel())
    sitk.WriteImage(image, str(tmp_path / "image.nii.gz"))
    _, geometry = read_image(tmp_path / "image.nii.gz")
    first = image.TransformContinuousIndexToPhysicalPoint((9.5, 19.5, 29.5))
    last = image.TransformContinuousIndexToPhysicalPoint((39.5, 49.5, 59.5))
    center, size = np.add(first, last) / 2, np.abs(np.subtract(last, first))
    given = case_of(tmp_path, roi(center=center.tolist(), size=size.tolist()))
    assert given.on(geometry)["liver"].boxes.tolist() == [[[30, 20, 10], [60, 50, 40]]]


# Fiducials as .fcsv

HEADER = """# Markups fiducial file version = 4.11
# CoordinateSystem = {}
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
"""


def fcsv(folder: Path, *rows: str, system: str = "LPS", rest: str = "", header: str = HEADER):
    path = folder / "case.fcsv"
    path.write_text(header.format(system) + "\n".join(rows) + "\n")
    return read_markups([(path, rest)], LABELS, "case")


@pytest.mark.parametrize(("system", "turn"), [("LPS", 1), ("1", 1), ("RAS", -1), ("0", -1)])
def test_fcsv_points_lie_where_simpleitk_finds_them(tmp_path, system, turn):
    oblique = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    oblique[:, 0] *= -1
    for direction in (TURNED.direction, tuple(oblique.ravel())):
        geometry = Geometry(
            shape=(9, 10, 11), spacing=(3.0, 2.0, 0.5), origin=(10.0, 20.0, 30.0),
            direction=direction,
        )  # fmt: skip
        voxels = np.array([[1.0, 2.5, 3], [8, 0, 9]])
        image = itk_image(geometry)
        lps = [image.TransformContinuousIndexToPhysicalPoint(v[::-1].tolist()) for v in voxels]
        rows = [
            f"vtkMRMLMarkupsFiducialNode_{n},{x * turn!r},{y * turn!r},{z!r},0,0,0,1,1,1,0,{text}"
            for n, ((x, y, z), text) in enumerate(
                zip(lps, ("liver-1,,vtkMRMLScalarVolumeNode1", '"liver, neg",liver-,'), strict=True)
            )
        ]
        found = fcsv(tmp_path, *rows, system=system).on(geometry)["liver"]
        np.testing.assert_allclose(found.points, voxels, atol=1e-5)
        assert found.point_labels.tolist() == [1, 0]


def test_fcsv_files_name_labels_as_markups_do(tmp_path):
    rows = ["1,4,21,27,0,0,0,1,1,1,0,F-1,,", "2,8,20.5,27,0,0,0,1,1,1,0,F-2,lesion negative,"]
    given = fcsv(tmp_path, *rows, rest="left kidney").on(TURNED)
    assert {label: p.point_labels.tolist() for label, p in given.items()} == {
        "left_kidney": [1], "lesion": [0],
    }  # fmt: skip
    rows = [f"{n},4,21,27,0,0,0,1,1,1,0,object-{n},,,2,0" for n in (1, 2)]
    assert len(fcsv(tmp_path, *rows).on(TURNED)["object"].points) == 2
    rows.append("3,0,0,0,0,0,0,1,1,1,0,object-3,,,0,0")  # listed, and not placed yet
    assert len(fcsv(tmp_path, *rows).on(TURNED)["object"].points) == 2
    short = fcsv(
        tmp_path, "4,21,27,liver", header="# CoordinateSystem = {}\n# columns = x,y,z,label\n"
    )
    assert list(short.on(TURNED)) == ["liver"]
    same = fcsv(tmp_path, "1,4,21,27,0,0,0,1,1,1,0,liver,,", header="# CoordinateSystem = {}\n")
    np.testing.assert_array_equal(same.on(TURNED)["liver"].points, short.on(TURNED)["liver"].points)


ROW = "1,4,21,27,0,0,0,1,1,1,0,liver,,"


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([ROW], {"system": "IJK"}, "a line # CoordinateSystem = LPS or RAS .*found 'IJK'; s"),
        ([ROW], {"system": "2"}, r"or RAS \(or 1 or 0, as older versions write\), found '2'"),
        ([ROW], {"header": "# columns = id,x,y,z\n"}, "expected a line .*, found None"),
        ([ROW], {"header": HEADER.replace("x,y,z", "l,p,s")}, r"columns id,x.*\['x', 'y'"),
        ([], {}, "Fiducial.*has no point that is placed"),
        (["1,4,21"], {"rest": "liver"}, r"3 finite numbers, found \[4.0, 21.0, ''\]"),
        (["1,4,abc,27"], {"rest": "liver"}, r"of 3 finite numbers, found \[4.0, 'abc', 2"),
        (["1,4,nan,27"], {"rest": "liver"}, "control point 1: expected position of 3 finite num"),
        (["1,4,21,27,0,0,0,1,1,1,0,F-1,,"], {}, "found the names 'F-1', expected one of live"),
        ([ROW.replace("27", "99")], {}, r"label 'liver': point \[4.0, 21.0, 99.0\] lies outside"),
    ],
)  # fmt: skip
def test_wrong_fcsv_files_are_named(tmp_path, rows, changes, message):
    with pytest.raises(ValueError, match=rf"case\.fcsv.*{message}"):
        fcsv(tmp_path, *rows, **changes).on(TURNED)


def test_an_fcsv_file_that_is_none_is_named(tmp_path):
    (tmp_path / "case.fcsv").write_bytes(b"\xff\xfe\x00")
    [problem] = read_markups([(tmp_path / "case.fcsv", "")], LABELS, "case").problems
    assert "case 'case'" in problem and "case.fcsv: is not a text" in problem


def test_the_points_of_an_unnamed_list_are_one_object(tmp_path):
    points = [{"label": f"object 2-{n}", "position": [4, 21.5, 27]} for n in (1, 2)]
    given = case_of(tmp_path, fiducials(*points, name=""), roi(name="Object_left"))
    assert {label: (len(g.points), len(g.boxes)) for label, [g] in given.labels.items()} == {
        "object 2": (2, 0), "object left": (0, 1),
    }  # fmt: skip
