"""The precision of training steps: float32, or autocast to bfloat16 or float16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from promptseg.training.distributed import sum_gradients

AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
AMPERE = (8, 0)  # the first compute capability that multiplies bfloat16 in hardware


def choose_precision(requested: str | None, device: str) -> str:
    """The requested precision, else `bf16` on a device that computes in it, else `fp32`."""
    if requested is not None:
        return requested
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= AMPERE else "fp32"
    if kind == "cpu":
        known = getattr(torch.cpu, "get_capabilities", dict)()  # older torch has none
        return "bf16" if known.get("avx512_bf16") or known.get("amx_bf16") else "fp32"
    return "fp32"


class MixedPrecision:
    """Autocast for the forward pass, and for `fp16` a scaled loss whose gradients do not underflow.

    With `fp32` nothing is rounded and nothing is scaled.

    Args:
        precision: `fp32`, `bf16` or `fp16`; weights and optimizer stay in float32 with any.
        device: device of the network.
    """

    def __init__(self, precision: str, device: str) -> None:
        self.precision = precision
        self.device_type = torch.device(device).type
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=precision == "fp16")

    def autocast(self) -> AbstractContextManager:
        """A context in which operations that tolerate it compute in the lower precision."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device_type, AUTOCAST_TYPES[self.precision])

    def optimizer_step(
        self, loss: torch.Tensor, optimizer: torch.optim.Optimizer, network: nn.Module, clip: float
    ) -> None:
        """Make one optimizer step, with the gradients clipped to a norm.

        With `fp16` a step whose gradients are not finite is skipped, and the scale is lowered.

        Raises:
            FloatingPointError: with another precision, if the gradients are not finite; the
                weights are then unchanged.
        """
        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        sum_gradients(network)
        self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(network.parameters(), clip)
        if not self.scaler.is_enabled() and not norm.isfinite():
            raise FloatingPointError(f"the norm of the gradients is {norm.item()}")
        self.scaler.step(optimizer)
        self.scaler.update()
