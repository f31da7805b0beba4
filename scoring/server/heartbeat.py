"""A heartbeat of each worker in shared memory, by which the supervisor notices a worker that stands still.

    worker ─ Watch, each round ─ beat() ─► one int64 per worker, shared by fork ─► supervisor: HangDetector

A beat is a count, and the supervisor counts its own looks: no clock of one process is compared with another's. A
machine that was suspended, or is so busy that the supervisor itself stands still, therefore ends no worker.
"""

from __future__ import annotations

import math
import mmap

# The interval at which the supervisor looks at its workers.
LOOK_S = 0.5
# A worker reads the end of its outbox before its first beat, which may take long on a cold disk.
_START_S = 60.0


class Heartbeats:
    """The beats of all workers. Make it before the fork; each worker beats in its own slot."""

    def __init__(self, worker_count: int) -> None:
        self._beats = memoryview(mmap.mmap(-1, 8 * worker_count)).cast("q")

    def beat(self, worker: int) -> None:
        """Note that the worker's event loop turns and its watch works."""
        self._beats[worker] += 1

    def count(self, worker: int) -> int:
        """Returns the number of beats of all processes of the worker."""
        return self._beats[worker]


class HangDetector:
    """Tells whether one worker stands still. Call `look` every LOOK_S seconds while it runs."""

    def __init__(self, hang_timeout_s: float) -> None:
        """0 turns it off."""
        self._looks_max = math.ceil(hang_timeout_s / LOOK_S)
        self._start_looks_max = max(self._looks_max, math.ceil(_START_S / LOOK_S))
        self.begin(0)

    def begin(self, beats: int) -> None:
        """Note that a new process was started at this number of beats."""
        self._beats, self._looks, self._has_beaten = beats, 0, False

    def look(self, beats: int) -> bool:
        """Returns True once the worker has not beaten for the whole time."""
        if beats != self._beats:
            self._beats, self._looks, self._has_beaten = beats, 0, True
            return False
        self._looks += 1
        looks_max = self._looks_max if self._has_beaten else self._start_looks_max
        return self._looks_max > 0 and self._looks >= looks_max
