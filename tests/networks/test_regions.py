"""What lies beyond the box that a person drew."""

import numpy as np
import pytest
import torch

from promptseg.networks.names import SURE
from promptseg.networks.prompt_encoder import Query
from promptseg.networks.regions import within_limits

SHAPE = (6, 9, 11)
LIMIT = np.array([[1.0, 2.4, 3.0], [4.0, 7.6, 20.0]])  # beyond the patch along x


def inside():
    mask = np.zeros(SHAPE, bool)
    mask[1:4, 2:8, 3:] = True
    return mask


def test_nothing_is_left_beyond_a_limit_and_the_rest_stays():
    logits = torch.randn(2, *SHAPE)
    found = within_limits(logits.clone(), [Query(limit=LIMIT), Query()])
    assert (found[0].numpy()[inside()] == logits[0].numpy()[inside()]).all()
    assert (found[0].numpy()[~inside()] == -SURE).all()
    assert torch.equal(found[1], logits[1])


@pytest.mark.parametrize(
    ("point", "kind", "lifts"),
    [((0, 5, 5), 1, True), ((0, 5, 5), 0, False), ((2, 5, 5), 1, False), ((2, 8, 5), 1, True)],
)
def test_a_foreground_click_beyond_it_lifts_a_limit(point, kind, lifts):
    logits = torch.randn(1, *SHAPE)
    query = Query(limit=LIMIT, points=[point], point_labels=[kind])
    assert torch.equal(within_limits(logits.clone(), [query]), logits) == lifts


def test_a_limit_that_ends_before_the_patch_leaves_nothing():
    query = Query(limit=np.array([[-9.0, 0, 0], [-2.0, 9, 11]]))
    assert (within_limits(torch.ones(1, *SHAPE), [query]) == -SURE).all()
