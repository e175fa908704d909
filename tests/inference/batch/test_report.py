"""The order in which a person should look at cases."""

from __future__ import annotations

import csv

import pytest

from promptseg.inference.batch.report import review_rows, write_review_list


def label(predicted_iou, prompt_consistency=None, *flags):
    return {
        "predicted_iou": predicted_iou,
        "prompt_consistency": prompt_consistency,
        "flags": list(flags),
    }


def done(**labels):
    return {"status": "done", "labels": labels}


REPORT = {
    "cases": {
        "good": done(liver=label(0.95, 0.9), spleen=label(0.97)),
        "fair": done(liver=label(0.8, 0.85)),
        "moves": done(liver=label(0.99, 0.75)),
        "lost": done(liver=label(0.99), spleen=label(None, None, "not_found_by_name", "no_box")),
        "flagged": done(liver=label(0.3, 0.9, "low_predicted_quality"), spleen=label(0.2)),
        "other": done(liver=label(0.9, 0.9, "not_like_training"), spleen=label(0.95)),
        "kept": {"status": "kept"},
        "kept before": {**done(liver=label(0.6)), "status": "kept"},
        "bad": {"status": "failed", "error": 'no "image",\nbut text'},
        "a bad": {"status": "failed", "error": "empty"},
        "nothing asked": done(),
    }
}
EXPECTED = [  # failed by name, unlike the training, flagged, the rest; each by its worst label
    ("a bad", None, "", "failed: empty"),
    ("bad", None, "", 'failed: no "image",\nbut text'),
    ("other", 0.9, "liver", "not_like_training"),
    ("lost", 0.0, "spleen", "not_found_by_name; no_box"),
    ("flagged", 0.3, "liver", "low_predicted_quality"),
    ("kept before", 0.6, "liver", ""),
    ("moves", 0.75, "liver", ""),
    ("fair", 0.8, "liver", ""),
    ("good", 0.9, "liver", ""),
]


def test_failed_cases_come_first_then_flagged_then_the_worst():
    assert [tuple(row.values()) for row in review_rows(REPORT)] == EXPECTED
    turned = {"cases": dict(reversed(REPORT["cases"].items()))}
    assert review_rows(turned) == review_rows(REPORT)


def test_the_list_is_a_csv_that_programs_read(tmp_path):
    path = tmp_path / "new" / "review.csv"
    write_review_list(path, REPORT)
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["case", "quality", "label", "reasons"]
    assert [row["case"] for row in rows] == [case for case, *_ in EXPECTED]
    assert [row["quality"] for row in rows][:4] == ["", "", "0.900", "0.000"]
    assert rows[1]["reasons"] == 'failed: no "image",\nbut text'


@pytest.mark.parametrize("cases", [{}, {"a": {"status": "kept"}}])
def test_nothing_to_review_is_an_empty_list(tmp_path, cases):
    write_review_list(tmp_path / "review.csv", {"cases": cases})
    assert (tmp_path / "review.csv").read_text().split() == ["case,quality,label,reasons"]
