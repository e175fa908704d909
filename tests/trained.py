"""Training for tests: what they change of the request and of the options, by keyword."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from promptseg.folders import Folders
from promptseg.pipeline import train as pipeline
from promptseg.training.request import RunOptions, TrainingRequest


def train(dataset: int | str, folders: Folders, **changes: Any) -> Path | None:
    options = {field.name for field in fields(RunOptions)}
    request = {name: value for name, value in changes.items() if name not in options}
    return pipeline.train(
        dataset,
        folders,
        TrainingRequest(**request),
        RunOptions(**{name: changes[name] for name in changes if name in options}),
    )
