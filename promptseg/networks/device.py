"""Where the network runs."""

from __future__ import annotations

import torch


def choose_device(device: str | None = None) -> str:
    """The device to run on: the requested one, else CUDA, else MPS, else the CPU.

    Args:
        device: `cpu`, `cuda`, `cuda:1`, `mps`, or None.

    Raises:
        ValueError: for an unknown device, or one that this machine does not have.
    """
    if device is None:
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}; expected cpu, cuda, cuda:1 or mps") from error
    count = torch.cuda.device_count() if wanted.type == "cuda" else 1
    available = wanted.type != "mps" or torch.backends.mps.is_available()
    if (wanted.index or 0) >= count or not available:
        raise ValueError(
            f"this machine has no device {device!r} that torch {torch.__version__} can use; "
            f"leave -device out, or give -device cpu"
        )
    return device
