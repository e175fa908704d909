"""The order of batches: by steps or by the clock."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from promptseg.training.batches import batches
from tests.training.test_patches import steps_of


def images(made) -> list[torch.Tensor]:
    return [batch.image for batch in made]


@pytest.mark.parametrize("first", [0, 3])
def test_a_run_of_steps_ends_with_plain_samples_wherever_it_is_continued(planned_case, first):
    steps = steps_of(planned_case, epochs=2, iterations_per_epoch=5)
    made = images(
        batches(steps, first, 0, lambda: pytest.fail("there is no time to ask for"), on_cpu=True)
    )
    expected = [steps[step, step / 10].image for step in range(first, 10)]
    assert len(made) == 10 - first
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
    assert torch.equal(made[-1], steps[9, 1.0].image)
    assert not torch.equal(made[-3], steps[7, 1.0].image)


def test_a_run_by_the_clock_asks_it_before_every_step(planned_case):
    steps = steps_of(planned_case, time_budget=100.0)
    clock = iter([0.0, 0.5, 0.79, 0.81, 0.99])
    made = images(islice(batches(steps, 2, 0, lambda: next(clock), on_cpu=True), 5))
    expected = [steps[2 + i, float(i > 2)].image for i in range(5)]
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
