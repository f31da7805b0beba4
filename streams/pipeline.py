"""Payments and outcomes to profiles: consume a micro-batch, store, changelog, commit, in that order.

    consume ─► decode ─► join ─► apply ─► store.write ─► changelog ─► flush ─► commit
                  └► dead letters ───────────────────────────┘

The order is the guarantee: an offset is committed when the store has acknowledged the profiles that contain it
and the broker the changelog records. A crash anywhere before leads to the same batch again, which the offsets
inside profiles make a repetition without effect (streams/batch.py); its changelog records are sent again.

One worker owns all partitions: two would write the same merchant's profile over each other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from threading import Event
from typing import TypeVar

from confluent_kafka import Consumer, KafkaException, TopicPartition

from features.engine import FeatureEngine
from features.kernel import SOURCES_MAX
from features.money import RateTable
from features.store import ProfileStore, StoreConflict
from schemas.avro import Encoder, SchemaIds
from schemas.errors import InvalidEvent, Misconfigured, StoreUnavailable
from streams import batch
from streams.batch import Joined, OutcomeEvent, PaymentEvent, Position
from streams.deadletters import DeadLetters
from streams.intake import Intake
from streams.kafka import (
    FETCH_WAIT_MS,
    Consumed,
    KafkaSettings,
    Record,
    Sender,
    consume,
    make_consumer,
    partitions_of,
    reason_of,
)
from streams.progress import SourceProgress, progress_key
from streams.waiting import WaitingOutcomes

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# What the client knows of a partition's end is at most one fetch old; doubled for the way through the client.
_FETCH_AGE_MS = 2 * FETCH_WAIT_MS
_RETRY_FIRST_S = 0.1
_RETRY_MOST_S = 5.0
_LOG_EVERY_S = 10.0
_DAY_S = 86_400


@dataclass(frozen=True)
class StreamSettings:
    """How the stream works."""

    group_id: str = "paywarden-stream"
    # A batch is what is there, at most this many records, waited for at most this long.
    batch_max: int = 2000
    batch_wait_ms: int = 50
    progress_every_ms: int = 500
    # A worker that dies is missed after this long; only then is its work taken up. Kafka allows 6 s and more.
    session_timeout_ms: int = 10_000
    # How long outcomes may take: after that, what is kept about a payment expires.
    outcome_days: int = 120
    # A store that is away for longer ends the process; nothing is committed, so nothing is lost.
    store_patience_s: int = 60
    flush_timeout_s: int = 60


@dataclass
class StreamCounts:
    """What has happened since the start."""

    payments: int = 0
    outcomes: int = 0
    duplicates: int = 0
    replayed: int = 0
    late: int = 0
    dead_letters: int = 0
    batches: int = 0


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
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Raises BrokerUnavailable or Misconfigured."""
        self._kafka, self._settings, self._store, self._engine, self._now_ms = kafka, settings, store, engine, now_ms
        self._payments_topic, self._outcomes_topic = kafka.topic("payments"), kafka.topic("outcomes")
        self._profiles_topic = kafka.topic("profiles")
        self._check_partitions()
        self._changelog_partitions = partitions_of(kafka, "profiles")
        self._sender = Sender(kafka, linger_ms=2)
        self._consumer: Consumer = make_consumer(
            kafka, group_id=settings.group_id, session_timeout_ms=settings.session_timeout_ms
        )
        self._intake = Intake(engine, rates, ids)
        self._dead_letters = DeadLetters(self._sender, kafka, ids)
        self._encoder = Encoder("profiles", ids.id_of("profiles"))
        self._progress = SourceProgress()
        self._progress_due_ms = 0
        self._waiting = WaitingOutcomes()
        self._outcomes_paused = False
        self.counts = StreamCounts()

    def run(self, stop: Event) -> None:
        """Work until `stop` is set. Raises StoreUnavailable or BrokerUnavailable when patience is at an end."""
        self._consumer.subscribe(
            [self._payments_topic, self._outcomes_topic], on_assign=self._on_assign, on_revoke=self._on_revoke
        )
        next_log = time.monotonic() + _LOG_EVERY_S
        try:
            while not stop.is_set():
                self.step(stop)
                if time.monotonic() >= next_log:
                    _log.info("stream: %s", self.counts)
                    next_log += _LOG_EVERY_S
        finally:
            self._consumer.close()

    def problems(self) -> Sequence[str]:
        """Why it is not ready, one line each; empty when it is. Callable from any thread."""
        return ()

    def step(self, stop: Event) -> None:
        """One micro-batch, through to its commit."""
        asked_ms = self._now_ms() - _FETCH_AGE_MS
        consumed = consume(self._consumer, self._settings.batch_max, self._settings.batch_wait_ms / 1000)
        self._note_progress(consumed)
        records = [
            *(r for r in consumed.records if r.topic == self._payments_topic),
            *self._due_outcomes(consumed, asked_ms),
        ]
        if records and not self._work(records, stop):
            return  # stopped while the store was away: nothing is committed
        self._send_progress(asked_ms)
        if records:
            self._sender.flush(self._settings.flush_timeout_s)
            self._commit(records)
            self.counts.batches += 1
        else:
            self._sender.poll()

    def _note_progress(self, consumed: Consumed) -> None:
        for record in consumed.records:
            if record.topic == self._payments_topic:
                self._progress.consumed(record.partition, record.timestamp_ms)
        for topic, partition in consumed.ended:
            if topic == self._payments_topic:
                self._progress.reached_end(partition)

    def _due_outcomes(self, consumed: Consumed, asked_ms: int) -> list[Record]:
        now_ms = self._now_ms()
        self._waiting.add((record for record in consumed.records if record.topic == self._outcomes_topic), now_ms)
        due = self._waiting.take_due(min(self._progress.complete_to_ms(asked_ms).values(), default=now_ms))
        # Bounded memory: while too many wait, no more are read.
        self._pause_outcomes(len(self._waiting) >= self._settings.batch_max)
        return due

    def _pause_outcomes(self, pause: bool) -> None:
        if pause == self._outcomes_paused:
            return
        partitions = [p for p in self._consumer.assignment() if p.topic == self._outcomes_topic]
        (self._consumer.pause if pause else self._consumer.resume)(partitions)
        self._outcomes_paused = pause

    def _work(self, records: Sequence[Record], stop: Event) -> bool:
        payments, outcomes, origin = self._decode(records)
        worked = self._patiently(lambda: self._work_into_store(payments, outcomes), stop)
        if worked is None:
            return False
        joined, applied = worked
        for orphan in joined.orphans:
            self._refuse(origin[orphan.position], "payment_id: outcome of a payment that is not known")
        self._send_profiles(applied.profiles)
        counts = self.counts
        counts.payments += len(payments)
        counts.outcomes += len(outcomes)
        counts.duplicates += joined.duplicates
        counts.replayed += applied.replayed
        counts.late += applied.late
        return True

    def _work_into_store(
        self, payments: Sequence[PaymentEvent], outcomes: Sequence[OutcomeEvent]
    ) -> tuple[Joined, batch.Applied]:
        """Read, apply and write as one. What has changed since it was read is not overwritten: read again, then.

        Raises StoreUnavailable or StoreConflict; the same again is always right.
        """
        ids = [event.payment_id for event in payments] + [event.payment_id for event in outcomes]
        known, versions = self._read(map(batch.record_key, ids))
        joined = batch.join(payments, outcomes, known, self._engine.plan.entity_count)
        profiles, profile_versions = self._read(joined.profile_keys())
        applied = batch.apply(joined, profiles, self._engine)
        self._store.write(joined.records, ttl_s=self._settings.outcome_days * _DAY_S, versions=versions)
        for entity, by_key in enumerate(joined.changes):
            states = {key: applied.profiles[key] for key in by_key}
            self._store.write(states, ttl_s=self._engine.plan.ttl_s(entity), versions=profile_versions)
        return joined, applied

    def _decode(
        self, records: Sequence[Record]
    ) -> tuple[list[PaymentEvent], list[OutcomeEvent], dict[Position, Record]]:
        payments: list[PaymentEvent] = []
        outcomes: list[OutcomeEvent] = []
        origin: dict[Position, Record] = {}
        now_ms = self._now_ms()
        for record in records:
            is_payment = record.topic == self._payments_topic
            position = Position(2 * record.partition + (0 if is_payment else 1), record.offset)
            try:
                if is_payment:
                    payments.append(self._intake.payment(record.value, position, now_ms))
                else:
                    outcomes.append(self._intake.outcome(record.value, position))
                    origin[position] = record
            except InvalidEvent as error:
                self._refuse(record, str(error))
        return payments, outcomes, origin

    def _refuse(self, record: Record, reason: str) -> None:
        self._dead_letters.send(record, reason, self._now_ms())
        self.counts.dead_letters += 1

    def _read(self, keys: Iterable[bytes]) -> tuple[dict[bytes, bytes], dict[bytes, int]]:
        """What these keys hold, and the version of each, those that hold nothing included."""
        wanted = list(dict.fromkeys(keys))
        found = self._store.read_versioned(wanted)
        values = {key: value for key, (value, _) in zip(wanted, found, strict=True) if value is not None}
        return values, {key: version for key, (_, version) in zip(wanted, found, strict=True)}

    def _patiently(self, action: Callable[[], _Result], stop: Event) -> _Result | None:
        """The action's result, tried again while the store is away; None when stopped meanwhile."""
        deadline = time.monotonic() + self._settings.store_patience_s
        pause_s = _RETRY_FIRST_S
        while True:
            try:
                return action()
            except (StoreUnavailable, StoreConflict) as error:
                if time.monotonic() >= deadline:
                    raise
                _log.warning("the store cannot take the batch, trying again in %.1f s: %s", pause_s, error)
            if stop.wait(pause_s):
                return None
            pause_s = min(2 * pause_s, _RETRY_MOST_S)

    def _send_profiles(self, profiles: dict[bytes, bytes]) -> None:
        now_ms = self._now_ms()
        for key, state in profiles.items():
            entity = key[: key.index(b":")].decode()
            record = {"entity": entity, "state": state, "written_time_ms": now_ms}
            self._sender.send(self._profiles_topic, self._encoder.encode(record), key=key)

    def _send_progress(self, asked_ms: int) -> None:
        if asked_ms < self._progress_due_ms:
            return
        self._progress_due_ms = asked_ms + self._settings.progress_every_ms
        for payments_partition, complete_to_ms in self._progress.complete_to_ms(asked_ms).items():
            record = {
                "entity": "progress",
                "state": b"",
                "written_time_ms": asked_ms,
                "complete_to_time_ms": complete_to_ms,
            }
            value = self._encoder.encode(record)
            for partition in self._changelog_partitions:
                key = progress_key(payments_partition)
                self._sender.send(self._profiles_topic, value, key=key, partition=partition)

    def _commit(self, records: Sequence[Record]) -> None:
        ends: dict[tuple[str, int], int] = {}
        for record in records:
            ends[record.topic, record.partition] = record.offset + 1
        offsets = [TopicPartition(topic, partition, offset) for (topic, partition), offset in ends.items()]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            # The partitions may have moved on; whoever has them now repeats the batch, without effect.
            _log.warning("offsets not committed: %s", reason_of(error))

    def _on_assign(self, _: Consumer, partitions: Sequence[TopicPartition]) -> None:
        self._progress.assigned(p.partition for p in partitions if p.topic == self._payments_topic)
        # Partitions that come are not paused, whatever the others are.
        self._outcomes_paused = False

    def _on_revoke(self, _: Consumer, partitions: Sequence[TopicPartition]) -> None:
        # Called from within consume(), so no batch is under way; outcomes that wait were not committed.
        self._progress.revoked(p.partition for p in partitions if p.topic == self._payments_topic)
        self._waiting.drop({p.partition for p in partitions if p.topic == self._outcomes_topic})

    def _check_partitions(self) -> None:
        for name in ("payments", "outcomes"):
            count = len(partitions_of(self._kafka, name))
            if count > SOURCES_MAX // 2:
                raise Misconfigured(f"topic {name} has {count} partitions, a profile can note {SOURCES_MAX // 2}")
