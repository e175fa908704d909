"""What each of two processes does in test_distributed.py; apart, as they import this alone."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from promptseg.training import distributed


def in_each_of_two(rank: int, port: int, folder: str) -> None:
    """What two processes see of each other's numbers; each writes it down."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    seen = {}
    with pytest.raises(ValueError, match="cannot share the device 'cuda:1'; give -device cuda"):
        distributed.join("cuda:1")
    assert distributed.join("cpu") == "cpu"
    seen["images"] = list(distributed.own_images(5))
    with pytest.raises(ValueError, match="a batch of 1 images cannot be split over 2 processes"):
        distributed.own_images(1)

    # 1 of 4 queries here, 3 there: a mean over all four, whose gradient is the sum of the shares'
    inputs = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 4.0], [-2.0, 7.0]])
    inputs = inputs[:1] if rank == 0 else inputs[1:]
    used, here, nowhere = nn.Linear(2, 1), nn.Linear(1, 1), nn.Linear(1, 1)
    for parameter in (*used.parameters(), *here.parameters()):
        nn.init.constant_(parameter, 0.5)
    frozen = nn.Linear(1, 1).requires_grad_(False)
    answer = used(inputs).square().mean()
    if rank == 1:  # a part of the network that one process alone has used
        answer = answer + here(torch.ones(1, 1)).sum()
    mean = distributed.mean_of_all(answer, len(inputs))
    seen["mean"] = mean.item()
    mean.backward()
    distributed.sum_gradients(nn.ModuleList([used, here, nowhere, frozen]))
    seen["gradient"] = used.weight.grad[0].tolist()
    seen["gradient here"] = here.weight.grad.item()
    assert nowhere.weight.grad is None and frozen.weight.grad is None

    # sums of several values: the square of their sums, whose slope each process has for its own
    own = torch.tensor([1.0, 2.0] if rank == 0 else [3.0, -5.0], requires_grad=True)
    sums = distributed.sum_of_all(own)
    seen["sums"] = sums.tolist()
    sums.square().sum().backward()
    seen["slope"] = own.grad.tolist()

    seen["agreed"] = distributed.agree(10.0 + rank, rank == 1)
    seen["no stop"] = distributed.agree(0.5, False)
    seen["from first"] = distributed.run_on_rank_zero(lambda: {"rank": rank})
    network = nn.Linear(3, 2)
    nn.init.constant_(network.weight, rank)
    distributed.broadcast_weights(network, 7)
    seen["weights"] = network.weight.unique().tolist()
    with pytest.raises(ValueError, match=r"first one's is of step 0, this one's of step \d"):
        distributed.broadcast_weights(network, rank)
    if rank == 1:
        with pytest.raises(RuntimeError, match="the process of rank 1 lost the others"):
            distributed.run_on_rank_zero(lambda: None)
    torch.save(seen, f"{folder}/{rank}.pt")
