"""The companion's metrics. It counts once a batch or once a second; a scrape computes the gauges of age."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge

from paywarden.streams.companion.changelog_reader import ProfileChanges
from paywarden.streams.companion.companion_health import CompanionHealth
from paywarden.streams.kafka.client import PartitionId
from paywarden.streams.profiles.profile_metrics import AgeHistogram


class CompanionMetrics:
    """The metrics of one companion. Labels are bounded: entities, partitions, and the host's scoring workers."""

    def __init__(self, registry: CollectorRegistry, objectives_ms: Mapping[str, int], health: CompanionHealth) -> None:
        """`objectives_ms`: for each kind of entity, the age in ms at which an event should be in the mirror."""
        self._objectives_ms = objectives_ms

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"paywarden_companion_{name}", documentation, labels, registry=registry)

        def gauge(name: str, documentation: str, *labels: str) -> Gauge:
            return Gauge(f"paywarden_companion_{name}", documentation, labels, registry=registry)

        self._age = AgeHistogram(
            "paywarden_companion_event_to_mirror_seconds",
            "From the arrival on Kafka of the newest payment or outcome in a state until the state is in the mirror. "
            "Records that the changelog held when the companion started do not count.",
            "entity",
            objectives_ms,
        )
        registry.register(self._age)
        self._over = counter("over_objective", "States in the mirror later than the freshness objective.", "entity")
        self._applied = counter("profiles_applied", "States put into the mirror from the changelog.")
        self._erased = counter("profiles_erased", "Profiles erased from the mirror by the changelog.")
        self._unreadable = counter("unreadable_records", "Unreadable records of the changelog.")
        self._named = counter("payments_named", "Payments that the changelog named as contained in a profile.")
        self._unnamed = counter(
            "changes_unnamed", "Changes whose payments the changelog did not name: the overlay waits for two lifetimes."
        )
        self._skipped = counter(
            "profiles_skipped", "States of the changelog left out, since other hosts hold their cards."
        )
        self._shards = gauge("shards", "The number of shards of cards that this host holds; 0 without [shards].")
        self._table = gauge("shard_table_info", "1. The table that says which host holds which shards.", "table")
        self._lag = gauge("changelog_lag", "Records of the changelog that the mirror does not have yet.", "partition")
        self._shipped = counter("decisions_shipped", "Decisions that the broker has acknowledged.")
        self._under_way = gauge("decisions_under_way", "Decisions sent that the broker has yet to acknowledge.")
        self._waiting = gauge("outbox_waiting_bytes", "Decisions in a worker's outbox that are not shipped.", "worker")
        self._set_aside_count = counter(
            "outbox_set_aside", "Records and stretches of damage that an outbox held and nobody can read.", "worker"
        )
        self._set_aside = gauge("outbox_set_aside_entries", "Entries of an outbox that are set aside.", "worker")
        self._set_aside_bytes = gauge("outbox_set_aside_bytes", "Bytes of an outbox that are set aside.", "worker")
        self._mirror_bytes = gauge("mirror_bytes", "Bytes used of the mirror's limit; with all of them it is full.")
        self._mirror_limit = gauge("mirror_limit_bytes", "The size in bytes that the mirror may grow to.")
        gauge("mirror_refuses", "Whether the mirror takes no changes: it is full or fails.").set_function(
            lambda: bool(health.mirror_trouble)
        )
        mirror_age = gauge("mirror_age_seconds", "The mirror's age in seconds; NaN while it is not complete.")
        mirror_age.set_function(lambda: math.nan if (age_s := health.mirror_age_s()) is None else age_s)
        gauge("kafka_up", "Whether Kafka answers: 0 after six seconds without an answer.").set_function(
            lambda: not health.kafka_trouble
        )
        gauge("ready", "Whether /readyz says 200.").set_function(lambda: not health.problems())
        objective = gauge("freshness_objective_seconds", "The freshness objective.", "entity")
        for entity, objective_ms in objectives_ms.items():
            objective.labels(entity).set(objective_ms / 1000)
            self._over.labels(entity)
        self._shipped_before = 0
        self._set_aside_before: dict[str, int] = {}

    def applied(self, changes: ProfileChanges, now_ms: int) -> None:
        """Count changes that are in the mirror now."""
        erased = changes.erased_count()
        self._applied.inc(len(changes.profiles) - erased)
        self._erased.inc(erased)
        self._unreadable.inc(changes.unreadable)
        self._skipped.inc(changes.skipped)
        for entity, arrived_ms in changes.arrived_ms.items():
            if arrived_ms:
                ages_ms = now_ms - np.array(arrived_ms, dtype=np.int64)
                self._over.labels(entity).inc(int((ages_ms > self._objectives_ms[entity]).sum()))
                self._age.observe(entity, ages_ms / 1000.0)

    def marks(self, *, named: int, unnamed: int) -> None:
        """Count payments that are marked for the overlay, and changes that do not name theirs."""
        self._named.inc(named)
        self._unnamed.inc(unnamed)

    def shards(self, digest: str, count: int) -> None:
        """Name the table of shards, which is the same on all hosts, and how many this host holds."""
        self._table.labels(digest).set(1)
        self._shards.set(count)

    def lag(self, ends: Mapping[PartitionId, int], positions: Mapping[PartitionId, int]) -> None:
        """Set the lag from where the partitions of the changelog end and how far they are read."""
        for place, end in ends.items():
            self._lag.labels(str(place[1])).set(max(0, end - positions.get(place, 0)))

    def shipping(
        self,
        *,
        shipped: int,
        under_way: int,
        waiting_bytes: Mapping[str, int],
        set_aside: Mapping[str, tuple[int, int]],
        set_aside_counts: Mapping[str, int],
    ) -> None:
        """Set the figures of shipping. `shipped` and `set_aside_counts` count since the start; mappings are by worker.

        `set_aside`: the entries and bytes that are set aside now.
        """
        self._shipped.inc(shipped - self._shipped_before)
        self._shipped_before = shipped
        self._under_way.set(under_way)
        for worker, count in waiting_bytes.items():
            self._waiting.labels(worker).set(count)
        for worker, (entries, size) in set_aside.items():
            self._set_aside.labels(worker).set(entries)
            self._set_aside_bytes.labels(worker).set(size)
        for worker, count in set_aside_counts.items():
            self._set_aside_count.labels(worker).inc(count - self._set_aside_before.get(worker, 0))
            self._set_aside_before[worker] = count

    def mirror(self, used_bytes: int, limit_bytes: int) -> None:
        """Set the mirror's size and its limit."""
        self._mirror_bytes.set(used_bytes)
        self._mirror_limit.set(limit_bytes)
