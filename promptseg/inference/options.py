"""What a user can choose about predicting files, in one object; imports nothing that is slow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from promptseg.inference_plan import PostProcessing

_OF_LOADING = {  # options that `load_predictor` takes, and their names there
    "folds": "folds",
    "checkpoint": "checkpoint",
    "device": "device",
    "step_size": "step_size",
    "tta": "tta",
    "n_perturbations": "n_perturbations",
    "save_probabilities": "keep_probabilities",
}


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """How `predict_files` segments images.

    Attributes:
        folds: networks to average, `0`, ..., `all`; every trained fold when None.
        checkpoint: file name in each fold's folder.
        device: `cpu`, `cuda`, `cuda:1` or `mps`; a GPU if there is one, when None.
        step_size: largest distance of neighbouring patches, as a fraction of the patch, in (0, 1].
        tta: mirror at test time along the axes that training mirrored.
        n_perturbations: number of perturbed copies of each prompt whose masks are compared; 0
            for none.
        save_probabilities: also write `probabilities/CASE.npz`, see `read_probabilities`.
        auto_prompt: `plans`, a strategy's name, `name`, `coarse` or `hybrid` (see `Proposer`), for
            every label that `prompts` have nothing for. With neither, label names are the prompts.
        prompts: file or folder of prompts, see `read_case_prompts`. Without `auto_prompt`, labels
            that a case does not list are not segmented, and a case without an entry fails.
        initial: folder of masks to correct, a label map per case (`CASE.nii.gz`, on the image's
            grid): its labels are segmented, each with its mask beside what `prompts` has for it.
            A case without one is segmented without. Never written to.
        background_value: of label maps of scribbles among `prompts`, see `read_scribbles`.
        postprocessing: of labels by name, done where a person gave no prompts for them.
        continue_prediction: keep existing segmentations, except those of cases that the earlier
            run's report calls failed.
        parts: number of commands that share the cases.
        part: index of this command among them, starting at 0; it segments every `parts`-th case.
        readers: number of threads that read and prompt the next cases while the network works; 0
            reads each case just before it is segmented. As many more cases are held in memory.
        writers: number of threads that write finished cases; 0 writes each case before the next is
            segmented. As many more cases are held in memory.
        dask: address of a Dask scheduler, `tcp://HOST:PORT`. Its workers segment the cases, each
            with a model of its own, and see the same folders; `readers` and `writers` are unused.
        imports: modules that register the user's own classes, for those workers to import.
        review_list: CSV file to write with all cases, those to review first at the top.

    Raises:
        ValueError: for values out of range.
    """

    folds: Sequence[str] | None = None
    checkpoint: str = "checkpoint_final.pth"
    device: str | None = None
    step_size: float = 0.5
    tta: bool = True
    n_perturbations: int = 2
    save_probabilities: bool = False
    auto_prompt: str | None = None
    prompts: Path | str | None = None
    initial: Path | str | None = None
    background_value: int | None = None
    postprocessing: Mapping[str, PostProcessing] | None = None
    continue_prediction: bool = False
    parts: int = 1
    part: int = 0
    readers: int = 1
    writers: int = 1
    dask: str | None = None
    imports: Sequence[str] = ()
    review_list: Path | str | None = None

    def __post_init__(self) -> None:
        check_step_size(self.step_size)
        for name in ("n_perturbations", "readers", "writers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.parts < 1:
            raise ValueError(f"the work has 1 part or more, got {self.parts} (-num_parts)")
        if not 0 <= self.part < self.parts:
            raise ValueError(
                f"part must be in 0 to {self.parts - 1} for {self.parts} part(s), got {self.part}"
            )

    @property
    def suffix(self) -> str:
        """Of the names of report and prompts files, which each part writes for itself."""
        return "" if self.parts == 1 else f"_part{self.part}"


def check_step_size(step_size: float) -> None:
    """Raise a ValueError for a step size that is not a usable fraction of the patch."""
    if not 0 < step_size <= 1:
        raise ValueError(f"step_size must be in (0, 1], got {step_size}")


def check_for_loaded(options: PredictionOptions) -> None:
    """Refuse options that a predictor which has been loaded cannot follow.

    Raises:
        ValueError: naming them, and where they belong.
    """
    if options.dask:
        raise ValueError(
            "the workers of a Dask cluster load the model themselves; give its folder, not a "
            "loaded predictor"
        )
    changed = [f.name for f in fields(options) if getattr(options, f.name) != f.default]
    if wrong := [name for name in changed if name in _OF_LOADING]:
        names = ", ".join(_OF_LOADING[name] for name in wrong)
        raise ValueError(
            f"{', '.join(wrong)}: the predictor is loaded already; give {names} to load_predictor"
        )
