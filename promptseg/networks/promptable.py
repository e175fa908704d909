"""The promptable network: encode an image once, then decode any number of prompts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from promptseg.networks.encoders import ENCODERS, ImageEncoder
from promptseg.networks.encoding import Encoding
from promptseg.networks.mask_decoder import MaskDecoder
from promptseg.networks.prompt_encoder import PromptBatch, PromptEncoder
from promptseg.plans import Plans
from promptseg.preprocessing.resample import resample_logits
from promptseg.presets import preset_of


class PromptableNetwork(nn.Module):
    """Image encoder, prompt encoder and mask decoder; always returns logits."""

    def __init__(
        self, image_encoder: ImageEncoder, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder

    def encode(self, image: Tensor) -> Encoding:
        """Encode (b, c, z, y, x) images with intensities in [0, 255]."""
        encoded = self.image_encoder(image.float() / 127.5 - 1.0)
        pyramid = self.mask_decoder.pyramid(encoded.embedding, encoded.features)
        return Encoding(
            patch_size=tuple(image.shape[2:]), embedding=encoded.embedding, pyramid=pyramid
        )

    def decode(self, encoding: Encoding, prompts: PromptBatch) -> tuple[Tensor, Tensor]:
        """Decode n queries about encoded images.

        Returns:
            (n, z, y, x) mask logits and (n,) predicted IoU logits.
        """
        grid = encoding.embedding.shape[2:]
        tokens, token_mask, regions = self.prompt_encoder(prompts, encoding.patch_size, grid)
        logits, iou = self.mask_decoder(
            encoding.embedding,
            encoding.pyramid,
            self.prompt_encoder.positions.grid(grid),
            tokens,
            token_mask,
            regions,
            prompts.image_index,
        )
        return resample_logits(logits, encoding.patch_size), iou  # the finest map may be coarser

    def forward(self, image: Tensor, prompts: PromptBatch) -> tuple[Tensor, Tensor]:
        """`decode(encode(image), prompts)`."""
        return self.decode(self.encode(image), prompts)


def decode_in_parts(
    network: PromptableNetwork, encoding: Encoding, prompts: PromptBatch, most: int = 8
) -> tuple[Tensor, Tensor]:
    """`network.decode`, at most `most` queries at once, to bound the decoder's memory.

    For use without gradients, which would keep the memory of all parts.
    """
    parts = [
        network.decode(encoding, prompts[first : first + most])
        for first in range(0, len(prompts), most)
    ]
    logits, iou = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(iou)


def build_network(plans: Plans, encoder: str) -> nn.Module:
    """The network that plans and an encoder's name describe, with random weights.

    A `PromptableNetwork`, or with a preset the preset's own, which has the same interface.

    Raises:
        ValueError: for an unknown encoder or size, listing the known ones, and for plans
            with a preset and another encoder than the preset's.
    """
    if preset := preset_of(plans):
        return preset.build_network(plans, encoder)
    image_encoder = ENCODERS.get(encoder)(
        channels_in=len(plans.channel_names),
        patch_size=plans.patch_size,
        stride=plans.stride,
        size=plans.size,
    )
    return PromptableNetwork(
        image_encoder,
        PromptEncoder(image_encoder.channels, len(plans.labels)),
        MaskDecoder(image_encoder.channels, image_encoder.feature_channels),
    )
