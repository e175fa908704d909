"""Segmentations to DICOM SEG or RTSTRUCT objects that reference the series they were made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import promptseg
from promptseg.conversion.result import Conversion, convert_cases, refuse_existing
from promptseg.conversion.rtstruct import make_rtstruct
from promptseg.evaluation.inputs import label_files, names_by_value, read_labels
from promptseg.files import replacing
from promptseg.io.dicom import in_order, is_dicom_folder, series_in
from promptseg.io.images import Geometry, read_image, read_segmentation
from promptseg.labels import Values, all_members, label_mask, members

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom import Dataset


def convert_predictions_to_dicom(
    predictions: Path | str,
    output: Path | str,
    dicom: Path | str,
    *,
    model: Path | str | None = None,
    rtstruct: bool = False,
    overwrite: bool = False,
    processes: int = 0,
) -> Conversion:
    """Write each segmentation of a folder as CASE.dcm, one segment or structure per label in it.

    Args:
        predictions: folder of CASE.nii.gz (or another format), and of their dataset.json.
        output: folder to write to; other files in it stay.
        dicom: folder with one subfolder named CASE per case that contains its DICOM series; if
            there is only one case, this may be the folder of the series itself.
        model: folder whose dataset.json names the labels; `predictions` by default.
        rtstruct: write RTSTRUCT in place of SEG.
        overwrite: whether existing files of the same names are replaced.
        processes: number of worker processes; 0 converts in this process.

    Raises:
        ImportError: for SEG if highdicom is not installed.
        FileNotFoundError: if there is no segmentation or no dataset.json.
        FileExistsError: if a file already exists and `overwrite` is not set.
        ValueError: if no file can be converted, listing the problem of each.
    """
    try:
        if not rtstruct:
            import highdicom  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"DICOM SEG needs highdicom ({error}): pip install promptseg[dicom]"
        ) from error
    files, several = label_files(Path(predictions), "predictions")
    names, _ = names_by_value(read_labels(Path(model or predictions) / "dataset.json"))
    targets = {case_id: Path(output) / f"{case_id}.dcm" for case_id in files}
    refuse_existing(targets, overwrite)
    dicom = Path(dicom)
    one = len(files) == 1 and is_dicom_folder(dicom)
    cases = {
        case_id: (path, dicom if one else dicom / case_id, targets[case_id])
        for case_id, path in files.items()
    }
    done, failed = convert_cases(_convert_case, cases, names, rtstruct, processes=processes)
    return Conversion(output=Path(output), done=tuple(done), failed={**failed, **several})


def make_dicom_seg(
    segmentation: np.ndarray, geometry: Geometry, series: Path | str, names: Mapping[Values, str]
) -> Segmentation:
    """A DICOM SEG object of a segmentation on the grid of a DICOM series.

    Args:
        segmentation: (z, y, x) labels; 0 is background.
        geometry: spacing, origin and direction of the segmentation.
        series: folder that contains the DICOM series it was made from and nothing else.
        names: name of each label value, or region; segments of regions overlap.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if the grids differ, a value has no name, or the segmentation is empty, which
            DICOM SEG cannot represent.
    """
    import highdicom as hd

    sources = _sources(segmentation, geometry, series, names)
    there = _those_in(segmentation, names)
    if all(isinstance(values, int) for values in there):
        pixels = np.searchsorted([0, *there], segmentation).astype(np.uint16)
    else:  # (z, y, x, segments)
        pixels = np.stack([label_mask(segmentation, values) for values in there], axis=-1)
        pixels = pixels.astype(np.uint8)
    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(n, name) for n, name in enumerate(there.values(), 1)],
        series_instance_uid=hd.UID(),
        series_number=int(sources[0].get("SeriesNumber") or 0) + 1000,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="promptseg",
        manufacturer_model_name="promptseg",
        software_versions=promptseg.__version__,
        device_serial_number="0",
        series_description="promptseg segmentation",
    )


def _sources(
    segmentation: np.ndarray, geometry: Geometry, series: Path | str, names: Mapping[Values, str]
) -> list[Dataset]:
    """The images of a series in the order of slices, after checks that it fits a segmentation."""
    import pydicom

    difference = read_image(series)[1].difference_from(geometry)
    if difference:
        raise ValueError(
            f"{series} is not on the grid of the segmentation: {difference}; give the series that "
            f"was segmented"
        )
    values = [value for value in np.unique(segmentation).tolist() if value != 0]
    if not values:
        raise ValueError("the segmentation is empty; DICOM SEG and RTSTRUCT cannot represent that")
    known = all_members(names)
    if unknown := [value for value in values if value not in known]:
        raise ValueError(f"dataset.json has no name for label value(s) {unknown}: {dict(names)}")
    [files] = series_in(series).values()
    return [pydicom.dcmread(file) for file in in_order(files)]


def _those_in(segmentation: np.ndarray, names: Mapping[Values, str]) -> dict[Values, str]:
    """Those of the labels and regions that occur in a segmentation."""
    values = np.unique(segmentation)
    return {v: name for v, name in names.items() if np.isin(members(v), values).any()}


def _segment(number: int, name: str) -> SegmentDescription:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],  # DICOM's limit for a long string
        # The names of a dataset's labels have no code in a terminology; see decisions/0008.
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.AnatomicalStructure,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="promptseg",
            version=promptseg.__version__,
            family=codes.DCM.ArtificialIntelligence,
        ),
    )


def _convert_case(
    case_id: str, paths: tuple[Path, Path, Path], names: Mapping[Values, str], rtstruct: bool
) -> None:
    source, series, target = paths
    if not series.is_dir():
        raise FileNotFoundError(
            f"{series}: no such folder; it must contain the series of {case_id}"
        )
    segmentation, geometry = read_segmentation(source)
    try:
        if rtstruct:
            sources = _sources(segmentation, geometry, series, names)
            there = _those_in(segmentation, names)
            made = make_rtstruct(segmentation, geometry, sources, there)
        else:
            made = make_dicom_seg(segmentation, geometry, series, names)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    except (AttributeError, KeyError) as error:  # of highdicom, for headers that lack something
        raise ValueError(f"{source}: the series in {series} lacks an entry: {error}") from error
    with replacing(target) as temporary:
        made.save_as(temporary, enforce_file_format=True)
