"""The preprocessed folder: for each case an image, a segmentation and their properties.

CASE.b2nd      (c, z, y, x) uint8 image in [0, 255], compressed by Blosc2
CASE_seg.b2nd  (z, y, x) labels, -1 where nobody knows them
CASE.json      written last: a case without it is unfinished and is not listed
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import blosc2
import msgpack
import numpy as np

from promptseg.boxes import enclosing_box
from promptseg.files import WRITING, move_into_place, read_json, replacing
from promptseg.labels import Values, members

# Patches are read by decompressing the blocks they meet: blocks of 64 KiB (uint8) fit the
# processor's cache and few voxels of them lie outside a patch.
_CHUNK = (64, 128, 128)
_BLOCK = (16, 64, 64)
_COMPRESSION = {  # read in 40 % of the time of ZSTD, from files 18 % larger
    "codec": blosc2.Codec.LZ4,
    "clevel": 5,
    "filters": [blosc2.Filter.NOFILTER],
    "nthreads": 1,  # workers run side by side
}
_MADE_BY = "`promptseg_plan` makes it"


class PreprocessedDataset:
    """Reads the preprocessed cases of one configuration.

    Attributes:
        folder: the folder of the cases.
        case_ids: identifiers of the finished cases, sorted.

    Raises:
        FileNotFoundError: if the folder does not exist.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder}: no such folder; {_MADE_BY}")
        names = (path.name for path in self.folder.glob("*.json"))
        self.case_ids = sorted(n.removesuffix(".json") for n in names if not n.startswith("."))

    def image(self, case_id: str) -> blosc2.NDArray:
        """The (c, z, y, x) uint8 image; nothing is read before it is sliced."""
        return _open(case_files(self.folder, case_id)[0], dimensions=4)

    def segmentation(self, case_id: str) -> blosc2.NDArray:
        """The (z, y, x) labels; nothing is read before they are sliced."""
        return _open(case_files(self.folder, case_id)[1], dimensions=3)

    def properties(self, case_id: str) -> dict[str, Any]:
        """What `preprocess_case` recorded of a case, read-only; `labels` has integer keys.

        `annotated` has (k, 3) voxels, zyx, whose label is known, and is None where all are.
        """
        path = case_files(self.folder, case_id)[2]
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; {_MADE_BY}")
        return _read_properties(path, path.stat().st_mtime_ns)

    def labels(
        self, case_id: str, labels: Mapping[str, Values]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Of each label that a case has the (2, 3) `box`, and (k, 3) of its voxels as `locations`.

        Args:
            case_id: case identifier.
            labels: what each name stands for.
        """
        present, found = self.properties(case_id)["labels"], {}
        for name, values in labels.items():
            parts = [present[value] for value in members(values) if value in present]
            if parts:
                found[name] = {
                    "box": enclosing_box([part["box"] for part in parts]),
                    "locations": np.concatenate([part["locations"] for part in parts]),
                }
        return found


def case_files(folder: Path, case_id: str) -> tuple[Path, Path, Path]:
    """The files of a case: image, segmentation, properties.

    Raises:
        ValueError: if the identifier is a path, which could lead out of the folder.
    """
    if case_id in ("", "..") or Path(case_id).name != case_id:
        raise ValueError(f"{case_id!r} cannot be a case identifier: expected the name of a file")
    return (
        folder / f"{case_id}.b2nd",
        folder / f"{case_id}_seg.b2nd",
        folder / f"{case_id}.json",
    )


def write_case(
    folder: Path,
    case_id: str,
    image: np.ndarray,
    segmentation: np.ndarray | None,
    properties: dict[str, Any],
) -> None:
    """Write a case so that it is listed only once all of its files are complete.

    Args:
        folder: the preprocessed dataset; created if missing.
        case_id: case identifier, which names the files.
        image: (c, z, y, x) uint8.
        segmentation: (z, y, x) integers, or None for a case without labels.
        properties: plain JSON values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_case(folder, case_id)
    with tempfile.TemporaryDirectory(prefix=WRITING, dir=folder) as scratch:
        write_files(Path(scratch), case_id, image, segmentation, properties)
        move_case(Path(scratch), folder, case_id)


def write_files(
    folder: Path,
    case_id: str,
    image: np.ndarray,
    segmentation: np.ndarray | None,
    properties: dict[str, Any],
) -> None:
    """Write a case to a folder that nobody lists, from which `move_case` takes it."""
    image_file, segmentation_file, properties_file = case_files(folder, case_id)
    _write_array(image_file, image)
    if segmentation is not None:
        _write_array(segmentation_file, segmentation)
    _write_properties(properties_file, properties)


def move_case(scratch: Path, folder: Path, case_id: str) -> None:
    """Move the case that `write_files` wrote to another folder of the same disk, its mark last."""
    remove_case(folder, case_id)
    files = (path for path in case_files(scratch, case_id) if path.is_file())
    move_into_place(list(files), folder)


def replace_properties(folder: Path, case_id: str, properties: dict[str, Any]) -> None:
    """Replace the properties of a finished case and leave its arrays."""
    with replacing(case_files(folder, case_id)[2]) as temporary:
        _write_properties(temporary, properties)


def remove_case(folder: Path, case_id: str) -> None:
    """Remove a case's files, if there are any, the mark of completeness first."""
    for path in reversed(case_files(folder, case_id)):
        path.unlink(missing_ok=True)


def _write_array(path: Path, array: np.ndarray) -> None:
    chunk, block = _partition(array.shape)
    blosc2.asarray(
        np.ascontiguousarray(array),
        urlpath=str(path),
        mode="w",
        chunks=chunk,
        blocks=block,
        cparams=_COMPRESSION,
    )


def _write_properties(path: Path, properties: dict[str, Any]) -> None:
    # on one line: thousands of voxel locations
    path.write_text(json.dumps(properties, allow_nan=False) + "\n", encoding="utf-8")


def _partition(shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunk and block shape: channels apart, never larger than the array."""
    chunk = tuple(min(n, most) for n, most in zip(shape[-3:], _CHUNK, strict=True))
    block = tuple(min(n, most) for n, most in zip(chunk, _BLOCK, strict=True))
    channels = (1,) * (len(shape) - 3)
    return channels + chunk, channels + block


@lru_cache(maxsize=128)  # of some 12 kB a label; 40 labels take 20 ms to parse
def _read_properties(path: Path, _modified_ns: int) -> dict[str, Any]:
    properties = read_json(path)
    labels = {int(value): of for value, of in properties["labels"].items()}
    for of in labels.values():
        if "locations" in of:
            of["locations"] = np.array(of["locations"], np.int32).reshape(-1, 3)
    annotated = properties.get("annotated")
    if annotated is not None:
        annotated = np.array(annotated, np.int32).reshape(-1, 3)
    return {**properties, "labels": labels, "annotated": annotated}


def _open(path: Path, dimensions: int) -> blosc2.NDArray:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {_MADE_BY}")
    _refuse_all_but_plain_arrays(path)
    try:
        array = blosc2.open(
            str(path),
            mode="r",
            mmap_mode=None if os.name == "nt" else "r",  # Blosc2's mapping fails on Windows
            dparams={"nthreads": 1},
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and {_MADE_BY} again") from error
    if not isinstance(array, blosc2.NDArray) or array.ndim != dimensions:
        raise ValueError(f"{path}: expected an array of {dimensions} dimensions, found {array!r}")
    return array


def _refuse_all_but_plain_arrays(path: Path) -> None:
    """Raise unless the file's header says it is an array of numbers and nothing else.

    Blosc2 also stores expressions and functions; recent versions refuse to open such a file unless
    told to, older ones (the last for Python 3.10, 4.3.3) rebuild them from source text in the
    file. Such files have a metalayer other than `b2nd`.

    Source:
        Blosc2's "Contiguous Frame Format": a msgpack header, its length in bytes 11 to 14.
    """
    with open(path, "rb") as file:
        header = file.read(15)
        header += file.read(max(0, min(int.from_bytes(header[11:15], "big"), 1 << 20) - 15))
    try:
        layers = set(msgpack.unpackb(header, raw=True)[-1][1])
    except (ValueError, TypeError, LookupError, msgpack.UnpackException) as error:
        raise ValueError(
            f"{path} is damaged or not a Blosc2 file; delete it, and {_MADE_BY} again"
        ) from error
    if layers != {b"b2nd"}:
        raise ValueError(
            f"{path}: expected a plain array, found the metalayers {sorted(layers)}; it may hold "
            f"code and is not opened; delete it, and {_MADE_BY} again"
        )
