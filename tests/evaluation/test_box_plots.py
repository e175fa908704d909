"""Box plots: their size, what they say, and cases that are undefined."""

from __future__ import annotations

import math

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from promptseg.evaluation.box_plots import draw_box_plots


def summary_of(dice: dict[str, list[float]]) -> dict:
    count = len(next(iter(dice.values())))
    return {
        "labels": {str(n): name for n, name in enumerate(dice, 1)},
        "mean": {str(n): {"nsd_1mm": 0.5, "nsd_2mm": 0.5} for n in range(1, len(dice) + 1)},
        "metric_per_case": [
            {
                "metrics": {
                    str(n): {"Dice": v[i], "nsd_1mm": 0.1, "nsd_2mm": v[i], "hd95_mm": 9 - v[i]}
                    for n, v in enumerate(dice.values(), 1)
                }
            }
            for i in range(count)
        ],
    }


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that are saved."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1]
    )
    return figures


def test_every_label_has_a_box_its_number_of_cases_and_its_values(tmp_path, drawn):
    nan = math.nan
    values = {"liver": [0.7, 0.8, 0.9, 0.95], "a tumour of the left kidney": [0.1, nan, nan, 0.5]}
    draw_box_plots(tmp_path / "metrics.png", summary_of(values))
    height, width, _ = matplotlib.image.imread(tmp_path / "metrics.png").shape
    assert width == 1050 and 300 < height < 500  # 3.5 inches of 300 dots
    dice, nsd, hd95 = drawn[0].axes
    ticks = [text.get_text() for text in dice.get_yticklabels()]
    assert ticks == ["liver (n = 4)", "a tumour of the...\n(n = 2)"]
    titles = [axis.get_xlabel() for axis in drawn[0].axes]
    assert titles == ["Dice", "NSD (2 mm)", "HD95 (mm)"]
    assert dice.get_xlim()[1] > 1.0 > nsd.get_xlim()[0]
    shown = {float(x) for line in dice.lines if line.get_marker() == "." for x in line.get_xdata()}
    assert shown == {0.7, 0.8, 0.9, 0.95, 0.1, 0.5}
    assert len(dice.patches) == len(hd95.patches) == 2


def test_a_label_without_a_figure_and_many_cases_are_drawn(tmp_path, drawn):
    rng = np.random.default_rng(0)
    many = {"liver": rng.beta(9, 1, 300).tolist(), "lesion": [math.nan] * 300}
    draw_box_plots(tmp_path / "metrics.png", summary_of(many))
    assert [text.get_text() for text in drawn[0].axes[0].get_yticklabels()] == [
        "liver (n = 300)", "lesion (n = 0)",
    ]  # fmt: skip
    assert len(drawn[0].axes[0].patches) == 1
