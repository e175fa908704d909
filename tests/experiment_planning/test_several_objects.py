import numpy as np
import pytest

from promptseg.experiment_planning import locator_fit
from promptseg.experiment_planning.auto_prompt_cases import Reduction, reduce_case
from promptseg.experiment_planning.auto_prompt_fit import fit_labels
from promptseg.experiment_planning.auto_prompt_scores import ious_of, off_centre
from promptseg.experiment_planning.several_objects import (
    are_several,
    best_ious,
    detection_figures,
    with_objects,
)
from promptseg.prompts.auto_prompter import Proposal
from tests.prompts.strategies.fitted_cases import AS_IT_IS

SPACING = (2.0, 1.0, 1.5)
SHAPE = (24, 44, 30)


def box(z, y, x, size=(6, 8, 7)):
    return np.array([[z, y, x], [z + size[0], y + size[1], x + size[2]]])


def case_of(boxes, number=0, crumbs=()):
    rng = np.random.default_rng(number)
    segmentation = np.zeros(SHAPE, np.uint8)
    for one in [*boxes, *crumbs]:
        segmentation[tuple(slice(a, b) for a, b in one.T)] = 1
    image = np.where(segmentation, 190.0, 60.0) + rng.normal(0, 10, SHAPE)
    reduction = Reduction.for_all_strategies({"a": 1}, AS_IT_IS)
    return reduce_case(f"c{number:02d}", image.clip(0, 255), segmentation, SPACING, reduction)


def proposal(*boxes, scores=()):
    if not boxes:
        return Proposal(box=None, score=0.0, reason="nothing_found")
    return Proposal(box=boxes[0], score=0.5, reason="ok", boxes=boxes, scores=scores)


def test_objects_are_the_components_without_crumbs_the_largest_first():
    large, small = box(2, 3, 4), box(12, 30, 15, (5, 5, 5))
    case = case_of([small, large], crumbs=[box(20, 40, 28, (1, 2, 1))])
    found = case.truths["a"].objects
    assert [b.tolist() for b in found] == [large.tolist(), small.tolist()]
    assert case.truths["a"].box.tolist() == [[2, 3, 4], [21, 42, 29]]
    moved = off_centre(case, "a")
    shift = case.truths["a"].box[0] - moved.truths["a"].box[0]
    assert [b.tolist() for b in moved.truths["a"].objects] == [(b - shift).tolist() for b in found]


def test_a_label_is_several_objects_where_half_of_its_cases_have_two():
    one, two = [box(2, 3, 4)], [box(2, 3, 4), box(12, 30, 15)]
    cases = [case_of(boxes, i) for i, boxes in enumerate([one, two, two])]
    assert [len(c.truths["a"].objects) for c in with_objects(cases)] == [1, 2, 2]
    assert are_several(with_objects(cases), "a") and not are_several(cases, "not there")
    cases = with_objects([case_of(one, 0), case_of(one, 1), case_of(two, 2)])
    assert not are_several(cases, "a")
    (whole,) = cases[2].truths["a"].objects
    assert whole.tolist() == cases[2].truths["a"].box.tolist()


def test_the_box_iou_of_several_objects_is_that_of_the_nearest_boxes():
    first, second = box(2, 3, 4), box(12, 30, 15)
    cases = [case_of([first, second], i) for i in range(2)]
    half = box(2, 3, 4, (3, 8, 7))
    ious = ious_of([proposal(second, half), proposal()], cases, "a")
    assert ious == pytest.approx([(1 + 0.5) / 2, 0.0])
    assert best_ious(proposal(half), [first, second]) == pytest.approx([0.5, 0.0])


def test_detection_figures_are_those_counted_by_hand():
    first, second, third = box(2, 3, 4), box(12, 30, 15), box(3, 20, 18)
    two_fifths = box(12, 30, 15, (6, 8, 3))  # IoU 3/7 with `second`
    proposals = [
        proposal(first, two_fifths, first, scores=(0.9, 0.8, 0.7)),  # the third box is one too many
        proposal(third, scores=(0.6,)),
        proposal(),
    ]
    found = detection_figures(proposals, [[first, second], [], [third]])
    assert found["objects"] == 1.5  # of the cases that have any
    assert found["precision_0.3"] == pytest.approx(2 / 4)
    assert found["recall_0.3"] == pytest.approx(2 / 3)
    assert found["f1_0.3"] == pytest.approx(2 * 2 / (4 + 3))
    assert found["precision_0.5"] == pytest.approx(1 / 4)
    assert found["recall_0.5"] == pytest.approx(1 / 3)
    assert found["f1_0.5"] == pytest.approx(2 / 7)
    curve = found["recall_at_false_a_case"]
    assert curve["0.125"] == curve["0.25"] == pytest.approx(1 / 3)


def test_the_surest_box_finds_an_object_and_what_is_less_sure_is_wrong():
    first, second = box(2, 3, 4), box(12, 30, 15)
    lucky = [proposal(first, box(18, 0, 0), scores=(0.2, 0.9)), proposal(second, scores=(0.8,))]
    curve = detection_figures(lucky, [[first], [second]])["recall_at_false_a_case"]
    assert curve["0.25"] == 0.0  # the surest of all is wrong: half a box a case
    assert curve["0.5"] == 1.0


def test_nothing_proposed_or_nothing_there_is_no_crash():
    found = detection_figures([proposal(), proposal()], [[], []])
    assert found["f1_0.5"] == 0.0 and found["objects"] == 0.0
    assert set(found["recall_at_false_a_case"].values()) == {0.0}


def test_planning_boxes_each_of_several_objects_on_cases_it_has_not_seen(monkeypatch):
    monkeypatch.setattr(locator_fit, "STEPS", (120, 120))
    monkeypatch.setattr(locator_fit, "FOLDS", 2)
    rng, cases = np.random.default_rng(5), []
    for number in range(10):
        z, x = rng.integers(1, 16), rng.integers(1, 21)
        places = [box(z, y + rng.integers(0, 3), x) for y in (1, 15, 30)]
        cases.append(case_of(places[: 3 - number % 2], number))
    fit = fit_labels(cases, ["a"], locator=True)
    entry = fit.labels["a"]
    assert entry["strategy"] == "locator" and fit.locator.several == {"a"}
    detection = entry["candidates"]["locator"]["detection"]
    assert detection["objects"] == 2.5 and detection["f1_0.5"] > 0.8
    assert "2.5 objects a case: F1 0." in entry["reason"]
    assert {len(boxes["a"]) for boxes in fit.proposals.values()} <= {2, 3, 4}
