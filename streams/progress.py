"""How complete are the profiles? A moment, for every partition of payments, that everything before is in.

The stream writes, after the profiles of a batch, one small record for each of its payments partitions into
every partition of the changelog: "what reached Kafka before T is in the records before this one". A reader
that has seen such a record in every changelog partition knows that its copy is complete up to the smallest T.
"""

from __future__ import annotations

from collections.abc import Iterable

PREFIX = b"progress:"


def progress_key(payments_partition: int) -> bytes:
    """The changelog key of a payments partition's progress."""
    return PREFIX + str(payments_partition).encode()


class SourceProgress:
    """The stream's side: how far each payments partition has been worked in."""

    def __init__(self) -> None:
        self._complete_to_ms: dict[int, int] = {}
        self._at_end: set[int] = set()

    def assigned(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            self._complete_to_ms[partition] = 0
            # The news of its end may have been on the way when it was revoked; there may be more by now.
            self._at_end.discard(partition)

    def revoked(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            self._complete_to_ms.pop(partition, None)
            self._at_end.discard(partition)

    def consumed(self, partition: int, timestamp_ms: int) -> None:
        """A record with this Kafka timestamp was taken: there may be more behind it."""
        self._at_end.discard(partition)
        if partition in self._complete_to_ms:
            self._complete_to_ms[partition] = max(self._complete_to_ms[partition], timestamp_ms)

    def reached_end(self, partition: int) -> None:
        """Nothing was behind the last record."""
        self._at_end.add(partition)

    def complete_to_ms(self, asked_ms: int) -> dict[int, int]:
        """Per payments partition, once a batch is written. `asked_ms`: the client had news at least this new."""
        return {
            partition: max(asked_ms, reached) if partition in self._at_end else reached
            for partition, reached in self._complete_to_ms.items()
        }


class CopyProgress:
    """The companion's side: the smallest T over all changelog partitions and payments partitions."""

    def __init__(self, changelog_partitions: Iterable[int]) -> None:
        self._seen: dict[int, dict[int, int]] = {partition: {} for partition in changelog_partitions}

    def saw(self, changelog_partition: int, key: bytes, complete_to_ms: int) -> None:
        """A progress record was read from this changelog partition."""
        self._seen[changelog_partition][int(key[len(PREFIX) :])] = complete_to_ms

    def complete_to_ms(self) -> int:
        """0 while some payments partition has not been heard of in every changelog partition."""
        heard = [seen.keys() for seen in self._seen.values()]
        everywhere = set().union(*heard)
        if not everywhere or any(partitions != everywhere for partitions in heard):
            return 0
        return min(time_ms for seen in self._seen.values() for time_ms in seen.values())
