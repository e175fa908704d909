"""SAM's two-way transformer over padded tokens: they attend to the image, and it to them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class TwoWayTransformer(nn.Module):
    """Prompt tokens and image tokens attend to each other.

    Nothing attends to padding tokens, so that an answer does not depend on how many points the
    other queries of the batch have.

    Source:
        Kirillov et al. 2023, arXiv:2304.02643, Appendix A. Differs: padding, and a residual
        connection and positions in the first self-attention too. MONAI's `TwoWayTransformer` has
        the same parameters under the same names, and no padding.
    """

    def __init__(self, depth: int, channels: int, heads: int, mlp_channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(channels, heads, mlp_channels) for _ in range(depth)
        )
        self.final_attn_token_to_image = Attention(channels, channels // 2, heads)
        self.norm_final_attn = nn.LayerNorm(channels)

    def forward(
        self, image: Tensor, image_pe: Tensor, tokens: Tensor, token_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run all layers.

        Args:
            image: (n, c, z', y', x') embedding of each query's image, with the query's region.
            image_pe: (c, z', y', x') position encodings of the grid.
            tokens: (n, t, c) of the queries.
            token_mask: (n, t) bool, False for padding; each query has at least one token.

        Returns:
            (n, t, c) tokens, meaningless where they are padding, and (n, z' y' x', c) image tokens.
        """
        mask = token_mask[:, None, None]
        image_pe = image_pe.flatten(1).transpose(0, 1)
        hidden, image_tokens = tokens, image.flatten(2).transpose(1, 2)
        for layer in self.layers:
            hidden, image_tokens = layer(hidden, image_tokens, tokens, image_pe, mask)
        keys = image_tokens + image_pe
        found = self.final_attn_token_to_image(hidden + tokens, keys, image_tokens)
        return self.norm_final_attn(hidden + found), image_tokens


class TwoWayBlock(nn.Module):
    """Attention among tokens, tokens to image, an MLP on the tokens, and image to tokens."""

    def __init__(self, channels: int, heads: int, mlp_channels: int) -> None:
        super().__init__()
        self.self_attn = Attention(channels, channels, heads)
        self.norm1 = nn.LayerNorm(channels)
        self.cross_attn_token_to_image = Attention(channels, channels // 2, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLP(channels, mlp_channels)
        self.norm3 = nn.LayerNorm(channels)
        self.norm4 = nn.LayerNorm(channels)
        self.cross_attn_image_to_token = Attention(channels, channels // 2, heads)

    def forward(
        self, hidden: Tensor, image_tokens: Tensor, tokens: Tensor, image_pe: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Apply the layer to hidden tokens and image tokens.

        As in SAM, the initial `tokens` and `image_pe` are added before every attention.
        """
        hidden = self.norm1(self.self_attend(hidden, tokens, mask))
        located = image_tokens + image_pe
        found = self.cross_attn_token_to_image(hidden + tokens, located, image_tokens)
        hidden = self.norm2(hidden + found)
        hidden = self.norm3(hidden + self.mlp(hidden))
        located = image_tokens + image_pe  # again: gradients are then summed as in earlier runs
        found = self.cross_attn_image_to_token(located, hidden + tokens, hidden, mask)
        return hidden, self.norm4(image_tokens + found)

    def self_attend(self, hidden: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """The tokens after attention among themselves."""
        queries = hidden + tokens
        return hidden + self.self_attn(queries, queries, hidden, mask)


class Attention(nn.Module):
    """Multi-head attention, in fewer channels than its inputs have."""

    def __init__(self, channels: int, inner_channels: int, heads: int) -> None:
        super().__init__()
        if inner_channels % heads:
            raise ValueError(
                f"{heads} heads need a multiple of {heads} channels inside an attention, got "
                f"{inner_channels}; an encoder's channels are a multiple of {2 * heads}"
            )
        self.heads = heads
        self.q_proj = nn.Linear(channels, inner_channels)
        self.k_proj = nn.Linear(channels, inner_channels)
        self.v_proj = nn.Linear(channels, inner_channels)
        self.out_proj = nn.Linear(inner_channels, channels)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """(n, q, c) queries to (n, q, c), over (n, k, c) keys and values where `mask` is True."""
        q, k, v = (
            projection(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projection, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        answer = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(answer.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear maps with a ReLU in between."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.relu(self.linear1(x)))
