"""Where the real labelled volumes are, and what happens when they are not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(
    os.environ.get("PROMPTSEG_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")
).absolute()


def require_real_data(relative: str = "raw") -> Path:
    """The path below the real data; a test that needs it fails in CI without it, else skips."""
    path = ROOT / relative
    if not path.exists():
        message = f"real data needed at {path}; set PROMPTSEG_TEST_DATA to the folder that has it"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(message)
        pytest.skip(message)
    return path


def raw_folder() -> Path:
    """The folder of raw datasets in nnU-Net's format."""
    return require_real_data("raw")
