"""The ladder of resolutions and the convolutional stem."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from promptseg.networks.blocks import ConvStem, stride_ladder


@pytest.mark.parametrize(
    ("stride", "expected"),
    [
        ((1, 1, 1), [(1, 1, 1)]),
        ((2, 8, 8), [(1, 1, 1), (2, 2, 2), (2, 4, 4), (2, 8, 8)]),
        ((4, 16, 16), [(1, 1, 1), (2, 2, 2), (4, 4, 4), (4, 8, 8), (4, 16, 16)]),
        ((1, 4, 2), [(1, 1, 1), (1, 2, 2), (1, 4, 2)]),
    ],
)
def test_the_ladder_halves_the_largest_strides_first(stride, expected):
    assert stride_ladder(stride) == expected


powers = st.sampled_from([1, 2, 4, 8, 16])


@given(powers, powers, powers)
def test_every_step_of_a_ladder_halves_what_is_largest(z, y, x):
    ladder = stride_ladder((z, y, x))
    assert ladder[0] == (1, 1, 1) and ladder[-1] == (z, y, x)
    for fine, coarse in zip(ladder[:-1], ladder[1:], strict=True):
        halved = tuple(c // 2 if c == max(coarse) else c for c in coarse)
        assert fine == halved


@pytest.mark.parametrize("stride", [(3, 8, 8), (0, 2, 2), (2, -4, 4), (6, 6, 6)])
def test_strides_that_are_no_powers_of_two_are_refused(stride):
    with pytest.raises(ValueError, match=r"strides must be powers of two, got .* \(zyx\)"):
        stride_ladder(stride)


def test_the_stem_gives_a_map_for_every_step_of_the_ladder():
    ladder = stride_ladder((1, 4, 2))
    maps = ConvStem(2, (3, 5, 7), ladder)(torch.rand(2, 2, 3, 8, 10))
    assert [tuple(m.shape) for m in maps] == [(2, 3, 3, 8, 10), (2, 5, 3, 4, 5), (2, 7, 3, 2, 5)]
