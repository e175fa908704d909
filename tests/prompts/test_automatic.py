import json

import numpy as np
import pytest

from promptseg.experiment_planning.auto_prompt_cases import fitted_strategies
from promptseg.experiment_planning.auto_prompt_fit import fit_labels
from promptseg.prompts.automatic import auto_prompt, propose_boxes
from promptseg.prompts.strategies import AUTO_PROMPTERS
from tests.prompts.strategies.fitted_cases import AS_IT_IS, SPACING, block_cases


@pytest.fixture(scope="module")
def auto_prompts():
    fit = fit_labels(block_cases(10, unfitted=("intensity",)), ["block"])
    return json.loads(json.dumps(fit.labels))


@pytest.fixture(scope="module")
def image():
    image = np.random.default_rng(9).normal(60, 12, (1, 20, 36, 28)).clip(0, 255)
    image[0, 5:13, 15:27, 8:18] = 200
    return image


def propose(image, auto_prompts, **options):
    return propose_boxes(
        image, SPACING, auto_prompts=auto_prompts, normalizations=(AS_IT_IS,), **options
    )


def test_the_plans_choice_is_followed_and_near_the_truth(auto_prompts, image):
    proposal = propose(image, auto_prompts)["block"]
    np.testing.assert_allclose(proposal.box, [[5, 15, 8], [13, 27, 18]], atol=2)
    assert proposal.reason == "ok"
    chosen = auto_prompts["block"]["strategy"]
    forced = propose(image, auto_prompts, strategy=chosen)["block"]
    np.testing.assert_array_equal(forced.box, proposal.box)


@pytest.mark.parametrize("name", fitted_strategies())
def test_a_forced_strategy_uses_its_fitted_parameters(name, auto_prompts, image):
    parameters = auto_prompts["block"]["candidates"][name]["parameters"]
    alone = AUTO_PROMPTERS.get(name)(**parameters).propose(image[0], SPACING)
    proposal = propose(image, auto_prompts, strategy=name)["block"]
    np.testing.assert_array_equal(proposal.box, alone.box)
    assert 0 <= proposal.score <= 1 and proposal.score != alone.score


def test_intensity_needs_no_fit_and_runs_once_for_all_labels(image, monkeypatch):
    cls = AUTO_PROMPTERS.get("intensity")
    original, calls = cls.propose, []
    monkeypatch.setattr(
        cls, "propose", lambda self, *rest: calls.append(1) or original(self, *rest)
    )
    unfitted = {"strategy": "none", "reason": "", "candidates": {}}
    proposals = propose(image, {"a": unfitted, "b": unfitted}, strategy="intensity")
    assert len(calls) == 1
    monkeypatch.undo()
    expected = auto_prompt(image[0], strategy="intensity").box
    for label in "ab":
        np.testing.assert_array_equal(proposals[label].box, expected)


def test_the_score_foresees_that_a_box_in_noise_is_worse(auto_prompts, image):
    # Only intensity evidence differs: the same place and size, with and without the block.
    nothing = np.random.default_rng(9).normal(60, 12, image.shape).clip(0, 255)
    good = propose(image, auto_prompts, strategy="regression")["block"].score
    bad = propose(nothing, auto_prompts, strategy="regression")["block"].score
    assert good > bad


def test_labels_without_a_usable_strategy_say_so(image):
    entry = {"strategy": "none", "reason": "best is below", "candidates": {}}
    proposal = propose(image, {"block": entry})["block"]
    assert proposal.box is None and proposal.boxes == ()
    assert proposal.reason == "no_usable_strategy" and proposal.score == 0


def test_no_labels_no_proposals(image):
    assert propose(image, {}) == {}


def test_forcing_a_strategy_that_was_not_fitted_names_label_and_choices(image):
    entry = {"strategy": "none", "reason": "", "candidates": {}}
    with pytest.raises(
        ValueError, match="'atlas' has no fitted parameters for label 'block'.*none"
    ):
        propose(image, {"block": entry}, strategy="atlas")


def test_an_unknown_strategy_lists_what_exists(auto_prompts, image):
    with pytest.raises(ValueError, match="unknown automatic prompt 'atlsa'; registered: .*atlas"):
        propose(image, auto_prompts, strategy="atlsa")


def test_other_channels_are_not_looked_at(auto_prompts, image):
    two = np.concatenate([image, np.full_like(image, np.nan)])
    np.testing.assert_array_equal(
        propose(two, auto_prompts)["block"].box, propose(image, auto_prompts)["block"].box
    )
