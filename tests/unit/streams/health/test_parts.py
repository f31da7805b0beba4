"""The parts of a process: they start together, stop together, and the first failure of one ends all."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from paywarden.schemas.errors import StoreUnavailable
from paywarden.streams.health.parts import Parts, Periodic
from paywarden.streams.health.process_end import ProcessEnd
from tests.patience import PATIENCE_S


class FakePart:
    """Works until the stop, or until it is made to end."""

    def __init__(self, error: BaseException | None = None, *, ends: bool = False) -> None:
        self.error, self.ends = error, ends
        self.missing: Sequence[str] = ()
        self.is_turning = True
        self.finished = threading.Event()

    def run(self, stop: threading.Event) -> None:
        if self.error is not None:
            raise self.error
        if not self.ends:
            stop.wait()
        self.finished.set()

    def problems(self) -> Sequence[str]:
        return self.missing

    def turns(self) -> bool:
        return self.is_turning


@pytest.fixture
def end() -> ProcessEnd:
    """An end whose watch is not started: it ends no test."""
    return ProcessEnd("test", exit_now=lambda _: None)


def test_a_stop_lets_every_part_finish(end: ProcessEnd) -> None:
    parts = [FakePart(), FakePart()]
    end.stop.set()
    Parts({"one": parts[0], "two": parts[1]}).run(end)
    assert all(part.finished.is_set() for part in parts)


@pytest.mark.parametrize("error", [StoreUnavailable("away"), RuntimeError("a bug"), SystemExit(3)])
def test_the_first_failure_of_a_part_stops_the_others_and_is_raised(end: ProcessEnd, error: BaseException) -> None:
    other = FakePart()
    with pytest.raises(type(error)) as raised:
        Parts({"failing": FakePart(error), "other": other}).run(end)
    assert raised.value is error
    assert other.finished.is_set()


def test_a_part_that_ends_before_the_stop_ends_the_process(end: ProcessEnd) -> None:
    with pytest.raises(RuntimeError, match="the reader ended without being asked to"):
        Parts({"reader": FakePart(ends=True)}).run(end)


def test_health_follows_the_parts(end: ProcessEnd) -> None:
    part = FakePart()
    parts = Parts({"part": part})
    assert parts.problems() == ["its parts have not started"]
    running = threading.Thread(target=parts.run, args=(end,))
    running.start()
    while parts.problems():
        pass
    part.missing = ["it has not joined"]
    assert (parts.live(), parts.problems()) == (True, ["it has not joined"])
    part.is_turning = False
    assert not parts.live()
    part.missing = ()
    end.stop.set()
    running.join(PATIENCE_S)
    assert parts.problems() == ["the process is stopping"]
    assert parts.live()


def test_a_periodic_part_acts_until_the_stop_and_raises_its_failure() -> None:
    stop, acts = threading.Event(), list[int]()

    def act() -> None:
        acts.append(1)
        if len(acts) == 3:
            stop.set()

    Periodic(0.001, act).run(stop)
    assert len(acts) == 3
    with pytest.raises(ZeroDivisionError):
        Periodic(0.001, lambda: 1 // 0).run(threading.Event())
