"""Find partitions that a producer's open transaction holds up, and since when.

A reader of committed records comes to the first record of an open transaction and no further. It sees no later record,
from any producer. Its client says that it is at the end, so nothing else notices.

    written to   980  ┐ 480 records wait
    readable to  500  ┘ the first record of the open transaction

1. Ask the broker for both ends of each partition, written ones first: a transaction committed between the two answers
   then does not look open.
2. Where the readable end is before the written one, and the same at every look for `TOLD_AFTER_MS`, a transaction is
   left open. Where transactions follow each other, as those of companions do, the readable end moves on.
3. Say so in the log once, at its beginning and at its end, and in the gauge all the time.

It ends when the producer goes on, or when the broker gives the transaction up (`transaction.timeout.ms` of the
producer, 60 s by default).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from confluent_kafka import IsolationLevel, KafkaException
from confluent_kafka.admin import AdminClient
from prometheus_client import CollectorRegistry, Gauge

from paywarden.streams.kafka.admin import ask_end_offsets, stable_end_offsets, written_end_offsets
from paywarden.streams.kafka.client import PartitionId, reason_of
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.stalls.stall_detector import named

_log = logging.getLogger(__name__)

ASK_EVERY_S = 5.0
# A companion's transaction is open for ten seconds at most (`[companion] decisions_every_ms`).
TOLD_AFTER_MS = 15_000
_JOIN_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class OpenTransaction:
    """A partition stands behind one. `since_ms`: when that was first seen. `waiting`: records that wait for its end."""

    since_ms: int
    waiting: int


class OpenTransactions:
    """Looks for them. One thread at a time may call `look`; any thread may read `held`."""

    def __init__(
        self,
        admin: AdminClient,
        places: Callable[[], Iterable[PartitionId]],
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        ask_every_s: float = ASK_EVERY_S,
        told_after_ms: int = TOLD_AFTER_MS,
    ) -> None:
        """`places` returns the partitions to ask about now."""
        self._admin, self._places, self._now_ms = admin, places, now_ms
        self._ask_every_ms, self._told_after_ms = round(1000 * ask_every_s), told_after_ms
        self._ask_at_ms = 0
        # By partition: the readable end, and since when it is that and the written one is further.
        self._stood: dict[PartitionId, tuple[int, int]] = {}
        self.held: Mapping[PartitionId, OpenTransaction] = {}
        """The partitions behind a transaction that is left open."""

    def look(self) -> None:
        """Ask the broker, if that is due, and log each stall that begins or ends. Waits for the answer.

        While the broker does not answer, the state stays the same: other checks notice the outage.
        """
        now_ms = self._now_ms()
        # A clock that was set back must not put the next look off.
        if 0 < self._ask_at_ms - now_ms <= self._ask_every_ms:
            return
        self._ask_at_ms = now_ms + self._ask_every_ms
        places = list(self._places())
        try:
            written = self._ends(places, IsolationLevel.READ_UNCOMMITTED)
            readable = self._ends(places, IsolationLevel.READ_COMMITTED)
        except KafkaException as error:
            _log.debug("Kafka does not say where open transactions begin: %s", reason_of(error))
            return
        self._note(written, readable, now_ms)

    def line(self) -> str:
        """Returns a sentence about the partitions that are held up, for people; "" without any."""
        return told(self.held)

    def since_ms(self) -> int:
        """Returns since when anything is held up; 0 for nothing."""
        return min((one.since_ms for one in self.held.values()), default=0)

    def _ends(self, places: list[PartitionId], isolation: IsolationLevel) -> dict[PartitionId, int]:
        answers = ask_end_offsets(self._admin, places, isolation) if places else {}
        return {place: int(answer.result().offset) for place, answer in answers.items()}

    def _note(self, written: Mapping[PartitionId, int], readable: Mapping[PartitionId, int], now_ms: int) -> None:
        stood = {}
        for place, end in readable.items():
            if end < written[place]:
                before, since_ms = self._stood.get(place, (end, now_ms))
                stood[place] = end, since_ms if before == end else now_ms
        self._stood = stood
        held = {
            place: OpenTransaction(since_ms, written[place] - end)
            for place, (end, since_ms) in stood.items()
            if now_ms - since_ms >= self._told_after_ms
        }
        begun = {place: one for place, one in held.items() if place not in self.held}
        ended = sorted(place for place in self.held if place not in held)
        self.held = held
        if begun:
            _log.warning("%s", told(begun))
        if ended:
            _log.info("%s: the open transaction has ended", named(ended))


def told(held: Mapping[PartitionId, OpenTransaction]) -> str:
    """Returns a sentence about partitions that are held up; "" for none."""
    if not held:
        return ""
    since = datetime.fromtimestamp(min(one.since_ms for one in held.values()) / 1000, UTC)
    waiting = sum(one.waiting for one in held.values())
    return (
        f"an open transaction of a producer holds up {named(sorted(held))} since {since:%Y-%m-%d %H:%M:%S} UTC: "
        f"{waiting} records wait for its end"
    )


def waiting_now(admin: AdminClient, topic: str, partitions: Collection[int]) -> str:
    """Returns a sentence about records that cannot be read now because a transaction is open; "" without one.

    It looks once, and so takes a transaction that ends in a moment for one. For a command, which does not come back.
    Raises BrokerUnavailable.
    """
    written = written_end_offsets(admin, topic, partitions)
    readable = stable_end_offsets(admin, topic, partitions)
    waiting = {(topic, number): written[number] - end for number, end in readable.items() if end < written[number]}
    if not waiting:
        return ""
    return f"an open transaction of a producer holds up {named(sorted(waiting))}: {sum(waiting.values())} records wait"


def transaction_gauge(registry: CollectorRegistry) -> Gauge:
    """Returns the gauge of a process that reads topics."""
    return Gauge(
        "paywarden_open_transaction_seconds",
        "For how long readers of a topic have stood behind a transaction that a producer leaves open; 0 without one.",
        ["topic"],
        registry=registry,
    )


class TransactionWatch:
    """Looks at all partitions of some topics, and shows for how long each topic has been held up in the metrics."""

    def __init__(self, clients: KafkaClients, names: Iterable[str], registry: CollectorRegistry) -> None:
        """`names`: topics without prefix. Raises BrokerUnavailable, or Misconfigured for a missing topic."""
        numbers = {clients.topic(name): clients.partitions(name) for name in names}
        self._watch = OpenTransactions(
            clients.admin, lambda: [(topic, number) for topic, found in numbers.items() for number in found]
        )
        self._gauge = transaction_gauge(registry)
        self._topics = tuple(numbers)
        self._show(0)

    def look(self) -> None:
        """Look, and set the gauge. Waits for the broker's answer."""
        self._watch.look()
        self._show(time.time_ns() // 1_000_000)

    def _show(self, now_ms: int) -> None:
        for topic in self._topics:
            held = (one.since_ms for (name, _), one in self._watch.held.items() if name == topic)
            self._gauge.labels(topic).set(max(0.0, (now_ms - min(held, default=now_ms)) / 1000))

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look in a thread while the block runs."""
        stop = threading.Event()

        def run() -> None:
            while not stop.wait(ASK_EVERY_S):
                self.look()

        thread = threading.Thread(target=run, name="open-transactions", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(_JOIN_TIMEOUT_S)
