"""An agent that works in the records of one topic, partition by partition, and keeps what comes of it in the store.

Faust's own acknowledgements play no part (the topic has none). What is kept of a partition says how far it is worked
in, and what it says is committed: a crash leads to some records again, which are older than that and change nothing.

    assigned   held; taken over in the store; released. So there is no record without what it is added to
    a record   a tuple in a list. Counting and saving are done in a thread, a partition after the other
    revoked    what is there is saved and committed, or dropped and read again by the next one
    conflict   another worker has taken over: dropped. One that still has the partition a while after takes over in
               turn, and reads again from what is kept

Several things may be made of the same records (`takers`): a partition is committed up to where all of them have it.

The store away: nothing is saved or committed; when `unsaved_max` records wait, no more are fetched. The agent itself
waits for nothing, so other agents of the process, whose records come by the same way, are not held up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

from faust.types import TP, ChannelT, StreamT

from paywarden.features.stores.base import StoreConflict
from paywarden.schemas.errors import StoreUnavailable
from paywarden.streams.faust.codec import AvroCodec, DecodedValue, Undecodable
from paywarden.streams.faust.consumer import HoldingConsumer, KafkaTransport

if TYPE_CHECKING:
    from paywarden.streams.faust.app import StreamApp

_log = logging.getLogger(__name__)

# Records between the client and this agent. One fetch more may come; Faust reads no more long before it is full.
QUEUE_MAX = 8192
_RETRY_S = 1.0
_LOG_EVERY_S = 10.0
# A revocation waits so long for the store, for each agent; it holds up more than these.
_LAST_SAVE_S = 3.0
_POLL_S = 0.05


class PartitionWork(Protocol):
    """What is made of the records of one partition. One thread may `add` while another saves what was handed over."""

    @property
    def next_offset(self) -> int:
        """All records before it are worked in and saved."""

    @property
    def is_ahead(self) -> bool:
        """Whether it should get no more records for now."""

    @property
    def has_news(self) -> bool:
        """Whether what was handed over is not all saved."""

    def __len__(self) -> int:
        """How many records were added that are not saved."""

    def add(self, offset: int, record: Mapping[str, Any]) -> None:
        """A record, decoded. Offsets rise; one that is not newer than what was added is a repetition."""

    def skip(self, offset: int) -> None:
        """A record that cannot be decoded."""

    def hand_over(self, quiet_ms: int) -> None:
        """What was added so far may be saved; with it, all that was on the topic at `quiet_ms` is (0: not known)."""

    def save(self, now_ms: int) -> None:
        """Save some of what was handed over. Blocks; one thread at a time.

        Raises StoreUnavailable (call again later) or StoreConflict: another worker has the partition, drop this.
        """


AcquirePartition = Callable[[int], PartitionWork]
"""Takes a partition over in the store. Blocks; raises StoreUnavailable or StoreConflict: call again later."""

_Work = TypeVar("_Work")


@dataclass(frozen=True)
class Pace:
    """When records are saved, and how long the agent waits.

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
    """What the agent tells of itself."""

    @property
    def undecodable(self) -> _Counts:
        """Records that are none of the topic."""

    @property
    def conflicts(self) -> _Counts:
        """Partitions that another worker was found to have."""

    @property
    def retries(self) -> _Counts:
        """Times that the store was waited for."""

    @property
    def store_up(self) -> _Shows:
        """1 while the store takes what comes, else 0."""


class _CaughtUpMark(NamedTuple):
    """At `at_ms` there was nothing behind what was fetched; that is all here once these are reached.

    `popped`: None while what was fetched may not be in the queue yet.
    """

    at_ms: int
    fetches: int
    popped: int | None = None


class _Partition:
    """A partition as its owner has it."""

    def __init__(self, works: Sequence[PartitionWork]) -> None:
        self.works = works
        # Up to when all that was on the topic has been read.
        self.quiet_ms = 0
        # Up to which offset its owner has committed.
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


class PartitionAgent:
    """Made before the app starts, used in its event loop."""

    def __init__(
        self,
        app: StreamApp,
        topic: str,
        *,
        name: str,
        codec: AvroCodec,
        takers: Sequence[AcquirePartition],
        pace: Pace,
        metrics: AgentMetrics,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._app, self._topic, self._name, self._codec = app, topic, name, codec
        self._takers, self._pace, self._metrics = takers, pace, metrics
        self._now_ms = now_ms
        self._partitions: dict[int, _Partition] = {}
        self._sights: dict[int, _CaughtUpMark] = {}
        # Changes when partitions are revoked: what was begun before is of no use then.
        self.assignment = 0
        self._popped = self.unsaved = 0
        self._queue: asyncio.Queue[Any] | None = None
        self._save_due = asyncio.Event()
        self._saving = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: set[TP] = set()
        self._log_at = 0.0

    def register(self) -> None:
        """Add it to the app."""
        topic = self._app.topic(
            self._topic, key_type=bytes, key_serializer="raw", value_serializer=self._codec, acks=False
        )
        topic.maxsize = QUEUE_MAX
        cast(KafkaTransport, self._app.transport).hold_first.add(self._topic)
        self._app.add_agent(topic, self._name, self._read)
        self._app.on_partitions_assigned.connect(cast(Any, self._on_assigned))
        self._app.on_partitions_revoked.connect(cast(Any, self._on_revoked))
        self._app.add_task(self._keep_saving)
        self._app.before_stop.append(self._save_last)

    def has(self, partition: int) -> bool:
        """Whether this worker has the partition."""
        return partition in self._partitions

    def works(self, kind: type[_Work]) -> dict[int, _Work]:
        """What there is of one kind of work, by partition."""
        found = {number: work for number, one in self._partitions.items() for work in one.works if type(work) is kind}
        return cast(dict[int, _Work], found)

    def note_trouble(self, error: Exception) -> None:
        """The store did not take or give something."""
        self._metrics.retries.inc()
        self._metrics.store_up.set(0)
        if time.monotonic() >= self._log_at:
            self._log_at = time.monotonic() + _LOG_EVERY_S
            _log.warning("what comes of %s is not saved, trying again: %s", self._topic, error)

    # Records

    async def _read(self, stream: StreamT[DecodedValue]) -> None:
        self._queue = cast(ChannelT[DecodedValue], stream.channel).queue
        async for value in stream:
            self._popped += 1
            event = stream.current_event
            assert event is not None
            message = event.message
            partition = self._partitions.get(message.partition)
            if partition is None:
                # Dropped for another worker: read again, by it or from what is in the store.
                continue
            if type(value) is not dict:
                assignment = self.assignment
                value = await self._decoded(value)
                if assignment != self.assignment:
                    continue
            if isinstance(value, Undecodable):
                self._metrics.undecodable.inc()
                partition.skip(message.offset)
                continue
            partition.add(message.offset, value)
            self.unsaved += 1
            if self.unsaved >= self._pace.save_records:
                self._save_due.set()
                if self.unsaved == self._pace.unsaved_max:
                    self._regulate()

    async def _decoded(self, value: DecodedValue) -> dict[str, Any] | Undecodable:
        """Where the schema registry has to be asked, no more is fetched meanwhile."""
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
        # Faust gives all back, and is then told what it has again.
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
        self._held.clear()
        self.unsaved = 0

    async def _take_over(self, partitions: Sequence[int], assignment: int) -> None:
        for number in partitions:
            partition = await self._taken(number, assignment)
            if partition is None:
                return
            self._partitions[number] = partition
            self._consumer.release(self._places([number]))

    async def _taken(self, number: int, assignment: int) -> _Partition | None:
        """The partition as the store has it; None when it has been revoked meanwhile."""
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
        """After a conflict: unless the partition turns out to have gone, go on from what the store has."""
        place = self._places([number])
        self._consumer.hold(place)
        await asyncio.sleep(self._pace.takes_over_after_s)
        # Once what was fetched before is through, the next record is the one that is asked for.
        mark = self._consumer.fetches + 2
        while assignment == self.assignment and self._consumer.fetches < mark:
            await asyncio.sleep(_POLL_S)
        through = self._popped + self._waiting()
        while assignment == self.assignment and self._popped < through:
            await asyncio.sleep(_POLL_S)
        partition = await self._taken(number, assignment)
        if partition is not None:
            await self._consumer.seek(place[0], partition.next_offset)
            if assignment == self.assignment:
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
        """Work in and save what has been read. False when the store did not take all of it."""
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
        """Whether the store has taken all there is; None: another worker has the partition."""
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
                    _log.warning("what was read is dropped and read again: %s", error)
                    return None
                self._metrics.store_up.set(1)
        return True

    async def _commit(self) -> None:
        offsets = {
            TP(self._topic, number): partition.next_offset
            for number, partition in self._partitions.items()
            if partition.next_offset > partition.committed
        }
        if offsets and await self._consumer.commit_offsets(offsets):
            for (_, number), offset in offsets.items():
                if number in self._partitions:
                    self._partitions[number].committed = offset

    # What is read, and what is there to read

    def _regulate(self) -> None:
        """Hold what is to be fetched no more for now, release the rest."""
        limit = self._pace.unsaved_max
        is_full = self.unsaved >= (limit // 2 if self._held else limit)
        wanted = {
            place for place in self._places(self._partitions) if is_full or self._partitions[place.partition].is_ahead
        }
        self._consumer.hold(wanted - self._held)
        self._consumer.release((self._held - wanted) & set(self._places(self._partitions)))
        self._held = wanted

    def _look_for_end(self, number: int, partition: _Partition) -> None:
        """Note up to when all that was on the topic has been read."""
        sight = self._sights.pop(number, None)
        if sight is not None and sight.popped is None and self._consumer.fetches >= sight.fetches:
            sight = sight._replace(popped=self._popped + self._waiting())
        if sight is not None and (sight.popped is None or self._popped < sight.popped):
            self._sights[number] = sight
            return
        if sight is not None:
            partition.quiet_ms = max(partition.quiet_ms, sight.at_ms)
        at_ms = self._consumer.end_seen_ms(self._places([number])[0])
        if at_ms:
            self._sights[number] = _CaughtUpMark(at_ms, self._consumer.fetches + 1)

    # Around

    @property
    def _consumer(self) -> HoldingConsumer:
        return cast(HoldingConsumer, self._app.consumer)

    def _waiting(self) -> int:
        return 0 if self._queue is None else self._queue.qsize()

    def _places(self, partitions: Any) -> list[TP]:
        return [TP(self._topic, partition) for partition in partitions]

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(self._app.lasting(work))
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # The app knows of it already.
            task.exception()
