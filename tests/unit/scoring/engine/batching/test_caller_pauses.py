from __future__ import annotations

import asyncio

import pytest

from paywarden.scoring.engine.batching import caller_pauses
from paywarden.scoring.engine.batching.caller_pauses import REFUSALS_MAX, CallerPauses


class Connection:
    def __init__(self) -> None:
        self.went_on = asyncio.Event()

    def read_on(self) -> None:
        self.went_on.set()


def refuse(pauses: CallerPauses, caller: bytes, count: int, now: float = 10.0) -> None:
    for _ in range(count):
        pauses.note_refused(caller, now)


def test_a_caller_who_is_refused_too_often_is_held_for_a_moment() -> None:
    async def main() -> None:
        pauses, connections = CallerPauses(), [Connection() for _ in range(3)]
        pauses.note(9.9)
        refuse(pauses, b"noisy", REFUSALS_MAX - 1)
        assert not pauses.holds(b"noisy", connections[0])
        refuse(pauses, b"noisy", 1)
        assert all(pauses.holds(b"noisy", connection) for connection in connections)
        assert not pauses.holds(b"quiet", Connection())
        for connection in connections:
            await asyncio.wait_for(connection.went_on.wait(), 20)
        assert not pauses.holds(b"noisy", Connection())

    asyncio.run(main())


def test_the_log_names_who_is_held_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        pauses = CallerPauses()
        for now in (10.0, 11.0, 30.0, 75.0):
            pauses.note(now)
            refuse(pauses, b"noisy", REFUSALS_MAX, now)
            connection = Connection()
            assert pauses.holds(b"noisy", connection)
            await asyncio.wait_for(connection.went_on.wait(), 20)

    asyncio.run(main())
    assert [record.getMessage().split(" ")[0] for record in caplog.records] == ["noisy", "noisy"]
    assert "3 times since" in caplog.records[1].getMessage()


def test_a_caller_alone_is_never_held() -> None:
    async def main() -> None:
        pauses = CallerPauses()
        # The other one has been away for longer than a second.
        pauses.note(5.0)
        pauses.note(5.1)
        refuse(pauses, b"noisy", 10_000)
        assert not pauses.holds(b"noisy", Connection())

    asyncio.run(main())


def test_refusals_that_are_far_apart_hold_nobody() -> None:
    async def main() -> None:
        pauses = CallerPauses()
        for number in range(1000):
            pauses.note(10 + number / 100)
            refuse(pauses, b"noisy", 1, 10 + number / 100)
        assert not pauses.holds(b"noisy", Connection())

    asyncio.run(main())


def test_what_is_counted_stays_bounded() -> None:
    async def main() -> None:
        pauses = CallerPauses()
        pauses.note(10.0)
        for number in range(10_000):
            refuse(pauses, b"%d" % number, 1)
        assert len(pauses._refused) <= 4096

    asyncio.run(main())


def test_held_connections_go_on_one_by_one_and_wait_again_if_the_caller_is_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise all connections of a noisy caller would be read in one turn of the loop."""

    class Noisy(Connection):
        def read_on(self) -> None:
            # The second pause is longer than the test.
            monkeypatch.setattr(caller_pauses, "PAUSE_S", 1000.0)
            refuse(pauses, b"noisy", REFUSALS_MAX)
            super().read_on()

    pauses, connections = CallerPauses(), [Noisy(), Connection(), Connection()]

    async def main() -> None:
        pauses.note(10.0)
        refuse(pauses, b"noisy", REFUSALS_MAX)
        assert all(pauses.holds(b"noisy", connection) for connection in connections)
        await asyncio.wait_for(connections[0].went_on.wait(), 20)
        for _ in range(3):
            await asyncio.sleep(0)
        assert pauses.held[b"noisy"] == connections[1:]
        assert not any(connection.went_on.is_set() for connection in connections[1:])

    asyncio.run(main())
