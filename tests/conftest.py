"""Fixtures that several test modules share."""

from __future__ import annotations

import locale
import os

import pytest
import torch

from promptseg.experiment_planning import locator_fit
from promptseg.experiment_planning.planner import plan_dataset
from promptseg.folders import Folders
from tests.synthetic import write_raw_dataset


@pytest.fixture(autouse=True, scope="session")
def few_threads():
    """Tests run beside others; more threads than cores only wait for one another."""
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True, scope="session")
def hardly_trained_locators():
    """Every planning of a test trains some; tests of what they find set more steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locator_fit, "STEPS", (2, 2))
        patch.setattr(locator_fit, "FOLDS", 2)
        yield


def _of_the_process() -> tuple[dict[str, str], str]:
    threads = {name: n for name, n in os.environ.items() if name.endswith("_NUM_THREADS")}
    return threads, locale.setlocale(locale.LC_ALL)


_AT_THE_START = _of_the_process()


@pytest.fixture(autouse=True)
def process_kept():
    """What libraries change for the whole process is put back after every test.

    Dask's Nanny sets numbers of threads in the environment, on which sums of floats depend in
    processes started later; GDCM, when it writes, the locale, in which text files are read.
    """
    yield
    if _of_the_process() != _AT_THE_START:
        threads, before = _AT_THE_START
        for name in _of_the_process()[0].keys() - threads.keys():
            del os.environ[name]
        os.environ.update(threads)
        locale.setlocale(locale.LC_ALL, before)


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
