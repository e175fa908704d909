"""Odd files: is each read as its format's own library reads it, or refused, and does none crash?

    pip install pynrrd h5py pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg
    python benchmarks/odd_files.py FOLDER [--all]

Every file below FOLDER, and of those that nibabel, pydicom and highdicom bring along, is read as an
image in a process of its own, with limits of time and memory; so is every folder that has DICOM
files in it, and every DICOM SEG as masks. Values and geometry are compared with those of

    NIfTI, Analyze, MGH, MINC, AFNI and Philips' PAR/REC: nibabel
    NRRD: pynrrd; DICOM: pydicom, also for the places of frames; PNG, JPEG, TIFF: Pillow

Prints how many files of each source came to what, and then every file that was refused though its
library reads it, with the sentence; with --all every file. Exits with 1 if a file crashes, hangs,
is read otherwise than by its library, or is refused by an error that does not name it.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import resource
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.pixels import apply_color_lut, apply_rescale, pixel_array

from promptseg.conversion.dicom_masks import read_dicom_mask, structure_names
from promptseg.io.dicom import SEGMENTATIONS, header_of, is_dicom_file
from promptseg.io.geometry import Geometry
from promptseg.io.images import read_image
from promptseg.tables import markdown_table

MOST_BYTES = 2**33  # of memory
PACKAGES = ("nibabel", "pydicom", "highdicom")
NO_DATA = (".py", ".pyc", ".pyi", ".so", ".md", ".rst", ".typed", ".ini", ".m", ".gitignore")
OUTCOMES = ("equal", "refused", "read, library does not", "DIFFERENT", "UNTRUE", "CRASHED", "HUNG")
BAD = OUTCOMES[3:]
_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

Volume = tuple[np.ndarray, list[np.ndarray]]  # (c, z, y, x), and affines that are right (xyz, LPS)


def affine_of(grid: Geometry) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(grid.direction, (3, 3)) * grid.spacing[::-1]
    affine[:3, 3] = grid.origin
    return affine


def with_channels(array: np.ndarray) -> np.ndarray:
    """An array of x, y, z and more as (c, z, y, x)."""
    array = np.squeeze(array, axis=tuple(a for a in range(3, array.ndim) if array.shape[a] == 1))
    array = array.reshape(*array.shape[:3], *[1] * (3 - array.ndim), -1)
    return array.transpose(3, 2, 1, 0)


def by_nibabel(path: Path) -> Volume:
    image = nibabel.load(path)
    array = np.asanyarray(image.dataobj)
    if array.dtype.names:  # RGB
        array = np.stack([array[name] for name in array.dtype.names], axis=-1)
    affines = [] if isinstance(image, nibabel.AnalyzeImage) else [image.affine]
    if isinstance(image, nibabel.Nifti1Pair):
        forms = [image.get_qform(coded=True), image.get_sform(coded=True)]
        affines = [form for form, code in forms if code]
        unit = {1: 1e3, 3: 1e-3}.get(int(image.header["xyzt_units"]) & 7, 1.0)
        affines = [np.vstack([form[:3] * unit, form[3]]) for form in affines]
    return with_channels(array), [_TO_LPS @ form for form in affines]


def by_pynrrd(path: Path) -> Volume:
    import nrrd

    array, header = nrrd.read(str(path))
    steps = np.array(header.get("space directions", np.full((array.ndim, 3), np.nan)), float)
    if steps.shape[1] == 4:  # the last is time, of one point where promptseg reads the file
        steps[3:] = np.nan
        steps = steps[:, :3]
    inside = [not np.isnan(step).any() for step in steps]
    if not any(inside):
        lengths = header.get("spacings", np.ones(array.ndim))
        inside = [mm == mm for mm in lengths]
        steps = np.diag([mm for mm in lengths if mm == mm])
    else:
        steps = steps[inside]
    order = [a for a, within in enumerate(inside) if within]
    rest = [a for a, within in enumerate(inside) if not within]
    affine = np.eye(4)
    if len(steps) == 3:
        affine[:3, :3] = steps.T
        affine[:3, 3] = header.get("space origin", np.zeros(3))[:3]
    space = header.get("space", "left-posterior-superior")
    sides = {"right": (0, -1), "anterior": (1, -1), "inferior": (2, -1)}
    for word in space.split("-"):
        if word in sides:
            affine[sides[word][0]] *= sides[word][1]
    return with_channels(array.transpose(*order, *rest)), [affine]


def by_pydicom(path: Path) -> Volume:
    """The frames of a file, or of a folder's files, ordered by place."""
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and is_dicom_file(p))
    frames = [frame for file in files for frame in frames_of(file)]
    frames = frames if any(place is None for _, place in frames) else sorted_by_place(frames)
    array = np.stack([pixels for pixels, _ in frames])
    array = array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0)
    places = [place for _, place in frames]
    if places[0] is None:
        return array, []
    affine = places[0].copy()
    if len(places) > 1:
        affine[:3, 2] = (places[-1] - places[0])[:3, 3] / (len(places) - 1)
    return array, [affine]


def sorted_by_place(frames: list) -> list:
    return sorted(frames, key=lambda frame: frame[1][:3, 2] @ frame[1][:3, 3])


def frames_of(file: Path) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Pixels in rescaled values, and the affine of a frame, its normal as third axis."""
    data = pydicom.dcmread(file, force=True)
    count = int(data.get("NumberOfFrames") or 1)
    array = pixel_array(data)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        array = apply_color_lut(array, data)
    for number, pixels in enumerate(array if count > 1 else [array]):
        groups = [data]
        if "PerFrameFunctionalGroupsSequence" in data:
            groups = [data.PerFrameFunctionalGroupsSequence[number], data]
            groups += list(data.get("SharedFunctionalGroupsSequence", []))
        rescaled = next((g for g in map(of("PixelValueTransformationSequence"), groups) if g), data)
        place = value(groups, "PlanePositionSequence", "ImagePositionPatient")
        axes = value(groups, "PlaneOrientationSequence", "ImageOrientationPatient")
        spacing = value(groups, "PixelMeasuresSequence", "PixelSpacing")
        if not place or not axes or not spacing:
            yield apply_rescale(pixels, rescaled), None
            continue
        across, down = np.reshape(axes, (2, 3)).astype(float)
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1] = across * spacing[1], down * spacing[0]
        affine[:3, 2], affine[:3, 3] = np.cross(across, down), place
        yield apply_rescale(pixels, rescaled), affine


def of(sequence: str) -> Callable:
    return lambda group: next(iter(group.get(sequence, [])), None)


def value(groups: list, sequence: str, name: str) -> list | None:
    for group in groups:
        for item in (group, of(sequence)(group)):
            if item is not None and item.get(name):
                return list(map(float, item.get(name)))
    return None


def by_pillow(path: Path) -> Volume:
    array = np.asarray(Image.open(path))
    return (array[None, None] if array.ndim == 2 else np.moveaxis(array, -1, 0)[:, None]), []


def library_of(path: Path) -> Callable[[Path], Volume]:
    name = path.name.lower()
    if path.is_dir() or is_dicom_file(path) or name.endswith(".dcm"):
        return by_pydicom
    if name.endswith((".nrrd", ".nhdr")):
        return by_pynrrd
    if name.endswith((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")):
        return by_pillow
    return by_nibabel


def differences(path: Path, ours: tuple[np.ndarray, Geometry], theirs: Volume) -> str:
    """In what they differ; empty if in nothing."""
    (array, grid), (expected, affines) = ours, theirs
    if array.shape != expected.shape:
        return f"shape {array.shape}, library {expected.shape}"
    off = 2 if is_lossy(path) else 1e-6  # decoders round differently
    if not np.allclose(array, expected, rtol=1e-5, atol=off, equal_nan=True):
        where = ~np.isclose(array, expected, rtol=1e-5, atol=off, equal_nan=True)
        return f"{where.sum()} values: {array[where][0]}, library {expected[where][0]}"
    last = np.array(grid.shape[::-1]) - 1
    corners = [[*last * np.array(corner), 1] for corner in np.ndindex(2, 2, 2)]
    mine = affine_of(grid)
    # a DICOM stack may lean by half a pixel, see documentation/reference/inputs.md
    is_dicom = path.is_dir() or is_dicom_file(path)
    most = min(grid.spacing[1:]) / 2 if is_dicom else 1e-3 * max(1.0, *grid.spacing)
    if affines and not any(np.abs(corners @ (mine - a).T).max() <= most for a in affines):
        return f"place {mine[:3].round(3).tolist()}, library {affines[0][:3].round(3).tolist()}"
    return ""


def is_lossy(path: Path) -> bool:
    """Whether a DICOM file is packed by a JPEG whose decoders may round."""
    if path.is_dir() or not is_dicom_file(path):
        return False
    syntax = header_of(path, "Rows").file_meta.get("TransferSyntaxUID")
    return syntax in ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")


def mask_differences(path: Path) -> str:
    """In what the segments of a SEG differ from its frames, placed by pydicom."""
    names = structure_names(path)
    masks, grid = read_dicom_mask(path, names, Geometry(shape=(1, 1, 1), spacing=(1, 1, 1)))
    data = pydicom.dcmread(path)
    numbers = [int(s.SegmentNumber) for s in data.SegmentSequence if s.SegmentLabel in names]
    groups = data.PerFrameFunctionalGroupsSequence
    frames = list(zip(groups, frames_of(path), strict=False))  # one has more groups than frames
    into = np.linalg.inv(affine_of(grid))
    for number, (name, mask) in zip(numbers, masks, strict=True):
        expected = np.zeros(grid.shape, bool)
        for group, (pixels, affine) in frames:
            chosen = of("SegmentIdentificationSequence")(group)
            if chosen is None:
                pixels = pixels == number  # a label map
            elif int(chosen.ReferencedSegmentNumber) != number:
                continue
            x, y, z = np.rint((into @ affine)[:3, 3]).astype(int)
            if (x, y) != (0, 0):
                return f"a frame begins at {x}, {y}"
            expected[z] |= pixels > 0
        if not np.array_equal(mask, expected):
            return f"{name}: {mask.sum()} voxels, library {expected.sum()}"
    return ""


def read_in_child(path: Path, as_masks: bool, answer: Connection) -> None:
    """Send what became of our reader, then what the comparison says."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        ours = mask_differences(path) if as_masks else read_image(path)
        answer.send(("read", ""))
    except (ValueError, OSError) as error:
        named = path.name in str(error) or str(path.parent) in str(error)
        answer.send(("refused" if named else "UNTRUE", str(error)))
    except Exception as error:
        answer.send(("UNTRUE", f"{type(error).__name__}: {error}"))
    else:
        if as_masks:
            answer.send(("DIFFERENT" if ours else "equal", ours))
            return
    try:
        theirs = library_of(path)(path)
    except Exception as error:
        answer.send(("library does not", f"{type(error).__name__}: {error}"))
        return
    if "ours" in locals():
        found = differences(path, ours, theirs)
        answer.send(("DIFFERENT" if found else "equal", found))
    else:
        answer.send(("library reads", ""))


def examine(path: Path, as_masks: bool, seconds: float) -> tuple[str, str, bool]:
    """The outcome, one of `OUTCOMES`, its detail, and whether the library reads the file."""
    here, there = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(
        target=read_in_child, args=(path, as_masks, there)
    )
    child.start()
    there.close()
    said = []
    try:
        while len(said) < 2 and here.poll(seconds):
            said.append(here.recv())
        hung = child.is_alive() and len(said) < 2 and not here.poll(0)
    except EOFError:
        hung = False
    if hung:
        child.kill()
    child.join()
    if not said:
        return ("HUNG", "", False) if hung else ("CRASHED", f"exit code {child.exitcode}", False)
    (first, sentence), (second, detail) = said[0], (said[1:] or [("library does not", "ended")])[0]
    if first != "read":
        return first, sentence, second == "library reads"
    if second == "library does not":
        return "read, library does not", detail, False
    return second, detail, True


def class_of(file: Path) -> str:
    return str(header_of(file, "SOPClassUID").get("SOPClassUID"))


def items_of(folder: Path) -> list[tuple[Path, bool]]:
    """The files and DICOM folders below a folder, and which are to be read as masks."""
    items = []
    for at, folders, names in os.walk(folder):
        folders.sort()
        files = [Path(at) / name for name in sorted(names)]
        files = [file for file in files if not file.name.lower().endswith(NO_DATA)]
        items += [(file, False) for file in files]
        dicom = [file for file in files if is_dicom_file(file)]
        if dicom:
            items.append((Path(at), False))
        classes = [header_of(file, "SOPClassUID").get("SOPClassUID") for file in dicom]
        items += [
            (f, True) for f, kind in zip(dicom, classes, strict=True) if kind in SEGMENTATIONS
        ]
    return items


def sources(folder: Path) -> dict[str, Path]:
    found = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()} or {
        folder.name: folder
    }
    for name in PACKAGES:
        found[name] = Path(importlib.util.find_spec(name).origin).parent
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="with a folder for each source")
    parser.add_argument("--seconds", type=float, default=30.0, help="for a file")
    parser.add_argument("--all", action="store_true", help="print every file")
    args = parser.parse_args()
    counts: dict[str, Counter] = {}
    lines = []
    for source, folder in sources(args.folder).items():
        counts[source] = Counter()
        for path, as_masks in items_of(folder):
            outcome, detail, library_reads = examine(path, as_masks, args.seconds)
            counts[source][outcome] += 1
            if args.all or outcome in BAD or (outcome == "refused" and library_reads):
                what = "masks of " if as_masks else ""
                name = path.relative_to(folder.parent)
                also = " (its library reads it)" if library_reads and outcome == "refused" else ""
                lines.append(f"{outcome}{also}: {what}{name}: {detail}")
    rows = [(name, *(count[o] for o in OUTCOMES), count.total()) for name, count in counts.items()]
    rows.append(("all", *(sum(row[i] for row in rows) for i in range(1, len(OUTCOMES) + 2))))
    print(markdown_table(("source", *OUTCOMES, "all"), rows))
    print("\n".join(lines))
    return int(any(count[outcome] for count in counts.values() for outcome in BAD))


if __name__ == "__main__":
    sys.exit(main())
