"""Plans that fit the machine: what training will take there, and how large it may be."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from promptseg.experiment_planning.rules import BUDGETS, Budget
from promptseg.networks.device import choose_device
from promptseg.parallel import cores
from promptseg.plans import Plans
from promptseg.presets import preset_of
from promptseg.training.cost import step_cost
from promptseg.training.precision import choose_precision
from promptseg.training.trainers import TRAINERS

GB = 1e9
USABLE = 0.9  # of the memory; others and the system have the rest
STEP_SECONDS = 2.0  # that a step on a CPU may take: some hundreds in ten minutes
PARTS = (1.0, 0.7, 0.5, 0.35, 0.25)  # of a size's elements that are tried
LEAST_PART = 0.5  # of a larger size; below, a smaller size with its whole patch is better
BATCH_PART = 0.05  # nnU-Net's: of all voxels of the training images, at most in one batch

# Beside the tensors: the process with its libraries, and what allocator and kernels add. On a CPU
# from runs of some hundred steps; nobody has measured a GPU yet.
CPU_PROCESS, CPU_TENSORS = 1.5e9, 1.1
GPU_PROCESS, GPU_TENSORS = 0.8e9, 1.2
# of a core, and how many of them pay: operations, and bytes of their results, in a second
CORE_FLOPS = {"bf16": 170e9, "fp32": 90e9, "fp16": 90e9}
CORE_BYTES = {"bf16": 3.6e9, "fp32": 1.25e9, "fp16": 1.25e9}
MOST_CORES = 8


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What training has to itself.

    Attributes:
        device: `cpu`, `cuda` or `mps`.
        memory: bytes, of the GPU or of the computer.
        cores: of the processor, that this process may use.
        precision: of training steps.
    """

    device: str
    memory: float
    cores: int
    precision: str

    def __str__(self) -> str:
        cores = f", {self.cores} cores" if self.device == "cpu" else ""
        return f"{self.device}, {self.memory / GB:.1f} GB{cores}, {self.precision}"


def find_machine(memory: str | None = None) -> Machine:
    """The machine that plans are to fit.

    Args:
        memory: `24GB` for a GPU of so much memory, `cpu` for this computer without its GPU, or
            None for what is there.

    Raises:
        ValueError: for other words.
    """
    if memory is None:
        device = torch.device(choose_device()).type
    elif memory.lower() == "cpu":
        device = "cpu"
    elif match := re.fullmatch(r"(\d+(?:\.\d+)?) ?GB?", memory, re.IGNORECASE):
        if not float(match[1]) > 0:
            raise ValueError(f"--memory: expected more than 0 GB, found {memory!r}")
        size = float(match[1]) * GB
        return Machine(device="cuda", memory=size, cores=cores(), precision="bf16")
    else:
        raise ValueError(f"--memory: expected cpu, or a GPU's such as 24GB, found {memory!r}")
    return Machine(
        device=device,
        memory=_memory_of(device),
        cores=cores(),
        precision=choose_precision(None, device),
    )


def _memory_of(device: str) -> float:
    if device == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    if device == "mps":
        return float(torch.mps.recommended_max_memory())
    if not hasattr(os, "sysconf"):  # Windows
        return math.inf
    installed = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container or a cluster's job
    allowed = limit.read_text().strip() if limit.is_file() else ""
    return min(installed, float(allowed)) if allowed.isdigit() else installed


@dataclass(frozen=True, kw_only=True)
class Need:
    """What training by some plans takes on a machine.

    Attributes:
        memory: bytes at the peak, of the GPU or of the training process.
        seconds: of a step; None on a GPU, where nobody has measured it.
    """

    memory: float
    seconds: float | None

    def part_of(self, machine: Machine) -> float:
        """The scarcer of memory and time, as a part of what there is; above 1 it does not fit."""
        return max(self.memory / (USABLE * machine.memory), (self.seconds or 0.0) / STEP_SECONDS)


def need_of(plans: Plans, machine: Machine) -> Need:
    """Estimate memory and time of training by plans with their trainer.

    Tensors are counted (`step_cost`); what else a process takes and how fast a core is was measured
    with `benchmarks/memory.py`.
    """
    trainer = TRAINERS.get(plans.trainer)
    cost = step_cost(plans, trainer.encoder, trainer.default_settings, machine.precision)
    if machine.device != "cpu":
        return Need(memory=GPU_PROCESS + GPU_TENSORS * cost.bytes, seconds=None)
    flops, written = CORE_FLOPS[machine.precision], CORE_BYTES[machine.precision]
    seconds = (cost.flops / flops + cost.written_bytes / written) / min(machine.cores, MOST_CORES)
    return Need(memory=CPU_PROCESS + CPU_TENSORS * cost.bytes, seconds=seconds)


def fit_to_machine(
    plans_of: Callable[[str, Budget], Plans], sizes: Sequence[str], machine: Machine, cases: int
) -> Plans:
    """The plans of the largest size, patch and batch whose training fits a machine.

    Without a GPU it is the smallest size, with one the largest that fits. The patch shrinks where
    that makes a size fit, of larger sizes down to half; where even a quarter of the smallest size's
    does not, it is taken all the same, and `estimate["fits"]` is false. The batch of a GPU then
    grows as far as the memory goes.

    Args:
        plans_of: plans of a size within a budget.
        sizes: names of `BUDGETS` to choose among, the smallest first.
        machine: what there is.
        cases: number of training cases.
    """
    chosen = None
    for size in sizes[:1] if machine.device == "cpu" else sizes:
        for part in PARTS if chosen is None else [p for p in PARTS if p >= LEAST_PART]:
            budget = BUDGETS[size]
            plans = plans_of(size, replace(budget, elements=round(part * budget.elements)))
            need = need_of(plans, machine)
            if need.part_of(machine) <= 1:
                break
        if chosen is None or need.part_of(machine) <= 1:
            chosen = plans, need
        if need.part_of(machine) > 1:
            break
    plans, need = chosen
    if machine.device != "cpu" and not preset_of(plans):
        plans, need = _with_larger_batch(plans, need, machine, cases)
    return _explained(plans, need, machine)


def _with_larger_batch(
    plans: Plans, need: Need, machine: Machine, cases: int
) -> tuple[Plans, Need]:
    """As many patches in a batch as fit, at most `BATCH_PART` of all voxels."""
    voxels = cases * math.prod(plans.median_shape) / math.prod(plans.patch_size)
    most = int(BATCH_PART * voxels)
    if need.part_of(machine) > 1 or most <= plans.batch_size:
        return plans, need
    at_most = need_of(replace(plans, batch_size=most), machine)
    if at_most.part_of(machine) > 1:  # between the two a line lies above the need, if anywhere
        each = (at_most.memory - need.memory) / (most - plans.batch_size)
        most = plans.batch_size + int((USABLE * machine.memory - need.memory) / each)
        at_most = need_of(replace(plans, batch_size=most), machine)
    return replace(plans, batch_size=most), at_most


def _explained(plans: Plans, need: Need, machine: Machine) -> Plans:
    """The plans with the estimate, and with it in words."""
    fits, words = need.part_of(machine) <= 1, f"{plans.trainer} takes about "
    words += f"{need.memory / GB:.1f} GB of {machine}"
    if need.seconds is not None:
        steps = TRAINERS.get(plans.trainer).default_settings.iterations_per_epoch
        minutes = steps * need.seconds / 60
        words += f"; a step {need.seconds:.1f} s, an epoch of {steps} steps {minutes:.1f} minutes"
    if not fits:
        words += "; that is more than there is, and no smaller patch is worth training with"
    estimate = {"machine": str(machine), "fits": fits, **asdict(need)}
    return replace(plans, estimate=estimate, reasons={**plans.reasons, "memory": words})
