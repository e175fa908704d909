import pytest
import torch

from promptseg.networks.device import choose_device


def test_a_gpu_is_taken_when_there_is_one(monkeypatch):
    for cuda, mps, expected in (
        (True, False, "cuda"),
        (True, True, "cuda"),
        (False, True, "mps"),
        (False, False, "cpu"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert choose_device() == expected
        assert choose_device("cpu") == "cpu"


def test_devices_that_are_not_there_are_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("cuda:0") == "cuda:0"
    with pytest.raises(ValueError, match="no device 'cuda:1'.*-device cpu"):
        choose_device("cuda:1")
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        choose_device("gpu")
