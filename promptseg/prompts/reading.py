"""Read prompts for cases, as a file or a folder of files: JSON, Slicer, napari, label maps, npz."""

from __future__ import annotations

import logging
from collections.abc import Collection, Container, Mapping, Sequence
from pathlib import Path

from promptseg.io.challenge_npz import read_npz_prompts
from promptseg.io.images import NPZ, VOLUME_ENDINGS
from promptseg.io.pictures import FLAT_ENDINGS
from promptseg.labels import Values, meanings
from promptseg.prompts.given import CasePrompts, added, case_from_json
from promptseg.prompts.label_maps import read_scribbles
from promptseg.prompts.names import label_of_value, values_in_words
from promptseg.prompts.napari import CSV, read_napari
from promptseg.prompts.slicer import FIDUCIALS, MARKUPS, read_markups
from promptseg.prompts.types import read_prompts_json
from promptseg.words import some

log = logging.getLogger(__name__)

_DRAWN = (MARKUPS, FIDUCIALS, CSV)  # several files of a case, each with a label's name or none
_LABEL_MAPS = tuple(e for e in VOLUME_ENDINGS if e not in FLAT_ENDINGS)  # not screenshots
_ENDINGS = (*_DRAWN, *_LABEL_MAPS, ".json", NPZ)
_ACCEPTED = (
    f"CASE.json, CASE_LABEL{MARKUPS} or CASE_LABEL{FIDUCIALS} (3D Slicer), CASE_LABEL{CSV} "
    f"(napari), CASE{_LABEL_MAPS[0]} (a label map of scribbles) or CASE{NPZ}"
)


def read_case_prompts(
    path: Path | str,
    cases: Sequence[str],
    labels: Mapping[str, Values],
    *,
    background_value: int | None = None,
    images: Collection[Path] = (),
) -> dict[str, CasePrompts]:
    """Read the prompts of cases.

    Args:
        path: a JSON file for all cases; or a folder with one CASE.json, one CASE.npz, or any
            number of CASE_LABEL.mrk.json, CASE_LABEL.fcsv, CASE_LABEL.csv and label maps such as
            CASE.nii.gz for each case; or one such file. `_LABEL` may be left out or be `.LABEL`.
            Where there is one case only, a file is for it whatever its name.
        cases: identifiers of the images to predict.
        labels: names and values that the model knows.
        background_value: of label maps, see `read_scribbles`.
        images: files to predict; among the prompts they are not label maps.

    Returns:
        for each of `cases` that the files have prompts for, these prompts with every problem that
        can be found without the image. Problems are logged, too; each affects its own case only.

    Raises:
        FileNotFoundError: if there is no such file or folder, or the folder holds no prompts.
        ValueError: if the file as a whole cannot be used, or has prompts for none of these cases;
            if the background value is a label's.
    """
    path = Path(path)
    if background_value in (values := meanings(labels, None)) and background_value:
        raise ValueError(
            f"the background value of scribbles is {background_value}, which is the label "
            f"{values[background_value]!r}; expected a value that no label has"
        )
    if path.is_file() and not _ending(path):
        raise ValueError(f"{path}: is not a file of prompts; expected {_ACCEPTED}")
    if path.is_dir() or _ending(path) not in (".json", None):
        files = _files(path, images)
        by_case, others = _by_case(files, cases, alone=not path.is_dir())
        given = {
            case_id: _read_case(case_id, own, labels, background_value)
            for case_id, own in by_case.items()
        }
    else:
        given, others = _read_json(path, cases, labels)
    if not given:
        raise ValueError(
            f"{path} has prompts for {some(others)}, none of which is among the images: "
            f"{some(sorted(cases))}"
        )
    _warn(path, given, others)
    return given


def _warn(path: Path, given: Mapping[str, CasePrompts], others: Sequence[str]) -> None:
    """Log what was left out, and every problem of the cases."""
    if others:
        log.warning("%s: left out, as no image has this name: %s", path, some(others))
    if problems := [problem for case in given.values() for problem in case.problems]:
        broken = sum(bool(case.problems) for case in given.values())
        log.warning(
            "%s: prompts of %d of %d cases cannot be used; these will fail, the others will "
            "not:\n  %s",
            *(path, broken, len(given), "\n  ".join(problems)),
        )


def _read_json(
    path: Path, cases: Sequence[str], labels: Mapping[str, Values]
) -> tuple[dict[str, CasePrompts], list[str]]:
    """Prompts by case from one file, and the cases in it that are not among `cases`."""
    frame, entries = read_prompts_json(path, cases[0] if len(cases) == 1 else None)
    known = set(cases)
    given = {
        case_id: case_from_json(entry, frame=frame, known=labels, where=f"{path}: case {case_id!r}")
        for case_id, entry in entries.items()
        if case_id in known
    }
    return given, [case_id for case_id in entries if case_id not in known]


def _files(path: Path, images: Collection[Path]) -> list[Path]:
    """The file itself, or those in a folder that may hold prompts; other names are logged."""
    if not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file or folder")
        return [path]
    hidden = {image.resolve() for image in images}
    there = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    files = [
        file
        for file in there
        if file.is_file()
        and (ending := _ending(file))
        and (ending == NPZ or file.resolve() not in hidden)
    ]
    if not files:
        raise FileNotFoundError(
            f"{path}: expected {_ACCEPTED} for each image, found {some(f.name for f in there)}"
        )
    unread = [f.name for f in there if f.is_file() and not _ending(f)]
    if unread:
        log.warning("%s: not read: %s; expected %s", path, some(unread), _ACCEPTED)
    return files


def _by_case(
    files: Sequence[Path], cases: Sequence[str], *, alone: bool
) -> tuple[dict[str, list[tuple[Path, str]]], list[str]]:
    """Files by case, each with the rest of its name, and the names that match no case."""
    known = set(cases)
    by_case: dict[str, list[tuple[Path, str]]] = {}
    others = []
    for file in files:
        case_id, rest = _case_of(file, known)
        if case_id is None and alone and len(cases) == 1:
            case_id = cases[0]
        if case_id is None:
            others.append(file.name)
        else:
            by_case.setdefault(case_id, []).append((file, rest))
    return by_case, others


def _case_of(path: Path, cases: Container[str]) -> tuple[str | None, str]:
    """The case that a file is for, or None, and the rest of its name without the ending.

    The longest matching case counts: `a_b.mrk.json` is for a case `a_b` before it is for the label
    `b` of a case `a`.
    """
    ending = _ending(path)
    stem = path.name[: -len(ending)]
    for end in (len(stem), *(i for i in reversed(range(len(stem))) if stem[i] in "_.")):
        case_id, rest = stem[:end], stem[end + 1 :]
        fits = ending in _DRAWN or not rest or (rest == "0000" and ending not in _LABEL_MAPS)
        if case_id in cases and fits:
            return case_id, rest
    return None, stem


def _read_case(
    case_id: str,
    files: Sequence[tuple[Path, str]],
    labels: Mapping[str, Values],
    background_value: int | None,
) -> CasePrompts:
    """One case's prompts from its files, each with the rest of its name; raises nothing."""
    paths = [path for path, _ in files]
    endings = {_ending(path) for path in paths}
    where = f"{paths[0]}: case {case_id!r}"
    try:
        if not endings & {".json", NPZ}:
            return _read_drawn(case_id, files, labels, background_value)
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise ValueError(f"{paths[0].parent}: case {case_id!r}: found {names}; keep one")
        if endings == {NPZ}:
            return _read_case_npz(paths[0], where, labels)
        frame, entries = read_prompts_json(paths[0], case_id)
        if list(entries) != [case_id]:
            raise ValueError(f"{paths[0]}: expected the case {case_id!r}, found {some(entries)}")
        return case_from_json(entries[case_id], frame=frame, known=labels, where=where)
    except (OSError, ValueError) as error:
        return _broken(case_id, error)


def _read_drawn(
    case_id: str,
    files: Sequence[tuple[Path, str]],
    labels: Mapping[str, Values],
    background_value: int | None,
) -> CasePrompts:
    """The prompts of all files that a person has drawn for a case; they add up."""
    of_slicer = [(path, rest) for path, rest in files if _ending(path) in (MARKUPS, FIDUCIALS)]
    parts = [read_markups(of_slicer, labels, case_id)] if of_slicer else []
    for path, rest in files:
        if _ending(path) == CSV:
            parts.append(read_napari(path, rest, list(labels), case_id))
        elif _ending(path) in _LABEL_MAPS:
            try:
                parts.append(read_scribbles(path, labels, case_id, background_value))
            except (OSError, ValueError) as error:
                parts.append(_broken(case_id, error))
    return added(parts)


def _broken(case_id: str, error: Exception) -> CasePrompts:
    """No prompts, and the problem, which names the case."""
    named = str(error) if repr(case_id) in str(error) else f"case {case_id!r}: {error}"
    return CasePrompts(labels={}, problems=(named,))


def _read_case_npz(path: Path, where: str, labels: Mapping[str, Values]) -> CasePrompts:
    """Boxes and clicks of a challenge file; its label values are those of `label_of_value`."""
    by_value = read_npz_prompts(path)
    if not by_value:
        raise ValueError(f"{where}: has neither boxes nor clicks")
    names = {value: label_of_value(value, labels) for value in by_value}
    if unknown := [str(value) for value, name in names.items() if name is None]:
        raise ValueError(
            f"{where}: unknown label(s) {', '.join(unknown)}, by value; the model knows "
            f"{values_in_words(labels)}"
        )
    return case_from_json({names[value]: p for value, p in by_value.items()}, where=where)


def _ending(path: Path) -> str | None:
    """The ending of a file that may hold prompts."""
    name = path.name.lower()
    return next((ending for ending in _ENDINGS if name.endswith(ending)), None)
