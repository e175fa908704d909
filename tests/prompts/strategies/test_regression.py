import numpy as np
import pytest
from sklearn.linear_model import Ridge

from promptseg.boxes import box_iou
from promptseg.prompts.strategies import regression
from promptseg.prompts.strategies.regression import RegressionPrompter, _ridge
from tests.prompts.strategies.fitted_cases import block_cases


def test_ridge_recovers_a_linear_rule_for_every_target():
    rng = np.random.default_rng(1)
    features, true = rng.normal(size=(300, 9)), rng.normal(size=(10, 6))
    targets = features @ true[:-1] + true[-1]
    weights = _ridge(features, targets, np.repeat(np.arange(30), 10))
    np.testing.assert_allclose(weights, true, atol=0.05)


def test_ridge_agrees_with_the_closed_form(monkeypatch):
    monkeypatch.setattr(regression, "PENALTIES", (0.5,))
    rng = np.random.default_rng(4)
    x, y = rng.normal(2, 3, (60, 8)), rng.normal(1, 2, (60, 6))
    # Features are divided by sqrt(8) before the penalty 0.5 * 60 applies: 0.5 * 60 * 8 without.
    centred = x - x.mean(0)
    expected = np.linalg.solve(centred.T @ centred + 240 * np.eye(8), centred.T @ y)
    weights = _ridge(x, y, np.arange(60))
    np.testing.assert_allclose(weights[:-1], expected)
    np.testing.assert_allclose(x.mean(0) @ weights[:-1] + weights[-1], y.mean(0))


def test_ridge_is_scikit_learns_with_the_best_penalty_of_each_target():
    rng = np.random.default_rng(3)
    features = rng.normal(size=(90, 12))
    rule = np.c_[features[:, 0], rng.normal(size=90)]  # one to be learned, one of noise alone
    targets, owners = rule + 0.1 * rng.normal(size=(90, 2)), np.repeat(np.arange(15), 6)
    x, y = (features - features.mean(0)) / np.sqrt(12), targets - targets.mean(0)
    errors = np.zeros((len(regression.PENALTIES), 2))
    for out in (owners % 3 == third for third in range(3)):
        for i, penalty in enumerate(regression.PENALTIES):
            ridge = Ridge(alpha=penalty * (~out).sum(), fit_intercept=False).fit(x[~out], y[~out])
            errors[i] += np.abs(y[out] - ridge.predict(x[out])).sum(axis=0)
    best = np.array(regression.PENALTIES)[errors.argmin(axis=0)]
    assert best[0] < best[1]
    ridge = Ridge(alpha=best * 90, fit_intercept=False).fit(x, y)

    solution = _ridge(features, targets, owners)

    np.testing.assert_allclose(solution[:-1], ridge.coef_.T / np.sqrt(12), atol=1e-10)


def test_regression_is_nearer_than_the_atlas_that_it_starts_from():
    samples = [case.sample("block") for case in block_cases(15)]
    prompter = RegressionPrompter(**RegressionPrompter.fit(samples))
    better, start = [], []
    for case in block_cases(10, first=60):
        truth = case.sample("block").box_mm
        better.append(box_iou(prompter.locate(case.view), truth))
        start.append(box_iou(prompter.start.locate(case.view), truth))
    assert np.mean(better) > np.mean(start) + 0.15


def test_damaged_weights_are_refused():
    parameters = RegressionPrompter.fit([c.sample("block") for c in block_cases(3)])
    parameters["steps"] = [parameters["steps"][0][:-8]]
    with pytest.raises(ValueError):
        RegressionPrompter(**parameters)
