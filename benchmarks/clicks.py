"""Does a prompt change the mask where it is? A trained model, corrected click by click.

    python benchmarks/clicks.py MODEL_FOLDER -d 4 --raw RAW_ROOT

On the validation cases of the fold, which the model has not seen, every label is segmented in a
session of its own (`Predictor.new_object`) from each of four starts: its name, its name with the
true box, the true box without a name, and one click without a name. Then follow clicks, each at
the deepest voxel of the largest error (`error_click`, the rule of the BiomedSegFM challenge).

Printed for each start: the mean Dice after 0, 1, ... clicks, how much of the error (1 - Dice) the
clicks removed, in how many cases a click lowered the Dice; the fraction of foreground and
background clicks whose voxel is on the right side afterwards; the mean distance of the voxels that
a click changed; the seconds of a further prompt on an image that is encoded; and the rank
correlation of the predicted IoU with the true one over all answers.

`--labels` takes other labels than all, `--unseen` those that the model was not trained on: they
are asked for without a name only.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

import promptseg
from promptseg.folders import find_dataset_folder
from promptseg.io.dataset import read_raw_dataset
from promptseg.io.images import read_image, read_segmentation
from promptseg.labels import label_mask
from promptseg.pipeline.prompt_quality import STARTS, Measured, measure_object, rank_correlation
from promptseg.tables import aligned
from promptseg.training.checkpoint import load_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("-d", "--dataset", required=True, help="number or name of the dataset")
    parser.add_argument("--raw", type=Path, help="folder of raw datasets")
    parser.add_argument("-f", "--fold", default="0", help="fold of the model (default: 0)")
    parser.add_argument("--clicks", type=int, default=5, help="per label (default: %(default)s)")
    parser.add_argument("--cases", type=int, help="validation cases to take (default: all)")
    parser.add_argument("--labels", nargs="+", help="labels to ask for (default: all)")
    parser.add_argument("--unseen", nargs="+", default=[], help="labels without a name")
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
        predictor.set_image(image, geometry.spacing, geometry.direction)
        ignored = segmentation == raw.ignore_label  # nowhere for None
        for label, values in raw.labels.items():
            target = label_mask(segmentation, values)
            if not target.any() or (args.labels and label not in args.labels + args.unseen):
                continue
            starts = [s for s in STARTS if label not in args.unseen or "name" not in s]
            into = {start: measured[start] for start in starts}
            measure_object(predictor, label, target, geometry.spacing, args.clicks, into, ignored)
    print(f"{args.model.name}, {raw.name}, fold {args.fold}: {len(cases)} validation cases")
    print("\n".join(report({k: m for k, m in measured.items() if m.dice}, args.clicks)))


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
    header = ["clicked voxel right", "foreground", "background", "changed, mm away"]
    rows = [[*header, "s per click", "predicted IoU, rank correlation"]]
    for start, found in measured.items():
        rows.append(
            [
                start,
                *(_fraction(found.right[kind]) for kind in (1, 0)),
                f"{np.mean(found.distances):.1f}" if found.distances else "nothing changed",
                f"{statistics.median(found.seconds):.3f}" if found.seconds else "-",
                f"{rank_correlation(found.ious):.2f}",
            ]
        )
    together = [pair for found in measured.values() for pair in found.ious]
    return [
        *lines,
        *aligned(rows),
        "",
        f"predicted IoU over all answers: rank correlation {rank_correlation(together):.2f}, "
        f"mean {np.mean(together, axis=0)[0]:.3f}, true {np.mean(together, axis=0)[1]:.3f}",
    ]


def _fraction(right: list[bool]) -> str:
    return f"{np.mean(right):.2f} of {len(right)}" if right else "none"


if __name__ == "__main__":
    main()
