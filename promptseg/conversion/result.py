"""What a conversion did: the cases it wrote, the others and why, and what a person should know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promptseg.parallel import map_cases


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was converted and what was not.

    Attributes:
        output: folder that was written.
        done: case identifiers, sorted.
        failed: what is wrong, by case identifier.
        notes: what was assumed or left out.
    """

    output: Path
    done: tuple[str, ...]
    failed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def report(self) -> str:
        """Everything in words: notes, broken cases one a line, and how many were written."""
        lines = [f"note: {note}" for note in self.notes]
        lines += [f"{case_id}: {problem}" for case_id, problem in sorted(self.failed.items())]
        total = len(self.done) + len(self.failed)
        lines.append(f"{len(self.done)} of {total} case(s) written to {self.output}")
        return "\n".join(lines)


def convert_cases(
    function: Callable[..., Any],
    cases: Mapping[str, Any],
    *arguments: Any,
    processes: int,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Call `function(case_id, case, *arguments)` for every case, whatever becomes of the others.

    Args:
        function: a module's own; raises OSError or ValueError for a case that cannot be converted.
        cases: by case identifier.
        arguments: passed to every call.
        processes: worker processes; 0 does all in this one.

    Returns:
        what it returned, and what was wrong, by case identifier, sorted.

    Raises:
        ValueError: with all that is wrong, if no case could be converted.
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
