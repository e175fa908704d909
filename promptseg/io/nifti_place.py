"""Where a NIfTI header says that its voxels are: qform, sform and pixdim, which may differ."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.quaternions import quat2mat

from promptseg.io.geometry import Geometry

_MM = {1: 1e3, 2: 1.0, 3: 1e-3}  # metre, millimetre, micrometre, by `xyzt_units`
_ROUNDING = 1e-4  # between axes that count as perpendicular, as in ITK
_MOST_SHEAR = 0.05  # cosine between two axes, about 3 degrees; header rounding gives 1e-4 to 1e-2
_SAME = 0.01  # of a voxel, or of a length: what differs less is rounding
_TO_LPS = np.diag([-1.0, -1.0, 1.0])  # NIfTI's world is RAS
_PLACE = (  # header fields that say where the voxels are
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)

_log = logging.getLogger(__name__)


def copy_place(fields: Nifti1Header, header: Nifti1Header) -> None:
    """Make a header say the same, by both forms, their codes, pixdim and the units."""
    for name in _PLACE:
        header[name] = fields[name]
    header["pixdim"][:4] = fields["pixdim"][:4]
    header["xyzt_units"] = int(fields["xyzt_units"]) & 7


def geometry_of(path: Path, fields: Nifti1Header, shape: tuple[int, int, int]) -> Geometry:
    """The geometry of an array of a shape, zyx; what does not agree is warned of.

    Raises:
        ValueError: naming the file, if it has an sform alone whose axes are not perpendicular.
    """
    pixdim = fields["pixdim"][1:4].astype(np.float64)
    unusable = ~np.isfinite(pixdim) | (pixdim == 0)
    if unusable.any():
        found = [f"{value:g}" for value in pixdim]
        _log.warning("%s: voxels of %s (xyz): 0 and NaN are taken as 1", path, ", ".join(found))
    pixdim[unusable] = 1
    mm = _MM.get(int(fields["xyzt_units"]) & 7, 1.0)
    axes, origin = _axes_and_origin(path, fields, np.abs(pixdim))
    if int(fields["sform_code"]) > 0 and not unusable.any():
        _warn_of_other_scales(path, fields, np.abs(pixdim))
    direction = _TO_LPS @ axes * np.sign(pixdim)
    return Geometry(
        shape=shape,
        spacing=tuple(float(v) for v in np.abs(pixdim)[::-1] * mm),
        origin=tuple(float(v) for v in _TO_LPS @ origin * mm + 0.0),  # no -0
        direction=tuple(float(v) for v in direction.ravel() + 0.0),
    )


def _axes_and_origin(
    path: Path, fields: Nifti1Header, spacing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Unit axes as columns and the first voxel's centre, both RAS, from the qform or the sform.

    Source:
        itk::NiftiImageIO::SetImageIOOrientationFromNIfTI of ITK 5.4: the sform where its axes are
        perpendicular and it is alone, has the code 1 or agrees with the qform; else the qform.
        Differs for an sform alone that is not quite perpendicular: ITK refuses it, or takes the
        inverse of the nearest rotation when told to permit it.
    """
    has_qform, sform_code = int(fields["qform_code"]) > 0, int(fields["sform_code"])
    if not has_qform and sform_code <= 0:
        return _TO_LPS, np.zeros(3)
    sform = _sform(fields)
    if sform_code <= 0:
        return _qform(fields)
    with np.errstate(invalid="ignore", divide="ignore"):
        axes = sform[:, :3] / np.linalg.norm(sform[:, :3], axis=0)
    shear = np.abs(axes.T @ axes - np.eye(3)).max()
    if has_qform:
        q_axes, q_origin = _qform(fields)
        qform = np.column_stack([q_axes * spacing, q_origin])
        agree = sform_code == 1 or np.allclose(sform, qform, rtol=0, atol=_ROUNDING)
        takes_sform = shear <= _ROUNDING and agree
        if not np.allclose(sform, qform, rtol=0, atol=_SAME * spacing.min()):
            _log.warning(
                "%s: its qform and sform differ (origins %s and %s, xyz, mm); the %s is used",
                path,
                q_origin.round(2).tolist(),
                sform[:, 3].round(2).tolist(),
                "sform" if takes_sform else "qform",
            )
        return (axes, sform[:, 3]) if takes_sform else (q_axes, q_origin)
    if not shear <= _MOST_SHEAR:  # NaN too
        raise ValueError(
            f"{path}: its axes are not perpendicular (cosine {shear:.3g} between two of them, at "
            f"most {_MOST_SHEAR} is accepted); resample it onto a rectangular grid"
        )
    if shear > _ROUNDING:
        _log.warning(
            "%s: its axes are not quite perpendicular (cosine %.2g between two of them); "
            "the nearest perpendicular ones are used",
            path,
            shear,
        )
        left, _, right = np.linalg.svd(axes)
        axes = left @ right
    return axes, sform[:, 3]


def _warn_of_other_scales(path: Path, fields: Nifti1Header, spacing: np.ndarray) -> None:
    sform = _sform(fields)
    scales = np.linalg.norm(sform[:, :3], axis=0)
    if not np.allclose(scales, spacing, rtol=_SAME):
        _log.warning(
            "%s: voxels of %s by pixdim and of %s by the sform (xyz); the first is used",
            path,
            spacing.round(4).tolist(),
            scales.round(4).tolist(),
        )


def _sform(fields: Nifti1Header) -> np.ndarray:
    """(3, 4) steps of a voxel along each axis, and the first voxel's centre, RAS."""
    return np.stack([fields[f"srow_{axis}"] for axis in "xyz"]).astype(np.float64)


def _qform(fields: Nifti1Header) -> tuple[np.ndarray, np.ndarray]:
    """Axes and origin of the qform.

    Source:
        nifti_quatern_to_mat44 of nifti_clib, which ITK uses: the real part is 0 where rounding or
        a quaternion longer than 1 leaves nothing of it.
    """
    names = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
    values = np.array([fields[name] for name in names], dtype=np.float64)
    values[~np.isfinite(values)] = 0
    real = 1 - values[:3] @ values[:3]
    axes = quat2mat([math.sqrt(real) if real >= 1e-7 else 0.0, *values[:3]])
    if fields["pixdim"][0] < 0:
        axes[:, 2] *= -1
    return axes, values[3:]
