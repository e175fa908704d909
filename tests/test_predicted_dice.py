import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.ensemble import RandomForestRegressor

from promptseg import predicted_dice
from promptseg.inference.load import DICE_SAMPLES, load_predictor
from promptseg.predicted_dice import (
    DiceEstimator,
    DiceSample,
    are_enough,
    estimator_of_files,
    read_samples,
    write_samples,
)
from tests.saved_model import saved_model
from tests.small_plans import small_plans


def made(count, seed, first=0):
    """Samples whose Dice falls with noise, and with how far the size is from the label's."""
    rng, samples = np.random.default_rng(seed), []
    for number in range(count):
        label = ("liver", "spleen")[number % 2]
        usual = {"liver": 6.0, "spleen": 5.0}[label]
        copy = ("", "noise")[rng.random() < 0.6]
        noise = rng.uniform(2, 10) if copy else rng.uniform(0, 2)
        size = usual + rng.normal(0, 0.1) - (rng.random() < 0.2) * rng.uniform(0.5, 1.5)
        dice = 0.95 - 0.05 * noise - 0.3 * min(1, abs(size - usual)) + rng.normal(0, 0.02)
        evidence = {"noise": noise, "log_mm3": size, "useless": rng.normal()}
        if rng.random() < 0.1:
            del evidence["useless"]
        dice = float(np.clip(dice, 0, 1))
        group = first + number // 6
        samples.append(
            DiceSample(group=group, copy=copy, label=label, dice=dice, evidence=evidence)
        )
    return samples


@pytest.fixture(scope="module")
def estimator():
    return DiceEstimator(made(240, 0))


def test_the_dice_of_new_masks_is_ranked_and_its_intervals_hold_what_they_promise(estimator):
    new = made(150, 1)
    told = [estimator.predict(sample.label, sample.evidence) for sample in new]
    dice = np.array([sample.dice for sample in new])
    assert spearmanr([t.value for t in told], dice).statistic > 0.9
    held = np.mean([t.low <= d <= t.high for t, d in zip(told, dice, strict=True)])
    assert 0.7 < held < 0.9
    assert np.mean([t.high - t.low for t in told]) < 0.2
    assert all(0 <= t.low <= t.value <= t.high <= 1 for t in told)


def test_a_size_that_is_usual_of_another_label_is_not_of_this_one(estimator):
    clear = {"noise": 1.0, "useless": 0.0}
    good = estimator.predict("liver", {**clear, "log_mm3": 6.0})
    bad = estimator.predict("liver", {**clear, "log_mm3": 5.0})
    assert good.value > 0.85 and bad.value < good.value - 0.15
    assert estimator.predict("spleen", {**clear, "log_mm3": 5.0}).value > 0.85
    assert estimator.predict("kidney", clear) is None


def test_forests_that_judge_a_sample_have_not_seen_its_case(monkeypatch):
    seen = []

    class Recorded(RandomForestRegressor):
        def fit(self, rows, dice):
            seen.append(np.asarray(dice))
            return super().fit(rows, dice)

    monkeypatch.setattr("sklearn.ensemble.RandomForestRegressor", Recorded)
    samples = made(60, 2)
    estimator = DiceEstimator(samples)
    assert seen == []  # a model is loaded more often than it predicts
    assert estimator.left_out[0].shape == (60,)
    estimator.predict("liver", samples[0].evidence)
    *left_out, whole = seen
    assert len(whole) == 60 and sum(60 - len(dice) for dice in left_out) == 60
    for dice in left_out:
        groups = {s.group for s in samples if s.dice not in dice}
        assert not any(s.dice in dice for s in samples if s.group in groups)


def test_the_width_is_the_quantile_of_scaled_errors(estimator):
    samples = made(240, 0)
    dice = np.array([s.dice for s in samples])
    expected, spread = estimator.left_out
    low, high = estimator.interval(expected, spread)
    outside = ((dice < low - 1e-12) | (dice > high + 1e-12)).sum()
    assert outside == 240 - int(np.ceil(241 * predicted_dice.COVERAGE))


def test_it_learns_the_same_again(estimator):
    again = DiceEstimator(made(240, 0))
    evidence = {"noise": 3.0, "log_mm3": 5.5}
    assert again.predict("liver", evidence) == estimator.predict("liver", evidence)


def test_few_masks_or_cases_teach_nothing():
    assert not are_enough(made(29, 0))
    assert not are_enough([dataclasses.replace(s, group=s.group % 3) for s in made(90, 0)])
    with pytest.raises(ValueError, match="29 samples are too few .* 30 of 4 cases are needed"):
        DiceEstimator(made(29, 0))


def test_samples_are_read_as_they_were_written(tmp_path):
    write_samples(tmp_path / "s.json", made(7, 0))
    assert read_samples(tmp_path / "s.json") == made(7, 0)


GOOD = {"group": 0, "copy": "", "label": "liver", "dice": 0.5, "evidence": {"noise": 1.0}}


@pytest.mark.parametrize(
    "content",
    [
        [],
        "text",
        {},
        {"format_version": 2, "samples": []},
        {"format_version": 1},
        {"format_version": 1, "samples": 3},
        {"format_version": 1, "samples": [3]},
        {"format_version": 1, "samples": [{}]},
        {"format_version": 1, "samples": [{**GOOD, "more": 1}]},
        {"format_version": 1, "samples": [{**GOOD, "dice": None}]},
        {"format_version": 1, "samples": [{**GOOD, "dice": "0.5"}]},
        {"format_version": 1, "samples": [{**GOOD, "group": "a"}]},
        {"format_version": 1, "samples": [{**GOOD, "label": 1}]},
        {"format_version": 1, "samples": [{**GOOD, "evidence": [1.0]}]},
        {"format_version": 1, "samples": [{**GOOD, "evidence": {"noise": "loud"}}]},
    ],
)
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "s.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"s\.json is not what validation writes .*remove it"):
        read_samples(tmp_path / "s.json")


def test_a_model_learns_from_the_folds_in_use(tmp_path):
    folder = saved_model(tmp_path / "model", small_plans(), folds=("0", "1"))
    assert load_predictor(folder).dice_estimator is None
    for fold, seed in (("0", 0), ("1", 1)):
        write_samples(folder / f"fold_{fold}" / DICE_SAMPLES, made(18, seed))
    assert estimator_of_files([folder / "fold_0" / DICE_SAMPLES]) is None  # too few
    estimator = load_predictor(folder).dice_estimator
    both = [*made(18, 0), *(dataclasses.replace(s, group=s.group + 3) for s in made(18, 1))]
    assert (estimator.left_out[0] == DiceEstimator(both).left_out[0]).all()
