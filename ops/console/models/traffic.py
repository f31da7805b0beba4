"""Reads the last day's traffic from the index of decisions, for the plan of a rollout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from paywarden.ops.console.models.rollout_plan import SeenTraffic
from paywarden.schemas.errors import PaywardenError

if TYPE_CHECKING:
    from paywarden.ops.console.decisions.index_connection import OpenedIndex

_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
_SAMPLE_MAX = 1_000
_KEPT_MS = 60_000


class IndexTraffic:
    """Counts the last day, at most once a minute."""

    def __init__(self, opened: OpenedIndex, decode: Callable[[bytes], Mapping[str, Any]]) -> None:
        self._opened, self._decode = opened, decode
        self._known: tuple[int, SeenTraffic | None] = (0, None)

    def __call__(self, now_ms: int) -> SeenTraffic | None:
        """Return the traffic of the day before `now_ms`; None if the index cannot be read, or has no decisions."""
        if not 0 <= now_ms - self._known[0] < _KEPT_MS:
            try:
                self._known = now_ms, self._counted(now_ms)
            except PaywardenError:
                return None
        return self._known[1]

    def _counted(self, now_ms: int) -> SeenTraffic | None:
        with self._opened.used() as (index, _):
            hours = index.hours_between(now_ms - _DAY_MS, now_ms)
            if not hours:
                return None
            newest = hours[-1][0] * _HOUR_MS
            bodies = index.bodies_between(newest, newest + _HOUR_MS - 1, _SAMPLE_MAX)
        actions = [self._decode(body)["action"] for _, body in bodies]
        count = max(1, len(actions))
        return SeenTraffic(
            sum(number for _, number in hours),
            len(actions),
            actions.count("review") / count,
            actions.count("decline") / count,
        )
