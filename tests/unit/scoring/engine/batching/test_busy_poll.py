"""The event loop polls for a while before it sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.engine.batching.busy_poll import BusyPoll


class Loop:
    """A minimal event loop: it sleeps when no callback is due, and polls its sockets once per turn."""

    def __init__(self) -> None:
        self.due: list[Callable[[], object]] = []
        # In microseconds; a turn takes 1 µs.
        self.now = 1000

    def call_soon(self, callback: Callable[[], object], *, context: object = None) -> None:  # noqa: ARG002
        self.due.append(callback)

    def turns_until_sleep(self, works: dict[int, Callable[[], object]]) -> int:
        """Run turns until no callback is due. `works` are calls, by the turn after which each is made."""
        turns = 0
        while self.due:
            turns += 1
            self.now += 1
            due, self.due = self.due, []
            assert len(due) == 1, "it asks for one turn at a time, however much work there was"
            due[0]()
            works.get(turns, lambda: None)()
        return turns


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    loop = Loop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    return loop


def worker_of(loop: Loop, duration_us: int) -> Callable[[], None]:
    busy = BusyPoll(duration_us, lambda: loop.now / 1e6)
    return lambda: busy.extend(loop.now / 1e6)


@pytest.mark.parametrize("duration_us", [5, 50])
def test_after_work_the_loop_stays_awake_for_the_duration(loop: Loop, duration_us: int) -> None:
    work = worker_of(loop, duration_us)
    work()
    assert duration_us <= loop.turns_until_sleep({}) <= duration_us + 1


def test_more_work_extends_the_polling(loop: Loop) -> None:
    work = worker_of(loop, 50)
    work()
    assert 90 <= loop.turns_until_sleep({40: work}) <= 91


def test_the_loop_polls_again_after_a_sleep(loop: Loop) -> None:
    work = worker_of(loop, 50)
    for _ in range(2):
        work()
        assert loop.turns_until_sleep({}) >= 50
        loop.now += 10_000


def test_without_a_duration_the_loop_sleeps_at_once(loop: Loop) -> None:
    work = worker_of(loop, 0)
    work()
    assert not loop.due


def test_a_negative_duration_is_refused() -> None:
    with pytest.raises(Misconfigured, match="busy_poll_us: wanted at least 0, got -1"):
        BusyPoll(-1)
