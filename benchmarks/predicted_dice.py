"""How well the Dice of masks is predicted: on held-out cases, degraded copies, and other images.

    python benchmarks/predicted_dice.py MODEL [--fold 0] [--other FOLDER ...]

MODEL is a trained model whose fold was validated. Its samples, masks of validation cases and of
degraded copies of them, are judged by forests that have seen neither the case nor, in the second
line, any copy of that kind: what is said of images that are bad in a way of their own. `--other`
gives folders of images that are not what the model was trained on, of another modality: each should
be flagged, as `not_like_training` or by its predicted Dice.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from promptseg.inference.load import DICE_SAMPLES, load_predictor
from promptseg.inference.results import LOW_PREDICTED_DICE, NOT_LIKE_TRAINING
from promptseg.io.images import read_image
from promptseg.predicted_dice import DiceEstimator, DiceSample, read_samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--fold", default="0", help="(default: %(default)s)")
    parser.add_argument("--other", type=Path, nargs="*", default=[], metavar="FOLDER")
    arguments = parser.parse_args()
    samples = read_samples(arguments.model / f"fold_{arguments.fold}" / DICE_SAMPLES)
    report("cases left out", samples, *left_out(samples))
    report("cases and kinds left out", samples, *kinds_left_out(samples))
    if arguments.other:
        predictor = load_predictor(arguments.model, folds=[arguments.fold], n_perturbations=2)
        for folder in arguments.other:
            flagged, all_of_them, dice = others(predictor, folder)
            print(
                f"{folder.parent.name}: {flagged} of {all_of_them} images flagged, predicted Dice "
                f"{np.mean(dice):.2f}"
                if dice
                else f"{folder.parent.name}: {flagged} of {all_of_them} images flagged, all empty"
            )


Figures = tuple[np.ndarray, np.ndarray, np.ndarray]  # predicted, lower and upper end


def left_out(samples: Sequence[DiceSample]) -> Figures:
    """Of forests that have not seen the case."""
    estimator = DiceEstimator(samples)
    return estimator.left_out[0], *estimator.interval(*estimator.left_out)


def kinds_left_out(samples: Sequence[DiceSample]) -> Figures:
    """Of forests that have seen neither the case nor a copy of this kind; images as before."""
    figures = np.stack(left_out(samples))
    for kind in sorted({s.copy for s in samples} - {""}):
        for fold in range(4):
            kept = [s for s in samples if s.copy != kind and s.group % 4 != fold]
            estimator = DiceEstimator(kept)
            for number, sample in enumerate(samples):
                if sample.copy == kind and sample.group % 4 == fold:
                    told = estimator.predict(sample.label, sample.evidence)
                    figures[:, number] = told.value, told.low, told.high
    return tuple(figures)


def report(
    title: str,
    samples: Sequence[DiceSample],
    predicted: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> None:
    dice = np.array([sample.dice for sample in samples])
    plain = np.array([not sample.copy for sample in samples])
    print(f"{title}: {plain.sum()} masks of images, {(~plain).sum()} of copies")
    for name, some in (("all", plain | True), ("images", plain), ("copies", ~plain)):
        held = ((low <= dice) & (dice <= high))[some].mean()
        print(
            f"  {name:<7} rank correlation {spearmanr(predicted[some], dice[some]).statistic:5.2f}"
            f"   mean error {np.abs(predicted - dice)[some].mean():.3f}   interval holds "
            f"{held:.0%}, is {(high - low)[some].mean():.2f} wide"
        )
    kinds = [sample.copy for sample in samples]
    for kind in sorted(set(kinds) - {""}):
        some = np.array([k == kind for k in kinds])
        held = ((low <= dice) & (dice <= high))[some].mean()
        print(
            f"    {kind:<24} {some.sum():3d}   Dice {dice[some].mean():.2f}, predicted "
            f"{predicted[some].mean():.2f}   interval holds {held:.0%}"
        )


def others(predictor, folder: Path) -> tuple[int, int, list[float]]:
    """How many images of a folder are flagged, how many there are, and the predicted Dice."""
    flagged, dice, images = 0, [], sorted(folder.glob("*_0000.*"))
    for path in images:
        image, geometry = read_image([path])
        predictor.set_image(image, geometry.spacing, geometry.direction)
        results = predictor.predict(auto_prompt="plans").labels.values()
        dice += [r.predicted_dice.value for r in results if r.predicted_dice is not None]
        doubted = {NOT_LIKE_TRAINING, LOW_PREDICTED_DICE, "empty"}
        flagged += any(doubted & set(result.flags) for result in results)
    return flagged, len(images), dice


if __name__ == "__main__":
    main()
