import os

import pytest
import torch

from promptseg.training.checkpoint import load_checkpoint, save_checkpoint


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


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "damaged.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged.pth cannot be read as a checkpoint"):
        load_checkpoint(path)


def test_foreign_and_future_checkpoints_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"weights": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="is no promptseg checkpoint"):
        load_checkpoint(path)
    torch.save({"format_version": 99}, path)
    with pytest.raises(ValueError, match="format 99, this version of promptseg reads 1"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="promptseg_train writes it"):
        load_checkpoint(tmp_path / "none.pth")
