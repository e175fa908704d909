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
from promptseg.inference.sliding_window import Blend, gaussian_weights, meets, window_starts
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
        self.flips = _flips(mirror_axes)
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
        device: str | torch.device = "cpu",
        step_size: float = 0.5,
        tta: bool = True,
    ) -> Predictor:
        """Load the networks of a trained model.

        Args:
            folder: `results/DatasetXXX_Name/TRAINER__PLANS__3d`.
            folds: `0`, ..., `all`; every fold with that checkpoint when not given.
            checkpoint: file name in each fold's folder.
            device: where the networks run.
            step_size: see `Predictor`.
            tta: mirror at test time on the axes that training mirrored.

        Raises:
            FileNotFoundError: if the folder or a checkpoint is missing, saying what is there.
            ValueError: if the folds were trained with different plans.
        """
        folder = Path(folder)
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
            label: _as_queries(prompts, list(self.plans.labels).index(label), image)
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
        image = self._current_image()
        located = self._locate(queries)
        regions = {
            label: [_region(query, image.shape) for query in asked]
            for label, asked in located.items()
        }
        every = [region for of_label in regions.values() for region in of_label]
        windows = self._windows(every)
        blends = {
            label: Blend(starts, self.plans.window, image.shape, self._weights)
            for label, of_label in regions.items()
            if len(starts := _meeting(windows, self.plans.window, of_label))
        }
        qualities: dict[str, list[float]] = {label: [] for label in queries}
        for start in windows:
            self._decode_window(start, located, regions, blends, qualities)

        label_map = LabelMap(image.raw_shape, max(self.plans.labels.values()))
        for label, blend in blends.items():
            logits, lower = resample_region(
                blend.result(), blend.lower, image.shape, image.raw_shape
            )
            label_map.add(self.plans.labels[label], logits, lower)
        results = {}
        for label, prompts in wanted.items():
            voxels = int(np.count_nonzero(label_map.labels == self.plans.labels[label]))
            iou = max(qualities[label], default=None)
            results[label] = LabelResult(
                prompts=prompts,
                predicted_iou=iou,
                voxels=voxels,
                flags=_flags(prompts, iou, voxels, image.raw_shape),
            )
        return Prediction(segmentation=label_map.labels, labels=results)

    def _windows(self, regions: Sequence[np.ndarray]) -> np.ndarray:
        """Starts of the windows that meet any region; one grid over all, shared by the labels."""
        if not regions:
            return np.zeros((0, 3), int)
        stacked = np.stack(regions)
        whole = np.stack([np.floor(stacked[:, 0].min(0)), np.ceil(stacked[:, 1].max(0))])
        shape, window = self._current_image().shape, self.plans.window
        starts = window_starts(shape, window, whole, self.step_size)
        return _meeting(starts, window, regions)

    def _locate(self, queries: Mapping[str, list[Query]]) -> dict[str, list[Query]]:
        """Give every query that knows no place a box, where the volume exceeds one window.

        Zoom-out: the whole volume, resized to one window, is asked for the label (and points);
        the box of the answer becomes the prompt of the zoom-in. A label that is not found drops
        out: its list is empty.
        """
        image = self._current_image()
        if all(n <= w for n, w in zip(image.shape, self.plans.window, strict=True)):
            return dict(queries)
        vague = {
            label: asked[0] for label, asked in queries.items() if asked and asked[0].box is None
        }
        if not vague:
            return dict(queries)
        factor = np.asarray(self.plans.window) / np.asarray(image.shape)
        scaled = [
            replace(query, points=(np.asarray(query.points).reshape(-1, 3) + 0.5) * factor - 0.5)
            for query in vague.values()
        ]
        logits, _ = self._decode("whole", self._zoomed_out, scaled)
        located = dict(queries)
        for (label, query), answer in zip(vague.items(), logits, strict=True):
            box = mask_box((answer > 0).cpu().numpy())
            located[label] = [] if box is None else [replace(query, box=box / factor)]
        return located

    def _zoomed_out(self) -> np.ndarray:
        return resample_image(self._current_image().preprocessed, self.plans.window)

    def _decode_window(
        self,
        start: np.ndarray,
        queries: Mapping[str, list[Query]],
        regions: Mapping[str, list[np.ndarray]],
        blends: Mapping[str, Blend],
        qualities: Mapping[str, list[float]],
    ) -> None:
        """Encode one window once, decode all queries that meet it, add them to their labels."""
        image, window = self._current_image(), np.asarray(self.plans.window)
        labels, moved = [], []
        for label, asked in queries.items():
            for query, region in zip(asked, regions[label], strict=True):
                if meets(start, window, region):
                    labels.append(label)
                    moved.append(_in_window(query, start, window))

        def cut() -> np.ndarray:
            return cut_window(image.preprocessed, image.shape, start, window)

        logits, iou = self._decode(tuple(start.tolist()), cut, moved)
        for label in dict.fromkeys(labels):
            mine = [i for i, name in enumerate(labels) if name == label]
            blends[label].add(logits[mine].amax(dim=0), start)  # objects of one label: any
            qualities[label] += iou[mine].tolist()

    def _decode(self, key: Any, cut: Any, queries: Sequence[Query]) -> tuple[Tensor, Tensor]:
        """Mean logits (n, z, y, x) and predicted IoU (n,) over networks and mirrorings."""
        logits_sum, iou_sum = 0.0, 0.0
        for index, network in enumerate(self.networks):
            for flip in self.flips:
                encoding = self._encoding((key, index, flip), network, cut, flip)
                flipped = [_flipped(query, flip, self.plans.window) for query in queries]
                prompts = batch_queries(flipped).to(self.device)
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


def _flips(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All subsets of the mirror axes, the empty one first."""
    subsets: list[tuple[int, ...]] = [()]
    for axis in axes:
        subsets += [(*subset, axis) for subset in subsets]
    return subsets


def _flipped(query: Query, axes: Sequence[int], window: Sequence[int]) -> Query:
    """A query about the mirrored window."""
    if not axes:
        return query
    axes, size = list(axes), np.asarray(window, float)
    box = None
    if query.box is not None:
        box = np.array(query.box, float)
        box[:, axes] = (size[axes] - box[:, axes])[::-1]
    points = np.array(query.points, float).reshape(-1, 3)
    points[:, axes] = size[axes] - 1 - points[:, axes]
    return replace(query, box=box, points=points)


def _as_queries(prompts: Prompts, label: int, image: _Image) -> list[Query]:
    """One query a box (with all points), or one without box, in preprocessed voxels."""
    scaled = prompts.scaled(image.raw_shape, image.shape)
    points = {"points": scaled.points, "point_labels": scaled.point_labels}
    if not len(scaled.boxes):
        return [Query(label=label, **points)]
    return [Query(label=label, box=box, **points) for box in scaled.boxes]


def _region(query: Query, shape: Sequence[int]) -> np.ndarray:
    """Where a query's answer is looked for: its box, or the whole volume."""
    if query.box is not None:
        return np.asarray(query.box, float)
    return np.array([(0, 0, 0), shape], float)


def _meeting(
    starts: np.ndarray, window: Sequence[int], regions: Sequence[np.ndarray]
) -> np.ndarray:
    """The starts of the windows that meet any of the regions."""
    chosen = [any(meets(start, window, region) for region in regions) for start in starts]
    return starts[np.array(chosen, bool)]


def _in_window(query: Query, start: np.ndarray, window: np.ndarray) -> Query:
    """A query in a window's own voxels; the box is clipped to it, points outside are left out."""
    box = None if query.box is None else np.clip(query.box - start, 0, window)
    points = np.asarray(query.points, float).reshape(-1, 3) - start
    inside = ((points > -0.5) & (points < window - 0.5)).all(axis=1)
    return replace(
        query, box=box, points=points[inside], point_labels=np.asarray(query.point_labels)[inside]
    )


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
