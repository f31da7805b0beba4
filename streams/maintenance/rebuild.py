"""Build a fresh profile set from the topics, next to the live set, and swap it in.

    1. create    a profile set with its own repartition topics and consumer group
    2. fill      it with payments and outcomes from the beginning or from a time; nothing is published
    3. begin     the swap: the live workers see it in the register, finish their batches and leave their group
    4. catch up  with the records that have come since, to the end of the topics
    5. publish   every profile on the changelog, and a tombstone for each profile that only the old set has
    6. finish    the swap: the workers go on with the new set, from the offsets where the rebuild ended

Scoring goes on all the time from the mirrors. The mirrors stand still from step 3 to step 6.

What can go wrong:

- Killed before step 3: the live set and its workers have not noticed anything.
- Killed after step 3: the workers wait. `resume` goes on with the same set; `abort` publishes the live set again.
- The live workers do not leave in time: the rebuild gives the swap up, and they go on.
- Kafka's client stalls: the rebuild ends with an error, and `resume` goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from threading import Event

from confluent_kafka import Consumer, KafkaException, TopicPartition

from paywarden.features.stores.base import ProfileStore, in_batches
from paywarden.features.stores.profile_sets import LiveSet, ProfileSets, SetStores, spoken
from paywarden.schemas.errors import BrokerUnavailable, Misconfigured, TemporaryFailure
from paywarden.streams.kafka.admin import offsets_at, stable_end_offsets
from paywarden.streams.kafka.client import reason_of
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.topic_names import repartition_topic
from paywarden.streams.kafka.topics import create_repartition_topics
from paywarden.streams.maintenance.add_partitions import members_of
from paywarden.streams.profiles.changelog import Changelog
from paywarden.streams.profiles.pipeline import Pipeline
from paywarden.streams.profiles.stream_settings import StreamSettings

_log = logging.getLogger(__name__)

SOURCES = ("payments", "outcomes")
# The swap can begin when a round of catching up takes no longer than this.
_SHORT_ROUND_S = 5.0
_PUBLISH_BATCH = 10_000
_FLUSH_TIMEOUT_S = 60.0

# Called with the number of records that are processed, and of all records on the topics.
RebuildProgress = Callable[[int, int], object]


@dataclass(frozen=True)
class RebuildOptions:
    """Options of the set's topics, and the time that the rebuild waits for the live workers to leave."""

    # Brokers that hold each record of the set's repartition topics.
    replication: int
    leave_patience_s: float = 120.0
    # How often the rebuild looks how far it has come, and whether the workers have left.
    look_every_s: float = 0.5


@dataclass(frozen=True)
class RebuildParts:
    """Factories of the parts that fill and publish a set.

    `open_pipeline` makes a worker of a profile set that publishes nothing.
    """

    open_pipeline: Callable[[str], AbstractContextManager[Pipeline]]
    open_changelog: Callable[[Sender], Changelog]


class Rebuild:
    """One rebuild of the profile set `name`."""

    def __init__(
        self,
        name: str,
        *,
        clients: KafkaClients,
        settings: StreamSettings,
        entities: Sequence[str],
        sets: ProfileSets,
        stores: SetStores,
        parts: RebuildParts,
        options: RebuildOptions,
    ) -> None:
        self.name, self._clients, self._settings, self._entities = name, clients, settings, entities
        self._sets, self._stores = sets, stores
        self._parts, self._options = parts, options

    def create(self, *, now_ms: int, from_ms: int | None) -> None:
        """Step 1. `from_ms`: the time of arrival on Kafka of the first record to read; None for all records.

        Raises Misconfigured when the name is taken.
        """
        live = self._sets.read()
        counts = {
            repartition_topic(entity, self.name): len(self._clients.partitions(repartition_topic(entity, live.name)))
            for entity in self._entities
        }
        create_repartition_topics(self._clients.settings, counts, self._options.replication)
        if from_ms is not None:
            self._begin_at(from_ms)
        # The entry in the register comes last: from then on a rebuild can resume.
        self._sets.create(self.name, now_ms=now_ms)

    def run(self, stop: Event, progress: RebuildProgress) -> LiveSet | None:
        """Run steps 2 to 6, from where an earlier run ended. Returns None if `stop` was set before the swap began.

        Raises TemporaryFailure if the live workers do not leave: the swap is given up, and nothing has changed. Raises
        BrokerUnavailable if Kafka's client has stalled: run it again.
        """
        self._sets.register().find(self.name)
        live = self._sets.read()
        with self._parts.open_pipeline(self.name) as pipeline:
            pipeline.join()
            try:
                if live.next is None:
                    if not self._fill(pipeline, stop, progress):
                        return None
                    live = self._sets.begin_swap(self._sets.read(), self.name)
                elif live.next != self.name:
                    raise Misconfigured(f"profile set {spoken(live.next)} is being swapped in: end that one first")
                self._await_leaving(live, pipeline)
                _log.info("rebuild: the live workers have left; catching up")
                self._catch_up(pipeline, Event(), progress)
            finally:
                pipeline.leave()
        self._publish(self.name, instead_of=live.name)
        return self._sets.finish_swap(live)

    def abort(self) -> LiveSet:
        """Give up a swap that has begun: publish the live set again and keep it live.

        Raises TemporaryFailure if the live workers do not leave: older profiles would follow the ones they send.
        """
        live = self._sets.read()
        if live.next != self.name:
            raise Misconfigured(f"profile set {spoken(self.name)} is not being swapped in")
        if count := self._members_left(live, lambda: time.sleep(self._options.look_every_s)):
            raise TemporaryFailure(f"{count} workers of the live set do not leave: try again when they have")
        self._publish(live.name, instead_of=self.name)
        return self._sets.abort_swap(live)

    # Filling

    def _begin_at(self, from_ms: int) -> None:
        """Commit the group's start: in each partition the first record that arrived at `from_ms` or later."""
        consumer: Consumer = self._clients.consumer(group_id=self._settings.group_of(self.name))
        try:
            for source in SOURCES:
                topic = self._clients.topic(source)
                # In a partition without such a record the group begins at the end.
                offsets = offsets_at(consumer, topic, self._ends([source])[topic], from_ms)
                first = [TopicPartition(topic, partition, offset) for partition, offset in offsets.items()]
                consumer.commit(offsets=first, asynchronous=False)
        except KafkaException as error:
            raise BrokerUnavailable(f"Kafka does not give offsets by time: {reason_of(error)}") from error
        finally:
            consumer.close()

    def _fill(self, pipeline: Pipeline, stop: Event, progress: RebuildProgress) -> bool:
        """Step 2. Returns False if stopped. Rounds get shorter as long as the rebuild is faster than new payments."""
        while True:
            started = time.monotonic()
            if not self._catch_up(pipeline, stop, progress):
                return False
            if time.monotonic() - started < _SHORT_ROUND_S:
                return True

    def _catch_up(self, pipeline: Pipeline, stop: Event, progress: RebuildProgress) -> bool:
        """Work until every record now on the topics is in the profiles. Returns False if stopped first."""
        repartition = [repartition_topic(entity, self.name) for entity in self._entities]
        # Only when the sources are processed are all events on the repartition topics.
        return self._reach(SOURCES, pipeline, stop, progress) and self._reach(
            repartition, pipeline, stop, lambda _done, _total: None
        )

    def _reach(self, topics: Sequence[str], pipeline: Pipeline, stop: Event, progress: RebuildProgress) -> bool:
        ends = self._ends(topics)
        total = sum(sum(of_topic.values()) for of_topic in ends.values())
        look_at = 0.0
        while True:
            if time.monotonic() >= look_at:
                missing = pipeline.uncommitted_count(ends)
                progress(total - missing, total)
                if missing == 0:
                    return True
                look_at = time.monotonic() + self._options.look_every_s
            if stop.is_set():
                return False
            try:
                pipeline.step(stop)
            except BrokerUnavailable as error:
                raise BrokerUnavailable(f"{error}; go on with --resume {self.name}") from error

    def _ends(self, topics: Sequence[str]) -> dict[str, Mapping[int, int]]:
        ends: dict[str, Mapping[int, int]] = {}
        for name in topics:
            topic = self._clients.topic(name)
            ends[topic] = stable_end_offsets(self._clients.admin, topic, self._clients.partitions(name))
        return ends

    # Swapping

    def _await_leaving(self, live: LiveSet, pipeline: Pipeline) -> None:
        """Wait until every worker of the live set has left. Meanwhile this pipeline works on, so its group keeps it."""
        never = Event()
        if count := self._members_left(live, lambda: pipeline.step(never)):
            self._sets.abort_swap(live)
            raise TemporaryFailure(
                f"{count} workers of group {self._settings.group_of(live.name)} did not leave in "
                f"{self._options.leave_patience_s:g} s: the swap is given up"
            )

    def _members_left(self, live: LiveSet, meanwhile: Callable[[], object]) -> int:
        """Returns how many workers are in the live set's group when the wait ends; 0 as soon as all have left."""
        deadline = time.monotonic() + self._options.leave_patience_s
        group = self._settings.group_of(live.name)
        while (count := members_of(self._clients.admin, group)) > 0 and time.monotonic() <= deadline:
            meanwhile()
        return count

    def _publish(self, name: str, *, instead_of: str) -> None:
        """Publish every profile of a set on the changelog, and a tombstone for each that only the other set has.

        No worker writes to the changelog now, so each record is the newest of its key.
        """
        sender = self._clients.sender(linger_ms=20)
        changelog = self._parts.open_changelog(sender)
        with closing(self._stores.open(name, readonly=True)) as chosen:
            for entity in self._entities:
                published = 0
                for states in map(dict, in_batches(chosen.scan(entity), _PUBLISH_BATCH)):
                    changelog.send(entity, states, time.time_ns() // 1_000_000)
                    published += len(states)
                sender.flush(_FLUSH_TIMEOUT_S)
                _log.info("rebuild: %d %s profiles published", published, entity)
            # Before the first payment the other set is empty.
            if self._stores.counts(instead_of):
                self._erase_others(chosen, instead_of, changelog, sender)

    def _erase_others(self, chosen: ProfileStore, name: str, changelog: Changelog, sender: Sender) -> None:
        with closing(self._stores.open(name, readonly=True)) as other:
            for entity in self._entities:
                erased = 0
                for states in in_batches(other.scan(entity), _PUBLISH_BATCH):
                    gone = _not_in(chosen, [key for key, _ in states])
                    changelog.erase(gone)
                    erased += len(gone)
                sender.flush(_FLUSH_TIMEOUT_S)
                _log.info("rebuild: %d %s profiles erased that are not in the new set", erased, entity)


def _not_in(store: ProfileStore, keys: Sequence[bytes]) -> list[bytes]:
    return [key for key, state in zip(keys, store.read(keys), strict=True) if state is None]
