"""Atomic writing: a path holds the old file or the new one, never half of either; JSON."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WRITING = ".writing_"  # prefix of folders that hold unfinished files


def is_file_name(text: str) -> bool:
    """Whether files can be named after `text` on any system and stay in their folder."""
    return text != "" and not text.startswith(".") and not set(text) & set("/\\:\0")


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a path beside `path` to write to; move it into place when the block succeeds.

    The temporary file keeps its name, since SimpleITK chooses a format by the ending, in a folder
    that starts with a dot, so that no listing takes it for a case. If the block raises, the
    temporary file is removed and `path` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=WRITING, dir=path.parent))
    try:
        yield folder / path.name
        move_into_place([folder / path.name], path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_into_place(paths: Sequence[Path], folder: Path) -> None:
    """Move files to a folder of the same disk, in their order, once all of them are on the disk.

    Waiting for the disk once, and not once per file, is much of the time that small files take.
    """
    if len(paths) == 1:
        _sync(paths[0])
    else:
        with ThreadPoolExecutor(len(paths)) as pool:
            list(pool.map(_sync, paths))
    for path in paths:
        os.replace(path, folder / path.name)


def _sync(path: Path) -> None:
    with open(path, "r+b") as written:  # Windows syncs only what may be written
        os.fsync(written.fileno())


@contextmanager
def replacing_folder(path: Path | str, overwrite: bool = False) -> Iterator[Path]:
    """Yield a new folder beside `path` to fill; move it into place when the block succeeds.

    If the block raises, the new folder is removed and `path` is untouched. The folder that it
    replaces is removed last.

    Raises:
        FileExistsError: at once, if `path` exists and `overwrite` is not set.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} already exists; remove it, or give --overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=WRITING, dir=path.parent))
    new, old = beside / "new", beside / "old"
    new.mkdir()
    try:
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        if old.exists() and not path.exists():  # the second move failed
            old.rename(path)
        shutil.rmtree(beside, ignore_errors=True)


def write_json(path: Path | str, content: Any) -> None:
    """Write `content` as readable JSON, atomically; NaN becomes null.

    Objects are indented; whatever fits on a line (a box, a shape) stays on one.

    Raises:
        ValueError: naming the file if the content has no JSON form (infinity, an odd type).
    """
    try:
        text = _indented(_without_nan(content))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: content cannot be written as JSON: {error}") from error
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: naming file, line and column if it is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        # Some editors on Windows put a byte order mark first; utf-8-sig accepts both.
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def through_json(content: Any) -> Any:
    """Content as it would be read back from a JSON file: tuples as lists, keys as text."""
    return json.loads(json.dumps(content))


def _indented(content: Any, indent: int = 0, width: int = 100) -> str:
    """JSON of plain types: one line where it fits and holds no object, else one line per item."""
    line = json.dumps(content, allow_nan=False)
    if not isinstance(content, (dict, list)) or not content:
        return line
    if "{" not in line and len(line) + indent <= width:
        return line
    inner = " " * (indent + 2)
    if isinstance(content, dict):
        items = [f"{json.dumps(k)}: {_indented(v, indent + 2)}" for k, v in content.items()]
        opening, closing = "{", "}"
    else:
        items = [_indented(value, indent + 2) for value in content]
        opening, closing = "[", "]"
    body = ",\n".join(inner + item for item in items)
    return f"{opening}\n{body}\n{' ' * indent}{closing}"


def _without_nan(content: Any) -> Any:
    """The same content in plain JSON types: numpy scalars and arrays unpacked, NaN as None."""
    if isinstance(content, dict):
        return {str(key): _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    if hasattr(content, "tolist"):  # numpy arrays and scalars
        return _without_nan(content.tolist())
    if isinstance(content, float) and content != content:
        return None
    return content
