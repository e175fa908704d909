"""DICOM series read by promptseg and converted by dcm2niix: the same voxels in the same places?

    pip install dcm2niix
    python benchmarks/dcm2niix.py FOLDER

Every series of every folder below FOLDER, and of those that pydicom and nibabel bring along, is
read by both. dcm2niix turns rows over and may order axes otherwise; voxels are compared where they
lie in the patient, and images that do not say where they lie from the top or from the bottom.
Prints how often each outcome occurs, and for each series promptseg's sentence where it refuses, and
the files that dcm2niix made. Exits with 1 if both read a series and differ, but for `KNOWN`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from odd_files import affine_of, is_lossy, sources

from promptseg.io.dicom import header_of, is_dicom_folder, series_in
from promptseg.io.geometry import Geometry
from promptseg.io.images import read_image
from promptseg.tables import markdown_table

KNOWN = {  # file, and why the two differ
    "J2K_pixelrep_mismatch.dcm": "dcm2niix takes signed values as unsigned; pydicom does not"
}
BOTH, DIFFER = "both, equal", "both, DIFFERENT"
ONLY_OURS, ONLY_THEIRS, NEITHER = "promptseg alone", "dcm2niix alone", "neither"
_ROUNDING = 1e-3  # of voxels' places in voxels, and of values

Volume = tuple[np.ndarray, Geometry]


def converted(series: Path, output: Path) -> list[Path]:
    """The volumes that dcm2niix makes of a folder."""
    program = shutil.which("dcm2niix", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    command = [program, "-z", "n", "-b", "n", "-f", "v", "-o", str(output), str(series)]
    subprocess.run(command, capture_output=True, timeout=120, check=False)
    return sorted(path for path in output.glob("*.nii") if "_ROI" not in path.name)  # overlays


def difference(ours: Volume, theirs: Volume, series: Path) -> str:
    """In what voxels differ that lie at the same place; empty if in nothing."""
    (array, grid), (other, its_grid) = ours, theirs
    first = next(series.iterdir())
    if header_of(first, "ImagePositionPatient").get("ImagePositionPatient") is None:
        ways = (other, other[:, :, ::-1])
        equal = any(array.shape == way.shape and np.array_equal(array, way) for way in ways)
        lossy = is_lossy(first) and any(np.abs(array - way.astype(int)).max() <= 2 for way in ways)
        return "" if equal or lossy else "values of an image without a place"
    to_theirs = np.linalg.inv(affine_of(its_grid)) @ affine_of(grid)
    turn = np.rint(to_theirs)
    corner = [*np.array(grid.shape[::-1]) - 1, 1]
    if np.abs((to_theirs - turn)[:3] @ corner).max() > 0.5 or np.abs(np.linalg.det(turn)) != 1:
        return f"geometry: {to_theirs[:3].round(3).tolist()} from our voxels to dcm2niix's"
    if array.shape[0] != other.shape[0] or sorted(array.shape) != sorted(other.shape):
        return f"shape {array.shape}, dcm2niix {other.shape}"
    index = np.indices(grid.shape)[::-1].reshape(3, -1)
    there = (turn[:3, :3] @ index + turn[:3, 3:]).astype(int)
    if (there < 0).any() or (there.max(axis=1) >= other.shape[:0:-1]).any():
        return "voxels lie outside dcm2niix's volume"
    values = other[:, there[2], there[1], there[0]].reshape(array.shape)
    off = ~np.isclose(array, values, rtol=_ROUNDING, atol=_ROUNDING)
    return f"{off.sum()} values: {array[off][0]}, dcm2niix {values[off][0]}" if off.any() else ""


def outcome(series: Path, output: Path) -> tuple[str, str]:
    """What became of a series, and why."""
    sentence = ""
    try:
        ours = read_image(series)
    except ValueError as error:
        sentence = str(error).replace(f"{series}/", "").replace(f"{series}: ", "")
    files = converted(series, output)
    names = ", ".join(file.name for file in files)
    if sentence:
        return (ONLY_THEIRS, f"{sentence} [{names}]") if files else (NEITHER, sentence)
    if not files:
        return ONLY_OURS, ""
    if len(files) > 1:
        return DIFFER, f"dcm2niix makes {len(files)} volumes: {names}"
    try:
        found = difference(ours, read_image(files[0]), series)
    except ValueError as error:  # several volumes in one file
        found = str(error).split(": ", 1)[-1]
    known = KNOWN.get(next(series.iterdir()).name)
    if found and known:
        return "both, known to differ", known
    return (DIFFER, found) if found else (BOTH, "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="with a folder for each source")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows, counts = [], Counter()
    for folder in sources(args.folder).values():
        below = sorted({Path(at) for at, _, _ in os.walk(folder)})
        for place in filter(is_dicom_folder, below):
            for files in series_in(place).values():
                with tempfile.TemporaryDirectory() as series, tempfile.TemporaryDirectory() as out:
                    for file in files:
                        shutil.copy(file, series)
                    found, why = outcome(Path(series), Path(out))
                counts[found] += 1
                name = f"{place.relative_to(folder.parent)}, {len(files)} files"
                if len(files) == 1:
                    name = Path(files[0]).relative_to(folder.parent)
                rows.append((name, found, why))
    print(markdown_table(("outcome", "series"), counts.most_common()), end="\n\n")
    print(markdown_table(("series", "read by", "why"), rows))
    return int(DIFFER in counts)


if __name__ == "__main__":
    sys.exit(main())
