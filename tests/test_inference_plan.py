import json

import pytest

from promptseg.inference_plan import FILE_NAME, InferencePlan, PostProcessing


@pytest.fixture
def plan(tmp_path):
    for name in ("A__P__3d", "B__P__3d"):
        (tmp_path / name).mkdir()
    steps = {"liver": PostProcessing(min_mm3=3.5)}
    return InferencePlan(models=("A__P__3d", "B__P__3d"), folds=("0", "1"), postprocessing=steps)


def test_a_plan_is_read_as_it_was_written(plan, tmp_path):
    plan.save(tmp_path)
    assert InferencePlan.load(tmp_path) == plan
    assert "A__P__3d + B__P__3d, folds 0, 1" in plan.in_words and "3.5 mm3" in plan.in_words


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "expected an inference plan of format 1"),
        ({"models": ["../A__P__3d"]}, "models: expected a list of names"),
        ({"models": ["/etc"]}, "models: expected a list of names"),
        ({"models": [".."]}, "models: expected a list of names"),
        ({"models": "A__P__3d"}, "models: expected a list of names"),
        ({"models": []}, "models: expected a list of names"),
        ({"models": ["C__P__3d"]}, "no model folder C__P__3d"),
        ({"folds": [0]}, "folds: expected a list of names"),
        ({"folds": ["0/../.."]}, "folds: expected a list of names"),
        ({"auto_prompt": 3}, "auto_prompt: expected"),
        ({"postprocessing": [1]}, "postprocessing: expected an object"),
        ({"postprocessing": {"liver": {"min_mm3": -1}}}, "'liver': min_mm3"),
        ({"postprocessing": {"liver": {"min_mm3": float("nan")}}}, "'liver': min_mm3"),
        ({"postprocessing": {"liver": {"min_mm3": True}}}, "'liver': min_mm3"),
        ({"postprocessing": {"liver": {"fill_holes": 1}}}, "'liver': fill_holes"),
        ({"postprocessing": {"liver": {"open": 1}}}, "'liver': expected .* found open"),
        ({"postprocessing": {"liver": 3}}, "'liver': expected"),
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused_by_name(plan, tmp_path, change, message):
    path = plan.save(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message) as error:
        InferencePlan.load(tmp_path)
    assert FILE_NAME in str(error.value)
