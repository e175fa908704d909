"""The challenge's protocol on files: npz files or a raw dataset in, a CSV and a table out."""

from __future__ import annotations

import csv
import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.evaluation.challenge import ROUNDS, segment_in_rounds, values_of
from promptseg.files import replacing
from promptseg.inference.load import load_predictor, training_cases
from promptseg.inference.predictor import Predictor
from promptseg.io.challenge_npz import (
    NPZ,
    npz_files,
    read_npz_prompts,
    read_npz_volume,
    spacing_zyx,
)
from promptseg.io.dataset import read_raw_dataset
from promptseg.io.images import as_labels, read_segmentation
from promptseg.io.npz import npz_keys, read_npz
from promptseg.progress_bar import progress_bar
from promptseg.prompts.simulated import middle_slice_box
from promptseg.tables import aligned
from promptseg.words import some

CSV_FILE = "challenge_metrics.csv"
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Case:
    """One case to segment.

    Attributes:
        case_id: identifier.
        images: files of the image; of an npz file just that.
        ground_truth: file of the labels.
        ignore_label: value that counts as background; None where there is none.
    """

    case_id: str
    images: tuple[Path, ...]
    ground_truth: Path
    ignore_label: int | None = None


def evaluate_challenge(
    model: Path | str,
    ground_truth: Path | str,
    output: Path | str,
    *,
    images: Path | str | None = None,
    folds: Sequence[str] | None = None,
    device: str | None = None,
    with_names: bool = False,
    spacing_order: str = "auto",
) -> dict[str, Any]:
    """Segment cases by boxes and clicks, as the CVPR 2025 BiomedSegFM challenge evaluates them.

    Writes `challenge_metrics.csv` with the challenge's columns, one row per case.

    Args:
        model: model folder, or a zip file of it.
        ground_truth: folder of npz files with `gts`, or of a raw dataset, of which the cases are
            taken that the model was not trained on. Boxes are those of the npz files, without which
            the first round is skipped; for a raw dataset they are drawn as the challenge does.
        output: folder to write to.
        images: folder of npz files with `imgs` of the same names; by default the same files.
        folds: folds of the model whose networks are averaged; all that are trained when not given.
        device: where the networks run.
        with_names: whether labels that the model knows are asked for by name as well, which the
            challenge does not do.
        spacing_order: order of `spacing` in npz files, for NSD; see `spacing_zyx`. The challenge's
            script reads them as `zyx`.

    Returns:
        `rows` as in the CSV, and `failures`, one sentence for each case that is not among them.

    Raises:
        FileNotFoundError: if there are no cases.
        ValueError: if the model was trained on all of them.
    """
    ground_truth = Path(ground_truth)
    is_raw = (ground_truth / "dataset.json").is_file()
    cases = _raw_cases(ground_truth, model, folds) if is_raw else _npz_cases(ground_truth, images)
    predictor = load_predictor(model, folds=folds, device=device)
    names = {}
    if with_names:
        names = {v: name for name, v in predictor.plans.labels.items() if isinstance(v, int)}
    rows, failures = [], []
    with progress_bar(total=len(cases), desc="evaluating", unit="case") as bar:
        for case in cases:
            try:
                rows.append(_evaluate(predictor, case, names, spacing_order))
            except (ValueError, OSError, RuntimeError) as error:
                failures.append(f"case {case.case_id!r}: {error}")
            bar.update()
    _write_csv(Path(output) / CSV_FILE, rows)
    return {"rows": rows, "failures": failures}


def format_rounds(found: Mapping[str, Any]) -> str:
    """The means over the cases as a table, and what failed."""
    rows, lines = found["rows"], []
    if rows:
        mean = {key: np.mean([row[key] for row in rows]) for key in rows[0] if key != "CaseName"}
        header = ["", "box", *(f"click {n}" for n in range(1, ROUNDS)), "AUC", "final"]
        table = [header]
        for name in ("DSC", "NSD"):
            keys = [*(f"{name}_{n}" for n in range(1, ROUNDS + 1)), f"{name}_AUC", f"{name}_Final"]
            table.append([name, *(f"{mean[key]:.4f}" for key in keys)])
        seconds = [f"{mean[f'RunningTime_{n}']:.2f}" for n in range(1, ROUNDS + 1)]
        table.append(["seconds", *seconds, "", ""])
        late = [
            str(row["CaseName"])
            for row in rows
            if row["TotalRunningTime"] > row["runtime_upperbound"]
        ]
        lines += [f"means over {len(rows)} cases; AUC of the five clicks, 0 to 4", *aligned(table)]
        if late:
            lines.append(f"slower than the challenge allows: {some(late)}")
    if found["failures"]:
        lines.append(f"{len(found['failures'])} problems:")
        lines += [f"  - {message}" for message in found["failures"]]
    return "\n".join(lines)


def _npz_cases(ground_truth: Path, images: Path | str | None) -> list[_Case]:
    labels = npz_files(ground_truth)
    if not labels:
        raise FileNotFoundError(
            f"{ground_truth}: expected NAME.npz files, or a raw dataset with a dataset.json; found "
            f"neither"
        )
    of_images = labels if images is None else npz_files(images)
    if missing := sorted(labels.keys() - of_images.keys()):
        raise FileNotFoundError(f"{images} has no image {some(f'{m}.npz' for m in missing)}")
    return [
        _Case(case_id=name, images=(of_images[name],), ground_truth=path)
        for name, path in labels.items()
    ]


def _raw_cases(folder: Path, model: Path | str, folds: Sequence[str] | None) -> list[_Case]:
    dataset = read_raw_dataset(folder)
    seen = training_cases(model, folds)
    unseen = [case for case in dataset.cases if case.case_id not in seen and case.label]
    if not unseen:
        raise ValueError(
            f"{model} was trained on all {len(dataset.cases)} cases of {dataset.name}; name one "
            f"fold (-f 0), whose held-out cases are evaluated then"
        )
    if len(unseen) < len(dataset.cases):
        log.info(
            "%d of %d cases of %s: the model was not trained on them",
            *(len(unseen), len(dataset.cases), dataset.name),
        )
    return [
        _Case(
            case_id=case.case_id,
            images=tuple(case.images),
            ground_truth=case.label,
            ignore_label=dataset.ignore_label,
        )
        for case in unseen
    ]


def _evaluate(
    predictor: Predictor, case: _Case, names: Mapping[int, str], spacing_order: str
) -> dict[str, Any]:
    prepared, geometry = predictor.prepare_files(case.images)
    ignored = None
    if case.ground_truth.suffix == NPZ:
        reference, spacing, boxes = _of_npz(case, spacing_order)
    else:
        reference, of_labels = read_segmentation(case.ground_truth)
        if difference := geometry.difference_from(of_labels):
            raise ValueError(f"{case.ground_truth} does not lie on its image's grid: {difference}")
        ignored = reference == case.ignore_label  # nowhere for None
        reference[ignored] = 0
        spacing, rng = geometry.spacing, np.random.default_rng(zlib.crc32(case.case_id.encode()))
        boxes = {v: middle_slice_box(reference == v, rng) for v in values_of(reference)}
    if reference.shape != geometry.shape:
        raise ValueError(
            f"{case.ground_truth} has shape {reference.shape}, its image {geometry.shape}"
        )
    predictor.set_prepared(prepared)
    rounds = segment_in_rounds(predictor, reference, boxes, spacing, names=names, ignored=ignored)
    return rounds.row(case.case_id)


def _of_npz(
    case: _Case, spacing_order: str
) -> tuple[np.ndarray, tuple[float, float, float], dict[int, np.ndarray]]:
    """Ground truth, spacing and boxes; these in the order of the values, as the challenge does."""
    (image,) = case.images
    reference = as_labels(read_npz_volume(case.ground_truth, ("gts",), spacing_order)[0])
    spacing = read_npz(image, ("spacing",)).get("spacing", (1.0, 1.0, 1.0))
    boxes = {}
    if "boxes" in npz_keys(image):
        values = values_of(reference)
        prompts = read_npz_prompts(image).values()
        given = [box for of_label in prompts for box in of_label["boxes"]]
        if len(given) != len(values):
            raise ValueError(f"{image}: {len(given)} boxes, but {len(values)} labels in gts")
        boxes = {v: np.array(box) for v, box in zip(values, given, strict=True)}
    return reference, spacing_zyx(spacing, spacing_order, str(image)), boxes


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["CaseName"])
        writer.writeheader()
        writer.writerows(rows)
