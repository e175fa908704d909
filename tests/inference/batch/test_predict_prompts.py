"""Prompts that a person gives, and automatic ones for all the rest."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from promptseg.files import write_json
from promptseg.inference.batch.dask import ClusterJob
from promptseg.inference.batch.predict_files import predict_cases, predict_files
from promptseg.inference.options import PredictionOptions
from promptseg.inference.predictor import Predictor
from promptseg.io.dataset import RawCase
from promptseg.io.images import Geometry, read_segmentation, write_image
from promptseg.prompts.types import Prompts, read_prompts_file, write_prompts_file
from tests.inference.fakes import LevelNetwork
from tests.inference.test_predictor import SMALL, SPACING, blocks
from tests.small_plans import small_plans

GEOMETRY = Geometry(shape=SMALL, spacing=SPACING, direction=(0, 1.0, 0, 1.0, 0, 0, 0, 0, -1.0))
BOX = [[1, 2, 1], [4, 8, 7]]
LABELS = ["liver", "spleen", "lesion"]


class Recording(Predictor):
    """Keeps the prompts that it is asked, of labels that it knows, too."""

    def __init__(self) -> None:
        super().__init__([LevelNetwork(inside_box=False)], small_plans())
        self.asked: list[tuple[dict[str, Prompts], list[str]]] = []

    def predict_prompts(self, prompts, *, labels, auto_prompt=None):
        self.asked.append((prompts, labels))
        known = [label for label in labels if label in self.plans.labels]
        own = {label: prompts[label] for label in known if label in prompts}
        return super().predict_prompts(own, labels=known, auto_prompt=auto_prompt)


@pytest.fixture
def images(tmp_path):
    for name in "ab":
        write_image(tmp_path / "images" / f"{name}.nii.gz", blocks(SMALL)[0], GEOMETRY)
    return tmp_path / "images"


def run(images, tmp_path, **options) -> tuple[dict, dict]:
    """The report; and for each case, in order, the prompts by label."""
    model = Recording()
    report = predict_files(model, images, tmp_path / "out", **options)
    asked = {
        case_id: {label: prompts.get(label) for label in labels}
        for case_id, (prompts, labels) in zip(
            [c for c, e in report["cases"].items() if e["status"] == "done"],
            model.asked,
            strict=True,
        )
    }
    return report, asked


@pytest.mark.parametrize("strategy", ["intensity", "coarse", "hybrid"])
def test_a_persons_prompts_come_before_automatic_ones(images, tmp_path, strategy):
    given = {"liver": {"boxes": [BOX]}, "spleen": {}, "object 2": {"points": [[1, 1, 1]]}}
    write_prompts_file(tmp_path / "prompts.json", {"a": given})
    report, asked = run(images, tmp_path, prompts=tmp_path / "prompts.json", auto_prompt=strategy)
    assert report["failed"] == 0
    assert list(asked["a"]) == [*LABELS, "object 2"] and list(asked["b"]) == LABELS
    assert asked["a"]["liver"].boxes.tolist() == [BOX]
    assert asked["a"]["liver"].source == asked["a"]["object 2"].source == "file"
    used = read_prompts_file(tmp_path / "out" / "prompts_used.json")
    sources = {
        case_id: {n: entry["source"] for n, entry in used[case_id].items()} for case_id in used
    }
    alone, _ = run(images, tmp_path, auto_prompt=strategy)
    automatic = {n: entry["source"] for n, entry in alone["cases"]["b"]["labels"].items()}
    assert sources == {"a": {**automatic, "liver": "file"}, "b": automatic}
    assert "file" not in automatic.values()


def test_nothing_is_proposed_where_all_is_given(images, tmp_path):
    write_prompts_file(
        tmp_path / "prompts.json", {"a": {label: {"boxes": [BOX]} for label in LABELS}}
    )
    (images / "b.nii.gz").unlink()
    _, asked = run(images, tmp_path, prompts=tmp_path / "prompts.json", auto_prompt="hybrid")
    assert {prompts.source for prompts in asked["a"].values()} == {"file"}


def test_wrong_prompts_of_a_case_are_not_replaced_by_automatic_ones(images, tmp_path):
    write_prompts_file(
        tmp_path / "prompts.json", {"a": {"liver": {"boxes": [[[9, 0, 0], [11, 1, 1]]]}}}
    )
    report, asked = run(
        images, tmp_path, prompts=tmp_path / "prompts.json", auto_prompt="intensity"
    )
    assert "label 'liver': box" in report["cases"]["a"]["error"] and list(asked) == ["b"]


def test_lines_are_read_used_and_written_back(images, tmp_path):
    line, lasso = [[1, 2, 3], [1, 5, 3]], [[2, 1, 1], [2, 1, 8], [2, 7.5, 4]]
    scribbles = np.zeros(SMALL, np.uint8)
    scribbles[3, 4, 2:5], scribbles[1, 1, 8] = 1, 3
    write_image(tmp_path / "prompts" / "b.nii.gz", scribbles, GEOMETRY)
    spleen = {"scribbles": [line], "scribble_labels": [0], "lassos": [lasso]}
    write_json(tmp_path / "prompts" / "a.json", {"format_version": 1, "labels": {"spleen": spleen}})
    report, asked = run(images, tmp_path, prompts=tmp_path / "prompts", background_value=3)
    assert report["failed"] == 0
    assert [found.tolist() for found in asked["a"]["spleen"].scribbles] == [line]
    assert asked["a"]["spleen"].scribble_labels.tolist() == [0]
    assert [found.tolist() for found in asked["a"]["spleen"].lassos] == [lasso]
    assert list(asked["b"]) == ["liver"]
    used = read_prompts_file(tmp_path / "out" / "prompts_used.json")
    assert {name: used["a"]["spleen"][name] for name in spleen} == spleen
    assert used["b"]["liver"]["scribbles"] == [[[3, 4, 2], [3, 4, 3], [3, 4, 4]], [[1, 1, 8]]]
    assert used["b"]["liver"]["scribble_labels"] == [1, 0]
    _, again = run(images, tmp_path, prompts=tmp_path / "out" / "prompts_used.json")
    for case_id, prompts in asked.items():
        for label, before in prompts.items():
            assert again[case_id][label].to_json() == before.to_json()


def test_a_report_without_lines_is_as_it_always_was(images, tmp_path):
    write_prompts_file(tmp_path / "prompts.json", {c: {"liver": {"boxes": [BOX]}} for c in "ab"})
    run(images, tmp_path, prompts=tmp_path / "prompts.json")
    used = read_prompts_file(tmp_path / "out" / "prompts_used.json")
    fields = ["boxes", "points", "point_labels", "source", "score", "reason"]
    assert list(used["a"]["liver"]) == fields


# masks to correct


@pytest.fixture
def initial(tmp_path) -> Path:
    """A mask of the case a: labels 1 and 5, and the first and the third value after these."""
    array = np.zeros(SMALL, np.uint8)
    array[1, 2:5, 3], array[2, :2, :4], array[3, 0, 0], array[4, 8, 10] = 1, 5, 6, 8
    write_image(tmp_path / "masks" / "a.mha", array, GEOMETRY)
    return tmp_path / "masks"


def places(prompts: Prompts) -> list:
    return np.argwhere(prompts.mask).tolist()


def test_the_labels_of_a_mask_are_corrected(images, initial, tmp_path, caplog):
    before = (initial / "a.mha").read_bytes()
    with caplog.at_level(logging.WARNING):
        report, asked = run(images, tmp_path, initial=initial)
    assert report["failed"] == 0
    assert list(asked["a"]) == ["liver", "lesion", "object 1", "object 3"]
    assert places(asked["a"]["liver"]) == [[1, 2, 3], [1, 3, 3], [1, 4, 3]]
    assert asked["a"]["lesion"].mask.sum() == 8 and asked["a"]["lesion"].source == "file"
    assert places(asked["a"]["object 1"]) == [[3, 0, 0]]
    assert places(asked["a"]["object 3"]) == [[4, 8, 10]]
    assert asked["b"] == dict.fromkeys(LABELS)  # by their names, as without a mask
    assert report["cases"]["a"]["initial"] == str(initial / "a.mha")
    assert report["cases"]["b"]["initial"] is None
    assert f"case b: no mask to correct in {initial}; predicted without" in caplog.text
    assert "case a:" not in caplog.text
    assert [path.name for path in initial.iterdir()] == ["a.mha"]
    assert (initial / "a.mha").read_bytes() == before
    assert "initial" not in run(images, tmp_path)[0]["cases"]["a"]


@pytest.mark.parametrize("name", ["object", "object 1", "Object_1", "object1"])
def test_prompts_say_where_a_mask_is_corrected(images, initial, tmp_path, name):
    given = {"liver": {"points": [[1, 2, 4]]}, "spleen": {"boxes": [BOX]}, name: {"boxes": [BOX]}}
    write_prompts_file(tmp_path / "prompts.json", {"a": given})
    report, asked = run(images, tmp_path, initial=initial, prompts=tmp_path / "prompts.json")
    assert list(asked["a"]) == ["liver", "spleen", name, "lesion", "object 3"]
    liver, spleen, numbered = (asked["a"][label] for label in ("liver", "spleen", name))
    assert liver.points.tolist() == [[1, 2, 4]] and liver.mask.sum() == 3
    assert liver.source == "file" and spleen.mask is None
    assert numbered.boxes.tolist() == [BOX] and places(numbered) == [[3, 0, 0]]
    assert "has no prompts for case 'b', only for a" in report["cases"]["b"]["error"]


def test_a_case_with_a_mask_needs_no_prompts(images, initial, tmp_path):
    write_prompts_file(tmp_path / "prompts.json", {"b": {"liver": {"boxes": [BOX]}}})
    report, asked = run(images, tmp_path, initial=initial, prompts=tmp_path / "prompts.json")
    assert report["failed"] == 0
    assert list(asked["a"]) == ["liver", "lesion", "object 1", "object 3"]
    assert list(asked["b"]) == ["liver"]


def test_automatic_prompts_are_for_the_labels_without_a_mask(images, initial, tmp_path):
    _, asked = run(images, tmp_path, initial=initial, auto_prompt="intensity")
    assert list(asked["a"]) == [*LABELS, "object 1", "object 3"] and list(asked["b"]) == LABELS
    sources = {label: prompts.source for label, prompts in asked["a"].items()}
    assert sources == {
        **dict.fromkeys(["liver", "lesion", "object 1", "object 3"], "file"),
        "spleen": asked["b"]["spleen"].source,
    }
    assert sources["spleen"] != "file"


def test_a_mask_of_nothing_is_as_good_as_none(images, initial, tmp_path):
    write_image(initial / "a.mha", np.zeros(SMALL, np.uint8), GEOMETRY)
    _, asked = run(images, tmp_path, initial=initial)
    assert asked["a"] == dict.fromkeys(LABELS)


def segmented(folder: Path, case_id: str) -> np.ndarray:
    return read_segmentation(folder / f"{case_id}.nii.gz")[0]


def test_a_mask_changes_the_result_and_objects_keep_their_values(images, initial, tmp_path):
    model = Predictor([LevelNetwork(click=1.5)], small_plans())
    names, first, second = (tmp_path / name for name in ("names", "first", "second"))
    predict_files(model, images, names)
    _, labels = blocks(SMALL)
    np.testing.assert_array_equal(segmented(names, "a"), labels)

    # The fake leaves a mask as it is but where a click is.
    mask, _ = read_segmentation(initial / "a.mha")
    click = {
        "lesion": {"points": [[2, 1, 1]], "point_labels": [0]},
        "object": {"points": [4, 4, 4]},
    }
    click["object 2"] = {"points": [[0, 5, 5]]}
    write_prompts_file(tmp_path / "prompts.json", {"a": click, "b": {"object 2": click["object"]}})
    report = predict_files(model, images, first, initial=initial, prompts=tmp_path / "prompts.json")
    expected = mask.copy()
    for (z0, y0, x0), value in (((2, 1, 1), 0), ((4, 4, 4), 6), ((0, 5, 5), 7)):
        z, y, x = np.indices(SMALL)
        near = (z - z0) ** 2 + (y - y0) ** 2 + (x - x0) ** 2 < 1.5**2
        expected[near & (mask == 5) if value == 0 else near] = value
    np.testing.assert_array_equal(segmented(first, "a"), expected)
    assert set(np.unique(expected)) == {0, 1, 5, 6, 7, 8}
    assert set(np.unique(segmented(first, "b"))) == {0, 7}
    found = report["cases"]["a"]["labels"]
    assert list(found) == ["lesion", "object", "object 2", "liver", "object 3"]
    values = {"liver": 1, "lesion": 5, "object": 6, "object 2": 7, "object 3": 8}
    for name, value in values.items():
        assert found[name]["voxels"] == (expected == value).sum() > 0

    # What came out can be given back, and stays as it is.
    report = predict_files(model, images, second, initial=first)
    assert report["failed"] == 0
    for case_id in "ab":
        np.testing.assert_array_equal(segmented(second, case_id), segmented(first, case_id))


def test_two_names_of_one_object_are_that_cases_failure(images, tmp_path):
    point = {"points": [[1, 1, 1]]}
    given = {"a": {"object": point, "object 1": point}, "b": {"object 1": point}}
    write_prompts_file(tmp_path / "prompts.json", given)
    model = Predictor([LevelNetwork(click=1.5)], small_plans())
    report = predict_files(model, images, tmp_path / "out", prompts=tmp_path / "prompts.json")
    assert "'object' and 'object 1' are the same object" in report["cases"]["a"]["error"]
    assert report["failed"] == 1 and segmented(tmp_path / "out", "b")[1, 1, 1] == 6


WRONG_MASKS = [
    ({"spacing": (2.5, 1.0, 0.8)}, 1, "label map and its image differ: spacing"),
    (
        {"direction": (0, 1.0, 0, -1.0, 0, 0, 0, 0, 1.0)},
        1,
        "image differ: direction .*; expected one",
    ),
    ({"origin": (0.0, 9.0, 0.0)}, 1, "the label map and its image differ: origin"),
    ({}, 3, "unknown label.s. 3, by value; the model knows 1 .liver., 2 .spleen., 5 .lesion."),
    ({}, 0.5, "labels must be whole numbers, found 0.5"),
]


@pytest.mark.parametrize(("changes", "value", "message"), WRONG_MASKS)
def test_a_wrong_mask_spoils_its_case_only(images, initial, tmp_path, changes, value, message):
    geometry = Geometry(
        **{"shape": SMALL, "spacing": SPACING, "direction": GEOMETRY.direction, **changes}
    )
    write_image(initial / "a.mha", np.full(SMALL, value, np.float32), geometry)
    report, asked = run(images, tmp_path, initial=initial)
    assert list(asked) == ["b"] and report["failed"] == 1
    with pytest.raises(ValueError, match=rf"masks/a\.mha.*{message}"):
        raise ValueError(report["cases"]["a"]["error"])


def test_two_masks_of_a_case_are_refused(images, initial, tmp_path):
    write_image(initial / "a.nii.gz", np.ones(SMALL, np.uint8), GEOMETRY)
    report, _ = run(images, tmp_path, initial=initial)
    assert "case 'a': found a.nii.gz, a.mha; keep one" in report["cases"]["a"]["error"]


def test_masks_that_cannot_be_used_at_all_are_refused_before_anything_is_written(
    images, initial, tmp_path
):
    model, output = Recording(), tmp_path / "out"
    with pytest.raises(
        FileNotFoundError, match=r"nowhere: no such folder; expected one with masks"
    ):
        predict_files(model, images, output, initial=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"a\.mha: no such folder; expected one with masks"):
        predict_files(model, images, output, initial=initial / "a.mha")
    (initial / "a.mha").rename(initial / "z.mha")
    message = r"no mask to correct for any of the images: expected CASE.* for a, b, found z.mha"
    with pytest.raises(ValueError, match=message):
        predict_files(model, images, output, initial=initial)
    (initial / "z.mha").rename(initial / "a.mha")
    before = (initial / "a.mha").read_bytes()
    case = RawCase(case_id="a", images=(images / "a.nii.gz",), label=None)
    for same in (initial, initial / ".." / "masks"):
        message = r"masks has the masks to correct .*; choose another output folder"
        with pytest.raises(ValueError, match=message):
            predict_files(model, images, same, initial=initial)
        with pytest.raises(ValueError, match=message):
            predict_cases(model, [case], same, PredictionOptions(initial=initial))
    assert not output.exists() and (initial / "a.mha").read_bytes() == before
    assert [path.name for path in initial.iterdir()] == ["a.mha"]


def test_workers_of_a_cluster_find_the_masks(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    job = ClusterJob.of(Path("model"), Path("out"), PredictionOptions(initial="masks"))
    assert job.options.initial == tmp_path / "masks"
    assert ClusterJob.of(Path("m"), Path("o"), PredictionOptions()).options == PredictionOptions()
