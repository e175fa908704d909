"""A PACS export to one file for each volume in it."""

from __future__ import annotations

import csv
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest

from promptseg.commands import convert
from promptseg.conversion import dicom_tree
from promptseg.conversion.dicom_tree import convert_dicom_tree, find_series
from promptseg.io.images import read_image
from tests.io.test_dicom import write_series
from tests.real_data import require_real_data

MIN = ["--min-slices", "5", "-np", "0"]


def volume(seed: int, slices: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).integers(-500, 900, (slices, 6, 5)).astype(np.int16)


def add_series(root: Path, seed: int, *, slices: int = 7, **tags) -> np.ndarray:
    """A series of a patient, its files without an ending and in several folders."""
    array, uid = volume(seed, slices), f"1.2.840.7.{seed}"
    scratch = root / "scratch"
    write_series(scratch, array, uid=uid)
    for number, file in enumerate(sorted(scratch.iterdir())):
        content = pydicom.dcmread(file)
        for tag, value in tags.items():
            setattr(content, tag, value)
        folder = root / f"PAT{tags['PatientID']}" / f"IMG{number % 2}"
        target = folder / f"I{seed}{number:04d}"
        target.parent.mkdir(parents=True, exist_ok=True)
        content.save_as(target)
    shutil.rmtree(scratch)
    return array


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """Two patients: a CT, two MR series of one number, a localizer, a short one and a report."""
    root = tmp_path_factory.mktemp("export")
    (root / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (root / "README.TXT").write_text("made by a PACS")
    (root / "VIEWER").mkdir()
    (root / "VIEWER" / "run.exe").write_bytes(b"MZ")
    mr = {"PatientID": "B 2/x", "Modality": "MR", "SeriesNumber": "3"}
    made = {
        "A1_s5": add_series(root, 1, PatientID="A1", SeriesNumber="5", SeriesDescription="thin"),
        "B-2-x_s3": add_series(root, 2, **mr, StudyDate="20200101"),
        "B-2-x_s3_2": add_series(root, 3, **mr, StudyDate="20210101"),
    }
    add_series(root, 4, PatientID="A1", SeriesNumber="1", slices=3)
    add_series(root, 5, PatientID="A1", SeriesNumber="2", ImageType=["ORIGINAL", "", "LOCALIZER"])
    add_series(root, 6, PatientID="A1", SeriesNumber="9", Modality="SR")
    return root, made


def test_every_volume_of_an_export_is_written_and_the_rest_told(export, tmp_path, capsys, caplog):
    root, made = export
    caplog.set_level("INFO", logger="promptseg")
    code = convert.main(["-i", str(root), "--to", "images", "-o", str(tmp_path / "o"), *MIN])
    assert code == 0 and "3 of 6 series are volumes" in capsys.readouterr().out
    files = sorted(path.name for path in (tmp_path / "o").glob("*.nii.gz"))
    assert files == sorted(f"{name}_0000.nii.gz" for name in made)
    for name, array in made.items():
        image, geometry = read_image(tmp_path / "o" / f"{name}_0000.nii.gz")
        np.testing.assert_array_equal(image[0], array)
        np.testing.assert_allclose(geometry.spacing, (2.5, 0.8, 0.7))
        np.testing.assert_allclose(geometry.origin, (-12.5, 30.25, 7.0))
    with open(tmp_path / "o" / "series.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(made)
    assert [row["series_instance_uid"] for row in rows] == [f"1.2.840.7.{n}" for n in (1, 2, 3)]
    table = {line.split()[0]: line for line in caplog.messages if line.startswith(("A1", "B-2"))}
    assert table["A1_s5"].endswith("chosen") and "thin" in table["A1_s5"]
    assert table["A1_s1"].endswith("fewer than 5 slices")
    assert table["A1_s2"].endswith("a localizer, to plan a scan by")
    assert table["A1_s9"].endswith("not CT or MR or PT or US")


def test_what_is_written_is_chosen_by_modality_and_size_and_may_be_looked_at_first(
    export, tmp_path, capsys
):
    root, _ = export
    output = tmp_path / "o"
    flags = ["-i", str(root), "--to", "images", "-o", str(output), *MIN]
    assert convert.main([*flags, "--dry-run"]) == 0
    assert not output.exists() and "written" not in capsys.readouterr().out
    assert convert.main([*flags, "--modality", "CT", "--min-slices", "3"]) == 0
    names = {path.name for path in output.glob("*.nii.gz")}
    assert names == {"A1_s1_0000.nii.gz", "A1_s5_0000.nii.gz"}
    assert convert.main([*flags, "--modality", "CT"]) == 1
    assert "already contains A1_s5_0000.nii.gz" in capsys.readouterr().err
    assert convert.main([*flags, "--modality", "CT", "--overwrite"]) == 0
    with open(output / "series.csv", encoding="utf-8") as file:  # that of the first export, too
        assert sorted(row["name"] for row in csv.DictReader(file)) == ["A1_s1", "A1_s5"]
    assert convert.main([*flags, "--modality", "XR"]) == 1
    assert "modality must be one of CT, MRI, PET, US" in capsys.readouterr().err
    assert convert.main([*flags, "--modality", "PET"]) == 1
    assert "none of 6 series can be converted" in capsys.readouterr().err


def test_a_zip_file_is_read_whatever_its_files_are_called(export, tmp_path):
    root, made = export
    archive = tmp_path / "export.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for number, path in enumerate(sorted(p for p in root.rglob("*") if p.is_file())):
            file.writestr(f"../../{number}" if number % 2 else f"/abs/{number}", path.read_bytes())
    result = convert_dicom_tree(archive, tmp_path / "inside" / "o", min_slices=5)
    assert result.done == tuple(sorted(made))
    assert {path.name for path in tmp_path.iterdir()} == {"export.zip", "inside"}


def test_zip_files_that_cannot_be_read_are_named(export, tmp_path, monkeypatch):
    root, _ = export
    path = tmp_path / "export.zip"
    path.write_bytes(b"PK\3\4 and nothing more")
    with pytest.raises(ValueError, match="export.zip cannot be read as a zip file"):
        convert_dicom_tree(path, tmp_path / "o")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a", b"0" * 1000)
    with pytest.raises(FileNotFoundError, match="export.zip: expected DICOM files, found none"):
        convert_dicom_tree(path, tmp_path / "o")
    monkeypatch.setattr(dicom_tree, "MOST_BYTES", 999)
    with pytest.raises(ValueError, match="would unpack to"):
        convert_dicom_tree(path, tmp_path / "o")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        convert_dicom_tree(tmp_path / "nowhere", tmp_path / "o")


def test_a_damaged_series_does_not_stop_the_others(export, tmp_path):
    source = tmp_path / "export"
    shutil.copytree(export[0], source)
    damaged = sorted(source.rglob("I1*"))[4]
    damaged.write_bytes(damaged.read_bytes()[:-30])
    result = convert_dicom_tree(source, tmp_path / "o", modality="CT", min_slices=3)
    assert result.done == ("A1_s1",) and set(result.failed) == {"A1_s5"}
    assert "1.2.840.7.1" in result.failed["A1_s5"]


def test_the_series_that_dcmqi_and_pydicom_ship_are_found(tmp_path):
    found = find_series(require_real_data("odd"))
    assert len(found) >= 5 and len({series.uid for series in found}) == len(found)
    source = require_real_data("odd") / "dcmqi_DICOMSEG_BSD3" / "24x38x3"
    result = convert_dicom_tree(source, tmp_path, min_slices=3)
    expected, geometry = read_image(source / "image")
    assert len(result.done) == 2  # the classic series, and the enhanced file made of it
    for name in result.done:
        image, grid = read_image(tmp_path / f"{name}_0000.nii.gz")
        np.testing.assert_array_equal(image, expected)
        assert geometry.difference_from(grid) is None
