import numpy as np
import pytest

from promptseg.prompts.strategies.atlas import AtlasPrompter
from promptseg.prompts.strategies.fitted import Sample, View


def sample(extent, box):
    view = View(
        image=np.zeros(extent, np.uint8), spacing=(2.0, 1.0, 0.5), step=(1, 1, 1), shape=extent
    )
    box_mm = np.array(box, float) * view.spacing
    whole = np.array([(0, 0, 0), extent])
    return Sample(view=view, view_box=whole, mask=view.image, box_mm=box_mm, described={})


SHAPES = [(20, 40, 60), (30, 44, 90), (24, 60, 48), (40, 52, 80)]


@pytest.mark.parametrize(
    ("place", "rule"),
    [
        ("relative", lambda n: (0.25 * n, 0.75 * n)),
        ("from the near side", lambda n: (3 + 0 * n, 11 + 0 * n)),
        ("from the far side", lambda n: (n - 12, n - 4)),
        ("a fixed margin on both sides", lambda n: (5 + 0 * n, n - 6)),
    ],
)
def test_the_rule_that_places_the_box_is_found_and_carries_over(place, rule):
    samples = [sample(shape, rule(np.array(shape))) for shape in SHAPES]
    prompter = AtlasPrompter(**AtlasPrompter.fit(samples))
    new = (28, 80, 100)
    view = sample(new, rule(np.array(new))).view
    np.testing.assert_allclose(prompter.propose(view).box, rule(np.array(new)))


def test_one_case_far_off_does_not_move_the_box():
    samples = [sample((20, 40, 60), [[4, 10, 20], [12, 22, 40]]) for _ in range(8)]
    samples.append(sample((20, 40, 60), [[0, 0, 0], [2, 2, 2]]))
    prompter = AtlasPrompter(**AtlasPrompter.fit(samples))
    np.testing.assert_array_equal(
        prompter.propose(samples[0].view).box, [[4, 10, 20], [12, 22, 40]]
    )


def test_the_box_ends_at_a_volume_that_is_too_small():
    samples = [sample((20, 40, 60), [[4, 10, 20], [12, 22, 40]]) for _ in range(3)]
    prompter = AtlasPrompter(
        share=np.zeros((2, 3)), offset_mm=AtlasPrompter.fit(samples)["offset_mm"]
    )
    view = sample((6, 12, 60), [[0, 0, 0], [1, 1, 1]]).view
    box = prompter.propose(view).box
    assert box is None or (box[1] <= (6, 12, 60)).all()
