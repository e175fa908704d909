"""Automatic prompts: an image in, a proposed box out, by one of several registered strategies."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from promptseg.plans import Normalization
from promptseg.preprocessing.normalize import intensity_range, rescale_part, scale_of
from promptseg.prompts.auto_prompter import LOCATOR, AutoPrompter, Proposal
from promptseg.prompts.intensity.on_device import is_tensor
from promptseg.prompts.strategies import AUTO_PROMPTERS
from promptseg.prompts.strategies.expected_iou import evidence, expected_iou
from promptseg.prompts.strategies.fitted import FittedPrompter, View, view_of

Locate = Callable[[View], Mapping[str, Proposal]]  # boxes of all labels in a view
INTENSITY_RANGE = (0.0, 255.0)  # the paper, section 2.3


def auto_prompt(
    image: np.ndarray,
    strategy: str = "intensity",
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    **parameters: Any,
) -> Proposal:
    """Propose a box for one image, without a model or a dataset.

    Args:
        image: (z, y, x) numbers in [0, 255], of any real type; raw
            intensities are normalized by `promptseg.preprocessing.normalize`. A torch tensor on a
            CUDA device is smoothed, thresholded and closed there by `intensity`.
        strategy: a name in `AUTO_PROMPTERS`; `intensity` is the paper's Algorithm 1.
        spacing: mm, zyx; Algorithm 1 works in voxels and ignores it.
        parameters: the strategy's parameters, by name.

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
    """The image as an array, or the tensor itself; a ValueError if it cannot be prompted."""
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


def propose_boxes(
    image: np.ndarray,
    spacing: tuple[float, float, float],
    *,
    auto_prompts: dict[str, dict[str, Any]],
    normalizations: tuple[Normalization, ...],
    strategy: str | None = None,
    scale: tuple[float, float] | None = None,
    locate: Locate | None = None,
) -> dict[str, Proposal]:
    """Propose boxes for every label in the plans.

    Normalizing, reducing and strategies without fitted parameters run once for all labels. Only
    the latter need the whole normalized volume; the others see a small view, made slab by slab.

    Args:
        image: (c, z, y, x) raw intensities; channel 0 is used.
        spacing: mm, zyx.
        auto_prompts: the plans' entry of the same name: for each label the chosen strategy and
            all candidates with their parameters.
        normalizations: the plans' normalization of each channel.
        strategy: one strategy for all labels; that of the plans when None.
        scale: of channel 0, from `scale_of`; computed when None.
        locate: of a `Locator`, for labels whose strategy it is.

    Returns:
        A proposal for each label; where the plans found no usable strategy, one without a box
        and with the reason `no_usable_strategy`.

    Raises:
        ValueError: if a strategy is unknown, or was not fitted for a label, or needs a locator.
    """
    chosen = {label: strategy or entry["strategy"] for label, entry in auto_prompts.items()}
    prompters = {
        label: _prompter(name, label, auto_prompts[label])
        for label, name in chosen.items()
        if name not in ("none", LOCATOR)
    }
    if scale is None:
        scale = scale_of(image[0], *intensity_range(image[0], normalizations[0]))
    view = view_of(image[0], spacing, normalized=lambda slab: rescale_part(slab, *scale))
    proposals, shared = {}, {}
    located = _located(view, locate) if LOCATOR in chosen.values() else {}
    for label, name in chosen.items():
        if name == LOCATOR:
            proposals[label] = located[label]
        elif label not in prompters:
            proposals[label] = Proposal(box=None, score=0.0, reason="no_usable_strategy")
        elif isinstance(prompters[label], FittedPrompter):
            proposals[label] = prompters[label].propose(view)
        else:
            if name not in shared:
                normalized = rescale_part(image[0], *scale)
                shared[name] = prompters[label].propose(normalized, spacing)
            proposals[label] = shared[name]
        proposals[label] = _with_score(proposals[label], name, auto_prompts[label], view)
    return proposals


def _located(view: View, locate: Locate | None) -> Mapping[str, Proposal]:
    if locate is None:
        raise ValueError(
            f"automatic prompt {LOCATOR!r} needs the networks that promptseg_plan trains and keeps "
            f"beside the plans, which are not here; plan without --no-locator, or choose another"
        )
    return locate(view)


def _with_score(proposal: Proposal, name: str, entry: dict[str, Any], view: View) -> Proposal:
    """The proposal with the box IoU that the plans' model expects of it, if they have one."""
    model = entry.get("candidates", {}).get(name, {}).get("score")
    if proposal.box is None or not model:
        return proposal
    row = evidence(view, proposal.box, np.asarray(model["usual"]))
    return replace(proposal, score=expected_iou(model, row))


def _prompter(name: str, label: str, entry: dict[str, Any]) -> Any:
    """The strategy with its parameters from the plans."""
    cls = AUTO_PROMPTERS.get(name)
    candidates = entry.get("candidates", {})
    if name in candidates:
        return cls(**candidates[name]["parameters"])
    if issubclass(cls, FittedPrompter):
        fitted = ", ".join(sorted(candidates)) or "none"
        raise ValueError(
            f"automatic prompt {name!r} has no fitted parameters for label {label!r} in the plans, "
            f"which have: {fitted}; plan the dataset again, or name one of these, or 'intensity'"
        )
    return cls()
