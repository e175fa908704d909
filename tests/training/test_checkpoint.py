import os

import pytest
import torch
from torch import nn

from promptseg.training.checkpoint import (
    check_same_cases,
    last_checkpoint,
    load_checkpoint,
    load_weights,
    random_state,
    remove_leftovers,
    restore_random_state,
    save_checkpoint,
)


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    path = tmp_path / "checkpoint_latest.pth"
    save_checkpoint(path, {"network": {"w": torch.arange(3.0)}, "step": 5, "rows": [{"a": None}]})
    content = load_checkpoint(path)
    torch.testing.assert_close(content["network"]["w"], torch.arange(3.0))
    assert (content["step"], content["rows"]) == (5, [{"a": None}])


def test_a_failing_write_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "checkpoint_latest.pth"
    save_checkpoint(path, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(path, {"step": 2, "bad": (i for i in range(3))})
    assert load_checkpoint(path)["step"] == 1
    assert os.listdir(tmp_path) == ["checkpoint_latest.pth"]


class Trap:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    torch.save({"format_version": 1, "network": Trap(trace)}, path)
    with pytest.raises(ValueError, match="evil.pth cannot be read as a checkpoint"):
        load_checkpoint(path)
    assert not trace.exists()


def test_weights_of_a_network_of_another_shape_are_refused_with_what_to_do():
    network = nn.Linear(2, 3)
    before = network.weight.detach().clone()
    with pytest.raises(ValueError, match="old.pth has the weights.*train again") as raised:
        load_weights(network, {"weight": torch.ones(3, 4), "bias": torch.ones(3)}, "old.pth")
    assert "size mismatch for weight" in str(raised.value)
    assert torch.equal(network.weight, before)
    with pytest.raises(ValueError, match="another network .*Missing key"):
        load_weights(network, {"weight": torch.ones(3, 2)}, "old.pth")
    load_weights(network, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, "old.pth")
    assert torch.equal(network.weight, torch.ones(3, 2))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "damaged.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged.pth cannot be read as a checkpoint"):
        load_checkpoint(path)


def test_foreign_and_future_checkpoints_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"weights": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="is not a promptseg checkpoint"):
        load_checkpoint(path)
    torch.save({"format_version": 99}, path)
    with pytest.raises(ValueError, match="format 99, this version of promptseg reads 1"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="promptseg_train writes it"):
        load_checkpoint(tmp_path / "none.pth")


CASES = {"training_cases": ["a", "b", "c", "d", "e"], "validation_cases": ["x", "y"]}


@pytest.mark.parametrize(
    ("training", "validation", "message"),
    [
        (
            "abcx",
            "dey",
            r"now: 1 more for training \('x'\), 2 fewer for training \('d', 'e'\), 2 m",
        ),
        ("abcde", "x", r"now: 1 fewer for validation \('y'\); put the cases and splits_final.json"),
        ("abcdexy", "", r"2 more for training .*, 2 fewer for validation .* with --overwrite"),
        ("abcdefghijklmnopqr", "xy", r"latest.pth .* 13 more for training .* and \d more\)"),
    ],
)
def test_a_checkpoint_of_other_cases_is_refused_naming_a_few(
    tmp_path, training, validation, message
):
    now = {"training_cases": list(training), "validation_cases": list(validation)}
    with pytest.raises(ValueError, match=message):
        check_same_cases(tmp_path / "checkpoint_latest.pth", {"step": 3, **CASES}, now)


def test_the_same_cases_in_another_order_and_checkpoints_without_any_are_continued(tmp_path):
    check_same_cases(tmp_path, CASES, {name: cases[::-1] for name, cases in CASES.items()})
    check_same_cases(tmp_path, {"step": 3}, CASES)


def test_the_random_state_comes_back_through_a_file(tmp_path):
    path = tmp_path / "checkpoint_latest.pth"
    state = random_state("cpu")
    assert state["cuda_random_state"] is None
    save_checkpoint(path, state)
    drawn = torch.rand(5)
    torch.rand(3)
    restore_random_state(load_checkpoint(path), "cpu")
    assert torch.equal(torch.rand(5), drawn)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_random_state_of_a_gpu_comes_back_through_a_file(tmp_path):
    path = tmp_path / "checkpoint_latest.pth"
    save_checkpoint(path, random_state("cuda"))
    drawn = torch.rand(5, device="cuda")
    restore_random_state(load_checkpoint(path), "cuda")
    assert torch.equal(torch.rand(5, device="cuda"), drawn)


def write_steps(folder, **steps):
    for name, step in steps.items():
        save_checkpoint(folder / f"checkpoint_{name}.pth", {"step": step})


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ({"latest": 3, "final": 5, "best": 4}, "latest"),
        ({"final": 5, "best": 4}, "final"),
        ({"final": 5, "best": 8}, "best"),
        ({"best": 4}, "best"),
    ],
)
def test_the_latest_checkpoint_is_continued_or_the_one_with_most_steps(tmp_path, steps, expected):
    write_steps(tmp_path, **steps)
    path, content = last_checkpoint(tmp_path)
    assert path.name == f"checkpoint_{expected}.pth"
    assert content["step"] == steps[expected]


def test_a_damaged_latest_checkpoint_is_refused_with_what_else_there_is(tmp_path):
    damaged = tmp_path / "checkpoint_latest.pth"
    damaged.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match="checkpoint_latest.pth cannot be read") as refusal:
        last_checkpoint(tmp_path)
    assert "continues from" not in str(refusal.value)
    write_steps(tmp_path, final=5, best=4)
    with pytest.raises(ValueError, match="--c continues from checkpoint_final.pth or check"):
        last_checkpoint(tmp_path)


def test_only_checkpoints_of_a_run_are_removed(tmp_path):
    write_steps(tmp_path, latest=3, final=5, best=4, mine=1)
    remove_leftovers(tmp_path, checkpoints=True)
    assert os.listdir(tmp_path) == ["checkpoint_mine.pth"]
