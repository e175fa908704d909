from __future__ import annotations

from pathlib import Path

import pytest

from promptseg.folders import Folders, find_dataset_folder, find_folders

VARIABLES = ("promptseg_raw", "promptseg_preprocessed", "promptseg_results", "nnUNet_raw")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_without_arguments_and_environment_the_working_folder_is_used():
    root = Path("promptseg_data")
    assert find_folders() == Folders(
        raw=root / "raw", preprocessed=root / "preprocessed", results=root / "results"
    )


def test_arguments_come_before_the_environment_and_our_names_before_nnunets(monkeypatch):
    monkeypatch.setenv("nnUNet_raw", "/nnunet")
    assert find_folders().raw == Path("/nnunet")
    monkeypatch.setenv("promptseg_raw", "/ours")
    monkeypatch.setenv("promptseg_preprocessed", "/pre")
    monkeypatch.setenv("promptseg_results", "/res")
    assert find_folders() == Folders(
        raw=Path("/ours"), preprocessed=Path("/pre"), results=Path("/res")
    )
    assert find_folders(raw="/arg", results=Path("/r")) == Folders(
        raw=Path("/arg"), preprocessed=Path("/pre"), results=Path("/r")
    )


def test_an_empty_variable_counts_as_not_set(monkeypatch):
    monkeypatch.setenv("promptseg_raw", "")
    assert find_folders().raw == Path("promptseg_data/raw")


def test_a_tilde_means_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert find_folders(raw="~/raw").raw == Path("/somewhere/raw")


@pytest.fixture
def root(tmp_path):
    for name in ("Dataset004_A", "Dataset040_B_C", "Dataset1004_D", "Dataset07_bad", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "Dataset005_file").write_text("no folder")
    return tmp_path


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        (4, "Dataset004_A"),
        ("4", "Dataset004_A"),
        ("004", "Dataset004_A"),
        (40, "Dataset040_B_C"),
        (1004, "Dataset1004_D"),
        ("Dataset040_B_C", "Dataset040_B_C"),
    ],
)
def test_a_dataset_is_found_by_number_or_name(root, dataset, name):
    assert find_dataset_folder(root, dataset, "put it there") == root / name


@pytest.mark.parametrize("dataset", [5, 7, 400, "Dataset004", "A", "", "-4", "²"])
def test_an_unknown_dataset_lists_what_is_there(root, dataset):
    with pytest.raises(FileNotFoundError, match="Dataset004_A.*Dataset1004_D.*; put it there"):
        find_dataset_folder(root, dataset, "put it there")


def test_an_empty_or_missing_root_is_said(tmp_path):
    for root in (tmp_path, tmp_path / "gone"):
        with pytest.raises(FileNotFoundError, match=r"Dataset003_\* under .* no dataset at all"):
            find_dataset_folder(root, 3, "put it there")


def test_two_folders_with_one_number_are_ambiguous(root):
    (root / "Dataset004_B").mkdir()
    with pytest.raises(ValueError, match="ambiguous .*Dataset004_A, Dataset004_B; use the full"):
        find_dataset_folder(root, 4, "put it there")
    assert find_dataset_folder(root, "Dataset004_B", "").name == "Dataset004_B"
