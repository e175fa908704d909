"""The Dice to expect of a mask, with an interval, learned from masks whose Dice is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from promptseg.files import read_json, write_json
from promptseg.words import short

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestRegressor

COVERAGE = 0.8  # of the intervals
FEWEST_SAMPLES, FEWEST_GROUPS = 30, 4  # of which anything is learned
FOLDS = 5
TREES, LEAF = 100, 3
FLOOR = 0.02  # of Dice, added to the spread of the trees
SEED = 12345
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class DiceSample:
    """A mask of which everything is known.

    Attributes:
        group: number of the case; copies of one case have the same.
        copy: how the image was degraded; empty for the image itself.
        label: name.
        dice: of the mask.
        evidence: what can be told of the mask without knowing its Dice.
    """

    group: int
    copy: str
    label: str
    dice: float
    evidence: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class PredictedDice:
    """A Dice, and the interval that holds it in `COVERAGE` of masks like those of the samples."""

    value: float
    low: float
    high: float


class DiceEstimator:
    """Predicts the Dice of masks by a random forest, and the interval by conformal prediction.

    Evidence is compared with what is usual of the label: each number is also given as its distance
    from the label's median on images that were not degraded, in units of their spread. Intervals
    are those of cross-validation: errors on cases that were left out, relative to how far the
    trees are apart. The samples are what is stored; the forests are made of them when a Dice is
    first predicted, in about a second.

    Source:
        Barber et al. 2021, arXiv:1905.02928 (CV+); Lei et al. 2018, arXiv:1604.04173, section 5.2
        (residuals that are scaled by a local spread).
    """

    def __init__(self, samples: Sequence[DiceSample]) -> None:
        """Keep what will be learned from.

        Raises:
            ValueError: if they are too few, see `are_enough`.
        """
        if not are_enough(samples):
            raise ValueError(
                f"{len(samples)} samples are too few to predict a Dice from; {FEWEST_SAMPLES} of "
                f"{FEWEST_GROUPS} cases are needed"
            )
        self.labels = tuple(sorted({sample.label for sample in samples}))
        self._names = sorted({name for sample in samples for name in sample.evidence})
        self._usual = {label: self._usual_of(label, samples) for label in self.labels}
        self._rows = np.stack([self._row(sample.label, sample.evidence) for sample in samples])
        self._dice = np.array([sample.dice for sample in samples])
        self._groups = np.array([sample.group for sample in samples])

    @cached_property
    def left_out(self) -> tuple[np.ndarray, np.ndarray]:
        """(n,) means and standard deviations of the trees of forests that did not see the case."""
        return _left_out(self._rows, self._dice, self._groups)

    @cached_property
    def _width(self) -> float:
        """The quantile of the errors on cases that were left out, relative to the spread."""
        expected, spread = self.left_out
        errors = np.sort(np.abs(self._dice - expected) / (spread + FLOOR))
        rank = int(np.ceil((len(errors) + 1) * COVERAGE)) - 1
        return float(errors[min(rank, len(errors) - 1)])

    @cached_property
    def _forest(self) -> RandomForestRegressor:
        return _new_forest().fit(self._rows, self._dice)

    def predict(self, label: str, evidence: Mapping[str, float]) -> PredictedDice | None:
        """The Dice of a label's mask; None for a label that no sample has."""
        if label not in self.labels:
            return None
        expected, spread = _mean_and_spread(self._forest, self._row(label, evidence)[None])
        low, high = self.interval(expected, spread)
        return PredictedDice(value=float(expected[0]), low=float(low[0]), high=float(high[0]))

    def interval(self, expected: np.ndarray, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends for (n,) means and standard deviations of the trees."""
        reach = self._width * (spread + FLOOR)
        return np.clip(expected - reach, 0, 1), np.clip(expected + reach, 0, 1)

    def _usual_of(self, label: str, samples: Sequence[DiceSample]) -> tuple[np.ndarray, np.ndarray]:
        """Median and spread of each number of a label, of images that were not degraded."""
        of_label = [s for s in samples if s.label == label]
        plain = [s for s in of_label if not s.copy] or of_label
        numbers = np.array([[s.evidence.get(name, np.nan) for name in self._names] for s in plain])
        known = np.isfinite(numbers).any(axis=0)
        middle, spread = np.zeros(numbers.shape[1]), np.ones(numbers.shape[1])
        middle[known] = np.nanmedian(numbers[:, known], axis=0)
        spread[known] = np.nanstd(numbers[:, known], axis=0)
        return middle, np.maximum(spread, 1e-3 * np.maximum(1.0, np.abs(middle)))

    def _row(self, label: str, evidence: Mapping[str, float]) -> np.ndarray:
        numbers = np.array([evidence.get(name, np.nan) for name in self._names], float)
        middle, spread = self._usual[label]
        unusual = np.clip((numbers - middle) / spread, -20, 20)
        return np.concatenate([numbers, unusual, np.abs(unusual)])


def are_enough(samples: Sequence[DiceSample]) -> bool:
    """Whether a `DiceEstimator` can learn from them."""
    groups = {sample.group for sample in samples}
    return len(samples) >= FEWEST_SAMPLES and len(groups) >= FEWEST_GROUPS


def _new_forest() -> RandomForestRegressor:
    from sklearn.ensemble import RandomForestRegressor  # slow to import

    return RandomForestRegressor(
        TREES, min_samples_leaf=LEAF, max_features=0.4, random_state=SEED, n_jobs=1
    )


def _mean_and_spread(forest: RandomForestRegressor, rows: np.ndarray) -> tuple[np.ndarray, ...]:
    answers = np.stack([tree.predict(rows) for tree in forest.estimators_])
    return answers.mean(axis=0), answers.std(axis=0)


def _left_out(
    rows: np.ndarray, dice: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of forests that have not seen the case, for each sample."""
    from sklearn.model_selection import GroupKFold

    expected, spread = np.empty(len(dice)), np.empty(len(dice))
    folds = GroupKFold(min(FOLDS, len(np.unique(groups))))
    for seen, left_out in folds.split(rows, dice, groups):
        forest = _new_forest().fit(rows[seen], dice[seen])
        expected[left_out], spread[left_out] = _mean_and_spread(forest, rows[left_out])
    return expected, spread


def write_samples(path: Path, samples: Iterable[DiceSample]) -> None:
    """Write samples as JSON, atomically."""
    rows = [asdict(sample) for sample in samples]
    write_json(path, {"format_version": FORMAT_VERSION, "samples": rows})


def read_samples(path: Path) -> list[DiceSample]:
    """Read what `write_samples` wrote.

    Raises:
        ValueError: naming the file, if it holds anything else.
    """
    content = read_json(path)
    try:
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version {content['format_version']}")
        return [_sample(row) for row in content["samples"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{path} is not what validation writes to predict the Dice from: {reason}; copy it "
            f"again from where the model was trained, or remove it, and no Dice is predicted"
        ) from error


def _sample(row: Any) -> DiceSample:
    if set(row) != {field.name for field in fields(DiceSample)}:
        raise ValueError(f"found {short(row, 80)}")
    numbers = [row["dice"], *row["evidence"].values()]
    if not all(isinstance(n, (int, float)) and np.isfinite(n) for n in numbers):
        raise ValueError(f"numbers that are not finite in {short(row, 80)}")
    if not (isinstance(row["group"], int) and isinstance(row["label"], str)):
        raise ValueError(f"found {short(row, 80)}")
    return DiceSample(**{**row, "copy": str(row["copy"]), "dice": float(row["dice"])})


def estimator_of_files(files: Iterable[Path]) -> DiceEstimator | None:
    """What the samples of several folds teach together; None if they are too few.

    Raises:
        ValueError: naming a file that is damaged.
    """
    samples: list[DiceSample] = []
    for file in files:
        first = 1 + max((sample.group for sample in samples), default=-1)
        samples += [replace(sample, group=first + sample.group) for sample in read_samples(file)]
    return DiceEstimator(samples) if are_enough(samples) else None
