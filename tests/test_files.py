from __future__ import annotations

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptseg.files import move_into_place, read_json, replacing, write_json


def test_a_replaced_file_has_the_new_content_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "a.txt"
    for text in ("one", "two"):
        with replacing(path) as temporary:
            assert temporary.name == "a.txt" and temporary.parent.name.startswith(".")
            temporary.write_text(text)
        assert path.read_text() == text
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_what_is_synced_is_open_for_writing(tmp_path, monkeypatch):
    # Windows refuses to sync a file that is open for reading only.
    fcntl = pytest.importorskip("fcntl")
    modes = []

    def fsync(descriptor):
        modes.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE)

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    assert modes == [os.O_RDWR] and (tmp_path / "a.txt").read_text() == "x"


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise KeyError("stop")

    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_files_that_belong_together_are_moved_in_their_order_once_all_are_on_the_disk(
    tmp_path, monkeypatch
):
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "a.txt").write_text("old")
    paths = [tmp_path / name for name in ("b.txt", "a.txt", "c.json")]
    events, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda _: events.append("sync"))
    monkeypatch.setattr(os, "replace", lambda a, b: events.append(b.name) or replace(a, b))

    paths[0].write_text("one alone")
    with pytest.raises(FileNotFoundError):
        move_into_place(paths, tmp_path / "to")
    assert {p.read_text() for p in (tmp_path / "to").iterdir()} == {"old"}
    events.clear()

    for path in paths:
        path.write_text("new")
    move_into_place(paths, tmp_path / "to")
    assert events == ["sync"] * 3 + ["b.txt", "a.txt", "c.json"]
    assert [p.read_text() for p in (tmp_path / "to").iterdir()] == ["new"] * 3


def test_a_name_as_long_as_the_file_system_allows_can_be_replaced(tmp_path):
    with replacing(tmp_path / ("n" * 255)) as temporary:
        temporary.write_text("x")
    assert (tmp_path / ("n" * 255)).read_text() == "x"


def test_numpy_values_nan_and_tuples_become_plain_json(tmp_path):
    content = {
        1: np.float32(0.5),
        "array": np.array([[1, 2]], np.uint8),
        "nan": [float("nan"), np.float64("nan"), np.array([np.nan, 1.0])],
        "flag": np.bool_(True),
        "tuple": (1, "ä"),
    }
    write_json(tmp_path / "a.json", content)

    assert read_json(tmp_path / "a.json") == {
        "1": 0.5,
        "array": [[1, 2]],
        "nan": [None, None, [None, 1.0]],
        "flag": True,
        "tuple": [1, "ä"],
    }


@pytest.mark.parametrize("content", [float("inf"), [np.inf], {"a": object()}, {1, 2}])
def test_what_has_no_json_form_is_refused_by_file(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text("[]")

    with pytest.raises(ValueError, match=r"a\.json: content cannot be written as JSON"):
        write_json(path, content)
    assert read_json(path) == []


def test_a_byte_order_mark_is_accepted(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": 1}).encode())
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("text", [b"", b"{", b'{"a": 1,}', b"\xff\xfe\x00", b"nope"])
def test_what_is_no_json_is_refused_by_file(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_a_missing_json_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "gone.json", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"{path.name}: no such file"):
            read_json(path)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=20,
    )
)  # fmt: skip
@settings(deadline=None, max_examples=100)
def test_json_for_people_is_the_same_json(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.json"
    write_json(path, content)
    assert read_json(path) == content


def test_a_box_stays_on_one_line(tmp_path):
    write_json(tmp_path / "a.json", {"case": {"boxes": [[[1, 2, 3], [4, 5, 6]]], "reason": "ok"}})
    expected = (
        '{\n  "case": {\n    "boxes": [[[1, 2, 3], [4, 5, 6]]],\n    "reason": "ok"\n  }\n}\n'
    )
    assert (tmp_path / "a.json").read_text() == expected
