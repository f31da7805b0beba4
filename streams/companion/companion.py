"""A scoring host's I/O: the changelog into the mirror, the outbox onto the decisions topic.

    store ──scan, once──► mirror ◄──follow── topic profiles          outbox ──ship──► topic decisions

1. Open the mirror. If it has positions, go on from them.
2. If it is new, note where the changelog ends, scan the store into the mirror, and follow the changelog from the noted
   ends. Without a store (`fill_from_store = false`) read the compacted changelog from its beginning.
3. Read every partition to the end it had at the start. The mirror is complete when that is done and the stream's
   progress is known: then the companion is ready.
4. In every round apply a batch of the changelog. About once a second check a part of the mirror for damage.
5. If features look from an entity at others, keep an index of their profiles (scoring/state/identity_index.py). It is
   made before step 2, where a mirror lacks it.
6. With [shards], leave out the cards that other hosts hold (streams/companion/host_shards.py). A mirror that holds
   other shards is filled again at step 2.

Decisions are shipped from the beginning, in a thread of their own (streams/companion/shipping_thread.py). Neither part
waits for the other.

While Kafka or the store is away, the companion waits: it says so once, is live and not ready, and tries again every
second. So it does while a rebuild swaps another profile set in, and while the mirror is full.

Anything else ends the process, after it has shipped the decisions that are left. The service manager starts it again,
and it begins with step 1:

- The changelog was deleted and created again, or has lost its end: the next start fills the mirror from the beginning.
- Kafka's client stalls (streams/kafka/stalls/stall_detector.py).
- The mirror is damaged: the companion deletes it, and the next start fills a new one.
- The overlay's marks were deleted or cut short: the next start makes new ones.
- A part fails in a way that nobody expected.

Health and metrics are values that the loop sets. Other threads serve them and never block the loop.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event

from confluent_kafka import IsolationLevel, TopicPartition
from prometheus_client import CollectorRegistry

from paywarden.features.profiles.payment_tags import MARK_DTYPE
from paywarden.features.stores.base import ProfileStore, ScanProgress, in_batches
from paywarden.features.stores.profile_sets import LiveSet, spoken
from paywarden.schemas.avro import Encoder, SchemaIds
from paywarden.schemas.errors import (
    BrokerUnavailable,
    Misconfigured,
    PaywardenError,
    StoreUnavailable,
    TemporaryFailure,
)
from paywarden.schemas.payment_fields import require_between
from paywarden.schemas.settings import internal
from paywarden.scoring.state.identity_index import IdentityIndex
from paywarden.scoring.state.mirror_file import MirrorDamaged, MirrorSettings, MirrorUnavailable
from paywarden.scoring.state.outbox import OutboxSettings
from paywarden.scoring.state.shards import HeldShards
from paywarden.streams.companion.changelog_reader import ProfileChanges, read_changes
from paywarden.streams.companion.companion_health import CompanionHealth
from paywarden.streams.companion.companion_metrics import CompanionMetrics
from paywarden.streams.companion.cursors import HostIdentity
from paywarden.streams.companion.host_shards import HostShards
from paywarden.streams.companion.mirror_writer import MirrorWriter, discard
from paywarden.streams.companion.overlay_marks import OverlayMarks
from paywarden.streams.companion.shipment import ShippingOptions
from paywarden.streams.companion.shipping import shipper_of
from paywarden.streams.companion.shipping_thread import ShippingThread
from paywarden.streams.health.process_end import TIDY_UP_S
from paywarden.streams.kafka.admin import end_offsets
from paywarden.streams.kafka.client import PartitionId
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.group_consumer import cut_of
from paywarden.streams.kafka.reading import Consumed, consume_when_there
from paywarden.streams.kafka.stalls.end_offsets import EndsWatch
from paywarden.streams.kafka.stalls.stall_detector import StallWatch
from paywarden.streams.kafka.topic_identity import IdentityWatch, topic_ids
from paywarden.streams.kafka.topic_names import CURSORS_TOPIC
from paywarden.streams.profiles.changelog import ChangelogDecoder
from paywarden.streams.profiles.profile_metrics import gather_ms_of, objectives_ms
from paywarden.streams.profiles.progress.watermarks import CopyProgress

_log = logging.getLogger(__name__)

_LOOK_AROUND_EVERY_S = 1.0
# A companion without records sleeps this long, or until the next record.
_IDLE_S = 0.5
_FILL_BATCH = 10_000
# The pause before it looks again for a missing store, or for the end of a swap of profile sets.
_LOOK_AGAIN_S = 1.0
# Counts and outcomes settle over minutes: ten seconds are a tenth of their wait for decisions.
_DECISIONS_EVERY_MS_MAX = 10_000
_VARIANT = re.compile(r"[A-Za-z0-9._-]{0,64}")


@dataclass(frozen=True)
class CompanionSettings:
    """The settings `[companion]`."""

    # The most changelog records in a batch, and the wait for more when it has one: it adds to the age of profiles.
    batch_max: int = internal(2000)
    batch_wait_ms: int = internal(20)
    # How often decisions are written to their topic, unless a transaction is full before. While fewer than 50 come
    # together, it is half as often.
    decisions_every_ms: int = 500
    # True: fill a new mirror by a scan of the store. False: by reading the whole changelog.
    fill_from_store: bool = True
    # How long a stop may take. It includes shipping the decisions that are left.
    stop_timeout_s: int = internal(10)
    # The companion ends if its client delivers nothing for this long although the broker has more records.
    stall_timeout_s: int = internal(60)
    # The name of this host's variant, such as an arm of an A/B test. It goes into every shipped decision.
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
        require_between("companion", "decisions_every_ms", self.decisions_every_ms, 0, _DECISIONS_EVERY_MS_MAX)
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
    # The digest of the key of identities; empty claims no mirror.
    identity_digest: str = ""
    # Opens the overlay's marks beside the mirror; None where there is no overlay.
    open_marks: Callable[[], OverlayMarks] | None = None
    # Which cards the mirror holds; None: all.
    shards: HostShards | None = None
    # The index by identity that the mirror is to have; None leaves the mirror as it is.
    index: IdentityIndex | None = None


@dataclass(frozen=True)
class FillSource:
    """The profile store that a new mirror is filled from. Nothing here is called while the mirror is complete.

    `look` returns which profile set is live, `open_store` opens it, and `watch_scan` may show the scan's progress.
    """

    look: Callable[[], LiveSet]
    open_store: Callable[[LiveSet], ProfileStore]
    watch_scan: Callable[[str], AbstractContextManager[ScanProgress]] = lambda _: nullcontext(lambda *_: None)


class Companion:
    """Runs beside the scoring workers of a host: the mirror in the thread that calls `run`, shipping in another."""

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
        """`registry` gets the metrics. Raises Misconfigured, BrokerUnavailable."""
        shards = files.shards
        self._settings, self._entities, self._now_ms = settings, entities, now_ms
        self.health = CompanionHealth(settings.mirror_age_ms_max, now_ms=now_ms)
        objectives_ms = freshness_objectives_ms(settings, entities)
        gather_ms = gather_ms_of(objectives_ms)
        self._metrics = CompanionMetrics(registry or CollectorRegistry(), objectives_ms, self.health)
        self._fill = fill
        self._topic = clients.topic("profiles")
        self._partitions = clients.partitions("profiles")
        self._mirror_settings = files.mirror
        self._identity_digest = files.identity_digest
        self._open_mirror: MirrorWriter | None = None
        self._open_marks = files.open_marks
        self._marks: OverlayMarks | None = None
        self._shards, self._index = shards, files.index
        if shards is not None:
            self._metrics.shards(shards.settings.digest, len(shards.wanted))
        self._clients = clients
        self._consumer = clients.consumer(group_id="paywarden-companion", gather_ms=gather_ms)
        self._decoder = ChangelogDecoder(ids)
        self._progress = CopyProgress()
        encoder = Encoder("decisions", ids.id_of("decisions"))
        self._identity = HostIdentity(Path(files.outbox.directory))
        # Raises unless the topic is there.
        clients.partitions(CURSORS_TOPIC)
        options = ShippingOptions(
            keep_s=files.outbox_keep_s,
            variant=settings.variant,
            transaction_every_s=settings.decisions_every_ms / 1000,
        )
        shipper = shipper_of(files.outbox, clients, self._identity, encoder=encoder, options=options)
        self._shipping = ShippingThread(shipper, self._metrics, self.health)
        self._ends = EndsWatch(clients.admin, self._topic, self._positions, isolation=IsolationLevel.READ_UNCOMMITTED)
        self._identity_watch = IdentityWatch(clients.admin, [self._topic])
        self._stalls = StallWatch(clients.admin, settings.stall_timeout_s)
        self._to_reach: dict[int, int] = {}
        self._read_to: dict[int, int] = {}
        # A batch that the mirror has not taken yet.
        self._held: Consumed | None = None
        self.profiles_applied = 0

    def run(self, stop: Event) -> None:
        """Work until `stop` is set; then ship the decisions that are left. Raises the error that ends the work."""
        self._shipping.start(stop)
        errors: list[Exception] = []
        try:
            if self._start_patiently(stop):
                self._keep_working(stop)
        except MirrorDamaged as error:
            self._discard_mirror()
            errors.append(error)
        except Exception as error:  # noqa: BLE001 - raised below, once the decisions that are left are shipped
            errors.append(error)
        errors += self._close()
        _log.info(
            "companion: it ends after %d profiles applied, %d decisions shipped",
            self.profiles_applied,
            self._shipping.shipped,
        )
        if errors:
            raise errors[0]

    def _keep_working(self, stop: Event) -> None:
        next_look = time.monotonic()
        while not stop.is_set():
            now = time.monotonic()
            if now >= next_look:
                self.look_around()
                next_look = now + _LOOK_AROUND_EVERY_S
            if not self.step():
                stop.wait(_LOOK_AGAIN_S)

    def _close(self) -> list[Exception]:
        """Ship the decisions that are left, and close everything. A failed step keeps no later one from running."""
        self.health.obstacle = "the companion is stopping"
        self.health.note_round()
        drain_s = max(0.0, self._settings.stop_timeout_s - TIDY_UP_S)
        errors: list[Exception] = []
        for step in (partial(self._shipping.stop, drain_s), self._identity.close, self._consumer.close):
            try:
                step()
            except Exception as error:  # noqa: BLE001  # `run` raises it
                errors.append(error)
        if self._open_mirror is not None:
            self._open_mirror.close()
        if self._marks is not None:
            self._marks.close()
        return errors if self._shipping.error is None else [self._shipping.error, *errors]

    def look_around(self) -> None:
        """Do the work that not every round needs: check the client and a part of the mirror, set the metrics."""
        if (ends := self._ends.look()) is not None:
            positions = self._positions()
            self._metrics.lag(ends, positions)
            self._stalls.check(ends, positions)
        self.health.kafka_trouble = self._ends.trouble()
        self._mirror.check()
        self._look_at_marks()
        self._look_at_changelog()
        self._metrics.mirror(self._mirror.used_bytes(), self._mirror_settings.size_mb << 20)

    def _look_at_marks(self) -> None:
        if self._marks is not None and not self._marks.is_in_place:
            raise TemporaryFailure("the overlay's marks were deleted or cut short: the companion makes new ones")

    def _look_at_changelog(self) -> None:
        """Raises TemporaryFailure if the changelog was created again: then the next start fills the mirror."""
        ids, known = self._identity_watch.look(), self._mirror.changelog_id()
        if ids is not None and known and ids[self._topic] not in ("", known):
            raise TemporaryFailure(f"topic {self._topic} was deleted and created again: the mirror is filled again")

    def step(self) -> bool:
        """Take a batch of the changelog and apply it. Returns False if the mirror does not take it.

        Then the next call tries the same batch again. The caller waits a moment before that.
        """
        if self._held is None:
            batch_wait_s = self._settings.batch_wait_ms / 1000
            leave_out = None if self._shards is None else self._shards.skipped
            self._held = consume_when_there(self._consumer, self._settings.batch_max, batch_wait_s, _IDLE_S, leave_out)
            self._stalls.gave(self._held.is_all)
        self.health.note_round()
        if self._held.records or self._held.ended:
            try:
                self._apply(self._held)
            except MirrorUnavailable as error:
                self._note_trouble(error)
                return False
            self.health.mirror_trouble = ""
        self._held = None
        self.health.partitions_to_reach = len(self._to_reach)
        return True

    @property
    def _mirror(self) -> MirrorWriter:
        """The mirror. It is opened when it is first needed: without it decisions are shipped all the same."""
        if self._open_mirror is None:
            mirror = MirrorWriter(self._mirror_settings, self._note_transaction)
            try:
                if self._open_marks is not None:
                    self._marks = self._open_marks()
                    self._marks.open_mirror(mirror.newest_transaction())
                if self._identity_digest:
                    mirror.claim_identity(self._identity_digest)
            except PaywardenError:
                mirror.close()
                raise
            self._open_mirror = mirror
        return self._open_mirror

    def _discard_mirror(self) -> None:
        """Delete a mirror that is damaged: it is a copy, and a new one is filled."""
        if self._open_mirror is not None:
            self._open_mirror.close()
        if self._marks is not None:
            self._marks.close()
        self._open_mirror = self._marks = None
        try:
            discard(self._mirror_settings)
        except OSError as error:
            _log.error("companion: the damaged mirror cannot be deleted: %s", error.strerror)
        else:
            _log.error("companion: the damaged mirror is deleted: the next start fills a new one")

    def _note_transaction(self, transaction: int) -> None:
        if self._marks is not None:
            self._marks.begin(transaction)

    def _note_trouble(self, error: MirrorUnavailable) -> None:
        """Log once why the mirror takes no changes."""
        if self.health.mirror_trouble != str(error):
            _log.error("companion: %s; its profiles grow old, and it is tried again every second", error)
        self.health.mirror_trouble = str(error)

    def _apply_patiently(
        self, profiles: Mapping[bytes, bytes | None], positions: Mapping[int, int], stop: Event
    ) -> bool:
        """Apply changes, and wait while the mirror does not take them. Returns False if stopped first."""
        while True:
            if self._marks is not None and profiles:
                # The store does not say which payments its profiles contain.
                self._marks.note_filled(filter(None, profiles.values()), self._now_ms())
            try:
                self._mirror.apply(profiles, positions)
            except MirrorUnavailable as error:
                self._note_trouble(error)
                self.health.note_round()
                if stop.wait(_LOOK_AGAIN_S):
                    return False
                continue
            self.health.mirror_trouble = ""
            return True

    def _positions(self) -> dict[PartitionId, int]:
        return {(self._topic, partition): position for partition, position in self._read_to.items()}

    def _follow(self, positions: Mapping[int, int]) -> None:
        self._consumer.assign([TopicPartition(self._topic, p, offset) for p, offset in positions.items()])

    def _start_patiently(self, stop: Event) -> bool:
        """Start to follow; wait while Kafka is away, or the mirror takes nothing. Returns False if stopped first."""
        while not stop.is_set():
            try:
                return self._start_following(stop)
            except (BrokerUnavailable, MirrorUnavailable) as error:
                self._wait_because(f"the mirror cannot be followed yet: {error}", stop)
        return False

    def _start_following(self, stop: Event) -> bool:
        """Fill a new mirror and follow the changelog from the mirror's positions. Returns False if stopped first."""
        if self._index is not None and not make_index(self._mirror, self._index, self.health, stop):
            return False
        changelog = topic_ids(self._clients.admin, [self._topic])[self._topic]
        ends = end_offsets(self._consumer, self._topic, self._partitions)
        positions = self._mirror.positions()
        if positions and (misfit := self._shards_misfit()):
            _log.warning("companion: the mirror is filled again: %s", misfit)
            positions = {}
        if misfit := self._misfit(positions, ends, changelog):
            _log.warning("companion: the mirror is filled again: topic %s %s", self._topic, misfit)
            positions = {}
        if positions.keys() != set(self._partitions):
            self._empty_mirror()
            positions = dict.fromkeys(self._partitions, 0)
            if self._settings.fill_from_store:
                filled_from = self._fill_from_store(stop)
                if filled_from is None:
                    return False
                # The stream writes the store first, so the scan has everything the changelog held before it.
                positions = filled_from
                # A record from the time of the scan may restore an older state for a moment: read past them all.
                ends = end_offsets(self._consumer, self._topic, self._partitions)
            self._mirror.note_changelog(changelog)
            if self._shards is not None:
                self._mirror.note_shards(self._shards.note)
            if not self._apply_patiently({}, positions, stop):
                return False
        self._mirror.note_changelog(changelog)
        self._to_reach = {number: end for number, end in ends.items() if positions[number] < end}
        self._read_to = dict(positions)
        self._progress.begin_anew()
        self.health.follow(len(self._to_reach), self._mirror.complete_to_ms() or 0)
        self._follow(positions)
        return True

    def _empty_mirror(self) -> None:
        if self._marks is not None:
            self._marks.begin_anew(mirror_is_empty=self._mirror.profile_count() == 0)
        self._mirror.clear()
        if self._shards is not None:
            # Until it is filled, it holds no card.
            self._mirror.note_shards(HeldShards(self._shards.cards.digest, frozenset()))

    def _shards_misfit(self) -> str:
        """Returns why the mirror's shards of cards are not those of the settings; empty if they are."""
        wanted = None if self._shards is None else self._shards.note
        return "" if self._mirror.shards() == wanted else "it holds other cards than [shards] says now"

    def _misfit(self, positions: Mapping[int, int], ends: Mapping[int, int], changelog: str) -> str:
        """Returns why the mirror's positions do not belong to the changelog as it is now; empty if they do."""
        known = self._mirror.changelog_id()
        if known and changelog and known != changelog:
            return f"was deleted and created again: its id was {known} and is {changelog}"
        for partition, position in positions.items():
            if position > ends.get(partition, position):
                return f"has lost records: {cut_of(partition, position, ends[partition])}"
        return ""

    def _fill_from_store(self, stop: Event) -> dict[int, int] | None:
        """Fill the mirror; returns where the changelog ended before that, or None if stopped.

        It waits for a store that is not there yet or is lost during the scan. It also waits while another profile set
        is swapped in: the changelog gets that set's profiles, and the mirror would keep profiles of the old set that
        nobody updates. The companion therefore looks at the live set before and after the scan.
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
                    self._mirror.note_profile_set(spoken(live.name))
                    return ends
                self._empty_mirror()
            except StoreUnavailable as error:
                self._empty_mirror()
                self._wait_because(f"the mirror waits for the profile store: {error}", stop)
        return None

    def _wait_because(self, obstacle: str, stop: Event) -> None:
        """Wait a moment before the next try, and log the obstacle if it is new."""
        if obstacle != self.health.obstacle:
            _log.info("companion: %s", obstacle)
        self.health.obstacle = obstacle
        self.health.note_round()
        stop.wait(_LOOK_AGAIN_S)

    def _scan_store(self, live: LiveSet, stop: Event) -> None:
        store = self._fill.open_store(live)
        self.health.obstacle = "the mirror is being filled from the store"
        self.health.note_round()
        started = time.monotonic()
        count = 0
        try:
            for entity in self._entities:
                with self._fill.watch_scan(f"{entity} profiles into the mirror") as progress:
                    for batch in in_batches(store.scan(entity, progress=progress), _FILL_BATCH):
                        profiles = dict(batch) if self._shards is None else self._shards.kept(batch)
                        if not self._apply_patiently(profiles, {}, stop) or stop.is_set():
                            return
                        self.health.note_round()
                        count += len(profiles)
        finally:
            store.close()
        _log.info("companion: mirror filled with %d profiles in %.1f s", count, time.monotonic() - started)

    def _apply(self, held: Consumed) -> None:
        changes = read_changes(
            held.records, self._decoder, self._entities, self._to_reach, self._read_to, held.left_out
        )
        if any(at <= self._read_to.get(partition, 0) for partition, at in changes.positions.items()):
            raise TemporaryFailure(
                f"topic {self._topic} goes on before what was read: the companion ends, and fills the mirror "
                "again at its next start"
            )
        read_to = self._read_to | changes.positions | {partition: end for (_, partition), end in held.ended.items()}
        to_reach = {
            partition: end
            for partition, end in self._to_reach.items()
            if read_to[partition] < end and (self._topic, partition) not in held.ended
        }
        complete_to_ms = self._complete_to_ms(changes, read_to)
        if to_reach or complete_to_ms == self.health.complete_to_ms:
            complete_to_ms = 0
        if held.records or complete_to_ms:
            if self._marks is not None:
                self._mark(self._marks, changes)
            self._mirror.apply(changes.profiles, changes.positions, complete_to_ms or None)
        self._to_reach, self._read_to = to_reach, read_to
        if complete_to_ms:
            self.health.complete_to_ms = complete_to_ms
        self.profiles_applied += len(changes.profiles)
        self._metrics.applied(changes, self._now_ms())

    def _mark(self, marks: OverlayMarks, changes: ProfileChanges) -> None:
        """Say which payments the profiles contain, before they are in the mirror."""
        if changes.unnamed:
            marks.note_unnamed()
        marks.note(changes.named)
        if erased := [key for key, state in changes.profiles.items() if state is None]:
            marks.erase(erased)
        self._metrics.marks(named=sum(map(len, changes.named)) // MARK_DTYPE.itemsize, unnamed=changes.unnamed)

    def _complete_to_ms(self, changes: ProfileChanges, read_to: Mapping[int, int]) -> int:
        """Returns how complete the mirror is with these changes; 0 while that is not known."""
        now_ms = self._now_ms()
        for claim in changes.claims:
            self._progress.claimed(claim, now_ms)
        return self._progress.complete_to_ms(read_to)


def make_index(mirror: MirrorWriter, index: IdentityIndex, health: CompanionHealth, stop: Event) -> bool:
    """Make a mirror's index by identity, if it is missing or outdated. Returns False if stopped first.

    Raises MirrorUnavailable, MirrorDamaged.
    """
    is_new = True
    for _ in mirror.keep_index(index):
        if is_new:
            what = f"made: {', '.join(index.entities)}" if index.entities else "removed"
            _log.info("companion: the mirror's index by identity is %s", what)
        is_new, health.obstacle = False, "the mirror's index by identity is being made"
        health.note_round()
        if stop.is_set():
            return False
    return True


def freshness_objectives_ms(settings: CompanionSettings, entities: Sequence[str]) -> dict[str, int]:
    """Returns the freshness objective of each kind of entity, in milliseconds. Raises Misconfigured."""
    try:
        return objectives_ms(entities, settings.freshness_objective_ms, settings.freshness_exceptions)
    except ValueError as error:
        raise Misconfigured(f"[companion] freshness_exceptions: {error}") from error
