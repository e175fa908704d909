"""Many images through a predictor, one after the other: each is read while the last is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from promptseg.image_io import read_image
from promptseg.inference.prepared import PreparedImage
from promptseg.inference.results import Prediction

if TYPE_CHECKING:
    from promptseg.inference.predictor import Predictor

_END = object()


def predict_each(
    predictor: Predictor, images: Iterable[Any], **prompts: Any
) -> Iterator[Prediction]:
    """See `Predictor.predict_iterator`; it is left cleanly at any image."""
    remaining = iter(images)

    def read_next() -> Any:
        item = next(remaining, _END)
        return _END if item is _END else _prepared(predictor, item)

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read_next)
        while (image := coming.result()) is not _END:
            coming = reader.submit(read_next)
            predictor.set_prepared(image)
            yield predictor.predict(**prompts)


def _prepared(predictor: Predictor, item: Any) -> PreparedImage:
    """An image file, a file a channel, or an array and its spacing, ready to be asked about."""
    if isinstance(item, Sequence) and len(item) == 2 and isinstance(item[0], np.ndarray):
        return predictor.prepare(*item)
    files = [item] if isinstance(item, (str, Path)) else item
    if not isinstance(files, Sequence) or not all(isinstance(f, (str, Path)) for f in files):
        raise ValueError(
            f"expected an image file, a list of one file a channel, or (array, spacing), found "
            f"{type(item).__name__}"
        )
    image, geometry = read_image([Path(file) for file in files])
    return predictor.prepare(image, geometry.spacing)
