"""Faust's Kafka consumer, changed where its settings do not reach.

It overrides hooks of Faust 0.15 whose names begin with an underscore, because Faust has no public ones for them, and it
uses private parts of aiokafka. tests/integration/profiles/test_stream_app.py fails if they change.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast

import aiokafka
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport, ensure_aiokafka_TP
from faust.types import TP
from mode.threads import WorkerThread

from paywarden.schemas.errors import BrokerUnavailable
from paywarden.streams.faust.record_batches import ignore_headers

# Services log under their own module's name. These belong with Faust's.
_log = logging.getLogger("faust.transport")
# How long a fetch waits while all partitions are held.
_IDLE_S = 0.2
# Faust lets the broker wait 1.5 s for new records. The data of a fetch is a little older than that.
_GATHER_MS_MAX = 1_500
_FETCH_AGE_MS = 2_000
# An answer of this size is worth its price: some hundred decisions.
_GATHER_BYTES = 64 * 1024
# How often the fetcher looks at all its partitions while a fetch is on its way. New work wakes it before that.
_FETCHER_LOOK_S = 1.0
# Within this time a thread that works has said that it is done.
_THREAD_STOP_S = 1.0


# The private parts of aiokafka that this module uses, each because aiokafka and Faust have no public way.


def _read_committed_only(consumer: aiokafka.AIOKafkaConsumer) -> None:
    """Skip records of aborted transactions, as our other consumers do.

    Faust passes `isolation_level` to aiokafka only as part of its own exactly-once mode, which would take over the
    offsets.
    """
    consumer._isolation_level = "read_committed"


def _gather(consumer: aiokafka.AIOKafkaConsumer, gather_ms: int) -> None:
    """Let the broker hold an answer back for `gather_ms`, unless it has enough for one. Faust has no setting for it.

    Otherwise every transaction of every host is an answer of its own, which costs broker and reader a millisecond.
    """
    consumer._fetch_min_bytes, consumer._fetch_max_wait_ms = _GATHER_BYTES, gather_ms


def _look_rarely(consumer: aiokafka.AIOKafkaConsumer) -> None:
    """Let the fetcher sleep while it waits for the broker. Faust has no setting for it, and the default is 0.2 s."""
    consumer._consumer_timeout = _FETCHER_LOOK_S


async def _close_connections(consumer: aiokafka.AIOKafkaConsumer) -> None:
    """Do the last step of a `stop` that was interrupted: a second `stop` returns at once and closes nothing."""
    await consumer._client.close()


def _fetched_of(consumer: aiokafka.AIOKafkaConsumer, partition: TP) -> tuple[int, int, int] | None:
    """Returns a partition's next offset, its end by the broker's last answer, and the time of that answer in epoch ms.

    The end includes records of open transactions. None before the first answer. The end and the time are public, but
    the position only as a coroutine of the consumer's own event loop. The caller must see all three at one moment.
    """
    assignment = consumer._subscription.subscription.assignment
    state = assignment and assignment.state_value(ensure_aiokafka_TP(partition))
    if not state or state.highwater is None or not state.has_valid_position:
        return None
    return state.position, state.highwater, state.timestamp


class EndMarks:
    """Ends of partitions with their times: a reader that has read to a mark has read all that was there at that time.

        10:00:00   the broker says: the partition ends at 980. Read to 500      a mark: 980 at 10:00:00
        10:00:07   read to 990                                                  all of 10:00:00 is read

    The end counts the records of open transactions. Readers see none of those, nor the records that others wrote behind
    them. If the end were where readers stop, they would be at it, and the waiting records would count as read.
    """

    def __init__(self) -> None:
        self._marks: dict[TP, tuple[int, int]] = {}

    def note(self, partition: TP, position: int, end: int, at_ms: int) -> int:
        """Note where a partition ended at a time; returns the time to which it has been read, 0 for nothing new."""
        read_ms = 0
        mark = self._marks.get(partition)
        if mark is not None and position >= mark[0]:
            read_ms = mark[1]
            del self._marks[partition]
        if position >= end:
            return max(read_ms, at_ms)
        self._marks.setdefault(partition, (end, at_ms))
        return read_ms

    def clear(self) -> None:
        """Forget everything, for another assignment."""
        self._marks.clear()


class _DaemonThread(WorkerThread):
    """A daemon thread: it does not hold up the end of a process that could not stop it in time."""

    def __init__(self, service: Any, **options: Any) -> None:
        super().__init__(service, **options)
        self.daemon = True

    def stop(self) -> None:
        """Wait for the thread, but not for long: this runs in the event loop, and the thread may hang."""
        self.is_stopped.wait(_THREAD_STOP_S)


class _ConsumerThread(AIOKafkaConsumerThread):
    Worker = _DaemonThread
    logger = _log

    def _create_worker_consumer(self, transport: Transport) -> aiokafka.AIOKafkaConsumer:
        ignore_headers()
        consumer = super()._create_worker_consumer(transport)
        _read_committed_only(consumer)
        _gather(consumer, cast(KafkaTransport, transport).gather_ms)
        _look_rarely(consumer)
        return consumer

    def _start_thread(self) -> None:
        """Run the thread's work, in the thread. If it ends before a stop, for any reason, the app ends."""
        try:
            super()._start_thread()
        except BaseException as error:  # noqa: BLE001  # handed over whole; the threading module would print it
            self._fail(error)
        if not self.should_stop:
            self._fail(BrokerUnavailable("the thread of Faust's Kafka client has ended"))

    def _stopped_set(self) -> None:
        # The thread's loop is closed when the thread has ended by itself.
        with suppress(RuntimeError):
            super()._stopped_set()

    def _fail(self, error: BaseException) -> None:
        # The parent loop may be closed: the app has ended before this thread.
        with suppress(RuntimeError):
            cast(Any, self.app).fail(error)

    async def on_thread_stop(self) -> None:
        """Leave the group and close the connections."""
        try:
            await super().on_thread_stop()
        except asyncio.CancelledError:
            # Nobody cancels this. With the broker away, aiokafka's fetcher trips over its own cancelled wait, and
            # `stop` does not reach its last step.
            assert self._consumer is not None
            await _close_connections(self._consumer)

    def on_crash(self, msg: str, *fmt: Any, **_: Any) -> None:
        """Write a crash to the log like everything else, not to stderr."""
        _log.error(msg.format(*fmt))


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Records of one partition from one fetch, in order, with aiokafka's attributes `offset` and `value`.

    `assignment` is the reader's number of the assignment in which it got them.
    """

    partition: int
    records: list[Any]
    assignment: int


class BatchReader(Protocol):
    """Gets the records of a topic's fetches."""

    assignment: int

    async def give(self, batch: RecordBatch) -> None:
        """Take a batch; no more is fetched of any topic before this returns."""


class HoldingConsumer(Consumer):
    """Fetches nothing from partitions that are held, while the others go on.

    Faust's own pause drops the records it has fetched from a partition. Here they are still handed out, at most one
    fetch. Partitions of topics in the transport's `hold_first` are held from their assignment on. An agent can then
    load its state of a partition before the first record comes.
    """

    logger = _log

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._held: set[TP] = set()
        self._ends = EndMarks()
        # The number of fetches begun. The records of all but the last have been handed out.
        self.fetches = 0

    def hold(self, partitions: Iterable[TP]) -> None:
        """Fetch nothing from these partitions, from the next fetch on."""
        self._held.update(partitions)

    def release(self, partitions: Iterable[TP]) -> None:
        """Fetch from these partitions again."""
        self._held.difference_update(partitions)

    async def commit_offsets(self, offsets: Mapping[TP, int]) -> bool:
        """Commit offsets of topics without acks, whose agents keep track of their processed records."""
        return await self._commit(offsets)

    def end_seen_ms(self, partition: TP) -> int:
        """Return the time to which the partition has been fetched, epoch ms; 0 if nothing new is known."""
        fetched = _fetched_of(self._thread._ensure_consumer(), partition)
        read_ms = 0 if fetched is None else self._ends.note(partition, *fetched)
        # The broker's answer may have been on its way for a while; a record committed meanwhile is not in it.
        return max(0, read_ms - _FETCH_AGE_MS)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Hold partitions of `hold_first` topics before anything is read from them."""
        first = cast(KafkaTransport, self.transport).hold_first
        self._ends.clear()
        self._held = {partition for partition in assigned if partition.topic in first}
        await super().on_partitions_assigned(assigned, generation_id)

    async def _drain_messages(self, fetcher: Any) -> None:
        await cast(Any, self.app).lasting(super()._drain_messages(fetcher))

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        records = await self._fetch(active_partitions, timeout)
        readers = cast(KafkaTransport, self.transport).batch_readers
        for place in [place for place in records if place.topic in readers]:
            batch = RecordBatch(place.partition, records.pop(place), readers[place.topic].assignment)
            # In a rebalance Faust drops the fetched records, and goes back to the committed offsets.
            if self.flow_active:
                await readers[place.topic].give(batch)
        return records

    async def _fetch(self, active_partitions: set[TP] | None, timeout: float) -> dict[Any, list[Any]]:
        self.fetches += 1
        if active_partitions is None or not self._held:
            return cast(dict[Any, list[Any]], await super()._getmany(active_partitions, timeout))
        to_fetch = active_partitions - self._held
        if not to_fetch:
            # aiokafka takes an empty set of partitions for all partitions.
            await asyncio.sleep(min(timeout, _IDLE_S))
            return {}
        return cast(dict[Any, list[Any]], await super()._getmany(to_fetch, timeout))

    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)


class KafkaTransport(Transport):
    """Faust's aiokafka transport with consumers that read committed records only."""

    Consumer = HoldingConsumer

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.hold_first: set[str] = set()
        self.gather_ms = _GATHER_MS_MAX
        """How long the broker may hold records back to hand out more of them together."""
        self.batch_readers: dict[str, BatchReader] = {}
        """By topic, who gets the records of a fetch together. Faust itself hands over one at a time: 80 µs each."""
