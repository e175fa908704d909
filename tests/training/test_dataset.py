import dataclasses
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from promptseg.boxes import mask_box
from promptseg.files import read_json, write_json
from promptseg.preprocessing.dataset import PreprocessedDataset
from promptseg.preprocessing.patch import cut_patch
from promptseg.training.dataset import TrainingSteps
from promptseg.training.settings import TrainingSettings


def steps_of(planned_case, **changes) -> TrainingSteps:
    folder, plans, auto_boxes = planned_case
    case_ids = PreprocessedDataset(folder).case_ids
    return TrainingSteps(folder, case_ids, plans, TrainingSettings(**changes), auto_boxes)


def same(a, b) -> bool:
    return torch.equal(a.image, b.image) and torch.equal(a.prompts.boxes, b.prompts.boxes)


def test_a_step_depends_on_seed_and_number_alone(planned_case):
    first, second = steps_of(planned_case), steps_of(planned_case)
    state = np.random.get_state()[1].copy()
    late_first = second[5]
    assert same(first[3], second[3])
    assert same(first[5], late_first)
    assert not same(first[3], first[4])
    assert not same(first[3], steps_of(planned_case, seed=1)[3])
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # global state is put back


def test_every_case_comes_once_in_each_round(planned_case):
    steps = steps_of(planned_case)
    count = len(steps.case_ids)
    for round_ in range(3):
        cases = [steps._case(round_ * count + i) for i in range(count)]
        assert sorted(cases) == steps.case_ids


def test_targets_of_named_queries_are_the_voxels_of_their_label(planned_case):
    steps = steps_of(planned_case, unnamed_fraction=0.0, objects_per_step=6)
    values, seen = list(steps.plans.labels.values()), 0
    for step in range(4):
        batch = steps[step]
        assert batch.targets.dtype == torch.bool and len(batch.targets) == len(batch.prompts)
        for i, (image, label) in enumerate(
            zip(batch.prompts.image_index, batch.prompts.labels, strict=True)
        ):
            assert torch.equal(batch.targets[i], batch.segmentation[image] == values[label])
            seen += int(batch.targets[i].any())
    assert seen > 12


@pytest.mark.parametrize(
    ("objects", "expected"), [(1, [0, 1]), (2, [0, 1]), (3, [0, 0, 1]), (5, [0, 0, 1, 1, 1])]
)
def test_objects_of_a_step_are_spread_over_its_images(planned_case, objects, expected):
    steps = steps_of(planned_case, objects_per_step=objects)
    assert steps.plans.batch_size == 2
    assert steps[3].prompts.image_index.tolist() == expected


def test_a_step_has_a_seed_of_its_own_and_every_query_a_generator(planned_case):
    steps = steps_of(planned_case, objects_per_step=4)
    first, other = steps[3], steps[4]
    assert first.seed == steps[3].seed != other.seed
    assert first.seed != steps_of(planned_case, seed=1)[3].seed
    drawn = [g.random() for batch in (first, other) for g in batch.generators()]
    assert len(set(drawn)) == len(drawn) == 8
    assert [g.random() for g in steps[3].generators()] == drawn[:4]
    assert first.to("cpu").seed == first.seed


def test_images_stay_in_range_and_labels_stay_labels_under_augmentation(planned_case):
    steps = steps_of(planned_case)
    for step in range(8):
        batch = steps[step]
        assert 0 <= batch.image.min() and batch.image.max() <= 255
        assert set(batch.segmentation.unique().tolist()) <= {0, 1, 2}
        assert batch.image.shape[2:] == steps.plans.patch_size


def test_boxes_of_whole_labels_follow_what_augmentation_moves(planned_case):
    # A label that the patch does not cut afterwards fills its box; one that it cuts reaches to
    # the border at least.
    steps, uncut = steps_of(planned_case, zoom_out_fraction=0.0), 0
    size = np.array(steps.plans.patch_size)
    for number in range(40):
        sample, _ = steps._sample(number, np.random.default_rng(number))
        moved = steps._augmented(sample, np.random.default_rng(number))
        assert moved.image.shape[1:] == moved.segmentation.shape == tuple(size)
        for name, value in steps.plans.labels.items():
            seen = mask_box(moved.segmentation == value)
            if seen is None:
                assert name not in moved.whole_boxes
                continue
            is_cut = seen == np.stack([0 * size, size])
            box = moved.whole_boxes[name]
            was_cut = mask_box(sample.segmentation == value) == np.stack(
                [0 * size, sample.segmentation.shape]
            )
            own = ~is_cut & ~was_cut
            np.testing.assert_allclose(box[own], seen[own])
            assert (box[0] <= seen[0])[is_cut[0]].all() and (box[1] >= seen[1])[is_cut[1]].all()
            uncut += own.all()
    assert uncut > 10


def test_an_automatic_box_beside_the_patch_is_no_prompt_in_it(planned_case):
    steps, still = steps_of(planned_case, zoom_out_fraction=0.0), 0
    size = np.array(steps.plans.patch_size)
    beside = np.array([(size[0] + 1, 1, 1), (size[0] + 3, *(size[1:] - 1))], float)
    for number in range(40):
        sample, _ = steps._sample(number, np.random.default_rng(number))
        margin = (np.array(sample.segmentation.shape) - size) // 2
        shown = cut_patch(sample.segmentation, margin, size)
        sample = dataclasses.replace(sample, auto_boxes=dict.fromkeys(steps.plans.labels, beside))
        moved = steps._augmented(sample, np.random.default_rng(number))
        if np.array_equal(moved.segmentation, shown):  # neither rotated nor scaled
            assert not moved.auto_boxes
            still += bool(shown.any())
    assert still > 3


@pytest.mark.parametrize("augment", [False, True])
def test_the_label_that_a_patch_is_drawn_for_is_asked_for(planned_case, augment):
    # One label is asked for in each patch; the two stand in for many, of which some are small.
    folder, plans, auto_boxes = planned_case
    chosen = TrainingSettings(
        objects_per_step=2,
        unnamed_fraction=0.0,
        foreground_fraction=1.0,
        zoom_out_fraction=0.0,
        augment=augment,
    )
    dataset = PreprocessedDataset(folder)
    steps = TrainingSteps(folder, dataset.case_ids, plans, chosen, auto_boxes)
    asked = {int(label) for step in range(6) for label in steps[step].prompts.labels}
    assert asked == {0, 1}

    scheduled = []
    steps._scheduled = lambda case_id, number, rng: (
        case_id,
        scheduled.append(list(plans.labels)[number % 2]) or scheduled[-1],
    )
    for step in range(8):
        batch = steps[step]
        for image, wanted in enumerate(scheduled[-2:]):
            value = plans.labels[wanted]
            if (batch.segmentation[image] == value).any():
                labels = batch.prompts.labels[batch.prompts.image_index == image]
                assert set(labels.tolist()) == {value - 1}


def test_training_mirrors_along_the_axes_that_it_was_told(planned_case):
    # Without anything else drawn at random, a batch's images are those of the volumes or mirrored.
    folder, plans, auto_boxes = planned_case
    chosen = TrainingSettings(mirror_axes=(1,), foreground_fraction=0.0, zoom_out_fraction=0.0)
    dataset = PreprocessedDataset(folder)
    steps = TrainingSteps(folder, dataset.case_ids, plans, chosen, auto_boxes)
    steps.transform = lambda data, seg: {"data": data, "seg": seg}
    steps.margin *= 0
    plain = dataclasses.replace(chosen, augment=False)
    expected = TrainingSteps(folder, dataset.case_ids, plans, plain, auto_boxes)
    seen = []
    for step in range(8):
        made, given_ = steps[step], expected[step]
        for image, before in zip(made.segmentation, given_.segmentation, strict=True):
            turned = before.flip(1)
            assert torch.equal(image, before) or torch.equal(image, turned)
            seen.append(torch.equal(image, turned))
    assert 2 <= sum(seen) <= 14


@pytest.fixture
def steps_with(planned_case, tmp_path):
    """Makes steps of cases that are said to have some of the labels 1 to 4 only."""
    folder, plans, _ = planned_case
    plans = dataclasses.replace(plans, labels={f"label_{value}": value for value in (1, 2, 3, 4)})
    shutil.copytree(folder, tmp_path / "cases")

    def make(labels, **changes):
        for case_id, values in labels.items():
            path = tmp_path / "cases" / f"{case_id}.json"
            properties = read_json(folder / path.name)
            properties["labels"] = {str(value): properties["labels"]["2"] for value in values}
            write_json(path, properties)
        chosen = TrainingSettings(
            foreground_fraction=1.0, zoom_out_fraction=0.0, augment=False, **changes
        )
        return TrainingSteps(tmp_path / "cases", list(labels), plans, chosen, {})

    return make


def test_labels_have_their_turns_in_patches_of_cases_that_have_them(steps_with):
    cases = {"case_0": [1, 2, 3, 4], "case_1": [1, 3], "case_2": []}

    def drawn(share):
        steps = steps_with(cases, rare_label_fraction=share)
        samples = [steps._sample(n, np.random.default_rng(n)) for n in range(600)]
        for sample, name in samples:
            assert name is None or name in sample.whole_boxes
        names = {1: "label_1", 2: "label_2", 3: "label_3", 4: "label_4", None: None}
        return {v: sum(found == of for _, found in samples) / 600 for v, of in names.items()}

    # case_1 has the turns of labels 2 and 4 too, which fall to either of its own
    shares = drawn(0.0)
    assert shares[None] == pytest.approx(1 / 3)
    del shares[None]
    assert shares == pytest.approx({1: 1 / 4, 2: 1 / 12, 3: 1 / 4, 4: 1 / 12}, abs=0.05)
    shares = drawn(1.0)  # every case gives way
    assert shares == pytest.approx({1: 0.25, 2: 0.25, 3: 0.25, 4: 0.25, None: 0})


def test_a_rare_label_is_looked_for_where_it_is(steps_with):
    cases = {f"case_{i}": [1, 2] if i == 3 else [1] for i in range(6)}
    steps = steps_with(cases, rare_label_fraction=0.25)
    scheduled = [steps._sample(n, np.random.default_rng(n))[1] for n in range(600)]
    # labels 2 to 4 have three of four turns; of label 2's, case_3 has a sixth, and a quarter of
    # the others gives way; a turn of 3 or 4 in case_3 is one of its two labels'
    expected = 0.25 * (1 / 6 + 5 / 6 / 4) + 0.5 / 6 / 2
    assert scheduled.count("label_2") / 600 == pytest.approx(expected, abs=0.05)
    assert scheduled.count("label_1") / 600 == pytest.approx(1 - expected, abs=0.05)


FAILING = """
from promptseg.training.batches import batches
from promptseg.training.settings import TrainingSettings

class Steps:
    settings = TrainingSettings()

    def __getitem__(self, number):
        if number == 3:
            raise KeyError("nobody expected this")
        return number

if __name__ == "__main__":
    for batch in batches(Steps(), 0, 2, on_cpu=True):
        print(batch, flush=True)
"""


def test_an_error_that_nobody_expected_ends_the_run_and_its_workers(tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1 and done.stdout.split() == ["0", "1", "2"]
    assert "KeyError: 'nobody expected this'" in done.stderr
