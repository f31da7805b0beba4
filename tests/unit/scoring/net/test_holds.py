"""The holds of a front's connections under overload."""

from __future__ import annotations

import asyncio

import pytest

from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker_metrics import HttpMetrics
from paywarden.scoring.net import connections
from paywarden.scoring.net.connections import HOLD_S, Connections


class Held:
    """A connection that is held on for `more_s` when its first hold ends."""

    def __init__(self, more_s: float | None = None) -> None:
        self.more_s = more_s
        self.holds: list[float] = []

    def abort(self) -> None: ...

    def end_hold(self, held_s: float) -> float | None:
        self.holds.append(held_s)
        more_s, self.more_s = self.more_s, None
        return more_s


def made(*, is_idle: bool) -> Connections[Held]:
    metrics = HttpMetrics.declare(MetricsRegistry()).connections
    return Connections(1000, metrics, is_idle=lambda: is_idle, sweep=lambda: None, sweep_s=60.0)


def test_held_connections_do_not_come_back_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_HOLD_ALL_S", 0.0)

    async def main() -> None:
        held, now_s = made(is_idle=False), asyncio.get_running_loop().time()
        for _ in range(200):
            assert held.hold(Held(), 100.0)
        drawn = sorted(end.when() - now_s for end in held._held.values())
        assert HOLD_S[0] <= drawn[0] < drawn[-1] <= HOLD_S[1] + 0.2
        assert drawn[-1] - drawn[0] > 0.3

    asyncio.run(main())


def test_a_hold_that_goes_on_ends_once_and_a_closed_connection_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_HOLD_ALL_S", 0.0)
    monkeypatch.setattr(connections, "HOLD_S", (0.01, 0.01))

    async def main() -> None:
        held, patient, gone = made(is_idle=False), Held(more_s=0.02), Held()
        assert held.hold(patient, 100.0)
        assert held.hold(gone, 100.0)
        held.forget(gone)
        while held._held:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert (patient.holds, gone.holds) == ([0.01, 0.02], [])

    asyncio.run(main())
