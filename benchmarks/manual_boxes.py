"""Boxes as a person would draw them, simulated from the truth, as a file for `--prompts`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from promptseg.boxes import mask_box
from promptseg.evaluation.inputs import label_files
from promptseg.io.images import read_segmentation
from promptseg.prompts.simulated import jitter_box
from promptseg.prompts.types import make_prompts, write_prompts_file


def write_manual_boxes(path: Path, truth: Path, labels: Mapping[str, int], seed: int = 0) -> None:
    """One box a label of each case, its faces moved by up to 10 % of the side.

    Labels that a case does not have get no prompt, and are then not asked for.

    Args:
        path: of the file.
        truth: folder of label files, on the grids of the images.
        labels: names and values.
        seed: of the noise.
    """
    cases, rng = {}, np.random.default_rng(seed)
    for case_id, file in label_files(truth, "ground truth")[0].items():
        segmentation, _ = read_segmentation(file)
        tight = {name: mask_box(segmentation == value) for name, value in labels.items()}
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
