"""A trained model, from its folder or a zip file of it, to a predictor."""

from __future__ import annotations

import logging
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from promptseg.files import read_json, write_json
from promptseg.inference.options import check_step_size
from promptseg.inference.predictor import Predictor
from promptseg.networks.device import choose_device
from promptseg.networks.locator import Locator
from promptseg.networks.promptable import PromptableNetwork, build_network
from promptseg.plans import Plans, locator_digest
from promptseg.predicted_dice import estimator_of_files
from promptseg.presets import preset_of
from promptseg.training.checkpoint import load_checkpoint, load_weights
from promptseg.training.settings import TrainingSettings
from promptseg.words import short

log = logging.getLogger(__name__)

ModelFolders = Path | str | Sequence[Path | str]  # a folder or zip file, or several: an ensemble
PROMPT_QUALITY = "prompt_strategies.json"  # in each fold's folder
LOCATOR_FILE = "locator.npz"  # likewise
DICE_SAMPLES = "dice_samples.json"  # likewise
MOST_BYTES = 2**36  # into which a zip file may unpack
_OF_A_MODEL = (".json", ".npz", ".pth")
_ENCRYPTED = 1  # bit of a zip member's flags
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


def model_folders(model: ModelFolders) -> list[Path]:
    """The folders or zip files of a model, one for each member where it is an ensemble."""
    return [Path(one) for one in ([model] if isinstance(model, (str, Path)) else model)]


def load_predictor(
    folder: ModelFolders,
    *,
    folds: Sequence[str] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    device: str | None = None,
    step_size: float = 0.5,
    tta: bool = True,
    most_encodings: int | None = None,
    n_perturbations: int = 0,
    keep_probabilities: bool = False,
) -> Predictor:
    """Load a trained model; the preset of its plans decides the class of the predictor.

    More parameters than usual: each is an independent keyword with a default.

    Args:
        folder: `results/DatasetXXX_Name/TRAINER__PLANS__3d`, or a zip file of it; several, such as
            those of different trainers on the same plans, are an ensemble.
        folds: `0`, ..., `all`; every fold with that checkpoint when not given.
        checkpoint: file name in each fold's folder.
        device: where the networks run; a GPU if there is one, when not given.
        step_size, most_encodings, n_perturbations, keep_probabilities: see `Predictor`.
        tta: mirror at test time along the axes that training mirrored.

    Raises:
        FileNotFoundError: if the folder or a checkpoint is missing, listing those that exist.
        ValueError: for a step size outside (0, 1], if folds or models were trained with different
            plans, or for a zip file that is damaged or holds no model.
    """
    check_step_size(step_size)
    device = choose_device(device)
    folders = model_folders(folder)
    with ExitStack() as stack:
        opened = [stack.enter_context(opened_model(one)) for one in folders]
        loaded = [load_networks(one, folds, checkpoint) for one in opened]
        measured = read_prompt_quality(opened, folds)
        plans = _same_plans(folders, [plans for _, plans, _ in loaded])
        locator = read_locator(opened[0], folds, plans)
        estimator = estimator_of_files(_files_of_folds(opened, folds, DICE_SAMPLES))
    mirrored = set.intersection(*(set(settings.mirror_axes) for _, _, settings in loaded))
    log.info("predicting on %s", device)
    preset = preset_of(plans)
    return (Predictor if preset is None else preset.predictor_class)(
        [network for networks, _, _ in loaded for network in networks],
        plans,
        device=device,
        step_size=step_size,
        mirror_axes=sorted(mirrored) if tta else (),
        most_encodings=most_encodings,
        n_perturbations=n_perturbations,
        keep_probabilities=keep_probabilities,
        measured_dice=measured,
        locator=locator,
        dice_estimator=estimator,
    )


def _same_plans(folders: Sequence[Path], plans: Sequence[Plans]) -> Plans:
    for folder, others in zip(folders, plans, strict=True):
        if others != plans[0]:
            raise ValueError(
                f"{folder} was trained with other plans than {folders[0]}; models of an ensemble "
                f"need the same"
            )
    return plans[0]


def _files_of_folds(
    folders: Sequence[Path], folds: Sequence[str] | None, name: str
) -> Iterator[Path]:
    """The files of a name in the folders of some folds, or of all."""
    wanted = None if folds is None else {f"fold_{fold}" for fold in folds}
    for folder in folders:
        for file in sorted(folder.glob(f"fold_*/{name}")):
            if wanted is None or file.parent.name in wanted:
                yield file


def read_locator(folder: Path, folds: Sequence[str] | None, plans: Plans) -> Locator | None:
    """The locator of a model, from the first of its folds; None where planning trained none.

    Raises:
        FileNotFoundError: if the plans have one and it is not there.
        ValueError: if it is damaged, or another than the plans'.
    """
    digest = locator_digest(plans)
    if digest is None:
        return None
    names = "*" if folds is None else folds[0]
    path = next(iter(sorted(folder.glob(f"fold_{names}/{LOCATOR_FILE}"))), None)
    if path is None:
        raise FileNotFoundError(
            f"{folder / f'fold_{names}' / LOCATOR_FILE}: no such file, by which labels are found; "
            f"copy it from where the model was trained"
        )
    locator = Locator.load(path)
    if locator.digest != digest:
        raise ValueError(f"{path} is not the locator of this model's plans; copy that one here")
    return locator


def load_networks(
    folder: Path, folds: Sequence[str] | None, checkpoint: str
) -> tuple[list[PromptableNetwork], Plans, TrainingSettings]:
    """Load one network per fold, their plans and training settings.

    Args:
        folder: `results/DatasetXXX_Name/TRAINER__PLANS__3d`.
        folds: `0`, ..., `all`; every fold with that checkpoint when not given.
        checkpoint: file name in each fold's folder.

    Raises:
        FileNotFoundError: if the folder or a checkpoint is missing, listing those that exist.
        ValueError: if the folds were trained with different plans, or by a version with a
            different encoder.
    """
    paths = _checkpoints(folder, folds, checkpoint)
    contents = [load_checkpoint(path) for path in paths]
    plans, *others = (
        Plans.from_json(content["plans"], path)
        for path, content in zip(paths, contents, strict=True)
    )
    for path, other in zip(paths[1:], others, strict=True):
        if other != plans:
            raise ValueError(f"{path} was trained with other plans than {paths[0]}")
    networks = []
    for path, content in zip(paths, contents, strict=True):
        network = build_network(plans, content["encoder"])
        load_weights(network, content["network"], path)
        networks.append(network)
    log.info("model %s, %s, %s", folder.name, ", ".join(p.parent.name for p in paths), checkpoint)
    return networks, plans, TrainingSettings.from_json(contents[0]["settings"])


def training_cases(
    model: ModelFolders,
    folds: Sequence[str] | None = None,
    checkpoint: str = "checkpoint_final.pth",
) -> set[str]:
    """Identifiers of the cases that any of a model's networks was trained on; see `load_predictor`.

    Args:
        model, folds, checkpoint: as for `load_predictor`.
    """
    found: set[str] = set()
    for folder in model_folders(model):
        with opened_model(folder) as opened:
            for path in _checkpoints(opened, folds, checkpoint):
                found |= set(load_checkpoint(path).get("training_cases", ()))
    return found


def _checkpoints(folder: Path, folds: Sequence[str] | None, checkpoint: str) -> list[Path]:
    """Checkpoint files of a model's folds, or a FileNotFoundError that lists those that exist."""
    fold = folder if folder.suffix != ".pth" else folder.parent
    if folder.exists() and fold.name.startswith("fold_"):
        checkpoint_flag = f" -chk {folder.name}" if fold != folder else ""
        raise ValueError(
            f"{folder} is a part of the model {fold.parent}; name that, and the part: "
            f"-m {fold.parent} -f {fold.name.removeprefix('fold_')}{checkpoint_flag}"
        )
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such model folder")
    there = sorted(p.parent.name for p in folder.glob(f"fold_*/{checkpoint}"))
    wanted = there if folds is None else [f"fold_{fold}" for fold in folds]
    paths = [folder / name / checkpoint for name in wanted]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise FileNotFoundError(
            f"no {', '.join(missing)}; folds with a {checkpoint}: {', '.join(there) or 'none'}"
        )
    if not paths:
        raise FileNotFoundError(
            f"{folder} has no fold with a {checkpoint}; was its training finished? Other "
            f"checkpoints can be named with -chk"
        )
    return paths


@contextmanager
def opened_model(path: Path, endings: Sequence[str] = _OF_A_MODEL) -> Iterator[Path]:
    """A model folder itself, or a zip file of one, unpacked while the block runs.

    The zip holds the folder's content, or the folder itself. Only files with these endings are
    unpacked, and nothing outside the temporary folder. That folder has the zip's name, so that
    messages which name it name the zip.

    Raises:
        FileNotFoundError: if there is no such zip file.
        ValueError: if the zip file is damaged, holds no model, or would unpack to more than
            `MOST_BYTES`.
    """
    if path.is_dir() or path.suffix.lower() != ".zip":
        yield path
        return
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such model")
    with tempfile.TemporaryDirectory(prefix="promptseg_model_") as unpacked:
        try:
            with zipfile.ZipFile(path) as archive:
                model = _unpack(archive, path, Path(unpacked) / path.name, tuple(endings))
        except _DAMAGED as error:
            raise ValueError(
                f"{path} cannot be read as a zip file: {error}; copy or zip it again"
            ) from error
        yield model


def _unpack(archive: zipfile.ZipFile, path: Path, folder: Path, endings: tuple[str, ...]) -> Path:
    """Unpack the files of a model with these endings into a folder, and return that."""
    members = {}
    for member in archive.infolist():
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.suffix not in _OF_A_MODEL or _of_macos(name):
            continue
        if name.is_absolute() or ".." in name.parts or ":" in member.filename:
            raise ValueError(f"{path} holds {member.filename!r}, which leaves its folder")
        if member.flag_bits & _ENCRYPTED:
            raise ValueError(f"{path} is encrypted; unpack it, or zip it without a password")
        members[name] = member
    models = sorted({name.parent.parent for name in members if name.match("fold_*/*.pth")})
    if len(models) != 1:
        raise ValueError(
            f"{path} holds {len(models)} models; expected one model folder with fold_*/"
            f"checkpoint_*.pth in it, as promptseg_train leaves it under results/Dataset*/; "
            f"copy it again if it should be one"
        )
    wanted = {
        name: member
        for name, member in members.items()
        if name.suffix in endings and name.is_relative_to(models[0])
    }
    if (total := sum(member.file_size for member in wanted.values())) > MOST_BYTES:
        raise ValueError(f"{path} would unpack to {total / 2**30:.0f} GB; is it a model?")
    for name, member in wanted.items():
        target = folder / name.relative_to(models[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file)
    folder.mkdir(exist_ok=True)
    return folder


def _of_macos(name: PurePosixPath) -> bool:
    """Whether a file is one of those that macOS adds to every zip that it makes."""
    return name.parts[0] == "__MACOSX" or name.name.startswith("._")


def write_prompt_quality(fold_folder: Path, measured: Mapping[str, Any]) -> None:
    """Write what `measure_strategies` returns into a fold's folder."""
    write_json(fold_folder / PROMPT_QUALITY, measured)


def read_prompt_quality(
    folders: Sequence[Path], folds: Sequence[str] | None
) -> dict[str, dict[str, float]]:
    """For each label the mean Dice of each strategy over the folds that measured it.

    The strategies are in the order of their seconds, the fastest first.
    """
    found: dict[str, dict[str, list[float]]] = {}
    seconds: dict[str, list[float]] = {}
    for file in _files_of_folds(folders, folds, PROMPT_QUALITY):
        dice, spent = _prompt_quality(file)
        for strategy, value in spent.items():
            seconds.setdefault(strategy, []).append(value)
        for label, of_label in dice.items():
            for strategy, value in of_label.items():
                found.setdefault(label, {}).setdefault(strategy, []).append(value)
    fastest_first = sorted(seconds, key=lambda strategy: np.mean(seconds[strategy]))
    return {
        label: {name: float(np.mean(of_label[name])) for name in fastest_first if name in of_label}
        for label, of_label in found.items()
    }


def _prompt_quality(file: Path) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Dice by label and strategy, and seconds by strategy, of a file that is checked."""
    content = read_json(file)
    content = content if isinstance(content, dict) else {}
    dice, seconds = content.get("dice"), content.get("seconds")
    try:
        names = {name for of_label in dice.values() for name in of_label}
        values = [value for of_label in dice.values() for value in of_label.values()]
        is_right = names <= set(seconds) and all(0 <= value <= 1 for value in values)
        is_right = is_right and all(0 <= value < np.inf for value in seconds.values())
    except (AttributeError, TypeError):
        is_right = False
    if not is_right:
        raise ValueError(
            f"{file}: expected `dice` with a number from 0 to 1 for each label and strategy, and "
            f"`seconds` of each strategy, found {short(content, 80)}; remove the file, and labels "
            f"are prompted as planned"
        )
    return dice, seconds
