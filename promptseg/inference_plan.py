"""The inference plan: which models, folds, prompts and post-processing segment a dataset best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from promptseg.files import read_json, write_json

FILE_NAME = "inference_plan.json"  # in the dataset's folder of results
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class PostProcessing:
    """What is done to the mask of one label, in this order.

    Attributes:
        largest_component: only the largest 26-connected component stays.
        min_mm3: smaller 26-connected components are removed; 0 removes none.
        fill_holes: background that the mask encloses becomes part of it.
    """

    largest_component: bool = False
    min_mm3: float = 0.0
    fill_holes: bool = False

    @property
    def in_words(self) -> str:
        """`largest component, holes filled`; `none` where nothing is done."""
        steps = ["largest component"] * self.largest_component
        steps += [f"components from {self.min_mm3:.4g} mm3"] * (self.min_mm3 > 0)
        steps += ["holes filled"] * self.fill_holes
        return ", ".join(steps) or "none"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any, source: str) -> PostProcessing:
        """Read from a JSON object.

        Raises:
            ValueError: naming the source, for unknown fields and values of the wrong form.
        """
        names = {f.name for f in fields(cls)}
        if not isinstance(content, dict) or (unknown := sorted(set(content) - names)):
            found = ", ".join(unknown) if isinstance(content, dict) else str(content)[:80]
            raise ValueError(f"{source}: expected {', '.join(sorted(names))}, found {found}")
        chosen = cls(**content)
        size = chosen.min_mm3
        is_number = isinstance(size, (int, float)) and not isinstance(size, bool)
        if not is_number or not 0 <= size < float("inf"):
            raise ValueError(f"{source}: min_mm3: expected a number from 0, found {size!r}")
        for name in ("largest_component", "fill_holes"):
            if not isinstance(getattr(chosen, name), bool):
                found = getattr(chosen, name)
                raise ValueError(f"{source}: {name}: expected true or false, found {found!r}")
        return chosen


@dataclass(frozen=True, kw_only=True)
class InferencePlan:
    """What `promptseg_find_best` chose, and `promptseg_predict -d ID` follows.

    Attributes:
        models: names of the model folders whose networks are averaged.
        folds: `0`, `1`, ...; of each of the models.
        auto_prompt: as in `PredictionOptions`; None for names alone.
        postprocessing: of the labels that have any.
        measured: figures of everything that was compared, for readers of the file.
    """

    models: tuple[str, ...]
    folds: tuple[str, ...]
    auto_prompt: str | None = "plans"
    postprocessing: Mapping[str, PostProcessing] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def in_words(self) -> str:
        """`UNetTrainer__PromptSegPlans__3d, folds 0, 1, automatic prompts: plans; ...`."""
        steps = [f"{label} {of_label.in_words}" for label, of_label in self.postprocessing.items()]
        return (
            f"{' + '.join(self.models)}, folds {', '.join(self.folds)}, automatic prompts: "
            f"{self.auto_prompt or 'none'}; post-processing: {'; '.join(steps) or 'none'}"
        )

    def save(self, folder: Path) -> Path:
        """Write `inference_plan.json` into a dataset's folder of results."""
        content = {
            "format_version": _FORMAT,
            "models": list(self.models),
            "folds": list(self.folds),
            "auto_prompt": self.auto_prompt,
            "postprocessing": {k: steps.to_json() for k, steps in self.postprocessing.items()},
            "measured": dict(self.measured),
        }
        write_json(folder / FILE_NAME, content)
        return folder / FILE_NAME

    @classmethod
    def load(cls, folder: Path) -> InferencePlan:
        """Read a dataset's plan.

        Raises:
            ValueError: naming the file, what was found and what to do, if it is something else,
                or names a model that is not a folder beside it.
        """
        path = folder / FILE_NAME
        content = read_json(path)
        again = "run promptseg_find_best again, or remove the file"
        if not isinstance(content, dict) or content.get("format_version") != _FORMAT:
            raise ValueError(f"{path}: expected an inference plan of format {_FORMAT}; {again}")
        models, folds = content.get("models"), content.get("folds")
        for name, value in (("models", models), ("folds", folds)):
            if not _are_names(value):
                raise ValueError(f"{path}: {name}: expected a list of names, found {value!r}")
        if missing := [name for name in models if not (folder / name).is_dir()]:
            raise ValueError(f"{path}: no model folder {', '.join(missing)} beside it; {again}")
        prompt, steps = content.get("auto_prompt"), content.get("postprocessing", {})
        if prompt is not None and not isinstance(prompt, str):
            raise ValueError(f"{path}: auto_prompt: expected a strategy or null, found {prompt!r}")
        if not isinstance(steps, dict):
            raise ValueError(f"{path}: postprocessing: expected an object, found {steps!r}")
        return cls(
            models=tuple(models),
            folds=tuple(folds),
            auto_prompt=prompt,
            postprocessing={
                label: PostProcessing.from_json(of_label, f"{path}: postprocessing of {label!r}")
                for label, of_label in steps.items()
            },
            measured=content.get("measured", {}),
        )


def _are_names(value: Any) -> bool:
    """Whether a JSON value is a list of names of folders, none of them a path."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(v, str) and v not in ("", ".", "..") for v in value)
        and all(Path(v).name == v and "\\" not in v for v in value)
    )
