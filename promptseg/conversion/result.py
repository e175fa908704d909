"""The outcome of a conversion: cases written, cases that failed and why, and notes to the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promptseg.parallel import map_cases
from promptseg.words import some


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The outcome of a conversion.

    Attributes:
        output: folder that was written.
        done: identifiers of the converted cases, sorted.
        failed: problem of each case that was not converted, by identifier.
        notes: assumptions made, and files left out, one sentence each.
    """

    output: Path
    done: tuple[str, ...]
    failed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def report(self) -> str:
        """Text for the terminal: notes, one line per failed case, and how many were written."""
        lines = [f"note: {note}" for note in self.notes]
        lines += [f"{case_id}: {problem}" for case_id, problem in sorted(self.failed.items())]
        total = len(self.done) + len(self.failed)
        if total:
            lines.append(f"{len(self.done)} of {total} case(s) written to {self.output}")
        return "\n".join(lines)


def convert_cases(
    function: Callable[..., Any],
    cases: Mapping[str, Any],
    *arguments: Any,
    processes: int,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Call `function(case_id, case, *arguments)` for every case, even if others fail.

    Args:
        function: function of a module, so that workers can import it; raises OSError or ValueError
            for a case that cannot be converted.
        cases: what to convert, by case identifier.
        arguments: further arguments of every call.
        processes: number of worker processes; 0 converts in this process.

    Returns:
        What the function returned for the converted cases, and the problems of the others; both by
        case identifier, sorted.

    Raises:
        ValueError: listing all problems, if no case could be converted.
    """
    done, failed = {}, {}
    items = sorted(cases.items())
    calls = map_cases(
        _call, items, function, *arguments, processes=processes, description="converting"
    )
    for (case_id, _), result, error in calls:
        if error is None:
            done[case_id] = result
        elif isinstance(error, (OSError, ValueError)):
            failed[case_id] = str(error)
        else:
            raise error
    if not done:
        problems = "\n  ".join(f"{name}: {text}" for name, text in sorted(failed.items()))
        raise ValueError(f"none of {len(items)} case(s) could be converted:\n  {problems}")
    return dict(sorted(done.items())), dict(sorted(failed.items()))


def _call(item: tuple[str, Any], function: Callable[..., Any], *arguments: Any) -> Any:
    return function(item[0], item[1], *arguments)


def refuse_existing(targets: dict[str, Path], overwrite: bool) -> None:
    """Raise FileExistsError if a target already exists and is not to be overwritten."""
    there = [path.name for path in targets.values() if path.exists()]
    if there and not overwrite:
        folder = next(iter(targets.values())).parent
        raise FileExistsError(
            f"{folder} already contains {some(there)}; choose another folder, or give --overwrite"
        )


def image_file(case_id: str, output: Path) -> Path:
    """The file of an image of one channel, as raw datasets name it."""
    return output / f"{case_id}_0000.nii.gz"


def convert_images(
    function: Callable[..., Any],
    chosen: Mapping[str, Any],
    output: Path,
    note: str,
    *,
    dry_run: bool,
    overwrite: bool,
    processes: int,
) -> Conversion:
    """Write the `image_file` of every image that was chosen, unless this is a dry run.

    Args:
        function: called as `function(case_id, image, output)`, see `convert_cases`.
        chosen: images by case identifier.
        output: folder to write to.
        note: how many of those that were found these are.
        dry_run, overwrite, processes: as the commands have them.

    Raises:
        FileExistsError: if a file already exists and `overwrite` is not set.
        ValueError: listing all problems, if no image could be converted.
    """
    if dry_run:
        return Conversion(output=output, done=(), notes=(note,))
    refuse_existing({case_id: image_file(case_id, output) for case_id in chosen}, overwrite)
    done, failed = convert_cases(function, chosen, output, processes=processes)
    return Conversion(output=output, done=tuple(done), failed=failed, notes=(note,))
