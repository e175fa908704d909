"""A trained model and images in, segmentations out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from promptseg.boxes import mask_box
from promptseg.experiment_planning.plans import Plans
from promptseg.inference.export import LabelMap, resample_region
from promptseg.inference.queries import as_queries, flipped, flips, in_window, region_of, widened
from promptseg.inference.sliding_window import Blend, gaussian_weights, windows_of_regions
from promptseg.networks.device import choose_device
from promptseg.networks.prompt_encoder import Query, batch_queries
from promptseg.networks.promptable import PromptableNetwork, build_network
from promptseg.preprocessing.preprocess import preprocess_image
from promptseg.preprocessing.resample import resample_image
from promptseg.prompts.automatic.propose import propose_boxes
from promptseg.prompts.prompts import Prompts, make_prompts
from promptseg.training.checkpoint import load_checkpoint
from promptseg.training.patches import cut_window
from promptseg.training.settings import TrainingSettings

log = logging.getLogger(__name__)

LOW_QUALITY = 0.5  # predicted IoU below which a prediction is flagged
WHOLE_VOLUME = 0.9  # share of the image above which a box says nothing
KEPT_VOXELS = 2**23  # of windows whose encodings are kept


@dataclass(frozen=True, kw_only=True)
class LabelResult:
    """What happened to one label of one image.

    Attributes:
        prompts: used, in raw voxels.
        predicted_iou: the network's own estimate, in [0, 1]; None when nothing was decoded.
        voxels: of the label in the result.
        flags: codes for what a person should look at.
    """

    prompts: Prompts
    predicted_iou: float | None
    voxels: int
    flags: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            **self.prompts.to_json(),
            "predicted_iou": self.predicted_iou,
            "voxels": self.voxels,
            "flags": list(self.flags),
        }


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A segmentation (z, y, x) on the raw grid, and what happened to each label asked for."""

    segmentation: np.ndarray
    labels: dict[str, LabelResult]


@dataclass(kw_only=True)
class _Image:
    """The image set: raw and preprocessed, and the encodings of its windows made so far."""

    raw: np.ndarray
    spacing: tuple[float, float, float]
    preprocessed: np.ndarray
    encodings: dict[tuple, Any] = field(default_factory=dict)

    @property
    def raw_shape(self) -> tuple[int, int, int]:
        return self.raw.shape[1:]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.preprocessed.shape[1:]


class Predictor:
    """Segments images with one or several networks of the same plans.

    Prompts are in voxels of the raw image, zyx. Answers to further prompts on the same image
    reuse the encodings of its windows.

    Example:
        >>> predictor = Predictor.from_model_folder("results/.../ViTTrainer__PromptSegPlans__3d")
        >>> predictor.set_image(image, spacing=(3.0, 0.9, 0.9))
        >>> prediction = predictor.predict(boxes={"liver": [[10, 80, 60], [42, 200, 190]]})
    """

    def __init__(
        self,
        networks: Sequence[PromptableNetwork],
        plans: Plans,
        *,
        device: str | torch.device = "cpu",
        step_size: float = 0.5,
        mirror_axes: Sequence[int] = (),
        most_encodings: int | None = None,
    ) -> None:
        """Use networks that are in memory; `from_model_folder` loads them.

        Args:
            networks: their logits are averaged.
            plans: what they were trained with.
            device: where they run.
            step_size: largest distance of neighbouring windows, as a share of the window.
            mirror_axes: axes 0, 1, 2 of z, y, x for test-time mirroring; logits are averaged
                over all combinations.
            most_encodings: window encodings kept for further prompts; by default as many as make
                up 8 million voxels, of the order of 1 GB.
        """
        if not 0 < step_size <= 1:
            raise ValueError(f"step_size must be in (0, 1], got {step_size}")
        self.networks = [
            n.to(device, memory_format=torch.channels_last_3d).eval() for n in networks
        ]
        self.plans = plans
        self.device = device
        self.step_size = step_size
        self.flips = flips(mirror_axes)
        self.most_encodings = most_encodings or max(1, KEPT_VOXELS // int(np.prod(plans.window)))
        self._weights = gaussian_weights(plans.window)
        self._image: _Image | None = None

    @classmethod
    def from_model_folder(
        cls,
        folder: Path | str,
        *,
        folds: Sequence[str] | None = None,
        checkpoint: str = "checkpoint_final.pth",
        device: str | None = None,
        step_size: float = 0.5,
        tta: bool = True,
    ) -> Predictor:
        """Load the networks of a trained model.

        Args:
            folder: `results/DatasetXXX_Name/TRAINER__PLANS__3d`.
            folds: `0`, ..., `all`; every fold with that checkpoint when not given.
            checkpoint: file name in each fold's folder.
            device: where the networks run; a GPU if there is one, when not given.
            step_size: see `Predictor`.
            tta: mirror at test time on the axes that training mirrored.

        Raises:
            FileNotFoundError: if the folder or a checkpoint is missing, saying what is there.
            ValueError: if the folds were trained with different plans.
        """
        folder, device = Path(folder), choose_device(device)
        paths = _checkpoints(folder, folds, checkpoint)
        contents = [load_checkpoint(path) for path in paths]
        first = contents[0]
        for path, content in zip(paths, contents, strict=True):
            if content["plans"] != first["plans"]:
                raise ValueError(f"{path} was trained with other plans than {paths[0]}")
        plans = Plans.from_json(first["plans"], paths[0])
        networks = []
        for content in contents:
            network = build_network(plans, content["encoder"])
            network.load_state_dict(content["network"])
            networks.append(network)
        settings = TrainingSettings.from_json(first["settings"])
        names = ", ".join(path.parent.name for path in paths)
        log.info("model %s, %s, %s, on %s", folder.name, names, checkpoint, device)
        return cls(
            networks,
            plans,
            device=device,
            step_size=step_size,
            mirror_axes=settings.mirror_axes if tta else (),
        )

    def set_image(self, image: np.ndarray, spacing: Sequence[float]) -> None:
        """Take the image that the next prompts are about.

        Args:
            image: (z, y, x) or (c, z, y, x) raw intensities.
            spacing: mm, zyx.

        Raises:
            ValueError: for a wrong number of channels or axes, or values that are not finite; no
                image is set then.
        """
        self._image = None
        image = np.asarray(image)
        image = image[None] if image.ndim == 3 else image
        channels = len(self.plans.channel_names)
        if image.ndim != 4 or image.shape[0] != channels or 0 in image.shape:
            raise ValueError(
                f"expected an image of {channels} channel(s) "
                f"({', '.join(self.plans.channel_names)}), shape (c, z, y, x), found {image.shape}"
            )
        if np.issubdtype(image.dtype, np.floating) and not np.isfinite(image).all():
            bad = int((~np.isfinite(image)).sum())
            raise ValueError(f"{bad} of {image.size} voxels are NaN or infinite")
        preprocessed = preprocess_image(
            image,
            spacing,
            normalizations=self.plans.normalizations,
            target_spacing=self.plans.spacing,
        )
        self._image = _Image(raw=image, spacing=tuple(spacing), preprocessed=preprocessed)

    def predict(
        self,
        *,
        boxes: Mapping[str, Any] | None = None,
        points: Mapping[str, Any] | None = None,
        point_labels: Mapping[str, Sequence[int]] | None = None,
        labels: Sequence[str] | None = None,
        auto_prompt: str | None = None,
    ) -> Prediction:
        """Segment labels of the image that was set.

        With `auto_prompt` boxes are proposed for the labels that have no prompt of their own.
        Without any prompt a label is asked for by its name alone.

        Args:
            boxes: by label, (2, 3) or (n, 2, 3) half-open boxes in raw voxels, zyx; several are
                several objects of the label.
            points: by label, (k, 3) voxel indices in raw voxels, zyx.
            point_labels: by label, (k,) 1 foreground, 0 background; foreground when not given.
            labels: which to segment; by default those with prompts, or all when there are none
                or `auto_prompt` is set.
            auto_prompt: `plans` follows the plans' choice for each label, a strategy's name
                forces it.

        Raises:
            RuntimeError: if no image is set.
            ValueError: for unknown labels or wrong prompts.
        """
        image = self._current_image()
        boxes, points, point_labels = boxes or {}, points or {}, point_labels or {}
        given = {
            label: make_prompts(
                boxes=boxes.get(label),
                points=points.get(label),
                point_labels=point_labels.get(label),
                shape=image.raw_shape,
                where=f"label {label!r}",
            )
            for label in {**boxes, **points, **point_labels}
        }
        if labels is None:
            labels = list(given) if given and not auto_prompt else list(self.plans.labels)
        return self.predict_prompts(given, labels=labels, auto_prompt=auto_prompt)

    def predict_prompts(
        self,
        prompts: Mapping[str, Prompts],
        *,
        labels: Sequence[str],
        auto_prompt: str | None = None,
    ) -> Prediction:
        """`predict` for prompts that are checked already; see there."""
        image = self._current_image()
        if unknown := sorted((set(prompts) | set(labels)) - set(self.plans.labels)):
            known = ", ".join(self.plans.labels)
            raise ValueError(f"unknown label(s) {', '.join(unknown)}; the model knows {known}")
        if unused := sorted(set(prompts) - set(labels)):
            raise ValueError(f"prompts for {', '.join(unused)}, which is not among `labels`")
        nothing = make_prompts(shape=image.raw_shape, source="label name")
        wanted = {label: prompts.get(label, nothing) for label in labels}
        if auto_prompt:
            unprompted = [label for label, p in wanted.items() if p.is_empty]
            wanted.update(self._propose(unprompted, auto_prompt))
        queries = {
            label: as_queries(
                prompts, list(self.plans.labels).index(label), image.raw_shape, image.shape
            )
            for label, prompts in wanted.items()
        }
        return self._segment(wanted, queries)

    def _current_image(self) -> _Image:
        if self._image is None:
            raise RuntimeError("no image is set; call set_image first")
        return self._image

    def _propose(self, labels: Sequence[str], strategy: str) -> dict[str, Prompts]:
        """Automatic prompts in raw voxels; without boxes, and why, where there is no proposal."""
        image = self._current_image()
        proposals = propose_boxes(
            image.raw,
            image.spacing,
            auto_prompts={label: self._auto_prompt_plans(label) for label in labels},
            normalizations=self.plans.normalizations,
            strategy=None if strategy == "plans" else strategy,
        )
        found = {}
        for label, proposal in proposals.items():
            source = strategy
            if strategy == "plans":
                source = self._auto_prompt_plans(label)["strategy"]
            found[label] = make_prompts(
                boxes=np.asarray(proposal.boxes, float),
                shape=image.raw_shape,
                where=f"{source} for {label!r}",
                source=source if len(proposal.boxes) else "label name",
                score=proposal.score,
                reason=proposal.reason,
            )
        return found

    def _auto_prompt_plans(self, label: str) -> Mapping[str, Any]:
        return self.plans.auto_prompts.get(label, {"strategy": "none"})

    @torch.inference_mode()
    def _segment(
        self, wanted: Mapping[str, Prompts], queries: Mapping[str, list[Query]]
    ) -> Prediction:
        """Decode window by window; a query leaves for the label map with its last window."""
        image, window = self._current_image(), self.plans.window
        asked, regions = self._locate(queries)
        starts = windows_of_regions(image.shape, window, regions, self.step_size)
        jobs: dict[tuple, list[int]] = {}
        for index, of_query in enumerate(starts):
            for start in of_query.tolist():
                jobs.setdefault(tuple(start), []).append(index)
        left = [len(of_query) for of_query in starts]
        blends: dict[int, Blend] = {}
        qualities: list[list[float]] = [[] for _ in asked]
        label_map = LabelMap(image.raw_shape, max(self.plans.labels.values()))
        for start in sorted(jobs):
            here = jobs[start]
            logits, iou = self._decode_window(start, [asked[i][1] for i in here])
            for index, answer, quality in zip(here, logits, iou.tolist(), strict=True):
                if index not in blends:
                    blends[index] = Blend(starts[index], window, image.shape, self._weights)
                blends[index].add(answer, np.array(start))
                qualities[index].append(quality)
                left[index] -= 1
                if not left[index]:
                    blend, value = blends.pop(index), self.plans.labels[asked[index][0]]
                    logits_raw, lower = resample_region(
                        blend.result(), blend.lower, image.shape, image.raw_shape
                    )
                    label_map.add(value, logits_raw, lower)

        results = {}
        for label, prompts in wanted.items():
            voxels = int(np.count_nonzero(label_map.labels == self.plans.labels[label]))
            # the best window sees most of an object; the worst object needs a person's look
            objects = [
                max(q) for (name, _), q in zip(asked, qualities, strict=True) if name == label
            ]
            iou = min(objects, default=None)
            results[label] = LabelResult(
                prompts=prompts,
                predicted_iou=iou,
                voxels=voxels,
                flags=_flags(prompts, iou, voxels, image.raw_shape),
            )
        return Prediction(segmentation=label_map.labels, labels=results)

    def _decode_window(self, start: tuple, queries: Sequence[Query]) -> tuple[Tensor, Tensor]:
        """Logits (n, z, y, x) and predicted IoU (n,) of all queries that use one window."""
        image, window = self._current_image(), np.asarray(self.plans.window)
        corner = np.array(start)
        moved = [in_window(query, corner, window) for query in queries]
        return self._decode(
            start, lambda: cut_window(image.preprocessed, image.shape, corner, window), moved
        )

    def _locate(
        self, queries: Mapping[str, list[Query]]
    ) -> tuple[list[tuple[str, Query]], list[np.ndarray]]:
        """Every query with its label, and the region of the volume where it is looked for.

        Zoom-out: where the volume exceeds one window, a query that knows no place is asked of the
        whole volume, resized to one window; the box of the answer becomes its prompt, and the
        region is a voxel of that coarse answer wider. A label that is not found drops out.
        """
        image, window = self._current_image(), np.asarray(self.plans.window)
        asked = [(label, query) for label, of_label in queries.items() for query in of_label]
        if (np.asarray(image.shape) <= window).all():
            return asked, [region_of(query, image.shape, window) for _, query in asked]
        coarse_voxel = np.asarray(image.shape) / window
        vague = [index for index, (_, query) in enumerate(asked) if query.box is None]
        boxes = self._coarse_boxes([asked[index][1] for index in vague], coarse_voxel)
        found = dict(zip(vague, boxes, strict=True))
        located, regions = [], []
        for index, (label, query) in enumerate(asked):
            if index not in found:
                located.append((label, query))
                regions.append(region_of(query, image.shape, window))
            elif (box := found[index]) is not None:
                located.append((label, replace(query, box=box)))
                margin = np.maximum(0.1 * (box[1] - box[0]), coarse_voxel)
                regions.append(widened(box, margin, image.shape))
        return located, regions

    def _coarse_boxes(
        self, queries: Sequence[Query], coarse_voxel: np.ndarray
    ) -> list[np.ndarray | None]:
        """Boxes, in preprocessed voxels, of what queries find in the whole volume at once."""
        if not queries:
            return []
        scaled = []
        for query in queries:
            points = np.asarray(query.points, float).reshape(-1, 3)
            scaled.append(replace(query, points=(points + 0.5) / coarse_voxel - 0.5))
        logits, _ = self._decode("whole", self._zoomed_out, scaled)
        boxes = [mask_box((answer > 0).cpu().numpy()) for answer in logits]
        return [None if box is None else box * coarse_voxel for box in boxes]

    def _zoomed_out(self) -> np.ndarray:
        return resample_image(self._current_image().preprocessed, self.plans.window)

    def _decode(self, key: Any, cut: Any, queries: Sequence[Query]) -> tuple[Tensor, Tensor]:
        """Mean logits (n, z, y, x) and predicted IoU (n,) over networks and mirrorings."""
        logits_sum, iou_sum = 0.0, 0.0
        for index, network in enumerate(self.networks):
            for flip in self.flips:
                encoding = self._encoding((key, index, flip), network, cut, flip)
                mirrored = [flipped(query, flip, self.plans.window) for query in queries]
                prompts = batch_queries(mirrored).to(self.device)
                logits, iou = network.decode(encoding, prompts)
                logits_sum = logits_sum + logits.flip([axis + 1 for axis in flip])
                iou_sum = iou_sum + iou.sigmoid()
        count = len(self.networks) * len(self.flips)
        return logits_sum / count, iou_sum / count

    def _encoding(self, key: tuple, network: PromptableNetwork, cut: Any, flip: tuple) -> Any:
        encodings = self._current_image().encodings
        if key not in encodings:
            if len(encodings) >= self.most_encodings:
                encodings.pop(next(iter(encodings)))
            window = torch.from_numpy(np.ascontiguousarray(cut()))[None].to(self.device)
            window = window.flip([axis + 2 for axis in flip]).float()
            encodings[key] = network.encode(window.contiguous(memory_format=torch.channels_last_3d))
        return encodings[key]


def _checkpoints(folder: Path, folds: Sequence[str] | None, checkpoint: str) -> list[Path]:
    """Checkpoint files of a model's folds, or a FileNotFoundError that says what is there."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such model folder")
    there = sorted(p.parent.name for p in folder.glob(f"fold_*/{checkpoint}"))
    wanted = there if folds is None else [f"fold_{fold}" for fold in folds]
    paths = [folder / name / checkpoint for name in wanted]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise FileNotFoundError(
            f"no {', '.join(missing)}; folds with a {checkpoint}: {', '.join(there) or 'none'}"
        )
    if not paths:
        raise FileNotFoundError(
            f"{folder} has no fold with a {checkpoint}; was its training finished? Other "
            f"checkpoints can be named with -chk"
        )
    return paths


def _flags(
    prompts: Prompts, iou: float | None, voxels: int, shape: Sequence[int]
) -> tuple[str, ...]:
    flags = []
    if prompts.reason != "ok":
        flags.append(prompts.reason)
    if not len(prompts.boxes):
        flags.append("no_box")
    elif any(np.prod(b[1] - b[0]) > WHOLE_VOLUME * np.prod(shape) for b in prompts.boxes):
        flags.append("box_is_whole_volume")
    if iou is not None and iou < LOW_QUALITY:
        flags.append("low_predicted_quality")
    if not voxels:
        flags.append("empty")
    return tuple(dict.fromkeys(flags))
