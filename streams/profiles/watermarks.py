"""How complete are the profiles? A moment, that every payment which reached Kafka before it is in.

It travels with what it speaks of, from one end to the other:

    payments     `SourceProgress`: how far each partition has been sent on. Into every partition of every repartition
                 topic goes "what reached partition 3 before T is in the frames before this one"
    repartition  `RoutedProgress`: the smallest of these over all partitions of payments. Into every partition of the
                 changelog goes "what reached Kafka before T is in the records before this one, as far as it is of
                 cards in partition 5"
    changelog    `CopyProgress`: the smallest of all these is the moment up to which a mirror is complete
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

PREFIX = b"progress:"


def progress_key(entity: str, partition: int) -> bytes:
    """The changelog key of the progress of a partition of an entity's repartition topic."""
    return PREFIX + f"{entity}:{partition}".encode()


class SourceProgress:
    """How far each partition of payments has been worked in by this worker."""

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

    def stood_still(self) -> None:
        """Nothing was read for a while: there may be more behind every end."""
        self._at_end.clear()

    def read_again(self, partitions: Iterable[int]) -> None:
        """What was consumed of these partitions was not worked in, and will be consumed again."""
        self.assigned(set(partitions) & self._complete_to_ms.keys())

    def complete_to_ms(self, asked_ms: int) -> dict[int, int]:
        """Per payments partition, once a batch is written.

        `asked_ms`: all that the client had heard of by then has been consumed.
        """
        return {
            partition: max(asked_ms, reached) if partition in self._at_end else reached
            for partition, reached in self._complete_to_ms.items()
        }


class RoutedProgress:
    """What the owner of some partitions of repartition topics has heard of the partitions of payments."""

    def __init__(self, payments_partitions: Iterable[int]) -> None:
        self._payments_partitions = tuple(payments_partitions)
        self._heard: dict[tuple[str, int], dict[int, int]] = {}
        self._told: dict[tuple[str, int], int] = {}

    def revoked(self, entity: str, partition: int) -> None:
        self._heard.pop((entity, partition), None)
        self._told.pop((entity, partition), None)

    def heard(self, entity: str, partition: int, complete_to_ms: Mapping[int, int]) -> None:
        """A frame of this partition of the entity's topic said so."""
        known = self._heard.setdefault((entity, partition), {})
        for payments_partition, time_ms in complete_to_ms.items():
            # An owner that comes new to a partition begins at 0; what was said before stays true.
            known[payments_partition] = max(time_ms, known.get(payments_partition, 0))

    def news(self) -> dict[bytes, int]:
        """By changelog key, where the moment is later than it was when last asked."""
        news = {}
        for (entity, partition), known in self._heard.items():
            moment = min((known.get(p, 0) for p in self._payments_partitions), default=0)
            if moment > self._told.get((entity, partition), 0):
                self._told[entity, partition] = moment
                news[progress_key(entity, partition)] = moment
        return news


class CopyProgress:
    """The companion's side: the smallest moment over all changelog partitions and all progress there is."""

    def __init__(self, changelog_partitions: Iterable[int], keys: Iterable[bytes]) -> None:
        """`keys`: the progress key of every partition of every repartition topic."""
        self._seen: dict[bytes, dict[int, int]] = {key: dict.fromkeys(changelog_partitions, 0) for key in keys}

    def saw(self, changelog_partition: int, key: bytes, complete_to_ms: int) -> None:
        """A progress record was read from this changelog partition."""
        # Keys of topics that there are no more stay on a compacted topic.
        if key in self._seen:
            self._seen[key][changelog_partition] = complete_to_ms

    def complete_to_ms(self) -> int:
        """0 while some progress has not been heard of in every changelog partition."""
        return min((time_ms for seen in self._seen.values() for time_ms in seen.values()), default=0)
