"""Plans that fit a machine: sizes, patches and batches by memory and time."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from promptseg.experiment_planning import machine as machines
from promptseg.experiment_planning.machine import Machine, Need, find_machine, fit_to_machine
from promptseg.experiment_planning.rules import BUDGETS, plan_patch
from promptseg.training.cost_table import plans_for_cost
from promptseg.training.trainers import TRAINERS
from tests.small_plans import small_plans

CPU = Machine(device="cpu", memory=16e9, cores=2, precision="fp32")


def gpu(gigabytes: float) -> Machine:
    return Machine(device="cuda", memory=gigabytes * 1e9, cores=8, precision="bf16")


def torso(size, budget):
    """Plans of scans of 40x30x30 cm."""
    shape, spacing = (200, 250, 250), (2.0, 1.2, 1.2)
    patch = plan_patch(shape, spacing, budget)
    return replace(
        plans_for_cost(patch.patch_size, patch.stride, size),
        median_shape=shape,
        spacing=spacing,
        finest_stride=patch.finest_stride,
        batch_size=patch.batch_size,
    )


@pytest.fixture
def by_voxels(monkeypatch):
    """A need that is easy to work out: bytes by voxels of a batch and width of the size."""

    def need(plans, machine):
        voxels = plans.batch_size * torch.Size(plans.patch_size).numel()
        bytes_a_voxel = {"tiny": 500, "small": 1000, "base": 2000}[plans.size]
        return Need(memory=voxels * bytes_a_voxel, seconds=None if machine.device != "cpu" else 0.1)

    monkeypatch.setattr(machines, "need_of", need)
    return need


@pytest.mark.parametrize(("text", "memory"), [("24GB", 24e9), ("8 gb", 8e9), ("0.5G", 5e8)])
def test_a_gpu_is_described_by_its_memory(text, memory):
    machine = find_machine(text)
    assert (machine.device, machine.memory, machine.precision) == ("cuda", memory, "bf16")


def test_this_computer_without_its_gpu():
    machine = find_machine("cpu")
    assert machine.device == "cpu" and machine.cores >= 1 and machine.memory > 5e8
    assert find_machine().device == machine.device or torch.cuda.is_available()


@pytest.mark.parametrize("text", ["", "24", "24MB", "-8GB", "0GB", "gpu", "GB", "1e3GB", "8GB 2"])
def test_other_words_are_refused_with_what_is_expected(text):
    with pytest.raises(ValueError, match="expected .*GB"):
        find_machine(text)


def test_more_memory_buys_size_then_batch(by_voxels):
    chosen = [fit_to_machine(torso, list(BUDGETS), gpu(g), 400) for g in (2, 24, 80)]
    assert [plans.size for plans in chosen] == ["tiny", "base", "base"]
    assert chosen[1].batch_size < chosen[2].batch_size
    for plans, gigabytes in zip(chosen, (2, 24, 80), strict=True):
        assert plans.estimate["memory"] == by_voxels(plans, gpu(1)).memory < 0.9e9 * gigabytes
        assert plans.estimate["fits"] and "GB of cuda" in plans.reasons["memory"]
    # one patch more would not fit
    larger = replace(chosen[2], batch_size=chosen[2].batch_size + 1)
    assert by_voxels(larger, gpu(1)).memory > 0.9 * 80e9


def test_a_batch_is_at_most_a_twentieth_of_all_voxels(by_voxels):
    plans = fit_to_machine(torso, ["tiny"], gpu(1000), 4)
    voxels = 4 * 200 * 250 * 250
    patch = torch.Size(plans.patch_size).numel()
    assert plans.batch_size == max(
        int(0.05 * voxels / patch), torso("tiny", BUDGETS["tiny"]).batch_size
    )


def test_a_patch_shrinks_until_it_fits_and_what_never_fits_is_said(by_voxels):
    whole = torso("tiny", BUDGETS["tiny"])
    need = by_voxels(whole, CPU).memory
    tight = replace(CPU, memory=0.6 * need / 0.9)
    smaller = fit_to_machine(torso, list(BUDGETS), tight, 40)
    assert smaller.size == "tiny" and smaller.estimate["fits"]
    assert torch.Size(smaller.patch_size).numel() < torch.Size(whole.patch_size).numel()
    hopeless = fit_to_machine(torso, list(BUDGETS), replace(CPU, memory=1e6), 40)
    assert not hopeless.estimate["fits"]
    assert "more than there is" in hopeless.reasons["memory"]


def test_slow_steps_shrink_the_patch_on_a_cpu(monkeypatch):
    def need(plans, machine):
        return Need(memory=1e9, seconds=torch.Size(plans.patch_size).numel() / 0.5e6)

    monkeypatch.setattr(machines, "need_of", need)
    plans = fit_to_machine(torso, list(BUDGETS), CPU, 40)
    assert 1.0 < plans.estimate["seconds"] <= machines.STEP_SECONDS
    steps = TRAINERS.get("UNetTrainer").default_settings.iterations_per_epoch
    minutes = float(re.search(r"([\d.]+) minutes", plans.reasons["memory"])[1])
    assert minutes == pytest.approx(plans.estimate["seconds"] * steps / 60, abs=0.06)


def test_the_estimate_is_of_the_plans_own_network():
    few = machines.need_of(small_plans(), CPU)
    many = machines.need_of(small_plans(patch_size=(16, 24, 16)), CPU)
    assert few.memory < many.memory and few.seconds < many.seconds
    on_gpu = machines.need_of(small_plans(), gpu(8))
    assert on_gpu.seconds is None and on_gpu.memory < few.memory
    twice = machines.need_of(small_plans(), replace(CPU, cores=4))
    assert twice.seconds == pytest.approx(few.seconds / 2)
