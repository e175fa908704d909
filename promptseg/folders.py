"""The three roots, raw datasets, preprocessed datasets and results, and what lies under them."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

_DATASET_NAME = re.compile(r"Dataset(\d{3,})_(.+)")


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where each stage finds what the stage before wrote. None of them need exist yet."""

    raw: Path
    preprocessed: Path
    results: Path


def find_folders(
    raw: Path | str | None = None,
    preprocessed: Path | str | None = None,
    results: Path | str | None = None,
) -> Folders:
    """Resolve the roots: arguments first, then environment, then `./promptseg_data`.

    The environment variables are `promptseg_raw`, `promptseg_preprocessed` and
    `promptseg_results`; for raw datasets `nnUNet_raw` is the second choice.
    """
    environment = os.environ
    fallback = Path("promptseg_data")
    raw = raw or environment.get("promptseg_raw") or environment.get("nnUNet_raw")
    preprocessed = preprocessed or environment.get("promptseg_preprocessed")
    results = results or environment.get("promptseg_results")
    return Folders(
        raw=Path(raw or fallback / "raw").expanduser(),
        preprocessed=Path(preprocessed or fallback / "preprocessed").expanduser(),
        results=Path(results or fallback / "results").expanduser(),
    )


def find_dataset_folder(root: Path, dataset: int | str, made_by: str) -> Path:
    """The folder `DatasetXXX_Name` under a root, by number or by full name.

    Args:
        root: one of the three roots.
        dataset: 4, "4", "004" or "Dataset004_Hippocampus".
        made_by: how to make such a folder, for the error: `train it with promptseg_train`.

    Raises:
        FileNotFoundError: listing those that exist, if none matches.
        ValueError: if several folders share the number.
    """
    found = sorted(p for p in root.glob("Dataset*_*") if p.is_dir()) if root.is_dir() else []
    text = str(dataset)
    if text.isdecimal():
        matches = [p for p in found if _number(p.name) == int(text)]
    else:
        matches = [p for p in found if p.name == text]
    if len(matches) == 1:
        return matches[0]
    there = ", ".join(p.name for p in found) or "no dataset at all"
    if matches:
        names = ", ".join(p.name for p in matches)
        raise ValueError(f"dataset {text} is ambiguous under {root}: {names}; use the full name")
    wanted = f"Dataset{int(text):03d}_*" if text.isdecimal() else text
    raise FileNotFoundError(
        f"no folder {wanted} under {root.absolute()}, which has {there}; {made_by}"
    )


def new_dataset_folder(root: Path, number: int, name: str) -> Path:
    """The folder `DatasetXXX_Name` that a new dataset gets, not made yet.

    Raises:
        ValueError: if the name is not made of letters, digits, `_` and `-`, or if another dataset
            has the number.
    """
    if number < 0 or not re.fullmatch(r"[\w-]+", name):
        raise ValueError(
            f"dataset {number} {name!r}: expected a number from 0 and a name of letters, digits, _ "
            f"and -"
        )
    folder = root / f"Dataset{number:03d}_{name}"
    found = [p for p in root.glob("Dataset*_*") if p.is_dir() and _number(p.name) == number]
    if others := [path.name for path in found if path != folder]:
        raise ValueError(f"{root}: {others[0]} has the number {number}; choose another with -d")
    return folder


def find_model_folder(
    folders: Folders,
    *,
    dataset: int | str | None = None,
    trainer: str | None = None,
    plans_name: str | None = None,
    command: str = "promptseg_predict ...",
) -> Path:
    """The trained model that a command means, or the only one that exists.

    Args:
        folders: the three roots; models are looked for under `folders.results`.
        dataset, trainer, plans_name: narrow the choice if given.
        command: what the user typed, for the commands to choose from.

    Raises:
        FileNotFoundError: if no model fits, listing those that exist.
        ValueError: if several fit, with the command line of each.
    """
    everything = sorted(
        p.parent.parent for p in folders.results.glob("*/*__*__*/fold_*/checkpoint_*.pth")
    )
    models = list(dict.fromkeys(everything))
    if dataset is not None:
        wanted = find_dataset_folder(folders.results, dataset, "train it with promptseg_train")
        models = [m for m in models if m.parent == wanted]
    fitting = [
        model
        for model in models
        if trainer in (None, model.name.split("__")[0])
        and plans_name in (None, model.name.split("__")[1])
    ]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        there = "\n".join(f"  {model}" for model in dict.fromkeys(everything)) or "  nothing"
        raise FileNotFoundError(
            f"no trained model fits under {folders.results.absolute()}; found\n{there}\n"
            f"Train one with promptseg_train, or name a model folder with -m"
        )
    commands = "\n".join(f"  {command} -m {shlex.quote(str(model))}" for model in fitting)
    raise ValueError(f"several trained models; say which one:\n{commands}")


def _number(folder_name: str) -> int | None:
    match = _DATASET_NAME.fullmatch(folder_name)
    return int(match.group(1)) if match else None
