"""Files of the CVPR 2025 BiomedSegFM challenge (.npz): volumes, spacing, labels and prompts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from promptseg.files import replacing
from promptseg.io.npz import npz_keys, read_npz
from promptseg.words import short

NPZ = ".npz"  # one channel, and image and labels in one file or two
SPACING_ORDERS = ("auto", "xyz", "zyx")
LABEL_KEYS = ("segs", "gts")  # predictions, ground truth
_PROMPT_KEYS = ("boxes", "clicks", "text_prompts")
_BOX_FIELDS = (  # inclusive voxels, zyx
    ("z_min", "z_mid_y_min", "z_mid_x_min"),
    ("z_max", "z_mid_y_max", "z_mid_x_max"),
)

_log = logging.getLogger(__name__)


def npz_files(folder: Path | str, only: str = "") -> dict[str, Path]:
    """The .npz files of a folder whose names begin with `only`, by case identifier."""
    paths = sorted(Path(folder).glob(f"*{NPZ}")) if Path(folder).is_dir() else []
    return {
        path.name.removesuffix(NPZ): path
        for path in paths
        if path.name.startswith(only) and not path.name.startswith(".")
    }


def read_npz_volume(
    path: Path | str, keys: Sequence[str], spacing_order: str = "auto"
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """The first of `keys` that a file has, and its spacing.

    Args:
        path: the file.
        keys: `("imgs",)` for the image, `LABEL_KEYS` for labels.
        spacing_order: of `spacing` in the file, see `spacing_zyx`.

    Returns:
        (z, y, x) array of the file's dtype; spacing in mm, zyx, 1 mm where the file has none.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, with what was found and expected; and as for `read_npz`.
    """
    content = read_npz(path, (*keys, "spacing", "spacing_order"))
    key = next((key for key in keys if key in content), None)
    if key is None:
        raise ValueError(
            f"{path}: expected an array {' or '.join(keys)}, found "
            f"{', '.join(npz_keys(path)) or 'no array'}"
        )
    volume = content[key]
    if not isinstance(volume, np.ndarray) or volume.dtype.kind not in "biuf":
        raise ValueError(f"{path}: {key}: expected an array of numbers")
    if volume.ndim != 3 or volume.size == 0:
        raise ValueError(
            f"{path}: {key}: expected three dimensions (z, y, x), none of them empty, found shape "
            f"{volume.shape}"
        )
    spacing = content.get("spacing")
    if spacing is None:
        return volume, (1.0, 1.0, 1.0)
    declared = str(content.get("spacing_order", ""))  # in files that promptseg wrote
    order = declared if declared in SPACING_ORDERS else spacing_order
    return volume, spacing_zyx(spacing, order, str(path))


def spacing_zyx(
    spacing: Any, order: str = "auto", where: str = "spacing"
) -> tuple[float, float, float]:
    """The spacing of a challenge file along z, y, x.

    The challenge does not say in which order its files have it, and both occur: x, y, z, as
    SimpleITK gives it, beside (z, y, x) arrays; and z, y, x, as the evaluation script reads it.

    Args:
        spacing: (3,) mm.
        order: `xyz`, `zyx`, or `auto`: z, y, x where the last two agree and the first differs, as
            pixels of a slice are square; else x, y, z, with a warning if no two neighbours agree.
        where: for errors and the warning.

    Raises:
        ValueError: for an unknown order, or if these are not three positive numbers.
    """
    if order not in SPACING_ORDERS:
        raise ValueError(f"spacing order {order!r}: expected one of {', '.join(SPACING_ORDERS)}")
    values = np.asarray(spacing)
    if (
        values.shape != (3,)
        or values.dtype.kind not in "iuf"
        or not (np.isfinite(values) & (values > 0)).all()
    ):
        raise ValueError(f"{where}: spacing: expected three positive numbers, found {spacing!r}")
    values = tuple(float(v) for v in values)
    if order == "auto":
        first, last = (np.isclose(values[i], values[i + 1], rtol=1e-3) for i in (0, 1))
        order = "zyx" if last and not first else "xyz"
        if not first and not last and not np.isclose(values[0], values[2], rtol=1e-3):
            _log.warning(
                "%s: spacing %s may be x, y, z or z, y, x; read as x, y, z. If that is wrong, "
                "convert the file with promptseg_convert --spacing-order zyx",
                where,
                values,
            )
    return values if order == "zyx" else values[::-1]


def write_npz_labels(
    path: Path | str, labels: np.ndarray, spacing: Sequence[float] | None = None
) -> None:
    """Write a segmentation in the challenge's layout, atomically.

    The array is `segs`, uint8 where the values fit, else uint16; beside it `spacing` (x, y, z)
    and `spacing_order`, which other readers ignore.

    Args:
        path: ends in .npz.
        labels: (z, y, x) whole numbers.
        spacing: mm, zyx; not written if not given.

    Raises:
        ValueError: naming the file, for other values or shapes.
    """
    if labels.ndim != 3 or labels.dtype.kind not in "biu":
        raise ValueError(
            f"{path}: the challenge's files hold (z, y, x) labels, found {labels.dtype} of shape "
            f"{labels.shape}"
        )
    lowest, highest = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if lowest < 0 or highest > np.iinfo(np.uint16).max:
        raise ValueError(f"{path}: labels {lowest} to {highest} do not fit into uint16")
    arrays = {"segs": labels.astype(np.uint8 if highest < 256 else np.uint16)}
    if spacing is not None:
        arrays |= {"spacing": np.array(spacing[::-1], float), "spacing_order": np.array("xyz")}
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def read_npz_prompts(path: Path | str) -> dict[int, dict[str, list]]:
    """`npz_prompts` of a file; for the errors see there and `read_npz`."""
    return npz_prompts(read_npz(path, _PROMPT_KEYS), str(path))


def npz_prompts(content: dict[str, Any], where: str = "npz") -> dict[int, dict[str, list]]:
    """Boxes and clicks of a challenge file, for each label value.

    The file has a list of boxes and one of clicks, with one entry per label in the order of their
    values. The values are the keys of `text_prompts` if there are as many, else 1, 2, ...

    Args:
        content: what `read_npz` gives of `boxes`, `clicks`, `text_prompts`; all may be missing.
        where: for errors.

    Returns:
        label value to `boxes` ((n, 2, 3) half-open, zyx), `points` ((k, 3), zyx) and
        `point_labels` (1 foreground, 0 background), in raw voxels, not checked against the image;
        empty if the file has neither boxes nor clicks.

    Raises:
        ValueError: naming the entry that is malformed, or if the lists differ in length.
    """
    boxes = _entries(content.get("boxes"), f"{where}: boxes")
    clicks = _entries(content.get("clicks"), f"{where}: clicks")
    if boxes and clicks and len(boxes) != len(clicks):
        raise ValueError(
            f"{where}: boxes for {len(boxes)} labels, but clicks for {len(clicks)}; expected one "
            f"entry per label in both"
        )
    count = max(len(boxes), len(clicks))
    values = label_values(content.get("text_prompts"), where)
    values = values if len(values) == count else range(1, count + 1)
    prompts = {value: {"boxes": [], "points": [], "point_labels": []} for value in values}
    for number, (value, box) in enumerate(zip(values, boxes, strict=bool(boxes))):
        prompts[value]["boxes"] = [_half_open(box, f"{where}: boxes[{number}]")]
    for number, (value, entry) in enumerate(zip(values, clicks, strict=bool(clicks))):
        for kind, point_label in (("fg", 1), ("bg", 0)):
            points = _points(entry.get(kind), f"{where}: clicks[{number}]: {kind}")
            prompts[value]["points"] += points
            prompts[value]["point_labels"] += [point_label] * len(points)
    return prompts


def label_values(text_prompts: Any, where: str = "npz") -> list[int]:
    """The label values for which a file has texts, in order; none if it has no texts.

    Raises:
        ValueError: if the texts are not a dict from values to texts.
    """
    if text_prompts is None:
        return []
    keys = set(text_prompts) - {"instance_label"} if isinstance(text_prompts, dict) else {""}
    if not all(str(key).isdecimal() for key in keys):
        raise ValueError(
            f"{where}: text_prompts: expected {{'1': TEXT, ..., 'instance_label': 0 or 1}}, found "
            f"{short(text_prompts)}"
        )
    return sorted(int(key) for key in keys)


def _entries(entries: Any, where: str) -> list[dict]:
    if entries is None:
        return []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{where}: expected a list of dicts, found {short(entries)}")
    return entries


def _half_open(box: dict, where: str) -> list[list[int]]:
    try:
        lower, upper = ([box[name] for name in names] for names in _BOX_FIELDS)
    except KeyError as error:
        raise ValueError(f"{where}: expected a field {error}, found {sorted(box)}") from error
    if not _whole_numbers([*lower, *upper]):
        raise ValueError(f"{where}: expected whole numbers, found {lower} and {upper}")
    return [lower, [last + 1 for last in upper]]


def _points(points: Any, where: str) -> list[list[int]]:
    points = points.tolist() if isinstance(points, np.ndarray) else points or []
    if not isinstance(points, list) or not all(
        isinstance(point, (list, np.ndarray)) and len(point) == 3 and _whole_numbers(list(point))
        for point in points
    ):
        raise ValueError(f"{where}: expected [[z, y, x], ...] in voxels, found {short(points)}")
    return [[int(v) for v in point] for point in points]


def _whole_numbers(values: list) -> bool:
    return all(
        isinstance(v, (int, float, np.number))
        and not isinstance(v, bool)
        and v == np.rint(v)
        and abs(v) < 1e9
        for v in values
    )
