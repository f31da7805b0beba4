from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import pytest

from paywarden.features.stores.base import RegisterUnreadable
from paywarden.features.stores.profile_sets import LiveSet
from paywarden.schemas.errors import BrokerUnavailable, Misconfigured, StoreUnavailable
from paywarden.streams.maintenance.live_set_watch import LiveWorker
from tests.patience import PATIENCE_S
from tests.services.product.processes import wait_until

FIRST, SWAPPING, NEXT = LiveSet("", 0, None), LiveSet("", 0, "b1"), LiveSet("b1", 1, None)


class FakePipeline:
    """Notes that it worked, and runs until `stop` is set."""

    def __init__(self, name: str, worked: list[str], before: Callable[[], object]) -> None:
        self._name, self._worked, self._before = name, worked, before

    def run(self, stop: Event, may_begin: Callable[[], bool]) -> None:
        self._before()
        if may_begin():
            self._worked.append(self._name)
            assert stop.wait(PATIENCE_S)

    def problems(self) -> Sequence[str]:
        return []


class Worker:
    """A LiveWorker in a thread, with the register it reads."""

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        self.live = FIRST
        self.failure: Exception | None = None
        self.looks = 0
        self.worked: list[str] = []
        self.open: list[str] = []
        self.error: BaseException | None = None
        self.stop = Event()
        self._before = before
        open_pipeline: Any = self._open
        self.worker = LiveWorker(self._look, open_pipeline, look_every_s=0.01)
        self._thread = Thread(target=self._run)

    def __enter__(self) -> Worker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        assert self.open == []

    def _run(self) -> None:
        try:
            self.worker.run(self.stop)
        except Exception as error:  # noqa: BLE001 - looked at by the test
            self.error = error

    def _look(self) -> LiveSet:
        self.looks += 1
        if self.failure is not None:
            raise self.failure
        return self.live

    @contextmanager
    def _open(self, name: str) -> Iterator[FakePipeline]:
        self.open.append(name)
        try:
            yield FakePipeline(name, self.worked, self._before)
        finally:
            self.open.remove(name)


def test_a_worker_leaves_during_a_swap_and_then_serves_the_new_set() -> None:
    with Worker() as worker:
        wait_until(lambda: worker.worked == [""], "it works")
        worker.live = SWAPPING
        wait_until(lambda: worker.open == [], "it lets go")
        wait_until(lambda: list(worker.worker.problems()) == ["another profile set is being swapped in"], "it waits")
        worker.live = NEXT
        wait_until(lambda: worker.worked == ["", "b1"], "it works for the next")


def test_a_worker_returns_to_its_set_after_an_aborted_swap() -> None:
    with Worker() as worker:
        wait_until(lambda: worker.worked == [""], "it works")
        worker.live = LiveSet("", 1, None)
        wait_until(lambda: worker.worked == ["", ""], "it works again")


def test_a_swap_that_began_before_a_worker_joined_keeps_it_waiting() -> None:
    """The rebuild found the group empty and publishes: this worker's records would follow newer ones."""

    def begin() -> None:
        if worker.live == FIRST:
            worker.live = SWAPPING

    worker = Worker(before=begin)
    with worker:
        wait_until(lambda: list(worker.worker.problems()) == ["another profile set is being swapped in"], "it waits")
        worker.live = NEXT
        wait_until(lambda: worker.worked == ["b1"], "it works for the next")


def test_a_worker_that_finds_no_store_at_its_start_waits_for_it(caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker()
    worker.failure = StoreUnavailable("no answer")
    with worker:
        wait_until(lambda: worker.looks > 3, "it tries again")
        assert list(worker.worker.problems()) == ["no answer"]
        worker.failure = None
        wait_until(lambda: worker.worked == [""], "it works")
        assert worker.worker.problems() == []
    assert worker.error is None
    assert caplog.text.count("no answer") == 1


@pytest.mark.parametrize("failure", [StoreUnavailable("away"), RegisterUnreadable("damaged")])
def test_a_register_that_cannot_be_read_changes_nothing(failure: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged file ended every stream worker within a second."""
    caplog.set_level(logging.INFO)
    with Worker() as worker:
        wait_until(lambda: worker.worked == [""], "it works")
        worker.failure = failure
        looks = worker.looks
        wait_until(lambda: worker.looks > looks + 3, "it looks on")
        worker.failure = None
        wait_until(lambda: "answers again" in caplog.text, "it says so")
        assert worker.open == [""]
        worker.live = NEXT
        wait_until(lambda: worker.worked == ["", "b1"], "it works for the next")
    assert worker.error is None
    assert caplog.text.count("does not answer") == 1


def test_a_register_of_another_release_ends_the_worker() -> None:
    """The error must not end the watch alone: the worker would then notice no swap and no stop."""
    with Worker() as worker:
        wait_until(lambda: worker.worked == [""], "it works")
        worker.failure = Misconfigured("damaged")
        wait_until(lambda: worker.error is not None, "it has ended")
    assert isinstance(worker.error, Misconfigured)


def test_an_error_of_the_pipeline_is_raised() -> None:
    def fail() -> None:
        raise BrokerUnavailable("gone")

    with Worker(before=fail) as worker:
        wait_until(lambda: worker.error is not None, "it has ended")
    with pytest.raises(BrokerUnavailable, match="gone"):
        raise worker.error or AssertionError
