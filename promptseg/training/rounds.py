"""Rounds of corrections in a training step: what a person would add to the answer just given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from promptseg.networks.encoding import Encoding
from promptseg.networks.prompt_encoder import PromptBatch
from promptseg.prompts.simulated import error_click, error_scribble
from promptseg.training.losses import without_ignored

SCRIBBLES = 0.15  # fraction of corrections
ANYWHERE = 0.4  # fraction of clicks in a random error, in place of the largest
RECOMPUTED_FROM = 2**20  # voxels of a patch, from which answers are computed again for gradients
AT_ONCE = 0.15  # fraction of corrections without the mask before: all prompts are given at once


def answers_by_round(
    network: nn.Module,
    encoding: Encoding,
    prompts: PromptBatch,
    targets: Tensor,
    rounds: int,
    generators: Sequence[np.random.Generator],
    ignored: Tensor | None = None,
) -> Iterator[tuple[PromptBatch, Tensor, Tensor]]:
    """Answers to queries, and to the same after each round of corrections.

    A correction is a click or a scribble in the error of the answer before, which but for `AT_ONCE`
    of them is given to the network as the mask to correct. An answer without error is asked for
    again as it is. In a large patch what an answer's gradients need is not kept but computed again:
    the answers of all rounds together would take several GB.

    Args:
        network: decodes queries.
        encoding: of the images.
        prompts: n queries.
        targets: (n, z, y, x) bool.
        rounds: number of rounds after the first answer.
        generators: source of randomness of each query.
        ignored: (n, z, y, x) bool, voxels in which nothing is corrected; None for none.

    Yields:
        The prompts, (n, z, y, x) logits and (n,) predicted IoU logits.
    """
    wanted = targets.cpu().numpy()
    decode = decoding(network, targets.shape[1:])
    for number in range(rounds + 1):
        logits, iou = decode(encoding, prompts)
        yield prompts, logits, iou
        if number < rounds:
            prompts = corrected(prompts, logits, wanted, generators, ignored)


def decoding(network: nn.Module, patch_size: Sequence[int]) -> Callable[..., tuple[Tensor, Tensor]]:
    """`network.decode`; in a large patch what gradients need is computed again, not kept."""
    if math.prod(patch_size) < RECOMPUTED_FROM:
        return network.decode
    return partial(checkpoint, network.decode, use_reentrant=False, preserve_rng_state=False)


def corrected(
    prompts: PromptBatch,
    logits: Tensor,
    targets: np.ndarray,
    generators: Sequence[np.random.Generator] | None = None,
    ignored: Tensor | None = None,
) -> PromptBatch:
    """The prompts with a correction of each answer.

    Args:
        prompts: n queries.
        logits: (n, z, y, x), the answers.
        targets: (n, z, y, x) bool.
        generators: of each query, draws among clicks and scribbles; without them every
            correction is a click in the largest error.
        ignored: (n, z, y, x) bool, voxels in which nothing is wrong; None for none.
    """
    points, kinds = [], []
    sources = [None] * len(targets) if generators is None else generators
    masks = (without_ignored(logits, ignored) > 0).cpu().numpy()
    for mask, target, rng in zip(masks, targets, sources, strict=True):
        if rng is not None and rng.random() < SCRIBBLES:
            found = error_scribble(mask, target, rng)
        else:
            anywhere = rng is not None and rng.random() < ANYWHERE
            found = error_click(mask, target, rng if anywhere else None)
        where, kind = (np.zeros((0, 3)), 0) if found is None else found
        points.append(np.reshape(where, (-1, 3)))
        kinds.append(np.full(len(points[-1]), kind))
    keeps = [rng is None or rng.random() >= AT_ONCE for rng in sources]
    return prompts.corrected(logits, points, kinds, keeps)
