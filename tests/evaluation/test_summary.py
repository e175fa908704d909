"""Means, medians and intervals over cases against scipy and numpy."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from promptseg.evaluation.summary import summarize, write_csv


def rows_of(*columns: list[float]) -> list[dict]:
    """Cases with a Dice for each of two labels."""
    return [
        {
            "case": f"case_{number}",
            "metrics": {label: {"Dice": value, "n_ref": 5, "n_pred": 3, "prompt_source": None}
                        for label, value in zip((1, 2), values, strict=True)},
            "prediction_file": "p",
            "reference_file": "r",
        }
        for number, values in enumerate(zip(*columns, strict=True))
    ]  # fmt: skip


NAMES = {1: "organ", 2: "lesion"}


def test_means_medians_and_intervals_are_numpys_and_scipys():
    rng = np.random.default_rng(3)
    dice = rng.beta(8, 2, (2, 40))
    summary = summarize(rows_of(*dice.tolist()), NAMES)
    for label, values in zip(("1", "2"), dice, strict=True):
        assert summary["mean"][label]["Dice"] == pytest.approx(values.mean())
        assert summary["median"][label]["Dice"] == pytest.approx(np.median(values))
        expected = bootstrap(
            (values,), np.mean, method="percentile", n_resamples=4000, random_state=1
        ).confidence_interval
        width = expected.high - expected.low
        np.testing.assert_allclose(
            summary["interval_95"][label]["Dice"], [*expected], atol=0.08 * width
        )
    together = bootstrap(
        (dice.mean(axis=0),), np.mean, method="percentile", n_resamples=4000, random_state=1
    ).confidence_interval
    np.testing.assert_allclose(
        summary["foreground_interval_95"]["Dice"],
        [*together],
        atol=0.08 * (together.high - together.low),
    )
    assert summary == summarize(rows_of(*dice.tolist()), NAMES)  # the draws are the same


def test_undefined_values_are_left_out_of_all_of_them():
    nan = math.nan
    summary = summarize(rows_of([0.2, nan, 0.4, 0.9], [nan, nan, 0.7, nan]), NAMES)
    assert summary["mean"]["1"]["Dice"] == pytest.approx(0.5)
    assert summary["median"]["1"]["Dice"] == 0.4
    low, high = summary["interval_95"]["1"]["Dice"]
    assert low == pytest.approx(0.2) and high == pytest.approx(0.9)  # of three cases
    assert summary["mean"]["2"]["Dice"] == 0.7 and summary["undefined"]["2"]["Dice"] == 3
    assert np.isnan(summary["interval_95"]["2"]["Dice"]).all()  # one case has no spread
    assert summary["foreground_mean"]["Dice"] == pytest.approx(0.6)


def test_without_a_case_everything_is_undefined(tmp_path):
    summary = summarize([], NAMES)
    assert math.isnan(summary["mean"]["1"]["Dice"]) and summary["metric_per_case"] == []
    assert np.isnan(summary["foreground_interval_95"]["Dice"]).all()
    write_csv(tmp_path / "metrics.csv", [], NAMES)
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert list(csv.DictReader(file)) == []
