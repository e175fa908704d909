"""Does an automatic prompt find the box? Cross-validated box IoU on every dataset, twice.

First on the volumes as they are; then with every volume cropped off-centre at random, in training
and scoring alike. Published volumes are often cropped around the target, so that the position in
the volume is more informative than in a whole scan; the second table shows how much this matters.

Protocol of the crop: on each of the six sides, a fraction of the margin between the border of the
volume and the nearest voxel of any label is removed, rounded down. The fraction is drawn uniformly
from [0, 1) and depends on the case identifier only, so that it is reproducible.

    python benchmarks/auto_prompt_quality.py RAW_FOLDER [--only 10 11] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from pathlib import Path

import numpy as np

from promptseg.boxes import mask_box
from promptseg.experiment_planning.auto_prompt_cases import FitCase, Reduction, reduce_case
from promptseg.experiment_planning.auto_prompt_fit import fit_labels
from promptseg.io.dataset import RawCase, read_raw_dataset
from promptseg.io.images import read_image, read_segmentation
from promptseg.parallel import map_cases
from promptseg.preprocessing.normalize import default_normalization


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("raw", type=Path, help="folder of raw datasets in nnU-Net's format")
    parser.add_argument(
        "--only", type=int, nargs="*", help="numbers of the datasets to measure (default: all)"
    )
    parser.add_argument(
        "--processes", type=int, default=2, help="worker processes (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    arguments = parser.parse_args()
    everything = {}
    for folder in sorted(arguments.raw.glob("Dataset*_*")):
        if arguments.only and int(folder.name[7:].split("_")[0]) not in arguments.only:
            continue
        raw = read_raw_dataset(folder)
        modality = next(iter(raw.content["channel_names"].values()))
        normalization = default_normalization(modality)
        for name, cropped in (("as they are", False), ("cropped off-centre", True)):
            start = time.perf_counter()
            reduction = Reduction.for_all_strategies(raw.labels, normalization)
            cases = read_cases(raw.cases, reduction, cropped, arguments.processes)
            fit = fit_labels(cases, list(raw.labels), processes=arguments.processes)
            seconds = time.perf_counter() - start
            print(f"\n{folder.name}, {len(cases)} cases {name}, {seconds:.1f} s\n{fit.table()}")
            everything[f"{folder.name} {name}"] = {
                label: {
                    "strategy": entry["strategy"],
                    "reason": entry["reason"],
                    "candidates": {
                        strategy: {k: v for k, v in c.items() if k not in ("parameters", "score")}
                        for strategy, c in entry["candidates"].items()
                    },
                }
                for label, entry in fit.labels.items()
            }
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=2), encoding="utf-8")


def read_cases(
    cases: tuple[RawCase, ...], reduction: Reduction, cropped: bool, processes: int
) -> list[FitCase]:
    """All cases reduced to what the fit needs, sorted by identifier."""
    outcomes = map_cases(
        read_case, cases, reduction, cropped, processes=processes, description="reading"
    )
    read = {}
    for case, result, error in outcomes:
        if error is not None:
            raise error
        read[case.case_id] = result
    return [read[case_id] for case_id in sorted(read)]


def read_case(case: RawCase, reduction: Reduction, cropped: bool) -> FitCase:
    image, geometry = read_image(case.images[0])
    segmentation, _ = read_segmentation(case.label)
    kept = off_centre(segmentation, case.case_id) if cropped else ...
    return reduce_case(
        case.case_id, image[0][kept], segmentation[kept], geometry.spacing, reduction
    )


def off_centre(segmentation: np.ndarray, case_id: str) -> tuple[slice, ...]:
    """The part of a volume that the protocol above keeps."""
    rng = np.random.default_rng(zlib.crc32(case_id.encode()))
    lower, upper = mask_box(segmentation > 0)
    shape = np.array(segmentation.shape)
    cut = np.floor(np.stack([lower, shape - upper]) * rng.uniform(size=(2, 3))).astype(int)
    return tuple(slice(a, n - b) for a, b, n in zip(*cut, shape, strict=True))


if __name__ == "__main__":
    main()
