"""The agent over decisions: counts them (drift_counts.py), keeps the counts (drift_state.py) and has them evaluated.

Faust's own acknowledgements play no part (the topic has none). A partition's head in the store says how far it is
counted, and what it says is committed: a crash leads to some decisions again, which are older than the head and change
nothing.

    assigned   held; taken over in the store; released. So there is no record without what it is added to
    a record   a tuple in a list. Counting and saving are done in a thread, a partition after the other
    revoked    what is there is saved and committed, or dropped and read again by the next one
    conflict   another worker has taken over: dropped. One that still has the partition a while after takes over in
               turn, and reads again from what the head says

The store away: nothing is saved or committed; when `unsaved_max` decisions wait, no more are fetched. The agent itself
waits for nothing, so other agents of the process, whose records come by the same way, are not held up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from faust.types import TP, ChannelT, StreamT

from features.store import ProfileStore, StoreConflict
from schemas.errors import StoreUnavailable, TemporaryFailure
from streams.avro_codec import AvroCodec, Undecodable, Value
from streams.drift_counts import KEPT_MS, Binnings, Cell, PartitionCounts, Row, actions_of, counted, scores_of
from streams.drift_evaluation import Evaluator, read_done
from streams.drift_metrics import DriftMetrics
from streams.drift_settings import DriftSettings
from streams.drift_state import Adder, PartitionState, take_over
from streams.faust_consumer import HoldingConsumer, KafkaTransport

if TYPE_CHECKING:
    from models.counts import Counts
    from streams.app import StreamApp

_log = logging.getLogger(__name__)

# Records between the client and this agent. One fetch more may come; Faust reads no more long before it is full.
QUEUE_MAX = 8192
_RETRY_S = 1.0
_LOG_EVERY_S = 10.0
# A head without news is written so often, to say up to when there was none.
_QUIET_EVERY_MS = 15_000
# How much a partition may be ahead of what is evaluated: its tiles must be there until they are.
_AHEAD_MS_MAX = KEPT_MS // 2
# A revocation and a stop wait so long for the store; both hold up more than this agent.
_LAST_SAVE_S = 4.0
_POLL_S = 0.05


class _Sight(NamedTuple):
    """At `at_ms` there was nothing behind what was fetched; that is all here once these are reached.

    `popped`: None while what was fetched may not be in the queue yet.
    """

    at_ms: int
    fetches: int
    popped: int | None = None


class DriftAgent:
    """Made before the app starts, used in its event loop. `evaluator` is called in a thread."""

    def __init__(
        self,
        app: StreamApp,
        topic: str,
        *,
        codec: AvroCodec,
        store: ProfileStore,
        binnings: Binnings,
        evaluator: Evaluator,
        settings: DriftSettings,
        metrics: DriftMetrics,
        takes_over_after_s: float,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`takes_over_after_s`: by then a worker knows that a partition has gone, longer than a session."""
        self._app, self._topic, self._codec, self._store = app, topic, codec, store
        self._binnings, self._evaluator, self._settings, self._metrics = binnings, evaluator, settings, metrics
        self._takes_over_after_s, self._now_ms = takes_over_after_s, now_ms
        self._adder = Adder(binnings, on_trimmed=metrics.trimmed.inc, on_lost=metrics.lost.inc)
        self._states: dict[int, PartitionState] = {}
        self._sights: dict[int, _Sight] = {}
        # Changes when partitions are revoked: what was begun before is of no use then.
        self._assignment = 0
        self._popped = self._unsaved = 0
        self._queue: asyncio.Queue[Any] | None = None
        self._save_due = asyncio.Event()
        self._saving = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: set[TP] = set()
        self._done_ms = 0
        self._log_at = 0.0

    def register(self) -> None:
        """Add it to the app."""
        topic = self._app.topic(
            self._topic, key_type=bytes, key_serializer="raw", value_serializer=self._codec, acks=False
        )
        topic.maxsize = QUEUE_MAX
        cast(KafkaTransport, self._app.transport).hold_first.add(self._topic)
        self._app.agent(topic, name="drift")(self._read)
        self._app.on_partitions_assigned.connect(cast(Any, self._on_assigned))
        self._app.on_partitions_revoked.connect(cast(Any, self._on_revoked))
        self._app.task(self._keep_saving)
        self._app.task(self._keep_evaluating)
        self._app.before_stop = self._before_stop

    # Records

    async def _read(self, stream: StreamT[Value]) -> None:
        self._queue = cast(ChannelT[Value], stream.channel).queue
        async for value in stream:
            self._popped += 1
            event = stream.current_event
            assert event is not None
            message = event.message
            state = self._states.get(message.partition)
            if state is None:
                # Dropped for another worker: read again, by it or from what is in the store.
                continue
            if type(value) is not dict:
                assignment = self._assignment
                value = await self._decoded(value)
                if assignment != self._assignment:
                    continue
            if isinstance(value, Undecodable):
                self._metrics.undecodable.inc()
                state.counts.skip(message.offset)
                continue
            state.counts.add(message.offset, value)
            self._unsaved += 1
            if self._unsaved >= self._settings.save_decisions:
                self._save_due.set()
                if self._unsaved == self._settings.unsaved_max:
                    self._regulate()

    async def _decoded(self, value: Value) -> dict[str, Any] | Undecodable:
        """Where the schema registry has to be asked, no more is fetched meanwhile."""
        ours = self._places(self._states)
        self._consumer.hold(ours)
        try:
            return await self._codec.record(value)
        finally:
            self._consumer.release(set(ours) & set(self._places(self._states)) - self._held)

    # Assignment

    async def _on_assigned(self, _: Any, *given: Any, **__: Any) -> None:
        partitions = sorted(partition for topic, partition in given[0] if topic == self._topic)
        self._begin(self._take_over(partitions, self._assignment))

    async def _on_revoked(self, _: Any, *__: Any, **___: Any) -> None:
        # Faust gives all back, and is then told what it has again.
        await self._save_last()
        self._assignment += 1
        self._drop_all()

    async def _before_stop(self) -> None:
        await self._save_last()

    async def _save_last(self) -> None:
        try:
            await asyncio.wait_for(self.save(), _LAST_SAVE_S)
        except TimeoutError:
            _log.warning("counts of decisions could not be saved in %g s; they are read again", _LAST_SAVE_S)

    def _drop_all(self) -> None:
        self._states.clear()
        self._sights.clear()
        self._held.clear()
        self._unsaved = 0

    async def _take_over(self, partitions: Sequence[int], assignment: int) -> None:
        for partition in partitions:
            state = await self._taken(partition, assignment)
            if state is None:
                return
            self._states[partition] = state
            self._consumer.release(self._places([partition]))

    async def _taken(self, partition: int, assignment: int) -> PartitionState | None:
        """The partition as the store has it; None when it has been revoked meanwhile."""
        while assignment == self._assignment:
            try:
                head, stored = await asyncio.to_thread(take_over, self._store, partition, self._adder)
            except (StoreUnavailable, StoreConflict) as error:
                self._note_trouble(error)
                await asyncio.sleep(_RETRY_S)
                continue
            if assignment != self._assignment:
                return None
            counts = PartitionCounts(head.progress, self._binnings, self._settings)
            return PartitionState(
                self._store, partition, head, stored, counts=counts, count=self._count, adder=self._adder
            )
        return None

    async def _take_back(self, partition: int, assignment: int) -> None:
        """After a conflict: unless the partition turns out to have gone, count on from what the store has."""
        place = self._places([partition])
        self._consumer.hold(place)
        await asyncio.sleep(self._takes_over_after_s)
        # Once what was fetched before is through, the next record is the one that is asked for.
        mark = self._consumer.fetches + 2
        while assignment == self._assignment and self._consumer.fetches < mark:
            await asyncio.sleep(_POLL_S)
        through = self._popped + self._waiting()
        while assignment == self._assignment and self._popped < through:
            await asyncio.sleep(_POLL_S)
        state = await self._taken(partition, assignment)
        if state is not None:
            await self._consumer.seek(place[0], state.saved.next_offset)
            if assignment == self._assignment:
                self._states[partition] = state
                self._consumer.release(place)

    # Saving

    async def _keep_saving(self) -> None:
        while not self._app.should_stop:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._save_due.wait(), self._settings.save_every_ms / 1000)
            self._save_due.clear()
            if not await self.save():
                await asyncio.sleep(_RETRY_S)

    async def save(self) -> bool:
        """Count and save what has been read. False when the store did not take all of it."""
        async with self._saving:
            assignment = self._assignment
            for partition, state in list(self._states.items()):
                self._look_for_end(state)
                is_saved = await self._save_partition(state)
                if assignment != self._assignment:
                    return True
                if is_saved is None:
                    del self._states[partition]
                    self._begin(self._take_back(partition, assignment))
                elif not is_saved:
                    self._regulate()
                    return False
            await self._commit()
        self._unsaved = sum(len(state.counts) for state in self._states.values())
        self._regulate()
        return True

    async def _save_partition(self, state: PartitionState) -> bool | None:
        """Whether the store has taken all there is; None: another worker has the partition."""
        state.counts.hand_over()
        while state.has_news or state.quiet_ms > state.saved_quiet_ms + _QUIET_EVERY_MS:
            earlier = state.saved
            try:
                await asyncio.to_thread(state.save, self._now_ms())
            except StoreUnavailable as error:
                self._note_trouble(error)
                return False
            except StoreConflict as error:
                self._metrics.conflicts.inc()
                _log.warning("counts are dropped and read again: %s", error)
                return None
            self._metrics.store_up.set(1)
            self._metrics.saved(state.saved.totals.less(earlier.totals))
        return True

    async def _commit(self) -> None:
        offsets = {
            TP(self._topic, partition): state.saved.next_offset
            for partition, state in self._states.items()
            if state.saved.next_offset > state.committed
        }
        if offsets and await self._consumer.commit_offsets(offsets):
            for (_, partition), offset in offsets.items():
                if partition in self._states:
                    self._states[partition].committed = offset

    def _count(self, cell: Cell, rows: Sequence[Row]) -> Counts:
        self._metrics.counted(cell.model.version, scores_of(rows), actions_of(rows))
        binning = self._binnings.binning_of(cell.model)
        assert binning is not None, "what was just put into a cell is counted in a binning that is here"
        return counted(binning, rows)

    def _note_trouble(self, error: Exception) -> None:
        self._metrics.retries.inc()
        self._metrics.store_up.set(0)
        if time.monotonic() >= self._log_at:
            self._log_at = time.monotonic() + _LOG_EVERY_S
            _log.warning("the store does not take counts of decisions, trying again: %s", error)

    # What is read, and what is there to read

    def _regulate(self) -> None:
        """Hold what is to be fetched no more for now, release the rest."""
        limit = self._settings.unsaved_max
        is_full = self._unsaved >= (limit // 2 if self._held else limit)
        wanted = {
            place for place in self._places(self._states) if is_full or self._is_ahead(self._states[place.partition])
        }
        self._consumer.hold(wanted - self._held)
        self._consumer.release((self._held - wanted) & set(self._places(self._states)))
        self._held = wanted

    def _is_ahead(self, state: PartitionState) -> bool:
        """Whether its oldest tiles would go before they are evaluated."""
        since_ms = self._done_ms or state.saved.first_ms
        return state.saved.newest_ms > since_ms + _AHEAD_MS_MAX

    def _look_for_end(self, state: PartitionState) -> None:
        """Note up to when all that was on the topic has been read."""
        sight = self._sights.pop(state.partition, None)
        if sight is not None and sight.popped is None and self._consumer.fetches >= sight.fetches:
            sight = sight._replace(popped=self._popped + self._waiting())
        if sight is not None and (sight.popped is None or self._popped < sight.popped):
            self._sights[state.partition] = sight
            return
        if sight is not None:
            state.quiet_ms = max(state.quiet_ms, sight.at_ms)
        at_ms = self._consumer.end_seen_ms(self._places([state.partition])[0])
        if at_ms:
            self._sights[state.partition] = _Sight(at_ms, self._consumer.fetches + 1)

    # Evaluation

    async def _keep_evaluating(self) -> None:
        while not self._app.should_stop:
            await asyncio.sleep(self._settings.save_every_ms / 1000)
            try:
                self._done_ms = await asyncio.to_thread(self._evaluate)
            except (StoreUnavailable, StoreConflict) as error:
                self._note_trouble(error)
            except TemporaryFailure as error:
                # Kafka does not take alerts: the block is evaluated again.
                _log.warning("blocks of decisions cannot be evaluated now, trying again: %s", error)
            now_ms = self._now_ms()
            self._metrics.unsaved.set(self._unsaved)
            ages = {p: (now_ms - s.passed_ms(0)) / 1000 for p, s in self._states.items() if s.passed_ms(0)}
            self._metrics.behind(ages)
            self._metrics.evaluated.set(self._done_ms / 1000)

    def _evaluate(self) -> int:
        if 0 in self._states:
            assignment = self._assignment
            self._metrics.blocks.inc(self._evaluator.step(may_go_on=lambda: assignment == self._assignment))
        else:
            self._evaluator.forget()
        return read_done(self._store)[0].done_ms

    # Around

    @property
    def _consumer(self) -> HoldingConsumer:
        return cast(HoldingConsumer, self._app.consumer)

    def _waiting(self) -> int:
        return 0 if self._queue is None else self._queue.qsize()

    def _places(self, partitions: Any) -> list[TP]:
        return [TP(self._topic, partition) for partition in partitions]

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._app.fail(error)
