from __future__ import annotations

import itertools
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from promptseg.parallel import Workers, _outcome_of_future, map_cases


def square(number: int, offset: int = 0) -> int:
    if number == 3:
        raise KeyError(f"number {number}")
    return number * number + offset


def process_id(_: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def die(number: int) -> int:
    if number == 2:
        os._exit(9)
    time.sleep(0.2)
    return number


def write_marker(number: int, folder: str) -> None:
    time.sleep(0.05)
    (open(os.path.join(folder, str(number)), "w")).close()


def modules_loaded(_: int) -> bool:
    import sys

    return "torch" in sys.modules


@pytest.mark.parametrize("processes", [0, 2])
def test_every_item_comes_back_with_its_result_or_its_error(processes):
    outcomes = list(map_cases(square, range(6), 10, processes=processes, description="squares"))

    assert sorted(item for item, _, _ in outcomes) == list(range(6))
    for item, result, error in outcomes:
        if item == 3:
            assert result is None and isinstance(error, KeyError) and "number 3" in str(error)
        else:
            assert result == item * item + 10 and error is None


def test_work_is_done_in_other_processes_and_they_do_not_import_torch():
    ids = {r for _, r, _ in map_cases(process_id, range(8), processes=2, description="ids")}
    assert os.getpid() not in ids and 1 <= len(ids) <= 2
    loaded = map_cases(modules_loaded, range(2), processes=2, description="imports")
    assert [result for _, result, _ in loaded] == [False, False]


def test_no_process_is_started_for_none_or_for_one_item():
    for items, processes in ((range(2), 0), (range(1), 2)):
        for _, result, _ in map_cases(process_id, items, processes=processes, description="ids"):
            assert result == os.getpid()
    assert list(map_cases(square, [], processes=2, description="nothing")) == []


def test_a_worker_that_dies_is_reported_with_the_cases_at_hand():
    with pytest.raises(RuntimeError, match=r"died during 'risky', at one of: .*2.*fewer processes"):
        list(map_cases(die, range(4), processes=2, description="risky"))


def test_a_caller_that_stops_early_does_not_wait_for_all_items(tmp_path):
    outcomes = map_cases(write_marker, range(60), str(tmp_path), processes=2, description="markers")
    next(outcomes)
    outcomes.close()

    done = len(list(tmp_path.iterdir()))
    assert done < 20
    time.sleep(0.2)
    assert len(list(tmp_path.iterdir())) == done  # nothing goes on behind our back


def test_a_negative_number_of_processes_is_refused():
    with pytest.raises(ValueError, match="processes must be 0 .* got -1"):
        list(map_cases(square, [1], processes=-1, description="squares"))


def test_the_bar_names_the_work_and_reaches_its_end(capfd):
    list(map_cases(square, range(3), processes=0, description="squares"))
    assert "squares: 100%" in capfd.readouterr().err


def threads_of_a_worker(_):
    import numpy as np
    from threadpoolctl import threadpool_info

    np.ones((4, 4)) @ np.ones((4, 4))  # whatever multiplies is loaded now
    return [library["num_threads"] for library in threadpool_info()]


def test_numerical_libraries_use_one_thread_in_a_worker():
    outcomes = map_cases(threads_of_a_worker, [0, 1], processes=2, description="threads")
    for _, threads, error in outcomes:
        assert error is None
        assert threads and set(threads) == {1}


def process_of(_):
    import os

    return os.getpid()


def test_shared_workers_start_once_for_several_calls():
    with Workers(2) as workers:
        seen = [
            {pid for _, pid, _ in map_cases(process_of, range(8), processes=workers, description=d)}
            for d in ("first", "second")
        ]
        assert len(seen[0] | seen[1]) <= 2
        # a caller that stops early leaves the workers ready for the next
        next(map_cases(process_of, range(8), processes=workers, description="third"))
        outcomes = map_cases(process_of, range(4), processes=workers, description="fourth")
        assert [error for _, _, error in outcomes] == [None] * 4


def test_a_smaller_cluster_than_before_is_sent_nothing_until_it_has_caught_up():
    class Shrinking(Workers):
        @property
        def processes(self):
            return next(sizes)

        @processes.setter
        def processes(self, count):
            self.count = count

        @property
        def pool(self):
            return pool

    sizes = itertools.chain([2, 2], itertools.repeat(1))
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(map_cases(square, range(4, 14), processes=Shrinking(2), description="s"))
    assert {item: result for item, result, _ in outcomes} == {n: n * n for n in range(4, 14)}


def test_a_scheduler_that_is_gone_is_not_the_fault_of_a_case():
    future = Future()
    future.cancel()
    with pytest.raises(RuntimeError, match="scheduler no longer answers"):
        _outcome_of_future(future)
