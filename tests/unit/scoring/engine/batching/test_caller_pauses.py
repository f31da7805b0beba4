from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

import pytest
import uvloop

from paywarden.scoring.engine.batching import caller_pauses
from paywarden.scoring.engine.batching.caller_pauses import REFUSALS_MAX, CallerPauses
from tests.patience import PATIENCE_S


class Connection:
    def __init__(self) -> None:
        self.went_on = asyncio.Event()

    def read_on(self) -> None:
        self.went_on.set()


class Pipelining(Connection):
    """A connection of `noisy` with requests, which asks before each whether it may go on, as fronts do."""

    def __init__(self, pauses: CallerPauses, requests: int, turns: Turns) -> None:
        super().__init__()
        self._pauses, self._requests, self._turns = pauses, requests, turns

    def read_on(self) -> None:
        super().read_on()
        while self._requests and not self._pauses.holds(b"noisy", self):
            self._requests -= 1
            self._turns.note(self)


class Turns:
    """Knows what was read in each turn of the loop. A turn takes `turn_s` of the clock."""

    def __init__(self, clock: Clock, turn_s: float = 0.0) -> None:
        self.reads: list[list[Connection]] = [[]]
        self._clock, self._turn_s = clock, turn_s

    def note(self, connection: Connection) -> None:
        self.reads[-1].append(connection)

    async def until(self, holds: Callable[[], bool]) -> list[list[Connection]]:
        """Returns what was read in the turns in which anything was."""

        async def pass_by() -> None:
            while not holds():
                self.reads.append([])
                self._clock.now += self._turn_s
                await asyncio.sleep(0)

        await asyncio.wait_for(pass_by(), PATIENCE_S)
        return [read for read in self.reads if read]


class Clock:
    def __init__(self) -> None:
        self.now = 10.0

    def __call__(self) -> float:
        return self.now


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


def test_after_a_pause_a_slice_is_read_in_each_turn_from_the_connections_in_turn() -> None:
    """Otherwise what all connections of a noisy caller have sent would be read, and scored, before the others' next."""

    async def main() -> None:
        clock = Clock()
        pauses, turns = CallerPauses(clock), Turns(clock)
        pauses.note(10.0)
        refuse(pauses, b"noisy", REFUSALS_MAX)
        first, second = (Pipelining(pauses, 3, turns) for _ in range(2))
        assert pauses.holds(b"noisy", first)
        assert pauses.holds(b"noisy", second)
        # When nobody waits any more, the batcher behaves normally again.
        assert await turns.until(lambda: not pauses.held) == [[first] * 2, [second] * 2, [first, second]]
        assert not pauses.holds(b"noisy", first)

    asyncio.run(main())


def test_connections_with_a_request_each_share_a_slice() -> None:
    async def main() -> None:
        clock = Clock()
        pauses, turns = CallerPauses(clock), Turns(clock)
        pauses.note(10.0)
        refuse(pauses, b"noisy", REFUSALS_MAX)
        connections = [Pipelining(pauses, 1, turns) for _ in range(5)]
        assert all(pauses.holds(b"noisy", connection) for connection in connections)
        assert [len(turn) for turn in await turns.until(lambda: not pauses.held)] == [2, 2, 1]

    asyncio.run(main())


def test_who_stands_in_line_is_held_by_his_next_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(Connection):
        def read_on(self) -> None:
            # The second pause is longer than the test.
            monkeypatch.setattr(caller_pauses, "PAUSE_S", 1000.0)
            refuse(pauses, b"noisy", 1)
            assert pauses.holds(b"noisy", self)
            super().read_on()

    async def main() -> None:
        pauses.note(10.0)
        refuse(pauses, b"noisy", REFUSALS_MAX)
        assert all(pauses.holds(b"noisy", connection) for connection in connections)
        await asyncio.wait_for(connections[0].went_on.wait(), PATIENCE_S)
        for _ in range(3):
            await asyncio.sleep(0)
        # The other one goes before the one that has had the refusal.
        assert pauses.held[b"noisy"] == connections[::-1]
        assert not connections[1].went_on.is_set()

    pauses = CallerPauses(Clock())
    connections = [Refused(), Connection()]
    asyncio.run(main())


def test_a_pause_that_ends_in_a_slow_turn_leaves_one_line() -> None:
    """A refusal may come after the line has gone on, and its pause may be over before the loop turns."""

    class Noted(Pipelining):
        def read_on(self) -> None:
            super().read_on()
            there.send(b"1")

    def refuse_slowly() -> None:
        here.recv(1)
        if len(read) == 0:
            refuse(pauses, b"noisy", 1)
            time.sleep(3 * caller_pauses.PAUSE_S)
        read.append(len(turns.reads[-1]))
        turns.reads.append([])

    async def main() -> None:
        pauses.note(10.0)
        refuse(pauses, b"noisy", REFUSALS_MAX)
        assert all(pauses.holds(b"noisy", Noted(pauses, 4, turns)) for _ in range(2))
        # uvloop runs timers, then what is due soon, then what sockets have: the pause ends before the line goes on.
        asyncio.get_running_loop().add_reader(here, refuse_slowly)
        while pauses.held or sum(read) < 8:
            await asyncio.sleep(0.001)
        asyncio.get_running_loop().remove_reader(here)
        assert read == [2, 2, 2, 2]

    clock, read = Clock(), list[int]()
    pauses, turns = CallerPauses(clock), Turns(clock)
    here, there = socket.socketpair()
    with here, there:
        uvloop.run(main())


def test_slices_grow_for_a_caller_who_is_not_refused() -> None:
    async def main() -> None:
        clock = Clock()
        pauses, turns = CallerPauses(clock), Turns(clock, turn_s=0.001)
        pauses.note(10.0)
        refuse(pauses, b"noisy", REFUSALS_MAX)
        assert pauses.holds(b"noisy", Pipelining(pauses, 1000, turns))

        def is_largest() -> bool:
            pauses.note(clock.now)
            return len(turns.reads[-1]) == caller_pauses.SLICE_MAX

        found = await turns.until(is_largest)
        sizes = [len(turn) for turn in found]
        assert sizes == sorted(sizes)
        assert sizes[0] == caller_pauses.SLICE

    asyncio.run(main())


def test_a_line_ends_for_a_caller_who_is_not_refused_and_its_connections_go_on_one_by_one() -> None:
    async def main() -> None:
        clock = Clock()
        pauses, turns = CallerPauses(clock), Turns(clock, turn_s=0.001)
        pauses.note(10.0)
        refuse(pauses, b"noisy", REFUSALS_MAX)
        connections = [Pipelining(pauses, 1000, turns) for _ in range(3)]
        assert all(pauses.holds(b"noisy", connection) for connection in connections)

        def have_read_all() -> bool:
            pauses.note(clock.now)
            return sum(map(len, turns.reads)) == 3000

        found = await turns.until(have_read_all)
        assert [len(turn) > 500 for turn in found[-4:]] == [False, True, True, True]
        assert not pauses.held

    asyncio.run(main())


def test_when_nobody_else_is_there_any_more_a_line_goes_on_at_once() -> None:
    async def main() -> None:
        clock = Clock()
        pauses, turns = CallerPauses(clock), Turns(clock)
        pauses.note(10.0)
        refuse(pauses, b"noisy", REFUSALS_MAX)
        connections = [Pipelining(pauses, 50, turns) for _ in range(2)]
        assert all(pauses.holds(b"noisy", connection) for connection in connections)
        clock.now += 2.0
        assert [len(turn) for turn in await turns.until(lambda: not pauses.held)] == [100]

    asyncio.run(main())
