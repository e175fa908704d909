"""SegVol's names of parameters, and ours: which tensors of a checkpoint make which of the network.

Everything goes from our names to SegVol's, so that a network of any size asks for what it needs
and what it does not ask for is known to be left over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

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
