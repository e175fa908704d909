"""SegVol's names of parameters, and ours: which tensors of a checkpoint make which of the network.

Everything goes from our names to SegVol's, so that a network of any size asks for what it needs
and what it does not ask for is known to be left over.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from promptseg.io.torch_files import load_safely
from promptseg.networks.encoders.vit import ViTSize
from promptseg.networks.pretrained_report import PretrainedReport
from promptseg.segvol.network import SegVolNetwork, SegVolSizes

_BLOCK = r"^image_encoder\.blocks\.layers\.(\d+)\."
_RENAMES = [  # our name, SegVol's
    (_BLOCK + r"self_attn\.in_proj_(weight|bias)$", r"image_encoder.blocks.\1.attn.qkv.\2"),
    (_BLOCK + r"self_attn\.", r"image_encoder.blocks.\1.attn."),
    (_BLOCK + r"linear", r"image_encoder.blocks.\1.mlp.linear"),
    (_BLOCK, r"image_encoder.blocks.\1."),
    (r"^image_encoder\.blocks\.norm\.", r"image_encoder.norm."),
    (r"^image_encoder\.patches\.", r"image_encoder.patch_embedding.patch_embeddings.1."),
    (r"^image_encoder\.positions$", r"image_encoder.patch_embedding.position_embeddings"),
    (
        r"^prompt_encoder\.positions\.frequencies$",
        r"prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"^prompt_encoder\.(not_a_point|no_mask)\.", r"prompt_encoder.\1_embed."),
    (r"^(mask_decoder\.transformer\.layers\.\d+\.mlp)\.linear", r"\1.lin"),
    (r"^mask_decoder\.upscaling\.", r"mask_decoder.output_upscaling."),
    (r"^mask_decoder\.responses\.(\d+)\.", r"mask_decoder.output_hypernetworks_mlps.\1.layers."),
    (r"^mask_decoder\.iou_head\.", r"mask_decoder.iou_prediction_head.layers."),
    (r"^mask_decoder\.text_response\.", r"mask_decoder.txt_align_upscaled_embedding."),
    (r"^label_text\.align\.", r"text_encoder.dim_align."),
]
_STACKED = {  # ours is one table, SegVol's an embedding a row
    "prompt_encoder.point_kinds.weight": (0, 1),
    "prompt_encoder.corners.weight": (2, 3),
}
_NORM_OF_ALL = "mask_decoder.upscaling.1."  # ours has an axis in front
_NEW = ("label_text.tokens.", "label_text.learned")  # SegVol has CLIP here
_TEXT = ("text_encoder.dim_align.", "mask_decoder.txt_align_upscaled_embedding.")
NOT_TAKEN = "nothing here takes it"
_UNUSED = [  # names in a checkpoint, and why nothing is made of them
    (r"text_encoder\.clip_text_model\.", "CLIP's text model: labels have learned vectors here"),
    (r"prompt_encoder\.mask_downscaling\.", "SegVol never runs it: 2D leftovers of SAM's masks"),
    (r"image_encoder\.blocks\.\d+\.(norm_)?cross_attn\.", "MONAI never runs it in this encoder"),
]


def is_new(name: str) -> bool:
    """Whether a parameter or buffer of ours has no counterpart in SegVol."""
    return name.startswith(_NEW)


def is_of_text(key: str) -> bool:
    """Whether a tensor of SegVol's is of its text branch, without which boxes and points work."""
    return key.startswith(_TEXT)


def sources_of(name: str) -> tuple[str, ...]:
    """SegVol's names of the tensors that make one of ours."""
    if name in _STACKED:
        return tuple(f"prompt_encoder.point_embeddings.{i}.weight" for i in _STACKED[name])
    for pattern, theirs in _RENAMES:
        renamed, found = re.subn(pattern, theirs, name)
        if found:
            # our MLPs count the activations between their layers, SegVol's do not
            return (re.sub(r"(\.layers\.)(\d)(\.\w+)$", _halved, renamed),)
    return (name,)


def expected_shape(name: str, shape: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """Shape of each SegVol tensor that makes one of ours of that shape."""
    if name in _STACKED:
        return (1, shape[1])
    if name == "image_encoder.positions":
        return (1, math.prod(shape[2:]), shape[1])
    if name == "image_encoder.patches.weight":
        return (shape[0], math.prod(stride) * shape[1])
    return tuple(shape[1:] if name.startswith(_NORM_OF_ALL) else shape)


def converted(name: str, tensors: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """SegVol's tensors as one of ours of that shape."""
    if name == "image_encoder.positions":
        return tensors[0].transpose(1, 2).reshape(tuple(shape))  # cells in the order z, y, x
    if name == "image_encoder.patches.weight":
        out, channels, *stride = shape  # voxels of a patch in the order z, y, x, channel
        return tensors[0].reshape(out, *stride, channels).movedim(-1, 1)
    if name.startswith(_NORM_OF_ALL):
        return tensors[0][None]
    return torch.cat(list(tensors))


def reason_unused(key: str) -> str:
    """Why nothing is made of a tensor of a checkpoint; `NOT_TAKEN` if it is none we know of."""
    for pattern, reason in _UNUSED:
        if re.match(pattern, key):
            return reason
    return NOT_TAKEN


def _halved(match: re.Match) -> str:
    return f"{match[1]}{int(match[2]) // 2}{match[3]}"


log = logging.getLogger(__name__)

_NOT_THERE = "not in the file, or of another shape there"
PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")


def read_segvol_state(path: Path | str) -> dict[str, Tensor]:
    """SegVol's state dict from a checkpoint, under SegVol's own names.

    Known are the GitHub file (`{"model": {"module.NAME": ...}}`), the Hugging Face file
    (`{"model.NAME": ...}`), training checkpoints (`{"model_state_dict": {...}}`) and bare names.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it cannot be read, or is none of these.
    """
    return segvol_state(load_safely(path), path)


def segvol_state(content: Any, source: Path | str = "checkpoint") -> dict[str, Tensor]:
    """`read_segvol_state` of a file's content."""
    state = content
    for key in ("model", "model_state_dict", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if isinstance(state, Mapping) and all(isinstance(name, str) for name in state):
        state = dict(state)
        for prefix in ("module.", "model.", "module."):
            if state and all(name.startswith(prefix) for name in state):
                # at the start only: CLIP's names have `model.` in their middle
                state = {name.removeprefix(prefix): value for name, value in state.items()}
        tensors = all(isinstance(value, Tensor) for value in state.values())
        if tensors and all(any(n.startswith(part) for n in state) for part in PARTS):
            return state
    found = type(state).__name__
    if isinstance(state, Mapping):
        found = f"{len(state)} entries such as {', '.join(map(str, list(state)[:4])) or 'none'}"
    raise ValueError(
        f"{source} is no SegVol checkpoint: expected tensors named {'*, '.join(PARTS)}*, behind "
        f"`module.`, `model.` or nothing, found {found}"
    )


def segvol_network(
    state: Mapping[str, Tensor],
    *,
    patch_size: Sequence[int],
    stride: Sequence[int],
    heads: int = 12,
    decoder_heads: int = 8,
    labels: int = 1,
) -> SegVolNetwork:
    """The network whose weights a SegVol state dict is, of whatever width and depth.

    Args:
        state: under SegVol's own names, as from `read_segvol_state`.
        patch: voxels, zyx, that the weights were trained for (released: 32x256x256).
        stride: voxels, zyx, of a patch (released: 4x16x16).
        heads: of the image encoder's attention; weights do not tell it.
        decoder_heads: of the mask decoder's attention.
        labels: how many labels get a text embedding to be learned.

    Raises:
        ValueError: naming every tensor that is missing or does not fit.
    """
    sizes = segvol_sizes(state, stride=stride, heads=heads, decoder_heads=decoder_heads)
    network = SegVolNetwork(sizes, patch_size=patch_size, stride=stride, label_count=labels)
    log.info(load_segvol(network, state).summary())
    return network.eval()


def segvol_sizes(
    state: Mapping[str, Tensor], *, stride: Sequence[int], heads: int, decoder_heads: int
) -> SegVolSizes:
    """The sizes that the shapes of a state dict tell, the released ones where it lacks them."""
    released = SegVolSizes()

    def length(key: str, axis: int, otherwise: int) -> int:
        tensor = state.get(key)
        return tensor.shape[axis] if tensor is not None and tensor.ndim > axis else otherwise

    channels = length("mask_decoder.mask_tokens.weight", 1, released.vit.channels)
    of_patch = length("image_encoder.patch_embedding.patch_embeddings.1.weight", 1, 1)
    vit = ViTSize(
        channels=channels,
        layers=_count(state, r"image_encoder\.blocks\.(\d+)\.") or released.vit.layers,
        heads=heads,
        mlp_channels=length("image_encoder.blocks.0.mlp.linear1.weight", 0, 4 * channels),
        stem_channels=0,
    )
    layers = _count(state, r"mask_decoder\.transformer\.layers\.(\d+)\.")
    text_channels = released.text_channels
    if length("text_encoder.dim_align.weight", 0, 0) == channels:
        text_channels = state["text_encoder.dim_align.weight"].shape[1]
    return SegVolSizes(
        vit=vit,
        channels_in=max(of_patch // math.prod(stride), 1),
        decoder_layers=layers or released.decoder_layers,
        decoder_heads=decoder_heads,
        decoder_mlp_channels=length(
            "mask_decoder.transformer.layers.0.mlp.lin1.weight", 0, released.decoder_mlp_channels
        ),
        mask_tokens=length("mask_decoder.mask_tokens.weight", 0, released.mask_tokens),
        iou_channels=length(
            "mask_decoder.iou_prediction_head.layers.0.weight", 0, released.iou_channels
        ),
        text_channels=text_channels,
    )


def load_segvol(
    network: nn.Module,
    state: Mapping[str, Tensor],
    *,
    only: str = "",
    source: str = "SegVol's state dict",
) -> PretrainedReport:
    """Put a SegVol state dict into a network.

    The text branch alone may be missing or of another width (SegVol writes 768 to 96 channels
    into its code, which fits no reduced network): it then keeps its initial values.

    Args:
        network: ours, or with `only`, one that has parts under our names.
        state: under SegVol's own names.
        only: a prefix of our names: load what fits of these parts, layer by layer.
        source: named in errors and the report.

    Raises:
        ValueError: naming every tensor that is missing, too many or of another shape; without
            `only`.
    """
    stride = () if only else network.image_encoder.patches.kernel_size
    own = network.state_dict()
    values, used, missing, unfit = {}, set(), {}, {}
    for name, tensor in own.items():
        if is_new(name) or not name.startswith(only):
            missing[name] = "new here" if not only else "no part of SegVol's"
            continue
        keys = sources_of(name)
        if name.endswith("in_proj_bias") and keys[0] not in state:  # SegVol's qkv has none
            weight = f"{name.removesuffix('bias')}weight"
            if weight in values:
                values[name] = torch.zeros_like(tensor)
            else:
                missing[name] = _NOT_THERE
            continue
        why = _misfits(keys, state, expected_shape(name, tensor.shape, stride))
        if why:
            missing[name] = _NOT_THERE
            unfit.update(why)
            continue
        values[name] = converted(name, [state[key] for key in keys], tensor.shape)
        used.update(keys)
    left_out = {key: unfit.get(key) or reason_unused(key) for key in state if key not in used}
    problems = {key: why for key, why in unfit.items() if not is_of_text(key)}
    # such as layers that this network does not have: without them it would be another
    problems |= {key: why for key, why in left_out.items() if why == NOT_TAKEN}
    if problems and not only:
        listed = "\n".join(f"  {key}: {why}" for key, why in problems.items())
        raise ValueError(
            f"{source} does not fit this network ({_described(network)}): {len(problems)} "
            f"tensors are missing, too many or of another shape, and nothing was loaded\n{listed}"
        )
    network.load_state_dict({**own, **values})
    return PretrainedReport(source=source, loaded=tuple(values), left_out=left_out, missing=missing)


def _misfits(
    keys: Sequence[str], state: Mapping[str, Tensor], expected: tuple[int, ...]
) -> dict[str, str]:
    """What is wrong with the tensors that make one of ours; empty if all are there and fit."""
    why = {}
    for key in keys:
        if key not in state:
            why[key] = "not in the file"
        elif tuple(state[key].shape) != expected:
            why[key] = f"is {tuple(state[key].shape)} in the file, {expected} here"
    return why


def _described(network: nn.Module) -> str:
    if not isinstance(network, SegVolNetwork):
        return type(network).__name__
    return f"patch {network.patch_size}, stride {network.stride}, both zyx"


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many layers a state dict numbers, from 0."""
    found = [re.match(pattern, key) for key in state]
    return 1 + max((int(match[1]) for match in found if match), default=-1)
