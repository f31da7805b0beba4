"""When a call of the asyncio client returns that nobody answers, by a clock that moves only while the loop waits."""

from __future__ import annotations

import asyncio
import selectors
import socket
import time
from typing import Any

import pytest

from paywarden_client import AsyncClient, ClientSettings, Decision, Payment

_DEADLINE_MS = 40
# A timer of the loop may be that late: it waits for whole milliseconds.
_LATE_S = 0.0009


class _Clock(selectors.DefaultSelector):
    """A selector that does not sleep. When it returns, the requested time has passed."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found and timeout is not None and timeout > 0:
            self.now_s += timeout + _LATE_S
        return found


class _Loop(asyncio.SelectorEventLoop):
    is_connecting_for_ever = False

    async def create_connection(self, *arguments: Any, **options: Any) -> Any:
        if self.is_connecting_for_ever:
            await self.create_future()
        return await super().create_connection(*arguments, **options)


@pytest.mark.parametrize(
    ("case", "causes"),
    [
        ("no connection is made", ["late"]),
        ("no answer comes", ["late"]),
        ("all connections are in use", ["busy", "late"]),
    ],
)
def test_a_call_that_nobody_answers_returns_by_its_deadline(
    case: str, causes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = _Clock()
    took_ms: list[float] = []

    async def call(client: AsyncClient, number: int) -> Decision:
        began_s = clock.now_s
        decision = await client.score(Payment(f"p-{number}", 1_800_000_000_000, "card-1", "merchant-1", 100, "EUR"))
        took_ms.append((clock.now_s - began_s) * 1000)
        return decision

    async def calls(url: str) -> list[Decision]:
        settings = ClientSettings(url, deadline_ms=_DEADLINE_MS, connections_max=1, queue_max=0)
        async with AsyncClient(settings) as client:
            return await asyncio.gather(*(call(client, number) for number in range(len(causes))))

    with socket.create_server(("127.0.0.1", 0)) as listener, monkeypatch.context() as patched:
        loop = _Loop(clock)
        loop.is_connecting_for_ever = case == "no connection is made"
        patched.setattr(time, "monotonic", lambda: clock.now_s)
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            decisions = runner.run(calls(f"http://127.0.0.1:{listener.getsockname()[1]}"))
    assert sorted(decision.reasons[0] for decision in decisions) == [f"stand_in:{cause}" for cause in causes]
    # It waited for nearly all of its time, and not longer.
    assert min(took_ms) > _DEADLINE_MS - 2
    assert max(took_ms) <= _DEADLINE_MS
