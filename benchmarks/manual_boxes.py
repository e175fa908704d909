"""Boxes as a person would draw them, simulated from the ground truth, for `--prompts`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from promptseg.boxes import label_boxes
from promptseg.evaluation.inputs import label_files
from promptseg.io.images import read_segmentation
from promptseg.prompts.simulated import jitter_box
from promptseg.prompts.types import make_prompts, write_prompts_file


def write_manual_boxes(
    path: Path, ground_truth: Path, labels: Mapping[str, int], seed: int = 0
) -> None:
    """Write one box per label of each case, with faces moved by up to 10 % of the side.

    Labels that are not in a case get no prompt and are therefore not segmented.

    Args:
        path: path of the file to write.
        ground_truth: folder of label files, on the grids of the images.
        labels: value of each label by name.
        seed: seed of the noise.
    """
    cases, rng = {}, np.random.default_rng(seed)
    for case_id, file in label_files(ground_truth, "ground truth")[0].items():
        segmentation, _ = read_segmentation(file)
        tight = label_boxes(segmentation, labels)
        cases[case_id] = {
            name: make_prompts(
                boxes=jitter_box(box, segmentation.shape, rng),
                shape=segmentation.shape,
                source="simulated manual box",
            ).to_json()
            for name, box in tight.items()
            if box is not None
        }
    write_prompts_file(path, cases)
