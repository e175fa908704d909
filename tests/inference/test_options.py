"""What can be chosen about a prediction, and what is refused before anything is loaded."""

from __future__ import annotations

import pytest

from promptseg.inference.options import PredictionOptions, check_for_loaded


@pytest.mark.parametrize("name", ["n_perturbations", "readers", "writers"])
def test_negative_numbers_are_refused_before_anything_is_removed(name):
    with pytest.raises(ValueError, match=f"{name} must be 0 or more, got -1"):
        PredictionOptions(**{name: -1})


def test_each_part_has_files_of_its_own():
    assert PredictionOptions().suffix == ""
    assert PredictionOptions(parts=3, part=2).suffix == "_part2"


def test_a_loaded_predictor_takes_what_concerns_the_run_alone():
    check_for_loaded(PredictionOptions())
    check_for_loaded(
        PredictionOptions(auto_prompt="plans", parts=2, readers=0, imports=["m"], review_list="r")
    )
    with pytest.raises(ValueError, match="checkpoint, device: the predictor is loaded already"):
        check_for_loaded(PredictionOptions(checkpoint="checkpoint_best.pth", device="cpu"))
