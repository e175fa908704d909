"""Several processes that train one network: each takes its part of every batch.

torchrun starts them; without it there is one process, and nothing here has an effect. All processes
have the same weights and make the same steps. The first one (rank 0) validates and writes; what it
decides or measures is sent to the others.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from promptseg.parallel import cores

T = TypeVar("T")

# The others wait for the first process while it predicts a whole fold.
PATIENCE = timedelta(days=2)

# A run as short as this is over before other processes have started, where nobody asks for them.
FEWEST_SECONDS, FEWEST_STEPS = 120.0, 500

_begun: list[bool] = []  # not empty once this process makes steps

SECONDS_TO_STOP = 300  # for the step under way and a checkpoint; torchrun then kills


def join(device: str) -> str:
    """Connect to the other processes that torchrun started, if any; returns the device to use.

    Args:
        device: `cuda` gives each process of a machine the GPU of its local rank; `cpu` is for all.

    Raises:
        ValueError: for a device that several processes cannot use.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return device
    if device == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"{os.environ['LOCAL_WORLD_SIZE']} processes for {torch.cuda.device_count()} GPUs "
                f"of this machine; start at most one for each (--nproc-per-node)"
            )
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    elif device != "cpu":
        raise ValueError(
            f"several processes cannot share the device {device!r}; give -device cuda, for one GPU "
            f"each, or -device cpu"
        )
    if not dist.is_initialized():
        _end_with_parent()
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        with _meeting_others():
            dist.init_process_group(backend, timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)
    if not is_rank_zero():
        logging.getLogger("promptseg").setLevel(logging.ERROR)
    return device


def process_count() -> int:
    """Number of processes that train together; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_rank_zero() -> bool:
    """Whether this process is the one that validates and writes."""
    return not dist.is_initialized() or dist.get_rank() == 0


def begin() -> None:
    """Enter that the first step is about to be made, see `is_said_by_first`."""
    _begun.append(True)


def is_said_by_first() -> bool:
    """Whether an error of this process is one of all, which the first one tells.

    Before the first step all do the same with the same files.
    """
    return os.environ.get("RANK", "0") != "0" and not _begun


def own_images(batch_size: int) -> range:
    """The images of a batch that this process takes; processes differ by at most one image.

    Raises:
        ValueError: if there are fewer images than processes.
    """
    count = process_count()
    if count == 1:
        return range(batch_size)
    if batch_size < count:
        raise ValueError(
            f"a batch of {batch_size} images cannot be split over {count} processes; start at most "
            f"{batch_size}, or write a larger batch_size into the plans"
        )
    rank = dist.get_rank()
    return range(rank * batch_size // count, (rank + 1) * batch_size // count)


def sum_of_all(values: Tensor) -> Tensor:
    """The sums of each value over all processes; gradients flow into this process's own part.

    A loss that is computed from such sums is the same in every process, and its gradient is what
    `sum_gradients` makes of the parts. Every process must call this as often as the others.
    """
    if process_count() == 1:
        return values
    own = values.detach()
    every = torch.tensor(_sums(own.flatten().tolist()), dtype=torch.float64).view(own.shape)
    return values + (every.to(own) - own)


def mean_of_all(mean: Tensor, count: int) -> Tensor:
    """The mean over all processes' samples of a mean over this one's.

    Args:
        mean: mean of one number over this process's samples.
        count: number of these samples; may be 0 if `mean` is then 0.
    """
    if process_count() == 1:
        return mean
    total, every = sum_of_all(torch.stack([mean * count, mean.new_tensor(count)]))
    return total / every.clamp(min=1)


def sum_gradients(network: nn.Module) -> None:
    """Add up the gradients of all processes, each of its part of `sum_of_all`.

    A gradient that no process has stays None, so that the optimizer leaves the weight unchanged.
    """
    if process_count() == 1:
        return
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    has = [float(parameter.grad is not None) for parameter in trained]
    pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    flat = torch.cat([trained[0].new_tensor(has), *(piece.reshape(-1) for piece in pieces)])
    with _meeting_others():
        dist.all_reduce(flat)
    has_any, *sums = flat.split([len(trained), *(piece.numel() for piece in pieces)])
    for parameter, piece, total, known in zip(trained, pieces, sums, has_any.tolist(), strict=True):
        if known:
            parameter.grad = piece.copy_(total.view_as(piece))


def agree(seconds: float, stop: bool) -> tuple[float, bool]:
    """The first process's seconds, and whether any process requests a stop."""
    if process_count() == 1:
        return seconds, stop
    seconds, stops = _sums([seconds if is_rank_zero() else 0.0, stop])
    return seconds, stops > 0


def run_on_rank_zero(make: Callable[[], T]) -> T:
    """The result of a function that only the first process calls; the others wait for it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads * process_count())  # those of the others, which wait
    try:
        made: list[Any] = [make() if is_rank_zero() else None]
    finally:
        torch.set_num_threads(threads)
    if process_count() > 1:
        with _meeting_others():
            dist.broadcast_object_list(made)
    return made[0]


def broadcast_weights(network: nn.Module, step: int) -> None:
    """Give all processes the first one's weights.

    Args:
        network: network on its device.
        step: step at which this process begins.

    Raises:
        ValueError: if the processes begin at different steps, as they do on machines that do not
            share a folder.
    """
    if process_count() == 1:
        return
    first = run_on_rank_zero(lambda: step)
    (differ,) = _sums([step != first])
    if differ:
        raise ValueError(
            f"the processes do not find the same checkpoint: the first one's is of step {first}, "
            f"this one's of step {step}; all machines must see one results folder"
        )
    with _meeting_others():
        for value in network.state_dict().values():
            dist.broadcast(value, 0)


def processes_to_start(requested: int | None) -> int:
    """Number of processes to start for `-num_gpus`; 0 if this process does the work itself.

    Raises:
        ValueError: for fewer than one, and for another number than torchrun has started.
    """
    if requested is None:
        return 0
    if requested < 1:
        raise ValueError(f"-num_gpus must be 1 or more, got {requested}")
    started = int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    if started not in (0, requested):
        raise ValueError(
            f"-num_gpus {requested}, but torchrun started {started} processes on this machine; "
            f"leave -num_gpus out, as --nproc-per-node gives the number"
        )
    return requested if requested > 1 and not started else 0


def processes_on_cpu(images: int, *, seconds: float | None, steps: int) -> int:
    """How many processes are to share each batch on a CPU, where nobody said; 0 for one alone.

    Operations on one patch are too small for several threads: two processes of one thread make 1.3
    times as many steps as one of two.

    Args:
        images: in a batch.
        seconds: length of the run, where it is a time.
        steps: its length in steps, where it is not.
    """
    is_short = steps < FEWEST_STEPS if seconds is None else seconds < FEWEST_SECONDS
    # elsewhere a process that starts others cannot see to it that they end with it
    if is_short or sys.platform != "linux" or "WORLD_SIZE" in os.environ:
        return 0
    count = min(images, _threads())
    return count if count > 1 else 0


def _threads() -> int:
    """The threads that all processes of this machine may have together."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(asked), cores()) if asked.isdigit() and int(asked) else cores()


def start_processes(count: int, device: str | None, arguments: Sequence[str]) -> int:
    """Run `python -m promptseg train` in several processes of this machine, by torchrun.

    Args:
        count: number of processes, one for each GPU.
        device: as given to the command; `cpu` to try several processes without a GPU.
        arguments: arguments of the command.

    Returns:
        The exit code: 0, or 1 if a process failed or was interrupted, which prints its own message.

    Raises:
        ValueError: if there are fewer GPUs.
    """
    if device not in (None, "cpu", "cuda"):
        raise ValueError(
            f"-num_gpus {count} takes the first {count} GPUs, but -device {device} names another "
            f"device; leave -device out, and set CUDA_VISIBLE_DEVICES to choose among the GPUs"
        )
    if device != "cpu" and torch.cuda.device_count() < count:
        raise ValueError(
            f"-num_gpus {count}, but torch {torch.__version__} can use "
            f"{torch.cuda.device_count()} GPUs of this machine; give at most that many, or "
            f"-device cpu to have {count} processes on the CPU"
        )
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    if device == "cpu":
        os.environ["OMP_NUM_THREADS"] = str(max(_threads() // count, 1))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # whatever the machine's name resolves to
    else:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(cores() // count, 1)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_STOP))
    # the launcher's own words on runs that are stopped or fail; they are said below in ours
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    flags = ["--standalone", "--nproc-per-node", str(count), "-m", "promptseg", "train"]
    try:
        run(parse_args([*flags, *arguments]))
    except SignalException:
        return 1
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            if failure.exitcode < 0:
                print(
                    f"error: the process of rank {rank} was ended by signal {-failure.exitcode}, "
                    f"most often because memory ran out; continue with --c, and on a CPU with "
                    f"-num_gpus 1",
                    file=sys.stderr,
                )
        return 1
    return 0


def _end_with_parent() -> None:
    """Have this process stop, as on SIGTERM, when the one that started it is killed (Linux)."""
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


def _sums(values: Sequence[float]) -> list[float]:
    """The sums over all processes, computed on the CPU."""
    sums = torch.tensor(values, dtype=torch.float64)
    with _meeting_others():
        dist.all_reduce(sums)
    return sums.tolist()


@contextmanager
def _meeting_others() -> Iterator[None]:
    """Explain an error that means that another process has ended."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"the process of rank {os.environ.get('RANK')} lost the others; one of them has failed "
            f"or was stopped, and its own message tells why: {error}"
        ) from error
