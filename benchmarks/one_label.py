"""A raw dataset with all its labels as one, to see whether several objects of a label are found.

Then plan, train and predict it as any other, and compare: the plans say how well boxes find the
objects, and the Dice of the one label stands beside that of the union of the dataset's own.

    python benchmarks/one_label.py SOURCE RAW_FOLDER --id 221 --label vertebra
    promptseg_plan -d 221
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np

from promptseg.files import read_json, write_json
from promptseg.io.dataset import read_raw_dataset
from promptseg.io.images import read_segmentation, write_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="raw dataset in nnU-Net's format")
    parser.add_argument("raw", type=Path, help="folder of raw datasets to write to")
    parser.add_argument("--id", type=int, required=True, help="number of the new dataset")
    parser.add_argument("--label", default="object", help="its label (default: %(default)s)")
    arguments = parser.parse_args()
    source = read_raw_dataset(arguments.source)
    folder = arguments.raw / f"Dataset{arguments.id:03d}_{arguments.label.capitalize()}"
    for case in source.cases:
        (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
        for image in case.images:
            shutil.copy(image, folder / "imagesTr" / Path(image).name)
        segmentation, geometry = read_segmentation(case.label)
        write_image(
            folder / "labelsTr" / f"{case.case_id}.nii.gz",
            (segmentation > 0).astype(np.uint8),
            geometry,
        )
    content = read_json(arguments.source / "dataset.json")
    content |= {"labels": {"background": 0, arguments.label: 1}, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", content)
    print(f"{folder}: {len(source.cases)} cases")


if __name__ == "__main__":
    main()
