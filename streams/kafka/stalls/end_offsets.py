"""Ask Kafka again and again where partitions end, without ever blocking on the answer.

look()  0.0 s  sends the request            → None
look()  1.0 s  takes the answer             → {("profiles", 0): 5, ("profiles", 1): 7}
look()  2.0 s  sends the next request       → None
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from confluent_kafka import IsolationLevel, KafkaException
from confluent_kafka.admin import AdminClient

from paywarden.streams.kafka.admin import ask_end_offsets
from paywarden.streams.kafka.client import PartitionId, reason_of

ASK_EVERY_S = 2.0
# A partition without a leader has no answer for a moment. Only a longer silence counts as an outage of Kafka.
AWAY_AFTER_S = 6.0


class EndsWatch:
    """Asks for the ends of partitions. Not thread-safe; the caller calls `look` about once a second."""

    def __init__(
        self,
        admin: AdminClient,
        what: str,
        places: Callable[[], Iterable[PartitionId]],
        clock: Callable[[], float] = time.monotonic,
        ask_every_s: float = ASK_EVERY_S,
        isolation: IsolationLevel = IsolationLevel.READ_COMMITTED,
    ) -> None:
        """`places` returns the partitions to ask about now; `what` names them in messages.

        By default a partition ends where an open transaction begins, as far as readers can come.
        """
        self._isolation = isolation
        self._admin, self._what, self._places, self._clock = admin, what, places, clock
        self._ask_every_s = ask_every_s
        self._asked: dict[PartitionId, Future[Any]] = {}
        self._ask_at = 0.0
        self._answered_at: float | None = None
        self._asked_at = 0.0
        self.age_s = 0.0
        """How long before it was returned the last answer was asked for."""
        self._failure = "there is no answer"

    def look(self) -> dict[PartitionId, int] | None:
        """Returns the offset after the last record of each partition, or None if no new answer has come."""
        now = self._clock()
        if self._answered_at is None:
            self._answered_at, self._ask_at = now, now
        ends = None
        if self._asked and all(answer.done() for answer in self._asked.values()):
            ends = self._take(now)
        if not self._asked and now >= self._ask_at:
            if places := list(self._places()):
                self._asked, self._asked_at = ask_end_offsets(self._admin, places, self._isolation), now
            self._ask_at = now + self._ask_every_s
        return ends

    def trouble(self) -> str:
        """Returns why the caller should assume that Kafka is down; empty while it answers."""
        if self._answered_at is None:
            return ""
        silent_s = self._clock() - self._answered_at
        if silent_s <= AWAY_AFTER_S:
            return ""
        return f"for {silent_s:.0f} s Kafka has not said where {self._what} ends: {self._failure}"

    def _take(self, now: float) -> dict[PartitionId, int] | None:
        asked, self._asked = self._asked, {}
        try:
            ends = {place: int(answer.result().offset) for place, answer in asked.items()}
        except KafkaException as error:
            self._failure = reason_of(error)
            return None
        self._answered_at, self.age_s = now, now - self._asked_at
        return ends
