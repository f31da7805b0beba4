"""Threads that share work: results in order, errors as they are, nobody at work any more when one is raised."""

from __future__ import annotations

import threading
import time

import pytest

from paywarden.features.history.thread_pool import ThreadPool
from paywarden.schemas.errors import Misconfigured
from tests.patience import PATIENCE_S

THREADS = [1, 2, 3]


@pytest.mark.parametrize("threads", THREADS)
def test_results_come_in_the_order_of_the_parts(threads: int) -> None:
    with ThreadPool(threads) as crew:
        assert crew.each(lambda part: part * 2, range(20)) == list(range(0, 40, 2))
        assert crew.each(lambda part: part, []) == []


def test_parts_run_in_parallel() -> None:
    both = threading.Barrier(2, timeout=PATIENCE_S)
    with ThreadPool(2) as crew:
        assert sorted(crew.each(lambda _: both.wait(), range(2))) == [0, 1]


@pytest.mark.parametrize("threads", THREADS)
def test_an_error_of_a_part_is_raised_after_all_parts_have_ended(threads: int) -> None:
    at_work = []

    def work(part: int) -> None:
        at_work.append(part)
        time.sleep(0.02 * part)
        at_work.remove(part)
        if part == 0:
            raise ValueError("the first")

    with ThreadPool(threads) as crew:
        with pytest.raises(ValueError, match="the first"):
            crew.each(work, range(3))
        assert at_work == []


@pytest.mark.parametrize("threads", THREADS)
def test_background_work_is_awaited_and_its_error_is_raised(threads: int) -> None:
    with ThreadPool(threads) as crew:
        assert crew.beside(lambda: 7)() == 7

        def fail() -> None:
            raise ValueError("beside")

        with pytest.raises(ValueError, match="beside"):
            crew.beside(fail)()


@pytest.mark.parametrize("threads", [0, -1, 100_000])
def test_an_impossible_number_of_threads_is_refused(threads: int) -> None:
    with pytest.raises(Misconfigured, match="threads: wanted 1 to 1024"):
        ThreadPool(threads)
