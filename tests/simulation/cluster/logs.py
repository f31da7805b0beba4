"""Logs of a simulated cluster: topics, records, transactions, and messages as a client gets them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException

Place = tuple[str, int]

AWAY_ANSWER_S = 1.0
# A client that was given no limit waits this long for a broker that took its question.
HUNG_ANSWER_S = 15.0


def kafka_failure(code: int, **flags: bool) -> KafkaException:
    make: Any = KafkaError
    return KafkaException(make(code, **flags))


@dataclass
class Transaction:
    """`state`: open, prepared (the outcome is decided, its markers are not written), committed or aborted."""

    transactional_id: str
    state: str = "open"
    outcome: str = ""
    places: set[Place] = field(default_factory=set)


class Entry:
    """A record, or with `is_marker` the end of a transaction. `poison` is raised when its headers are read.

    `is_stamped`: its time is the broker's (LogAppendTime), not its producer's.
    """

    __slots__ = ("headers", "is_marker", "is_stamped", "key", "poison", "time_ms", "transaction", "value")

    def __init__(
        self,
        key: bytes | None,
        value: bytes | None,
        time_ms: int,
        headers: Sequence[tuple[str, bytes | None]] = (),
        transaction: Transaction | None = None,
        *,
        is_marker: bool = False,
        poison: BaseException | None = None,
    ) -> None:
        self.key, self.value, self.time_ms, self.headers = key, value, time_ms, headers
        self.transaction, self.is_marker, self.poison = transaction, is_marker, poison
        self.is_stamped = False

    @property
    def is_visible(self) -> bool:
        return not self.is_marker and (self.transaction is None or self.transaction.state == "committed")


class Log:
    """A partition. `begin` is its first offset: earlier records have expired."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.begin = 0

    @property
    def end(self) -> int:
        return len(self.entries)

    def stable_end(self, after: int = 0) -> int:
        """Returns the offset of the first record of an open transaction, or the end."""
        for offset in range(after, len(self.entries)):
            transaction = self.entries[offset].transaction
            if transaction is not None and transaction.state in ("open", "prepared"):
                return offset
        return len(self.entries)


@dataclass
class Topic:
    topic_id: int
    logs: list[Log]

    @property
    def name_of_id(self) -> str:
        return f"id-{self.topic_id}"


class Message:
    """A record as the client hands it out, or with `code` an error."""

    __slots__ = ("_code", "_entry", "_offset", "_place", "_reason")

    def __init__(
        self, place: Place, offset: int, entry: Entry | None, code: int | None = None, reason: str = ""
    ) -> None:
        self._place, self._offset, self._entry, self._code, self._reason = place, offset, entry, code, reason

    def topic(self) -> str:
        return self._place[0]

    def partition(self) -> int:
        return self._place[1]

    def offset(self) -> int:
        return self._offset

    def error(self) -> KafkaError | None:
        if self._code is None:
            return None
        return KafkaError(self._code, self._reason) if self._reason else KafkaError(self._code)

    def key(self) -> bytes | None:
        assert self._entry is not None
        return self._entry.key

    def value(self) -> bytes | None:
        assert self._entry is not None
        return self._entry.value

    def timestamp(self) -> tuple[int, int]:
        assert self._entry is not None
        return (2 if self._entry.is_stamped else 1, self._entry.time_ms)

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        assert self._entry is not None
        if self._entry.poison is not None:
            raise self._entry.poison
        return list(self._entry.headers) or None
