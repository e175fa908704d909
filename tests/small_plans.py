"""Plans of a small patch, built directly, for tests that need no dataset."""

from __future__ import annotations

from typing import Any

from promptseg.plans import Normalization, Plans

IDENTITY = Normalization(kind="window", lower=0.0, upper=255.0)  # [0, 255] stays as it is


def small_plans(**changes: Any) -> Plans:
    """Plans with a patch of 8x12x16 voxels, three labels and unchanged intensities."""
    values = {
        "dataset_name": "Dataset001_Small",
        "size": "tiny",
        "channel_names": ("CT",),
        "modalities": ("CT",),
        "normalizations": (IDENTITY,),
        "spacing": (2.5, 1.0, 0.75),
        "median_shape": (8, 12, 16),
        "patch_size": (8, 12, 16),
        "stride": (2, 4, 4),
        "batch_size": 2,
        "labels": {"liver": 1, "spleen": 2, "lesion": 5},
    }
    return Plans(**{**values, **changes})
