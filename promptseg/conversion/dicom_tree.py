"""A PACS export, patients over studies over series, to one NIfTI file for each volume in it."""

from __future__ import annotations

import csv
import logging
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk

from promptseg.conversion.result import Conversion, convert_images, image_file
from promptseg.files import replacing
from promptseg.io.dicom import (
    MODALITIES,
    begins_as_dicom,
    check_slices,
    header_of,
    is_dicom_file,
    read_slices,
)
from promptseg.progress_bar import progress_bar
from promptseg.tables import aligned

MOST_BYTES = 2**36  # into which a zip file may unpack
MIN_SLICES = 10
_TAGS = (
    *("SeriesInstanceUID", "PatientID", "PatientName", "StudyDate", "SeriesNumber"),
    *("SeriesDescription", "Modality", "NumberOfFrames", "PixelSpacing", "SliceThickness"),
)
_COLUMNS = ("name", "patient", "date", "series", "description", "modality", "slices", "mm", "")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Series:
    """The files of one series, and what their headers say.

    Attributes:
        uid: SeriesInstanceUID.
        patient: PatientID, or the name where that is missing.
        date: StudyDate.
        number: SeriesNumber, as text.
        description: SeriesDescription.
        modality: as DICOM has it, such as MR.
        slices: images, or frames of them.
        spacing: mm of a pixel along y and x and the slice thickness; 0 where unknown.
        files: in the order in which they were found.
    """

    uid: str
    patient: str
    date: str
    number: str
    description: str
    modality: str
    slices: int
    spacing: tuple[float, float, float]
    files: tuple[Path, ...]


def convert_dicom_tree(
    source: Path | str,
    output: Path | str,
    *,
    modality: str | None = None,
    min_slices: int = MIN_SLICES,
    dry_run: bool = False,
    overwrite: bool = False,
    processes: int = 0,
) -> Conversion:
    """Write every volume of a folder or zip file of DICOM files as `NAME_0000.nii.gz`.

    All folders below are searched, whatever files are called; DICOMDIR is not needed. Images are
    put together by their series. A name is made of patient and series number, and is counted
    where several would be alike. `series.csv` beside the files tells which series each is. What is
    found is logged as a table, with the reason where a series is left out.

    Args:
        source: folder or zip file.
        output: folder to write to; other files in it stay.
        modality: only series of this one, such as CT or MRI; by default those of images of volumes.
        min_slices: series of fewer images are left out.
        dry_run: only log the table.
        overwrite: whether existing files of the same names are replaced.
        processes: number of worker processes; 0 converts in this process.

    Raises:
        FileExistsError: if a file already exists and `overwrite` is not set.
        FileNotFoundError: if there is no such folder, or no DICOM file in it.
        ValueError: for a damaged zip file or an unknown modality, or if no series can be converted,
            listing why.
    """
    source, output = Path(source), Path(output)
    wanted = set(MODALITIES) if modality is None else {_code(modality)}
    with _opened(source) as folder:
        found = find_series(folder)
        if not found:
            raise FileNotFoundError(f"{source}: expected DICOM files, found none below it")
        names = _names(found)
        left_out = {s.uid: _why_not(s, wanted, min_slices, source) for s in found}
        for line in _table(found, names, left_out):
            log.info("%s", line)
        chosen = {names[s.uid]: s for s in found if not left_out[s.uid]}
        if not chosen:
            raise ValueError(
                f"{source}: none of {len(found)} series can be converted, for the reasons above; "
                f"see --min-slices and --modality"
            )
        note = f"{len(chosen)} of {len(found)} series are volumes to convert"
        how = {"dry_run": dry_run, "overwrite": overwrite, "processes": processes}
        result = convert_images(_convert_series, chosen, output, note, **how)
    if not dry_run:
        _write_csv(output / "series.csv", [chosen[name] for name in result.done], names)
    return result


def find_series(folder: Path) -> list[Series]:
    """The DICOM series of all files below a folder, by patient, date and number."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder or zip file")
    paths = [Path(at) / name for at, _, names in os.walk(folder) for name in sorted(names)]
    of_uid: dict[str, list[tuple[Path, object]]] = defaultdict(list)
    for path in progress_bar(iterable=sorted(paths), desc="reading DICOM headers", unit="file"):
        if _is_dicom(path):
            try:
                header = header_of(path, *_TAGS)
            except ValueError as error:
                log.warning("left out: %s", error)
                continue
            if uid := str(header.get("SeriesInstanceUID") or ""):
                of_uid[uid].append((path, header))
    found = [_series(uid, files) for uid, files in of_uid.items()]
    return sorted(found, key=lambda s: (s.patient, s.date, s.number.zfill(8), s.uid))


def _series(uid: str, files: Sequence[tuple[Path, object]]) -> Series:
    header = files[0][1]
    pixels = header.get("PixelSpacing") or (0, 0)
    return Series(
        uid=uid,
        patient=str(header.get("PatientID") or header.get("PatientName") or "").strip(),
        date=str(header.get("StudyDate") or ""),
        number=str(header.get("SeriesNumber") or ""),
        description=str(header.get("SeriesDescription") or "").strip(),
        modality=str(header.get("Modality") or "?"),
        slices=sum(int(of.get("NumberOfFrames") or 1) for _, of in files),
        spacing=(*map(float, pixels), float(header.get("SliceThickness") or 0)),
        files=tuple(path for path, _ in files),
    )


def _is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do; DICOMDIR lists others."""
    if path.name.upper() == "DICOMDIR" or not path.is_file() or not os.access(path, os.R_OK):
        return False
    return is_dicom_file(path)


def _code(modality: str) -> str:
    """The modality as DICOM has it."""
    codes = {name.upper(): code for code, name in MODALITIES.items()} | {c: c for c in MODALITIES}
    if modality.upper() not in codes:
        raise ValueError(f"modality must be one of {', '.join(codes)}, found {modality!r}")
    return codes[modality.upper()]


def _why_not(series: Series, wanted: set[str], min_slices: int, source: Path) -> str:
    """Why a series is left out; empty if it is a volume."""
    if series.modality not in wanted:
        return f"not {' or '.join(sorted(wanted))}"
    if series.slices < min_slices:
        return f"fewer than {min_slices} slices"
    try:
        check_slices(source, list(map(str, series.files)))
    except ValueError as error:
        return str(error).split(": ", 1)[-1].split(";")[0]
    return ""


def _names(found: Sequence[Series]) -> dict[str, str]:
    """The name of each series by its identifier: letters, digits, `-` and `_`, each once."""
    names, taken = {}, Counter()
    for series in found:
        parts = (series.patient or "patient", series.number and f"s{series.number}")
        name = "_".join(filter(None, (re.sub(r"[^\w-]+", "-", p).strip("-_") for p in parts)))
        taken[name.lower()] += 1
        count = taken[name.lower()]
        names[series.uid] = name if count == 1 else f"{name}_{count}"
    return names


def _table(found: Sequence[Series], names: dict[str, str], left_out: dict[str, str]) -> list[str]:
    rows = [
        (
            *(names[s.uid], s.patient, s.date, s.number, s.description[:30], s.modality, s.slices),
            "x".join(f"{mm:.3g}" if mm else "?" for mm in s.spacing),
            left_out[s.uid] or "chosen",
        )
        for s in found
    ]
    return aligned([_COLUMNS, *rows], left=(0, 1, 2, 3, 4, 5, -1))


def _convert_series(case_id: str, series: Series, output: Path) -> None:
    try:
        image = read_slices(series.files[0].parent, list(map(str, series.files)))
    except RuntimeError as error:  # of ITK, in several lines
        cause = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"{series.files[0].parent}: series {series.uid}: {cause}") from error
    with replacing(image_file(case_id, output)) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)


def _write_csv(path: Path, done: Sequence[Series], names: dict[str, str]) -> None:
    """List converted series, after those that are listed already."""
    former: list[list[str]] = []
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            former = list(csv.reader(file))[1:]
    new = {names[s.uid] for s in done}
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("name", *_COLUMNS[1:-2], "series_instance_uid"))
        writer.writerows(row for row in former if row and row[0] not in new)
        for s in done:
            row = (names[s.uid], s.patient, s.date, s.number, s.description, s.modality, s.slices)
            writer.writerow((*row, s.uid))


@contextmanager
def _opened(source: Path) -> Iterator[Path]:
    """A folder itself, or the DICOM files of a zip file in a folder that is removed afterwards."""
    if source.suffix.lower() != ".zip" or not source.is_file():
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="promptseg_dicom_") as unpacked:
        try:
            with zipfile.ZipFile(source) as archive:
                _unpack(source, archive, Path(unpacked))
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise ValueError(
                f"{source} cannot be read as a zip file: {error}; copy or zip it again"
            ) from error
        yield Path(unpacked)


def _unpack(source: Path, archive: zipfile.ZipFile, folder: Path) -> None:
    """Unpack the DICOM files under names of ours, so that none of theirs matters."""
    members = [member for member in archive.infolist() if not member.is_dir()]
    if any(member.flag_bits & 1 for member in members):
        raise ValueError(f"{source} is encrypted; unpack it, or zip it without a password")
    if (total := sum(member.file_size for member in members)) > MOST_BYTES:
        raise ValueError(f"{source} would unpack to {total / 2**30:.0f} GB; unpack parts of it")
    for number, member in enumerate(members):
        with archive.open(member) as file:
            start = begins_as_dicom(file)
            if start is not None and Path(member.filename).name.upper() != "DICOMDIR":
                with open(folder / f"{number:06d}.dcm", "wb") as target:
                    target.write(start)
                    shutil.copyfileobj(file, target)
