"""Read prompts for cases: JSON, 3D Slicer's markups or npz, as a file or a folder of files."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from promptseg.io.challenge_npz import read_npz_prompts
from promptseg.io.images import NPZ
from promptseg.prompts.given import CasePrompts, case_from_json
from promptseg.prompts.slicer import MARKUPS, read_markups
from promptseg.prompts.types import label_of_value, read_prompts_json, values_in_words
from promptseg.words import some

log = logging.getLogger(__name__)

_ENDINGS = (MARKUPS, ".json", NPZ)


def read_case_prompts(
    path: Path | str, cases: Sequence[str], labels: Mapping[str, int]
) -> dict[str, CasePrompts]:
    """Read the prompts of cases.

    Args:
        path: a JSON file for all cases; or a folder with one CASE.json, one CASE.npz, or any
            number of CASE.mrk.json, CASE_LABEL.mrk.json or CASE.LABEL.mrk.json for each case; or
            one such file. Where there is one case only, a file is for it whatever its name.
        cases: identifiers of the images to predict.
        labels: names and values that the model knows.

    Returns:
        for each of `cases` that the files have prompts for, these prompts with every problem that
        can be found without the image. Problems are logged, too; each affects its own case only.

    Raises:
        FileNotFoundError: if there is no such file or folder, or the folder holds no prompts.
        ValueError: if the file as a whole cannot be used, or has prompts for none of these cases.
    """
    path = Path(path)
    if path.is_dir() or _ending(path) in (MARKUPS, NPZ):
        given, others = _read_files(path, cases, labels)
    else:
        given, others = _read_json(path, cases, labels)
    if not given:
        raise ValueError(
            f"{path} has prompts for {some(others)}, none of which is among the images: "
            f"{some(sorted(cases))}"
        )
    if others:
        log.warning("%s: left out, as no image has this name: %s", path, some(others))
    if problems := [problem for case in given.values() for problem in case.problems]:
        broken = sum(bool(case.problems) for case in given.values())
        log.warning(
            "%s: prompts of %d of %d cases cannot be used; these will fail, the others will "
            "not:\n  %s",
            *(path, broken, len(given), "\n  ".join(problems)),
        )
    return given


def _read_json(
    path: Path, cases: Sequence[str], labels: Mapping[str, int]
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


def _read_files(
    path: Path, cases: Sequence[str], labels: Mapping[str, int]
) -> tuple[dict[str, CasePrompts], list[str]]:
    """Prompts by case from one file or from all in a folder, and the files that match no case."""
    known = set(cases)
    files = [path]
    if path.is_dir():
        names = sorted(file.name for file in path.iterdir() if not file.name.startswith("."))
        files = [path / name for name in names if _ending(path / name)]
        if not files:
            raise FileNotFoundError(
                f"{path}: expected CASE.json, CASE_LABEL{MARKUPS} or CASE{NPZ} for each image, "
                f"found {some(names)}"
            )
    elif not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder")
    by_case: dict[str, list[tuple[Path, str]]] = {}
    others = []
    for file in files:
        case_id, rest = _case_of(file, known)
        if case_id is None and not path.is_dir() and len(cases) == 1:
            case_id = cases[0]
        if case_id is None:
            others.append(file.name)
        else:
            by_case.setdefault(case_id, []).append((file, rest))
    return {case: _read_case(case, own, labels) for case, own in by_case.items()}, others


def _case_of(path: Path, cases: Container[str]) -> tuple[str | None, str]:
    """The case that a file is for, or None, and the rest of its name without the ending.

    The longest matching case counts: `a_b.mrk.json` is for a case `a_b` before it is for the label
    `b` of a case `a`.
    """
    ending = _ending(path)
    stem = path.name[: -len(ending)]
    for end in (len(stem), *(i for i in reversed(range(len(stem))) if stem[i] in "_.")):
        case_id, rest = stem[:end], stem[end + 1 :]
        if case_id in cases and (ending == MARKUPS or rest in ("", "0000")):
            return case_id, rest
    return None, stem


def _read_case(
    case_id: str, files: Sequence[tuple[Path, str]], labels: Mapping[str, int]
) -> CasePrompts:
    """One case's prompts from its files, each with the rest of its name; raises nothing."""
    paths = [path for path, _ in files]
    endings = {_ending(path) for path in paths}
    where = f"{paths[0]}: case {case_id!r}"
    try:
        if endings == {MARKUPS}:
            return read_markups(files, labels, case_id)
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
        named = str(error) if repr(case_id) in str(error) else f"case {case_id!r}: {error}"
        return CasePrompts(labels={}, problems=(named,))


def _read_case_npz(path: Path, where: str, labels: Mapping[str, int]) -> CasePrompts:
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
