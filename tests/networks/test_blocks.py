"""The strides of feature maps and the convolutional stem."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from promptseg.networks.blocks import ConvStem, feature_strides


@pytest.mark.parametrize(
    ("stride", "expected"),
    [
        ((1, 1, 1), [(1, 1, 1)]),
        ((2, 8, 8), [(1, 1, 1), (2, 2, 2), (2, 4, 4), (2, 8, 8)]),
        ((4, 16, 16), [(1, 1, 1), (2, 2, 2), (4, 4, 4), (4, 8, 8), (4, 16, 16)]),
        ((1, 4, 2), [(1, 1, 1), (1, 2, 2), (1, 4, 2)]),
    ],
)
def test_the_largest_strides_are_halved_first(stride, expected):
    assert feature_strides(stride) == expected


powers = st.sampled_from([1, 2, 4, 8, 16])


@given(powers, powers, powers)
def test_every_step_between_strides_halves_what_is_largest(z, y, x):
    strides = feature_strides((z, y, x))
    assert strides[0] == (1, 1, 1) and strides[-1] == (z, y, x)
    for fine, coarse in zip(strides[:-1], strides[1:], strict=True):
        halved = tuple(c // 2 if c == max(coarse) else c for c in coarse)
        assert fine == halved


@pytest.mark.parametrize("stride", [(3, 8, 8), (0, 2, 2), (2, -4, 4), (6, 6, 6)])
def test_strides_that_are_not_powers_of_two_are_refused(stride):
    with pytest.raises(ValueError, match=r"strides must be powers of two, got .* \(zyx\)"):
        feature_strides(stride)


def test_the_stem_gives_a_map_for_every_stride():
    strides = feature_strides((1, 4, 2))
    maps = ConvStem(2, (3, 5, 7), strides)(torch.rand(2, 2, 3, 8, 10))
    assert [tuple(m.shape) for m in maps] == [(2, 3, 3, 8, 10), (2, 5, 3, 4, 5), (2, 7, 3, 2, 5)]
