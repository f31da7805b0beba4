"""Follows a worker's outbox for a challenger. It skips forward where the challenger is too slow.

    outbox   ░░░░░░░░░░░░░░░│▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒│
             evaluated    read_to           end           waiting = end - read_to

1. A challenger without a cursor begins where the outbox ends now: it sees live payments, and no past ones.
2. `read` gives the next records. If more than `waiting_bytes_max` wait, it first skips whole records until half of that
   is left, and counts them. The outbox itself waits for nobody here: the companion deletes shipped records.
3. `keep` stores the cursor beside the outbox, some seconds apart. After a crash the records since then come again, and
   `decision_id` with the challenger's name shows a reader of the topic that it has them already.

Bytes that are damaged, or were deleted before they were read, are passed and counted as bytes: nobody knows how many
records they held.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from paywarden.scoring.state.outbox import Cursor, Frames, OutboxDamaged, OutboxReader, OutboxSettings

# How long damage must stay as it is before it is passed. A writer may just be taking back a write.
_CONFIRM_S = 1.0
_KEEP_EVERY_S = 5.0
_SKIPPED_AT_ONCE = 10_000


def cursor_name(challenger: str) -> str:
    """Returns the name of a challenger's cursor beside an outbox."""
    return f"shadow-{challenger}"


@dataclass
class Passed:
    """The data that the challenger missed since the start: `shed` records, and `gone_bytes`."""

    shed: int = 0
    gone_bytes: int = 0


class OutboxTail:
    """One worker's outbox as one challenger follows it. Each method raises OutboxUnavailable if it cannot be read."""

    def __init__(
        self,
        settings: OutboxSettings,
        worker: str,
        challenger: str,
        *,
        waiting_bytes_max: int,
        is_new: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_new`: the worker has begun after the challenger did, so its first decision counts as well."""
        self.worker, self.passed = worker, Passed()
        self.left_bytes = 0
        """How many bytes the last `read` left."""
        self._reader = OutboxReader(settings, worker)
        self._cursor = Cursor(settings, worker, cursor_name(challenger))
        self._waiting_bytes_max, self._clock = waiting_bytes_max, clock
        self._trouble: tuple[int, float] | None = None
        stored = self._cursor.load()
        self.read_to = self._reader.oldest() if stored is None and is_new else stored or 0
        """The position up to which records were given."""
        self._kept, self._keep_due = stored, clock() + _KEEP_EVERY_S
        if stored is None and not is_new:
            self.read_to = self._reader.newest()
            self._skip_to(self._reader.end())
            self.passed = Passed()

    def waiting_bytes(self) -> int:
        """Returns how many bytes wait for the challenger."""
        return max(0, self._reader.end() - self.read_to)

    def read(self, count_max: int) -> Frames:
        """Returns up to `count_max` records, oldest first; skips forward before that if too many wait."""
        end = self._reader.end()
        if end < self.read_to:
            # The outbox was deleted, and the worker has begun a new one.
            self.read_to = self._reader.oldest()
        if end - self.read_to > self._waiting_bytes_max:
            self._skip_to(end - self._waiting_bytes_max // 2)
        frames = self._frames(count_max)
        if frames:
            self.read_to = frames.position
        self.left_bytes = max(0, end - self.read_to)
        return frames

    def keep(self, *, at_once: bool = False) -> None:
        """Store the cursor, if the last time is a while ago. Everything that was read must be on the topic by now."""
        if self._kept == self.read_to or (not at_once and self._clock() < self._keep_due):
            return
        self._cursor.store(self.read_to)
        self._kept, self._keep_due = self.read_to, self._clock() + _KEEP_EVERY_S

    def _skip_to(self, position: int) -> None:
        """Pass whole records until `position` is reached."""
        while self.read_to < position:
            frames = self._frames(_SKIPPED_AT_ONCE)
            if not frames:
                return
            ends = frames.position - len(frames.data) + frames.ends
            # Whole records, up to the record that reaches `position`.
            count = min(len(ends), int(np.searchsorted(ends, position)) + 1)
            self.read_to = int(ends[count - 1])
            self.passed.shed += count

    def _frames(self, count_max: int) -> Frames:
        """Returns records from `read_to` on. Passes records that are gone or damaged; then there may be none."""
        try:
            frames = self._reader.frames(self.read_to, count_max)
        except OutboxDamaged:
            frames = Frames(b"", np.zeros(0, dtype=np.int64), self.read_to)
        if frames:
            self._trouble = None
        elif self._reader.end() > self.read_to:
            self._pass_damage()
        return frames

    def _pass_damage(self) -> None:
        """Go to the next whole record, if no record has begun at `read_to` for a while."""
        now = self._clock()
        following: int | None = self._reader.oldest()
        if following is not None and following <= self.read_to:
            if self._trouble is None or self._trouble[0] != self.read_to:
                self._trouble = (self.read_to, now)
            if now - self._trouble[1] < _CONFIRM_S:
                return
            following = self._reader.after_damage(self.read_to)
        if following is not None:
            self.passed.gone_bytes += following - self.read_to
            self.read_to, self._trouble = following, None
