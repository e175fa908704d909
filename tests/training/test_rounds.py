"""Rounds of corrections: where clicks and scribbles go, and what a network is given."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import nn

from promptseg.networks.prompt_encoder import Query, batch_queries
from promptseg.prompts.simulated import error_click
from promptseg.training.rounds import answers_by_round, corrected

SHAPE = (5, 8, 9)


def example():
    """Three answers: one lacks a block, one has a block too many, one is right."""
    targets = np.zeros((3, *SHAPE), bool)
    targets[:, 1:4, 2:6, 2:7] = True
    logits = torch.where(torch.from_numpy(targets), 3.0, -3.0)
    logits[0, 1:4, 2:5, 2:5] = -1
    logits[1, 0, 6:, 7:] = 2
    queries = [
        Query(label=0),
        Query(label=1, points=[[2, 3, 4], [2, 4, 4]], point_labels=[1, 1]),
        Query(box=[[1, 2, 2], [4, 6, 7]]),
    ]
    return batch_queries(queries), logits.requires_grad_(), targets


def generators(seed=0, count=3):
    return [np.random.default_rng([seed, i]) for i in range(count)]


def test_a_correction_is_the_click_in_the_largest_error_beside_earlier_points():
    prompts, logits, targets = example()
    after = corrected(prompts, logits, targets)
    for i in range(2):
        point, kind = error_click((logits[i] > 0).numpy(), targets[i])
        assert after.points[i, -1].tolist() == point.tolist()
        assert after.point_labels[i, -1] == kind == 1 - i
    assert after.points[1, :2].tolist() == [[2, 3, 4], [2, 4, 4]]
    assert after.point_labels[2].tolist() == [-1, -1, -1]  # nothing to correct
    assert torch.equal(after.boxes, prompts.boxes) and torch.equal(after.labels, prompts.labels)


def test_the_answer_is_the_mask_to_correct_and_has_no_gradient():
    prompts, logits, targets = example()
    after = corrected(prompts, logits, targets)
    assert torch.equal(after.previous, logits.detach()) and not after.previous.requires_grad
    assert after.has_previous.all() and not prompts.has_previous.any()


def test_drawn_corrections_lie_in_the_error_and_say_what_is_there():
    prompts, logits, targets = example()
    wrong = (logits > 0).numpy() != targets
    several = 0
    for seed in range(40):
        after = corrected(prompts, logits, targets, generators(seed))
        for i in range(3):
            new = after.point_labels[i, 2:] >= 0
            for point, kind in zip(
                after.points[i, 2:][new], after.point_labels[i, 2:][new], strict=True
            ):
                z, y, x = point.long().tolist()
                assert wrong[i, z, y, x] and kind == targets[i, z, y, x]
            several += int(new.sum()) > 1
    assert several > 3  # scribbles


def test_a_correction_depends_on_its_own_generator_alone():
    prompts, logits, targets = example()
    for seed in range(10):
        whole = corrected(prompts, logits, targets, generators(seed))
        for i in range(3):
            one = slice(i, i + 1)
            alone = corrected(prompts[one], logits[one], targets[one], generators(seed)[one])
            count = alone.points.shape[1]
            assert torch.equal(alone.points[0], whole.points[i, :count])
            assert torch.equal(alone.point_labels[0], whole.point_labels[i, :count])


class Recorder(nn.Module):
    """Answers what it was given before, corrected at the last point, and keeps all prompts."""

    def __init__(self, first):
        super().__init__()
        self.first, self.asked = first, []

    def decode(self, encoding, prompts):
        self.asked.append(prompts)
        logits = self.first if prompts.previous is None else prompts.previous.clone()
        if prompts.previous is not None:
            for i, kinds in enumerate(prompts.point_labels):
                for point, kind in zip(prompts.points[i], kinds, strict=True):
                    if kind >= 0:
                        logits[(i, *point.long().tolist())] = 5.0 if kind == 1 else -5.0
        return logits, torch.zeros(len(logits))


def test_rounds_ask_again_with_all_that_was_said_before():
    prompts, logits, targets = example()
    network = Recorder(logits.detach())
    rounds = answers_by_round(network, None, prompts, torch.from_numpy(targets), 3, generators(4))
    answers = list(rounds)
    assert len(answers) == len(network.asked) == 4
    wrong = []
    for (asked, given, iou), seen in zip(answers, network.asked, strict=True):
        assert asked is seen and iou.shape == (3,)
        wrong.append(((given > 0).numpy() != targets)[:2].sum())
    assert all(later < earlier for earlier, later in itertools.pairwise(wrong))
    for before, after in itertools.pairwise(network.asked):
        count = before.points.shape[1]
        assert torch.equal(after.points[:, :count], before.points)
        assert torch.equal(after.point_labels[:, :count], before.point_labels)
    for (_, given, _), after in zip(answers[:-1], network.asked[1:], strict=True):
        assert torch.equal(after.previous, given)


def test_without_rounds_there_is_the_first_answer():
    prompts, logits, targets = example()
    network = Recorder(logits.detach())
    (only,) = answers_by_round(network, None, prompts, torch.from_numpy(targets), 0, generators())
    assert only[0] is prompts and torch.equal(only[1], logits)
