"""A log of rollouts that ends with its process."""

from __future__ import annotations

from paywarden.models.rollout.rollout import RolloutEvent


class MemoryRolloutLog:
    """A RolloutLog in memory."""

    def __init__(self) -> None:
        self._events: list[RolloutEvent] = []

    def events(self) -> list[RolloutEvent]:
        return list(self._events)

    def append(self, event: RolloutEvent, known: int) -> bool:
        if len(self._events) != known:
            return False
        self._events.append(event)
        return True
