"""Small training samples with known answers for the fitted strategies."""

from __future__ import annotations

import numpy as np

from promptseg.experiment_planning.auto_prompt_cases import (
    FitCase,
    Reduction,
    fitted_strategies,
    reduce_case,
)
from promptseg.plans import Normalization
from promptseg.prompts.strategies import AUTO_PROMPTERS

SPACING = (3.0, 1.0, 1.5)
AS_IT_IS = Normalization(kind="window", lower=0, upper=255)


def block_case(
    number: int,
    *,
    bright: float = 200.0,
    shape: tuple[int, int, int] = (20, 36, 28),
    scatter: int = 3,
    unfitted: tuple[str, ...] = (),
    value: int = 1,
) -> FitCase:
    """A block of 8x12x10 voxels on a noisy background, near (6, 14, 9), named `block`."""
    rng = np.random.default_rng(number)
    corner = np.array([6, 14, 9]) + rng.integers(-scatter, scatter + 1, 3)
    image = rng.normal(60, 12, shape).clip(0, 255)
    segmentation = np.zeros(shape, np.uint8)
    block = tuple(slice(a, a + n) for a, n in zip(corner, (8, 12, 10), strict=True))
    segmentation[block] = value
    image[block] = rng.normal(bright, 12, (8, 12, 10)).clip(0, 255)
    reduction = Reduction(
        labels={"block": 1},
        normalization=AS_IT_IS,
        fitted=tuple(AUTO_PROMPTERS.get(name) for name in fitted_strategies()),
        unfitted=tuple(AUTO_PROMPTERS.get(name) for name in unfitted),
    )
    return reduce_case(f"case_{number:02d}", image, segmentation, SPACING, reduction)


def block_cases(count: int, first: int = 0, **options) -> list[FitCase]:
    return [block_case(number, **options) for number in range(first, first + count)]
