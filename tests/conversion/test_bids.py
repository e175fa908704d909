from __future__ import annotations

import nibabel
import numpy as np
import pytest

from promptseg.commands.convert import main
from promptseg.conversion.bids import convert_bids, find_scans, is_bids
from promptseg.io.images import read_image

AFFINE = np.array([[0, 0, 2.5, 3], [-0.7, 0, 0, 40], [0, 0.8, 0, -5], [0, 0, 0, 1.0]])
SHAPE = (7, 5, 4)


def save(path, shape=SHAPE):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(len(str(path.name))).integers(0, 900, shape).astype(np.int16)
    nibabel.Nifti1Image(values, AFFINE).to_filename(path)
    return values


@pytest.fixture
def tree(tmp_path):
    """Two subjects, one of them with two sessions, and much that is no volume."""
    root = tmp_path / "bids"
    for name in (
        *("sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_acq-fast_run-2_T2w.nii"),
        *("sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz", "sub-02/ses-b/pet/sub-02_ses-b_pet.nii.gz"),
        *("sub-02/ses-a/ct/sub-02_ses-a_ct.nii.gz", "sub-01/anat/sub-01_label-GM_dseg.nii.gz"),
        *("sub-01/anat/sub-01_desc-brain_mask.nii.gz", "sub-01/fmap/sub-01_phasediff.nii.gz"),
        *("sub-02/ses-b/anat/sub-02_ses-a_FLAIR.nii.gz", "sub-01/anat/sub-03_T1w.nii.gz"),
        *("derivatives/x/sub-01/anat/sub-01_T1w.nii.gz", "sourcedata/sub-01/sub-01_T1w.nii.gz"),
        *("sub-01/anat/unnamed.nii.gz", "sub-01/anat/sub-01.nii.gz"),
    ):
        save(root / name)
    save(root / "sub-01/func/sub-01_task-rest_bold.nii.gz", (*SHAPE, 3))
    (root / "dataset_description.json").write_text("{}")
    (root / "sub-01/anat/sub-01_T1w.json").write_text("{}")
    return root


VOLUMES = [
    *("sub-01_T1w", "sub-01_acq-fast_run-2_T2w", "sub-02_ses-a_T1w", "sub-02_ses-a_ct"),
    "sub-02_ses-b_pet",
]


def test_every_volume_is_a_case_named_as_its_file(tree, tmp_path):
    result = convert_bids(tree, tmp_path / "out")
    assert list(result.done) == VOLUMES and not result.failed
    assert result.notes == ("5 of 11 files are volumes to convert",)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted(f"{case}_0000.nii.gz" for case in VOLUMES)
    for case, file in (
        ("sub-01_T1w", "sub-01/anat/sub-01_T1w.nii.gz"),
        ("sub-01_acq-fast_run-2_T2w", "sub-01/anat/sub-01_acq-fast_run-2_T2w.nii"),
    ):
        written = nibabel.load(tmp_path / "out" / f"{case}_0000.nii.gz")
        expected = nibabel.load(tree / file)
        np.testing.assert_array_equal(written.dataobj, expected.dataobj)
        np.testing.assert_allclose(written.affine, AFFINE, atol=1e-6)
        assert read_image(tree / file)[0].shape == (1, *SHAPE[::-1])


def test_what_is_no_volume_is_left_out_with_the_reason(tree):
    reasons = {scan.case_id: scan.why_not for scan in find_scans(tree) if scan.why_not}
    assert reasons == {
        "sub-01_desc-brain_mask": "a mask",
        "sub-01_label-GM_dseg": "a mask",
        "sub-01_phasediff": "not in anat, pet, ct",
        "sub-01_task-rest_bold": "not in anat, pet, ct",
        "sub-02_ses-a_FLAIR": "its name is not that of its folder",
        "sub-03_T1w": "its name is not that of its folder",
    }


@pytest.mark.parametrize(
    ("modality", "count"), [("T1w", 2), ("t1W", 2), ("MRI", 3), ("PET", 1), ("CT", 1), ("T2w", 1)]
)
def test_a_modality_or_a_suffix_chooses(tree, modality, count):
    assert sum(not scan.why_not for scan in find_scans(tree, modality)) == count


def test_nothing_that_fits_is_an_error_with_the_reasons(tree, tmp_path, caplog):
    caplog.set_level("INFO")
    with pytest.raises(ValueError, match=r"bids: none of 11 file\(s\) can be converted, for"):
        convert_bids(tree, tmp_path / "out", modality="FLAIR")
    assert "sub-01_T1w" in caplog.text and "not FLAIR" in caplog.text
    assert not (tmp_path / "out").exists()


def test_a_volume_that_cannot_be_read_is_one_failed_case(tree, tmp_path):
    save(tree / "sub-01/anat/sub-01_T1w.nii.gz", (*SHAPE, 2))
    (tree / "sub-02/ses-a/ct/sub-02_ses-a_ct.nii.gz").write_bytes(b"text")
    result = convert_bids(tree, tmp_path / "out")
    assert set(result.failed) == {"sub-01_T1w", "sub-02_ses-a_ct"} and len(result.done) == 3
    assert "expected three dimensions, found 4" in result.failed["sub-01_T1w"]


def test_a_file_that_is_there_packed_and_not_is_told(tree, tmp_path):
    save(tree / "sub-01/anat/sub-01_T1w.nii")
    with pytest.raises(ValueError, match=r"sub-01_T1w\.nii.* have the same name; keep one"):
        convert_bids(tree, tmp_path / "out")


def test_the_command_knows_a_tree_by_its_names(tree, tmp_path, capsys):
    arguments = ["--to", "images", "-i", str(tree), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--dry-run", "--modality", "T1w"]) == 0
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--processes", "0"]) == 0
    assert "5 of 5 case(s) written" in capsys.readouterr().out
    assert main(arguments) == 1  # which are there already
    assert "sub-01_T1w" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--processes", "0"]) == 0


@pytest.mark.parametrize("name", ["a/b_T1w.nii.gz", "sub-01/anat/T1w.nii.gz", "sub-01_T1w.nii.gz"])
def test_other_folders_are_no_bids_trees(tmp_path, name):
    save(tmp_path / name)
    assert not is_bids(tmp_path) and not is_bids(tmp_path / "gone")
