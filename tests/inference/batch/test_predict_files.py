"""Folders of good and bad images to segmentations, the prompts used and a report."""

from __future__ import annotations

import gzip
import json
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from promptseg.commands import predict
from promptseg.files import read_json, write_json
from promptseg.inference.batch.predict_files import predict_cases, predict_files
from promptseg.inference.load import load_predictor
from promptseg.inference.options import PredictionOptions
from promptseg.inference.predictor import Predictor
from promptseg.io.dataset import RawCase
from promptseg.io.images import Geometry, read_image, read_segmentation, write_image
from promptseg.prompts.given import case_from_json
from promptseg.prompts.reading import read_case_prompts
from promptseg.prompts.types import read_prompts_file, write_prompts_file
from tests.inference.fakes import LevelNetwork
from tests.inference.test_predictor import SMALL, SPACING, blocks, save_fold
from tests.small_plans import small_plans

# Turned about two axes by 3-4-5 and 5-12-13 triangles: oblique, and orthonormal in float64.
OBLIQUE = (
    np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    @ np.array([[1, 0, 0], [0, 5 / 13, -12 / 13], [0, 12 / 13, 5 / 13]])
).ravel()
GEOMETRY = Geometry(
    shape=SMALL, spacing=SPACING, origin=(-120.5, 33.25, 7.125), direction=tuple(OBLIQUE)
)
CONTINUED = PredictionOptions(continue_prediction=True)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "fold_0").mkdir()
    save_fold(folder, "0", small_plans())
    write_json(folder / "dataset.json", {"labels": {"background": 0, "liver": 1}})
    return folder


@pytest.fixture
def images(tmp_path):
    """Three good images, with and without channel number."""
    folder = tmp_path / "images"
    for name, factor in (("a_0000.nii.gz", 1.0), ("b_0000.nii.gz", 0.9), ("c.nrrd", 1.05)):
        write_image(folder / name, blocks(SMALL)[0] * np.float32(factor), GEOMETRY)
    return folder


def cases_of(folder) -> list[RawCase]:
    names = {path: path.name.split(".")[0].removesuffix("_0000") for path in folder.iterdir()}
    return [RawCase(case_id=n, images=(p,), label=None) for p, n in sorted(names.items())]


def predictor(**options) -> Predictor:
    return Predictor([LevelNetwork(inside_box=False)], small_plans(), **options)


def damage(folder) -> set[str]:
    """Put bad images beside the good ones; returns their case identifiers."""
    whole = (folder / "a_0000.nii.gz").read_bytes()
    (folder / "truncated_0000.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "empty_0000.nii.gz").write_bytes(b"")
    (folder / "text_0000.nii.gz").write_text("patient,age\n1,50\n")
    (folder / "zipped_text_0000.nii.gz").write_bytes(gzip.compress(b"no image either"))
    with_nan = blocks(SMALL)[0].copy()
    with_nan[2, 3, 4] = np.nan
    write_image(folder / "nan_0000.nii.gz", with_nan, GEOMETRY)
    rgb = sitk.GetImageFromArray(np.zeros((*SMALL, 3), np.uint8), isVector=True)
    sitk.WriteImage(rgb, str(folder / "rgb_0000.nii.gz"))
    four = sitk.GetImageFromArray(np.zeros((2, *SMALL), np.float32), isVector=False)
    sitk.WriteImage(four, str(folder / "time_0000.nii.gz"))
    flat = sitk.GetImageFromArray(np.zeros(SMALL[1:], np.float32))
    sitk.WriteImage(flat, str(folder / "flat_0000.mha"))
    return {"truncated", "empty", "text", "zipped_text", "nan", "rgb", "time", "flat"}


def test_a_predictor_does_a_folder_itself(images, tmp_path):
    report = predict_files(predictor(), images, tmp_path / "own")
    assert report == read_json(tmp_path / "own" / "predict_report.json")
    assert {
        case_id: entry["status"] for case_id, entry in report["cases"].items()
    } == dict.fromkeys("abc", "done")


def test_bad_images_are_reported_and_stop_no_other(images, tmp_path):
    bad = damage(images)
    output = tmp_path / "predictions"
    report = predict_cases(predictor(), cases_of(images), output)

    assert report["failed"] == len(bad)
    status = {name: entry["status"] for name, entry in report["cases"].items()}
    assert status == {name: "failed" if name in bad else "done" for name in bad | {"a", "b", "c"}}
    assert {path.name for path in output.iterdir()} == {
        "a.nii.gz", "b.nii.gz", "c.nrrd", "predict_report.json", "prompts_used.json",
    }  # fmt: skip
    assert json.loads((output / "predict_report.json").read_text()) == report
    for name in bad:
        assert len(report["cases"][name]["error"]) > 10
    assert "NaN" in report["cases"]["nan"]["error"]
    assert "1 channel" in report["cases"]["rgb"]["error"]
    for name in ("truncated", "empty", "text", "zipped_text"):
        assert f"{name}_0000.nii.gz" in report["cases"][name]["error"]
    assert set(read_prompts_file(output / "prompts_used.json")) == {"a", "b", "c"}


SHAPE_OF_5D = struct.pack("<8h", 5, *SMALL[::-1], 2, 2, 1, 1)  # a NIfTI header's bytes 40 to 55

SEVEN_BAD = {
    "truncated": r"images/truncated_0000.nii.gz is damaged or cut short \(.*\); copy it again",
    "empty": "images/empty_0000.nii.gz cannot be read as an image: it has 0 bytes; copy it again",
    "text": "images/text_0000.nii.gz cannot be read as an image: it does not begin as "
    "NIfTI does, or is damaged; copy or convert it again",
    "channels": r"found channels_0000.nii.gz, channels_0001.nii.gz, but the model takes "
    r"1 channel\(s\); if the number",
    "nan": "images/nan_0000.nii.gz: 495 of 495 voxels are NaN or infinite; expected numbers: "
    "replace them",
    "five": r"images/five_0000.nii.gz: expected three dimensions, found 5 \(size \(11, 9, 5, 2, 2\)"
    r", xyz\); write each time point",
    "nothing": "images/nothing.nrrd cannot be read as an image: .*axis 2 size is zero.*; copy or",
}


def seven_bad(folder) -> None:
    """Put seven bad images beside the good ones, one of each kind; see `SEVEN_BAD`."""
    whole = (folder / "a_0000.nii.gz").read_bytes()
    (folder / "truncated_0000.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "empty_0000.nii.gz").write_bytes(b"")
    (folder / "text_0000.nii.gz").write_text("patient,age\n1,50\n")
    for channel in range(2):
        (folder / f"channels_000{channel}.nii.gz").write_bytes(whole)
    write_image(folder / "nan_0000.nii.gz", np.full(SMALL, np.nan, np.float32), GEOMETRY)
    header, voxels = (part := gzip.decompress(whole))[:352], part[352:]
    header = header[:40] + SHAPE_OF_5D + header[56:]
    (folder / "five_0000.nii.gz").write_bytes(gzip.compress(header + 4 * voxels))
    write_image(folder / "nothing.nrrd", np.zeros(SMALL, np.uint8), GEOMETRY)
    whole = (folder / "nothing.nrrd").read_bytes()
    (folder / "nothing.nrrd").write_bytes(whole.replace(b"sizes: 11 9 5", b"sizes: 11 9 0"))


@pytest.mark.parametrize("threads", ["0", "1", "3"])
def test_seven_bad_files_are_seven_clear_entries_and_three_segmentations(
    model_folder, images, tmp_path, capsys, threads
):
    seven_bad(images)
    output = tmp_path / "out"
    code = predict.main(
        ["-m", str(model_folder), "-i", str(images), "-o", str(output), "--auto-prompt"]
        + ["intensity", "-npp", threads, "-nps", threads, "-device", "cpu"]
    )
    assert code == 1
    report = read_json(output / "predict_report.json")
    assert report["failed"] == 7 and set(report["cases"]) == {"a", "b", "c", *SEVEN_BAD}
    printed = capsys.readouterr().out
    assert "3 segmentations" in printed
    for name, text in SEVEN_BAD.items():
        entry = report["cases"][name]
        assert entry["status"] == "failed" and re.search(text, entry["error"]), entry["error"]
        assert entry["images"][0].startswith(str(images / name))
        assert f"failed: {name}: {entry['error']}" in printed
    assert {path.name for path in output.iterdir()} == {
        "a.nii.gz", "b.nii.gz", "c.nrrd",
        "dataset.json", "predict_report.json", "prompts_used.json",
    }  # fmt: skip
    for name in ("a.nii.gz", "b.nii.gz", "c.nrrd"):
        assert read_image(output / name)[1].shape == SMALL
    assert set(read_prompts_file(output / "prompts_used.json")) == {"a", "b", "c"}


@pytest.mark.parametrize(("readers", "writers"), [(0, 0), (3, 0), (2, 3)])
def test_threads_change_nothing_in_the_results(model_folder, images, tmp_path, readers, writers):
    reports = []
    for name, threads in (("one", (1, 1)), ("other", (readers, writers))):
        reports.append(
            predict_files(
                model_folder,
                images,
                tmp_path / name,
                auto_prompt="intensity",
                readers=threads[0],
                writers=threads[1],
            )
        )
        for entry in reports[-1]["cases"].values():
            entry["prediction"] = entry["prediction"].replace(str(tmp_path / name), "")
    assert reports[0] == reports[1]
    for file in ("a.nii.gz", "b.nii.gz", "c.nrrd"):
        one, other = (read_image(tmp_path / name / file)[0] for name in ("one", "other"))
        np.testing.assert_array_equal(one, other)


def test_a_terminated_command_leaves_whole_files_and_is_continued(model_folder, tmp_path):
    images, output = tmp_path / "images", tmp_path / "out"
    names = [f"case_{number}" for number in range(6)]
    for number, name in enumerate(names):  # the first voxel is the prompter's number
        image = blocks(SMALL)[0] + np.float32(number)
        write_image(images / f"{name}_0000.nii.gz", image, GEOMETRY)
    (held := tmp_path / "hold_3").touch()
    arguments = ["-m", str(model_folder), "-i", str(images), "-o", str(output), "-device", "cpu"]
    slow = ["--auto-prompt", "dying", "--import", "tests.inference.batch.dying_prompter"]
    script = "import sys; from promptseg.commands.predict import main; sys.exit(main())"
    running = subprocess.Popen(
        [sys.executable, "-c", script, *arguments, *slow],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PROMPTSEG_TEST_DYING_PROMPTER": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + 120
        while len(list(output.glob("*.nii.gz"))) < 3 and time.monotonic() < until:
            time.sleep(0.02)
        running.terminate()  # while the fourth is prompted
        held.unlink()
        _, error = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130
    assert "continue with the same command and --continue_prediction" in error
    written = {path.name.removesuffix(".nii.gz") for path in output.glob("*.nii.gz")}
    assert set(names[:3]) <= written < set(names) and not list(output.glob(".*"))
    report = read_json(output / "predict_report.json")
    assert set(report["cases"]) == written and report["failed"] == 0
    before = {name: (output / f"{name}.nii.gz").stat().st_mtime_ns for name in written}

    assert predict.main([*arguments, "--auto-prompt", "intensity", "--continue_prediction"]) == 0
    report = read_json(output / "predict_report.json")
    assert set(report["cases"]) == set(names) and report["failed"] == 0
    for name in names:
        assert read_image(output / f"{name}.nii.gz")[1].shape == SMALL
        kept = report["cases"][name]["labels"]["liver"]["source"] == "dying"
        assert kept == (name in written)
    assert before == {name: (output / f"{name}.nii.gz").stat().st_mtime_ns for name in written}


def test_segmentations_are_right_and_lie_exactly_where_the_images_lie(images, tmp_path):
    report = predict_cases(predictor(), cases_of(images), tmp_path / "out")
    for name in ("a.nii.gz", "b.nii.gz", "c.nrrd"):
        array, geometry = read_image(tmp_path / "out" / name)
        np.testing.assert_array_equal(array[0], blocks(SMALL)[1])
        assert array.dtype == np.uint8
        for field in ("spacing", "origin", "direction"):
            expected = getattr(GEOMETRY, field)
            np.testing.assert_allclose(getattr(geometry, field), expected, rtol=0, atol=1e-6)
    entry = report["cases"]["a"]
    assert entry["prediction"] == str(tmp_path / "out" / "a.nii.gz")
    assert entry["images"] == [str(images / "a_0000.nii.gz")]
    assert set(entry["labels"]) == {"liver", "spleen", "lesion"}
    assert entry["labels"]["liver"]["flags"] == ["no_box"]
    assert entry["labels"]["liver"]["voxels"] == int((blocks(SMALL)[1] == 1).sum())


def test_the_prompts_used_given_back_make_the_same_segmentations(model_folder, images, tmp_path):
    prompts = {
        "a": {
            "liver": {"boxes": [[[1, 2, 1], [4, 8, 7]], [[0, 0, 5], [5, 3, 9.5]]]},
            "lesion": {"points": [[2, 3, 4], [4, 8, 10]], "point_labels": [1, 0]},
        },
        "b": {"spleen": {}},
        "c": {"spleen": {"boxes": [[[-3, 2, 1], [4, 99, 7]]]}},
    }
    write_prompts_file(tmp_path / "prompts.json", prompts)
    first, second = tmp_path / "first", tmp_path / "second"
    report = predict_files(model_folder, images, first, prompts=tmp_path / "prompts.json")
    again = predict_files(model_folder, images, second, prompts=first / "prompts_used.json")
    assert report["failed"] == again["failed"] == 0
    assert list(report["cases"]["a"]["labels"]) == ["liver", "lesion"]
    used = read_prompts_file(first / "prompts_used.json")
    assert used["c"]["spleen"]["boxes"] == [[[0, 2, 1], [4, 9, 7]]]  # clipped to the image
    assert used == read_prompts_file(second / "prompts_used.json")
    for name in ("a.nii.gz", "b.nii.gz", "c.nrrd"):
        np.testing.assert_array_equal(read_image(first / name)[0], read_image(second / name)[0])
    assert read_json(first / "dataset.json") == read_json(model_folder / "dataset.json")


def test_automatic_prompts_are_written_as_prompts(model_folder, images, tmp_path):
    output = tmp_path / "out"
    report = predict_files(model_folder, images / "c.nrrd", output, auto_prompt="intensity")
    assert report["auto_prompt"] == "intensity" and list(report["cases"]) == ["c"]
    used = read_prompts_file(output / "prompts_used.json")["c"]
    assert {entry["source"] for entry in used.values()} == {"intensity"}
    again = predict_files(
        model_folder, images / "c.nrrd", tmp_path / "again", prompts=output / "prompts_used.json"
    )
    assert again["failed"] == 0
    np.testing.assert_array_equal(
        read_image(tmp_path / "again" / "c.nrrd")[0], read_image(output / "c.nrrd")[0]
    )


def test_continuing_keeps_what_is_there_and_does_the_rest(images, tmp_path):
    output = tmp_path / "out"
    cases = cases_of(images)
    before = predict_cases(predictor(), cases[:2], output)
    marked = output / "a.nii.gz"
    write_image(marked, np.full(SMALL, 7, np.uint8), GEOMETRY)
    model = predictor()
    report = predict_cases(model, cases, output, CONTINUED)
    assert model.networks[0].encoded == 1
    assert (read_image(marked)[0] == 7).all()
    assert report["cases"]["a"] == before["cases"]["a"]  # of the earlier run, prompts and all
    assert report["cases"]["c"]["status"] == "done" and report["failed"] == 0
    assert set(read_prompts_file(output / "prompts_used.json")) == {"a", "b", "c"}

    (output / "predict_report.json").unlink()
    report = predict_cases(predictor(), cases, output, CONTINUED)
    assert {entry["status"] for entry in report["cases"].values()} == {"kept"}
    predict_cases(predictor(), cases, output)
    np.testing.assert_array_equal(read_image(marked)[0][0], blocks(SMALL)[1])  # all anew


def test_a_failed_case_leaves_no_old_segmentation_and_is_predicted_again(images, tmp_path):
    output, cases = tmp_path / "out", cases_of(images)
    good = cases[0].images[0].read_bytes()
    predict_cases(predictor(), cases, output)
    cases[0].images[0].write_bytes(b"no image")
    report = predict_cases(predictor(), cases, output)
    assert report["cases"]["a"]["status"] == "failed" and not (output / "a.nii.gz").exists()

    # Also one that another program put there: the report says that there is no result.
    write_image(output / "a.nii.gz", np.full(SMALL, 7, np.uint8), GEOMETRY)
    cases[0].images[0].write_bytes(good)
    report = predict_cases(predictor(), cases, output, CONTINUED)
    assert report["cases"]["a"]["status"] == "done" and report["failed"] == 0
    np.testing.assert_array_equal(read_image(output / "a.nii.gz")[0][0], blocks(SMALL)[1])


def test_cases_that_are_no_longer_there_leave_the_report(model_folder, images, tmp_path):
    output, review = tmp_path / "out", tmp_path / "review.csv"
    options = {"auto_prompt": "intensity", "continue_prediction": True, "review_list": review}
    (images / "bad_0000.nii.gz").write_bytes(b"no image")
    assert predict_files(model_folder, images, output, **options)["failed"] == 1
    before = read_json(output / "predict_report.json")["cases"]
    (images / "bad_0000.nii.gz").unlink()
    (images / "b_0000.nii.gz").unlink()
    report = predict_files(model_folder, images, output, **options)
    assert report["failed"] == 0 and report["cases"] == {name: before[name] for name in "ac"}
    assert set(read_prompts_file(output / "prompts_used.json")) == {"a", "c"}
    assert "bad" not in review.read_text() and (output / "b.nii.gz").is_file()


NO_REPORTS = [
    ("{", "predict_report.json"),
    ("[]", r"with `status` \(done, kept, failed\), .*; found \[\]\. Remove the file"),
    ('{"cases": []}', r"found {'cases': \[\]}"),
    ('{"cases": {"a": {}}}', "found for the case 'a': {}"),
    ('{"cases": {"a": {"status": "kept"}, "b": 7}}', "found for the case 'b': 7"),
    ('{"cases": {"z": {"status": "lost"}}}', "found for the case 'z': {'status': 'lost'}"),
    ('{"cases": {"a": {"status": "failed"}}}', "found for the case 'a': {'status': 'failed'}"),
    ('{"cases": {"a": {"status": "done", "labels": ["liver"]}}}', "found for the case 'a'"),
    ('{"cases": {"a": {"status": "done", "labels": {"liver": {}}}}}', "found for the case 'a'"),
]


@pytest.mark.parametrize(("content", "message"), NO_REPORTS)
def test_a_report_that_is_none_is_named_before_anything_is_done(images, tmp_path, content, message):
    output = tmp_path / "out"
    output.mkdir()
    (output / "predict_report.json").write_text(content)
    with pytest.raises(ValueError, match=rf"predict_report\.json.*{message}|{message}"):
        predict_cases(predictor(), cases_of(images), output, CONTINUED)
    assert [path.name for path in output.iterdir()] == ["predict_report.json"]
    assert predict_cases(predictor(), cases_of(images), output)["failed"] == 0  # not looked at


def test_a_folder_is_predicted_with_networks_that_are_loaded_already(
    model_folder, images, tmp_path
):
    options = {"auto_prompt": "intensity", "parts": 2, "part": 0}
    expected = predict_files(model_folder, images, tmp_path / "out", **options)
    loaded = load_predictor(model_folder, n_perturbations=2)
    found = predict_files(loaded, images, str(tmp_path / "out"), **options)
    assert found == expected and list(found["cases"]) == ["a", "c"]


def test_a_loaded_predictor_refuses_what_only_loading_can_do(images, tmp_path):
    for wrong, message in (
        ({"step_size": 0.3}, "step_size: .* give step_size to load_predictor"),
        ({"folds": ["0"], "tta": False}, "folds, tta: the predictor is loaded already"),
        ({"save_probabilities": True}, "give keep_probabilities to load_predictor"),
        ({"dask": "tcp://127.0.0.1:9"}, "give its folder, not a loaded predictor"),
    ):
        with pytest.raises(ValueError, match=message):
            predict_files(predictor(), images, tmp_path / "out", **wrong)
    with pytest.raises(TypeError, match="stepsize"):
        predict_files(predictor(), images, tmp_path / "out", stepsize=0.3)
    assert not (tmp_path / "out").exists()


def test_options_and_keywords_are_the_same(model_folder, images, tmp_path):
    options = PredictionOptions(auto_prompt="intensity", n_perturbations=0)
    one = predict_files(model_folder, images, tmp_path / "out", options)
    other = predict_files(
        model_folder, images, tmp_path / "out", auto_prompt="intensity", n_perturbations=0
    )
    changed = predict_files(model_folder, images, tmp_path / "out", options, auto_prompt=None)
    assert one == other and changed["auto_prompt"] is None
    for report in (one, changed):
        consistencies = [
            result["prompt_consistency"]
            for entry in report["cases"].values()
            for result in entry["labels"].values()
        ]
        assert consistencies == [None] * 9


def test_a_report_with_former_names_is_continued(images, tmp_path):
    output, cases = tmp_path / "out", cases_of(images)
    expected = predict_cases(predictor(n_perturbations=1), cases, output)
    file = output / "predict_report.json"
    file.write_text(file.read_text().replace("prompt_consistency", "agreement"))
    report = predict_cases(predictor(), cases, output, CONTINUED)
    assert report == expected and "agreement" not in file.read_text()


def test_an_interrupted_run_leaves_no_segmentation_of_an_earlier_one(images, tmp_path):
    class Interrupted(Predictor):
        def predict_prompts(self, prompts, **options):
            raise KeyboardInterrupt

    output, cases = tmp_path / "out", cases_of(images)
    predict_cases(predictor(), cases, output)
    with pytest.raises(KeyboardInterrupt):
        predict_cases(Interrupted([LevelNetwork()], small_plans()), cases, output)
    report = predict_cases(predictor(), cases, output, CONTINUED)
    assert {entry["status"] for entry in report["cases"].values()} == {"done"}


def test_parts_share_the_cases_and_write_reports_of_their_own(model_folder, images, tmp_path):
    output, done = tmp_path / "out", []
    for part in range(2):
        report = predict_files(model_folder, images, output, parts=2, part=part, tta=False)
        done.append(list(report["cases"]))
        assert read_json(output / f"predict_report_part{part}.json") == report
    assert done == [["a", "c"], ["b"]]
    assert {p.name for p in output.glob("prompts_used*")} == {
        "prompts_used_part0.json", "prompts_used_part1.json",
    }  # fmt: skip


def test_errors_in_prompts_of_one_case_are_that_cases_failure(model_folder, images, tmp_path):
    prompts = {
        "a": {"kidney": {}},
        "b": {"liver": {"boxes": [[[0, 0, 0], [2, 2, 2]]], "colour": "red"}},
        "elsewhere": {"liver": {}},
    }
    write_prompts_file(tmp_path / "prompts.json", prompts)
    report = predict_files(
        model_folder, images, tmp_path / "out", prompts=tmp_path / "prompts.json"
    )
    assert report["failed"] == 3
    errors = {name: entry["error"] for name, entry in report["cases"].items()}
    assert "unknown label(s) kidney" in errors["a"]
    assert "label 'liver': unknown colour" in errors["b"]
    file = tmp_path / "prompts.json"
    assert errors["c"] == (
        f"{file} has no prompts for case 'c', only for a, b; add some under this name, add "
        f"automatic prompts (--auto-prompt), or take the image out of the folder"
    )
    some = read_case_prompts(file, ["a", "b"], small_plans().labels)
    report = predict_cases(predictor(), cases_of(images)[2:], tmp_path / "out", from_file=some)
    assert "case 'c': no prompts were given for it, only for a, b;" in report["cases"]["c"]["error"]
    none = {"c": case_from_json({}, known=small_plans().labels)}
    report = predict_cases(predictor(), cases_of(images)[2:], tmp_path / "out", from_file=none)
    assert "case 'c': no prompts were given for it; give some" in report["cases"]["c"]["error"]
    assert not (tmp_path / "out" / "c.nii.gz").exists()


def test_calls_that_cannot_work_at_all_are_refused_before_anything_is_written(
    model_folder, images, tmp_path
):
    output = tmp_path / "out"
    with pytest.raises(
        ValueError, match="unknown automatic prompt 'intense'; registered: .*intens"
    ):
        predict_files(model_folder, images, output, auto_prompt="intense")
    with pytest.raises(ValueError, match=r"part must be in 0 to 1 for 2 part\(s\), got 2"):
        predict_files(model_folder, images, output, parts=2, part=2)
    for parts in (0, -3):
        with pytest.raises(ValueError, match=rf"has 1 part or more, got {parts} \(-num_parts\)"):
            predict_files(model_folder, images, output, parts=parts)
    with pytest.raises(FileNotFoundError, match="no such model folder"):
        predict_files(tmp_path / "nothing", images, output)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        predict_files(model_folder, tmp_path / "nowhere", output)
    write_prompts_file(tmp_path / "prompts.json", {"z": {"liver": {}}})
    with pytest.raises(ValueError, match="has prompts for z, none of which is among .*: a, b, c"):
        predict_files(model_folder, images, output, prompts=tmp_path / "prompts.json")
    assert not output.exists()


def test_images_are_never_written_over(images):
    before = (images / "c.nrrd").read_bytes()
    with pytest.raises(ValueError, match=r"c.nrrd is an image to predict; choose another output"):
        predict_cases(predictor(), cases_of(images), images)
    assert (images / "c.nrrd").read_bytes() == before
    assert not (images / "a.nii.gz").exists()


@pytest.mark.parametrize("name", ["seg.nii.gz", "new/seg.NII.GZ", "seg.nrrd", "seg.mha"])
def test_one_image_is_segmented_into_the_file_that_is_named(
    model_folder, images, tmp_path, name, capsys
):
    file, image = tmp_path / name, images / "a_0000.nii.gz"
    assert predict.main(["-m", str(model_folder), "-i", str(image), "-o", str(file)]) == 0
    told = capsys.readouterr().out
    assert f"segmentation in {file}" in told and re.search(r"liver: \d+ voxels", told)
    predict_files(model_folder, image, tmp_path / "folder", n_perturbations=0)
    expected, there = read_segmentation(tmp_path / "folder" / "a.nii.gz")
    found, geometry = read_segmentation(file)
    np.testing.assert_array_equal(found, expected)
    assert file.is_file() and geometry.difference_from(there) is None
    assert [path.name for path in file.parent.iterdir() if "seg" in path.name] == [file.name]


def test_a_file_to_write_is_refused_where_it_cannot_be_one(model_folder, images, tmp_path, capsys):
    model, image = ["-m", str(model_folder)], images / "a_0000.nii.gz"
    before = image.read_bytes()
    for arguments, message in (
        (["-i", str(images), "-o", str(tmp_path / "s.nii.gz")], "is a folder of images; name an"),
        (["-i", str(image), "-o", str(image)], "is the image to predict; choose another file"),
        (
            ["-i", str(image), "-o", str(tmp_path / "s.nii"), "--save_probabilities"],
            "need an output folder",
        ),
    ):
        assert predict.main([*model, *arguments]) == 1
        assert message in capsys.readouterr().err
    assert image.read_bytes() == before and not list(tmp_path.glob("s.*"))
    (images / "bad_0000.nii.gz").write_text("no image")
    bad = ["-i", str(images / "bad_0000.nii.gz"), "-o", str(tmp_path / "s.nii")]
    assert predict.main([*model, *bad]) == 1
    assert "failed: bad: " in capsys.readouterr().out and not list(tmp_path.glob("s.*"))
    (tmp_path / "folder.nii.gz").mkdir()  # as it was made before
    assert predict.main([*model, "-i", str(image), "-o", str(tmp_path / "folder.nii.gz")]) == 0
    assert (tmp_path / "folder.nii.gz" / "a.nii.gz").is_file()
