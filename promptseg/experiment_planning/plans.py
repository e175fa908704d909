"""Plans: everything that follows from the data, decided once and read by every later stage."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from promptseg.files import read_json, write_json
from promptseg.preprocessing.normalize import Normalization

PLANS_FORMAT = 1
DEFAULT_PLANS_NAME = "PromptSegPlans"


@dataclass(frozen=True, kw_only=True)
class Plans:
    """What the data asks for. `documentation/plans.md` tells who writes and reads each field.

    Attributes:
        dataset_name: `Dataset004_Hippocampus`.
        plans_name: the file's name without `.json`; several plans of one dataset can coexist.
        size: encoder size, `tiny`, `small` or `base`.
        channel_names: as in dataset.json.
        modalities: of each channel: `CT`, `MRI`, `PET`, `US` or `unknown`.
        normalizations: of each channel, raw intensities to [0, 255].
        spacing: mm, zyx, that every image is resampled to.
        median_shape: voxels, zyx, of the training images at that spacing.
        window: voxels, zyx, that the network sees at once.
        stride: voxels, zyx, of one token of the image embedding.
        batch_size: windows in one training step.
        labels: foreground names to values, ordered by value.
        auto_prompts: for each label the strategies that were tried, what they measured, and the
            one chosen.
        reasons: for each rule, why it chose what it chose.
    """

    format_version: int = PLANS_FORMAT
    dataset_name: str
    plans_name: str = DEFAULT_PLANS_NAME
    size: str
    channel_names: tuple[str, ...]
    modalities: tuple[str, ...]
    normalizations: tuple[Normalization, ...]
    spacing: tuple[float, float, float]
    median_shape: tuple[int, int, int]
    window: tuple[int, int, int]
    stride: tuple[int, int, int]
    batch_size: int
    labels: dict[str, int]
    auto_prompts: dict[str, dict[str, Any]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

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
        names = {f.name for f in fields(cls)}
        if missing := sorted(names - set(content)):
            raise ValueError(f"{source}: missing {', '.join(missing)}; run promptseg_plan again")
        if unknown := sorted(set(content) - names):
            raise ValueError(f"{source}: unknown {', '.join(unknown)}; is it a promptseg plan?")
        values = dict(content)
        for name, length, number in _NUMBER_TUPLES:
            values[name] = _numbers(content[name], length, number, f"{source}: {name}")
        for name in ("channel_names", "modalities"):
            values[name] = tuple(str(item) for item in content[name])
        values["labels"] = {str(k): int(v) for k, v in content["labels"].items()}
        try:
            values["normalizations"] = tuple(Normalization(**n) for n in content["normalizations"])
        except TypeError as error:
            raise ValueError(f"{source}: normalizations: {error}") from error
        plans = cls(**values)
        if any(w % s for w, s in zip(plans.window, plans.stride, strict=True)):
            raise ValueError(
                f"{source}: window {plans.window} is no multiple of stride {plans.stride} (zyx)"
            )
        return plans


_NUMBER_TUPLES = (
    ("spacing", 3, float),
    ("median_shape", 3, int),
    ("window", 3, int),
    ("stride", 3, int),
)


def _numbers(value: Any, length: int, number: type, where: str) -> tuple:
    """A tuple of `length` positive numbers of one type, or a ValueError that says where."""
    allowed = (int,) if number is int else (int, float)
    good = (
        isinstance(value, (list, tuple))
        and len(value) == length
        and all(isinstance(v, allowed) and not isinstance(v, bool) and v > 0 for v in value)
    )
    if not good:
        raise ValueError(f"{where}: expected {length} positive {number.__name__}s, found {value!r}")
    return tuple(number(v) for v in value)


def save_plans(path: Path, plans: Plans) -> None:
    """Write plans as JSON, in one step."""
    write_json(path, plans.to_json())


def load_plans(path: Path) -> Plans:
    """Read plans; the errors name the file, the field and the command that makes it."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no plans there; `promptseg_plan -d ID` writes them")
    return Plans.from_json(read_json(path), path)
