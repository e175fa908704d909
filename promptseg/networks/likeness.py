"""What clicks say about voxels that are near and look alike: a Gaussian process on the logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptseg.networks.grid import Grid, elements_at, resized
from promptseg.networks.prompt_encoder import NO_POINT, PromptBatch

ITERATIONS = 12  # of conjugate gradients, which solve as many clicks exactly
SOLVED = 1e-11  # squared remainder, as a part of the first, that ends them


class Likeness(nn.Module):
    """What clicked voxels lack, carried to voxels that are near and look alike.

    Where a network errs it errs alike on voxels that look alike. What has to be added to the logits
    is taken as a Gaussian process, whose kernel is a bump of the distance, times one of the
    difference of features, times one of that of image values. What clicked voxels lack are noisy
    observations of it; one that lacks nothing holds what is like it. The widths, the noise and a
    factor are learned; the features are learned by what else needs them. (Their gradients from
    here, standardized where they hardly vary yet, would be rounding.)

    Source:
        Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, equation 2.23: the
        mean of the process given its observations. Differs: it is multiplied by a learned factor.

    Args:
        channels: of the image.
    """

    # what is learned begins with these: voxels of the shortest side, standard deviations of a
    # channel of the features, variance beside the kernel's 1, the factor, and standard deviations
    # of a channel of the image
    WIDTH, DIFFERENCE, NOISE, FACTOR, CONTRAST = 16.0, 1.4, 0.3, 1.0, 1.0

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        start = torch.tensor([self.WIDTH, self.DIFFERENCE, self.NOISE, self.FACTOR, self.CONTRAST])
        self.logarithms = nn.Parameter(start.log())

    def forward(
        self, compared: Tensor, prompts: PromptBatch, lacking: Tensor, here: Grid
    ) -> Tensor:
        """What to add to the logits of n queries in a part of the patch.

        Args:
            compared: (n or 1, c, z', y', x') over the patch, the last `self.channels` of the image.
            prompts: the queries, whose points are used.
            lacking: (n, k) what to add to the logits at each point.
            here: the part, in elements of `compared`.

        Returns:
            (n, 1, z, y, x) on the voxels of the part.
        """
        with torch.autocast(lacking.device.type, enabled=False):
            wider = here.widened(compared.shape[2:])  # for the interpolation at the border
            field = self.field(compared.float(), prompts, lacking.float(), wider)
        sides = zip(here.first, wider.first, here.shape, here.stride, strict=True)
        cut = [slice((a - b) * step, (a - b + n) * step) for a, b, n, step in sides]
        return resized(field[:, None], wider.at((1, 1, 1)).shape)[(..., *cut)]

    def field(self, compared: Tensor, prompts: PromptBatch, lacking: Tensor, here: Grid) -> Tensor:
        """(n, z', y', x') of `forward` on the elements of a part."""
        width, difference, noise, factor, contrast = self.logarithms.exp()
        count = compared.shape[1] - self.channels
        groups = ((difference, count), (contrast, self.channels))
        scale = torch.cat([(size * n**0.5).expand(n) for size, n in groups])[:, None]
        points, given = prompts.points, (prompts.point_labels != NO_POINT).float()
        element = elements_at(points, compared.shape[2:], here.stride)[:, None]  # (n, 1, k)
        flat = compared.flatten(2).expand(len(points), -1, -1)
        clicked = flat.gather(2, element.expand(-1, flat.shape[1], -1)) / scale
        clicked = clicked.transpose(1, 2)
        places = (points + 0.5) * torch.tensor(here.spacing, device=points.device) / width
        apart = (places[:, :, None] - places[:, None]).pow(2).sum(-1)
        unlike = (clicked[:, :, None] - clicked[:, None]).pow(2).sum(-1)
        kernel = torch.exp(-0.5 * (apart + unlike)) * given[:, :, None] * given[:, None]
        weights = solved(kernel, noise, lacking * given)
        around = compared[(..., *here.slices)].flatten(2) / scale
        unlike = around.pow(2).sum(1)[:, None] + clicked.pow(2).sum(-1)[..., None]
        unlike = unlike - 2 * (clicked @ around)
        apart = _squared_distances(places, here, width).flatten(2)
        reached = torch.exp(-0.5 * (apart + unlike.clamp(min=0)))
        field = (weights[:, None] @ reached)[:, 0]
        return factor * field.view(-1, *here.shape)


def _squared_distances(places: Tensor, grid: Grid, width: Tensor) -> Tensor:
    """(n, k, z', y', x') of elements from (n, k, 3) places, both in units of a width."""
    z, y, x = (
        (
            grid.centres(axis, places.device) * grid.spacing[axis] / width - places[..., axis, None]
        ).square()
        for axis in range(3)
    )
    return z[..., :, None, None] + y[..., None, :, None] + x[..., None, None, :]


def solved(kernel: Tensor, noise: Tensor, wanted: Tensor) -> Tensor:
    """The solution of `(kernel + noise) x = wanted` by conjugate gradients.

    Ours rather than `torch.linalg.solve`, which ONNX has no operator for.

    Args:
        kernel: (n, k, k), symmetric and without negative eigenvalues.
        noise: what is added to the diagonal.
        wanted: (n, k).

    Returns:
        (n, k); exact for up to `ITERATIONS` clicks.
    """
    x, rest, direction = torch.zeros_like(wanted), wanted, wanted
    size = rest.pow(2).sum(1, keepdim=True)
    solved_at = SOLVED * size.detach()
    for _ in range(ITERATIONS):
        goes_on = size > solved_at  # what follows would be rounding, with gradients out of bounds
        along = (kernel @ direction[..., None])[..., 0] + noise * direction
        curvature = torch.where(goes_on, (direction * along).sum(1, keepdim=True), 1.0)
        step = torch.where(goes_on, size / curvature, 0.0)
        x, rest = x + step * direction, rest - step * along
        before, size = torch.where(goes_on, size, 1.0), rest.pow(2).sum(1, keepdim=True)
        direction = rest + torch.where(goes_on, size / before, 0.0) * direction
    return x


def cosines(features: Tensor, clicks: Tensor) -> Tensor:
    """(n, 2, ...) cosines between the features of each element and those at the clicks.

    Args:
        features: (n, c, z', y', x').
        clicks: (n, 2, z', y', x') foreground and background; without clicks the answer is 0.
    """
    directions = F.normalize(features.float(), dim=1)
    weights = clicks.float().flatten(2)
    clicked = torch.einsum("ncv,nkv->nkc", directions.flatten(2), weights)
    clicked = F.normalize(clicked, dim=2, eps=1e-3)
    return torch.einsum("nczyx,nkc->nkzyx", directions, clicked)
