"""An agent that processes the records of one topic, partition by partition, and keeps the result in the store.

Faust's own acknowledgements play no part (the topic has none). The store has the offset up to which a partition is
processed, and that offset is committed on Kafka. After a crash some records come again; they are older than the offset
in the store and change nothing.

    assigned   hold the partition; take it over in the store; release it: no record comes before its state is there
    records    those of a fetch come together (streams/faust/consumer.py); each becomes a row in a list. A thread counts
               and saves the rows, one partition after the other
    revoked    save and commit what is there, or drop it: the next owner reads it again
    conflict   another worker has taken over: drop everything. If this worker still has the partition a while later, it
               takes over in turn, and reads again from what the store has

Several works may be made from the same records (`takers`). A partition is committed up to where all of them have it.

While the store is away, nothing is saved or committed. With `unsaved_max` records waiting, no more are fetched: this is
the agent's back-pressure. The agent never waits for the store itself, because other agents of the process get their
records by the same way.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

from faust.types import TP, StreamT

from paywarden.features.stores.base import StoreConflict
from paywarden.schemas.errors import StoreUnavailable
from paywarden.streams.faust.codec import AvroCodec, DecodedValue, Undecodable
from paywarden.streams.faust.consumer import HoldingConsumer, KafkaTransport, RecordBatch

if TYPE_CHECKING:
    from paywarden.streams.faust.app import StreamApp

_log = logging.getLogger(__name__)

# With this many records between the client and this agent, no more are fetched. One more fetch may come.
_WAITING_MAX = 8192
# The event loop gets a turn after this many records.
_SLICE = 250
_RETRY_S = 1.0
_LOG_EVERY_S = 10.0
# The longest a revocation waits for the store, for each agent: a revocation holds up other agents, too.
_LAST_SAVE_S = 3.0
_POLL_S = 0.05


class PartitionWork(Protocol):
    """Works in the records of one partition. One thread may `add` while another saves records that were handed over."""

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
        """Save some of the records that were handed over. Blocks; one thread at a time.

        Raises StoreUnavailable: call again later; StoreConflict: another worker has the partition, drop this work.
        """


AcquirePartition = Callable[[int], PartitionWork]
"""Takes a partition over in the store. Blocks; raises StoreUnavailable or StoreConflict: call again later."""

_Work = TypeVar("_Work")


@dataclass(frozen=True)
class Pace:
    """The agent's pace of saving, and its waits.

    The agent saves every `save_every_ms` milliseconds, or as soon as `save_records` records have been read. With
    `unsaved_max` records not saved it reads no more. After a conflict it waits `takes_over_after_s` seconds before it
    takes a partition back. That is longer than a session: by then a worker knows whether the partition is still its
    own.
    """

    save_every_ms: int
    save_records: int
    unsaved_max: int
    takes_over_after_s: float


class _Counts(Protocol):
    def inc(self, amount: float = 1) -> None: ...


class _Shows(Protocol):
    def set(self, value: float) -> None: ...


class AgentMetrics(Protocol):
    """The metrics of an agent."""

    @property
    def undecodable(self) -> _Counts:
        """Counts records that cannot be decoded."""

    @property
    def conflicts(self) -> _Counts:
        """Counts partitions that turned out to be another worker's."""

    @property
    def retries(self) -> _Counts:
        """Counts how often the agent had to wait for the store."""

    @property
    def store_up(self) -> _Shows:
        """1 while the store accepts writes, else 0."""


class _CaughtUpMark(NamedTuple):
    """At `at_ms` the broker had nothing behind the fetched records.

    The agent has all of it once the consumer has begun `fetches` fetches and the agent has processed `given` batches.
    `given` is None while some fetched records may not have been given to it yet.
    """

    at_ms: int
    fetches: int
    given: int | None = None


class _Partition:
    """A partition as its owner has it."""

    def __init__(self, works: Sequence[PartitionWork]) -> None:
        self.works = works
        # All that was on the topic at this time has been read.
        self.quiet_ms = 0
        # The offset that this worker has committed.
        self.committed = 0

    def __len__(self) -> int:
        return max(map(len, self.works))

    @property
    def next_offset(self) -> int:
        return min(work.next_offset for work in self.works)

    @property
    def is_ahead(self) -> bool:
        return any(work.is_ahead for work in self.works)

    def add(self, offset: int, record: Mapping[str, Any]) -> None:
        for work in self.works:
            work.add(offset, record)

    def skip(self, offset: int) -> None:
        for work in self.works:
            work.skip(offset)


class AgentSource(NamedTuple):
    """The topic that an agent reads, with its name on the cluster and in ours."""

    topic: str
    name: str
    base: int = 0
    """Added to offsets before they are stored (streams/kafka/source_register.py)."""


class PartitionAgent:
    """See the module's docstring. Made before the app starts, used in its event loop."""

    def __init__(
        self,
        app: StreamApp,
        source: AgentSource,
        *,
        codec: AvroCodec,
        takers: Sequence[AcquirePartition],
        pace: Pace,
        metrics: AgentMetrics,
        now_ms: Callable[[], int],
    ) -> None:
        self._app, self._codec = app, codec
        self._topic, self._name, self._base = source
        self._takers, self._pace, self._metrics = takers, pace, metrics
        self._now_ms = now_ms
        self._partitions: dict[int, _Partition] = {}
        self._sights: dict[int, _CaughtUpMark] = {}
        # Partitions whose records came before the partition was taken over.
        self._missed: set[int] = set()
        # Changes when partitions are revoked. Work that began under another number is dropped.
        self.assignment = 0
        # Batches that were given to the agent, and batches that it has processed.
        self._given = self._worked_in = 0
        self.unsaved = 0
        self._batches: asyncio.Queue[RecordBatch] = asyncio.Queue()
        self._waiting = 0
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._save_due = asyncio.Event()
        self._saving = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: set[TP] = set()
        self._log_at = 0.0

    def register(self) -> None:
        """Add the agent to the app."""
        topic = self._app.topic(
            self._topic, key_type=bytes, key_serializer="raw", value_serializer=self._codec, acks=False
        )
        transport = cast(KafkaTransport, self._app.transport)
        transport.hold_first.add(self._topic)
        transport.batch_readers[self._topic] = self
        # Records that are saved together may as well come together.
        transport.gather_ms = min(transport.gather_ms, self._pace.save_every_ms)
        self._app.add_agent(topic, self._name, self._read)
        self._app.on_partitions_assigned.connect(cast(Any, self._on_assigned))
        self._app.on_partitions_revoked.connect(cast(Any, self._on_revoked))
        self._app.add_task(self._keep_saving)
        self._app.before_stop.append(self._save_last)

    def has(self, partition: int) -> bool:
        """Whether this worker has the partition."""
        return partition in self._partitions

    def positions(self) -> dict[int, int]:
        """Return the next offset on Kafka of each partition that this worker has."""
        return {number: self._offset_of(partition) for number, partition in self._partitions.items()}

    def works(self, kind: type[_Work]) -> dict[int, _Work]:
        """Return all works of one type, by partition."""
        works = {
            number: work
            for number, partition in self._partitions.items()
            for work in partition.works
            if type(work) is kind
        }
        return cast(dict[int, _Work], works)

    def note_trouble(self, error: Exception) -> None:
        """Count a failure of the store, and log it at most every 10 s."""
        self._metrics.retries.inc()
        self._metrics.store_up.set(0)
        if time.monotonic() >= self._log_at:
            self._log_at = time.monotonic() + _LOG_EVERY_S
            _log.warning("the records of %s cannot be saved, trying again: %s", self._topic, error)

    # Records

    async def give(self, batch: RecordBatch) -> None:
        """Take the records of a fetch. Waits only while too many records do."""
        await self._has_room.wait()
        self._given += 1
        self._batches.put_nowait(batch)
        self._note_waiting(len(batch.records))

    def _note_waiting(self, more: int) -> None:
        self._waiting += more
        (self._has_room.set if self._waiting < _WAITING_MAX else self._has_room.clear)()

    async def _read(self, _: StreamT[DecodedValue]) -> None:
        """Work in the batches. Faust reads a topic for an agent's stream, and this one stays empty."""
        while True:
            batch = await self._batches.get()
            for first in range(0, len(batch.records), _SLICE):
                await self._work_in(batch, batch.records[first : first + _SLICE])
            self._worked_in += 1
            self._note_waiting(-len(batch.records))

    async def _work_in(self, batch: RecordBatch, records: Sequence[Any]) -> None:
        read, base, count = self._codec.read, self._base, 0
        for record in records:
            value: Any = read(record.value)
            if type(value) is not dict:
                value = await self._decoded(value)
            partition = self._partitions.get(batch.partition)
            if batch.assignment != self.assignment:
                # The next owner reads it.
                break
            if partition is None:
                # It was dropped after a conflict, or a fetch from before the assignment has brought records although
                # the partition is held. This worker reads them again.
                self._missed.add(batch.partition)
                break
            if isinstance(value, Undecodable):
                self._metrics.undecodable.inc()
                partition.skip(base + record.offset)
                continue
            partition.add(base + record.offset, value)
            count += 1
        before, self.unsaved = self.unsaved, self.unsaved + count
        if self.unsaved >= self._pace.save_records:
            self._save_due.set()
            if before < self._pace.unsaved_max <= self.unsaved:
                self._regulate()
        await asyncio.sleep(0)

    async def _decoded(self, value: DecodedValue) -> dict[str, Any] | Undecodable:
        """Return the record of a value. While the schema registry is asked, no more is fetched."""
        ours = self._places(self._partitions)
        self._consumer.hold(ours)
        try:
            return await self._codec.record(value)
        finally:
            self._consumer.release(set(ours) & set(self._places(self._partitions)) - self._held)

    # Assignment

    async def _on_assigned(self, _: Any, *given: Any, **__: Any) -> None:
        partitions = sorted(partition for topic, partition in given[0] if topic == self._topic)
        self._begin(self._take_over(partitions, self.assignment))

    async def _on_revoked(self, _: Any, *__: Any, **___: Any) -> None:
        # Faust gives all partitions back, and then gets its new assignment.
        await self._app.lasting(self._save_last())
        self.assignment += 1
        self._drop_all()

    async def _save_last(self) -> None:
        try:
            await asyncio.wait_for(self.save(), _LAST_SAVE_S)
        except TimeoutError:
            _log.warning("%s: not all is saved within %g s; the rest is read again", self._topic, _LAST_SAVE_S)

    def _drop_all(self) -> None:
        self._partitions.clear()
        self._sights.clear()
        self._missed.clear()
        self._held.clear()
        self.unsaved = 0

    async def _take_over(self, partitions: Sequence[int], assignment: int) -> None:
        for number in partitions:
            partition = await self._taken(number, assignment)
            if partition is None:
                return
            if number in self._missed:
                self._begin(self._take_back(number, assignment))
                continue
            self._partitions[number] = partition
            self._consumer.release(self._places([number]))

    async def _taken(self, number: int, assignment: int) -> _Partition | None:
        """Return the partition as the store has it; None if it was revoked meanwhile."""
        while assignment == self.assignment:
            try:
                works = [await asyncio.to_thread(take, number) for take in self._takers]
            except (StoreUnavailable, StoreConflict) as error:
                self.note_trouble(error)
                await asyncio.sleep(_RETRY_S)
                continue
            return _Partition(works) if assignment == self.assignment else None
        return None

    async def _take_back(self, number: int, assignment: int) -> None:
        """After a conflict, continue from the state in the store, unless the partition was revoked meanwhile."""
        place = self._places([number])
        self._consumer.hold(place)
        await asyncio.sleep(self._pace.takes_over_after_s)
        # Wait until everything fetched before has passed; then `seek` decides the next record.
        mark = self._consumer.fetches + 2
        while assignment == self.assignment and self._consumer.fetches < mark:
            await asyncio.sleep(_POLL_S)
        through = self._given
        while assignment == self.assignment and self._worked_in < through:
            await asyncio.sleep(_POLL_S)
        partition = await self._taken(number, assignment)
        if partition is not None:
            await self._consumer.seek(place[0], self._offset_of(partition))
            if assignment == self.assignment:
                self._missed.discard(number)
                self._partitions[number] = partition
                self._consumer.release(place)

    # Saving

    async def _keep_saving(self) -> None:
        while not self._app.should_stop:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._save_due.wait(), self._pace.save_every_ms / 1000)
            self._save_due.clear()
            if not await self.save():
                await asyncio.sleep(_RETRY_S)

    async def save(self) -> bool:
        """Process and save the records that were read. Returns False if the store did not take all of it."""
        async with self._saving:
            assignment = self.assignment
            for number, partition in list(self._partitions.items()):
                self._look_for_end(number, partition)
                is_saved = await self._save_partition(partition)
                if assignment != self.assignment:
                    return True
                if is_saved is None:
                    del self._partitions[number]
                    self._begin(self._take_back(number, assignment))
                elif not is_saved:
                    self._regulate()
                    return False
            await self._commit()
        self.unsaved = sum(map(len, self._partitions.values()))
        self._regulate()
        return True

    async def _save_partition(self, partition: _Partition) -> bool | None:
        """Return whether the store has taken everything; None if another worker has the partition."""
        for work in partition.works:
            work.hand_over(partition.quiet_ms)
        for work in partition.works:
            while work.has_news:
                try:
                    await asyncio.to_thread(work.save, self._now_ms())
                except StoreUnavailable as error:
                    self.note_trouble(error)
                    return False
                except StoreConflict as error:
                    self._metrics.conflicts.inc()
                    _log.warning("the records read so far are dropped and read again: %s", error)
                    return None
                self._metrics.store_up.set(1)
        return True

    async def _commit(self) -> None:
        offsets = {
            TP(self._topic, number): self._offset_of(partition)
            for number, partition in self._partitions.items()
            if self._offset_of(partition) > partition.committed
        }
        if offsets and await self._consumer.commit_offsets(offsets):
            for (_, number), offset in offsets.items():
                if number in self._partitions:
                    self._partitions[number].committed = offset

    # Fetching, and the end of the topic

    def _regulate(self) -> None:
        """Hold the partitions that should not be fetched for now, and release the others."""
        limit = self._pace.unsaved_max
        is_full = self.unsaved >= (limit // 2 if self._held else limit)
        to_hold = {
            place for place in self._places(self._partitions) if is_full or self._partitions[place.partition].is_ahead
        }
        self._consumer.hold(to_hold - self._held)
        self._consumer.release((self._held - to_hold) & set(self._places(self._partitions)))
        self._held = to_hold

    def _look_for_end(self, number: int, partition: _Partition) -> None:
        """Note the time to which everything on the topic has been read."""
        sight = self._sights.pop(number, None)
        if sight is not None and sight.given is None and self._consumer.fetches >= sight.fetches:
            sight = sight._replace(given=self._given)
        if sight is not None and (sight.given is None or self._worked_in < sight.given):
            self._sights[number] = sight
            return
        if sight is not None:
            partition.quiet_ms = max(partition.quiet_ms, sight.at_ms)
        at_ms = self._consumer.end_seen_ms(self._places([number])[0])
        if at_ms:
            self._sights[number] = _CaughtUpMark(at_ms, self._consumer.fetches + 1)

    # Helpers

    def _offset_of(self, partition: _Partition) -> int:
        """Return the next offset on Kafka. It is 0 if the store only has offsets of an earlier generation."""
        return max(0, partition.next_offset - self._base)

    @property
    def _consumer(self) -> HoldingConsumer:
        return cast(HoldingConsumer, self._app.consumer)

    def _places(self, partitions: Any) -> list[TP]:
        return [TP(self._topic, partition) for partition in partitions]

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(self._app.lasting(work))
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # `lasting` has reported it to the app. Fetch the exception, so asyncio does not log it a second time.
            task.exception()
