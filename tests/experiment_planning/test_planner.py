"""What planning leaves in the preprocessed folder, and what it refuses."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from promptseg.commands import plan
from promptseg.experiment_planning import planner
from promptseg.experiment_planning.planner import (
    BrokenDatasetError,
    keep_ground_truth,
    plan_dataset,
)
from promptseg.files import read_json, write_json
from promptseg.folders import Folders
from promptseg.io import images
from promptseg.io.dataset import RawCase
from promptseg.io.images import read_segmentation
from promptseg.parallel import ClusterWorkers, map_cases
from promptseg.plans import load_plans, remove_other_plans, save_plans
from promptseg.preprocessing.dataset import PreprocessedDataset, case_files
from tests.small_plans import small_plans
from tests.synthetic import write_raw_dataset
from tests.test_parallel import die


@pytest.fixture
def folders(tmp_path):
    write_raw_dataset(tmp_path / "raw", cases=["case_0", "case_1", "case_2"])
    return Folders(**{name: tmp_path / name for name in ("raw", "preprocessed", "results")})


def test_cases_of_an_earlier_planning_are_removed(folders, caplog):
    raw = folders.raw / "Dataset001_Synthetic"
    result = plan_dataset(1, folders, processes=0)
    truth = result.folder / "gt_segmentations"
    assert len(list(truth.iterdir())) == 3
    (truth / "notes.txt").write_text("someone's own")

    (raw / "labelsTr" / "case_1.nii.gz").write_bytes(b"not an image")
    for path in raw.glob("*Tr/case_2*"):
        path.unlink()
    with caplog.at_level(logging.INFO):
        plan_dataset(1, folders, processes=0, skip_broken=True)

    data = result.folder / result.plans.data_identifier
    assert PreprocessedDataset(data).case_ids == ["case_0"]
    assert {path.name.split(".")[0] for path in data.iterdir()} == {"case_0", "case_0_seg"}
    assert sorted(path.name for path in truth.iterdir()) == ["case_0.nii.gz", "notes.txt"]
    assert "2 cases of an earlier planning are removed" in caplog.text


def test_plans_that_others_will_replace_are_gone_before_the_first_case_changes(tmp_path):
    path, plans = tmp_path / "P.json", small_plans(auto_prompts={"liver": {"strategy": "atlas"}})
    save_plans(path, plans)
    remove_other_plans(path, replace(plans, auto_prompts={}))  # not fitted yet, else the same
    assert load_plans(path) == plans
    remove_other_plans(path, replace(plans, spacing=(2.5, 1.0, 0.8)))
    assert not path.exists()
    path.write_text("{}")  # of another version
    remove_other_plans(path, plans)
    assert not path.exists()
    remove_other_plans(path, plans)  # there are none


def test_ground_truth_is_named_after_the_case(tmp_path):
    folder = write_raw_dataset(tmp_path, cases=2)
    cases = []
    for number in range(2):
        label = tmp_path / f"case_{number}" / "seg.nii.gz"
        label.parent.mkdir()
        shutil.copy(folder / "labelsTr" / f"case_{number}.nii.gz", label)
        cases.append(RawCase(case_id=f"patient {number}", images=(), label=label))

    keep_ground_truth(cases, tmp_path / "gt")

    names = sorted(path.name for path in (tmp_path / "gt").iterdir())
    assert names == ["patient 0.nii.gz", "patient 1.nii.gz"]
    for name, case in zip(names, cases, strict=True):
        kept, original = (read_segmentation(p)[0] for p in (tmp_path / "gt" / name, case.label))
        np.testing.assert_array_equal(kept, original)


@pytest.mark.parametrize("skip_broken", [False, True])
def test_skipping_is_not_advised_when_no_case_would_be_left(folders, skip_broken):
    for path in (folders.raw / "Dataset001_Synthetic" / "labelsTr").iterdir():
        path.write_bytes(b"not an image")

    with pytest.raises(BrokenDatasetError, match="No usable case is left; repair") as info:
        plan_dataset(1, folders, processes=0, skip_broken=skip_broken)
    assert "--skip-broken" not in str(info.value) and "case_2" in str(info.value)


def test_a_case_identifier_that_is_a_path_stops_planning_before_anything_is_written(folders):
    path = folders.raw / "Dataset001_Synthetic" / "dataset.json"
    entry = {"images": ["imagesTr/case_0_0000.nii.gz"], "label": "labelsTr/case_0.nii.gz"}
    write_json(path, {**read_json(path), "dataset": {"../../../victim": entry}})

    with pytest.raises(ValueError, match="'../../../victim' cannot be a case identifier"):
        plan_dataset(1, folders, processes=0)
    assert not folders.preprocessed.exists()


def test_groups_of_dataset_json_reach_the_automatic_prompts(folders):
    path = folders.raw / "Dataset001_Synthetic" / "dataset.json"
    groups = {"case_0": "p", "case_1": "q", "case_2": "p"}
    write_json(path, read_json(path) | {"groups": groups})

    result = plan_dataset(1, folders, processes=0)

    reason = result.plans.auto_prompts["label_1"]["reason"]
    assert reason == "only 2 groups of training cases have the label; 3 are needed"
    assert read_json(result.folder / "dataset.json")["groups"] == groups


def test_a_case_without_group_stops_planning_before_anything_is_read(folders):
    raw = folders.raw / "Dataset001_Synthetic"
    (raw / "labelsTr" / "case_1.nii.gz").write_bytes(b"not an image")
    content = read_json(raw / "dataset.json")
    write_json(raw / "dataset.json", content | {"groups": {"case_0": "p", "case1": "q"}})
    with pytest.raises(ValueError, match=r"2 of 3 cases have no group, 'case_1', 'case_2'"):
        plan_dataset(1, folders, processes=0)
    assert not folders.preprocessed.exists()


@pytest.fixture
def reads(monkeypatch):
    """How often each image file is read, by its name."""
    counts = Counter()
    read = images.read_channels

    def counting(path, **options):
        counts[f"{path.parent.name}/{path.name}"] += 1
        return read(path, **options)

    monkeypatch.setattr(images, "read_channels", counting)
    return counts


@pytest.mark.parametrize(("modality", "again"), [("MRI", 1), ("CT", 2)])
def test_files_are_read_twice_and_once_where_nothing_waits_for_the_fingerprint(
    tmp_path, reads, modality, again
):
    # A CT window follows from all cases, so that CT cases are reduced in the second reading.
    write_raw_dataset(tmp_path / "raw", cases=3, modality=modality)
    folders = Folders(**{name: tmp_path / name for name in ("raw", "preprocessed", "results")})

    first = plan_dataset(1, folders, processes=0)
    assert len(reads) == 6 and set(reads.values()) == {2}

    reads.clear()
    second = plan_dataset(1, folders, processes=0)
    assert len(reads) == 6 and set(reads.values()) == {again}
    assert second.plans == first.plans and not second.failed


def test_cases_are_reduced_alike_in_the_first_and_in_the_second_reading(tmp_path):
    plans, boxes = [], []
    for name in ("MRI", "of no known kind"):
        write_raw_dataset(tmp_path / name / "raw", cases=5, modality="MRI", labels=2)
        path = tmp_path / name / "raw" / "Dataset001_Synthetic" / "dataset.json"
        write_json(path, read_json(path) | {"channel_names": {"0": name}})
        folders = Folders(
            **{kind: tmp_path / name / kind for kind in ("raw", "preprocessed", "results")}
        )
        result = plan_dataset(1, folders, processes=0)
        plans.append(result.plans.auto_prompts)
        boxes.append(read_json(result.folder / "PromptSegPlans_auto_prompt_boxes.json"))

    assert plans[0] == plans[1] and boxes[0] == boxes[1]
    assert all(boxes[0].values()) and set(plans[0]) == {"label_1", "label_2"}


def test_a_case_that_is_gone_before_it_is_reduced_stops_planning_by_name(folders, monkeypatch):
    examine = planner.examine_dataset

    def examine_then_remove(raw, *arguments):
        examination = examine(raw, *arguments)
        raw.cases[1].images[0].unlink()
        return examination

    monkeypatch.setattr(planner, "examine_dataset", examine_then_remove)
    with pytest.raises(ValueError, match="case 'case_1': .*case_1_0000.nii.gz"):
        plan_dataset(1, folders, processes=0)
    assert not list(folders.preprocessed.rglob("PromptSegPlans.json"))


@pytest.mark.parametrize("modality", ["CT", "MRI"])
def test_images_stored_in_other_orientations_are_turned_to_that_of_most(tmp_path, modality, caplog):
    results = []
    for name, others in (("alike", {}), ("mixed", {"case_1": "PIR", "case_4": "LAS"})):
        write_raw_dataset(tmp_path / name / "raw", cases=6, modality=modality, labels=2)
        for path in (tmp_path / name / "raw").rglob("*.nii.gz"):
            image = sitk.ReadImage(str(path))
            image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
            case = path.name.split(".")[0].removesuffix("_0000")
            sitk.WriteImage(sitk.DICOMOrient(image, others.get(case, "RAS")), str(path))
        folders = Folders(
            **{kind: tmp_path / name / kind for kind in ("raw", "preprocessed", "results")}
        )
        results.append(plan_dataset(1, folders, processes=0))
    alike, mixed = results
    assert alike.plans.orientation == mixed.plans.orientation == "RAS"
    assert alike.plans.reasons["orientation"] == "RAS, as 6 of 6 images are stored"
    said = "RAS, as 4 of 6 images are stored; turned to it: 1 of PIR, 1 of LAS"
    assert mixed.plans.reasons["orientation"] == said
    assert f"images are stored in several orientations: {said}" in caplog.text
    assert replace(mixed.plans, reasons=alike.plans.reasons) == alike.plans
    boxes = [read_json(r.folder / "PromptSegPlans_auto_prompt_boxes.json") for r in results]
    assert boxes[0] == boxes[1]
    cases = [PreprocessedDataset(r.folder / r.plans.data_identifier) for r in results]
    for case in cases[0].case_ids:
        one, other = cases
        np.testing.assert_array_equal(one.image(case)[:], other.image(case)[:])
        np.testing.assert_array_equal(one.segmentation(case)[:], other.segmentation(case)[:])
        files = (case_files(of.folder, case)[2] for of in cases)
        recorded, its = map(read_json, files)
        assert recorded["labels"] == its["labels"]
    found = read_json(mixed.folder / "dataset_fingerprint.json")["cases"]
    assert [case["orientation"] for case in found] == ["RAS", "PIR", "RAS", "RAS", "LAS", "RAS"]


@pytest.fixture(scope="module")
def cluster():
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as started:
        yield started.scheduler_address


def test_a_cluster_makes_the_same_files_as_one_process(cluster, tmp_path, monkeypatch):
    write_raw_dataset(tmp_path / "raw", cases=["case_0", "case_1", "case_2", "case_3"])
    monkeypatch.chdir(tmp_path)  # the workers are in another folder
    command = ["-d", "1", "--raw", "raw", "--memory", "cpu"]
    assert plan.main([*command, "--preprocessed", "alone", "-np", "0"]) == 0
    assert plan.main([*command, "--preprocessed", "shared", "--dask", cluster]) == 0
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    files = sorted(path.relative_to(alone) for path in alone.rglob("*") if path.is_file())
    assert sorted(p.relative_to(shared) for p in shared.rglob("*") if p.is_file()) == files
    assert len(files) == 5 + 4 * 4  # dataset.json, fingerprint, plans, boxes; four files a case
    for file in files:
        assert (shared / file).read_bytes() == (alone / file).read_bytes(), file


def test_a_case_that_kills_its_workers_is_the_only_one_that_fails(cluster):
    with ClusterWorkers(cluster) as workers:
        assert workers.processes == 2
        outcomes = map_cases(die, range(4), processes=workers, description="dying")
        found = {item: (result, error) for item, result, error in outcomes}
    assert [found[n] for n in (0, 1, 3)] == [(0, None), (1, None), (3, None)]
    assert "its workers were lost" in str(found[2][1])
