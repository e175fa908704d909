from functools import partial

import numpy as np
import pytest
import torch

from promptseg.boxes import mask_box
from promptseg.networks.prompt_encoder import NO_LABEL, Query, batch_queries
from promptseg.networks.promptable import build_network
from promptseg.prompts.simulated import jitter_box
from promptseg.training import rounds, step
from promptseg.training.checkpoint import load_checkpoint, save_checkpoint
from promptseg.training.dataset import Batch
from promptseg.training.losses import NameLoss, PromptLoss, click_loss
from promptseg.training.optimizer import seed_everything
from promptseg.training.request import RunOptions
from promptseg.training.settings import TrainingSettings
from promptseg.training.step import Learner
from tests.small_plans import small_plans


def learner(compile=False, encoder="mobilenet", **settings) -> Learner:
    seed_everything(3)
    network = build_network(small_plans(), encoder).train()
    options = RunOptions(device="cpu", compile=compile)
    return Learner(network, TrainingSettings(**settings), options, small_plans().labels)


def batch(seed=0) -> Batch:
    """Two images with a bright box each, asked for by label and by box."""
    rng = np.random.default_rng(seed)
    segmentation = np.zeros((2, 8, 12, 16), np.int16)
    segmentation[:, 2:6, 3:9, 4:12] = 1
    image = 200.0 * segmentation[:, None] + rng.uniform(0, 50, (2, 1, 8, 12, 16))
    box = np.array([[2, 3, 4], [6, 9, 12]])
    return Batch(
        image=torch.from_numpy(image.astype(np.float32)),
        segmentation=torch.from_numpy(segmentation),
        prompts=batch_queries([Query(image=0, label=0), Query(image=1, box=box)]),
        targets=torch.from_numpy(segmentation == 1),
        seed=(0, 4, seed),
    )


def take_steps(run: Learner, seeds) -> None:
    for seed in seeds:
        run.optimizer_step(run.compute_loss(batch(seed)), 1e-3)


def assert_equal_states(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            assert_equal_states(value, other[key])
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, other[key]), key
        else:
            assert value == other[key], key


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9, "precision": "fp16"}])
def test_a_restored_learner_goes_on_as_if_it_had_not_been_stopped(tmp_path, settings):
    whole = learner(**settings)
    take_steps(whole, [0, 1])
    save_checkpoint(tmp_path / "checkpoint_latest.pth", whole.state())
    take_steps(whole, [2])

    again = learner(**settings)
    again.restore(load_checkpoint(tmp_path / "checkpoint_latest.pth"))
    take_steps(again, [2])

    assert_equal_states(again.state(), whole.state())


def test_a_checkpoint_from_before_the_optimizer_was_fused_goes_on_fused(tmp_path):
    whole = learner(precision="fp16")
    take_steps(whole, [0, 1])
    older = whole.state()
    for group in older["optimizer"]["param_groups"]:
        group["fused"] = None
    save_checkpoint(tmp_path / "checkpoint_latest.pth", older)
    whole.optimizer.param_groups[0]["fused"] = whole.optimizer.param_groups[1]["fused"] = True
    take_steps(whole, [2])

    again = learner(precision="fp16")
    again.restore(load_checkpoint(tmp_path / "checkpoint_latest.pth"))
    take_steps(again, [2])

    assert_equal_states(again.state(), whole.state())


def test_the_average_answers_and_the_weights_in_training_are_kept_beside_it():
    plain, averaged = learner(), learner(ema=0.9)
    take_steps(plain, [0, 1, 2])
    take_steps(averaged, [0, 1, 2])
    state = averaged.state()
    # averaging changes nothing of the training itself
    assert_equal_states(state["unaveraged"]["network"], plain.state()["network"])
    assert state["unaveraged"]["updates"] == 3 and plain.state()["unaveraged"] is None
    name = "name_head.classes.weight"
    assert not torch.equal(state["network"][name], state["unaveraged"]["network"][name])
    assert averaged.answering.state_dict()[name] is not averaged.network.state_dict()[name]
    assert plain.answering is plain.network


def test_a_checkpoint_from_before_there_were_averages_is_taken_up():
    run = learner()
    take_steps(run, [0])
    state = run.state()
    old = {name: state[name] for name in ("network", "optimizer")}
    again = learner()
    again.restore(old)
    assert_equal_states(again.state(), state)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_lower_precision_changes_the_loss_a_little_and_its_type_not(precision):
    full, low = (learner(precision=p).compute_loss(batch()) for p in ("fp32", precision))
    assert low.dtype == torch.float32
    assert low != full
    torch.testing.assert_close(low, full, rtol=0.02, atol=0)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_compiled_network_has_the_same_names(ema):
    compiled, plain = learner(compile=True, ema=ema), learner(ema=ema)
    assert_equal_states(compiled.state(), plain.state())


def test_a_compiled_network_takes_the_same_steps(monkeypatch):
    # traced in one piece, but run as it is: compiling needs a C++ compiler and minutes
    traced = []

    def backend(graph, example):
        traced.append(graph)
        return graph.forward

    compile_ = partial(torch.compile, backend=backend, fullgraph=True)
    monkeypatch.setattr(torch, "compile", compile_)
    compiled, plain = learner(compile=True), learner()
    for run in (compiled, plain):
        take_steps(run, [0, 1])
    assert traced and compiled.encode != compiled.network.encode
    for name, value in plain.state()["network"].items():
        torch.testing.assert_close(compiled.state()["network"][name], value, msg=name)


def test_the_loss_is_the_mean_over_rounds_and_the_names(monkeypatch):
    seen = []
    answers = step.answers_by_round

    def kept(*arguments):
        for prompts, logits, iou in answers(*arguments):
            seen.append((prompts, logits, iou))
            yield prompts, logits, iou

    monkeypatch.setattr(step, "answers_by_round", kept)
    weights = {"click_weight": 0.25, "match_weight": 0.75, "iou_weight": 0.5}
    run, asked = learner(**weights, precision="fp32"), batch(5)
    loss = run.compute_loss(asked)
    assert 2 <= len(seen) <= 4
    prompted = PromptLoss(1.0, 1.0, 0.5, 2.0)
    rounds = [
        # a patch of 8x12x16 voxels is within the margin of any object
        prompted(logits, iou, asked.targets) + 0.25 * click_loss(logits, prompts)
        for prompts, logits, iou in seen
    ]
    names = NameLoss(small_plans().labels, 1.0, 1.0, 2.0)
    encoding = run.network.encode(asked.image)
    expected = sum(rounds) / len(rounds) + names(encoding.names, asked.segmentation)
    # the second query has no name, and means the first label: by its box, and at the end
    for prompts in (asked.prompts[1:], seen[-1][0][1:]):
        weights = run.network.meant_labels(encoding, prompts)
        expected = expected - 0.75 * weights[0, 0].log() / 2
    expected = expected + 0.75 * loss_of_boxes(run, encoding, asked)
    torch.testing.assert_close(loss, expected)


def loss_of_boxes(run, encoding, asked):
    """Of what jittered boxes about all objects of a batch mean: all are the first label."""
    losses = []
    for image, target, rng in zip((0, 1), asked.targets, asked.generators(), strict=True):
        box = jitter_box(mask_box(target.numpy()), target.shape, rng)
        query = Query(image=image, label=NO_LABEL, box=box)
        losses.append(-run.network.meant_labels(encoding, batch_queries([query]))[0, 0].log())
    return sum(losses) / len(losses)


def test_a_step_that_answers_nothing_learns_names_and_what_prompts_mean():
    run, asked = learner(precision="fp32", match_weight=0.75), batch(5)
    loss = run.compute_loss(asked, is_answered=False)
    encoding = run.network.encode(asked.image)
    names = NameLoss(small_plans().labels, 1.0, 1.0, 2.0)
    weights = run.network.meant_labels(encoding, asked.prompts[1:])
    expected = names(encoding.names, asked.segmentation) - 0.75 * weights[0, 0].log()
    expected = expected + 0.75 * loss_of_boxes(run, encoding, asked)
    torch.testing.assert_close(loss, expected)
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    run.optimizer_step(loss, 1e-3)
    changed = {n for n, value in run.network.state_dict().items() if (value != before[n]).any()}
    for learned in ("name_head.", "image_encoder.", "name_match."):
        assert any(name.startswith(learned) for name in changed), learned
    assert not [name for name in changed if name.startswith(("prompt_head.", "quality_head."))]


def test_the_number_of_rounds_follows_from_the_seed_of_the_batch(monkeypatch):
    counts = []
    answers = step.answers_by_round

    def counted(*arguments):
        counts.append(arguments[4])
        return answers(*arguments)

    monkeypatch.setattr(step, "answers_by_round", counted)
    run = learner(rounds=3)
    for seed in (*range(12), *range(12)):
        with torch.no_grad():
            run.compute_loss(batch(seed))
    assert set(counts) == {1, 2, 3} and counts[:12] == counts[12:]
    counts.clear()
    learner(rounds=0).compute_loss(batch())
    assert counts == [0]


def test_gradients_that_are_not_finite_change_no_weights():
    run = learner()
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    loss = run.compute_loss(batch())
    with pytest.raises(FloatingPointError, match="the norm of the gradients is (nan|inf)"):
        run.optimizer_step(loss * (loss - loss.detach()).sqrt(), 1e-3)  # 0, with an infinite slope
    for name, value in run.network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_frozen_encoder_gets_no_optimizer(caplog):
    run = learner(freeze="encoder", ema=0.9)
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    take_steps(run, [0, 1])
    for name, value in run.state()["network"].items():
        if name.startswith("image_encoder."):
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_answers_computed_again_have_the_same_gradients_and_keep_less(monkeypatch, precision):
    # counted are the bytes that are kept for gradients, outside of what is computed again
    found = []
    for least in (2**20, 1):
        monkeypatch.setattr(rounds, "RECOMPUTED_FROM", least)
        run, kept = learner(encoder="unet", rounds=3, precision=precision), {}
        own = {p.untyped_storage().data_ptr() for p in run.network.parameters()}

        def keep(tensor, kept=kept, own=own):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = run.compute_loss(batch(2))
        loss.backward()
        gradients = {name: p.grad for name, p in run.network.named_parameters()}
        found.append((loss.detach(), gradients, sum(kept.values())))
    (one, kept_all, whole), (other, computed, less) = found
    assert torch.equal(one, other) and less < 0.7 * whole
    for name, gradient in kept_all.items():
        if gradient is None:
            assert computed[name] is None
        else:
            torch.testing.assert_close(computed[name], gradient, msg=name)
