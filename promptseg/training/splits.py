"""Cross-validation folds over case identifiers, as nnU-Net makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sklearn.model_selection import KFold

from promptseg.files import read_json, write_json

SEED = 12345  # nnU-Net's, so that both tools train and validate on the same cases


def make_splits(case_ids: Sequence[str], folds: int = 5) -> list[dict[str, list[str]]]:
    """Split sorted case identifiers into folds of nearly equal size.

    With fewer cases than folds, every case is a fold of its own; a single case is in both halves
    of its only fold.

    Source:
        nnU-Net: five shuffled folds, seed 12345, over the sorted identifiers.
    """
    ordered = sorted(case_ids)
    if len(ordered) < 2:
        return [{"train": ordered, "val": ordered}]
    kfold = KFold(n_splits=min(folds, len(ordered)), shuffle=True, random_state=SEED)
    return [
        {"train": [ordered[i] for i in train], "val": [ordered[i] for i in validation]}
        for train, validation in kfold.split(ordered)
    ]


def load_or_make_splits(path: Path, case_ids: Sequence[str]) -> list[dict[str, list[str]]]:
    """Read `splits_final.json`, or write it first when there is none.

    Raises:
        ValueError: if the file is not a list of folds or names cases that are not there.
    """
    if not path.is_file():
        write_json(path, make_splits(case_ids))
    splits = read_json(path)
    good = isinstance(splits, list) and all(
        isinstance(fold, dict) and {"train", "val"} <= set(fold) for fold in splits
    )
    if not good:
        raise ValueError(f'{path}: expected a list of {{"train": [...], "val": [...]}}')
    return splits


def fold_cases(
    splits: Sequence[dict[str, list[str]]], fold: str, case_ids: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Training and validation cases of a fold.

    Args:
        splits: all folds.
        fold: `0`, `1`, ..., or `all`: every case for training, none held back.
        case_ids: the preprocessed cases.

    Raises:
        ValueError: for an unknown fold, or if cases of the fold have not been preprocessed.
    """
    if fold == "all":
        return sorted(case_ids), []
    if not fold.isdigit() or int(fold) >= len(splits):
        raise ValueError(f"unknown fold {fold!r}; there are 0 to {len(splits) - 1}, and `all`")
    train, validation = (list(splits[int(fold)][half]) for half in ("train", "val"))
    if missing := sorted(set(train + validation) - set(case_ids)):
        raise ValueError(
            f"fold {fold} has {len(missing)} cases that are not preprocessed, first "
            f"{missing[0]!r}; run promptseg_plan again, or remove splits_final.json"
        )
    if not train:
        raise ValueError(f"fold {fold} has no training case")
    return train, validation
