"""Image values beside those at prompts, by hand."""

import numpy as np
import pytest
import torch

from promptseg.networks.contrast import (
    CONTRASTS,
    DEVIATIONS,
    KINDS,
    contrasts,
    standardized,
    values_at_prompts,
)
from promptseg.networks.grid import Grid
from promptseg.networks.prompt_encoder import Query, batch_queries

SHAPE, STRIDE = (2, 4, 3), (1, 2, 2)  # elements, and voxels of one
GRID = Grid(shape=SHAPE, stride=STRIDE, spacing=(3.0, 1.0, 1.5))


@pytest.fixture
def values():
    """Two channels, of which each element holds its number, and ten times that."""
    numbers = torch.arange(24.0).view(1, 1, *SHAPE)
    return torch.cat([numbers, 10 * numbers], dim=1)


def test_the_values_at_clicks_and_in_the_inner_half_of_a_box(values):
    points = [[0, 0, 0], [1, 7, 5], [1, 2, 0]]  # elements 0, 23 and 15
    box = np.array([[0, 0, 0], [2, 8, 6]])  # inner half: y 2 to 6, x 1.5 to 4.5, z 0.5 to 1.5
    queries = [Query(points=points, point_labels=[1, 1, 0], box=box), Query(label=0)]
    means, given = values_at_prompts(values, batch_queries(queries), GRID)
    assert given.tolist() == [[True, True, True], [False, False, False]]
    # weights of x: 0.25, 1, 0.25; rows y 1 and 2 of both slices: symmetric about 11.5
    expected = torch.tensor([[11.5, 115.0], [15.0, 150.0], [11.5, 115.0]])
    torch.testing.assert_close(means[0], expected)
    assert not means[1].any()


def test_values_are_alike_by_the_bump_of_their_difference(values):
    query = batch_queries([Query(points=[[0, 0, 2]], point_labels=[0])])
    means, given = values_at_prompts(values / 10, query, GRID)
    found = contrasts(values / 10, means, given)
    assert found.shape == (1, CONTRASTS, *SHAPE) and CONTRASTS == KINDS * len(DEVIATIONS)
    apart = (np.arange(24) / 10 - 0.1) ** 2 * (1 + 100) / 2  # mean over the two channels
    for number, width in enumerate(DEVIATIONS):
        first, background, box = found[0, number * KINDS : (number + 1) * KINDS]
        expected = np.exp(-0.5 * apart / width**2).reshape(SHAPE)
        np.testing.assert_allclose(background.numpy(), expected, atol=1e-5)
        assert not first.any() and not box.any()  # there are none


def test_queries_about_several_images_point_at_their_own(values):
    both = torch.cat([values, values + 100])
    queries = [Query(image=i, points=[[0, 0, 0]], point_labels=[1]) for i in (0, 1)]
    means, _ = values_at_prompts(both, batch_queries(queries), GRID)
    torch.testing.assert_close(means[:, 0], torch.tensor([[0.0, 0.0], [100.0, 100.0]]))


def test_no_points_at_all_give_no_means(values):
    means, given = values_at_prompts(values, batch_queries([Query(label=0)]), GRID)
    assert means.shape == (1, KINDS, 2) and not means.any() and not given.any()


def test_a_constant_image_is_standardized_to_zero():
    maps = torch.stack([torch.full((3, 4, 5), 7.0), torch.randn(3, 4, 5) * 9 + 2])[None]
    found = standardized(maps)
    torch.testing.assert_close(found[0, 0], torch.zeros(3, 4, 5), atol=1e-3, rtol=0)
    assert float(found[0, 1].std(correction=0)) == pytest.approx(1, abs=1e-3)
