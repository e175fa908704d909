"""The volumes of a BIDS tree, by the names of its files, as images of cases."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from promptseg.conversion.result import Conversion, convert_images, image_file
from promptseg.files import replacing
from promptseg.io.images import read_image, write_image
from promptseg.tables import aligned

_FOLDERS = {"anat": "MRI", "pet": "PET", "ct": "CT"}  # of volumes, and how these were made
_FILE = re.compile(
    r"(?P<case>sub-(?P<sub>[a-zA-Z0-9]+)(?:_ses-(?P<ses>[a-zA-Z0-9]+))?(?:_[a-z]+-[a-zA-Z0-9]+)*"
    r"_(?P<suffix>[a-zA-Z0-9]+))\.nii(?:\.gz)?"
)
_MASK = re.compile(r"mask$|seg$")
_COLUMNS = ("name", "subject", "session", "folder", "suffix", "")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A file of a BIDS tree.

    Attributes:
        case_id: its name without the ending, such as `sub-01_ses-02_T1w`.
        subject: without `sub-`.
        session: without `ses-`; empty if there is none.
        folder: what kind of data it lies among, such as `anat`.
        suffix: the last part of its name, such as `T1w`.
        path: the file.
        why_not: why it is left out; empty if it is an image to convert.
    """

    case_id: str
    subject: str
    session: str
    folder: str
    suffix: str
    path: Path
    why_not: str


def is_bids(folder: Path) -> bool:
    """Whether there are folders of subjects with files that are named after them."""
    return folder.is_dir() and next(_files(folder), None) is not None


def convert_bids(
    source: Path | str,
    output: Path | str,
    *,
    modality: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    processes: int = 0,
) -> Conversion:
    """Write every volume of a BIDS tree as `sub-XX_ses-YY_T1w_0000.nii.gz`.

    Volumes are what `anat`, `pet` and `ct` hold, masks left out; `derivatives`, `sourcedata` and
    other folders beside the subjects' are not looked into. What is found is logged as a table,
    with the reason where a file is left out.

    Args:
        source: folder that has the subjects' folders.
        output: folder to write to; other files in it stay.
        modality: only images of this suffix, such as T1w, or of this modality, such as MRI.
        dry_run: only log the table.
        overwrite: whether existing files of the same names are replaced.
        processes: number of worker processes; 0 converts in this process.

    Raises:
        FileExistsError: if a file already exists and `overwrite` is not set.
        ValueError: if no file can be converted, listing why.

    Source:
        Brain Imaging Data Structure 1.10, sections on file names and on MRI and PET. It has no CT
        yet; `ct` is the folder of its proposal.
    """
    source, output = Path(source), Path(output)
    found = find_scans(source, modality)
    for line in _table(found):
        log.info("%s", line)
    chosen = {scan.case_id: scan for scan in found if not scan.why_not}
    if not chosen:
        raise ValueError(
            f"{source}: none of {len(found)} file(s) can be converted, for the reasons above; see "
            f"--modality"
        )
    note = f"{len(chosen)} of {len(found)} files are volumes to convert"
    how = {"dry_run": dry_run, "overwrite": overwrite, "processes": processes}
    return convert_images(_convert, chosen, output, note, **how)


def find_scans(source: Path, modality: str | None = None) -> list[Scan]:
    """The NIfTI files of a BIDS tree, by name."""
    scans: dict[str, Scan] = {}
    for path, match in _files(source):
        case_id, folder = match["case"], path.parent.name
        scan = Scan(
            case_id=case_id,
            subject=match["sub"],
            session=match["ses"] or "",
            folder=folder,
            suffix=match["suffix"],
            path=path,
            why_not=_why_not(path.relative_to(source), match, modality),
        )
        if case_id in scans and not scan.why_not:
            raise ValueError(f"{scans[case_id].path} and {path} have the same name; keep one")
        scans.setdefault(case_id, scan)
    return sorted(scans.values(), key=lambda scan: scan.case_id)


def _files(source: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    """NIfTI files in the folders of subjects whose names are those of BIDS."""
    for folder in sorted(source.glob("sub-*/")):
        for path in sorted(folder.rglob("sub-*.nii*")):
            if (match := _FILE.fullmatch(path.name)) and path.is_file():
                yield path, match


def _why_not(path: Path, match: re.Match[str], modality: str | None) -> str:
    session = [f"ses-{match['ses']}"] if match["ses"] else []
    if list(path.parts[:-2]) != [f"sub-{match['sub']}", *session]:
        return "its name is not that of its folder"
    kind = _FOLDERS.get(path.parent.name)
    if kind is None:
        return f"not in {', '.join(_FOLDERS)}"
    if _MASK.search(match["suffix"]):
        return "a mask"
    if modality is not None and modality.lower() not in (match["suffix"].lower(), kind.lower()):
        return f"not {modality}"
    return ""


def _table(found: Sequence[Scan]) -> list[str]:
    rows = [
        (s.case_id, s.subject, s.session, s.folder, s.suffix, s.why_not or "chosen") for s in found
    ]
    return aligned([_COLUMNS, *rows], left=range(len(_COLUMNS)))


def _convert(case_id: str, scan: Scan, output: Path) -> None:
    image, geometry = read_image(scan.path)
    if len(image) != 1:
        raise ValueError(f"{scan.path}: expected one channel, found {len(image)}")
    target = image_file(case_id, output)
    if not scan.path.name.endswith(".nii.gz"):
        write_image(target, image[0], geometry, like=scan.path)
        return
    with replacing(target) as temporary:
        shutil.copyfile(scan.path, temporary)
