"""Many images through a predictor, one after the other: each is read while the last is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from promptseg.inference.prepared import PreparedImage, read_prepared, warn_of_windows
from promptseg.inference.results import Prediction

if TYPE_CHECKING:
    from promptseg.inference.predictor import Predictor

_END = object()


def predict_each(
    predictor: Predictor, images: Iterable[Any], **prompts: Any
) -> Iterator[Prediction]:
    """See `Predictor.predict_iterator`; it is left cleanly at any image."""
    remaining = iter(images)
    warned = False

    def read_next() -> PreparedImage | object:
        nonlocal warned
        if (item := next(remaining, _END)) is _END:
            return _END
        if _is_array(item):
            return predictor.prepare(*item)
        files = _files(item)
        warned = warned or warn_of_windows(files, predictor.plans.normalizations)
        return read_prepared(predictor, files)[0]

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read_next)
        while (image := coming.result()) is not _END:
            coming = reader.submit(read_next)
            predictor.set_prepared(image)
            yield predictor.predict(**prompts)


def _is_array(item: Any) -> bool:
    """Whether an item is an array and its spacing."""
    return isinstance(item, Sequence) and len(item) == 2 and isinstance(item[0], np.ndarray)


def _files(item: Any) -> list[Path]:
    """The files of an item, one a channel."""
    files = [item] if isinstance(item, (str, Path)) else item
    if (
        not isinstance(files, Sequence)
        or not files
        or not all(isinstance(file, (str, Path)) for file in files)
    ):
        raise ValueError(
            f"expected an image file, a list of one file a channel, or (array, spacing), found "
            f"{type(item).__name__}"
        )
    return [Path(file) for file in files]
