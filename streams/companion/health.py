"""How a companion stands, for who asks over HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

# A round takes milliseconds; one that takes this long will not end.
_ROUND_S_MAX = 60.0


class CompanionHealth:
    """Written by the companion's loop, read in any thread: single values, each replaced whole, so that nobody waits."""

    def __init__(
        self,
        mirror_age_ms_max: int,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`mirror_age_ms_max`: with a mirror that is older the companion is not ready."""
        self._mirror_age_ms_max, self._now_ms, self._clock = mirror_age_ms_max, now_ms, clock
        self.obstacle = "it has not started"
        """Why the loop does not run; empty while it does."""
        self.partitions_to_reach = 0
        """Partitions of the changelog not yet read to where they ended at the start."""
        self.complete_to_ms = 0
        """Up to when the mirror is complete; 0 while it is not."""
        self.kafka_trouble = ""
        """Why Kafka is taken to be away."""
        self._round_at = clock()

    def follow(self, partitions_to_reach: int, complete_to_ms: int) -> None:
        """The loop begins."""
        self.partitions_to_reach, self.complete_to_ms = partitions_to_reach, complete_to_ms
        self.note_round()
        self.obstacle = ""

    def note_round(self) -> None:
        """The loop has made a round."""
        self._round_at = self._clock()

    def live(self) -> bool:
        """Whether the loop goes on, or is not to: filling a mirror takes as long as it takes."""
        return bool(self.obstacle) or self._clock() - self._round_at < _ROUND_S_MAX

    def problems(self) -> Sequence[str]:
        """Why the mirror is not what scoring should use, one line each; empty when it is."""
        if self.obstacle:
            return [self.obstacle]
        found = [self.kafka_trouble] if self.kafka_trouble else []
        if self.partitions_to_reach:
            found.append(
                f"the mirror is catching up: {self.partitions_to_reach} partitions of the changelog are not read to "
                "where they ended at the start"
            )
        age_s = self.mirror_age_s()
        if age_s is None:
            if not self.partitions_to_reach:
                found.append("the mirror is not complete: the stream has not said how far it is")
        elif 1000 * age_s > self._mirror_age_ms_max:
            found.append(f"the mirror is {age_s:.1f} s old, {self._mirror_age_ms_max / 1000:g} s are allowed")
        return found

    def mirror_age_s(self) -> float | None:
        """How long ago it was that the mirror was complete; None while it is not."""
        complete_to_ms = self.complete_to_ms
        return max(0.0, (self._now_ms() - complete_to_ms) / 1000) if complete_to_ms else None
