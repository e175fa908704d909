"""SegVol's forward pass once more, as plain formulas on its state dict; shares no code with ours.

Written from the published architecture in the order of its computation, one query set at a time,
in float64 so that the comparison measures our rounding and not two roundings.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Reference:
    """Functions of a SegVol state dict; coordinates and boxes as SegVol has them (d, h, w)."""

    def __init__(self, state, patch_size, patch, heads, decoder_heads=8):
        self.state = {k: v.double() for k, v in state.items() if v.is_floating_point()}
        self.patch_size, self.patch, self.heads = patch_size, patch, heads
        self.decoder_heads = decoder_heads
        self.grid = [w // p for w, p in zip(patch_size, patch, strict=True)]

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = x @ self.state[f"{name}.weight"].T
        return y + self.state[f"{name}.bias"] if f"{name}.bias" in self.state else y

    def norm(self, name: str, x: Tensor, axes: int = 1) -> Tensor:
        over = tuple(range(-axes, 0))
        mean = x.mean(over, keepdim=True)
        variance = ((x - mean) ** 2).mean(over, keepdim=True)
        scaled = (x - mean) / (variance + 1e-5).sqrt()
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        out = []
        width = q.shape[-1] // heads
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = q[..., part] @ k[..., part].transpose(-1, -2) / math.sqrt(width)
            out.append(scores.softmax(-1) @ v[..., part])
        return torch.cat(out, -1)

    def image_embedding(self, image: Tensor) -> Tensor:
        """(b, 1, D, H, W) in [0, 1] to (b, c, D', H', W')."""
        patches = []
        (pd, ph, pw), (gd, gh, gw) = self.patch, self.grid
        for d in range(gd):
            for h in range(gh):
                for w in range(gw):
                    block = image.double()[
                        :,
                        :,
                        d * pd : (d + 1) * pd,
                        h * ph : (h + 1) * ph,
                        w * pw : (w + 1) * pw,
                    ]
                    patches.append(block.permute(0, 2, 3, 4, 1).flatten(1))  # (pd, ph, pw, c)
        name = "image_encoder.patch_embedding."
        x = self.linear(f"{name}patch_embeddings.1", torch.stack(patches, 1))
        x = x + self.state[f"{name}position_embeddings"]
        layer = 0
        while f"image_encoder.blocks.{layer}.norm1.weight" in self.state:
            block = f"image_encoder.blocks.{layer}."
            qkv = self.linear(f"{block}attn.qkv", self.norm(f"{block}norm1", x))
            q, k, v = qkv.chunk(3, -1)
            x = x + self.linear(f"{block}attn.out_proj", self.attend(q, k, v, self.heads))
            hidden = self.linear(f"{block}mlp.linear1", self.norm(f"{block}norm2", x))
            hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
            x = x + self.linear(f"{block}mlp.linear2", hidden)
            layer += 1
        x = self.norm("image_encoder.norm", x)
        return x.transpose(1, 2).reshape(len(image), -1, *self.grid)

    def encode(self, relative: Tensor) -> Tensor:
        gaussian = self.state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
        angles = 2 * math.pi * ((2 * relative - 1) @ gaussian)
        return torch.cat([angles.sin(), angles.cos()], -1)

    def located(self, coordinates: Tensor) -> Tensor:
        """(..., 3) d, h, w: the original divides d by the height and h by the depth."""
        depth, height, width = self.patch_size
        d, h, w = (coordinates.double() + 0.5).unbind(-1)
        return self.encode(torch.stack([d / height, h / depth, w / width], -1))

    def embedding(self, name: str) -> Tensor:
        return self.state[f"prompt_encoder.{name}.weight"][0]

    def sparse(self, points=None, boxes=None, text=None) -> Tensor:
        """points: (coordinates (n, k, 3), labels (n, k)); boxes: (n, 6), ends inclusive."""
        given = [p for p in (points and points[0], boxes, text) if p is not None]
        tokens = [
            torch.zeros(len(given[0]) if given else 1, 0, len(self.embedding("no_mask_embed")))
        ]
        if points is not None:
            coordinates, labels = points
            encoded = self.located(coordinates)
            for i, j in torch.cartesian_prod(*map(torch.arange, labels.shape)).tolist():
                if labels[i, j] == -1:
                    encoded[i, j] = self.embedding("not_a_point_embed")
                else:
                    encoded[i, j] += self.embedding(f"point_embeddings.{labels[i, j]}")
            tokens.append(encoded)
            if boxes is None:
                padding = self.embedding("not_a_point_embed").expand(len(labels), 1, -1)
                tokens.append(padding)
        if boxes is not None:
            corners = self.located(boxes.reshape(-1, 2, 3))
            corners[:, 0] += self.embedding("point_embeddings.2")
            corners[:, 1] += self.embedding("point_embeddings.3")
            tokens.append(corners)
        if text is not None:
            tokens.append(text.double()[:, None])
        return torch.cat(tokens, 1)

    def dense(self, count: int) -> Tensor:
        return self.embedding("no_mask_embed")[None, :, None, None, None].expand(
            count, -1, *self.grid
        )

    def dense_positions(self) -> Tensor:
        d, h, w = torch.meshgrid(
            *[(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in self.grid], indexing="ij"
        )
        return self.encode(torch.stack([h, d, w], -1)).permute(3, 0, 1, 2)  # h before d

    def projected(self, name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        name = f"mask_decoder.transformer.{name}"
        q, k, v = (
            self.linear(f"{name}.{n}_proj", x) for n, x in zip("qkv", (q, k, v), strict=True)
        )
        return self.linear(f"{name}.out_proj", self.attend(q, k, v, self.decoder_heads))

    def mlp(self, name: str, x: Tensor) -> Tensor:
        for layer in range(3):
            x = self.linear(f"mask_decoder.{name}.layers.{layer}", x)
            x = x.clamp(min=0) if layer < 2 else x
        return x

    def gelu(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    def upsampled(self, name: str, x: Tensor) -> Tensor:
        """Transposed convolution with kernel = stride = 2: every voxel becomes eight."""
        weight = self.state[f"{name}.weight"]
        n, _, d, h, w = x.shape
        blocks = torch.einsum("ncdhw,coijk->nodihjwk", x, weight)
        y = blocks.reshape(n, weight.shape[1], 2 * d, 2 * h, 2 * w)
        return y + self.state[f"{name}.bias"][:, None, None, None]

    def decode(self, embedding: Tensor, sparse: Tensor, text=None) -> tuple[Tensor, Tensor]:
        """(n or 1, c, ...) embeddings to (n, masks, ...) low-resolution logits, (n, masks) IoU."""
        n = len(sparse)
        own = [self.state[f"mask_decoder.{name}.weight"] for name in ("iou_token", "mask_tokens")]
        tokens = torch.cat([torch.cat(own).expand(n, -1, -1), sparse], 1)
        if len(embedding) != n:
            embedding = embedding.repeat_interleave(n, 0)
        source = embedding + self.dense(n)
        keys = source.flatten(2).transpose(1, 2)
        places = self.dense_positions().flatten(1).T
        queries = tokens
        for layer in range(2):
            name = f"layers.{layer}"
            norm = f"mask_decoder.transformer.{name}.norm"
            if layer == 0:  # no positions, and no residual
                queries = self.projected(f"{name}.self_attn", queries, queries, queries)
            else:
                q = queries + tokens
                queries = queries + self.projected(f"{name}.self_attn", q, q, queries)
            queries = self.norm(f"{norm}1", queries)
            attention = f"{name}.cross_attn_token_to_image"
            queries = queries + self.projected(attention, queries + tokens, keys + places, keys)
            queries = self.norm(f"{norm}2", queries)
            mlp = f"mask_decoder.transformer.{name}.mlp.lin"
            hidden = self.linear(f"{mlp}1", queries).clamp(min=0)
            queries = self.norm(f"{norm}3", queries + self.linear(f"{mlp}2", hidden))
            attention = f"{name}.cross_attn_image_to_token"
            keys = keys + self.projected(attention, keys + places, queries + tokens, queries)
            keys = self.norm(f"{norm}4", keys)
        found = self.projected("final_attn_token_to_image", queries + tokens, keys + places, keys)
        queries = self.norm("mask_decoder.transformer.norm_final_attn", queries + found)
        name = "mask_decoder.output_upscaling."
        up = self.upsampled(f"{name}0", keys.transpose(1, 2).reshape(source.shape))
        up = self.gelu(self.norm(f"{name}1", up, axes=4))
        up = self.gelu(self.upsampled(f"{name}3", up))
        masks = []
        for i in range(len(own[1])):
            weights = self.mlp(f"output_hypernetworks_mlps.{i}", queries[:, 1 + i])
            masks.append((weights[:, :, None, None, None] * up).sum(1))
        masks = torch.stack(masks, 1)
        if text is not None:
            down = self.linear("mask_decoder.txt_align_upscaled_embedding", text.double())
            masks = masks + (down[:, :, None, None, None] * up).sum(1, keepdim=True)
        return masks, self.mlp("iou_prediction_head", queries[:, 0])
