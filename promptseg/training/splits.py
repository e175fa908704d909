"""Cross-validation folds over case identifiers, as nnU-Net makes them, or over groups of cases."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import KFold

from promptseg.files import read_json, write_json
from promptseg.io.dataset import case_groups
from promptseg.words import some

SEED = 12345  # nnU-Net's, so that both tools train and validate on the same cases

log = logging.getLogger(__name__)


def cases_of_fold(
    folder: Path, fold: str, case_ids: Sequence[str], group_regex: str | None = None
) -> tuple[list[str], list[str]]:
    """Training and validation cases of a fold of a preprocessed dataset.

    No group has cases in both halves, where groups are known: from `group_regex`, else from
    `groups` in dataset.json. `splits_final.json` is written when there is none.

    Args:
        folder: folder of the dataset, with `dataset.json` and `splits_final.json`.
        fold: `0`, `1`, ..., or `all`: every case for training, none held out.
        case_ids: identifiers of the preprocessed cases.
        group_regex: see `groups_by_regex`.

    Raises:
        ValueError: as `groups_by_regex`, `case_groups`, `load_or_make_splits` and `fold_cases` do.
    """
    if fold == "all":
        return fold_cases([], fold, case_ids)
    planned = case_groups(folder / "dataset.json", case_ids)
    groups = planned if group_regex is None else groups_by_regex(case_ids, group_regex)
    splits = load_or_make_splits(folder / "splits_final.json", case_ids, groups)
    training, validation = fold_cases(splits, fold, case_ids)
    if group_regex is not None:
        _warn_of_planned_groups(groups, planned, training, validation)
    return training, validation


def groups_by_regex(case_ids: Sequence[str], pattern: str) -> dict[str, str]:
    r"""The group of each case: what a regular expression finds in its identifier.

    It is searched anywhere in the identifier; the group is its first parenthesis, or without one
    the whole match: both `^[^_]+` and `^(.+)_scan\d+$` give `p7` for `p7_scan2`.

    Raises:
        ValueError: if it is not a regular expression, or naming the cases where it finds nothing.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"--group-regex {pattern!r} is not a regular expression: {error}"
        ) from error
    which = min(compiled.groups, 1)
    matches = {case_id: compiled.search(case_id) for case_id in case_ids}
    groups = {case_id: match[which] for case_id, match in matches.items() if match}
    if missing := [case_id for case_id in case_ids if not groups.get(case_id)]:
        raise ValueError(
            f"--group-regex {pattern!r} finds no group in {len(missing)} of {len(case_ids)} cases, "
            f"{some(missing, quoted=True)}; it must match every case identifier"
        )
    return groups


def make_splits(
    case_ids: Sequence[str], folds: int = 5, groups: Mapping[str, str] | None = None
) -> list[dict[str, list[str]]]:
    """Split sorted case identifiers into folds of nearly equal size.

    Without groups, and with fewer cases than folds, every case is a fold of its own; a single
    case is in both halves of its only fold. With groups of several cases, the groups are assigned
    in random order, the largest first, to the fold that has the fewest cases so far: the sizes of
    two folds differ by at most the size of the largest group.

    Args:
        case_ids: case identifiers in any order.
        folds: number of folds.
        groups: group of every case; each group is then in one half only.

    Raises:
        ValueError: if there are fewer groups than folds.

    Source:
        nnU-Net: five shuffled folds, seed 12345, over the sorted identifiers. Groups: as
        scikit-learn's GroupKFold, but groups of equal size are shuffled, and their order does not
        depend on how NumPy sorts on the machine.
    """
    ordered = sorted(case_ids)
    names = sorted({groups[case_id] for case_id in ordered}) if groups is not None else ordered
    if groups is not None and len(names) < folds:
        raise ValueError(
            f"{folds} folds need at least {folds} groups, as each is in one half only; found "
            f"{len(names)} groups in {len(ordered)} cases, {some(names, quoted=True)}; train on "
            f"all cases (-f all), or write a splits_final.json with fewer folds"
        )
    if len(names) < len(ordered):
        return _grouped_splits(ordered, names, groups, folds)
    if len(ordered) < 2:
        return [{"train": ordered, "val": ordered}]
    kfold = KFold(n_splits=min(folds, len(ordered)), shuffle=True, random_state=SEED)
    return [
        {"train": [ordered[i] for i in train], "val": [ordered[i] for i in validation]}
        for train, validation in kfold.split(ordered)
    ]


def load_or_make_splits(
    path: Path, case_ids: Sequence[str], groups: Mapping[str, str] | None = None
) -> list[dict[str, list[str]]]:
    """Read `splits_final.json`, or write it first when there is none.

    Raises:
        ValueError: if the file is not a list of folds, or has a group in both halves of a fold.
    """
    if not path.is_file():
        write_json(path, make_splits(case_ids, groups=groups))
    splits = read_json(path)
    good = isinstance(splits, list) and all(
        isinstance(fold, dict) and all(_is_list_of_text(fold.get(h)) for h in ("train", "val"))
        for fold in splits
    )
    if not good:
        raise ValueError(f'{path}: expected a list of {{"train": ["CASE", ...], "val": [...]}}')
    shared = [shared_groups(fold["train"], fold["val"], groups or {}) for fold in splits]
    if any(shared):
        found = "; ".join(
            f"fold {i}: {some(names, quoted=True)}" for i, names in enumerate(shared) if names
        )
        raise ValueError(
            f"{path}: groups have cases in both halves, {found}; expected each in one half only; "
            f"remove the file for new folds (and train these again), correct it, or give "
            f"--group-regex '.+' to take every case as a group of its own"
        )
    return splits


def shared_groups(
    training: Sequence[str], validation: Sequence[str], groups: Mapping[str, str]
) -> list[str]:
    """The groups that have cases in both halves, sorted; cases without a group do not count."""
    train, val = ({groups[c] for c in half if c in groups} for half in (training, validation))
    return sorted(train & val)


def fold_cases(
    splits: Sequence[dict[str, list[str]]], fold: str, case_ids: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Training and validation cases of a fold.

    Args:
        splits: splits of all folds.
        fold: `0`, `1`, ..., or `all`: every case for training, none held out.
        case_ids: identifiers of the preprocessed cases.

    Raises:
        ValueError: for an unknown fold, or if cases of the fold have not been preprocessed.
    """
    if fold == "all":
        return sorted(case_ids), []
    if fold not in map(str, range(len(splits))):
        raise ValueError(f"unknown fold {fold!r}; there are 0 to {len(splits) - 1}, and `all`")
    train, validation = (list(splits[int(fold)][half]) for half in ("train", "val"))
    if missing := sorted(set(train + validation) - set(case_ids)):
        raise ValueError(
            f"fold {fold} has {len(missing)} cases that are not preprocessed, first "
            f"{missing[0]!r}; run promptseg_plan again, or remove splits_final.json"
        )
    if not train:
        raise ValueError(f"fold {fold} has no training case")
    if both := sorted(set(train) & set(validation)):
        log.warning("fold %s: %s both train and validate", fold, some(both, quoted=True))
    if neither := sorted(set(case_ids) - set(train + validation)):
        log.warning(
            "fold %s: %d cases neither train nor validate (%s); where they are new, remove "
            "splits_final.json for new folds, and train these again",
            fold,
            len(neither),
            some(neither, quoted=True),
        )
    return train, validation


def _grouped_splits(
    ordered: Sequence[str], names: Sequence[str], groups: Mapping[str, str], folds: int
) -> list[dict[str, list[str]]]:
    shuffled = np.random.RandomState(SEED).permutation(len(names))
    members: dict[str, list[str]] = {names[i]: [] for i in shuffled}
    for case_id in ordered:
        members[groups[case_id]].append(case_id)
    held_out: list[list[str]] = [[] for _ in range(folds)]
    for cases in sorted(members.values(), key=len, reverse=True):  # stable, so shuffled within
        min(held_out, key=len).extend(cases)
    return [{"train": sorted(set(ordered) - set(held)), "val": sorted(held)} for held in held_out]


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _warn_of_planned_groups(
    groups: Mapping[str, str],
    planned: Mapping[str, str] | None,
    training: Sequence[str],
    validation: Sequence[str],
) -> None:
    """Warn of what groups other than those of planning mean for validation."""
    if shared := shared_groups(training, validation, planned or {}):
        log.warning(
            "groups of dataset.json have cases in both halves, since --group-regex takes their "
            "place: %s; validation looks better than it is",
            some(shared, quoted=True),
        )
    planned = planned or {case_id: case_id for case_id in groups}
    if len({(groups[c], planned[c]) for c in groups}) > len(set(groups.values())):
        log.warning(
            "the automatic prompts were cross-validated without these groups: the box proposed "
            "for a validation case may come from a fit on other cases of its group; to avoid it, "
            "write the groups to dataset.json and run promptseg_plan again"
        )
