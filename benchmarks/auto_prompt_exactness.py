"""Is `promptseg.auto_prompt` the paper's Algorithm 1? Compared with SciPy on all real volumes.

    python benchmarks/auto_prompt_exactness.py --data FOLDER

Each volume is prompted whole and as slabs of 1 to 7 slices, CT in all four windows. Exits with 1
unless every box equals that of the literal SciPy chain, and counts the voxels in which the closed
masks differ. For information, it also counts the boxes that change when the literal chain
accumulates mean and standard deviation in float32, or smooths in float64.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from literal_chain import box_of_largest, scipy_box, scipy_mask

from promptseg.io.images import file_ending, read_image
from promptseg.preprocessing.normalize import (
    CT_WINDOWS,
    ct_window,
    normalize,
    percentile_clipping,
    to_uint8,
)
from promptseg.prompts.automatic import auto_prompt
from promptseg.prompts.strategies.intensity import IntensityPrompter

VARIANTS = {
    "moments in float32": {"moments": np.float32},
    "smoothing in float64": {"smoothing": np.float64},
}


def volumes(data: Path, cases: int) -> Iterator[tuple[str, np.ndarray]]:
    """Names and (z, y, x) images in [0, 255] of the first cases of every dataset."""
    for dataset in sorted((data / "raw").glob("Dataset*")):
        for path in sorted((dataset / "imagesTr").iterdir())[:cases]:
            yield from normalized(f"{dataset.name}/{path.name}", read_image(path)[0][0])
    for path in sorted((data / "single").iterdir()):
        if file_ending(path):
            yield from normalized(f"single/{path.name}", read_image(path)[0][0])
    for path in sorted((data / "npz").glob("*.npz")):
        with np.load(path) as content:
            if "imgs" in content:
                yield f"npz/{path.name}", content["imgs"]


def normalized(name: str, image: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The volume as float32 and as stored (uint8); CT once in each window."""
    if image.min() < -500:
        normalizations = {window: ct_window(window) for window in CT_WINDOWS}
    else:
        normalizations = {"percentiles": percentile_clipping()}
    for how, normalization in normalizations.items():
        scaled = normalize(image, normalization)
        yield f"{name}, {how}, float32", scaled
        yield f"{name}, {how}, uint8", to_uint8(scaled)


def slabs(name: str, image: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The middle 1 to 7 slices."""
    for depth in range(1, 8):
        start = (len(image) - depth) // 2
        if start > 0:
            yield f"{name}, {depth} slices", image[start : start + depth]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder that contains the folders raw, single and npz",
    )
    parser.add_argument(
        "--cases", type=int, default=10, help="cases of each raw dataset (default: %(default)s)"
    )
    arguments = parser.parse_args()

    prompter = IntensityPrompter()
    counts = dict.fromkeys(
        ["volumes", "different boxes", "voxels", "different voxels", *VARIANTS], 0
    )
    for name, whole in volumes(arguments.data, arguments.cases):
        for part_name, image in [(name, whole), *slabs(name, whole)]:
            mask = scipy_mask(image)
            expected, found = box_of_largest(mask, image.shape), auto_prompt(image).box
            counts["volumes"] += 1
            counts["voxels"] += image.size
            counts["different voxels"] += np.count_nonzero(mask != prompter.candidate_mask(image))
            if not np.array_equal(expected, found):
                counts["different boxes"] += 1
                print(f"{part_name}: expected {expected}, found {found}")
            for variant, types in VARIANTS.items():
                counts[variant] += not np.array_equal(scipy_box(image, **types), found)
    for what, count in counts.items():
        print(f"{count:>12,}  {what}")
    return int(counts["different boxes"] > 0 or counts["volumes"] == 0)


if __name__ == "__main__":
    sys.exit(main())
