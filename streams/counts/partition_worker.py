"""Work in the records of one topic, partition by partition, and keep the result in the store.

The store has the offset up to which a partition is processed, and that offset is committed on Kafka. After a crash some
records come again; they are older than the offset in the store and change nothing.

    assigned   take the partition over in the store, before the first of its records is added
    round      read a batch; each record becomes a row of its partition's work
    save       count and save the rows of all partitions, then commit their offsets
    revoked    drop what is not saved: the next owner reads it again
    conflict   another worker has taken the partition over: the process ends, and begins again from the store

Several works may be made from the same records (`takers`). A partition is committed up to where all of them have it.

While the store or the schema registry is away, the worker reads nothing, stays in its group and tries again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from typing import Any, Protocol, TypeVar, cast

from confluent_kafka import IsolationLevel
from prometheus_client import Counter, Gauge

from paywarden.features.stores.base import StoreConflict
from paywarden.schemas.avro import Decoder
from paywarden.schemas.errors import InvalidEvent, StoreUnavailable, TemporaryFailure
from paywarden.streams.kafka.client import PartitionId
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.group_consumer import BatchConsumer, PartitionCut
from paywarden.streams.kafka.reading import Record
from paywarden.streams.kafka.stalls.end_offsets import EndsWatch
from paywarden.streams.kafka.stalls.stall_detector import StallWatch
from paywarden.streams.profiles.guards.sources import SourceCheck

_log = logging.getLogger(__name__)

_RETRY_S = 1.0
_LOG_EVERY_S = 10.0
# A worker without records waits at most this long for the next one.
_IDLE_S = 0.5
# Once there is a record, the worker waits this long for more.
_BATCH_WAIT_S = 0.02
# The broker may hold records back for this long, to give more of them together.
_GATHER_MS_MAX = 1_500
# A round takes milliseconds, and seconds with a slow store. One of this length has hung.
_ROUND_S_MAX = 180.0


class PartitionWork(Protocol):
    """Works in the records of one partition."""

    @property
    def next_offset(self) -> int:
        """The offset before which all records are processed and saved."""

    @property
    def is_ahead(self) -> bool:
        """Whether the partition should get no more records for now."""

    @property
    def has_news(self) -> bool:
        """Whether anything that was handed over is not saved."""

    def __len__(self) -> int:
        """Return how many records were added and not saved."""

    def add(self, offset: int, record: Mapping[str, Any]) -> None:
        """Add a decoded record. Offsets rise; a record that is not newer than the last one is a repetition."""

    def skip(self, offset: int) -> None:
        """Pass over a record that cannot be decoded."""

    def hand_over(self, quiet_ms: int) -> None:
        """Let everything added so far be saved. It includes all that was on the topic at `quiet_ms` (0: unknown)."""

    def save(self, now_ms: int) -> None:
        """Save some of the records that were handed over.

        Raises StoreUnavailable: call again later; StoreConflict: another worker has the partition, drop this work.
        """


AcquirePartition = Callable[[int], PartitionWork]
"""Takes a partition over in the store. Blocks; raises StoreUnavailable or StoreConflict: call again later."""

_Work = TypeVar("_Work")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Pace:
    """The worker saves every `save_every_ms` milliseconds, or as soon as `save_records` records have been read."""

    save_every_ms: int
    save_records: int


@dataclass(frozen=True)
class GroupMember:
    """The consumer group that a worker joins, and how long a silent client counts as alive."""

    clients: KafkaClients
    group_id: str
    session_timeout_ms: int
    stall_timeout_s: int


class WorkerMetrics(Protocol):
    """The metrics of a worker."""

    @property
    def undecodable(self) -> Counter:
        """Counts records that cannot be decoded."""

    @property
    def retries(self) -> Counter:
        """Counts how often the worker had to wait for the store."""

    @property
    def store_up(self) -> Gauge:
        """1 while the store accepts writes, else 0."""


class _TakenOver(TemporaryFailure):
    """Another worker has taken a partition over: the process must end."""


class _Abandoned(Exception):  # no error: the records are read again
    """The batch in hand must be dropped."""


@dataclass
class _Partition:
    works: Sequence[PartitionWork]
    # The offset behind everything that was added, ends of the partition included.
    position: int = 0
    # An end of the partition by the broker, and when it was asked for.
    mark: tuple[int, int] | None = None
    # All that was on the partition at this time has been added.
    quiet_ms: int = 0

    @property
    def unsaved(self) -> int:
        return max(map(len, self.works))

    @property
    def next_offset(self) -> int:
        return min(work.next_offset for work in self.works)

    def passed(self, position: int) -> None:
        """Note how far the partition was read.

            10:00:00   the broker says: the partition ends at 980. Read to 500      the mark: 980 at 10:00:00
            10:00:07   read to 990                                                  all of 10:00:00 is read

        The end counts the records of open transactions, which a reader passes only when they are committed.
        """
        self.position = max(self.position, position)
        if self.mark is not None and self.position >= self.mark[0]:
            self.quiet_ms = max(self.quiet_ms, self.mark[1])
            self.mark = None


@dataclass
class _Assignment:
    """The partitions of a worker: those that wait to be taken over, and those that it works in."""

    fresh: set[int] = field(default_factory=set)
    taken: dict[int, _Partition] = field(default_factory=dict)


class PartitionWorker:
    """See the module's docstring. `run` it in one thread; other threads may ask what it has."""

    def __init__(
        self,
        name: str,
        *,
        member: GroupMember,
        decoder: Decoder,
        sources: SourceCheck,
        takers: Sequence[AcquirePartition],
        pace: Pace,
        metrics: WorkerMetrics,
        now_ms: Callable[[], int],
    ) -> None:
        """`sources` compares all topics that are counted in one store. Raises TemporaryFailure, SourceChanged."""
        self._member, self._topic = member, member.clients.topic(name)
        self._decoder, self._sources = decoder, sources
        # Added to offsets before they are stored (streams/kafka/source_register.py).
        self._base = sources.check()[self._topic]
        self._takers, self._pace, self._metrics = takers, pace, metrics
        self._now_ms = now_ms
        self._consumer: BatchConsumer | None = None
        self._has = _Assignment()
        self.assignment = 0
        """Changes when a partition is revoked: another worker may have it."""
        self._ends = EndsWatch(
            member.clients.admin, "what is counted", self._positions, isolation=IsolationLevel.READ_UNCOMMITTED
        )
        self._stalls = StallWatch(member.clients.admin, member.stall_timeout_s)
        self._save_at = self._log_at = 0.0
        self._has_joined = False
        self._trouble = ""
        self._turned_at = time.monotonic()

    # For other threads

    @property
    def unsaved(self) -> int:
        """How many records were read and are not saved."""
        return sum(partition.unsaved for partition in list(self._has.taken.values()))

    def has(self, partition: int) -> bool:
        """Whether this worker has the partition."""
        return partition in self._has.taken

    def works(self, kind: type[_Work]) -> dict[int, _Work]:
        """Return all works of one type, by partition."""
        partitions = list(self._has.taken.items())
        works = {number: work for number, one in partitions for work in one.works if type(work) is kind}
        return cast(dict[int, _Work], works)

    def problems(self) -> Sequence[str]:
        """Return why it is not ready; empty if it is."""
        joined = [] if self._has_joined else [f"the reader of {self._topic} has not joined its group yet"]
        return [*joined, *filter(None, [self._trouble])]

    def turns(self) -> bool:
        """Return whether it makes rounds."""
        return time.monotonic() - self._turned_at < _ROUND_S_MAX

    def note_trouble(self, error: Exception) -> None:
        """Count a failure of the store, and log it at most every 10 s."""
        self._metrics.retries.inc()
        self._metrics.store_up.set(0)
        if time.monotonic() >= self._log_at:
            self._log_at = time.monotonic() + _LOG_EVERY_S
            _log.warning("the records of %s cannot be saved, trying again: %s", self._topic, error)

    # The worker's thread

    def run(self, stop: Event) -> None:
        """Work until `stop` is set; then save once more. Raises SourceChanged, BrokerUnavailable, TemporaryFailure."""
        client = self._member.clients.consumer(
            group_id=self._member.group_id,
            session_timeout_ms=self._member.session_timeout_ms,
            tells_lost_offsets=True,
            gather_ms=min(_GATHER_MS_MAX, self._pace.save_every_ms),
        )
        self._consumer = BatchConsumer(client, on_assigned=self._on_assigned, on_revoked=self._on_revoked)
        self._consumer.subscribe([self._topic])
        try:
            while not stop.is_set():
                try:
                    self.step(stop)
                except _Abandoned:
                    continue
            try:
                self._save()
            except StoreUnavailable as error:
                _log.warning("%s: the last records are read again: %s", self._topic, error)
        finally:
            self._consumer.close()

    def step(self, stop: Event) -> None:
        """Read a batch, and save what is due."""
        consumer = self._reader
        self._turned_at = time.monotonic()
        self._sources.look()
        due_s = self._save_at - time.monotonic()
        try:
            consumed = consumer.take(self._pace.save_records, _BATCH_WAIT_S, min(_IDLE_S, max(0.0, due_s)))
        except PartitionCut as cut:
            raise self._sources.changed(cut.topic, cut.cut) from cut
        self._sources.is_due = self._sources.is_due or bool(consumed.displaced)
        if consumed.records and self._sources.is_due:
            self._patiently(self._sources.check, stop)
        self._take_over(stop)
        for record in consumed.records:
            self._add(record, stop)
        for (_, number), end in consumed.ended.items():
            if number in self._has.taken:
                self._has.taken[number].passed(end)
        if self.unsaved >= self._pace.save_records or time.monotonic() >= self._save_at:
            self._save_at = time.monotonic() + self._pace.save_every_ms / 1000
            self._patiently(self._save, stop)
        self._look_at_ends(consumed.is_all)

    @property
    def _reader(self) -> BatchConsumer:
        assert self._consumer is not None, "the worker has not begun"
        return self._consumer

    def _add(self, record: Record, stop: Event) -> None:
        partition = self._has.taken.get(record.partition)
        if partition is None:
            # It was revoked while this worker waited: its owner reads the record.
            return
        offset = self._base + record.offset
        try:
            decoded = self._decoded(record.value or b"", stop)
        except InvalidEvent:
            self._metrics.undecodable.inc()
            for work in partition.works:
                work.skip(offset)
        else:
            for work in partition.works:
                work.add(offset, decoded)
        partition.passed(record.offset + 1)

    def _decoded(self, value: bytes, stop: Event) -> dict[str, Any]:
        """Return the record; waits while its schema cannot be read. Raises InvalidEvent."""
        try:
            return self._decoder.decode(value)
        except TemporaryFailure:
            return self._patiently(lambda: self._decoder.decode(value), stop)

    def _take_over(self, stop: Event) -> None:
        for number in sorted(self._has.fresh):
            works = self._patiently(partial(self._taken, number), stop)
            if works:
                self._has.fresh.discard(number)
                self._has.taken[number] = _Partition(works)

    def _taken(self, number: int) -> list[PartitionWork]:
        """Return the works of a partition; none if it was revoked meanwhile."""
        return [take(number) for take in self._takers] if number in self._has.fresh else []

    def _save(self) -> None:
        """Save what was read, and commit it. Raises StoreUnavailable, TemporaryFailure."""
        partitions = dict(self._has.taken)
        for partition in partitions.values():
            for work in partition.works:
                work.hand_over(partition.quiet_ms)
            for work in partition.works:
                while work.has_news:
                    try:
                        work.save(self._now_ms())
                    except StoreConflict as error:
                        raise _TakenOver(f"{error}: this worker ends, and begins again from the store") from error
        self._metrics.store_up.set(1)
        offsets = {number: max(0, one.next_offset - self._base) for number, one in partitions.items()}
        self._reader.commit({(self._topic, number): offset for number, offset in offsets.items() if offset})
        self._reader.hold_back({(self._topic, number) for number, one in partitions.items() if _is_ahead(one)})

    def _patiently(self, action: Callable[[], _Result], stop: Event) -> _Result:
        """Return the action's result; while the store or Kafka is away, try again and read nothing. Raises _Abandoned.

        If a partition moves meanwhile, all records that are not saved are read again.
        """
        is_held = False
        try:
            while True:
                try:
                    result = action()
                except _TakenOver:
                    raise
                except (StoreUnavailable, StoreConflict) as error:
                    self._trouble = str(error)
                    self.note_trouble(error)
                except TemporaryFailure as error:
                    if str(error) != self._trouble:
                        _log.warning("the records of %s wait: %s", self._topic, error)
                    self._trouble = str(error)
                else:
                    self._trouble = ""
                    return result
                if not is_held:
                    is_held = True
                    self._reader.hold()
                self._turned_at = time.monotonic()
                if stop.is_set() or not self._reader.wait(_RETRY_S):
                    self._reader.abandon()
                    raise _Abandoned
        finally:
            if is_held:
                self._reader.release()

    def _look_at_ends(self, is_all: bool) -> None:
        """Note how far the partitions reach by the broker. Raises BrokerUnavailable if the client has stalled."""
        self._stalls.gave(is_all)
        ends = self._ends.look()
        if ends is None:
            return
        at_ms = self._now_ms() - round(1000 * self._ends.age_s) - 1
        for (_, number), end in ends.items():
            partition = self._has.taken.get(number)
            if partition is not None and (partition.mark is None or partition.position >= end):
                partition.mark = end, at_ms
                partition.passed(partition.position)
        self._stalls.check(ends, self._positions())

    def _positions(self) -> dict[PartitionId, int]:
        return self._reader.positions()

    def _on_assigned(self, places: Collection[PartitionId]) -> None:
        self._has_joined = self._sources.is_due = True
        self._has.fresh |= {number for _, number in places}

    def _on_revoked(self, places: Collection[PartitionId]) -> None:
        self.assignment += 1
        for _, number in places:
            self._has.fresh.discard(number)
            self._has.taken.pop(number, None)


def _is_ahead(partition: _Partition) -> bool:
    return any(work.is_ahead for work in partition.works)
