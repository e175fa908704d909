import math

import pytest

from promptseg.training.logging import epochs_since_best, score


def row(auto=None, label=None, train_loss=0.5):
    return {"val_dice_auto": auto, "val_dice_label": label, "train_loss": train_loss}


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (row(auto=0.7, label=0.8), 0.7),
        (row(auto=None, label=0.8), 0.8),
        (row(auto=math.nan, label=0.8), 0.8),
        (row(auto=0.0, label=0.8), 0.0),
        (row(auto=None, label=math.nan), -0.5),
    ],
)
def test_the_score_is_the_first_dice_that_there_is(epoch, expected):
    assert score(epoch) == expected


@pytest.mark.parametrize(
    ("dice", "since"),
    [
        ([], 0),
        ([0.1], 0),
        ([0.1, 0.2], 0),
        ([0.2, 0.1], 1),
        ([0.2, 0.2, 0.2], 2),
        ([1, 0, 2, 1], 1),
    ],
)
def test_epochs_since_the_best_count_an_equal_score_as_no_better(dice, since):
    assert epochs_since_best([row(auto=value) for value in dice]) == since
