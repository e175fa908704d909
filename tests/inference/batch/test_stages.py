"""Three steps over many items: what comes out, what runs at the same time, how much is held."""

from __future__ import annotations

import threading
import time

import pytest

from promptseg.inference.batch.stages import overlapped

WORKERS = [(0, 0), (1, 1), (3, 2), (0, 2), (2, 0)]


class Steps:
    """Items 0 to n - 1 become 10 n + 1; some steps of some items fail. Notes what happens."""

    def __init__(self, fail_read=(), fail_compute=(), fail_write=()) -> None:
        self.failing = {"read": fail_read, "compute": fail_compute, "write": fail_write}
        self.lock = threading.Lock()
        self.log: list[tuple[str, int]] = []
        self.told: dict[int, tuple] = {}
        self.threads: dict[str, set[int]] = {"read": set(), "compute": set(), "write": set()}
        self.held = self.most_held = 0

    def _step(self, name: str, item: int) -> None:
        with self.lock:
            self.log.append((name, item))
            self.threads[name].add(threading.get_ident())
        if item in self.failing[name]:
            raise KeyError(f"{name} {item}")

    def read(self, item: int) -> int:
        with self.lock:
            self.held += 1
            self.most_held = max(self.most_held, self.held)
        self._step("read", item)
        return 10 * item

    def compute(self, item: int, value: int) -> int:
        self._step("compute", item)
        return value + 1

    def write(self, item: int, value: int) -> str:
        time.sleep(0.002)
        self._step("write", item)
        return f"{item}: {value}"

    def done(self, item: int, result: str | None, error: Exception | None) -> None:
        assert item not in self.told and threading.current_thread() is threading.main_thread()
        self.held -= 1
        self.told[item] = (result, error)

    def run(self, count: int, readers: int, writers: int) -> None:
        overlapped(
            range(count),
            self.read,
            self.compute,
            self.write,
            self.done,
            readers=readers,
            writers=writers,
        )


@pytest.mark.parametrize(("readers", "writers"), WORKERS)
def test_every_item_comes_to_its_own_end(readers, writers):
    steps = Steps(fail_read={0, 5}, fail_compute={3, 5}, fail_write={4, 11})
    steps.run(12, readers, writers)
    errors = {0: "read 0", 5: "read 5", 3: "compute 3", 4: "write 4", 11: "write 11"}
    assert set(steps.told) == set(range(12))
    for item, (result, error) in steps.told.items():
        if item in errors:
            assert result is None and isinstance(error, KeyError) and error.args == (errors[item],)
        else:
            assert result == f"{item}: {10 * item + 1}" and error is None
    computed = [item for name, item in steps.log if name == "compute"]
    assert computed == [item for item in range(12) if item not in (0, 5)]  # in order
    main = threading.get_ident()
    assert steps.threads["compute"] == {main}
    for name, count in (("read", readers), ("write", writers)):
        assert len(steps.threads[name]) <= max(count, 1)
        assert (main in steps.threads[name]) == (count == 0)


@pytest.mark.parametrize(("readers", "writers"), WORKERS)
def test_memory_holds_few_items_whatever_their_number(readers, writers):
    steps = Steps()
    steps.run(60, readers, writers)
    # Read ahead, the one that is computed, and those waiting to be written or to be told.
    assert steps.most_held <= readers + 1 + writers + 1
    assert steps.held == 0


def test_steps_of_different_items_run_at_the_same_time():
    # Reading item 2, computing item 1 and writing item 0 wait for one another; without overlap
    # they would never meet.
    meeting = threading.Barrier(3, timeout=10)
    met = []

    def meet(name: str) -> None:
        meeting.wait()
        met.append(name)

    def read(item: int) -> None:
        if item == 2:
            meet("read")

    def compute(item: int, _: None) -> None:
        if item == 1:
            meet("compute")

    def write(item: int, _: None) -> None:
        if item == 0:
            meet("write")

    told = []
    overlapped(range(3), read, compute, write, lambda *a: told.append(a), readers=1, writers=1)
    assert sorted(met) == ["compute", "read", "write"]
    assert told == [(0, None, None), (1, None, None), (2, None, None)]


@pytest.mark.parametrize(("readers", "writers"), WORKERS)
def test_an_interrupt_begins_nothing_new_and_tells_what_was_finished(readers, writers):
    steps = Steps()
    compute = steps.compute

    def interrupted(item: int, value: int) -> int:
        if item == 3:
            raise KeyboardInterrupt
        return compute(item, value)

    steps.compute = interrupted
    with pytest.raises(KeyboardInterrupt):
        steps.run(50, readers, writers)
    assert set(steps.told) == {0, 1, 2} and all(error is None for _, error in steps.told.values())
    assert {item for name, item in steps.log if name == "write"} == {0, 1, 2}
    assert max(item for name, item in steps.log if name == "read") <= 3 + readers
    before = len(steps.log)
    time.sleep(0.02)
    assert len(steps.log) == before  # no thread goes on


def test_no_items_are_no_work_and_negative_threads_are_refused():
    steps = Steps()
    steps.run(0, 2, 2)
    assert not steps.log
    for readers, writers in ((-1, 0), (0, -2)):
        with pytest.raises(ValueError, match=f"0 .* or more, got {readers} and {writers}"):
            steps.run(1, readers, writers)
