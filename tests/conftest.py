"""Fixtures that several test modules share."""

from __future__ import annotations

import os

# As the commands do it, and before torch is imported: waiting threads that spin slow every test
# tenfold on a machine that others use as well.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

from promptseg.experiment_planning.planner import plan_dataset
from promptseg.folders import Folders
from tests.synthetic import write_raw_dataset


@pytest.fixture(autouse=True, scope="session")
def few_threads():
    """Tests run beside others; more threads than cores only wait for one another."""
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def planned(tmp_path_factory) -> Folders:
    """Roots with one small synthetic dataset, number 7, planned and preprocessed.

    Six cases of CT with two labels, 16x24x20 voxels of 2x1x1 mm.
    """
    root = tmp_path_factory.mktemp("planned")
    folders = Folders(
        raw=root / "raw", preprocessed=root / "preprocessed", results=root / "results"
    )
    write_raw_dataset(
        folders.raw, 7, "Boxes", cases=6, shape=(16, 24, 20), spacing=(2.0, 1.0, 1.0), labels=2
    )
    plan_dataset(7, folders, processes=0)
    return folders
