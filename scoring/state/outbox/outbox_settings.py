"""The size of an outbox, and its errors."""

from __future__ import annotations

from dataclasses import dataclass

from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.schemas.settings import internal


class OutboxFull(TemporaryFailure):
    """The unshipped bytes have reached `total_bytes_max`: the companion is down or too slow. Nothing was written."""


class OutboxUnavailable(TemporaryFailure):
    """The disk under the outbox failed. The record was not acknowledged."""


class OutboxUnsynced(OutboxUnavailable):
    """The first records, or all, are in the log, where the companion finds them. The worker ends, and others follow."""


class OutboxDamaged(Misconfigured):
    """The log holds damage that a crash of a process cannot cause: no record begins at the position asked for."""


@dataclass(frozen=True)
class OutboxSettings:
    """The size of an outbox, and the failures that a record survives. The values of `fsync`:

    - "never": a record survives the death of the process, but not of the machine. The kernel writes it to disk within
      about 30 s.
    - "interval": it also survives the death of the machine once it is `fsync_interval_ms` old. A thread of the writer
      calls fsync; callers do not wait.
    - "always": it is on disk before `append` returns, which then takes as long as the disk does.
    """

    directory: str = "outbox"
    segment_bytes: int = internal(64 * 1024 * 1024)
    # The limit of unshipped bytes: two million decisions, or half an hour of 1,000 a second without a broker. Decisions
    # answered within `[answered] window_s` are kept on top of it.
    total_bytes_max: int = 1024 * 1024 * 1024
    fsync: str = "never"
    fsync_interval_ms: int = internal(200)
    # The most bytes of unreadable entries that each worker's outbox may hold. Beyond it the companion stops
    # shipping this worker's decisions. A damaged segment may be set aside whole, so it is four of them.
    set_aside_bytes_max: int = internal(256 * 1024 * 1024)
