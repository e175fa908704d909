"""SegVol's checkpoints: reading them, and loading their tensors into a network of ours.

Names are mapped from ours to SegVol's, so that a network of any size finds what it needs, and all
other tensors of the file are known to be left over.
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

log = logging.getLogger(__name__)

PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")  # of a checkpoint
_NOT_THERE = "not in the file, or of another shape there"
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
_STACKED = {  # ours is one table, SegVol's has one embedding per row
    "prompt_encoder.point_kinds.weight": (0, 1),
    "prompt_encoder.corners.weight": (2, 3),
}
_NORM_OF_ALL = "mask_decoder.upscaling.1."  # ours has a leading axis
_NEW = ("label_text.tokens.", "label_text.learned")  # CLIP in SegVol
_TEXT = ("text_encoder.dim_align.", "mask_decoder.txt_align_upscaled_embedding.")
NOT_USED = "no such parameter here"
_UNUSED = [  # names in a checkpoint, and why they are not used
    (r"text_encoder\.clip_text_model\.", "CLIP's text model: labels have learned vectors here"),
    (
        r"prompt_encoder\.mask_downscaling\.",
        "SegVol never runs it: 2D remains of SAM's masks",
    ),
    (r"image_encoder\.blocks\.\d+\.(norm_)?cross_attn\.", "MONAI never runs it in this encoder"),
]


def read_segvol_state(path: Path | str) -> dict[str, Tensor]:
    """SegVol's state dict from a checkpoint, under SegVol's own names.

    Reads the GitHub file (`{"model": {"module.NAME": ...}}`), the Hugging Face file
    (`{"model.NAME": ...}`), training checkpoints (`{"model_state_dict": {...}}`) and bare names.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it cannot be read or has another layout.
    """
    return segvol_state(load_safely(path), path)


def segvol_state(content: Any, source: Path | str = "checkpoint") -> dict[str, Tensor]:
    """The state dict of a file's content, as in `read_segvol_state`."""
    state = content
    for key in ("model", "model_state_dict", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if isinstance(state, Mapping) and all(isinstance(name, str) for name in state):
        state = dict(state)
        for prefix in ("module.", "model.", "module."):
            if state and all(name.startswith(prefix) for name in state):
                # only at the start: CLIP's names contain `model.`
                state = {name.removeprefix(prefix): value for name, value in state.items()}
        tensors = all(isinstance(value, Tensor) for value in state.values())
        if tensors and all(any(n.startswith(part) for n in state) for part in PARTS):
            return state
    found = type(state).__name__
    if isinstance(state, Mapping):
        found = f"{len(state)} entries such as {', '.join(map(str, list(state)[:4])) or 'none'}"
    raise ValueError(
        f"{source} is not a SegVol checkpoint: expected tensors named {'*, '.join(PARTS)}*, behind "
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
    """The network of a SegVol state dict, with its weights, of any width and depth.

    Args:
        state: tensors under SegVol's own names, as from `read_segvol_state`.
        patch_size: voxels, zyx, that the weights were trained with (released: 32x256x256).
        stride: voxels, zyx, of one token (released: 4x16x16).
        heads: number of heads of the image encoder, which the weights do not show.
        decoder_heads: number of heads of the mask decoder.
        labels: number of labels that get a learned text embedding.

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
    """The sizes that the shapes of a state dict imply; those of the release where it has none."""
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

    Only the text branch may be missing or of another width (SegVol's code fixes it at 768 and 96
    channels, which do not fit reduced networks): it then keeps its initial values.

    Args:
        network: a `SegVolNetwork`, or with `only` any network with parts under the same names.
        state: tensors under SegVol's own names.
        only: prefix of our names; if given, load only what fits of those parameters.
        source: the origin of the weights, for errors and the report.

    Raises:
        ValueError: unless `only` is given, naming every tensor that is missing, surplus or of
            another shape.
    """
    stride = () if only else network.image_encoder.patches.kernel_size
    own = network.state_dict()
    values, used, missing, unfit = {}, set(), {}, {}
    for name, tensor in own.items():
        if is_new(name) or not name.startswith(only):
            missing[name] = "new here" if not only else "not a part of SegVol's"
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
    # such as layers beyond those of this network, which would change its answers
    problems |= {key: why for key, why in left_out.items() if why == NOT_USED}
    if problems and not only:
        listed = "\n".join(f"  {key}: {why}" for key, why in problems.items())
        raise ValueError(
            f"{source} does not fit this network ({_described(network)}): {len(problems)} "
            f"tensors are missing, surplus or of another shape, and nothing was loaded\n{listed}"
        )
    network.load_state_dict({**own, **values})
    return PretrainedReport(source=source, loaded=tuple(values), left_out=left_out, missing=missing)


def _misfits(
    keys: Sequence[str], state: Mapping[str, Tensor], expected: tuple[int, ...]
) -> dict[str, str]:
    """Why tensors that make up one of ours do not fit, by name; empty if all fit."""
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
    """Number of layers that a state dict has; they are numbered from 0."""
    found = [re.match(pattern, key) for key in state]
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def is_new(name: str) -> bool:
    """Whether a parameter or buffer of ours has no counterpart in SegVol."""
    return name.startswith(_NEW)


def is_of_text(key: str) -> bool:
    """Whether a tensor of SegVol's belongs to its text branch; boxes and points work without it."""
    return key.startswith(_TEXT)


def sources_of(name: str) -> tuple[str, ...]:
    """SegVol's names of the tensors that make up one of ours."""
    if name in _STACKED:
        return tuple(f"prompt_encoder.point_embeddings.{i}.weight" for i in _STACKED[name])
    for pattern, theirs in _RENAMES:
        renamed, found = re.subn(pattern, theirs, name)
        if found:
            # our MLPs count the activations between their layers, SegVol's do not
            return (re.sub(r"(\.layers\.)(\d)(\.\w+)$", _halved, renamed),)
    return (name,)


def expected_shape(name: str, shape: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """Shape of each of SegVol's tensors that make up one of ours with that shape."""
    if name in _STACKED:
        return (1, shape[1])
    if name == "image_encoder.positions":
        return (1, math.prod(shape[2:]), shape[1])
    if name == "image_encoder.patches.weight":
        return (shape[0], math.prod(stride) * shape[1])
    return tuple(shape[1:] if name.startswith(_NORM_OF_ALL) else shape)


def converted(name: str, tensors: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """SegVol's tensors as one of ours with that shape."""
    if name == "image_encoder.positions":
        return tensors[0].transpose(1, 2).reshape(tuple(shape))  # cells in the order z, y, x
    if name == "image_encoder.patches.weight":
        out, channels, *stride = shape  # voxels of a patch in the order z, y, x, channel
        return tensors[0].reshape(out, *stride, channels).movedim(-1, 1)
    if name.startswith(_NORM_OF_ALL):
        return tensors[0][None]
    return torch.cat(list(tensors))


def reason_unused(key: str) -> str:
    """Why a tensor of a checkpoint is not used; `NOT_USED` if it is unknown."""
    for pattern, reason in _UNUSED:
        if re.match(pattern, key):
            return reason
    return NOT_USED


def _halved(match: re.Match) -> str:
    return f"{match[1]}{int(match[2]) // 2}{match[3]}"
