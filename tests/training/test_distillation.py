"""A student of a trained model: the loss, what is refused, resuming, the command."""

import dataclasses
import math
import signal

import pytest
import torch
from torch import nn

from promptseg.commands import train as command
from promptseg.inference.load import load_networks
from promptseg.networks.promptable import build_network
from promptseg.plans import load_plans
from promptseg.training.checkpoint import load_checkpoint, save_checkpoint
from promptseg.training.distillation import Teacher, check_teacher_fits, distillation_loss
from promptseg.training.fold import load_fold
from promptseg.training.losses import hard_dice
from promptseg.training.optimizer import seed_everything
from promptseg.training.request import RunOptions
from promptseg.training.settings import TrainingSettings
from promptseg.training.step import Learner
from promptseg.training.trainers import TRAINERS
from tests.saved_model import saved_model, untrained
from tests.small_plans import small_plans
from tests.trained import train
from tests.training.test_step import assert_equal_states, batch, take_steps

SHORT = {"epochs": 1, "iterations_per_epoch": 2, "processes": 0}


def student(teacher, encoder="mobilenet", **settings) -> Learner:
    seed_everything(3)
    network = build_network(small_plans(), encoder).train()
    plans, options = small_plans(), RunOptions(device="cpu")
    return Learner(network, TrainingSettings(**settings), options, plans.labels, teacher)


class Oracle(nn.Module):
    """Answers with the truth of `batch(seed)`, the logits +-4; raises SIGTERM at one call."""

    def __init__(self, terminate_at=None):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([4.0]))
        self.calls, self.terminate_at = 0, terminate_at

    def forward(self, image, prompts):
        self.calls += 1
        if self.calls == self.terminate_at:
            signal.raise_signal(signal.SIGTERM)
        bright = image[prompts.image_index, 0] > 125
        return self.weight * (2.0 * bright - 1), torch.zeros(len(prompts))


def test_the_loss_is_the_divergence_of_two_softened_answers():
    # Temperature 2. The teacher's probabilities are 0.75 and 0.5. The student's logits 2 ln 3 and
    # -2 ln 3 soften to ln 3 and -ln 3: 0.75, where nothing is to be learned, and 0.25, where
    # KL(0.5 || 0.25) = 0.5 ln(0.5 / 0.25) + 0.5 ln(0.5 / 0.75) = 0.5 ln(4 / 3).
    # The mean of both voxels, times 2^2: 4 * 0.25 ln(4 / 3) = ln(4 / 3).
    logits = torch.tensor([2 * math.log(3), -2 * math.log(3)]).reshape(1, 1, 1, 2)
    probabilities = torch.tensor([0.75, 0.5]).reshape(1, 1, 1, 2)
    loss = distillation_loss(logits, probabilities, 2.0)
    assert float(loss) == pytest.approx(math.log(4 / 3), abs=1e-6)


def test_the_loss_is_finite_for_a_teacher_that_is_certain():
    logits = torch.tensor([100.0, -100.0, 0.0]).reshape(1, 1, 1, 3)
    probabilities = torch.tensor([1.0, 0.0, 1.0]).reshape(1, 1, 1, 3)
    loss = distillation_loss(logits, probabilities, 1.0)  # KL(1 || 0.5) = ln 2 in a third of it
    assert float(loss) == pytest.approx(math.log(2) / 3, rel=1e-6)


def test_the_gradient_is_the_difference_of_the_probabilities():
    # d/dz T^2 KL(q || sigmoid(z / T)) = T (sigmoid(z / T) - q), here over n = 2 * 3 * 4 voxels
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((1, 2, 3, 4), generator=generator).requires_grad_()
    probabilities = torch.rand((1, 2, 3, 4), generator=generator)
    distillation_loss(logits, probabilities, 3.0).backward()
    expected = 3.0 * ((logits.detach() / 3.0).sigmoid() - probabilities) / 24
    torch.testing.assert_close(logits.grad, expected)


def test_several_networks_teach_their_mean_probability():
    one, other = untrained(seed=1), untrained(seed=2)
    asked = batch()
    found = Teacher([one, other], "model").probabilities(asked, 2.0)
    with torch.no_grad():
        logits = [network(asked.image, asked.prompts)[0] for network in (one, other)]
    expected = (torch.sigmoid(logits[0] / 2) + torch.sigmoid(logits[1] / 2)) / 2
    assert found.shape == (2, 8, 12, 16)
    torch.testing.assert_close(found, expected)


def test_only_the_student_changes():
    teacher = Teacher([untrained()], "model")
    before = {name: value.clone() for name, value in teacher.networks.state_dict().items()}
    run = student(teacher, ema=0.9)
    loss = run.compute_loss(batch())
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.networks.parameters())
    assert all(p.grad is not None for p in run.network.image_encoder.parameters())
    take_steps(run, [0, 1])
    assert not teacher.networks.training
    for name, value in teacher.networks.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any("teacher" in name for name in run.state()["network"])


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_term_is_added_with_its_weight(weight):
    plain = student(None, precision="fp32").compute_loss(batch())
    teacher = Teacher([untrained()], "model")
    logits, _ = student(None).network(batch().image, batch().prompts)
    term = distillation_loss(logits, teacher.probabilities(batch(), 3.0), 3.0)
    settings = {"teacher_weight": weight, "teacher_temperature": 3.0, "precision": "fp32"}
    taught = student(teacher, **settings).compute_loss(batch())
    assert float(term.detach()) > 0
    torch.testing.assert_close(taught, plain + weight * term)


def test_a_student_of_a_good_teacher_learns_faster_where_labels_are_wrong():
    # Every other batch has its labels moved. Alone the student learns what both have in common
    # (Dice 0.76 after nine steps), of a teacher that knows the truth nearly all of it (0.92).
    reached = {}
    for name, teacher in (("alone", None), ("taught", Teacher([Oracle()], "truth"))):
        run = student(teacher)
        for seed in range(9):
            seen = batch(seed)
            if seed % 2:
                segmentation, targets = (
                    torch.roll(part, (0, 3, 5), (1, 2, 3))
                    for part in (seen.segmentation, seen.targets)
                )
                seen = dataclasses.replace(seen, segmentation=segmentation, targets=targets)
            run.optimizer_step(run.compute_loss(seen), 1e-3)
        seen = batch(99)
        with torch.no_grad():
            logits, _ = run.network(seen.image, seen.prompts)
        reached[name] = float(hard_dice(logits, seen.targets).mean())
    assert reached["taught"] > reached["alone"] + 0.1


@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"precision": "fp16", "ema": 0.9}])
def test_a_lower_precision_changes_the_loss_a_little(settings):
    teacher = Teacher([untrained()], "model")
    full, low = (
        student(teacher, precision="fp32").compute_loss(batch()),
        student(teacher, **settings).compute_loss(batch()),
    )
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, full, rtol=0.02, atol=0)


def test_a_frozen_encoder_of_a_student_stays_and_the_rest_learns():
    run = student(Teacher([untrained()], "model"), freeze="encoder")
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    take_steps(run, [0])
    after = run.network.state_dict()
    assert all(torch.equal(after[n], before[n]) for n in after if n.startswith("image_encoder."))
    name = "name_head.classes.weight"
    assert not torch.equal(after[name], before[name])


def test_a_digest_is_of_the_weights_and_not_of_where_they_are():
    digest = Teacher([untrained(seed=1)], "here").digest
    assert Teacher([untrained(seed=1)], "there").digest == digest and len(digest) == 64
    assert Teacher([untrained(seed=2)], "here").digest != digest
    both = [untrained(seed=1), untrained(seed=2)]
    assert Teacher(both, "here").digest != Teacher(both[::-1], "here").digest


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9, "precision": "fp16"}])
def test_a_restored_student_goes_on_as_if_it_had_not_been_stopped(tmp_path, settings):
    whole = student(Teacher([untrained()], "model"), **settings)
    take_steps(whole, [0])
    save_checkpoint(tmp_path / "checkpoint_latest.pth", whole.state())
    take_steps(whole, [1])
    again = student(Teacher([untrained()], "moved"), **settings)
    again.restore(load_checkpoint(tmp_path / "checkpoint_latest.pth"))
    take_steps(again, [1])
    assert_equal_states(again.state(), whole.state())


@pytest.mark.parametrize("digest", [None, "0123456789abcdef"])
def test_a_student_does_not_go_on_with_another_teacher(digest):
    run = student(Teacher([untrained()], "results/other"))
    expected = "None" if digest is None else "0123456789ab"
    message = (
        rf"results/other has other weights than the teacher this run began with \(found "
        rf"{run.teacher.digest[:12]}, expected {expected}\); .*--teacher, .* --overwrite"
    )
    with pytest.raises(ValueError, match=message):
        run.restore({**run.state(), "teacher": digest})


def test_size_stride_batch_and_prompts_of_a_teacher_may_differ():
    teacher = small_plans(
        size="base", stride=(4, 4, 4), batch_size=8, plans_name="Large", median_shape=(9, 9, 9)
    )
    check_teacher_fits(teacher, small_plans(), "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": {"liver": 1, "spleen": 2}},
            r"labels \[\('liver', 1\), .* there, .*'lesion', 5",
        ),
        ({"labels": {"liver": 1, "spleen": 2, "lesion": 3}}, r"'lesion', 3.* there, .*'lesion', 5"),
        ({"labels": {"spleen": 2, "liver": 1, "lesion": 5}}, r"labels \[\('spleen', 2\)"),
        ({"patch_size": (8, 12, 12)}, r"patch_size \(8, 12, 12\) there, \(8, 12, 16\) here"),
        ({"spacing": (2.5, 1.0, 1.0)}, r"spacing \(2.5, 1.0, 1.0\) there, \(2.5, 1.0, 0.75\) here"),
        ({"channel_names": ("MRI",)}, r"channel_names \('MRI',\) there, \('CT',\) here"),
        ({"modalities": ("PET",)}, r"modalities \('PET',\) there"),
        ({"normalizations": ()}, r"normalizations \(\) there, \(Normalization\("),
        ({"preset": "segvol"}, "preset segvol there, none here"),
        ({"patch_size": (8, 12, 12), "preset": "segvol"}, "preset segvol .*; patch_size .*12, 12"),
    ],
)
def test_a_teacher_of_other_plans_is_refused_with_what_differs(changes, message):
    message = f"model cannot teach with the plans PromptSegPlans of Dataset001_Small: .*{message}"
    with pytest.raises(ValueError, match=message):
        check_teacher_fits(small_plans(**changes), small_plans(), "model")


@pytest.mark.parametrize("name", ["teacher_weight", "teacher_temperature"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_settings_of_the_term_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"{name} must be positive, got {value}"):
        TrainingSettings(**{name: value})


@pytest.fixture(scope="module")
def taught(planned, tmp_path_factory):
    """Roots of the planned dataset with a teacher among the results, and the teacher's folder."""
    folders = dataclasses.replace(planned, results=tmp_path_factory.mktemp("results"))
    plans = load_plans(planned.preprocessed / "Dataset007_Boxes" / "PromptSegPlans.json")
    return folders, saved_model(folders.results / "teacher", plans, ("all",))


def arguments(folders, *more):
    roots = ["--preprocessed", str(folders.preprocessed), "--results", str(folders.results)]
    length = ["--epochs", "1", "--iterations", "2", "-np", "0"]
    return ["-d", "7", "-f", "all", *length, *roots, *map(str, more)]


def test_the_command_trains_a_student_that_predicts_without_its_teacher(taught, monkeypatch):
    folders, teacher = taught
    monkeypatch.chdir(teacher.parent)
    called = arguments(folders, "-tr", "DistillationTrainer", "--teacher", teacher.name)
    assert command.main(called) == 0
    model = folders.results / "Dataset007_Boxes" / "DistillationTrainer__PromptSegPlans__3d"
    content = load_checkpoint(model / "fold_all" / "checkpoint_final.pth")
    assert content["settings"]["teacher"] == str(teacher)  # from any other folder, too
    assert content["encoder"] == "mobilenet" and content["step"] == 2
    plain = build_network(load_plans(model / "plans.json"), "mobilenet")
    assert content["network"].keys() == plain.state_dict().keys()
    networks, _, _ = load_networks(model, ["all"], "checkpoint_final.pth")
    assert len(networks) == 1
    assert f"teacher: {teacher}, fold all" in (model / "fold_all" / "training_log.txt").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("-tr", "DistillationTrainer"), "DistillationTrainer learns from a trained model of the"),
        (
            ("-tr", "MobileNetTrainer", "--teacher", "x"),
            "MobileNetTrainer learns from labels alone",
        ),
        (("-tr", "DistillationTrainer", "--teacher", "x"), "x: the teacher is not there; give"),
        (("-tr", "DistillationTrainer", "--c"), "name its folder or zip file with --teacher"),
    ],
)
def test_the_command_refuses_in_one_line(taught, tmp_path, more, message, capsys):
    folders = dataclasses.replace(taught[0], results=tmp_path)
    assert command.main(arguments(folders, *more)) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def run_of(planned, folder, network, *, resume=False):
    """A prepared run of four steps, two an epoch, whose teacher is this network."""
    every = load_fold(planned.preprocessed / "Dataset007_Boxes", "PromptSegPlans", "all")
    run = TRAINERS.get("DistillationTrainer")(
        dataclasses.replace(every, training_cases=every.training_cases[:2]),
        folder,
        TrainingSettings(teacher="first", epochs=2, iterations_per_epoch=2, seed=5),
        RunOptions(device="cpu", processes=0, resume=resume),
        extend={"teacher": "second"} if resume else None,
        load_teacher=lambda path: Teacher([network], path),
    )
    run.prepare()
    return run


def test_a_stopped_student_ends_in_the_weights_of_one_that_was_not(planned, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run_of(planned, whole, Oracle()).run()
    assert not run_of(planned, stopped, Oracle(terminate_at=3)).run()
    assert load_checkpoint(stopped / "checkpoint_latest.pth")["step"] == 3
    again = run_of(planned, stopped, Oracle(), resume=True)
    assert again.settings.teacher == "second" and again.run()  # the teacher was moved
    one, other = (load_checkpoint(f / "checkpoint_final.pth") for f in (whole, stopped))
    assert_equal_states(one["network"], other["network"])
    assert one["teacher"] == other["teacher"] and one["rows"][1]["step"] == 4
    with pytest.raises(ValueError, match="second has other weights than the teacher this run"):
        run_of(planned, stopped, Oracle(terminate_at=1).half(), resume=True)


def test_a_continued_student_finds_its_teacher_or_is_told_where_it_is(planned, tmp_path):
    plans = load_plans(planned.preprocessed / "Dataset007_Boxes" / "PromptSegPlans.json")
    folders = dataclasses.replace(planned, results=tmp_path)
    teacher = saved_model(tmp_path / "teacher", plans, ("all",))
    student_of = {"trainer": "DistillationTrainer", "fold": "all", **SHORT}
    model = train(7, folders, teacher=teacher, **student_of)
    longer = {**student_of, "epochs": 2, "iterations_per_epoch": None, "resume": True}
    moved = teacher.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=f"{teacher}: the teacher is not there"):
        train(7, folders, **longer)
    train(7, folders, teacher=moved, **longer)
    content = load_checkpoint(model / "fold_all" / "checkpoint_final.pth")
    assert content["step"] == 4 and content["settings"]["teacher"] == str(moved)
