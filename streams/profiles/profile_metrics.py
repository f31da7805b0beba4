"""The stream worker's metrics. They are counted once a batch and cost nothing for each event."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from paywarden.streams.kafka.client import PartitionId
from paywarden.streams.profiles.events import LATER

# In seconds: from a fetch that does not wait to a pipeline that was down for a quarter of an hour.
AGE_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)
# Each answer of the broker costs both sides work, even an empty one: at most three a second for each client at rest.
GATHER_MS_MAX = 350
_STAGE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class AgeHistogram(Collector):
    """A histogram of ages by one label. It takes a whole batch at a time: a thousand ages cost as much as one."""

    def __init__(self, name: str, documentation: str, label: str, values: Iterable[str]) -> None:
        """`values` are all values that the label can have."""
        self._name, self._documentation, self._label = name, documentation, label
        self._edges = np.array(AGE_BUCKETS_S)
        self._counts = {value: np.zeros(len(AGE_BUCKETS_S) + 1, dtype=np.int64) for value in values}
        self._sums = dict.fromkeys(self._counts, 0.0)
        self._lock = Lock()

    def observe(self, value: str, ages_s: NDArray[np.float64]) -> None:
        """Add ages in seconds, shape (events,). A negative age, from clocks that differ, counts as 0."""
        ages_s = np.maximum(ages_s, 0.0)
        # A bucket counts the ages up to its edge, edge included.
        places = np.searchsorted(self._edges, ages_s, side="left")
        with self._lock:
            self._counts[value] += np.bincount(places, minlength=len(self._edges) + 1)
            self._sums[value] += float(ages_s.sum())

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """See prometheus_client.registry.Collector."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=[self._label])
        bounds = [*map(str, AGE_BUCKETS_S), "+Inf"]
        with self._lock:
            for value, counts in self._counts.items():
                buckets = list(zip(bounds, np.cumsum(counts).astype(float).tolist(), strict=True))
                family.add_metric([value], buckets, self._sums[value])
        yield family


class StreamMetrics:
    """The metrics of one stream worker. Labels are bounded: existing entities, topics and partitions."""

    def __init__(self, registry: CollectorRegistry, objectives_ms: Mapping[str, int]) -> None:
        """`objectives_ms`: for each kind of entity, the age in ms at which a payment should be in its profiles."""
        self._objectives_ms = objectives_ms
        entities = tuple(objectives_ms)

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"paywarden_stream_{name}", documentation, labels, registry=registry)

        def gauge(name: str, documentation: str, *labels: str) -> Gauge:
            return Gauge(f"paywarden_stream_{name}", documentation, labels, registry=registry)

        self.payments = counter("payments", "Payments processed, replays included.")
        self.unknown_rates = counter("payments_unknown_rate", "Payments whose currency has no exchange rate.")
        self.outcomes = counter("outcomes", "Outcomes processed, replays included.")
        self.duplicates = counter("duplicates", "Payments dropped: another record had their payment_id.")
        self.later = counter("later_records", "Later records of known payments, by what is new in them.", "kind")
        self.batches = counter("batches", "Batches committed.")
        self.abandoned = counter("abandoned_batches", "Batches dropped because a partition moved on; read again.")
        self.conflicts = counter("store_conflicts", "Writes refused because another worker had written meanwhile.")
        self.retries = counter("store_retries", "Times a batch had to wait for the store.")
        self.dead_letters = counter("dead_letters", "Records set aside, by topic.", "topic")
        self.expired = counter("expired_records", "Records that expired on Kafka before they were read.", "topic")
        self._events = counter("profile_events", "Events applied to profiles, by kind of entity.", "entity")
        self._replayed = counter("replayed", "Events that a profile contained already.", "entity")
        self._late = counter("late", "Events too late for some of a profile's tiles.", "entity")
        self._profiles = counter("profiles_written", "Profiles written.", "entity")
        self._set_aside = counter("profiles_set_aside", "Profiles set aside because they cannot be read.", "entity")
        self._waiting = counter("events_set_aside", "Events that wait for a profile that cannot be read.", "entity")
        self._restored = counter("profiles_restored", "Profiles that could be read again, with their events.", "entity")
        self._over = counter("over_objective", "Payments in a profile later than the freshness objective.", "entity")
        self.store_up = gauge("store_up", "1 while the store takes batches, 0 while one waits for it.")
        self.clock_ahead = gauge(
            "clock_ahead_seconds", "How far this host's clock is ahead of the broker's; negative: behind it."
        )
        self.waiting_outcomes = gauge("waiting_outcomes", "Outcomes that wait for their payments.")
        self._lag = gauge("consumer_lag", "Records behind the last one taken.", "topic", "partition")
        self._objective = gauge("freshness_objective_seconds", "The freshness objective.", "entity")
        self.stage_seconds = Histogram(
            "paywarden_stream_stage_seconds",
            "Time of a batch in each stage.",
            ("stage",),
            buckets=_STAGE_BUCKETS_S,
            registry=registry,
        )
        self._age = AgeHistogram(
            "paywarden_stream_event_to_store_seconds",
            "From a payment's arrival on Kafka until the store has acknowledged the profile.",
            "entity",
            entities,
        )
        registry.register(self._age)
        self._lag_places: set[PartitionId] = set()
        for entity, objective_ms in objectives_ms.items():
            self._objective.labels(entity).set(objective_ms / 1000)
            for by_entity in (self._events, self._replayed, self._late, self._profiles, self._over):
                by_entity.labels(entity)
            for by_entity in (self._set_aside, self._waiting, self._restored):
                by_entity.labels(entity)
        for kind in LATER:
            self.later.labels(kind)
        self.store_up.set(1)

    def applied(
        self, entity: str, *, events: int, profiles: int, replayed: int, late: int, ages_ms: NDArray[np.int64]
    ) -> None:
        """Count a batch of one kind of entity that is in the store. `ages_ms`: ages of payments, shape (payments,)."""
        self._events.labels(entity).inc(events)
        self._profiles.labels(entity).inc(profiles)
        self._replayed.labels(entity).inc(replayed)
        self._late.labels(entity).inc(late)
        self._over.labels(entity).inc(int((ages_ms > self._objectives_ms[entity]).sum()))
        self._age.observe(entity, ages_ms / 1000.0)

    def set_aside(self, entity: str, *, profiles: int, events: int, restored: int) -> None:
        """Count profiles that were set aside, events that wait for such profiles, and profiles that came back."""
        self._set_aside.labels(entity).inc(profiles)
        self._waiting.labels(entity).inc(events)
        self._restored.labels(entity).inc(restored)

    def lag(self, lag: Mapping[PartitionId, int]) -> None:
        """Set this worker's lag by partition; partitions that it no longer has are removed."""
        for place in self._lag_places - lag.keys():
            self._lag.remove(place[0], str(place[1]))
        for (topic, partition), records in lag.items():
            self._lag.labels(topic, str(partition)).set(records)
        self._lag_places = set(lag)


def objectives_ms(entities: Sequence[str], general_ms: int, exceptions: Sequence[str]) -> dict[str, int]:
    """Returns the freshness objective of each kind of entity in ms. An exception looks like `merchant=5000`.

    Raises ValueError, naming the exception that is wrong.
    """
    objectives = dict.fromkeys(entities, general_ms)
    for exception in exceptions:
        entity, _, text = exception.partition("=")
        if entity not in objectives or not text.isdecimal() or int(text) == 0:
            raise ValueError(f"wanted ENTITY=MILLISECONDS with one of {', '.join(entities)}, got {exception!r}")
        objectives[entity] = int(text)
    return objectives


def gather_ms_of(objectives_ms: Mapping[str, int]) -> int:
    """Returns how long the broker may hold records back to hand out more of them together, in milliseconds.

    It is a third of the shortest objective. An event is read twice on its way to the store, unless the worker that
    sends it has the profile, too, and once more on its way to a mirror. Waits therefore take at most two thirds of each
    objective.
    """
    return max(1, min(GATHER_MS_MAX, min(objectives_ms.values(), default=0) // 3))
