"""The stream worker: a member of a group that turns payments and outcomes into profiles, one micro-batch at a time.

    payments, outcomes ─► decode ─► join ─► keep (store) ─► frames ─┐            streams/profiles/router.py
                                                                    ▼
    repartition-card, repartition-merchant, … ──► apply ─► store ─► changelog    streams/profiles/updater.py

                      then, for both: flush ─► commit

One call of `step` is one batch:

1. Read at most `batch_max` records.
2. Route payments and due outcomes: write the payments' records to the store, queue frames for the profiles' owners.
3. Apply frames, those of this batch that this worker would read itself included (`BatchConsumer.take_ahead`): write
   new profiles to the store, queue them for the changelog.
4. Flush the sender: the broker has all frames and changelog records.
5. Commit the offsets.
6. One worker of the group asks the broker how complete the profiles are, and tells it on the changelog
   (streams/profiles/progress/completeness.py).

This order is the guarantee: the worker commits an offset only after the store and the broker have acknowledged all its
results. After a crash the next owner reads the same batch and sends its records again. The offsets inside profiles make
the repetition harmless (streams/profiles/events.py).

What can go wrong:

- The store may hide payments that it has (features/stores/aerospike/migration.py). Outcomes of payments that are not
  found wait (streams/profiles/outcome_gate.py).
- The store is down. The worker reads nothing, stays in its group and retries (back-pressure).
- A partition of the batch moves to another worker during that wait. The worker abandons the whole batch and reads the
  other partitions again.
- Two workers own a profile for a moment, because the old owner has not noticed yet. Its write meets a conflict in the
  store, and it reads the profile again.
- The client stalls (streams/kafka/stalls/stall_detector.py). The worker ends, and the service manager starts it again.
- A topic was deleted and created again, or ends before the last record that was read. The worker stops with an error
  that names the remedy (streams/profiles/guards/sources.py).
- This host's clock and the broker's disagree. The worker ends, and the next one joins its group once they agree
  (streams/profiles/guards/broker_clock.py).
- A profile cannot be read. It is set aside with its events (streams/profiles/set_aside_profile.py), and the others
  go on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import Event
from typing import TypeVar

import numpy as np
from confluent_kafka import IsolationLevel
from prometheus_client import CollectorRegistry

from paywarden.features.kernel import AMOUNT, PAYMENT, SOURCES_MAX
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RateTable
from paywarden.features.stores.base import ProfileStore
from paywarden.schemas.avro import SchemaIds
from paywarden.schemas.errors import BrokerUnavailable, Misconfigured, StoreUnavailable
from paywarden.streams.dead_letters.writer import DeadLetters
from paywarden.streams.kafka.admin import ask_end_offsets, end_offsets_of
from paywarden.streams.kafka.client import PartitionId
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.group_consumer import BatchConsumer, PartitionCut, offsets_after
from paywarden.streams.kafka.reading import Consumed, Record
from paywarden.streams.kafka.stalls.end_offsets import EndsWatch
from paywarden.streams.kafka.stalls.stall_detector import StallWatch
from paywarden.streams.kafka.topic_names import repartition_topic
from paywarden.streams.profiles.changelog import Changelog
from paywarden.streams.profiles.decoder import EventDecoder
from paywarden.streams.profiles.events import (
    ARRIVED_MS,
    KIND,
    EntityEvents,
    Joined,
    ProfileUpdates,
    outcomes_source,
    payments_source,
)
from paywarden.streams.profiles.guards.broker_clock import BrokerClock, ClocksDisagree
from paywarden.streams.profiles.guards.dead_letter_budget import RefusalLimit
from paywarden.streams.profiles.guards.sources import SourceCheck
from paywarden.streams.profiles.guards.store_retry import Abandoned, StoreRetry
from paywarden.streams.profiles.outcome_gate import WaitingOutcomes
from paywarden.streams.profiles.payment_columns import PaymentColumns, Position
from paywarden.streams.profiles.profile_metrics import StreamMetrics, gather_ms_of
from paywarden.streams.profiles.progress.arrivals import Arrivals
from paywarden.streams.profiles.progress.completeness import CompletenessRounds
from paywarden.streams.profiles.router import Decoded, Router
from paywarden.streams.profiles.stream_settings import (
    PipelineOptions,
    StreamSettings,
    freshness_objectives_ms,
    stream_metrics,
)
from paywarden.streams.profiles.updater import Updater

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# A worker without records sleeps this long; a record, a rebalance or a round that is due wakes it up. It sleeps less
# while outcomes wait for their payments or a round for other workers, and while it waits for an answer of the broker.
_IDLE_S, _WAITING_S, _ASKING_S = 0.5, 0.2, 0.01
# A round that finds out how complete the profiles are begins this long before the broker's next answer: its question
# must reach the broker before that.
_BEFORE_ANSWER_S = 0.03
# A request holds records of one partition. The client collects changes for this long, because a batch writes those of
# one kind of entity after the other. It ends with a flush, which waits for nothing.
_LINGER_MS = 20
_LAG_EVERY_S = 1.0
_JOIN_LOOK_S = 0.1
_ASK_TIME_EVERY_S = 1.0
# A round takes milliseconds, and seconds with a slow store. One of this length, besides the wait for Kafka, has hung.
_ROUND_S_MAX = 120.0
NO_ROOM = "too many events wait for a profile that cannot be read"


class RecordsHidden(Exception):  # no error: outcomes wait until it is over
    """The store may hide records that it has acknowledged."""


class Pipeline:
    """The stream worker. `run` it in one thread; any thread or signal handler may set the event `stop`."""

    def __init__(
        self,
        *,
        clients: KafkaClients,
        settings: StreamSettings,
        store: ProfileStore,
        engine: FeatureEngine,
        rates: RateTable,
        ids: SchemaIds,
        metrics: StreamMetrics | None = None,
        options: PipelineOptions | None = None,
    ) -> None:
        """Raises BrokerUnavailable or Misconfigured."""
        options = options or PipelineOptions()
        self._timing = options.timing
        self._settings, self._drain = settings, options.drain
        self._payments, self._outcomes = clients.topic("payments"), clients.topic("outcomes")
        self._payments_partitions = _source_partitions(clients)
        entities = engine.plan.entity_names
        topics = {name: repartition_topic(name, options.profile_set) for name in entities}
        routes = {name: (clients.topic(topic), len(clients.partitions(topic))) for name, topic in topics.items()}
        self._sender = clients.sender(linger_ms=_LINGER_MS)
        self._dead_letters = DeadLetters(self._sender, clients.settings, ids) if options.publish else None
        self._refusals = RefusalLimit(settings.dead_letter_window, settings.dead_letter_share_max)
        self.metrics = metrics or stream_metrics(settings, entities, CollectorRegistry())
        self._clock = options.clock or BrokerClock(self.metrics, options.timing.now_ms)
        self._now_ms = self._clock.now_ms
        self._router = Router(
            intake=EventDecoder(engine, rates, ids, settings.times),
            store=store,
            sender=self._sender,
            plan=engine.plan,
            routes=routes,
            outcome_days=settings.outcome_days,
            clock=self._clock,
            names_payments=options.names_payments,
        )
        changelog = Changelog(self._sender, clients, ids, entities) if options.publish else None
        self._updater = Updater(
            store=store,
            engine=engine,
            routes=routes,
            changelog=changelog,
            limit=RefusalLimit(settings.dead_letter_window, settings.dead_letter_share_max, "profiles"),
            names_payments=options.names_payments,
        )
        self._arrivals = Arrivals()
        # None: nothing that this worker writes is in a mirror.
        self._rounds: CompletenessRounds | None = None
        if changelog is not None:
            self._rounds = CompletenessRounds(
                [
                    [(self._payments, partition) for partition in self._payments_partitions],
                    [(topic, partition) for topic, count in routes.values() for partition in range(count)],
                    changelog.places,
                ],
                # Payments behind an open transaction have reached Kafka, too.
                ask=lambda places: ask_end_offsets(clients.admin, places, IsolationLevel.READ_UNCOMMITTED),
                every_ms=settings.progress_every_ms,
            )
        # When the client last gave records, and how much later it gives more, as the broker collects them.
        self._answered_at = self._answers_every_s = 0.0
        # The owner of this partition makes the claims for the whole group.
        self._claims_place = (routes[entities[0]][0], 0)
        self._ask_others_at = 0.0
        self._waiting = WaitingOutcomes()
        self._outcomes_wait = False
        self._ask_at = self._alone_at = self._lag_at = self._time_at = 0.0
        self._repartition = dict(routes.values())
        self._undrained: set[PartitionId] = {(t, p) for t, count in self._repartition.items() for p in range(count)}
        self._gather_ms = gather_ms_of(freshness_objectives_ms(settings, entities))
        self._clients = clients
        client = clients.consumer(
            group_id=settings.group_of(options.profile_set),
            session_timeout_ms=settings.session_timeout_ms,
            tells_lost_offsets=True,
            gather_ms=self._gather_ms,
        )
        self._consumer = BatchConsumer(
            client, on_assigned=self._on_assigned, on_revoked=self._on_revoked, on_expired=self._on_expired
        )
        self._ends = EndsWatch(
            clients.admin,
            "what is read",
            lambda: self._consumer.positions(),
            ask_every_s=self._timing.ask_ends_every_s,
            isolation=IsolationLevel.READ_UNCOMMITTED,
        )
        self._stalls = StallWatch(clients.admin, settings.stall_timeout_s)
        for topic in (self._payments, self._outcomes, *self._repartition):
            self.metrics.expired.labels(topic)
        self._known_ends: dict[PartitionId, int] = {}
        self._store_retry = StoreRetry(
            store, self.metrics, first_pause_s=self._timing.retry_first_s, on_try=self._note_turn
        )
        self._sources = SourceCheck(clients, store, self._names_of(clients, topics.values()))
        self._has_joined = False
        self._turned_at = time.monotonic()

    def run(self, stop: Event, may_begin: Callable[[], bool] = lambda: True) -> None:
        """Work until `stop` is set. The worker joins its group once its clock agrees with the broker's.

        It calls `may_begin` when it is a member of its group and has read nothing; False ends it. Raises
        BrokerUnavailable if Kafka does not take the records within the timeout, or the client has stalled;
        ClocksDisagree, SourceChanged.
        """
        if not self._agrees_on_time(stop):
            return
        self.join()
        partitions = 0
        try:
            if not self._await_membership(stop) or not may_begin():
                return
            self._consumer.release()
            while not (stop.is_set() or (self._drain and not self._undrained)):
                self.step(stop)
                if partitions != len(self._consumer.places):
                    partitions, behind = self._standing()
                    _log.info("stream: %d partitions, %d records behind", partitions, behind)
        finally:
            self.leave()

    def _agrees_on_time(self, stop: Event) -> bool:
        """Wait until this host's clock and the broker's agree. Returns False if `stop` was set first."""
        while not stop.is_set():
            self._note_turn()
            self._ask_time()
            if not self._clock.disagrees():
                return True
            stop.wait(_ASK_TIME_EVERY_S)
        return False

    def _ask_time(self) -> None:
        self._router.ask_time()
        self._sender.flush(self._settings.flush_timeout_s)

    def _names_of(self, clients: KafkaClients, repartition: Iterable[str]) -> dict[str, str]:
        """Returns the topics that this worker reads, by full name the name without prefix."""
        sources = () if self._drain else ("payments", "outcomes")
        return {clients.topic(name): name for name in (*sources, *repartition)}

    def _await_membership(self, stop: Event) -> bool:
        """Returns False if `stop` was set first."""
        self._consumer.hold()
        while not self._has_joined and not stop.is_set():
            self._note_turn()
            self._consumer.wait(_JOIN_LOOK_S)
        return self._has_joined

    def join(self) -> None:
        """Join the group; `step` can read afterwards. Raises SourceChanged, without having joined."""
        try:
            self._compare_sources()
        except (StoreUnavailable, BrokerUnavailable) as error:
            _log.warning("the topics are compared with the store's register later: %s", error)
        sources = [] if self._drain else [self._payments, self._outcomes]
        self._consumer.subscribe([*sources, *self._repartition])

    def leave(self) -> None:
        """Leave the group."""
        self._consumer.close()

    def uncommitted_count(self, ends: Mapping[str, Mapping[int, int]]) -> int:
        """Returns how many records before these ends, by topic and partition, the group has not committed.

        While the broker does not answer, all of them count.
        """
        missing = 0
        for topic, of_topic in ends.items():
            committed = self._consumer.committed(topic, of_topic) or {}
            missing += sum(max(0, end - committed.get(partition, 0)) for partition, end in of_topic.items())
        return missing

    def problems(self) -> Sequence[str]:
        """Returns why this worker is not ready; empty if it is. Any thread may call it."""
        problems = [] if self._has_joined else ["it has not joined its consumer group yet"]
        return [*problems, *filter(None, (self._store_retry.trouble, self._clock.trouble))]

    def turns(self) -> bool:
        """Returns whether the worker makes rounds. A round may wait `flush_timeout_s` for Kafka.

        Any thread may call it.
        """
        return time.monotonic() - self._turned_at < self._settings.flush_timeout_s + _ROUND_S_MAX

    def step(self, stop: Event) -> None:
        """Process one micro-batch up to its commit, or until it is abandoned.

        Raises ClocksDisagree: nothing was done about the batch, and its next reader begins with it; BrokerUnavailable
        if the client has stalled, and SourceChanged.
        """
        self._note_turn()
        self._store_retry.look()
        with self._timed("read"):
            consumed = self._take()
        payments = [record for record in consumed.records if record.topic == self._payments]
        frames = [record for record in consumed.records if record.topic in self._repartition]
        if self._clock.is_doubtful(max((record.timestamp_ms for record in payments), default=0)):
            self._ask_time()
            if self._clock.disagrees():
                raise ClocksDisagree(self._clock.trouble)
        arrived_ms = self._corrected_arrivals(payments)
        self._waiting.add(record for record in consumed.records if record.topic == self._outcomes)
        self._waiting.reached_ends({p: end for (topic, p), end in consumed.ended.items() if topic == self._outcomes})
        outcomes = self._due_outcomes(has_payments=bool(payments))
        if frames or not consumed.is_all:
            # Those of earlier batches have come from the topic, or will.
            self._router.sent.clear()
        try:
            if consumed.records and self._sources.is_due:
                self._retry_while_store_down(self._compare_sources_again, stop)
            if payments or outcomes:
                outcomes = self._route(payments, outcomes, arrived_ms, stop)
                if consumed.is_all:
                    frames += self._own_frames()
            if frames:
                self._update(frames, stop)
        except Abandoned:
            self.metrics.abandoned.inc()
            self._waiting.clear()
            self._consumer.abandon()
            return
        if time.monotonic() >= self._time_at:
            # For the broker's time, which its acknowledgement of any frame has.
            self._time_at = time.monotonic() + self._timing.ask_time_every_s
            self._router.ask_time()
        records = [*payments, *outcomes, *frames]
        if records:
            with self._timed("flush"):
                self._sender.flush(self._settings.flush_timeout_s)
            self.metrics.batches.inc()
        else:
            self._sender.poll()
            self._store_retry.ask()
        with self._timed("commit"):
            self._commit(records, consumed)
        self._claim_completeness()
        self._observe_lag()
        self._look_for_stalls(consumed.is_all)

    def _take(self) -> Consumed:
        try:
            first_s = self._first_wait_s()
            consumed = self._consumer.take(self._settings.batch_max, self._settings.batch_wait_ms / 1000, first_s)
        except PartitionCut as cut:
            raise self._sources.changed(cut.topic, cut.cut) from cut
        if consumed.displaced:
            self._sources.is_due = True
        if consumed.records:
            now = time.monotonic()
            self._answers_every_s = min(now - self._answered_at, self._gather_ms / 1000)
            self._answered_at = now
        return consumed

    def _first_wait_s(self) -> float:
        """Returns how long to wait for a record: until there is something else to do."""
        rounds = self._rounds
        idle_s = _WAITING_S if len(self._waiting) or (rounds is not None and rounds.awaited()) else _IDLE_S
        if rounds is None:
            return idle_s
        if rounds.is_asking:
            return _ASKING_S
        # A round begins when it is due, and just before the broker's next answer.
        begins_s = max((rounds.due_ms() - self._now_ms()) / 1000, self._good_moment_in_s())
        return min(idle_s, begins_s) if begins_s > 0 else idle_s

    def _is_before_answer(self) -> bool:
        """Whether the client is about to get records, or gets none."""
        return self._good_moment_in_s() <= 0

    def _good_moment_in_s(self) -> float:
        """Returns in how many seconds the client is about to get records, as far as the last ones tell."""
        return self._answered_at + self._answers_every_s - _BEFORE_ANSWER_S - time.monotonic()

    def _compare_sources(self) -> None:
        bases = self._sources.check()
        self._router.payments_base = bases.get(self._payments, 0)
        self._router.outcomes_base = bases.get(self._outcomes, 0)

    def _compare_sources_again(self) -> None:
        """Compare the topics of records that were just taken. Raises Abandoned while Kafka does not answer."""
        try:
            self._compare_sources()
        except BrokerUnavailable as error:
            _log.warning("the records taken are read again: %s", error)
            raise Abandoned from error

    def _confirm_orphans(self) -> None:
        """Make sure that outcomes without a payment may become dead letters.

        If `payments` was created again, their payments may stand at offsets that count as read: compares the topics,
        and raises as above. Raises RecordsHidden if the store may hide the payments' records.
        """
        bases = self._router.payments_base, self._router.outcomes_base
        self._compare_sources_again()
        if (self._router.payments_base, self._router.outcomes_base) != bases:
            # An operator has accepted the topics while this batch was under way.
            raise Abandoned
        self._store_retry.look(is_due=True)
        if self._store_retry.why_hidden:
            raise RecordsHidden(self._store_retry.why_hidden)

    # Payments and outcomes to events

    def _route(
        self,
        payments: Sequence[Record],
        outcomes: list[Record],
        arrived_ms: Mapping[tuple[int, int], int],
        stop: Event,
    ) -> list[Record]:
        """Returns the outcomes that are done: none if they must wait."""
        with self._timed("decode"):
            decoded = self._router.decode(payments, outcomes, self._now_ms(), arrived_ms)
        self._note_refusals(len(payments) + len(outcomes), decoded.refused)
        with self._timed("keep"):
            try:
                joined = self._retry_while_store_down(lambda: self._router.keep(decoded, self._confirm_orphans), stop)
            except RecordsHidden as hidden:
                _log.warning("outcomes of payments that are not found wait: %s", hidden)
                self._outcomes_wait = True
                self._waiting.put_back(outcomes)
                outcomes = []
                refused = [(record, why) for record, why in decoded.refused if record.topic == self._payments]
                decoded = replace(decoded, outcomes=[], refused=refused)
                joined = self._retry_while_store_down(lambda: self._router.keep(decoded), stop)
        with self._timed("route"):
            orphans = [decoded.origin[orphan.position] for orphan in joined.orphans]
            reason = "payment_id: outcome of a payment that is not known"
            self._refuse([*decoded.refused, *((record, reason) for record in orphans)])
            if joined.refused:
                self._refuse_joined(joined.refused, [*payments, *outcomes])
            self._router.send(joined)
        self._count_routed(decoded, joined)
        return outcomes

    def _refuse_joined(self, refused: Sequence[tuple[Position, str]], records: Sequence[Record]) -> None:
        by_position = {}
        for record in records:
            if record.topic == self._payments:
                position = Position(payments_source(record.partition), self._router.payments_base + record.offset)
            else:
                position = Position(outcomes_source(record.partition), self._router.outcomes_base + record.offset)
            by_position[position] = record
        self._refuse([(by_position[position], reason) for position, reason in refused])

    def _count_routed(self, decoded: Decoded, joined: Joined) -> None:
        self.metrics.payments.inc(len(decoded.payments))
        if isinstance(decoded.payments, PaymentColumns):
            self.metrics.unknown_rates.inc(int((decoded.payments.rows[:, AMOUNT] < 0).sum()))
        self.metrics.outcomes.inc(len(decoded.outcomes))
        self.metrics.duplicates.inc(joined.duplicates)
        for kind, count in joined.later.items():
            self.metrics.later.labels(kind).inc(count)

    def _due_outcomes(self, *, has_payments: bool) -> list[Record]:
        """Returns the outcomes that are due. While too many wait, the worker reads no more: memory is bounded."""
        waiting, now = self._waiting, time.monotonic()
        self.metrics.waiting_outcomes.set(len(waiting))
        self._consumer.pause(self._outcomes, len(waiting) >= self._settings.batch_max)
        if self._outcomes_wait and self._store_retry.why_hidden:
            return []
        self._outcomes_wait = False
        if not len(waiting) or now < self._ask_at or not (has_payments or now >= self._alone_at):
            return []
        self._ask_at = now + self._timing.ask_committed_every_s
        self._alone_at = now + self._timing.outcomes_alone_after_s
        if waiting.asks_for_ends():
            ends = end_offsets_of(
                self._clients.admin, self._payments, self._payments_partitions, IsolationLevel.READ_UNCOMMITTED
            )
            if ends is None:
                return []
            waiting.wait_for(ends)
        committed = self._committed_payments()
        return [] if committed is None else waiting.take_due(committed)

    def _committed_payments(self) -> dict[int, int] | None:
        """Returns the group's committed offsets of payments, by partition; None if the broker does not answer now.

        The broker is asked about partitions of other workers alone: this worker knows its own commits.
        """
        acknowledged = self._consumer.acknowledged()
        own = {
            partition: acknowledged[place]
            for partition in self._payments_partitions
            if (place := (self._payments, partition)) in self._consumer.places and place in acknowledged
        }
        others = [partition for partition in self._payments_partitions if partition not in own]
        if not others:
            return own
        committed = self._consumer.committed(self._payments, others)
        return None if committed is None else own | committed

    def _own_frames(self) -> list[Record]:
        """Returns the frames of this batch that this worker itself would read next; nobody waits for the broker.

        A worker that is behind reads them from the topic: it has enough to do while the broker takes them.
        """
        with self._timed("flush"):
            self._sender.flush(self._settings.flush_timeout_s)
        own = self._consumer.take_ahead(self._router.sent)
        self._router.sent.clear()
        return own

    # Events to profiles

    def _update(self, frames: Sequence[Record], stop: Event) -> None:
        with self._timed("decode"):
            arrived = self._updater.decode(frames)
        self._note_refusals(len(frames), arrived.refused)
        self._refuse(arrived.refused)
        if arrived.events:
            with self._timed("update"):
                updates = self._retry_while_store_down(lambda: self._updater.update(arrived.events), stop)
            for entity, applied in updates.items():
                with self._timed("changelog"):
                    self._updater.send(entity, applied, self._now_ms())
                if applied.no_room is not None:
                    self._refuse([(record, NO_ROOM) for record in self._updater.refused(entity, applied.no_room)])
                self._count_applied(entity, arrived.events[entity], applied)

    def _count_applied(self, entity: int, events: EntityEvents, applied: ProfileUpdates) -> None:
        arrived_ms = events.rows[:, ARRIVED_MS]
        # A label has no age, and neither has a payment without a timestamp from Kafka.
        arrived_ms = arrived_ms[(events.rows[:, KIND] == PAYMENT) & (arrived_ms > 0)]
        self.metrics.applied(
            self._updater.entities[entity],
            events=len(events.keys),
            profiles=len(applied.profiles),
            replayed=applied.replayed,
            late=applied.late,
            ages_ms=np.asarray(self._now_ms() - arrived_ms),
        )
        if applied.newly_set_aside or applied.waiting or applied.restored:
            self.metrics.set_aside(
                self._updater.entities[entity],
                profiles=applied.newly_set_aside,
                events=applied.waiting,
                restored=applied.restored,
            )

    # Progress

    def _corrected_arrivals(self, payments: Sequence[Record]) -> dict[tuple[int, int], int]:
        """Returns by partition and offset when payments arrived whose producer's clock is wrong."""
        corrected: dict[tuple[int, int], int] = {}
        now_ms = self._now_ms()
        for record in payments:
            if record.is_broker_time:
                continue
            arrived_ms = self._arrivals.arrived_ms(record, now_ms)
            if arrived_ms != record.timestamp_ms:
                corrected[record.partition, record.offset] = arrived_ms
        return corrected

    def _claim_completeness(self) -> None:
        """Tell mirrors how complete the profiles are, if that is the task of this worker."""
        rounds = self._rounds
        if rounds is None:
            return
        if self._claims_place not in self._consumer.places:
            rounds.stop()
            return
        rounds.saw_committed(self._consumer.acknowledged())
        others = rounds.awaited() - self._consumer.places
        if others and time.monotonic() >= self._ask_others_at:
            self._ask_others_at = time.monotonic() + self._timing.ask_committed_every_s
            for topic in {topic for topic, _ in others}:
                committed = self._consumer.committed(topic, [number for name, number in others if name == topic])
                rounds.saw_committed({(topic, number): offset for number, offset in (committed or {}).items()})
        if (claim := rounds.look(self._now_ms(), is_good_moment=self._is_before_answer())) is not None:
            self._updater.send_claim(claim, self._now_ms())

    # Around a batch

    def _note_refusals(self, records: int, refused: Sequence[tuple[Record, str]]) -> None:
        self._refusals.note(records, len(refused), (reason for _, reason in refused))

    def _refuse(self, refused: Sequence[tuple[Record, str]]) -> None:
        for record, reason in refused:
            if self._dead_letters is not None:
                self._dead_letters.send(record, reason, self._now_ms())
            self.metrics.dead_letters.labels(record.topic).inc()

    def _retry_while_store_down(self, action: Callable[[], _Result], stop: Event) -> _Result:
        """Returns the action's result; tries it again while the store is down or in conflict. Raises Abandoned."""
        return self._store_retry.run(action, self._consumer, stop)

    def _note_turn(self) -> None:
        self._turned_at = time.monotonic()

    def _commit(self, records: Sequence[Record], consumed: Consumed) -> None:
        # The end of a partition may lie behind transaction markers, which no reader sees. While outcomes of a partition
        # wait, its end is not reached.
        ends = {place: end for place, end in consumed.ended.items() if place[0] != self._outcomes}
        ends |= {(self._outcomes, partition): end for partition, end in self._waiting.take_ends().items()}
        self._consumer.commit(offsets_after(records, ends))
        self._undrained -= ends.keys()

    def _observe_lag(self) -> None:
        if time.monotonic() >= self._lag_at:
            self._lag_at = time.monotonic() + _LAG_EVERY_S
            self.metrics.lag(self._consumer.lag(self._known_ends))

    def _look_for_stalls(self, is_all: bool) -> None:
        self._sources.look()
        self._stalls.gave(is_all)
        if (ends := self._ends.look()) is not None:
            self._known_ends = ends
            now_ms = self._now_ms()
            of_payments = {place: end for place, end in ends.items() if place[0] == self._payments}
            self._arrivals.ended(of_payments, asked_ms=now_ms - round(1000 * self._ends.age_s) - 1, answered_ms=now_ms)
            self._stalls.check(ends, self._consumer.positions())

    def _standing(self) -> tuple[int, int]:
        return len(self._consumer.places), sum(self._consumer.lag(self._known_ends).values())

    def _on_assigned(self, _places: Sequence[PartitionId]) -> None:
        self._sources.is_due = True
        self._has_joined = True

    def _on_expired(self, place: PartitionId, count: int) -> None:
        self.metrics.expired.labels(place[0]).inc(count)

    def _on_revoked(self, places: Sequence[PartitionId]) -> None:
        # This batch may be abandoned now. Its records must reach the broker before anything the next owner sends.
        self._sender.flush(self._settings.flush_timeout_s)
        self._waiting.drop({partition for topic, partition in places if topic == self._outcomes})
        for place in places:
            self._arrivals.forget(place)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.metrics.stage_seconds.labels(stage).observe(time.perf_counter() - started)


def _source_partitions(clients: KafkaClients) -> list[int]:
    """Returns the partitions of payments. Raises Misconfigured if a profile cannot store that many offsets."""
    partitions: dict[str, list[int]] = {}
    for name in ("payments", "outcomes"):
        partitions[name] = clients.partitions(name)
        if len(partitions[name]) > SOURCES_MAX // 2:
            raise Misconfigured(
                f"topic {name} has {len(partitions[name])} partitions, a profile can note {SOURCES_MAX // 2}"
            )
    return partitions["payments"]
