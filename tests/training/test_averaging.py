import numpy as np
import pytest
import torch
from torch import nn

from promptseg.training.averaging import decay_after, weight_average


@pytest.mark.parametrize(
    ("count", "decay", "expected"),
    [(0, 0.999, 0.1), (1, 0.999, 2 / 11), (8, 0.999, 0.5), (8, 0.4, 0.4), (10**6, 0.999, 0.999)],
)
def test_the_decay_rises_to_the_one_asked_for(count, decay, expected):
    assert decay_after(count, decay) == pytest.approx(expected, rel=1e-12)


def test_the_average_follows_the_recursion_in_double_precision():
    rng = np.random.default_rng(0)
    network = nn.Linear(3, 2)
    average = weight_average(network, 0.6)
    expected = None
    for n in range(20):
        weight = rng.normal(size=(2, 3))
        with torch.no_grad():
            network.weight.copy_(torch.from_numpy(weight))
        average.update_parameters(network)
        keep = min(0.6, (1 + n) / (10 + n))
        expected = weight if n == 0 else keep * expected + (1 - keep) * weight
    np.testing.assert_allclose(average.module.weight.numpy(), expected, atol=1e-6)


def test_weights_that_do_not_change_are_their_average_bit_by_bit():
    torch.manual_seed(0)
    network = nn.Linear(7, 5)
    average = weight_average(network, 0.999)
    for _ in range(50):
        average.update_parameters(network)
    assert torch.equal(average.module.weight, network.weight)
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_buffers_are_those_of_the_network():
    network = nn.BatchNorm1d(2)
    average = weight_average(network, 0.9)
    for _ in range(3):
        network(torch.tensor([[1.0, 5.0], [3.0, 9.0]]))
        average.update_parameters(network)
    assert torch.equal(average.module.running_mean, network.running_mean)
    assert int(average.module.num_batches_tracked) == 3
