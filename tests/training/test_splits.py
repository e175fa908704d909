import json

import numpy as np
import pytest

from promptseg.training.splits import fold_cases, load_or_make_splits, make_splits


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
    assert json.loads(path.read_text()) == mine


@pytest.mark.parametrize("content", [{}, [[]], [{"train": ["a"]}], [1]])
def test_a_malformed_splits_file_is_refused(tmp_path, content):
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"splits_final.json: expected a list of"):
        load_or_make_splits(path, ["a"])


def test_fold_all_trains_on_everything_and_holds_nothing_back():
    assert fold_cases(make_splits(["b", "a"]), "all", ["b", "a"]) == (["a", "b"], [])


@pytest.mark.parametrize("fold", ["5", "-1", "first", ""])
def test_unknown_folds_are_refused(fold):
    with pytest.raises(ValueError, match="unknown fold .*there are 0 to 4, and `all`"):
        fold_cases(make_splits("abcdefgh"), fold, list("abcdefgh"))


def test_a_fold_with_cases_that_are_gone_says_which():
    with pytest.raises(ValueError, match="1 cases that are not preprocessed, first 'b'"):
        fold_cases([{"train": ["a"], "val": ["b"]}], "0", ["a"])
