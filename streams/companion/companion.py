"""A scoring host's I/O: the changelog into the mirror, the outbox onto the decisions topic.

    store ──scan, once──► mirror ◄──follow── topic profiles          outbox ──ship──► topic decisions

1. Open the mirror. If it has positions, go on from them.
2. If it is new, note where the changelog ends, scan the store into the mirror, and follow the changelog from the noted
   ends. Without a store (`fill_from_store = false`) read the compacted changelog from its beginning.
3. Read every partition to the end it had at the start. The mirror is complete when that is done and the stream's
   progress is known: then the companion is ready.
4. In every round ship decisions (streams/companion/shipping.py) and apply a batch of the changelog.

What can go wrong:

- The store is not there yet, or is lost during the scan. The companion logs that once, is live but not ready, and tries
  again every second.
- A rebuild swaps another profile set in. The companion waits until the swap has ended.
- Kafka's client stalls. The companion replaces it (streams/kafka/stall_detector.py).

Health and metrics are values that the loop sets. Other threads serve them and never block the loop.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from confluent_kafka import Consumer, TopicPartition
from prometheus_client import CollectorRegistry

from paywarden.features.stores.base import ProfileStore, ScanProgress, in_batches
from paywarden.features.stores.profile_sets import LiveSet
from paywarden.schemas.avro import Decoder, Encoder, SchemaIds
from paywarden.schemas.errors import Misconfigured, StoreUnavailable
from paywarden.scoring.state.mirror import MirrorSettings, MirrorWriter
from paywarden.scoring.state.outbox import OutboxSettings
from paywarden.streams.companion.changelog_reader import read_changes
from paywarden.streams.companion.cursors import HostIdentity
from paywarden.streams.companion.health import CompanionHealth
from paywarden.streams.companion.metrics import CompanionMetrics
from paywarden.streams.companion.shipping import ShippingOptions, shipper_of
from paywarden.streams.health.process_end import TIDY_UP_S
from paywarden.streams.kafka.admin import end_offsets
from paywarden.streams.kafka.client import PartitionId
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.end_offsets import EndsWatch
from paywarden.streams.kafka.reading import Record, consume
from paywarden.streams.kafka.stall_detector import StallWatch, named
from paywarden.streams.kafka.topic_names import CURSORS_TOPIC, repartition_topic
from paywarden.streams.profiles.metrics import objectives_ms
from paywarden.streams.profiles.watermarks import CopyProgress, progress_key

_log = logging.getLogger(__name__)

_LOG_EVERY_S = 10.0
_LOOK_AROUND_EVERY_S = 1.0
_FILL_BATCH = 10_000
# The pause before it looks again for a missing store, or for the end of a swap of profile sets.
_LOOK_AGAIN_S = 1.0
_VARIANT = re.compile(r"[A-Za-z0-9._-]{0,64}")


@dataclass(frozen=True)
class CompanionSettings:
    """The settings `[companion]`."""

    # The most changelog records in a batch, and the wait for the first: this wait adds to the age of profiles.
    batch_max: int = 2000
    batch_wait_ms: int = 20
    # True: fill a new mirror by a scan of the store. False: by reading the whole changelog.
    fill_from_store: bool = True
    # How long a stop may take, shipping what is left included.
    stop_timeout_s: int = 10
    # The companion replaces a client that delivers nothing for this long although the broker has more records.
    stall_timeout_s: int = 60
    # The name of what this host serves, such as an arm of an A/B test. It goes into every shipped decision.
    variant: str = ""
    # The longest time from an event's arrival on Kafka to the mirror: the stream's objective for its store, and half a
    # second for the changelog. Exceptions have the form "merchant=5000".
    freshness_objective_ms: int = 1500
    freshness_exceptions: tuple[str, ...] = ()
    # The companion is not ready while its mirror is older than this.
    mirror_age_ms_max: int = 30_000
    # The address of /livez, /readyz and /metrics. Port 0 takes a free port; the first line on stdout tells it.
    http_host: str = "127.0.0.1"
    http_port: int = 0

    def __post_init__(self) -> None:
        """Raises Misconfigured."""
        if _VARIANT.fullmatch(self.variant) is None:
            raise Misconfigured(
                f"[companion] variant: wanted at most 64 letters, digits, '.', '_' and '-', got {self.variant!r}"
            )


@dataclass(frozen=True)
class HostFiles:
    """The files that the companion shares with the scoring workers of its host."""

    mirror: MirrorSettings
    outbox: OutboxSettings
    # How long the outbox keeps a decision after it is shipped.
    outbox_keep_s: float = 0.0


@dataclass(frozen=True)
class FillSource:
    """The profile store that a new mirror is filled from. Nothing here is called while the mirror is complete.

    `look` returns which profile set is live, `open_store` opens it, and `watch_scan` may show the scan's progress.
    """

    look: Callable[[], LiveSet]
    open_store: Callable[[LiveSet], ProfileStore]
    watch_scan: Callable[[str], AbstractContextManager[ScanProgress]] = lambda _: nullcontext(lambda *_: None)


class Companion:
    """Runs in one thread beside the scoring workers of a host."""

    def __init__(
        self,
        *,
        clients: KafkaClients,
        settings: CompanionSettings,
        files: HostFiles,
        ids: SchemaIds,
        entities: tuple[str, ...],
        fill: FillSource,
        registry: CollectorRegistry | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`registry` gets the metrics.

        Raises Misconfigured, BrokerUnavailable.
        """
        self._settings, self._entities, self._now_ms = settings, entities, now_ms
        self.health = CompanionHealth(settings.mirror_age_ms_max, now_ms=now_ms)
        self._metrics = CompanionMetrics(
            registry or CollectorRegistry(), freshness_objectives_ms(settings, entities), self.health
        )
        self._fill = fill
        self._topic = clients.topic("profiles")
        self._partitions = clients.partitions("profiles")
        self._mirror, self._mirror_limit_bytes = MirrorWriter(files.mirror), files.mirror.size_mb << 20
        self._clients = clients
        self._consumer = self._new_consumer()
        self._decoder = Decoder("profiles", ids)
        self._progress = CopyProgress(
            self._partitions,
            (
                progress_key(entity, partition)
                for entity in entities
                for partition in clients.partitions(repartition_topic(entity))
            ),
        )
        encoder = Encoder("decisions", ids.id_of("decisions"))
        self._identity = HostIdentity(Path(files.outbox.directory))
        # Raises unless the topic is there.
        clients.partitions(CURSORS_TOPIC)
        options = ShippingOptions(keep_s=files.outbox_keep_s, variant=settings.variant)
        self._shipper = shipper_of(files.outbox, clients, self._identity, encoder=encoder, options=options)
        self._ends = EndsWatch(clients.admin, self._topic, self._positions)
        self._stalls = StallWatch(settings.stall_timeout_s)
        self._to_reach: dict[int, int] = {}
        self._read_to: dict[int, int] = {}
        self.profiles_applied = 0

    def run(self, stop: Event) -> None:
        """Work until `stop` is set; then ship what is left. Raises TemporaryFailure or Misconfigured."""
        try:
            is_working = self._start_following(stop)
            if is_working:
                self._keep_working(stop)
        except Exception:
            # It is the error that matters, whatever else fails after it.
            for error in self._close(ships=True):
                _log.warning("the companion, while it stopped after a failure: %s", error)
            raise
        for error in self._close(ships=is_working):
            raise error

    def _keep_working(self, stop: Event) -> None:
        next_log = next_look = time.monotonic()
        while not stop.is_set():
            now = time.monotonic()
            if now >= next_look:
                self.look_around()
                next_look = now + _LOOK_AROUND_EVERY_S
            self.step()
            if now >= next_log:
                _log.info("companion: %d profiles applied, %d decisions shipped", *self._counts())
                next_log = now + _LOG_EVERY_S

    def _close(self, *, ships: bool) -> list[Exception]:
        """Ship what is left, if it `ships`, and close everything. A failed step keeps no later one from running."""
        self.health.obstacle = "the companion is stopping"
        drain_s = max(0.0, self._settings.stop_timeout_s - TIDY_UP_S)
        shipping = (self._shipper.find_workers, lambda: self._shipper.drain(drain_s)) if ships else ()
        errors: list[Exception] = []
        for step in (*shipping, self._identity.close, self._consumer.close, self._mirror.close):
            try:
                step()
            except Exception as error:  # noqa: BLE001  # `run` raises or logs it
                errors.append(error)
        return errors

    def look_around(self) -> None:
        """Do what need not happen in every round: look for new workers, check the client, set the metrics."""
        self._shipper.find_workers()
        if (ends := self._ends.look()) is not None:
            self._metrics.lag(ends, self._positions())
            if stalled := self._stalls.look(ends, self._positions()):
                self._replace_client(stalled)
        self.health.kafka_trouble = self._ends.trouble()
        self._metrics.shipping(
            shipped=self._shipper.shipped,
            under_way=self._shipper.under_way,
            waiting_bytes=self._shipper.waiting_bytes(),
        )
        self._metrics.mirror(self._mirror.used_bytes(), self._mirror_limit_bytes)

    def step(self) -> None:
        """Run one round of both jobs. It waits for the changelog only if no decision is waiting."""
        produced = self._shipper.advance()
        wait_s = 0.0 if produced else self._settings.batch_wait_ms / 1000
        consumed = consume(self._consumer, self._settings.batch_max, wait_s)
        self._stalls.gave(consumed.is_all)
        if consumed.records:
            self._apply(consumed.records)
        for (_, partition), end in consumed.ended.items():
            self._to_reach.pop(partition, None)
            self._read_to[partition] = end
        self.health.partitions_to_reach = len(self._to_reach)
        self.health.note_round()

    def _positions(self) -> dict[PartitionId, int]:
        return {(self._topic, partition): position for partition, position in self._read_to.items()}

    def _replace_client(self, stalled: list[PartitionId]) -> None:
        _log.warning("Kafka's client has stalled on %s and is replaced", named(stalled))
        self._metrics.stalls.inc()
        self._stalls.clear()
        self._consumer.close()
        self._consumer = self._new_consumer()
        self._follow(self._read_to)

    def _new_consumer(self) -> Consumer:
        return self._clients.consumer(group_id="paywarden-companion")

    def _follow(self, positions: Mapping[int, int]) -> None:
        self._consumer.assign([TopicPartition(self._topic, p, offset) for p, offset in positions.items()])

    def _counts(self) -> tuple[int, int]:
        return self.profiles_applied, self._shipper.shipped

    def _start_following(self, stop: Event) -> bool:
        """Fill a new mirror and follow the changelog from the mirror's positions. Returns False if stopped first."""
        ends = end_offsets(self._consumer, self._topic, self._partitions)
        positions = self._mirror.positions()
        if positions.keys() != set(self._partitions):
            self._mirror.clear()
            positions = dict.fromkeys(self._partitions, 0)
            if self._settings.fill_from_store:
                filled_from = self._fill_from_store(stop)
                if filled_from is None:
                    return False
                # The stream writes the store first, so the scan has everything the changelog held before it.
                positions = filled_from
                # A record from the time of the scan may restore an older state for a moment: read past them all.
                ends = end_offsets(self._consumer, self._topic, self._partitions)
            self._mirror.apply({}, positions)
        self._to_reach = {number: end for number, end in ends.items() if positions[number] < end}
        self._read_to = dict(positions)
        self.health.follow(len(self._to_reach), self._mirror.complete_to_ms() or 0)
        self._follow(positions)
        return True

    def _fill_from_store(self, stop: Event) -> dict[int, int] | None:
        """Fill the mirror; returns where the changelog ended before that, or None if stopped.

        It waits for a store that is not there yet or is lost during the scan. It also waits while another profile set
        is swapped in: the changelog gets that set's profiles, and the mirror would keep profiles of the old set that
        nobody updates. So it looks at the live set before and after the scan.
        """
        while not stop.is_set():
            try:
                live = self._fill.look()
                if live.next is not None:
                    self._wait_because("another profile set is being swapped in; the mirror is filled after that", stop)
                    continue
                ends = end_offsets(self._consumer, self._topic, self._partitions)
                self._scan_store(live, stop)
                if not stop.is_set() and self._fill.look() == live:
                    return ends
                self._mirror.clear()
            except StoreUnavailable as error:
                self._mirror.clear()
                self._wait_because(f"the mirror waits for the profile store: {error}", stop)
        return None

    def _wait_because(self, obstacle: str, stop: Event) -> None:
        """Wait a moment before the next try, and log the obstacle if it is new."""
        if obstacle != self.health.obstacle:
            _log.info("companion: %s", obstacle)
        self.health.obstacle = obstacle
        stop.wait(_LOOK_AGAIN_S)

    def _scan_store(self, live: LiveSet, stop: Event) -> None:
        store = self._fill.open_store(live)
        self.health.obstacle = "the mirror is being filled from the store"
        started = time.monotonic()
        count = 0
        try:
            for entity in self._entities:
                with self._fill.watch_scan(f"{entity} profiles into the mirror") as progress:
                    for batch in in_batches(store.scan(entity, progress=progress), _FILL_BATCH):
                        self._mirror.apply(dict(batch), {})
                        count += len(batch)
                        if stop.is_set():
                            return
        finally:
            store.close()
        _log.info("companion: mirror filled with %d profiles in %.1f s", count, time.monotonic() - started)

    def _apply(self, records: list[Record]) -> None:
        changes = read_changes(records, self._decoder, self._entities, self._to_reach)
        for partition, key, moment_ms in changes.progress:
            self._progress.saw(partition, key, moment_ms)
        self._note_reached(changes.positions)
        complete_to_ms = self._progress.complete_to_ms() if not self._to_reach else 0
        self._mirror.apply(changes.profiles, changes.positions, complete_to_ms or None)
        if complete_to_ms:
            self.health.complete_to_ms = complete_to_ms
        self._read_to |= changes.positions
        self.profiles_applied += len(changes.profiles)
        self._metrics.applied(changes, self._now_ms())

    def _note_reached(self, positions: dict[int, int]) -> None:
        for partition, position in positions.items():
            if partition in self._to_reach and position >= self._to_reach[partition]:
                del self._to_reach[partition]


def freshness_objectives_ms(settings: CompanionSettings, entities: Sequence[str]) -> dict[str, int]:
    """Returns the freshness objective of each kind of entity, in milliseconds. Raises Misconfigured."""
    try:
        return objectives_ms(entities, settings.freshness_objective_ms, settings.freshness_exceptions)
    except ValueError as error:
        raise Misconfigured(f"[companion] freshness_exceptions: {error}") from error
