"""Algorithm 1 on torch tensors finds what it finds on arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from promptseg.prompts.automatic import auto_prompt
from promptseg.prompts.strategies.intensity import IntensityPrompter
from tests.prompts.strategies.test_intensity import blobs


@pytest.mark.parametrize("shape", [(9, 20, 31), (1, 40, 17), (3, 2, 70), (20, 33, 66), (1, 1, 1)])
@pytest.mark.parametrize("parameters", [{}, {"sigma": 0}, {"radius": 0}, {"radius": 5, "low": 1}])
def test_a_tensors_mask_is_that_of_the_array(shape, parameters):
    image = blobs(shape, 1)
    prompter = IntensityPrompter(**parameters)

    mask = prompter.candidate_mask(torch.from_numpy(image))

    np.testing.assert_array_equal(mask, prompter.candidate_mask(image))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float16, torch.float64])
def test_a_tensors_proposal_is_that_of_the_array(dtype):
    image = np.floor(blobs((9, 20, 31), 2))
    tensor = torch.from_numpy(image).to(dtype)

    for found in (IntensityPrompter().propose(tensor), auto_prompt(tensor)):
        expected = auto_prompt(image)
        np.testing.assert_array_equal(found.box, expected.box)
        assert (found.score, found.reason) == (pytest.approx(expected.score), expected.reason)


def test_a_constant_tensor_gives_no_box():
    proposal = IntensityPrompter().propose(torch.full((5, 20, 31), 0.1))

    assert (proposal.box, proposal.reason) == (None, "constant_image")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(4, 5), r"three-dimensional \(z, y, x\), found shape \(4, 5\)"),
        (torch.zeros(2, 3, 4, dtype=torch.complex64), "real numbers, found complex64"),
        (torch.full((2, 3, 4), torch.nan), "24 voxels that are NaN or infinite, of 24"),
        (torch.zeros(0, 3, 4), "empty"),
    ],
)
def test_tensors_that_cannot_be_prompted_say_why(tensor, message):
    with pytest.raises(ValueError, match=message):
        auto_prompt(tensor)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_cuda_device_the_box_is_the_same():
    image = blobs((40, 90, 131), 3)

    proposal = auto_prompt(torch.from_numpy(image).cuda())

    np.testing.assert_array_equal(proposal.box, auto_prompt(image).box)
