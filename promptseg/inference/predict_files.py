"""A trained model and a folder of images to a folder of segmentations, here or on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from promptseg.files import replacing
from promptseg.inference.cluster import connect, predict_on_cluster
from promptseg.inference.model_folder import opened_model
from promptseg.inference.predict_folder import check_arguments, predict_folder
from promptseg.inference.predictor import Predictor

KEPT_ENCODINGS = 4  # of windows; an image is asked once, and then mostly window after window


def predict_files(
    model_folder: Path | str,
    inputs: Path | str,
    output: Path | str,
    *,
    folds: Sequence[str] | None = None,
    auto_prompt: str | None = None,
    prompts: Path | str | None = None,
    checkpoint: str = "checkpoint_final.pth",
    device: str | None = None,
    step_size: float = 0.5,
    tta: bool = True,
    continue_prediction: bool = False,
    parts: int = 1,
    part: int = 0,
    readers: int = 1,
    writers: int = 1,
    dask: str | None = None,
    imports: Sequence[str] = (),
    jitters: int = 2,
    save_probabilities: bool = False,
    review_list: Path | str | None = None,
) -> dict[str, Any]:
    """Segment every case of a folder and write the results beside each other.

    Writes `CASE.nii.gz` (the images' own ending), `prompts_used.json` (can be edited and given
    back as `prompts`), `predict_report.json` and the model's `dataset.json`. A case that fails is
    reported; the others are done. A segmentation of an earlier run is removed before its case is
    predicted anew, so that none is taken for a result of this run.

    Args:
        model_folder: of a trained model, see `Predictor.from_model_folder`.
        inputs: folder of images, DICOM series folder, or one file.
        output: folder to write to.
        folds: networks to average; every trained fold when not given.
        auto_prompt: `plans`, a strategy's name, `coarse` or `hybrid` (see `Proposer`); None asks
            by label names, or by `prompts`.
        prompts: file or folder of prompts, see `read_case_prompts`; a case it has nothing for
            fails. Labels that a case does not list are not segmented.
        checkpoint, device, step_size, tta: see `Predictor.from_model_folder`.
        continue_prediction: keep the segmentations that are there, but those of cases that the
            report calls failed.
        parts, part: do every `parts`-th case only, from number `part` on, so that several
            commands share the work.
        readers, writers: threads that read and prompt the next cases, and write the last ones,
            while the network works; 0 does it in turn. As many cases more are held in memory.
        dask: address of a Dask scheduler, `tcp://HOST:PORT`; its workers do the cases, each with
            a model of its own, and see the same folders. `readers` and `writers` do not count.
        imports: modules that register the user's own classes, for those workers to import.
        jitters: moved copies of each prompt whose answers are compared, see `Predictor`.
        save_probabilities: write `probabilities/CASE.npz` too, see `read_probabilities`.
        review_list: CSV to write, all cases, those that a person should look at first.

    Returns:
        The report: `auto_prompt`, `cases` with `status` `done`, `kept` or `failed` each, and
        `failed`, how many.

    Raises:
        FileNotFoundError, ValueError: if the model, the inputs or the prompts file as a whole
            cannot be used, if `auto_prompt` is unknown, if it and `prompts` are given, if
            `review_list` is a folder, or if a segmentation would overwrite an image.
        ImportError, ConnectionError: if `dask` is given and Dask or the scheduler is not there.
    """
    output, model_folder = Path(output), Path(model_folder)
    asked = {
        "auto_prompt": auto_prompt,
        "prompts": prompts,
        "continue_prediction": continue_prediction,
        "parts": parts,
        "part": part,
        "readers": readers,
        "writers": writers,
        "review_list": review_list,
    }
    check_arguments(**asked)  # before the model is loaded
    options = {
        "folds": folds,
        "checkpoint": checkpoint,
        "device": device,
        "step_size": step_size,
        "tta": tta,
        "most_encodings": KEPT_ENCODINGS,
        "jitters": jitters,
        "keep_probabilities": save_probabilities,
    }
    with connect(dask) if dask else nullcontext() as client:
        if client:  # it runs where the workers are; here may be no GPU
            predictor = Predictor.from_model_folder(model_folder, **{**options, "device": "cpu"})
            asked["work"] = partial(
                predict_on_cluster,
                client,
                model_folder=model_folder,
                model_options=options,
                imports=imports,
            )
        else:
            predictor = Predictor.from_model_folder(model_folder, **options)
        report = predict_folder(predictor, inputs, output, **asked)
    _keep_dataset_json(model_folder, output)
    return report


def _keep_dataset_json(model_folder: Path, output: Path) -> None:
    """The labels' names, for the evaluation and for whoever finds the folder later."""
    with opened_model(model_folder, endings=(".json",)) as opened:
        if (source := opened / "dataset.json").is_file():
            with replacing(output / "dataset.json") as temporary:
                temporary.write_bytes(source.read_bytes())
