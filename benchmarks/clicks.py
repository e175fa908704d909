"""Does a click change the mask where it is? A trained model, corrected click by click.

    python benchmarks/clicks.py MODEL_FOLDER -d 4 --raw RAW_ROOT

On the validation cases of the fold, which the model has not seen, every label is segmented by its
name, and by its name with the true box. Then follow clicks, each at the deepest voxel of the
largest error (`error_click`, the rule of the BiomedSegFM challenge), added to those before.

Printed for each start: the mean Dice after 0, 1, ... clicks, how much of the error (1 - Dice) the
clicks removed, in how many cases a click lowered the Dice; the fraction of foreground and
background clicks whose voxel is on the right side afterwards; the mean distance of the voxels that
a click changed; and the seconds of a further prompt on an image that is encoded.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

import promptseg
from promptseg.boxes import mask_box
from promptseg.evaluation.metrics import confusion_counts
from promptseg.folders import find_dataset_folder
from promptseg.io.dataset import read_raw_dataset
from promptseg.io.images import read_image, read_segmentation
from promptseg.prompts.simulated import error_click
from promptseg.tables import aligned
from promptseg.training.checkpoint import load_checkpoint

STARTS = ("name", "name and box")


@dataclass
class Measured:
    """What was measured from one start.

    Attributes:
        dice: for each label of a case, the Dice after 0, 1, ... clicks.
        right: for each kind of click, 1 foreground and 0 background, whether its voxel was on the
            right side afterwards.
        distances: for each click that changed voxels, their mean distance from it, in mm.
        seconds: of each prompt after the first.
    """

    dice: list[list[float]] = field(default_factory=list)
    right: Mapping[int, list[bool]] = field(default_factory=lambda: defaultdict(list))
    distances: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("-d", "--dataset", required=True, help="number or name of the dataset")
    parser.add_argument("--raw", type=Path, help="folder of raw datasets")
    parser.add_argument("-f", "--fold", default="0", help="fold of the model (default: 0)")
    parser.add_argument("--clicks", type=int, default=5, help="per label (default: %(default)s)")
    parser.add_argument("--cases", type=int, help="validation cases to take (default: all)")
    args = parser.parse_args()

    folder = args.model / f"fold_{args.fold}"
    validation = load_checkpoint(folder / "checkpoint_final.pth")["validation_cases"]
    raw = read_raw_dataset(
        find_dataset_folder(promptseg.find_folders(args.raw).raw, args.dataset, "give --raw")
    )
    cases = [case for case in raw.cases if case.case_id in set(validation)][: args.cases]
    predictor = promptseg.load_predictor(args.model, folds=[args.fold])
    measured = {start: Measured() for start in STARTS}
    for case in tqdm(cases, unit="case"):
        image, geometry = read_image(case.images)
        segmentation, _ = read_segmentation(case.label)
        predictor.set_image(image, geometry.spacing)
        for label, value in raw.labels.items():
            target = segmentation == value
            if target.any():
                for start in STARTS:
                    correct(
                        predictor,
                        label,
                        target,
                        geometry.spacing,
                        args.clicks,
                        measured[start],
                        box=mask_box(target) if "box" in start else None,
                    )
    print(f"{args.model.name}, {raw.name}, fold {args.fold}: {len(cases)} validation cases")
    print("\n".join(report(measured, args.clicks)))


def correct(
    predictor: promptseg.Predictor,
    label: str,
    target: np.ndarray,
    spacing: tuple[float, float, float],
    clicks: int,
    into: Measured,
    *,
    box: np.ndarray | None,
) -> None:
    """Segment one label of the image that is set, and correct it click by click.

    Args:
        predictor: with its image.
        label: name of the label.
        target: (z, y, x) bool, its ground truth.
        spacing: mm, zyx.
        clicks: number of clicks; fewer where the mask is right before.
        into: what is measured is added here.
        box: (2, 3) box to start with, voxels, zyx; None to start with the name alone.
    """
    prompts = {"boxes": {label: box}} if box is not None else {}
    mask = predictor.predict(labels=[label], **prompts).segmentation > 0
    scores, points, kinds = [dice(mask, target)], [], []
    for _ in range(clicks):
        click = error_click(mask, target)
        if click is None:
            scores.append(scores[-1])
            continue
        points.append(click[0])
        kinds.append(click[1])
        began = time.perf_counter()
        prediction = predictor.predict(
            labels=[label], points={label: points}, point_labels={label: kinds}, **prompts
        )
        into.seconds.append(time.perf_counter() - began)
        before, mask = mask, prediction.segmentation > 0
        into.right[click[1]].append(bool(mask[tuple(click[0])]) == bool(click[1]))
        if (changed := np.argwhere(mask != before)).size:
            offsets = (changed - click[0]) * np.asarray(spacing)
            into.distances.append(float(np.linalg.norm(offsets, axis=1).mean()))
        scores.append(dice(mask, target))
    into.dice.append(scores)


def report(measured: Mapping[str, Measured], clicks: int) -> list[str]:
    """The lines of the two tables."""
    means = {start: np.mean(found.dice, axis=0) for start, found in measured.items()}
    header = ["Dice after clicks", *range(clicks + 1), "error removed", "lowered"]
    rows = [header]
    for start, found in measured.items():
        mean = means[start]
        lowered = np.mean(np.diff(found.dice, axis=1) < -1e-6) if clicks else 0.0
        removed = 1 - (1 - mean[-1]) / (1 - mean[0]) if mean[0] < 1 else 0.0
        rows.append([start, *(f"{m:.4f}" for m in mean), f"{removed:.0%}", f"{lowered:.0%}"])
    lines = [*aligned(rows), ""]
    rows = [["clicked voxel right", "foreground", "background", "changed, mm away", "s per click"]]
    for start, found in measured.items():
        rows.append(
            [
                start,
                *(_fraction(found.right[kind]) for kind in (1, 0)),
                f"{np.mean(found.distances):.1f}" if found.distances else "nothing changed",
                f"{statistics.median(found.seconds):.3f}" if found.seconds else "-",
            ]
        )
    return [*lines, *aligned(rows)]


def dice(mask: np.ndarray, target: np.ndarray) -> float:
    """Dice of two (z, y, x) bool masks."""
    return confusion_counts(target.astype(np.uint8), mask.astype(np.uint8), [1])[1].dice


def _fraction(right: list[bool]) -> str:
    return f"{np.mean(right):.2f} of {len(right)}" if right else "none"


if __name__ == "__main__":
    main()
