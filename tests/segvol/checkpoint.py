"""Synthetic checkpoints in the layouts in which SegVol's weights are released."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
TEXT = "text_encoder.clip_text_model.text_model."


def segvol_shapes(
    *,
    patch_size: tuple[int, int, int] = (32, 256, 256),
    patch: tuple[int, int, int] = (4, 16, 16),
    hidden: int = 768,
    layers: int = 12,
    mlp: int | None = None,
    decoder_mlp: int = 2048,
    text: int = 512,
    text_layers: int = 12,
    words: int = 49408,
) -> Shapes:
    """Names and shapes of SegVol's state dict; the defaults are the released sizes."""
    grid = [w // p for w, p in zip(patch_size, patch, strict=True)]
    shapes: Shapes = {}

    def linear(name: str, channels_in: int, channels_out: int) -> None:
        shapes[f"{name}.weight"] = (channels_out, channels_in)
        shapes[f"{name}.bias"] = (channels_out,)

    def norm(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = shape

    encoder = "image_encoder."
    shapes[f"{encoder}patch_embedding.position_embeddings"] = (1, math.prod(grid), hidden)
    linear(f"{encoder}patch_embedding.patch_embeddings.1", math.prod(patch), hidden)
    for i in range(layers):
        block = f"{encoder}blocks.{i}."
        linear(f"{block}mlp.linear1", hidden, mlp or 4 * hidden)
        linear(f"{block}mlp.linear2", mlp or 4 * hidden, hidden)
        norm(f"{block}norm1", hidden)
        linear(f"{block}attn.out_proj", hidden, hidden)
        shapes[f"{block}attn.qkv.weight"] = (3 * hidden, hidden)
        norm(f"{block}norm2", hidden)
    norm(f"{encoder}norm", hidden)

    prompt = "prompt_encoder."
    shapes[f"{prompt}pe_layer.positional_encoding_gaussian_matrix"] = (3, hidden // 2)
    for name in [f"point_embeddings.{i}" for i in range(4)] + ["not_a_point_embed"]:
        shapes[f"{prompt}{name}.weight"] = (1, hidden)
    for i, (out, into, side) in {0: (4, 1, 2), 3: (16, 4, 2), 6: (hidden, 16, 1)}.items():
        shapes[f"{prompt}mask_downscaling.{i}.weight"] = (out, into, side, side)
        shapes[f"{prompt}mask_downscaling.{i}.bias"] = (out,)
    norm(f"{prompt}mask_downscaling.1", 4)
    norm(f"{prompt}mask_downscaling.4", 16)
    shapes[f"{prompt}no_mask_embed.weight"] = (1, hidden)

    decoder = "mask_decoder."

    def attention(name: str, inner: int) -> None:
        for projection in "qkv":
            linear(f"{decoder}transformer.{name}.{projection}_proj", hidden, inner)
        linear(f"{decoder}transformer.{name}.out_proj", inner, hidden)

    for i in range(2):
        attention(f"layers.{i}.self_attn", hidden)
        attention(f"layers.{i}.cross_attn_token_to_image", hidden // 2)
        attention(f"layers.{i}.cross_attn_image_to_token", hidden // 2)
        linear(f"{decoder}transformer.layers.{i}.mlp.lin1", hidden, decoder_mlp)
        linear(f"{decoder}transformer.layers.{i}.mlp.lin2", decoder_mlp, hidden)
        for j in range(1, 5):
            norm(f"{decoder}transformer.layers.{i}.norm{j}", hidden)
    attention("final_attn_token_to_image", hidden // 2)
    norm(f"{decoder}transformer.norm_final_attn", hidden)
    shapes[f"{decoder}iou_token.weight"] = (1, hidden)
    shapes[f"{decoder}mask_tokens.weight"] = (4, hidden)
    shapes[f"{decoder}output_upscaling.0.weight"] = (hidden, hidden // 4, 2, 2, 2)
    shapes[f"{decoder}output_upscaling.0.bias"] = (hidden // 4,)
    norm(f"{decoder}output_upscaling.1", hidden // 4, *(2 * cells for cells in grid))
    shapes[f"{decoder}output_upscaling.3.weight"] = (hidden // 4, hidden // 8, 2, 2, 2)
    shapes[f"{decoder}output_upscaling.3.bias"] = (hidden // 8,)
    heads = {f"output_hypernetworks_mlps.{i}": (hidden, hidden // 8) for i in range(4)}
    for name, (inner, out) in {**heads, "iou_prediction_head": (256, 4)}.items():
        for j, (a, b) in enumerate([(hidden, inner), (inner, inner), (inner, out)]):
            linear(f"{decoder}{name}.layers.{j}", a, b)
    linear(f"{decoder}txt_align_upscaled_embedding", hidden, hidden // 8)

    shapes[f"{TEXT}embeddings.position_ids"] = (1, 77)
    shapes[f"{TEXT}embeddings.token_embedding.weight"] = (words, text)
    shapes[f"{TEXT}embeddings.position_embedding.weight"] = (77, text)
    for i in range(text_layers):
        layer = f"{TEXT}encoder.layers.{i}."
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{layer}self_attn.{projection}", text, text)
        linear(f"{layer}mlp.fc1", text, 4 * text)
        linear(f"{layer}mlp.fc2", 4 * text, text)
        norm(f"{layer}layer_norm1", text)
        norm(f"{layer}layer_norm2", text)
    norm(f"{TEXT}final_layer_norm", text)
    linear("text_encoder.dim_align", text, hidden)
    return shapes


def segvol_state_dict(seed: int = 0, **sizes: object) -> dict[str, Tensor]:
    """Random weights under SegVol's names, of `segvol_shapes`, scaled so that signals stay alive.

    A small CLIP by default: `text=24, text_layers=1, words=10`.
    """
    random = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in segvol_shapes(**{"text": 24, "text_layers": 1, "words": 10, **sizes}).items():
        if key.endswith("position_ids"):
            state[key] = torch.arange(77)[None]
            continue
        value = torch.randn(shape, generator=random)
        is_norm = "norm" in key or "output_upscaling.1." in key
        if is_norm and key.endswith("weight"):
            value = 1 + 0.3 * value
        elif key.endswith("bias"):
            value = 0.3 * value
        elif len(shape) > 1 and shape[0] > 1 and "gaussian" not in key and "tokens" not in key:
            value = value / (shape[0] if "upscaling" in key else math.prod(shape[1:])) ** 0.5
        state[key] = value
    return state


def write_segvol_checkpoint(
    path: Path, *, layout: str = "github", seed: int = 0, **sizes: object
) -> dict[str, Tensor]:
    """Write a synthetic checkpoint, and return its state dict under SegVol's own names.

    Args:
        path: file to write.
        layout: `github` (`SegVol_v1.pth`), `huggingface` (`pytorch_model.bin`), `training`
            (`model_state_dict` beside the optimizer's) or `bare`.
        seed: of the weights.
        sizes: as `segvol_shapes`: patch, patch, hidden, layers, ...
    """
    state = segvol_state_dict(seed, **sizes)
    of_module = {f"module.{key}": value for key, value in state.items()}
    of_model = {f"model.{key}": value for key, value in state.items()}
    contents = {
        "github": {"model": of_module, "epoch": 270},
        "huggingface": of_model,
        "training": {"epoch": 3, "model_state_dict": of_model, "loss": 0.5},
        "bare": state,
    }
    torch.save(contents[layout], path)
    return state
