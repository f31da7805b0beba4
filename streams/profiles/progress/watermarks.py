"""The watermark of profiles: the moment T such that every payment that reached Kafka before T is in its profiles.

Mirrors know it by claims (streams/profiles/progress/completeness.py). `CopyProgress` is their side. Workers and
companions of earlier releases know no claims. For them, and for a group that has such workers, the rest of this module
goes on: every ten seconds the watermark travels behind the records that it speaks of, in three steps:

    payments     `SourceProgress`: how far each partition of payments has been sent on. Every partition of every
                 repartition topic gets: "payments that reached partition 3 before T are in the frames before this one"
    repartition  `RoutedProgress`: the minimum over all partitions of payments. Every partition of the changelog gets:
                 "for cards in partition 5, payments before T are in the records before this one"
    changelog    `CopyProgress`: the minimum of all of these is the moment up to which a mirror is complete

Example: payments/0 is sent up to 12:00:05 and payments/1 up to 12:00:03. The owner of repartition-card/5 tells
12:00:03. The mirror is complete up to 12:00:03 once all owners have reported at least that.

What can go wrong:

- A client reports an end and then stops reading, in a rebalance or a hold. The end counts again only after the client
  has reported it again (`stood_still`, `assigned`).
- A batch is abandoned: `read_again` takes back the progress of its partitions.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

PREFIX = b"progress:"
"""The beginning of the changelog's keys of progress. They are no profiles."""
CLAIM_KEY = PREFIX + b"all"
"""The changelog key of claims. An earlier release passes over it."""

_FORMAT = 1
_ENTRY = struct.Struct("<Iq")
# A worker tells a claim every 5 s at least. Longer than its silence in a rebalance, shorter than a mirror may be old.
_CLAIMS_SILENT_MS = 15_000
# A copy that is behind keeps at most this many claims.
_CLAIMS_MAX = 64


@dataclass(frozen=True)
class Claim:
    """Every payment that reached Kafka before `complete_to_ms` is in the changelog's records before `ends`.

    `ends`: for each partition of the changelog, the offset after the last of these records.
    """

    complete_to_ms: int
    ends: Mapping[int, int]

    def encoded_ends(self) -> bytes:
        """Returns the ends as bytes: the format's number, then partition (4 bytes) and offset (8 bytes) of each."""
        return bytes([_FORMAT]) + b"".join(_ENTRY.pack(*place) for place in sorted(self.ends.items()))

    def holds(self, read_to: Mapping[int, int]) -> bool:
        """Returns whether a copy that was read to these offsets has all of it."""
        return all(read_to.get(partition, 0) >= end for partition, end in self.ends.items())


def claim_of(complete_to_ms: int, ends: bytes) -> Claim | None:
    """Returns a claim as it was encoded; None for bytes of another format."""
    if not ends or ends[0] != _FORMAT or (len(ends) - 1) % _ENTRY.size:
        return None
    return Claim(complete_to_ms, dict(_ENTRY.iter_unpack(ends[1:])))


def progress_key(entity: str, partition: int) -> bytes:
    """Returns the changelog key for the progress of one partition of an entity's repartition topic."""
    return PREFIX + f"{entity}:{partition}".encode()


class SourceProgress:
    """The progress of this worker in each of its partitions of payments."""

    def __init__(self) -> None:
        self._complete_to_ms: dict[int, int] = {}
        self._at_end: set[int] = set()

    def assigned(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            self._complete_to_ms[partition] = 0
            # The report of its end may have been on the way when it was revoked; it may have more records by now.
            self._at_end.discard(partition)

    def revoked(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            self._complete_to_ms.pop(partition, None)
            self._at_end.discard(partition)

    def consumed(self, partition: int, timestamp_ms: int) -> None:
        """Note a record with this Kafka timestamp: more may follow it."""
        self._at_end.discard(partition)
        if partition in self._complete_to_ms:
            self._complete_to_ms[partition] = max(self._complete_to_ms[partition], timestamp_ms)

    def reached_end(self, partition: int) -> None:
        """Note that no record follows the last one."""
        self._at_end.add(partition)

    def stood_still(self) -> None:
        """Note a pause in reading: more records may follow every end."""
        self._at_end.clear()

    def read_again(self, partitions: Iterable[int]) -> None:
        """Note that records of these partitions were abandoned: the worker will consume them again."""
        self.assigned(set(partitions) & self._complete_to_ms.keys())

    def written(self, asked_ms: int) -> None:
        """Note that a batch is written. `asked_ms`: everything that the client knew of at this moment was consumed.

        This is called after every batch: a busy partition is at its end for a few milliseconds, and seldom just when
        progress is due.
        """
        for partition in self._at_end:
            if partition in self._complete_to_ms:
                self._complete_to_ms[partition] = max(asked_ms, self._complete_to_ms[partition])

    def complete_to_ms(self) -> dict[int, int]:
        """Returns the watermark of each partition of payments."""
        return dict(self._complete_to_ms)


class RoutedProgress:
    """The progress of payments that a worker has read in its partitions of the repartition topics."""

    def __init__(self, payments_partitions: Iterable[int]) -> None:
        self._payments_partitions = tuple(payments_partitions)
        self._heard: dict[tuple[str, int], dict[int, int]] = {}
        self._told: dict[tuple[str, int], int] = {}

    def revoked(self, entity: str, partition: int) -> None:
        self._heard.pop((entity, partition), None)
        self._told.pop((entity, partition), None)

    def heard(self, entity: str, partition: int, complete_to_ms: Mapping[int, int]) -> None:
        """Note the progress in a frame of this partition of the entity's topic."""
        known = self._heard.setdefault((entity, partition), {})
        for payments_partition, time_ms in complete_to_ms.items():
            # A new owner of a partition of payments begins at 0, but the earlier progress stays true.
            known[payments_partition] = max(time_ms, known.get(payments_partition, 0))

    def news(self) -> dict[bytes, int]:
        """Returns by changelog key each moment that has moved on since the last call."""
        news = {}
        for (entity, partition), known in self._heard.items():
            moment = min((known.get(p, 0) for p in self._payments_partitions), default=0)
            if moment > self._told.get((entity, partition), 0):
                self._told[entity, partition] = moment
                news[progress_key(entity, partition)] = moment
        return news


class CopyProgress:
    """The companion's side: how complete a copy of the profiles is.

    Claims decide. Without any for `_CLAIMS_SILENT_MS`, the group's workers are of an earlier release, and the minimum
    over all partitions of the changelog and all progress keys decides. A copy that begins has heard nothing yet, and
    waits as long: progress says too much of a partition that a worker's client has silently lost.
    """

    def __init__(self, changelog_partitions: Iterable[int], keys: Iterable[bytes]) -> None:
        """`keys`: the progress key of every partition of every repartition topic."""
        self._seen: dict[bytes, dict[int, int]] = {key: dict.fromkeys(changelog_partitions, 0) for key in keys}
        # Claims whose ends are not reached yet, the oldest first.
        self._claims: deque[Claim] = deque()
        self._claimed_ms = 0
        # Since when it waits for a claim.
        self._silent_since_ms = 0

    def begin_anew(self, now_ms: int) -> None:
        """Forget everything: the copy goes back to where it was written, and reads the records behind that again."""
        self._claims.clear()
        self._claimed_ms, self._silent_since_ms = 0, now_ms
        self._seen = {key: dict.fromkeys(seen, 0) for key, seen in self._seen.items()}

    def claimed(self, claim: Claim, now_ms: int) -> None:
        """Note a claim that was read at `now_ms`, and counts up to then: its worker's clock may be ahead."""
        self._silent_since_ms = now_ms
        self._claims.append(replace(claim, complete_to_ms=min(claim.complete_to_ms, now_ms)))
        if len(self._claims) > _CLAIMS_MAX:
            # The copy is behind. If it kept only the newest ones, it would never reach one.
            self._claims = deque(list(self._claims)[::2])

    def saw(self, changelog_partition: int, key: bytes, complete_to_ms: int) -> None:
        """Note a progress record from this partition of the changelog."""
        # A compacted topic also keeps the keys of repartition topics that no longer exist.
        if key in self._seen:
            self._seen[key][changelog_partition] = complete_to_ms

    def complete_to_ms(self, read_to: Mapping[int, int], now_ms: int) -> int:
        """Returns the moment; 0 while it is not known. `read_to`: the next offset of each changelog partition."""
        for claim in reversed(self._claims):
            if claim.holds(read_to):
                self._claimed_ms = claim.complete_to_ms
                while self._claims.popleft() is not claim:
                    pass
                break
        if now_ms - self._silent_since_ms < _CLAIMS_SILENT_MS:
            return self._claimed_ms
        return min((time_ms for seen in self._seen.values() for time_ms in seen.values()), default=0)
