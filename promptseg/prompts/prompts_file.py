"""Prompts for cases from whatever holds them: JSON, 3D Slicer's markups, npz; file or folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from promptseg.prompts.given import CasePrompts, case_from_json
from promptseg.prompts.prompts import read_prompts_json
from promptseg.prompts.slicer import MARKUPS, read_markups

log = logging.getLogger(__name__)

_JSON = ".json"
_SHOWN = 10  # names in a message


def read_case_prompts(
    path: Path | str, cases: Sequence[str], labels: Mapping[str, int]
) -> dict[str, CasePrompts]:
    """Read the prompts of cases.

    Args:
        path: a JSON file for all cases; a folder with CASE.json, or with CASE.mrk.json or any
            number of CASE_LABEL.mrk.json (or CASE.LABEL.mrk.json) for each case; or one such
            file. Where there is one case only, a file is for it whatever its name.
        cases: identifiers of the images to predict.
        labels: names and values that the model knows.

    Returns:
        for each of `cases` that the files have something for, its prompts with every problem
        that can be found without its image. A problem is logged, too, and spoils its case only.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if the file as a whole cannot be used, or nothing in it is for these cases.
    """
    path = Path(path)
    if path.is_dir():
        given, others = _read_folder(path, cases, labels)
    elif path.name.lower().endswith(MARKUPS):
        only = cases[0] if len(cases) == 1 else None
        given, others = _read_files([path], cases, labels, only)
    else:
        frame, entries = read_prompts_json(path, cases[0] if len(cases) == 1 else None)
        given = {
            case_id: case_from_json(entry, frame=frame, where=f"{path}: case {case_id!r}")
            for case_id, entry in entries.items()
            if case_id in cases
        }
        others = [case_id for case_id in entries if case_id not in cases]
    if not given:
        raise ValueError(
            f"{path} has prompts for {_some(others)}, none of which is among the images: "
            f"{_some(sorted(cases))}"
        )
    if others:
        log.warning(
            "%s has prompts for %s, which is not among the images; left out", path, _some(others)
        )
    given = {case_id: _known_only(given[case_id], labels, path, case_id) for case_id in given}
    if broken := {case_id: case.problems for case_id, case in given.items() if case.problems}:
        log.warning(
            "%s: prompts of %d of %d cases cannot be used, these cases will fail:\n%s",
            path,
            len(broken),
            len(given),
            "\n".join(f"  {problem}" for problems in broken.values() for problem in problems),
        )
    return given


def _read_folder(
    folder: Path, cases: Sequence[str], labels: Mapping[str, int]
) -> tuple[dict[str, CasePrompts], list[str]]:
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name.lower().endswith(_JSON) and not path.name.startswith(".")
    ]
    if not files:
        there = _some(sorted(path.name for path in folder.iterdir()))
        raise FileNotFoundError(
            f"{folder}: expected CASE.json or CASE_LABEL{MARKUPS} for each image, found {there}"
        )
    return _read_files(files, cases, labels)


def _read_files(
    files: Sequence[Path],
    cases: Sequence[str],
    labels: Mapping[str, int],
    only: str | None = None,
) -> tuple[dict[str, CasePrompts], list[str]]:
    """Prompts by case, and the files that are for none of them; all are for `only`, if given."""
    by_case: dict[str, list[tuple[Path, str]]] = {}
    others = []
    for path in files:
        case_id, rest = _case_of(path, cases)
        if case_id is None and only is None:
            others.append(path.name)
        else:
            by_case.setdefault(case_id or only, []).append((path, rest))
    given = {}
    for case_id, own in by_case.items():
        markups = [(path, rest) for path, rest in own if path.name.lower().endswith(MARKUPS)]
        if len(markups) < len(own) > 1:
            names = ", ".join(path.name for path, _ in own)
            problem = f"{own[0][0].parent}: case {case_id!r}: found {names}; keep one kind of file"
            given[case_id] = CasePrompts(labels={}, problems=(problem,))
        elif markups:
            given[case_id] = read_markups(markups, labels, case_id)
        else:
            given[case_id] = _read_case_json(own[0][0], case_id)
    return given, others


def _read_case_json(path: Path, case_id: str) -> CasePrompts:
    where = f"{path}: case {case_id!r}"
    try:
        frame, entries = read_prompts_json(path, case_id)
        if list(entries) != [case_id]:
            raise ValueError(f"{path}: expected the case {case_id!r}, found {_some(entries)}")
    except ValueError as error:
        return CasePrompts(labels={}, problems=(str(error),))
    return case_from_json(entries[case_id], frame=frame, where=where)


def _case_of(path: Path, cases: Sequence[str]) -> tuple[str | None, str]:
    """The case that a file is for, None if none, and the rest of its name without the ending.

    The longest fitting case counts: `a_b.mrk.json` is for a case `a_b` before it is for the label
    `b` of a case `a`.
    """
    name = path.name
    ending = MARKUPS if name.lower().endswith(MARKUPS) else _JSON
    stem = name[: -len(ending)].removesuffix("_0000")
    if stem in cases:
        return stem, ""
    if ending == MARKUPS:
        for case_id in sorted(cases, key=len, reverse=True):
            if stem.startswith((f"{case_id}_", f"{case_id}.")):
                return case_id, stem[len(case_id) + 1 :]
    return None, stem


def _known_only(
    case: CasePrompts, labels: Mapping[str, int], path: Path, case_id: str
) -> CasePrompts:
    """The same without labels that the model does not know, which are a problem."""
    unknown = [label for label in case.labels if label not in labels]
    if not unknown:
        return case
    problem = (
        f"{path}: case {case_id!r}: unknown label(s) {', '.join(unknown)}; the model knows "
        f"{', '.join(labels)}"
    )
    known = {label: given for label, given in case.labels.items() if label in labels}
    return replace(case, labels=known, problems=(*case.problems, problem))


def _some(names: Sequence[str] | Mapping[str, object]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "nothing") + more
