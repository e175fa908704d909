"""From a raw dataset to plans and preprocessed cases: what `promptseg_plan` runs."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from promptseg.experiment_planning.auto_prompt_cases import (
    FitCase,
    Reduction,
    read_fit_case,
    reduce_case,
)
from promptseg.experiment_planning.auto_prompt_fit import fit_auto_prompts
from promptseg.experiment_planning.examine import examine_dataset
from promptseg.experiment_planning.fingerprint import save_fingerprint
from promptseg.experiment_planning.integrity import Problem, report
from promptseg.experiment_planning.make_plans import (
    choose_normalizations,
    make_plans,
    normalization_by_name,
)
from promptseg.experiment_planning.rules import BUDGETS, Budget
from promptseg.files import replacing, write_json
from promptseg.folders import Folders, find_dataset_folder
from promptseg.io.dataset import RawCase, RawDataset, case_groups, read_raw_dataset
from promptseg.io.images import file_ending
from promptseg.parallel import Workers, map_cases
from promptseg.plans import (
    DEFAULT_PLANS_NAME,
    Plans,
    locator_file,
    remove_other_plans,
    save_plans,
)
from promptseg.preprocessing.dataset import PreprocessedDataset, remove_case
from promptseg.preprocessing.preprocess import preprocess_and_summarize, preprocess_dataset
from promptseg.presets import find_preset

if TYPE_CHECKING:
    from promptseg.experiment_planning.machine import Machine
    from promptseg.networks.locator import Locator

log = logging.getLogger(__name__)


class BrokenDatasetError(ValueError):
    """Some cases cannot be used; `problems` lists every problem."""

    def __init__(self, dataset: RawDataset, problems: Sequence[Problem], usable: int) -> None:
        self.problems = list(problems)
        advice = (
            "Repair them, or continue without these cases with --skip-broken."
            if usable
            else "No usable case is left; repair at least some."
        )
        super().__init__(f"{dataset.name}: {report(problems, len(dataset.cases))}\n{advice}")


@dataclass(frozen=True, kw_only=True)
class PlanningResult:
    """What planning made, where it is, and what was left out.

    Attributes:
        plans: also in `folder/<plans_name>.json`.
        folder: the preprocessed dataset.
        skipped: problems of the cases left out by `skip_broken`.
        failed: case identifier to message of the cases that could not be preprocessed.
        auto_prompt_table: the measured automatic prompts, as text.
    """

    plans: Plans
    folder: Path
    skipped: tuple[Problem, ...]
    failed: dict[str, str]
    auto_prompt_table: str


def plan_dataset(
    dataset: int | str,
    folders: Folders,
    *,
    size: str | None = None,
    memory: str | None = None,
    preset: str = "none",
    plans_name: str = DEFAULT_PLANS_NAME,
    processes: int | Workers = 2,
    skip_broken: bool = False,
    locator: bool = True,
) -> PlanningResult:
    """Check, fingerprint and plan a raw dataset, fit its automatic prompts, preprocess it.

    More parameters than usual: each is an independent keyword with a default.

    Args:
        dataset: number or full name of a folder under `folders.raw`.
        folders: the three roots.
        size: encoder size: `tiny`, `small` or `base`; None for the largest that fits the machine,
            without a GPU for `tiny`.
        memory: of the machine to train on, see `find_machine`; None for this one.
        preset: `segvol` for the patch size, stride, normalization and network of SegVol's released
            weights, which have size `base`; `none` to follow the rules.
        plans_name: name of the plans file; choose another to keep plans side by side.
        processes: worker processes, or `Workers` that several plannings share, such as those of a
            cluster; 0 does everything in this one.
        skip_broken: plan without the cases that have problems.
        locator: train the networks of the automatic prompt of that name, which takes minutes.

    Returns:
        The plans and what was left out.

    Raises:
        FileNotFoundError: if the dataset is not there.
        BrokenDatasetError: listing every broken case, unless `skip_broken` and others are left.
        ValueError: for an unknown size, memory or preset, or a preset that does not fit size or
            images.
    """
    # torch, which takes seconds to load and which the workers do not need
    from promptseg.experiment_planning.machine import find_machine

    sizes, machine = possible_sizes(size, preset), find_machine(memory)
    raw_folder = find_dataset_folder(
        folders.raw, dataset, "set promptseg_raw or --raw to the folder that has your datasets"
    )
    raw = read_raw_dataset(raw_folder.absolute())  # as workers elsewhere find it
    own = None if isinstance(processes, Workers) else Workers(processes)
    with own or nullcontext(processes) as workers:
        folder = folders.preprocessed.absolute() / raw.name
        return _plan(raw, folder, sizes, machine, preset, plans_name, workers, skip_broken, locator)


def possible_sizes(size: str | None, preset: str) -> list[str]:
    """The sizes to choose among, the smallest first.

    Raises:
        ValueError: for a size that does not exist, or another than the preset's.
    """
    fixed = find_preset(preset)
    if size is not None and size not in BUDGETS:
        raise ValueError(f"unknown size {size!r}; there are {', '.join(BUDGETS)}")
    if fixed and size not in (None, fixed.size):
        raise ValueError(f"{fixed.title} have size {fixed.size!r}; leave out the size {size!r}")
    return [fixed.size] if fixed else [size] if size else list(BUDGETS)


def _plan(
    raw: RawDataset,
    folder: Path,
    sizes: Sequence[str],
    machine: Machine,
    preset: str,
    plans_name: str,
    workers: Workers,
    skip_broken: bool,
    locator: bool,
) -> PlanningResult:
    """More parameters than usual: those of `plan_dataset`, looked up."""
    if fixed := find_preset(preset):
        fixed.check_channels(raw.name, raw.channel_names)
    groups = case_groups(raw.folder / "dataset.json", [case.case_id for case in raw.cases])
    known = normalization_by_name(raw.channel_names[0], preset)
    reduction = Reduction.for_all_strategies(raw.labels, known, raw.ignore_label) if known else None
    examination = examine_dataset(raw, workers, reduction)
    for warning in examination.warnings:
        log.warning(warning)
    cases = examination.good_cases
    if not cases or (examination.problems and not skip_broken):
        raise BrokenDatasetError(raw, examination.problems, len(cases))

    fingerprint = examination.fingerprint
    normalizations, window_reason = choose_normalizations(fingerprint, preset)
    plans_of = partial(
        make_plans, raw, fingerprint, normalizations, window_reason, preset, plans_name
    )
    plans = _fitting(plans_of, sizes, machine, len(cases))
    write_json(folder / "dataset.json", raw.content)
    save_fingerprint(folder, fingerprint)
    data_folder = folder / plans.data_identifier
    remove_other_cases(cases, data_folder)
    remove_other_plans(folder / f"{plans_name}.json", plans)
    reduced = examination.fit_cases
    if len(fingerprint.orientations) > 1:
        log.warning("images are stored in several orientations: %s", plans.reasons["orientation"])
        reduced = {}  # they were reduced as they are stored
    failed, fit_cases = _preprocess(cases, plans, data_folder, reduced, workers)
    with ThreadPoolExecutor(1) as pool:  # the disk is idle while the workers fit
        copying = pool.submit(keep_ground_truth, cases, folder / "gt_segmentations")
        fit = fit_auto_prompts(
            fit_cases, list(raw.labels), processes=workers, groups=groups, locator=locator
        )
        copying.result()
    plans = replace(plans, auto_prompts=fit.labels)
    _save(folder, plans_name, plans, fit.locator)
    write_json(folder / f"{plans_name}_auto_prompt_boxes.json", fit.proposals)
    return PlanningResult(
        plans=plans,
        folder=folder,
        skipped=tuple(examination.problems),
        failed=failed,
        auto_prompt_table=fit.table(),
    )


def _save(folder: Path, plans_name: str, plans: Plans, locator: Locator | None) -> None:
    """Write plans and their locator; of an interruption none are left, and never unlike ones."""
    path, of_locator = folder / f"{plans_name}.json", locator_file(folder, plans_name)
    path.unlink(missing_ok=True)
    of_locator.unlink(missing_ok=True)
    if locator is not None:
        locator.save(of_locator)
    save_plans(path, plans)


def _fitting(
    plans_of: Callable[[str, Budget], Plans], sizes: Sequence[str], machine: Machine, count: int
) -> Plans:
    """The plans of so many cases that fit the machine."""
    from promptseg.experiment_planning.machine import fit_to_machine

    plans = fit_to_machine(plans_of, sizes, machine, count)
    if not plans.estimate["fits"]:
        log.warning("%s", plans.reasons["memory"])
    return plans


def _preprocess(
    cases: Sequence[RawCase],
    plans: Plans,
    folder: Path,
    fit_cases: dict[str, FitCase],
    workers: Workers,
) -> tuple[dict[str, str], dict[str, FitCase]]:
    """Preprocess the cases, and reduce them for the automatic prompts unless they are already.

    Returns:
        What could not be preprocessed and why, and every case reduced, by case identifier.

    Raises:
        ValueError: naming a case that cannot be reduced.
    """
    if fit_cases:
        return preprocess_dataset(cases, plans, folder, workers), fit_cases
    reduction = Reduction.for_all_strategies(
        plans.labels, plans.normalizations[0], plans.ignore_label
    )
    failed, fit_cases = preprocess_and_summarize(
        cases, plans, folder, workers, partial(reduce_case, reduction=reduction)
    )
    kept = [case for case in cases if case.case_id not in fit_cases]
    for case, fit_case, error in map_cases(
        read_fit_case,
        kept,
        reduction,
        plans.orientation,
        processes=workers,
        description="reading cases for automatic prompts",
    ):
        if error is not None:
            raise ValueError(f"case {case.case_id!r}: {error}") from error
        fit_cases[case.case_id] = fit_case
    return failed, fit_cases


def remove_other_cases(cases: Sequence[RawCase], folder: Path) -> None:
    """Remove preprocessed cases of an earlier planning that are now broken or gone."""
    if not folder.is_dir():
        return
    others = set(PreprocessedDataset(folder).case_ids) - {case.case_id for case in cases}
    for case_id in others:
        remove_case(folder, case_id)
    if others:
        log.info("%d cases of an earlier planning are removed from %s", len(others), folder)


def keep_ground_truth(cases: Sequence[RawCase], folder: Path) -> None:
    """Copy the cases' label files, and only theirs, so that validation needs no raw folder."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = {f"{case.case_id}{file_ending(case.label)}": case.label for case in cases}
    for path in folder.iterdir():
        if file_ending(path) is not None and path.name not in labels:
            path.unlink()

    def copy(name: str) -> None:
        with replacing(folder / name) as temporary:
            shutil.copyfile(labels[name], temporary)

    with ThreadPoolExecutor(8) as pool:  # waiting for the disk, not computing
        list(pool.map(copy, labels))
