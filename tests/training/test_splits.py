import json
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptseg.commands import plan, train
from promptseg.training.splits import (
    cases_of_fold,
    fold_cases,
    groups_by_regex,
    load_or_make_splits,
    make_splits,
    shared_groups,
)
from tests.synthetic import write_raw_dataset

SCANS = ["p1_a", "p1_b", "p2_a", "p3_a", "p3_b", "p3_c", "p4_a", "p5_a", "p6_a"]


def patients(case_ids):
    return {case_id: case_id.split("_")[0] for case_id in case_ids}


def planned_dataset(folder, groups=None, splits=None):
    """What `cases_of_fold` reads of a preprocessed dataset."""
    content = {} if groups is None else {"groups": groups}
    (folder / "dataset.json").write_text(json.dumps(content))
    if splits is not None:
        (folder / "splits_final.json").write_text(json.dumps(splits))
    return folder


def test_the_folds_are_those_of_nnunet():
    # KFold shuffles the indices with RandomState(12345) and cuts them into runs; each run, in
    # sorted order, is one validation set.
    case_ids = [f"case_{i:02d}" for i in range(12)]
    order = np.arange(12)
    np.random.RandomState(12345).shuffle(order)
    runs = np.split(order, [3, 6, 8, 10])  # 12 = 3 + 3 + 2 + 2 + 2

    splits = make_splits(reversed(case_ids))

    assert [s["val"] for s in splits] == [[case_ids[i] for i in sorted(run)] for run in runs]
    for split in splits:
        assert sorted(split["train"] + split["val"]) == case_ids


def test_few_cases_become_a_fold_each_and_a_single_one_serves_both_halves():
    assert [s["val"] for s in make_splits(["b", "a", "c"])] != []
    assert sorted(s["val"][0] for s in make_splits(["b", "a", "c"])) == ["a", "b", "c"]
    assert make_splits(["only"]) == [{"train": ["only"], "val": ["only"]}]


def test_an_existing_splits_file_is_used_as_it_is(tmp_path):
    path = tmp_path / "splits_final.json"
    mine = [{"train": ["a"], "val": ["b"]}]
    path.write_text(json.dumps(mine))

    assert load_or_make_splits(path, ["a", "b", "c"]) == mine
    assert load_or_make_splits(path, ["a", "b", "c"], {"a": "1", "b": "2", "c": "1"}) == mine
    assert json.loads(path.read_text()) == mine


@pytest.mark.parametrize(
    "content",
    [{}, [[]], [{"train": ["a"]}], [1], [{"train": "a", "val": ["b"]}]]
    + [[{"train": ["a"], "val": half}] for half in (None, 3, "b", [1], [["b"]], {"b": 1})],
)
def test_a_malformed_splits_file_is_refused(tmp_path, content):
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"splits_final.json: expected a list of"):
        load_or_make_splits(path, ["a"])


def test_fold_all_trains_on_everything_and_holds_nothing_back():
    assert fold_cases(make_splits(["b", "a"]), "all", ["b", "a"]) == (["a", "b"], [])


@pytest.mark.parametrize("fold", ["5", "-1", "first", "", "00", "0 ", "1.0", "²", "٣", "All"])
def test_unknown_folds_are_refused(fold):
    with pytest.raises(ValueError, match="unknown fold .*there are 0 to 4, and `all`"):
        fold_cases(make_splits("abcdefgh"), fold, list("abcdefgh"))


def test_a_fold_with_cases_that_are_gone_says_which():
    with pytest.raises(ValueError, match="1 cases that are not preprocessed, first 'b'"):
        fold_cases([{"train": ["a"], "val": ["b"]}], "0", ["a"])


# Groups


def test_the_largest_group_goes_first_each_to_the_lightest_fold():
    # 9 cases, 3 folds: p3 (3 cases) opens the first, p1 (2) the second. Of the four patients with
    # one scan, in drawn order, two fill the third, which then has 2 as the second has; each of
    # these gets one more.
    held = [split["val"] for split in make_splits(SCANS, 3, patients(SCANS))]
    assert held[0] == ["p3_a", "p3_b", "p3_c"]
    assert held[1][:2] == ["p1_a", "p1_b"] and len(held[1]) == 3
    singles = [case_id for case_id in SCANS if case_id[:2] in ("p2", "p4", "p5", "p6")]
    assert sorted(held[1][2:] + held[2]) == singles and len(held[2]) == 3


def test_groups_of_several_cases_are_drawn_with_nnunets_seed():
    # Pairs only: the shuffled groups are dealt out in turn, round and round.
    case_ids = [f"p{i}_{scan}" for i in range(7) for scan in "ab"]
    order = np.random.RandomState(12345).permutation(7)
    expected = [
        sorted(f"p{i}_{scan}" for i in order[fold::5] for scan in "ab") for fold in range(5)
    ]
    assert [s["val"] for s in make_splits(case_ids, groups=patients(case_ids))] == expected


@pytest.mark.parametrize("count", [5, 12, 23])
def test_groups_of_one_case_each_leave_nnunets_folds(count):
    case_ids = [f"case_{i:02d}" for i in range(count)]
    assert make_splits(case_ids, groups=dict(zip(case_ids, case_ids, strict=True))) == make_splits(
        case_ids
    )


@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=30),
    folds=st.integers(2, 6),
    order=st.randoms(use_true_random=False),
)
def test_no_group_is_in_both_halves_every_case_validates_once_and_folds_are_even(
    sizes, folds, order
):
    groups = {f"c{g}_{i}": f"patient {g}" for g, size in enumerate(sizes) for i in range(size)}
    shuffled = list(groups)
    order.shuffle(shuffled)
    if len(sizes) < folds:
        with pytest.raises(ValueError, match=f"found {len(sizes)} groups in {sum(sizes)} cases"):
            make_splits(shuffled, folds, groups)
        return

    splits = make_splits(shuffled, folds, groups)

    assert splits == make_splits(list(groups), folds, groups)
    assert len(splits) == folds
    assert sorted(c for split in splits for c in split["val"]) == sorted(groups)
    for split in splits:
        train, val = split["train"], split["val"]
        assert train and val
        assert (train, val) == (sorted(train), sorted(val))
        assert sorted(train + val) == sorted(groups)
        assert not {groups[c] for c in train} & {groups[c] for c in val}
    held = [len(split["val"]) for split in splits]
    assert max(held) - min(held) <= max(sizes)


def test_fewer_groups_than_folds_are_refused_with_counts_and_a_way_out():
    case_ids = ["a_1", "a_2", "a_3", "b_1", "b_2", "c_1"]
    with pytest.raises(ValueError, match="5 folds need at least 5 groups") as info:
        make_splits(case_ids, groups=patients(case_ids))
    assert "found 3 groups in 6 cases, 'a', 'b', 'c'" in str(info.value)
    assert "-f all" in str(info.value)


def test_a_splits_file_that_breaks_groups_is_refused_with_every_fold_and_patient(tmp_path):
    path = tmp_path / "splits_final.json"
    splits = [
        {"train": ["p1_a", "p2_a", "p3_a"], "val": ["p1_b", "p3_b", "p3_c"]},
        {"train": ["p1_a", "p1_b"], "val": ["p3_a"]},
        {"train": ["p3_a"], "val": ["p3_b"]},
    ]
    path.write_text(json.dumps(splits))
    with pytest.raises(ValueError, match="groups have cases in both halves") as info:
        load_or_make_splits(path, SCANS, patients(SCANS))
    assert f"{path}: " in str(info.value) and "remove the file" in str(info.value)
    assert "fold 0: 'p1', 'p3'; fold 2: 'p3'; expected" in str(info.value)
    assert json.loads(path.read_text()) == splits


def test_many_shared_groups_are_counted():
    case_ids = [f"p{i:02d}_{scan}" for i in range(12) for scan in "ab"]
    shared = shared_groups(case_ids[::2], case_ids[1::2], patients(case_ids))
    assert shared == [f"p{i:02d}" for i in range(12)]


def test_cases_of_no_group_share_none():
    assert shared_groups(["a", "b"], ["a", "c"], {"b": "1", "c": "2"}) == []


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"p\d", ["p1", "p1", "p2"]),
        (r"^([^_]+)_", ["p1", "p1", "p2"]),
        (r"(?:p)(\d)_scan(\d+)", ["1", "1", "2"]),
        (r"_scan\d+", ["_scan1", "_scan10", "_scan1"]),
        (r".+", ["p1_scan1", "p1_scan10", "p2_scan1"]),
    ],
)
def test_the_first_parenthesis_or_the_whole_match_is_the_group(pattern, expected):
    case_ids = ["p1_scan1", "p1_scan10", "p2_scan1"]
    assert groups_by_regex(case_ids, pattern) == dict(zip(case_ids, expected, strict=True))


@pytest.mark.parametrize(
    ("pattern", "missing"),
    [
        (r"^p\d", "1 of 3 cases, 'x9'"),
        (r"zzz", "3 of 3 cases, 'p1_a', 'p2_a', 'x9'"),
        (r"(p2)?", "2 of 3 cases, 'p1_a', 'x9'"),  # matches everywhere, but its group nothing
        (r"()x|p", "3 of 3 cases"),
        (r"", "3 of 3 cases"),
        (r"\b", "3 of 3 cases"),
    ],
)
def test_cases_in_which_the_pattern_finds_nothing_are_listed(pattern, missing):
    with pytest.raises(ValueError, match="finds no group in") as info:
        groups_by_regex(["p1_a", "p2_a", "x9"], pattern)
    assert missing in str(info.value) and repr(pattern) in str(info.value)


def test_of_many_cases_without_a_group_ten_are_listed():
    with pytest.raises(ValueError, match=r"12 of 12 cases, 'c0', .*, 'c9' and 2 more;"):
        groups_by_regex([f"c{i}" for i in range(12)], "x")


@pytest.mark.parametrize("pattern", ["(", "[a", "*", "(?P<x", "\\", "a{2,1}"])
def test_what_is_no_regular_expression_is_refused(pattern):
    with pytest.raises(ValueError, match="--group-regex .* is not a regular expression"):
        groups_by_regex(["a"], pattern)


# A preprocessed dataset


def test_groups_of_the_dataset_make_the_splits_file(tmp_path, caplog):
    planned_dataset(tmp_path, groups=patients(SCANS))
    for fold in range(5):
        train, val = cases_of_fold(tmp_path, str(fold), SCANS)
        assert shared_groups(train, val, patients(SCANS)) == []
        assert sorted(train + val) == SCANS
    written = json.loads((tmp_path / "splits_final.json").read_text())
    assert written == make_splits(SCANS, groups=patients(SCANS))
    assert caplog.text == ""


def test_without_groups_the_splits_file_is_nnunets(tmp_path, caplog):
    cases_of_fold(planned_dataset(tmp_path), "0", SCANS)
    assert json.loads((tmp_path / "splits_final.json").read_text()) == make_splits(SCANS)
    assert caplog.text == ""


def test_the_regex_splits_and_says_what_the_automatic_prompts_did(tmp_path, caplog):
    planned_dataset(tmp_path)
    cases_of_fold(tmp_path, "0", SCANS, r"^p\d")
    written = json.loads((tmp_path / "splits_final.json").read_text())
    assert written == make_splits(SCANS, groups=patients(SCANS))
    assert "automatic prompts were cross-validated without these groups" in caplog.text


@pytest.mark.parametrize(
    ("of_dataset", "regex"),
    [
        ({c: c.upper()[:2] for c in SCANS}, r"^p\d"),  # the same groups by other names
        ({c: "p1 and p2" if c[:2] in ("p1", "p2") else c[:2] for c in SCANS}, r"^p\d"),  # coarser
        (None, ".+"),
    ],
)
def test_no_warning_where_the_planning_kept_these_groups_together(
    tmp_path, caplog, of_dataset, regex
):
    cases_of_fold(planned_dataset(tmp_path, groups=of_dataset), "2", SCANS, regex)
    assert "cross-validated" not in caplog.text


def test_every_case_its_own_group_keeps_a_splits_file_with_a_warning(tmp_path, caplog):
    splits = [{"train": ["p1_a", "p3_a"], "val": ["p1_b", "p2_a", "p3_b"]}]
    planned_dataset(tmp_path, groups=patients(SCANS), splits=splits)
    with pytest.raises(ValueError, match="both halves, fold 0: 'p1', 'p3'; .* '.\\+' to take"):
        cases_of_fold(tmp_path, "0", SCANS)
    with caplog.at_level(logging.WARNING):
        train, val = cases_of_fold(tmp_path, "0", SCANS, ".+")
    assert [{"train": train, "val": val}] == splits
    assert "in both halves, since --group-regex takes their place: 'p1', 'p3'" in caplog.text


def test_another_regex_than_the_folds_were_made_with_is_refused(tmp_path):
    planned_dataset(tmp_path)
    cases_of_fold(tmp_path, "0", SCANS, r"^p\d")
    before = (tmp_path / "splits_final.json").read_bytes()
    with pytest.raises(ValueError, match="groups have cases in both halves"):
        cases_of_fold(tmp_path, "0", SCANS, r"[abc]$")  # by scan
    assert (tmp_path / "splits_final.json").read_bytes() == before


def test_fold_all_needs_no_splits_and_writes_none(tmp_path):
    planned_dataset(tmp_path, groups={"p1_a": "p1"})
    assert cases_of_fold(tmp_path, "all", SCANS[::-1], r"^p\d") == (SCANS, [])
    assert not (tmp_path / "splits_final.json").exists()


def test_a_case_without_group_is_named_before_anything_is_written(tmp_path):
    groups = patients(SCANS)
    del groups["p5_a"]
    planned_dataset(tmp_path, groups=groups)
    with pytest.raises(ValueError, match=r"dataset\.json: groups: 1 of 9 cases .*, 'p5_a'"):
        cases_of_fold(tmp_path, "0", SCANS)
    assert not (tmp_path / "splits_final.json").exists()


def test_the_command_refuses_bad_expressions_and_groups_before_it_trains(tmp_path, capsys):
    write_raw_dataset(tmp_path / "raw", cases=["p1_a", "p1_b", "p2_a"])
    roots = [f"--{name}={tmp_path / name}" for name in ("raw", "preprocessed", "results")]
    assert plan.main(["-d", "1", "-np", "0", *roots[:2]]) == 0
    for pattern, message in (
        ("^p1", "finds no group in 1 of 3 cases, 'p2_a'"),
        ("(", "is not a regular expression"),
        ("^p.", "5 folds need at least 5 groups"),
    ):
        arguments = ["-d", "1", "-f", "0", "1", "--group-regex", pattern, *roots[1:]]
        assert train.main(arguments) == 1
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    assert not (tmp_path / "results").exists()


def test_cases_in_no_half_or_in_both_are_warned_of(caplog):
    splits = [{"train": ["a", "b"], "val": ["b", "c"]}]
    assert fold_cases(splits, "0", list("abcxy")) == (["a", "b"], ["b", "c"])
    assert "fold 0: 'b' both train and validate" in caplog.text
    assert "2 cases neither train nor validate ('x', 'y'); where they are new" in caplog.text
    caplog.clear()
    fold_cases([{"train": ["a"], "val": ["b"]}], "0", ["a", "b"])
    assert not caplog.text
