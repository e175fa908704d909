"""The cost of a network: parameters, floating-point operations and memory, measured as it runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from promptseg.networks.mask_decoder import resized
from promptseg.networks.prompt_encoder import PromptBatch, Query, batch_queries
from promptseg.networks.promptable import PromptableNetwork, build_network
from promptseg.plans import Plans

QUERIES_PER_IMAGE = 2  # in the measured training step, and the most rounds that correct them
ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """The cost of one encoder's network for some plans.

    Attributes:
        encoder_parameters: number of parameters of the image encoder.
        parameters: number of parameters of the whole network.
        encode_flops: floating-point operations to encode one patch.
        decode_flops: floating-point operations to decode one query, a label with a box.
        training_bytes: peak memory of one training step with the plans' batch size, including
            weights, gradients and optimizer state.
        prediction_bytes: peak memory of encoding one patch and decoding one query, including
            weights.
    """

    encoder_parameters: int
    parameters: int
    encode_flops: int
    decode_flops: int
    training_bytes: int
    prediction_bytes: int


def network_cost(plans: Plans, encoder: str, device: str | torch.device = "cpu") -> NetworkCost:
    """Build the network of plans and an encoder, and measure it on the plans' patch.

    Raises:
        ValueError: for an unknown encoder, or a size that it does not have.
    """
    network = build_network(plans, encoder).to(device, memory_format=torch.channels_last_3d)
    image = torch.zeros(
        plans.batch_size, len(plans.channel_names), *plans.patch_size, device=device
    )
    image += torch.linspace(0, 255, plans.patch_size[2], device=device)
    query = _queries(plans, images=1, each=1).to(device)
    network.eval()
    encode_flops = count_flops(lambda: network.encode(image[:1]))
    with torch.no_grad():
        encoding = network.encode(image[:1])
    decode_flops = count_flops(lambda: network.decode(encoding, query))

    @torch.inference_mode()
    def predict() -> None:
        network(image[:1], query)

    prediction_bytes = peak_bytes(predict, [network, image[:1]], device)
    prompts = _queries(plans, images=plans.batch_size, each=QUERIES_PER_IMAGE).to(device)
    network.train()
    training_bytes = peak_bytes(
        lambda: _training_step(network, image, prompts), [network, image], device
    )
    return NetworkCost(
        encoder_parameters=count_parameters(network.image_encoder),
        parameters=count_parameters(network),
        encode_flops=encode_flops,
        decode_flops=decode_flops,
        training_bytes=training_bytes,
        prediction_bytes=prediction_bytes,
    )


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
        for item in held:
            is_module = isinstance(item, nn.Module)
            for tensor in [*item.parameters(), *item.buffers()] if is_module else [item]:
                live.add(tensor)
        call()
    return live.peak


class _LiveTensors(TorchDispatchMode):
    """Adds up the storages of all tensors that operations return, until each is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}  # by the address of the storage object

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        weakref.finalize(storage, self._free, key)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def _training_step(network: PromptableNetwork, image: Tensor, prompts: PromptBatch) -> None:
    """One training step, except for the targets of the loss, which cost little in comparison."""
    optimizer = torch.optim.AdamW(network.parameters())
    encoding, loss = network.encode(image), 0.0
    if encoding.names is not None:
        loss = loss + resized(encoding.names, image.shape[2:]).log_softmax(dim=1).mean()
    for _ in range(1 + ROUNDS):
        logits, iou = network.decode(encoding, prompts)
        loss = loss + logits.sigmoid().mean() + iou.mean()
        nothing = [np.zeros((0, 3))] * len(prompts), [np.zeros(0)] * len(prompts)
        prompts = prompts.corrected(logits, *nothing)
    loss.backward()
    optimizer.step()
    network.zero_grad(set_to_none=True)


def _queries(plans: Plans, *, images: int, each: int) -> PromptBatch:
    """`each` queries per image: a label, and a box around the middle half of the patch."""
    patch_size = np.asarray(plans.patch_size, float)
    box = np.stack([patch_size / 4, patch_size * 3 / 4])
    return batch_queries(
        [
            Query(image=image, label=number % len(plans.labels), box=box)
            for image in range(images)
            for number in range(each)
        ]
    )
