"""SegVol's network behind the interface of `PromptableNetwork`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from promptseg.networks.encoders.vit import SIZES, ViTSize
from promptseg.networks.encoding import Encoding
from promptseg.networks.prompt_encoder import PromptBatch
from promptseg.plans import Plans
from promptseg.preprocessing.resample import resample_logits
from promptseg.segvol.image_encoder import SegVolImageEncoder
from promptseg.segvol.mask_decoder import SegVolMaskDecoder
from promptseg.segvol.prompt_encoder import LabelText, SegVolPromptEncoder


@dataclass(frozen=True, kw_only=True)
class SegVolSizes:
    """Sizes of a SegVol network; by default those of the released weights.

    Attributes:
        vit: sizes of the image encoder, whose stem is not used.
        channels_in: number of image channels.
        decoder_layers, decoder_heads, decoder_mlp_channels: sizes of the two-way transformer.
        mask_tokens: number of masks per query; the first is the answer.
        iou_channels: hidden channels of the head that predicts the IoU.
        text_channels: length of a text vector; 512 for CLIP.
    """

    vit: ViTSize = SIZES["base"]
    channels_in: int = 1
    decoder_layers: int = 2
    decoder_heads: int = 8
    decoder_mlp_channels: int = 2048
    mask_tokens: int = 4
    iou_channels: int = 256
    text_channels: int = 512


class SegVolNetwork(nn.Module):
    """Image encoder, prompt encoder and mask decoder of SegVol, for one patch size.

    Args:
        sizes: sizes of all parts.
        patch_size: voxels, zyx; the weights work with this size only.
        stride: voxels, zyx, of one token.
        label_count: number of labels, each with a learned text embedding.
    """

    def __init__(
        self,
        sizes: SegVolSizes,
        *,
        patch_size: Sequence[int],
        stride: Sequence[int],
        label_count: int,
    ) -> None:
        super().__init__()
        if any(w % s for w, s in zip(patch_size, stride, strict=True)):
            raise ValueError(
                f"patch {tuple(patch_size)} is not a multiple of stride {tuple(stride)} (zyx)"
            )
        channels, heads, inner = sizes.vit.channels, sizes.decoder_heads, sizes.vit.channels // 2
        if channels % sizes.vit.heads or inner % heads:
            raise ValueError(
                f"{channels} channels cannot be split into {sizes.vit.heads} heads of the image "
                f"encoder, or {inner} of its half into {heads} heads of the decoder; give the "
                f"numbers of heads that the weights were made with"
            )
        self.patch_size = tuple(patch_size)
        self.stride = tuple(stride)
        grid = [w // s for w, s in zip(patch_size, stride, strict=True)]
        self.image_encoder = SegVolImageEncoder(sizes.vit, sizes.channels_in, patch_size, stride)
        self.prompt_encoder = SegVolPromptEncoder(channels, patch_size, grid)
        self.label_text = LabelText(label_count, sizes.text_channels, channels)
        self.mask_decoder = SegVolMaskDecoder(
            channels,
            grid,
            heads=heads,
            mlp_channels=sizes.decoder_mlp_channels,
            depth=sizes.decoder_layers,
            mask_tokens=sizes.mask_tokens,
            iou_channels=sizes.iou_channels,
        )

    def encode(self, image: Tensor) -> Encoding:
        """Encode (b, c, z, y, x) images with intensities in [0, 255].

        Raises:
            ValueError: for another patch size than the planned one.
        """
        if tuple(image.shape[2:]) != self.patch_size:
            raise ValueError(
                f"SegVol's position embeddings and normalization are made for the patch size "
                f"{self.patch_size}, the image has {tuple(image.shape[2:])} (both zyx, voxels); "
                f"cut or resize it to that size"
            )
        embedding = self.image_encoder(image.float() / 255)
        return Encoding(patch_size=self.patch_size, features=embedding)

    def decode(
        self, encoding: Encoding, prompts: PromptBatch, *, whole: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Decode n queries about encoded images.

        Args:
            encoding: of the images.
            prompts: n queries.
            whole: changes nothing; this network answers in the whole patch.

        Returns:
            (n, z, y, x) mask logits, of the first mask token as in SegVol, and (n,) predicted IoU
            logits, which are meaningless with SegVol's weights, since it never trained them.
        """
        text, has_text = self.label_text(prompts.labels)
        tokens, token_mask = self.prompt_encoder.embed(prompts, text, has_text)
        logits, iou = self.mask_decoder(
            encoding.features.index_select(0, prompts.image_index),
            self.prompt_encoder.dense_positions(),
            tokens,
            self.prompt_encoder.dense(),
            text=text,
            token_mask=token_mask,
            has_text=has_text,
        )
        return resample_logits(logits[:, 0].float(), encoding.patch_size), iou[:, 0].float()

    def forward(self, image: Tensor, prompts: PromptBatch) -> tuple[Tensor, Tensor]:
        """`decode(encode(image), prompts)`."""
        return self.decode(self.encode(image), prompts)


def build_segvol_network(plans: Plans, encoder: str) -> SegVolNetwork:
    """The network of plans with the preset `segvol`, with random weights.

    Raises:
        ValueError: for another encoder than `vit`, and for an unknown size.
    """
    if encoder != "vit":
        raise ValueError(
            f"the preset segvol is SegVol's own network, whose encoder is vit, not {encoder!r}; "
            f"train it with ViTTrainer, or plan without the preset"
        )
    if plans.size not in SIZES:
        raise ValueError(
            f"unknown size {plans.size!r} of the encoder vit; it has {', '.join(SIZES)}"
        )
    sizes = SegVolSizes(vit=SIZES[plans.size], channels_in=len(plans.channel_names))
    return SegVolNetwork(
        sizes, patch_size=plans.patch_size, stride=plans.stride, label_count=len(plans.labels)
    )
