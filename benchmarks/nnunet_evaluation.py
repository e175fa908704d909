"""Are Dice, IoU, TP, FP and FN those of `nnUNetv2_evaluate_folder`?

    python benchmarks/nnunet_evaluation.py NNUNET_ENVIRONMENT -d 4 10 20 --raw RAW_ROOT

Takes the label files of raw datasets as ground truth, and as predictions the same moved by a voxel,
with holes and with voxels of labels that are elsewhere; the first case of each is predicted as
background only. Both commands evaluate the same folders, nnU-Net's in its own environment. Printed
for each dataset: the number of figures compared, and the largest difference of each.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

import promptseg
from promptseg.evaluation.evaluate import evaluate_folders
from promptseg.files import read_json, write_json
from promptseg.folders import find_dataset_folder
from promptseg.io.dataset import read_raw_dataset
from promptseg.io.images import read_segmentation, write_image
from promptseg.tables import aligned

METRICS = ("Dice", "IoU", "TP", "FP", "FN", "TN", "n_pred", "n_ref")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nnunet", type=Path, help="environment with nnunetv2 (its folder bin)")
    parser.add_argument("-d", "--datasets", nargs="+", required=True, help="numbers or names")
    parser.add_argument("--raw", type=Path, help="folder of raw datasets")
    parser.add_argument("--cases", type=int, help="cases of each to take (default: all)")
    args = parser.parse_args()

    rows = [["dataset", "cases", "figures", *METRICS]]
    for dataset in args.datasets:
        folder = find_dataset_folder(promptseg.find_folders(args.raw).raw, dataset, "give --raw")
        with tempfile.TemporaryDirectory() as work:
            rows.append(compare(folder, Path(work), args.nnunet, args.cases))
    print("\n".join(aligned(rows)))


def compare(dataset_folder: Path, work: Path, programs: Path, most: int | None) -> list[object]:
    """Evaluate a dataset's disturbed labels by both; the line of the table."""
    dataset = read_raw_dataset(dataset_folder)
    truth, predictions = work / "truth", work / "predictions"
    rng = np.random.default_rng(0)
    for number, case in enumerate(dataset.cases[:most]):
        segmentation, geometry = read_segmentation(case.label)
        (truth / case.label.name).parent.mkdir(exist_ok=True)
        shutil.copy(case.label, truth)
        disturbed = np.roll(segmentation, rng.integers(-1, 2, 3), (0, 1, 2))
        disturbed[rng.random(disturbed.shape) < 0.02] = 0
        values = np.unique(segmentation)
        disturbed[rng.random(disturbed.shape) < 0.001] = rng.choice(values)
        write_image(predictions / case.label.name, disturbed * (number > 0), geometry)
    write_json(work / "plans.json", {"image_reader_writer": "SimpleITKIO"})
    command = [programs / "nnUNetv2_evaluate_folder", truth, predictions, "-np", 2]
    command += ["-djfile", dataset_folder / "dataset.json", "-pfile", work / "plans.json"]
    command += ["-o", work / "theirs.json"]
    subprocess.run([*map(str, command)], check=True)
    theirs = read_json(work / "theirs.json")
    labels = dataset.content["labels"]
    ours = evaluate_folders(truth, predictions, labels=labels, output=work / "ours", processes=2)
    found = {Path(row["reference_file"]).name: row["metrics"] for row in ours["metric_per_case"]}
    differences = {metric: [] for metric in METRICS}
    for row in theirs["metric_per_case"]:
        for label, expected in row["metrics"].items():
            of_label = found[Path(row["reference_file"]).name][label]
            for metric in METRICS:
                pair = np.array([of_label[metric], expected[metric]], float)
                same = np.isnan(pair).all()
                differences[metric].append(0.0 if same else float(abs(pair[0] - pair[1])))
    largest = [f"{max(values):.2g}" for values in differences.values()]
    count = sum(map(len, differences.values()))
    return [dataset.name, len(theirs["metric_per_case"]), count, *largest]


if __name__ == "__main__":
    main()
