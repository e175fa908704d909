"""Automatic prompts: an image in, a proposed box out, by one of several registered strategies."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from promptseg.prompts.automatic.base import AUTO_PROMPTERS, AutoPrompter, Proposal
from promptseg.prompts.automatic.on_device import is_tensor
from promptseg.registry import import_modules_of

INTENSITY_RANGE = (0.0, 255.0)  # the paper, section 2.3


def auto_prompt(
    image: np.ndarray,
    strategy: str = "intensity",
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    **parameters: Any,
) -> Proposal:
    """Propose a box for one image, without a model or a dataset.

    Args:
        image: (z, y, x) numbers in [0, 255], of any real type; see
            `promptseg.preprocessing.normalize` for raw intensities. Of a torch tensor on a CUDA
            device, `intensity` smooths, thresholds and closes there.
        strategy: a name in `AUTO_PROMPTERS`; `intensity` is the paper's Algorithm 1.
        spacing: mm, zyx; Algorithm 1 works in voxels and does not look at it.
        parameters: of the strategy, by name.

    Returns:
        The proposal; its boxes are half-open, in voxels of `image`, zyx.

    Raises:
        ValueError: if the strategy or a parameter is unknown or out of range, or the image is not
            three-dimensional, empty, not real, not finite, or leaves [0, 255].

    Source:
        Paper, section 2.3 and Algorithm 1.
    """
    prompter = make_prompter(strategy, parameters)
    if is_tensor(image) and not (image.is_cuda and strategy == "intensity"):
        image = image.detach().cpu().numpy()
    return prompter.propose(check_image(image), check_spacing(spacing))


def make_prompter(strategy: str, parameters: dict[str, Any]) -> AutoPrompter:
    """The registered strategy with these parameters.

    Raises:
        ValueError: if there is no such strategy, or a parameter is unknown, missing or wrong.
    """
    cls = AUTO_PROMPTERS.get(strategy)
    known = inspect.signature(cls).parameters
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ValueError(
            f"automatic prompt {strategy!r} has no parameter {', '.join(map(repr, unknown))}; "
            f"its parameters: {', '.join(known) or 'none'}"
        )
    required = [name for name, p in known.items() if p.default is inspect.Parameter.empty]
    missing = [name for name in required if name not in parameters]
    if missing:
        raise ValueError(
            f"automatic prompt {strategy!r} needs {', '.join(missing)}, which promptseg_plan fits "
            f"on training cases and writes to the plans; 'intensity' needs no fit"
        )
    return cls(**parameters)


def check_image(image: Any) -> Any:
    """The image as an array, or as the tensor it is; a ValueError if it cannot be prompted."""
    if not is_tensor(image):
        image = np.asarray(image)
    real = not image.is_complex() if is_tensor(image) else image.dtype.kind in "buif"
    if not real:
        raise ValueError(f"the image must hold real numbers, found {image.dtype}")
    shape = tuple(image.shape)
    if len(shape) != 3:
        raise ValueError(
            f"the image must be three-dimensional (z, y, x), found shape {shape}; "
            f"prompt one channel at a time, and give a single slice as (1, y, x)"
        )
    if 0 in shape:
        raise ValueError(f"the image is empty: shape {shape}")
    lowest, highest = float(image.min()), float(image.max())
    if not np.isfinite([lowest, highest]).all():
        values = image.cpu().numpy() if is_tensor(image) else image
        raise ValueError(
            f"the image has {np.count_nonzero(~np.isfinite(values))} voxels that are NaN or "
            f"infinite, of {values.size}; replace them first"
        )
    if lowest < INTENSITY_RANGE[0] or highest > INTENSITY_RANGE[1]:
        raise ValueError(
            f"intensities must lie in [0, 255], found {lowest:g} to {highest:g}; "
            f"normalize raw intensities first (promptseg.preprocessing.normalize)"
        )
    return image


def check_spacing(spacing: Any) -> tuple[float, float, float]:
    """Spacing as three floats, or a ValueError."""
    values = np.asarray(spacing, float)
    if values.shape != (3,) or not np.isfinite(values).all() or not (values > 0).all():
        raise ValueError(f"spacing must be three positive numbers of mm, zyx, found {spacing!r}")
    return tuple(float(value) for value in values)


import_modules_of(__name__, __path__)
