import logging
import shutil

import pytest

from promptseg.files import write_json
from promptseg.pipeline.teacher import load_teacher
from promptseg.training.distillation import Teacher
from promptseg.training.fold import Fold
from tests.saved_model import saved_model, untrained
from tests.small_plans import small_plans


def teacher_of(path, fold="0", validation_cases=("a", "b")):
    student = Fold(
        name=fold,
        source=path,
        plans=small_plans(),
        training_cases=(),
        validation_cases=validation_cases,
        auto_boxes={},
    )
    return load_teacher(path, student)


def test_a_fold_is_taught_by_its_own_fold_of_the_teacher(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = saved_model(tmp_path / "model", small_plans(), ("0", "1", "all"))
    for fold, seed in (("0", 0), ("1", 1), ("all", 2)):
        caplog.clear()
        assert teacher_of(model, fold).digest == Teacher([untrained(seed=seed)], "").digest
        assert f"teacher: {model}, fold {fold}" in caplog.text
        assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_validation_cases_that_the_teacher_did_not_hold_out_are_warned_of(tmp_path, caplog):
    model = saved_model(tmp_path / "model", small_plans())
    rows = [{"case": "a"}, {"case": "c"}]
    write_json(model / "fold_0" / "validation" / "summary.json", {"metric_per_case": rows})
    teacher_of(model, validation_cases=["a", "c"])
    assert not caplog.records
    teacher_of(model, validation_cases=["a", "b"])
    assert "held out other cases: it may have been trained on the validation cases 'b', whose" in (
        caplog.text
    )


def test_without_its_fold_all_others_teach_and_validation_cases_are_warned_of(tmp_path, caplog):
    model = saved_model(tmp_path / "model", small_plans(), ("0", "1"))
    assert len(teacher_of(model, "3").networks) == 2
    assert f"{model} has no finished fold 3: it may have been trained on the" in caplog.text
    assert "'a', 'b'" in caplog.text
    caplog.clear()
    assert len(teacher_of(model, "all", ()).networks) == 2  # nothing is validated there
    assert not caplog.records


def test_a_zipped_teacher_teaches_the_same(tmp_path):
    model = saved_model(tmp_path / "model", small_plans())
    zipped = shutil.make_archive(str(tmp_path / "model"), "zip", model)
    one, other = (teacher_of(path) for path in (model, tmp_path / "model.zip"))
    assert zipped.endswith("model.zip") and one.digest == other.digest


def test_a_teacher_that_is_not_there_or_not_finished_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="the teacher is not there; .* with --c"):
        teacher_of(tmp_path / "moved")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no fold with a checkpoint_final.pth"):
        teacher_of(tmp_path / "empty")
    (tmp_path / "broken.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="broken.zip cannot be read as a zip file"):
        teacher_of(tmp_path / "broken.zip")
