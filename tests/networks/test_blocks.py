"""The strides of feature maps and the convolutional stem."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from promptseg.networks.blocks import (
    AveragePool,
    ConvStem,
    InstanceNorm,
    convolution,
    feature_strides,
    kernel_size,
)


@pytest.mark.parametrize(
    ("stride", "finest", "spacing", "expected"),
    [
        ((1, 1, 1), (1, 1, 1), (1, 1, 1), [(1, 1, 1)]),
        ((2, 8, 8), (1, 1, 1), (1, 1, 1), [(1, 1, 1), (2, 2, 2), (2, 4, 4), (2, 8, 8)]),
        ((1, 4, 2), (1, 1, 1), (1, 1, 1), [(1, 1, 1), (1, 2, 2), (1, 4, 2)]),
        # 10 mm slices wait until the pixels of 1.5 mm have become more than 5 mm long
        (
            (2, 16, 16),
            (1, 1, 1),
            (10, 1.5, 1.5),
            [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8), (2, 16, 16)],
        ),
        ((4, 8, 8), (2, 2, 2), (1, 1, 1), [(2, 2, 2), (4, 4, 4), (4, 8, 8)]),
        ((1, 8, 8), (1, 2, 2), (8, 1, 1), [(1, 2, 2), (1, 4, 4), (1, 8, 8)]),
    ],
)
def test_the_physically_finest_axes_are_doubled_first(stride, finest, spacing, expected):
    assert feature_strides(stride, finest, spacing) == expected


powers = st.sampled_from([1, 2, 4, 8, 16])
lengths = st.floats(0.3, 12)


@given(st.tuples(powers, powers, powers), st.tuples(lengths, lengths, lengths))
def test_strides_only_double_and_end_where_they_should(stride, spacing):
    strides = feature_strides(stride, spacing=spacing)
    assert strides[0] == (1, 1, 1) and strides[-1] == stride
    for fine, coarse in zip(strides[:-1], strides[1:], strict=True):
        steps = [c / f for f, c in zip(fine, coarse, strict=True)]
        assert set(steps) <= {1, 2} and 2 in steps


def test_a_finest_map_that_is_coarser_than_the_tokens_is_refused():
    with pytest.raises(ValueError, match=r"finest map's stride \(2, 4, 4\) is larger"):
        feature_strides((2, 2, 4), (2, 4, 4))


def test_thick_slices_are_not_convolved_across_until_pixels_are_about_as_large():
    assert kernel_size((1, 1, 1), (10, 1.5, 1.5)) == (1, 3, 3)
    assert kernel_size((1, 4, 4), (10, 1.5, 1.5)) == (3, 3, 3)
    assert kernel_size((1, 1, 1), (1.0, 0.8, 0.8)) == (3, 3, 3)


@pytest.mark.parametrize("stride", [(3, 8, 8), (0, 2, 2), (2, -4, 4), (6, 6, 6)])
def test_strides_that_are_not_powers_of_two_are_refused(stride):
    with pytest.raises(ValueError, match=r"strides must be powers of two, got .* \(zyx\)"):
        feature_strides(stride)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_gradients_in_bfloat16_are_near_those_in_float32_on_maps_of_few_slices(depth):
    torch.manual_seed(0)
    layer = convolution(16, 16, (1, 1, 1), (3, 3, 3)).to(memory_format=torch.channels_last_3d)
    images, slope = torch.randn(1, 16, depth, 4, 6), torch.randn(1, 16, depth, 4, 6)
    layer(images).backward(slope)
    exact = layer.weight.grad.clone()
    for _ in range(20):
        layer.weight.grad = None
        left = [torch.full((count,), float("nan")) for count in (100, 1000, 20000, 50000)]
        del left  # memory that is used again shows whether it was read
        with torch.autocast("cpu", torch.bfloat16):
            answer = layer(images)
        answer.backward(slope.to(answer.dtype))
        torch.testing.assert_close(layer.weight.grad, exact, rtol=0, atol=0.02 * exact.abs().max())


@pytest.mark.parametrize("count", [1, 3])
def test_instance_normalization_is_torchs_and_keeps_channels_last(count):
    torch.manual_seed(0)
    ours, theirs = InstanceNorm(5), nn.InstanceNorm3d(5, affine=True)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(count, 5, 3, 4, 6).to(memory_format=torch.channels_last_3d)
    images = (images * 3 + 2).requires_grad_()
    answer, expected = ours(images), theirs(images)
    torch.testing.assert_close(answer, expected)
    assert answer.is_contiguous(memory_format=torch.channels_last_3d)
    slope = torch.randn(answer.shape)
    (gradient,), (other,) = (torch.autograd.grad(a, images, slope) for a in (answer, expected))
    torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize("size", [(1, 2, 2), (2, 2, 2), (2, 1, 1), (1, 1, 1), (1, 4, 2)])
@pytest.mark.parametrize("layout", [torch.channels_last_3d, torch.contiguous_format])
def test_average_pooling_is_torchs_and_keeps_channels_last(size, layout):
    torch.manual_seed(0)
    images = torch.randn(2, 5, 4, 8, 6).contiguous(memory_format=layout).requires_grad_()
    answer, expected = AveragePool(size)(images), torch.nn.functional.avg_pool3d(images, size)
    torch.testing.assert_close(answer, expected)
    if layout == torch.channels_last_3d:
        assert answer.is_contiguous(memory_format=layout)
    slope = torch.randn(answer.shape)
    (gradient,), (other,) = (torch.autograd.grad(a, images, slope) for a in (answer, expected))
    torch.testing.assert_close(gradient, other)


def test_the_stem_gives_a_map_for_every_stride():
    strides = feature_strides((1, 4, 2))
    maps = ConvStem(2, (3, 5, 7), strides)(torch.rand(2, 2, 3, 8, 10))
    assert [tuple(m.shape) for m in maps] == [(2, 3, 3, 8, 10), (2, 5, 3, 4, 5), (2, 7, 3, 2, 5)]
