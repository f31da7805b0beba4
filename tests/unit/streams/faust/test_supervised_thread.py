"""Blocking work as a service: its error is reported once, and a stop waits for it, but not for ever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest

from paywarden.schemas.errors import StoreUnavailable, TemporaryFailure
from paywarden.streams.faust.supervised_thread import SupervisedThread
from tests.patience import PATIENCE_S


class FakeWorker:
    """Runs `work` with its stop event. It is ready unless `missing` is filled."""

    def __init__(self, work: Callable[[threading.Event], object]) -> None:
        self._work = work
        self.missing: list[str] = []
        self.is_turning = True

    def run(self, stop: threading.Event) -> None:
        self._work(stop)

    def problems(self) -> Sequence[str]:
        return self.missing

    def turns(self) -> bool:
        return self.is_turning


class Ends:
    """Notes the errors that are reported."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.came = asyncio.Event()

    def __call__(self, error: BaseException) -> None:
        self.errors.append(error)
        self.came.set()


def supervised(
    worker: FakeWorker, on_end: Callable[[BaseException], None], timeout_s: float = PATIENCE_S
) -> SupervisedThread:
    return SupervisedThread(worker, name="pipeline", stop_timeout_s=timeout_s, on_end=on_end)


def fail(_: threading.Event) -> None:
    raise StoreUnavailable("gone")


def test_the_work_runs_in_its_own_thread_until_it_is_stopped() -> None:
    async def check() -> None:
        ends = Ends()
        threads: list[threading.Thread] = []

        def work(stop: threading.Event) -> None:
            threads.append(threading.current_thread())
            stop.wait()

        worker = FakeWorker(work)
        thread = supervised(worker, ends)
        await thread.start()
        live_before = thread.live
        assert live_before
        assert thread.problems() == []
        worker.is_turning = False
        assert not thread.live
        worker.is_turning = True
        await thread.stop()
        assert not thread.live
        assert threads[0] is not threading.main_thread()
        # The work has ended when the stop returns; the thread itself needs a moment more.
        threads[0].join(PATIENCE_S)
        assert not threads[0].is_alive()
        assert ends.errors == []

    asyncio.run(check())


def test_an_exception_is_reported_and_the_work_is_not_started_again() -> None:
    async def check() -> None:
        ends = Ends()
        runs: list[int] = []

        def work(stop: threading.Event) -> None:
            runs.append(1)
            fail(stop)

        thread = supervised(FakeWorker(work), ends)
        await thread.start()
        await asyncio.wait_for(ends.came.wait(), PATIENCE_S)
        assert [str(error) for error in ends.errors] == ["gone"]
        assert not thread.live
        assert thread.problems() == ["the pipeline is not running"]
        with pytest.raises(StoreUnavailable, match="gone"):
            await thread.stop()
        assert runs == [1]

    asyncio.run(check())


def test_work_that_returns_before_a_stop_is_reported_too() -> None:
    async def check() -> None:
        ends = Ends()
        thread = supervised(FakeWorker(lambda _: None), ends)
        await thread.start()
        await asyncio.wait_for(ends.came.wait(), PATIENCE_S)
        assert "ended without being asked" in str(ends.errors[0])
        await thread.stop()

    asyncio.run(check())


def test_a_stop_waits_for_work_in_flight() -> None:
    async def check() -> None:
        finished = threading.Event()
        release = threading.Event()

        def work(stop: threading.Event) -> None:
            stop.wait()
            release.wait()
            finished.set()

        thread = supervised(FakeWorker(work), Ends())
        await thread.start()
        stopping = asyncio.create_task(thread.stop())
        await asyncio.sleep(0.1)
        assert not stopping.done()
        release.set()
        await stopping
        assert finished.is_set()

    asyncio.run(check())


def test_work_that_does_not_stop_in_time_is_abandoned_and_reported() -> None:
    async def check() -> None:
        release = threading.Event()
        thread = supervised(FakeWorker(lambda _: release.wait()), Ends(), timeout_s=0.05)
        await thread.start()
        with pytest.raises(TemporaryFailure, match=r"did not stop within 0\.05 s"):
            await thread.stop()
        release.set()

    asyncio.run(check())


def test_a_failure_while_stopping_is_raised_by_the_stop() -> None:
    async def check() -> None:
        ends = Ends()

        def work(stop: threading.Event) -> None:
            stop.wait()
            fail(stop)

        thread = supervised(FakeWorker(work), ends)
        await thread.start()
        with pytest.raises(StoreUnavailable):
            await thread.stop()
        assert ends.errors == []

    asyncio.run(check())


def test_the_service_reports_the_problems_of_its_work() -> None:
    async def check() -> None:
        worker = FakeWorker(lambda stop: stop.wait())
        thread = supervised(worker, Ends())
        assert thread.problems() == ["the pipeline is not running"]
        await thread.start()
        worker.missing = ["the store is away"]
        assert thread.problems() == ["the store is away"]
        await thread.stop()

    asyncio.run(check())
