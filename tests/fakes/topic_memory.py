"""A topic in memory, for tests of readers of offset ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.streams.kafka.reading import Record

IDS = LocalSchemaIds()


class MemoryTopic:
    """A TopicSource in memory. An offset without a record stands for a record that no reader sees."""

    def __init__(self, name: str, batch: int = 7) -> None:
        self.name, self._batch = name, batch
        self.partitions: dict[int, list[Record | None]] = {}
        self.begins: dict[int, int] = {}
        self.id = "id-1"
        # The partition and range of each call of `records`.
        self.asked: list[tuple[int, range]] = []
        # Reading fails after this many records, like a killed process.
        self.fails_after: int | None = None
        self._encoder = Encoder(name, IDS.id_of(name))

    def append(self, partition: int, row: Mapping[str, Any], timestamp_ms: int) -> int:
        """Append a record; returns its offset."""
        return self.append_bytes(partition, self._encoder.encode(row), timestamp_ms)

    def append_bytes(self, partition: int, value: bytes | None, timestamp_ms: int) -> int:
        log = self.partitions.setdefault(partition, [])
        log.append(Record(self.name, partition, len(log), b"k", value, timestamp_ms, ()))
        return len(log) - 1

    def append_unseen(self, partition: int) -> None:
        self.partitions.setdefault(partition, []).append(None)

    def ranges(self, since_ms: int | None, until_ms: int | None) -> dict[int, range]:
        return {
            partition: range(
                self.begin(partition) if since_ms is None else _first_at(log, since_ms),
                len(log) if until_ms is None else _first_at(log, until_ms),
            )
            for partition, log in self.partitions.items()
        }

    def topic_id(self) -> str:
        return self.id

    def end(self, partition: int) -> int:
        return len(self.partitions.get(partition, ()))

    def begin(self, partition: int) -> int:
        return self.begins.get(partition, 0)

    def records(self, partition: int, offsets: range) -> Iterator[list[Record]]:
        self.asked.append((partition, offsets))
        there = [record for record in self.partitions[partition][offsets.start : offsets.stop] if record is not None]
        for start in range(0, len(there), self._batch):
            batch = there[start : start + self._batch]
            if self.fails_after is not None:
                self.fails_after -= len(batch)
                if self.fails_after < 0:
                    raise Killed
            yield batch


class Killed(Exception):
    """The reading process was killed."""


def _first_at(log: Sequence[Record | None], time_ms: int) -> int:
    for offset, record in enumerate(log):
        if record is not None and record.timestamp_ms >= time_ms:
            return offset
    return len(log)
