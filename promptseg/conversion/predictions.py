"""Segmentations of any format to .npz files of the BiomedSegFM challenge."""

from __future__ import annotations

from pathlib import Path

from promptseg.conversion.result import Conversion, convert_cases, refuse_existing
from promptseg.evaluation.inputs import label_files
from promptseg.io.challenge_npz import write_npz_labels
from promptseg.io.images import NPZ, read_segmentation


def convert_predictions_to_npz(
    predictions: Path | str, output: Path | str, *, overwrite: bool = False, processes: int = 0
) -> Conversion:
    """Write each CASE.nii.gz (or of another format) of a folder as CASE.npz with `segs`.

    The array keeps its grid and its axes (z, y, x).

    Args:
        predictions: folder of segmentations.
        output: folder to write to; other files in it stay.
        overwrite: whether existing files of the same names are replaced.
        processes: number of worker processes; 0 converts in this process.

    Raises:
        FileNotFoundError: if there is no such folder, or it contains no segmentation.
        FileExistsError: if a file already exists and `overwrite` is not set.
        ValueError: if no file can be converted, listing the problem of each.
    """
    files, several = label_files(Path(predictions), "predictions")
    targets = {case_id: Path(output) / f"{case_id}{NPZ}" for case_id in files}
    refuse_existing(targets, overwrite)
    cases = {case_id: (files[case_id], targets[case_id]) for case_id in files}
    done, failed = convert_cases(_convert_case, cases, processes=processes)
    return Conversion(output=Path(output), done=tuple(done), failed={**failed, **several})


def _convert_case(case_id: str, paths: tuple[Path, Path]) -> None:
    source, target = paths
    segmentation, geometry = read_segmentation(source)
    write_npz_labels(target, segmentation, geometry.spacing)
