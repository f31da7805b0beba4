"""The stream worker: payments and outcomes to profiles, as one of a group, one micro-batch after the other.

    payments, outcomes ─► decode ─► join ─► keep (store) ─► frames ─┐            streams/profiles/router.py
                                                                    ▼
    repartition-card, repartition-merchant, … ──► apply ─► store ─► changelog    streams/profiles/updater.py

                      then, for both: flush ─► commit

The order is the guarantee: an offset is committed when the store has acknowledged what came of it and the broker
has the frames and the changelog records. A crash anywhere before leads to the same batch again, which the offsets
inside profiles make a repetition without effect (streams/profiles/events.py); its records are sent again.

A profile has one owner at a time, the worker that has the partition its events go through. An old owner that does not
know yet that it is none any more meets a conflict in the store.

A store that is away stops everything: nothing more is read, the worker stays in its group and tries again. When a
partition of the batch in hand goes to another worker meanwhile, the batch is abandoned whole and the rest read again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import TypeVar

import numpy as np
from prometheus_client import CollectorRegistry

from paywarden.features.kernel import PAYMENT, SOURCES_MAX
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RateTable
from paywarden.features.stores.base import ProfileStore, StoreConflict
from paywarden.schemas.avro import SchemaIds
from paywarden.schemas.errors import Misconfigured, StoreUnavailable
from paywarden.schemas.payment_fields import TIME_BOUND_MS_MAX, TimeBounds, require_between
from paywarden.streams.dead_letters.writer import DeadLetters
from paywarden.streams.kafka.admin import end_offsets_of, make_admin, partitions_of
from paywarden.streams.kafka.client import KafkaSettings, PartitionId
from paywarden.streams.kafka.end_offsets import EndsWatch
from paywarden.streams.kafka.group_consumer import BatchConsumer, offsets_after
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.reading import FETCH_WAIT_MS, Consumed, Record, make_consumer
from paywarden.streams.kafka.stall_detector import StallWatch, named
from paywarden.streams.kafka.topic_names import repartition_topic
from paywarden.streams.profiles.changelog import Changelog
from paywarden.streams.profiles.dead_letter_budget import RefusalLimit
from paywarden.streams.profiles.decoder import TIMES, EventDecoder
from paywarden.streams.profiles.events import ARRIVED_MS, KIND, EntityEvents, ProfileUpdates
from paywarden.streams.profiles.metrics import StreamMetrics, objectives_ms
from paywarden.streams.profiles.outcome_gate import WaitingOutcomes
from paywarden.streams.profiles.router import Decoded, Router
from paywarden.streams.profiles.updater import Arrived, Updater
from paywarden.streams.profiles.watermarks import RoutedProgress, SourceProgress

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# What the client knows of a partition's end is at most one fetch old; doubled for the way through the client.
_FETCH_AGE_MS = 2 * FETCH_WAIT_MS
_RETRY_FIRST_S = 0.1
_RETRY_MOST_S = 5.0
_LOG_EVERY_S = 10.0
_LAG_EVERY_S = 1.0
# How often the broker is asked whether the payments that outcomes wait for are worked in.
_ASK_EVERY_S = 0.2
_ASK_STORE_EVERY_S = 1.0
_JOIN_LOOK_S = 0.1


@dataclass(frozen=True)
class StreamSettings:
    """How the stream works."""

    group_id: str = "paywarden-stream"
    # A batch is what is there, at most this many records, waited for at most this long.
    batch_max: int = 2000
    batch_wait_ms: int = 10
    progress_every_ms: int = 500
    # A worker that dies is missed after this long; only then is its work taken up. Kafka allows 6 s and more.
    session_timeout_ms: int = 10_000
    # How long outcomes may take: after that, what is kept about a payment expires.
    outcome_days: int = 120
    flush_timeout_s: int = 60
    # A client that gives nothing for so long, while the broker has more for it, is replaced
    # (streams/kafka/stall_detector.py).
    stall_timeout_s: int = 60
    # How long after its arrival on Kafka a payment may take into its profiles; exceptions are "merchant=5000".
    freshness_objective_ms: int = 1000
    freshness_exceptions: tuple[str, ...] = ()
    # Of the last so many records, at most this share may be dead letters: beyond it the worker stops.
    dead_letter_window: int = 1000
    dead_letter_share_max: float = 0.2
    # Of /livez, /readyz and /metrics. Port 0 takes a free one; the address is the first line on stdout.
    http_host: str = "127.0.0.1"
    http_port: int = 0
    # How long a stop may take, the batch in flight included; less than the 30 s that Kubernetes grants.
    stop_timeout_s: int = 20
    # How long before and after its arrival on Kafka a payment may say it was made (streams/profiles/decoder.py).
    past_ms_max: int = TIMES.past_ms_max
    future_ms_max: int = TIMES.future_ms_max

    def __post_init__(self) -> None:
        for name in ("past_ms_max", "future_ms_max"):
            require_between("stream", name, getattr(self, name), 0, TIME_BOUND_MS_MAX)

    @property
    def times(self) -> TimeBounds:
        """What a payment's time is held against."""
        return TimeBounds(self.past_ms_max, self.future_ms_max)

    def group_of(self, profile_set: str) -> str:
        """The consumer group of the workers of a profile set: how far they are is part of the set."""
        return f"{self.group_id}-{profile_set}" if profile_set else self.group_id


class _Abandoned(Exception):  # no error: how a batch ends that is not this worker's any more
    """A partition of the batch has gone to another worker, or the worker is to stop."""


class Pipeline:
    """The stream worker. `run` in one thread; `stop` is an event any thread or signal handler may set."""

    def __init__(
        self,
        *,
        kafka: KafkaSettings,
        settings: StreamSettings,
        store: ProfileStore,
        engine: FeatureEngine,
        rates: RateTable,
        ids: SchemaIds,
        metrics: StreamMetrics | None = None,
        profile_set: str = "",
        publish: bool = True,
        drain: bool = False,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`profile_set`: which set `store` is; it has repartition topics and a consumer group of its own.

        Without `publish` nothing goes to the changelog and the dead letters: another set is live. `drain`: read no
        payments and outcomes, only what is on its way to profiles, and end when all of it is in.

        Raises BrokerUnavailable or Misconfigured.
        """
        self._settings, self._now_ms, self._drain = settings, now_ms, drain
        self._payments, self._outcomes = kafka.topic("payments"), kafka.topic("outcomes")
        self._payments_partitions = _source_partitions(kafka)
        entities = engine.plan.entity_names
        topics = {name: repartition_topic(name, profile_set) for name in entities}
        routes = {name: (kafka.topic(topic), len(partitions_of(kafka, topic))) for name, topic in topics.items()}
        self._sender = Sender(kafka, linger_ms=2)
        self._dead_letters = DeadLetters(self._sender, kafka, ids) if publish else None
        self._refusals = RefusalLimit(settings.dead_letter_window, settings.dead_letter_share_max)
        self._router = Router(
            intake=EventDecoder(engine, rates, ids, settings.times),
            store=store,
            sender=self._sender,
            plan=engine.plan,
            routes=routes,
            outcome_days=settings.outcome_days,
        )
        self._updater = Updater(
            store=store,
            engine=engine,
            routes=routes,
            changelog=Changelog(self._sender, kafka, ids, entities) if publish else None,
        )
        self._progress = SourceProgress()
        self._routed = RoutedProgress(self._payments_partitions)
        self._progress_due_ms = 0
        self._waiting = WaitingOutcomes()
        self._ask_at = self._lag_at = 0.0
        self._repartition = dict(routes.values())
        self._undrained: set[PartitionId] = {(t, p) for t, count in self._repartition.items() for p in range(count)}
        self.metrics = metrics or stream_metrics(settings, entities, CollectorRegistry())
        self._admin = make_admin(kafka)
        self._kafka, self._group_id = kafka, settings.group_of(profile_set)
        self._consumer = self._new_consumer()
        self._ends = EndsWatch(self._admin, "what is read", lambda: self._consumer.positions())
        self._stalls = StallWatch(settings.stall_timeout_s)
        self._known_ends: dict[PartitionId, int] = {}
        self.stalled: list[PartitionId] = []
        """Partitions on which the client has stalled. `run` replaces it; who calls `step` decides what to do."""
        self._store = store
        self._store_trouble = ""
        self._ask_store_at = 0.0
        self._has_joined = False

    def run(self, stop: Event, may_begin: Callable[[], bool] = lambda: True) -> None:
        """Work until `stop` is set. Raises BrokerUnavailable when Kafka does not take what is sent for too long.

        `may_begin` is asked when the worker is a member of its group and has read nothing: False ends it. Once, and
        again whenever it has left the group and come back with a new client, because the old one had stalled.
        """
        while self._run_client(stop, may_begin):
            _log.warning("Kafka's client has stalled on %s and is replaced", named(self.stalled))
            self.metrics.stalls.inc()
            self.stalled, self._has_joined = [], False
            self._stalls.clear()
            self._consumer = self._new_consumer()

    def _run_client(self, stop: Event, may_begin: Callable[[], bool]) -> bool:
        """True when the client has stalled."""
        self.join()
        next_log = time.monotonic() + _LOG_EVERY_S
        try:
            if not self._await_membership(stop) or not may_begin():
                return False
            self._consumer.release()
            while not (stop.is_set() or self.stalled or (self._drain and not self._undrained)):
                self.step(stop)
                if time.monotonic() >= next_log:
                    _log.info("stream: %d partitions, %d records behind", *self._standing())
                    next_log += _LOG_EVERY_S
        finally:
            self.leave()
        return bool(self.stalled) and not stop.is_set()

    def _new_consumer(self) -> BatchConsumer:
        client = make_consumer(
            self._kafka, group_id=self._group_id, session_timeout_ms=self._settings.session_timeout_ms
        )
        return BatchConsumer(client, on_assigned=self._on_assigned, on_revoked=self._on_revoked)

    def _await_membership(self, stop: Event) -> bool:
        """False when stopped before."""
        self._consumer.hold()
        while not self._has_joined and not stop.is_set():
            self._consumer.wait(_JOIN_LOOK_S)
        return self._has_joined

    def join(self) -> None:
        """Join the group: `step` reads from then on."""
        sources = [] if self._drain else [self._payments, self._outcomes]
        self._consumer.subscribe([*sources, *self._repartition])

    def leave(self) -> None:
        """Leave the group."""
        self._consumer.close()

    def uncommitted_count(self, ends: Mapping[str, Mapping[int, int]]) -> int:
        """How many records before these ends, by topic and partition, the group has not committed.

        All of them while the broker does not say.
        """
        missing = 0
        for topic, of_topic in ends.items():
            committed = self._consumer.committed(topic, of_topic) or {}
            missing += sum(max(0, end - committed.get(partition, 0)) for partition, end in of_topic.items())
        return missing

    def problems(self) -> Sequence[str]:
        """Why this worker is not ready; empty when it is. From any thread."""
        problems = [] if self._has_joined else ["it has not joined its consumer group yet"]
        return [*problems, self._store_trouble] if self._store_trouble else problems

    def step(self, stop: Event) -> None:
        """One micro-batch, through to its commit or until it is abandoned."""
        asked_ms = self._now_ms() - _FETCH_AGE_MS
        with self._timed("read"):
            consumed = self._consumer.take(self._settings.batch_max, self._settings.batch_wait_ms / 1000)
        payments = [record for record in consumed.records if record.topic == self._payments]
        frames = [record for record in consumed.records if record.topic in self._repartition]
        self._note_progress(payments, consumed)
        self._waiting.add(record for record in consumed.records if record.topic == self._outcomes)
        self._waiting.reached_ends({p: end for (topic, p), end in consumed.ended.items() if topic == self._outcomes})
        outcomes = self._due_outcomes()
        try:
            if payments or outcomes:
                self._route(payments, outcomes, stop)
            if frames:
                self._update(frames, stop)
        except _Abandoned:
            self.metrics.abandoned.inc()
            self._waiting.clear()
            again = self._consumer.abandon()
            self._progress.read_again(partition for topic, partition in again if topic == self._payments)
            return
        self._send_progress(asked_ms, consumed.is_all)
        records = [*payments, *outcomes, *frames]
        if records:
            with self._timed("flush"):
                self._sender.flush(self._settings.flush_timeout_s)
            self.metrics.batches.inc()
        else:
            self._sender.poll()
            self._ask_store()
        with self._timed("commit"):
            self._commit(records, consumed)
        self._observe_lag()
        self._look_for_stalls(consumed.is_all)

    # Payments and outcomes to events

    def _route(self, payments: Sequence[Record], outcomes: Sequence[Record], stop: Event) -> None:
        with self._timed("decode"):
            decoded = self._router.decode(payments, outcomes, self._now_ms())
        self._refusals.note(len(payments) + len(outcomes), len(decoded.refused))
        with self._timed("keep"):
            joined = self._retry_while_store_down(lambda: self._router.keep(decoded), stop)
        with self._timed("route"):
            orphans = [decoded.origin[orphan.position] for orphan in joined.orphans]
            reason = "payment_id: outcome of a payment that is not known"
            self._refuse([*decoded.refused, *((record, reason) for record in orphans)])
            self._router.send(joined)
        self._count_routed(decoded, joined.duplicates)

    def _count_routed(self, decoded: Decoded, duplicates: int) -> None:
        self.metrics.payments.inc(len(decoded.payments))
        self.metrics.outcomes.inc(len(decoded.outcomes))
        self.metrics.duplicates.inc(duplicates)

    def _due_outcomes(self) -> list[Record]:
        """Outcomes whose payments are worked in. While too many wait, no more are read: memory is bounded."""
        waiting = self._waiting
        self.metrics.waiting_outcomes.set(len(waiting))
        self._consumer.pause(self._outcomes, len(waiting) >= self._settings.batch_max)
        if not len(waiting) or time.monotonic() < self._ask_at:
            return []
        self._ask_at = time.monotonic() + _ASK_EVERY_S
        if waiting.asks_for_ends():
            ends = end_offsets_of(self._admin, self._payments, self._payments_partitions)
            if ends is None:
                return []
            waiting.wait_for(ends)
        committed = self._consumer.committed(self._payments, self._payments_partitions)
        return [] if committed is None else waiting.take_due(committed)

    # Events to profiles

    def _update(self, frames: Sequence[Record], stop: Event) -> None:
        with self._timed("decode"):
            arrived = self._updater.decode(frames)
        self._refusals.note(len(frames), len(arrived.refused))
        self._refuse(arrived.refused)
        for entity, events in arrived.events.items():
            with self._timed("update"):
                applied = self._update_patiently(entity, events, stop)
            with self._timed("changelog"):
                self._updater.send(entity, applied, self._now_ms())
            self._count_applied(entity, events, applied)
        self._note_routed(arrived)

    def _update_patiently(self, entity: int, events: EntityEvents, stop: Event) -> ProfileUpdates:
        return self._retry_while_store_down(lambda: self._updater.update(entity, events), stop)

    def _count_applied(self, entity: int, events: EntityEvents, applied: ProfileUpdates) -> None:
        arrived_ms = events.rows[:, ARRIVED_MS]
        # Of a label, or where Kafka set no time, there is no age of a payment.
        arrived_ms = arrived_ms[(events.rows[:, KIND] == PAYMENT) & (arrived_ms > 0)]
        self.metrics.applied(
            self._updater.entities[entity],
            events=len(events.keys),
            profiles=len(applied.profiles),
            replayed=applied.replayed,
            late=applied.late,
            ages_ms=np.asarray(self._now_ms() - arrived_ms),
        )

    # Progress

    def _note_progress(self, payments: Sequence[Record], consumed: Consumed) -> None:
        for record in payments:
            self._progress.consumed(record.partition, record.timestamp_ms)
        for topic, partition in consumed.ended:
            if topic == self._payments:
                self._progress.reached_end(partition)

    def _note_routed(self, arrived: Arrived) -> None:
        for entity, partition, progress in arrived.progress:
            self._routed.heard(entity, partition, progress)

    def _send_progress(self, asked_ms: int, is_all: bool) -> None:
        """Behind what it speaks of: frames and changelog records of this batch are queued already.

        Unless the batch `is_all` the client had heard of, the news behind an end may still be in the client.
        """
        self._updater.send_progress(self._routed.news(), self._now_ms())
        if asked_ms < self._progress_due_ms:
            return
        self._progress_due_ms = asked_ms + self._settings.progress_every_ms
        complete_to_ms = self._progress.complete_to_ms(asked_ms if is_all else 0)
        known = {partition: moment for partition, moment in complete_to_ms.items() if moment > 0}
        if known:
            self._router.send_progress(known)

    # The frame around it

    def _refuse(self, refused: Sequence[tuple[Record, str]]) -> None:
        for record, reason in refused:
            if self._dead_letters is not None:
                self._dead_letters.send(record, reason, self._now_ms())
            self.metrics.dead_letters.labels(record.topic).inc()

    def _retry_while_store_down(self, action: Callable[[], _Result], stop: Event) -> _Result:
        """The action's result, tried again while the store is away. Raises _Abandoned."""
        pause_s = _RETRY_FIRST_S
        is_held = False
        try:
            while True:
                try:
                    result = action()
                except StoreConflict as error:
                    self.metrics.conflicts.inc()
                    _log.warning("another worker wrote meanwhile, reading again: %s", error)
                except StoreUnavailable as error:
                    self.metrics.retries.inc()
                    self._note_store_trouble(str(error))
                    _log.warning("the store cannot take the batch, trying again in %.1f s: %s", pause_s, error)
                else:
                    self._note_store_trouble("")
                    return result
                if not is_held:
                    self._consumer.hold()
                    self._progress.stood_still()
                    is_held = True
                if not self._wait(pause_s, stop):
                    raise _Abandoned
                pause_s = min(2 * pause_s, _RETRY_MOST_S)
        finally:
            if is_held:
                self._consumer.release()

    def _wait(self, seconds: float, stop: Event) -> bool:
        """False when the batch is to be abandoned. A stop is noticed soon."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if stop.is_set() or not self._consumer.wait(min(left, 0.1)):
                return False
        return True

    def _ask_store(self) -> None:
        """After an abandoned batch there may be none for long that would show that the store is back."""
        if self._store_trouble and time.monotonic() >= self._ask_store_at:
            self._ask_store_at = time.monotonic() + _ASK_STORE_EVERY_S
            self._note_store_trouble(self._store.health().reason)

    def _note_store_trouble(self, trouble: str) -> None:
        self._store_trouble = trouble and f"the store does not take batches: {trouble}"
        self.metrics.store_up.set(0 if trouble else 1)

    def _commit(self, records: Sequence[Record], consumed: Consumed) -> None:
        # The end of a partition may lie behind records that no one sees, as of transactions. While outcomes of a
        # partition wait, its end is not reached.
        ends = {place: end for place, end in consumed.ended.items() if place[0] != self._outcomes}
        ends |= {(self._outcomes, partition): end for partition, end in self._waiting.take_ends().items()}
        self._consumer.commit({**offsets_after(records), **ends})
        self._undrained -= ends.keys()

    def _observe_lag(self) -> None:
        if time.monotonic() >= self._lag_at:
            self._lag_at = time.monotonic() + _LAG_EVERY_S
            self.metrics.lag(self._consumer.lag(self._known_ends))

    def _look_for_stalls(self, is_all: bool) -> None:
        self._stalls.gave(is_all)
        if (ends := self._ends.look()) is not None:
            self._known_ends = ends
            self.stalled = self._stalls.look(ends, self._consumer.positions())

    def _standing(self) -> tuple[int, int]:
        return len(self._consumer.places), sum(self._consumer.lag(self._known_ends).values())

    def _on_assigned(self, places: Sequence[PartitionId]) -> None:
        self._has_joined = True
        # The client reads nothing around a rebalance.
        self._progress.stood_still()
        self._progress.assigned(partition for topic, partition in places if topic == self._payments)

    def _on_revoked(self, places: Sequence[PartitionId]) -> None:
        # What was sent of a batch that may be abandoned now comes before all that the next owner sends.
        self._sender.flush(self._settings.flush_timeout_s)
        self._progress.stood_still()
        self._progress.revoked(partition for topic, partition in places if topic == self._payments)
        self._waiting.drop({partition for topic, partition in places if topic == self._outcomes})
        for topic, partition in places:
            if (entity := self._updater.entity_of(topic)) is not None:
                self._routed.revoked(entity, partition)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.metrics.stage_seconds.labels(stage).observe(time.perf_counter() - started)


def _source_partitions(kafka: KafkaSettings) -> list[int]:
    """The partitions of payments. Raises Misconfigured where a profile could not note all there are."""
    found: dict[str, list[int]] = {}
    for name in ("payments", "outcomes"):
        found[name] = partitions_of(kafka, name)
        if len(found[name]) > SOURCES_MAX // 2:
            raise Misconfigured(
                f"topic {name} has {len(found[name])} partitions, a profile can note {SOURCES_MAX // 2}"
            )
    return found["payments"]


def stream_metrics(settings: StreamSettings, entities: Sequence[str], registry: CollectorRegistry) -> StreamMetrics:
    """The metrics of a worker's process, for all pipelines that it has one after the other. Raises Misconfigured."""
    try:
        objectives = objectives_ms(entities, settings.freshness_objective_ms, settings.freshness_exceptions)
    except ValueError as error:
        raise Misconfigured(f"[stream] freshness_exceptions: {error}") from error
    return StreamMetrics(registry, objectives)
