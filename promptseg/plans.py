"""Plans: everything that is derived from the data, decided once and read by every later stage."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from promptseg.files import read_json, write_json
from promptseg.labels import IGNORE, Values, classes_of, problem_of_class_order, without_lists

PLANS_FORMAT = 1
DEFAULT_PLANS_NAME = "PromptSegPlans"
DEFAULT_TRAINER = "UNetTrainer"
PRESETS = ("none", "segvol")  # see presets.py
KEEPING_SPACING = ("segvol",)  # presets that leave every image on its own voxels
AS_STORED = "stored"  # orientation of plans that leave every image as it is
NORMALIZATIONS = ("window", "percentiles", "foreground")


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """How one channel's intensities become [0, 255]; a piece of the plans.

    Attributes:
        kind: `window` (CT: HU between two fixed values), `percentiles` (of each volume) or
            `foreground` (percentiles of each volume's voxels above its mean).
        lower, upper: HU for `window`, else percentiles; values outside are clipped.
    """

    kind: str
    lower: float
    upper: float

    def __post_init__(self) -> None:
        if self.kind not in NORMALIZATIONS:
            raise ValueError(
                f"normalization kind {self.kind!r} is none of {', '.join(NORMALIZATIONS)}"
            )
        if not self.lower < self.upper:
            raise ValueError(f"normalization needs lower < upper, got {self.lower}, {self.upper}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Plans:
    """What the data asks for; `documentation/reference/plans.md` has who reads each field.

    Attributes:
        dataset_name: `Dataset004_Hippocampus`.
        plans_name: the file's name without `.json`; several plans of one dataset can coexist.
        size: encoder size, `tiny`, `small` or `base`.
        trainer: trainer that `promptseg_train` takes unless told otherwise.
        preset: `segvol` for the patch, stride and network of SegVol's released weights; `none`
            where the rules decide. Plans written before there were presets have none.
        channel_names: as in dataset.json.
        modalities: of each channel: `CT`, `MRI`, `PET`, `US` or `unknown`.
        normalizations: of each channel, raw intensities to [0, 255].
        orientation: where the first, second and third axis of a file lead, `RAS` for right,
            anterior, superior; images that are stored another way are turned to it. `stored` leaves
            all as they are, as plans did that have none.
        spacing: mm, zyx, that every image is resampled to; with the preset `segvol`, which keeps
            each image's own voxels, only what is usual among the training images.
        median_shape: voxels, zyx, of the training images at that spacing.
        patch_size: voxels, zyx, that the network sees at once.
        stride: voxels, zyx, of one token of the image embedding.
        finest_stride: voxels, zyx, of one element of the finest feature map.
        batch_size: patches in one training step.
        labels: foreground names to values, ordered by value. With regions, to one or several
            values, in the order of dataset.json.
        regions_class_order: the value that is written for each name; later ones are written over
            earlier ones. Empty without regions. Plans made before have none.
        ignore_label: value in label files of voxels whose label nobody knows, which take part in
            nothing; None where there is none. Plans made before have none.
        single_component: labels that are one connected component in the training images; of what
            names or a box find, only the largest component is kept. Plans made before have none.
        training_images: ranges of their intensities, spacings and fields of view, which other
            images are compared with (`training_images.differences`). Plans made before have none.
        auto_prompts: for each label the strategies that were tried, what they measured, and the
            one chosen.
        estimate: what training with `trainer` takes: on which `machine`, bytes at the peak as
            `memory`, and `seconds` of a step, None on a GPU. Plans made before have none.
        reasons: for each rule, why it chose what it chose.
    """

    format_version: int = PLANS_FORMAT
    dataset_name: str
    plans_name: str = DEFAULT_PLANS_NAME
    size: str
    trainer: str = DEFAULT_TRAINER
    preset: str = "none"
    channel_names: tuple[str, ...]
    modalities: tuple[str, ...]
    normalizations: tuple[Normalization, ...]
    orientation: str = AS_STORED
    spacing: tuple[float, float, float]
    median_shape: tuple[int, int, int]
    patch_size: tuple[int, int, int]
    stride: tuple[int, int, int]
    finest_stride: tuple[int, int, int] = (1, 1, 1)
    batch_size: int
    labels: dict[str, Values]
    regions_class_order: tuple[int, ...] = ()
    ignore_label: int | None = None
    single_component: tuple[str, ...] = ()
    training_images: dict[str, Any] = field(default_factory=dict)
    auto_prompts: dict[str, dict[str, Any]] = field(default_factory=dict)
    estimate: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def keeps_spacing(self) -> bool:
        """Whether every image stays on its own voxels instead of being resampled to `spacing`."""
        return self.preset in KEEPING_SPACING

    @property
    def declared_labels(self) -> dict[str, int | list[int]]:
        """The labels as dataset.json has them, with the value to ignore if there is one."""
        labels = {n: list(v) if isinstance(v, tuple) else v for n, v in self.labels.items()}
        return labels if self.ignore_label is None else {**labels, IGNORE: self.ignore_label}

    @property
    def classes(self) -> tuple[tuple[int, ...], ...]:
        """For each label the classes of a network that make it; 0 is the background."""
        return classes_of(self.labels)

    @property
    def written_values(self) -> dict[str, int]:
        """The value that each name has in segmentations that are written."""
        order = self.regions_class_order or self.labels.values()
        return dict(zip(self.labels, order, strict=True))

    @property
    def data_identifier(self) -> str:
        """Name of the folder that holds the cases preprocessed by these plans."""
        return f"{self.plans_name}_3d"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any], source: Path | str = "plans") -> Plans:
        """Read plans from a JSON object.

        Raises:
            ValueError: naming source and field, if fields are missing, unknown or of the wrong
                form, or if the format is of another version.
        """
        if not isinstance(content, dict):
            raise ValueError(f"{source}: expected a JSON object, found {type(content).__name__}")
        version = content.get("format_version")
        if version != PLANS_FORMAT:
            raise ValueError(
                f"{source}: plans format {version!r}, this version of promptseg reads "
                f"{PLANS_FORMAT}; run promptseg_plan again"
            )
        content = {_FORMER_NAMES.get(name, name): value for name, value in content.items()}
        content = {**_FORMERLY, **content}
        names = {f.name for f in fields(cls)}
        if missing := sorted(names - set(content)):
            raise ValueError(f"{source}: missing {', '.join(missing)}; run promptseg_plan again")
        if unknown := sorted(set(content) - names):
            raise ValueError(f"{source}: unknown {', '.join(unknown)}; is it a promptseg plan?")
        values = dict(content)
        for name, (is_good, expected) in _FORMS.items():
            if not is_good(content[name]):
                raise ValueError(f"{source}: {name}: expected {expected}, found {content[name]!r}")
            if isinstance(content[name], list):
                values[name] = tuple(content[name])
        try:
            values["normalizations"] = tuple(Normalization(**n) for n in content["normalizations"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}: normalizations: {error}") from error
        values["labels"] = without_lists(content["labels"])
        order = content["regions_class_order"]
        if problem := problem_of_class_order(values["labels"], order):
            raise ValueError(f"{source}: regions_class_order: {problem}")
        plans = cls(**values)
        counts = [len(getattr(plans, name)) for name in _OF_EACH_CHANNEL]
        if len(set(counts)) > 1:
            raise ValueError(
                f"{source}: {', '.join(_OF_EACH_CHANNEL)} need as many entries as channels, found "
                f"{', '.join(map(str, counts))}"
            )
        if any(w % s for w, s in zip(plans.patch_size, plans.stride, strict=True)):
            raise ValueError(
                f"{source}: patch {plans.patch_size} is not a multiple of stride "
                f"{plans.stride} (zyx)"
            )
        return plans


_FORMER_NAMES = {"window": "patch_size"}  # of fields, in earlier plans
_FORMERLY = {  # fields that earlier plans lack
    "preset": "none",
    "finest_stride": [1, 1, 1],
    "orientation": AS_STORED,
    "trainer": DEFAULT_TRAINER,
    "regions_class_order": [],
    "ignore_label": None,
    "single_component": [],
    "training_images": {},
    "estimate": {},
}
_OF_EACH_CHANNEL = ("channel_names", "modalities", "normalizations")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_length(value: Any) -> bool:
    return _is_count(value) or (isinstance(value, float) and 0 < value < math.inf)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _are(is_item: Callable[[Any], bool], value: Any, length: int | None = None) -> bool:
    """Whether a value is a list (from JSON) or a tuple of such items, and of that length."""
    is_list = isinstance(value, (list, tuple)) and len(value) > 0
    return is_list and length in (None, len(value)) and all(map(is_item, value))


def _is_orientation(value: Any) -> bool:
    """Whether a value has one letter of each axis of the body, in any order."""
    axes = {"L": 0, "R": 0, "P": 1, "A": 1, "S": 2, "I": 2}
    return isinstance(value, str) and sorted(axes.get(c, -1) for c in value) == [0, 1, 2]


def _are_labels(value: Any) -> bool:
    if not isinstance(value, dict) or not value:
        return False
    values = [tuple(v) if isinstance(v, (list, tuple)) else (v,) for v in value.values()]
    counts = [all(map(_is_count, of_name)) and len(of_name) > 0 for of_name in values]
    return all(counts) and len(set(values)) == len(values)


_THREE_COUNTS = (lambda v: _are(_is_count, v, 3), "3 positive whole numbers, zyx")
_NAMES = (lambda v: _are(_is_name, v), "a list of names")
_NAME = (_is_name, "a name")
_OBJECT = (lambda v: isinstance(v, dict), "an object")
_FORMS = {  # field: its check, and what to expect in words
    "dataset_name": _NAME,
    "plans_name": _NAME,
    "size": _NAME,
    "trainer": _NAME,
    "preset": (lambda v: v in PRESETS, f"one of {', '.join(PRESETS)}"),
    "channel_names": _NAMES,
    "modalities": _NAMES,
    "normalizations": (lambda v: isinstance(v, (list, tuple)), "a list of objects"),
    "orientation": (lambda v: v == AS_STORED or _is_orientation(v), "three letters, such as RAS"),
    "spacing": (lambda v: _are(_is_length, v, 3), "3 positive lengths in mm, zyx"),
    "median_shape": _THREE_COUNTS,
    "patch_size": _THREE_COUNTS,
    "stride": _THREE_COUNTS,
    "finest_stride": _THREE_COUNTS,
    "batch_size": (_is_count, "a positive whole number"),
    "labels": (_are_labels, "names with different positive whole numbers"),
    "regions_class_order": (
        lambda v: isinstance(v, (list, tuple)) and all(map(_is_count, v)),
        "a list of positive whole numbers, which is empty without regions",
    ),
    "ignore_label": (lambda v: v is None or _is_count(v), "a positive whole number, or null"),
    "single_component": (
        lambda v: isinstance(v, (list, tuple)) and all(map(_is_name, v)),
        "a list of names, which may be empty",
    ),
    "training_images": _OBJECT,
    "auto_prompts": _OBJECT,
    "estimate": _OBJECT,
    "reasons": _OBJECT,
}


def save_plans(path: Path, plans: Plans) -> None:
    """Write plans as JSON, atomically."""
    write_json(path, plans.to_json())


def load_plans(path: Path) -> Plans:
    """Read plans; the errors name the file, the field and the command that makes it."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such plans; `promptseg_plan -d ID` writes them")
    return Plans.from_json(read_json(path), path)


def locator_digest(plans: Plans) -> str | None:
    """By which plans know the networks of the automatic prompt `locator`; None without them."""
    for entry in plans.auto_prompts.values():
        candidate = entry.get("candidates", {}).get("locator")
        if candidate is not None:
            return str(candidate.get("parameters", {}).get("networks"))
    return None


def locator_file(folder: Path, plans_name: str) -> Path:
    """Where the networks of the automatic prompt `locator` lie beside plans, if they have any."""
    return folder / f"{plans_name}_locator.npz"


def remove_other_plans(path: Path, plans: Plans) -> None:
    """Remove plans that these will replace, unless they differ in nothing but automatic prompts.

    A planning that is interrupted then leaves no plans, in place of former ones beside cases that
    are preprocessed by others.
    """
    if not path.is_file():
        return
    try:
        former = load_plans(path)
    except ValueError:  # of another version, or damaged
        former = None
    if former is None or replace(former, auto_prompts={}) != replace(plans, auto_prompts={}):
        path.unlink()
