"""The post-processing of each label that improves held-out cases, chosen by cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.evaluation.metrics import confusion_counts, mask_dice
from promptseg.evaluation.summary import mean_of_defined
from promptseg.inference_plan import PostProcessing
from promptseg.io.images import read_segmentation
from promptseg.labels import Values, label_mask
from promptseg.parallel import map_cases
from promptseg.plans import Plans
from promptseg.postprocessing import postprocess, postprocessed

SIZES = (0.01, 0.03, 0.1, 0.3)  # smallest component, as fractions of the label's median volume
PARTS = 5  # of the cases, to cross-validate the choice
GAIN = 0.0005  # of the cross-validated Dice, below which a label gets no post-processing


def choose_postprocessing(
    rows: Sequence[Mapping[str, Any]], plans: Plans, processes: int = 0
) -> tuple[dict[str, PostProcessing], dict[str, Any], float]:
    """For each label the steps that improve the Dice most, where cross-validation confirms it.

    The cases are divided into `PARTS`; the steps that are best on the others are measured on each.
    Where both masks are empty the Dice counts as 1 here, so that removing a false mask counts.

    Args:
        rows: of the cases, with the files of prediction and reference.
        plans: of the models, with the labels, and the value that is not counted.
        processes: worker processes; 0 for none.

    Returns:
        The steps of the labels that have any, what was measured for every label, and the mean Dice
        with these steps.
    """
    options = {label: _options(rows, values) for label, values in plans.labels.items()}
    measured = _over_cases(_dice_of_options, rows, plans, options, processes=processes)
    steps, choices = {}, {}
    for label, tried in options.items():
        dice = np.array([of_case[label] for of_case in measured])
        chosen, confirmed = cross_validated_choice(dice)
        choices[label] = {
            "steps": tried[chosen].in_words,
            "dice": float(dice[:, 0].mean()),
            "dice_cross_validated": confirmed,
        }
        if chosen:
            steps[label] = tried[chosen]
    after = _over_cases(_dice_after, rows, plans, steps, processes=processes)
    return steps, choices, mean_of_defined([mean_of_defined(dice) for dice in np.transpose(after)])


def cross_validated_choice(dice: np.ndarray, parts: int = PARTS) -> tuple[int, float]:
    """The best of several options, unless it gains too little on cases it was not chosen by.

    Args:
        dice: (cases, options); option 0 does nothing.
        parts: that the cases are divided into.

    Returns:
        The option, and the mean Dice of what is chosen on the other parts' cases; 0 and its mean
        where that is less than `GAIN` better than doing nothing.
    """
    nothing = float(dice[:, 0].mean())
    if len(dice) < 2:
        return 0, nothing
    part = np.arange(len(dice)) % min(parts, len(dice))
    held_out = np.empty(len(dice))
    for number in range(part.max() + 1):
        best = int(dice[part != number].mean(axis=0).argmax())
        held_out[part == number] = dice[part == number, best]
    if held_out.mean() < nothing + GAIN:
        return 0, nothing
    return int(dice.mean(axis=0).argmax()), float(held_out.mean())


def _options(rows: Sequence[Mapping[str, Any]], values: Values) -> list[PostProcessing]:
    """What is tried for a label; the first does nothing."""
    volumes = [row["metrics"][str(values)]["volume_ml_reference"] for row in rows]
    there = [1000 * ml for ml in volumes if ml]
    sizes = [round(float(np.median(there)) * s, 3) for s in SIZES] if there else []
    kept = [{}, {"largest_component": True}, *({"min_mm3": size} for size in sizes if size > 0)]
    return [PostProcessing(**k, fill_holes=fill) for fill in (False, True) for k in kept]


def _over_cases(
    function: Callable[..., Any], rows: Sequence[Mapping[str, Any]], *arguments: Any, processes: int
) -> list[Any]:
    """A function of every case, in the order of the cases."""
    files = [(row["case"], row["prediction_file"], row["reference_file"]) for row in rows]
    found = {}
    for (case_id, *_), result, error in map_cases(
        function, files, *arguments, processes=processes, description="post-processing"
    ):
        if error is not None:
            raise ValueError(f"case {case_id!r}: {error}") from error
        found[case_id] = result
    return [found[case_id] for case_id, *_ in files]


def _dice_of_options(
    files: tuple[str, str, str], plans: Plans, options: Mapping[str, Sequence[PostProcessing]]
) -> dict[str, list[float]]:
    """For each label the Dice with each of its options; runs in a worker process."""
    prediction, geometry = read_segmentation(Path(files[1]))
    reference, _ = read_segmentation(Path(files[2]))
    found = {}
    ignored = reference == plans.ignore_label  # nowhere for None
    for label, values in plans.labels.items():
        mask, target = label_mask(prediction, values), label_mask(reference, values)
        not_counted = (~mask & (prediction != 0)) | ignored
        dice = []
        for steps in options[label]:
            new = postprocessed(mask, geometry.spacing, steps) & ~not_counted
            dice.append(float(np.nan_to_num(mask_dice(new, target), nan=1.0)))
        found[label] = dice
    return found


def _dice_after(
    files: tuple[str, str, str], plans: Plans, steps: Mapping[str, PostProcessing]
) -> list[float]:
    """The Dice of each label after post-processing, NaN where both masks are empty."""
    prediction, geometry = read_segmentation(Path(files[1]))
    reference, _ = read_segmentation(Path(files[2]))
    new = postprocess(prediction, geometry.spacing, plans, steps)
    counts = confusion_counts(reference, new, list(plans.labels.values()), plans.ignore_label)
    return [of_label.dice for of_label in counts.values()]
