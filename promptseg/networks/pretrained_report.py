"""What was loaded from a file of weights, name by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PretrainedReport:
    """What was loaded, and what was not.

    Attributes:
        source: where the weights came from, usually a file.
        loaded: names in the network that now have weights of the file.
        left_out: names in the file that were not used, with the reason of each.
        missing: names in the network that keep their initial values, with the reason of each.
    """

    source: str
    loaded: tuple[str, ...]
    left_out: Mapping[str, str]
    missing: Mapping[str, str]

    def summary(self) -> str:
        """The report in a few lines: each reason once, with the names it applies to."""
        lines = [f"{self.source}: {len(self.loaded)} tensors of the network loaded"]
        for title, names in (
            ("of the file, not used", self.left_out),
            ("of the network, not in the file", self.missing),
        ):
            for reason in dict.fromkeys(names.values()):
                which = [name for name, why in names.items() if why == reason]
                lines.append(f"  {len(which)} {title}, {reason}: {', '.join(_shortened(which))}")
        return "\n".join(lines)


def _shortened(names: Sequence[str], most: int = 24) -> list[str]:
    """The names; if there are many, one for all layers that differ only in their number."""
    if len(names) <= most:
        return list(names)
    return list(dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", name) for name in names))
