"""The state of a companion, for its HTTP endpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

# A round takes milliseconds. A round of this length has hung.
_ROUND_S_MAX = 60.0
# While there is an obstacle, a round is a step in filling the mirror: a page of a scan, or a wait for the store.
_STEP_S_MAX = 300.0
# A round of shipping may search a damaged segment, for seconds, and pauses up to half a minute after a failure.
_SHIPPING_ROUND_S_MAX = 300.0


class CompanionHealth:
    """Written by the companion's loop, read in any thread. Each value is replaced as a whole, so no thread waits."""

    def __init__(
        self,
        mirror_age_ms_max: int,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The companion is not ready while its mirror is older than `mirror_age_ms_max`."""
        self._mirror_age_ms_max, self._now_ms, self._clock = mirror_age_ms_max, now_ms, clock
        self.obstacle = "it has not started"
        """Why the loop does not run; empty while it does."""
        self.partitions_to_reach = 0
        """Partitions of the changelog that are not yet read to the end they had at the start."""
        self.complete_to_ms = 0
        """The moment up to which the mirror is complete; 0 while it is not complete."""
        self.kafka_trouble = ""
        """Why the companion assumes that Kafka is down; empty if it is not."""
        self.mirror_trouble = ""
        """Why the mirror takes no changes; empty if it does."""
        self._round_at = clock()
        self._shipping_round_at: float | None = None

    def follow(self, partitions_to_reach: int, complete_to_ms: int) -> None:
        """Note that the loop begins."""
        self.partitions_to_reach, self.complete_to_ms = partitions_to_reach, complete_to_ms
        self.note_round()
        self.obstacle = ""

    def note_round(self) -> None:
        """Note that the loop has made a round, or a step in front of an obstacle."""
        self._round_at = self._clock()

    def note_shipping_round(self) -> None:
        """Note that shipping has made a round."""
        self._shipping_round_at = self._clock()

    def live(self) -> bool:
        """Returns whether both loops make rounds. Filling a mirror has no time limit as a whole, but each step has."""
        now = self._clock()
        is_following = now - self._round_at < (_STEP_S_MAX if self.obstacle else _ROUND_S_MAX)
        shipped_at = now if self._shipping_round_at is None else self._shipping_round_at
        return is_following and now - shipped_at < _SHIPPING_ROUND_S_MAX

    def problems(self) -> Sequence[str]:
        """Returns why scoring should not use the mirror, one line each; empty if it should."""
        if self.obstacle:
            return [self.obstacle]
        problems = [trouble for trouble in (self.kafka_trouble, self.mirror_trouble) if trouble]
        if self.partitions_to_reach:
            problems.append(
                f"the mirror is catching up: {self.partitions_to_reach} partitions of the changelog are not read to "
                "where they ended at the start"
            )
        age_s = self.mirror_age_s()
        if age_s is None:
            if not self.partitions_to_reach:
                problems.append("the mirror is not complete: the stream has not said how far it is")
        elif 1000 * age_s > self._mirror_age_ms_max:
            problems.append(f"the mirror is {age_s:.1f} s old, {self._mirror_age_ms_max / 1000:g} s are allowed")
        return problems

    def mirror_age_s(self) -> float | None:
        """Returns the mirror's age: the seconds since the moment it is complete to. None while it is not complete."""
        complete_to_ms = self.complete_to_ms
        return max(0.0, (self._now_ms() - complete_to_ms) / 1000) if complete_to_ms else None
