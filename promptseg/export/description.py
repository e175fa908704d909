"""The content of `export.json`: all that a program needs to use the ONNX files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import promptseg
from promptseg.labels import members
from promptseg.networks.prompt_encoder import NEW_OBJECT, NO_LABEL, NO_POINT
from promptseg.plans import Plans

EXPORT_FORMAT = 1

_NORMALIZATIONS = {
    "window": "lower and upper are intensities of the raw image",
    "percentiles": "lower and upper are percentiles of all voxels of the raw volume",
    "foreground": "lower and upper are percentiles of the raw volume's voxels above its mean",
}
_RESAMPLING = {
    "image": "to spacing_mm, same field of view, round(shape * spacing / spacing_mm) voxels; "
    "cubic (Keys, a = -0.5), widened by the factor where the image shrinks; linear along axes "
    "more than 3 times as coarse as the finest; rounded to whole numbers in [0, 255]",
    "logits": "linear, with the outer faces of both grids aligned (half-pixel centres)",
}
_OWN_VOXELS = {
    "image": "none: the image keeps its own voxels; its foreground, what is brighter than 0 after "
    "normalization, is resized to the patch by nearest neighbours, or a patch is cut from it",
    "logits": "back to what was resized, linear, half-pixel centres",
}
_MASK = "logits above mask_threshold; of several labels the largest logit wins"
_MASK_OF_REGIONS = (
    "logits above mask_threshold; each label's value is written in turn, over those before it; a "
    "region then has all voxels of its values"
)
_PROMPTS = {
    "frame": "voxels of the patch after preprocessing, z, y, x",
    "queries": "one mask each, all of the image whose encoding is given",
    "labels": {
        "meaning": "index of the label",
        "none": NO_LABEL,
        "an object that is none of the labels": NEW_OBJECT,
    },
    "boxes": {
        "meaning": "lower and upper corner, continuous, half-open: voxel i covers [i, i + 1)",
        "none": "has_box false; the corners are then ignored, 0 for example",
    },
    "points": {
        "meaning": "voxel indices; the centre of voxel i is i",
        "point_labels": {"foreground": 1, "background": 0, "padding": NO_POINT},
        "none": "(queries, 0, 3) and (queries, 0), or padding only",
    },
    "regions": {
        "meaning": "of 2D boxes and lassos, on their slices: 1 inside, -1 outside, 0 elsewhere",
        "none": "zeros",
    },
    "previous": {
        "meaning": "logits of a mask to correct, such as an earlier answer",
        "none": "has_previous false; zeros",
    },
}


def describe(
    plans: Plans, encoder_path: Path, decoder_path: Path, origin: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of `export.json`.

    Args:
        plans: plans of the model.
        encoder_path, decoder_path: the ONNX files.
        origin: further entries on where the network comes from.
    """
    resampling = _OWN_VOXELS if plans.keeps_spacing else _RESAMPLING
    return {
        "format_version": EXPORT_FORMAT,
        "promptseg_version": promptseg.__version__,
        "model": {"dataset": plans.dataset_name, "preset": plans.preset, **origin},
        "axes": ["z", "y", "x"],
        "preprocessing": _preprocessing(plans, resampling["image"]),
        "patch_size": plans.patch_size,
        "window": plans.patch_size,  # former name, for programs that read it
        "stride": plans.stride,
        "labels": [
            {"index": index, "name": name, "value": value, **_region(plans, name)}
            for index, (name, value) in enumerate(plans.written_values.items())
        ],
        "prompts": _PROMPTS,
        "encoder": {"file": encoder_path.name, **_signature(encoder_path)},
        "decoder": {"file": decoder_path.name, **_signature(decoder_path)},
        "postprocessing": {
            "mask_threshold": 0.0,
            "mask": _MASK_OF_REGIONS if plans.regions_class_order else _MASK,
            "predicted_iou": "also a logit; 1 / (1 + exp(-predicted_iou)) is the estimate",
            "resampling": resampling["logits"],
        },
        "auto_prompts": plans.auto_prompts,
    }


def _region(plans: Plans, label: str) -> dict[str, Any]:
    """All values of a label, where labels are regions."""
    return {"values": members(plans.labels[label])} if plans.regions_class_order else {}


def _preprocessing(plans: Plans, resampling: str) -> dict[str, Any]:
    kinds = sorted({normalization.kind for normalization in plans.normalizations})
    channels = zip(plans.channel_names, plans.modalities, plans.normalizations, strict=True)
    return {
        "order": ["turn", "normalize", "resample", "cut or pad (with 0) to the patch"],
        "orientation": plans.orientation,
        "turn": "swap and mirror axes so that the first, second and third axis of the image file, "
        "which are x, y, z of the array, lead to the orientation's directions (RAS: right, "
        "anterior, superior); stored: as the file is",
        "channels": [
            {"name": name, "modality": modality, "normalization": normalization.to_json()}
            for name, modality, normalization in channels
        ],
        "normalization": "clip to lower and upper, then linear to output_range; 0 where a "
        "channel is constant",
        "normalization_kinds": {kind: _NORMALIZATIONS[kind] for kind in kinds},
        "output_range": [0, 255],
        "spacing_mm": None if plans.keeps_spacing else plans.spacing,
        "resampling": resampling,
    }


def _signature(path: Path) -> dict[str, Any]:
    """Inputs and outputs of an ONNX file; a name in a shape is a free size."""
    import onnx

    graph = onnx.load(path).graph
    return {
        direction: [
            {
                "name": value.name,
                "type": onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                "shape": [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
            }
            for value in values
        ]
        for direction, values in (("inputs", graph.input), ("outputs", graph.output))
    }
