"""How many threads the steps use."""

from __future__ import annotations

import pytest

from promptseg.prompts.intensity import threads


@pytest.mark.parametrize(("wanted", "most"), [("1", 1), ("64", 64), ("", 64), ("many", 64)])
def test_omp_num_threads_lowers_the_number_of_threads(monkeypatch, wanted, most):
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)

    assert 1 <= threads._cores() <= most
