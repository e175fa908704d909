"""The groups of cases in a dataset.json; the rest of it is tested in test_raw_dataset.py."""

import json

import pytest

from promptseg.io.dataset import case_groups, problems_of_content

SOUND = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".mha"}


def dataset_json(folder, **entries):
    path = folder / "dataset.json"
    path.write_text(json.dumps(SOUND | entries))
    return path


def test_groups_are_optional_and_extra_cases_do_no_harm(tmp_path):
    assert case_groups(dataset_json(tmp_path), ["b", "a"]) is None
    path = dataset_json(tmp_path, groups={"a": "p 1", "test_case": "p9", "b": "p2"})
    groups = case_groups(path, ["b", "a"])
    assert list(groups.items()) == [("b", "p2"), ("a", "p 1")]
    assert problems_of_content(json.loads(path.read_text())) == []


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        (None, 'expected {"CASE": "GROUP", ...}, found None'),
        ({}, 'expected {"CASE": "GROUP", ...}, found {}'),
        ([], 'expected {"CASE": "GROUP", ...}, found []'),
        (["p1", "p2"], 'expected {"CASE": "GROUP", ...}, found'),
        ("^p", 'expected {"CASE": "GROUP", ...}, found \'^p\''),
        (5, 'expected {"CASE": "GROUP", ...}, found 5'),
        ({"p1": ["a"], "p2": ["b", "c"]}, "found each group with a list of its cases; write"),
        ({"a": "p1", "b": 2}, "as text, for 'b', found 2"),
        ({"a": "p1", "b": None}, "as text, for 'b', found None"),
        ({"a": "p1", "b": ["p2"]}, "as text, for 'b', found ['p2']"),
        ({"a": "p1", "b": {"id": 2}}, "as text, for 'b', found {'id': 2}"),
        ({"a": "p1", "b": True}, "as text, for 'b', found True"),
        ({"a": "p1", "b": ""}, "as text, for 'b', found ''"),
        ({"a": "p1", "b": " \t"}, "as text, for 'b', found ' \\t'"),
    ],
)
def test_malformed_groups_are_put_in_words(tmp_path, groups, problem):
    (found,) = problems_of_content(SOUND | {"groups": groups})
    assert found.startswith("groups: ") and problem in found
    path = dataset_json(tmp_path, groups=groups)
    with pytest.raises(ValueError, match=r"dataset\.json: groups: expected") as info:
        case_groups(path, ["a", "b"])
    assert str(info.value) == f"{path}: {found}"


def test_every_problem_of_the_groups_is_listed_beside_the_others():
    problems = problems_of_content(SOUND | {"groups": {"a": 1, "b": "p", "c": 2}, "labels": None})
    assert len(problems) == 3
    assert sum(problem.startswith("groups: ") for problem in problems) == 2


def test_cases_without_a_group_are_listed_with_names_that_fit_no_case(tmp_path):
    path = dataset_json(tmp_path, groups={"a": "p1", "B": "p2", "case_c": "p3"})
    with pytest.raises(ValueError, match="2 of 3 cases have no group, 'b', 'c'; give") as info:
        case_groups(path, ["a", "b", "c"])
    assert str(path) in str(info.value) and "there are no cases 'B', 'case_c'" in str(info.value)


def test_of_many_cases_without_a_group_ten_are_listed(tmp_path):
    path = dataset_json(tmp_path, groups={"a": "p1"})
    with pytest.raises(ValueError, match="20 of 21 cases .*, 'c9' and 10 more; give") as info:
        case_groups(path, ["a"] + [f"c{i}" for i in range(20)])
    assert "there are no cases" not in str(info.value)
