"""Prompts that a person gives, and automatic ones for all the rest."""

from __future__ import annotations

import numpy as np
import pytest

from promptseg.files import write_json
from promptseg.inference.batch.predict_files import predict_files
from promptseg.inference.predictor import Predictor
from promptseg.io.images import Geometry, write_image
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
