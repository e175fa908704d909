"""napari's CSV files of points and shapes, as its own writer makes them, to prompts in voxels."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from promptseg.io.images import Geometry
from promptseg.prompts.napari import read_napari

LABELS = ("liver", "left_kidney")
IMAGE = Geometry(shape=(6, 20, 31), spacing=(3.0, 1.0, 0.5))
POINTS = ["index", "axis-0", "axis-1", "axis-2"]
SHAPES = ["index", "shape-type", "vertex-index", "axis-0", "axis-1", "axis-2"]


def save(folder: Path, columns: list, rows: list) -> Path:
    path = folder / "case.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def read(folder: Path, columns: list, rows: list, rest: str = "liver"):
    return read_napari(save(folder, columns, rows), rest, LABELS, "case")


def shape_rows(*shapes: tuple[str, list]) -> list:
    """As napari lays them out: index, type, vertex, position, numbers as floats."""
    return [
        [float(index), kind, float(vertex), *map(float, position)]
        for index, (kind, positions) in enumerate(shapes)
        for vertex, position in enumerate(positions)
    ]


def corners(axis: int, index: float, lower, upper) -> list:
    """The four corners of a rectangle in a slice, in napari's order."""
    (a, b), (c, d) = lower, upper
    return np.insert([[a, b], [c, b], [c, d], [a, d]], axis, index, axis=1).tolist()


def test_points_are_voxels(tmp_path):
    rows = [[0, 1.0, 2.5, 3.25], [1, 5, 19, 30]]
    found = read(tmp_path, POINTS, rows, "left kidney").on(IMAGE)["left_kidney"]
    assert found.points.tolist() == [[1, 2.5, 3.25], [5, 19, 30]]
    assert found.point_labels.tolist() == [1, 1] and not len(found.boxes)
    assert read(tmp_path, POINTS, rows, "liver negative").on(IMAGE)["liver"].point_labels.sum() == 0


def test_columns_name_label_and_kind(tmp_path):
    rows = [
        [0, 1, 1, 1, "liver", "positive"], [1, 2, 2, 2, "left-kidney", "negative"],
        [2, 3, 3, 3, "liver neg", "positive"], [3, 4, 4, 4, "object 2", "bg"],
        [4, 4, 4, 4, "", "1"],
    ]  # fmt: skip
    found = read(tmp_path, [*POINTS, "label", "kind"], rows).on(IMAGE)
    assert {label: p.point_labels.tolist() for label, p in found.items()} == {
        "liver": [1, 0, 1], "left_kidney": [0], "object 2": [0],
    }  # fmt: skip
    for column, values in (("positive", "True False"), ("foreground", "1.0 0.0"), ("kind", "fg -")):
        rows = [[n, 1, 1, 1, value] for n, value in enumerate(values.split())]
        found = read(tmp_path, [*POINTS, column], rows).on(IMAGE)["liver"]
        assert found.point_labels.tolist() == [1, 0]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_rectangle_is_a_box_in_its_slice(tmp_path, axis):
    rows = shape_rows(("rectangle", corners(axis, 3.0, (1, 2.5), (4, 17.25))))
    [box] = read(tmp_path, SHAPES, rows).on(IMAGE)["liver"].boxes
    # Voxel i reaches from i - 0.5 to i + 0.5 in napari, from i to i + 1 in a box.
    expected = np.clip(np.insert([[1.5, 3.0], [4.5, 17.75]], axis, [3, 4], axis=1), 0, IMAGE.shape)
    assert box.tolist() == expected.tolist()


def test_a_turned_rectangle_is_a_lasso(tmp_path):
    diamond = [[2, 5, 10], [2, 8, 14], [2, 11, 10], [2, 8, 6]]
    found = read(tmp_path, SHAPES, shape_rows(("rectangle", diamond))).on(IMAGE)["liver"]
    assert not len(found.boxes) and [line.tolist() for line in found.lassos] == [diamond]


def test_polygons_are_lassos_and_paths_are_scribbles(tmp_path):
    polygon = [[4, 3, 3], [4, 9, 3.5], [4, 9, 20], [4, 4, 18]]
    path, line = [[1, 1, 1], [1, 5, 9], [1, 9, 2]], [[0, 0, 0], [5, 19, 30]]
    rows = shape_rows(("polygon", polygon), ("path", path), ("line", line))
    found = read(tmp_path, SHAPES, rows).on(IMAGE)["liver"]
    assert [lasso.tolist() for lasso in found.lassos] == [polygon]
    assert [scribble.tolist() for scribble in found.scribbles] == [path, line]
    assert found.scribble_labels.tolist() == [1, 1]
    found = read(tmp_path, SHAPES, shape_rows(("path", path)), "liver-").on(IMAGE)["liver"]
    assert found.scribble_labels.tolist() == [0]


def test_an_ellipse_is_the_lasso_of_its_outline(tmp_path):
    rows = shape_rows(("ellipse", corners(0, 2, (4, 6), (12, 26))))
    [lasso] = read(tmp_path, SHAPES, rows).on(IMAGE)["liver"].lassos
    assert (lasso[:, 0] == 2).all()
    # Centre (8, 16), half axes 4 and 10.
    np.testing.assert_allclose(((lasso[:, 1:] - (8, 16)) / (4, 10)) ** 2 @ (1, 1), 1, atol=1e-9)
    y, x = lasso[:, 1], lasso[:, 2]
    area = abs(y @ np.roll(x, 1) - x @ np.roll(y, 1)) / 2
    np.testing.assert_allclose(area, np.pi * 4 * 10, rtol=0.01)
    turned = [[2, 5, 10], [2, 8, 14], [2, 11, 10], [2, 8, 6]]
    [lasso] = read(tmp_path, SHAPES, shape_rows(("ellipse", turned))).on(IMAGE)["liver"].lassos
    np.testing.assert_allclose(lasso.mean(axis=0), np.mean(turned, axis=0), atol=1e-9)


SQUARE = corners(0, 2, (1, 1), (5, 5))
BAD = [
    (["index", "axis-0", "axis-1"], [[0, 1, 2]], "expected napari's columns index, axis-0, "),
    ([*POINTS, "axis-3"], [[0, 1, 2, 3, 4]], "found index, axis-0, axis-1, axis-2, axis-3; save"),
    (["case", "quality"], [["a", 0.3]], "expected napari's columns .*, found case, quality"),
    (POINTS, [], "has no point and no shape; draw some"),
    (POINTS, [[0, 1, "x", 3]], "expected numbers in axis-0, axis-1, axis-2, found '1', 'x'"),
    (POINTS, [[0, 1, 2]], "point 1: expected numbers in .*, found '1', '2', ''"),
    (POINTS, [[0, 1, 2, "nan"]], "point 1: must be finite"),
    (POINTS, [[0, 1, 2, 3], [1, 9, 2, 3]], "label 'liver': 1 of 2 point prompts lie outside"),
    ([*POINTS, "label"], [[0, 1, 2, 3, "lung"]], "found the names 'lung', 'nothing', expected"),
    ([*POINTS, "kind"], [[0, 1, 2, 3, "maybe"]], "expected kind to be positive or negative"),
    ([*POINTS, "positive"], [[0, 1, 2, 3, "2"]], "expected positive to be .*, found '2'"),
    (SHAPES, shape_rows(("star", SQUARE)), "shape 1: unknown shape-type 'star'; expected rec"),
    (SHAPES, shape_rows(("rectangle", SQUARE[:3])), "a rectangle has four corners, found 3"),
    (SHAPES, shape_rows(("ellipse", SQUARE[:2])), "a ellipse has four corners, found 2"),
    (SHAPES, shape_rows(("polygon", SQUARE[:2])), r"lasso 1 needs 3 position\(s\) or more"),
    (SHAPES, shape_rows(("polygon", [[0, 0, 0], [1, 2, 3], [5, 6, 9]])), "a polygon in one"),
    (SHAPES, shape_rows(("rectangle", [[0, 0, 0], [1, 2, 3], [5, 6, 9], [2, 2, 2]])), "one slice"),
    (SHAPES, shape_rows(("rectangle", corners(0, 9, (1, 1), (5, 5)))), "box .* lies outside the"),
    ([*SHAPES, "kind"], [[*row, "negative"] for row in shape_rows(("polygon", SQUARE))], "cannot"),
    ([*SHAPES, "name"], [[*row, "liver-"] for row in shape_rows(("rectangle", SQUARE))], "cannot"),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "rows", "message"), BAD)
def test_wrong_files_are_named(tmp_path, columns, rows, message):
    rest = "nothing" if "label" in columns else "liver"
    with pytest.raises(ValueError, match=rf"case\.csv: case 'case'.*{message}"):
        read(tmp_path, columns, rows, rest).on(IMAGE)


def test_a_wrong_shape_spoils_no_other_but_the_case(tmp_path):
    rows = shape_rows(("rectangle", SQUARE), ("star", SQUARE), ("polygon", SQUARE))
    given = read(tmp_path, SHAPES, rows)
    [problem] = given.problems
    assert "shape 2: unknown shape-type 'star'" in problem
    [liver] = given.labels["liver"]
    assert len(liver.boxes) == len(liver.lassos) == 1


def test_what_is_no_text_is_named(tmp_path):
    (tmp_path / "case.csv").write_bytes(b"index,axis-0\xff\xfe")
    [problem] = read_napari(tmp_path / "case.csv", "liver", LABELS, "case").problems
    assert "case.csv: case 'case': is not a text with comma-separated values" in problem
