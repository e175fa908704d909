"""The cost of a network: parameters, floating-point operations and memory, measured as it runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from promptseg.networks.prompt_encoder import Query, batch_queries
from promptseg.networks.promptable import build_network
from promptseg.plans import Plans


@dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """The cost of one encoder's network for some plans.

    Attributes:
        encoder_parameters: number of parameters of the image encoder.
        parameters: number of parameters of the whole network.
        encode_flops: floating-point operations to encode one patch.
        decode_flops: floating-point operations to decode one query, a label with a box.
        prediction_bytes: peak memory of encoding one patch and decoding one query, including
            weights.
    """

    encoder_parameters: int
    parameters: int
    encode_flops: int
    decode_flops: int
    prediction_bytes: int


def network_cost(plans: Plans, encoder: str, device: str | torch.device = "cpu") -> NetworkCost:
    """Build the network of plans and an encoder, and measure it on the plans' patch.

    Raises:
        ValueError: for an unknown encoder, or a size that it does not have.
    """
    network = build_network(plans, encoder).to(device, memory_format=torch.channels_last_3d)
    image = torch.zeros(1, len(plans.channel_names), *plans.patch_size, device=device)
    image += torch.linspace(0, 255, plans.patch_size[2], device=device)
    query = batch_queries([Query(label=0, box=middle_half(plans.patch_size))]).to(device)
    network.eval()
    encode_flops = count_flops(lambda: network.encode(image))
    with torch.no_grad():
        encoding = network.encode(image)
    decode_flops = count_flops(lambda: network.decode(encoding, query))

    @torch.inference_mode()
    def predict() -> None:
        network(image, query)

    prediction_bytes = peak_bytes(predict, [network, image], device)
    return NetworkCost(
        encoder_parameters=count_parameters(network.image_encoder),
        parameters=count_parameters(network),
        encode_flops=encode_flops,
        decode_flops=decode_flops,
        prediction_bytes=prediction_bytes,
    )


def middle_half(patch_size: Sequence[int]) -> np.ndarray:
    """The (2, 3) box around the middle half of a patch, voxels, zyx; of the queries that count."""
    patch_size = np.asarray(patch_size, float)
    return np.stack([patch_size / 4, patch_size * 3 / 4])


def count_parameters(module: nn.Module) -> int:
    """Number of trainable values; buffers do not count."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of the convolutions and matrix products in a call.

    A multiplication and the addition of its product are two operations. Normalization,
    activations, interpolation and other work on single elements do not count.
    """
    # The counter misses some fused attention kernels, so attention runs as matrix products here;
    # with gradients enabled, transformer layers are not fused as a whole.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as count:
        call()
    return count.get_total_flops()


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What a call costs.

    Attributes:
        peak_bytes: see `peak_bytes`.
        flops: see `count_flops`.
        live_bytes: of the tensors that are there at its end.
        written_bytes: of the results of all operations.
        notes: what had been counted whenever the call noted it.
    """

    peak_bytes: int = 0
    live_bytes: int = 0
    flops: int = 0
    written_bytes: int = 0
    notes: tuple[Counted, ...] = ()


def counted(
    call: Callable[[Callable[[], None]], Any], held: Iterable[nn.Module | Tensor]
) -> Counted:
    """Count memory and arithmetic of a call in one go; also of tensors that have no values.

    Args:
        call: the function to measure; is given a function that makes a note.
        held: modules and tensors that exist before the call.
    """
    notes = []
    with _LiveTensors() as live, FlopCounterMode(display=False) as count:

        def counted_so_far() -> Counted:
            return Counted(
                peak_bytes=live.peak,
                live_bytes=live.live,
                flops=count.get_total_flops(),
                written_bytes=live.written,
            )

        live.hold(held)
        call(lambda: notes.append(counted_so_far()))
        return replace(counted_so_far(), notes=tuple(notes))


def peak_bytes(
    call: Callable[[], Any], held: Iterable[nn.Module | Tensor], device: str | torch.device
) -> int:
    """Peak memory of tensors during a call, in bytes, including what exists before it.

    On CUDA it is the caching allocator's figure, which includes the workspaces of kernels and
    whatever else is on the device. Elsewhere it is the sum of the tensors alive after each
    operation, without workspaces inside an operation, Python and the libraries.

    Args:
        call: the function to measure.
        held: modules and tensors that exist before the call; ignored on CUDA, where the
            allocator knows them.
        device: the device that the call runs on.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    with _LiveTensors() as live:
        live.hold(held)
        call()
    return live.peak


class _LiveTensors(TorchDispatchMode):
    """Adds up the storages of all tensors that operations return, until each is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.written = 0
        self._sizes: dict[int, int] = {}  # by the address of the storage object

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result

    def hold(self, items: Iterable[nn.Module | Tensor]) -> None:
        for item in items:
            is_module = isinstance(item, nn.Module)
            for tensor in [*item.parameters(), *item.buffers()] if is_module else [item]:
                self.add(tensor)
        self.written = 0

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        weakref.finalize(storage, self._free, key)
        self.live += storage.nbytes()
        self.written += storage.nbytes()
        self.peak = max(self.peak, self.live)

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key)
