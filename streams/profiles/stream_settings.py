"""The settings of the stream worker, and options for tests and for profile sets that are not live."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import TIME_BOUND_MS_MAX, TimeBounds, require_between
from paywarden.schemas.settings import internal
from paywarden.streams.kafka.stalls.end_offsets import ASK_EVERY_S
from paywarden.streams.profiles.decoder import TIMES
from paywarden.streams.profiles.guards.broker_clock import BrokerClock
from paywarden.streams.profiles.profile_metrics import StreamMetrics, objectives_ms


@dataclass(frozen=True)
class StreamSettings:
    """The settings `[stream]`."""

    group_id: str = "paywarden-stream"
    # A batch has at most this many records. Once the worker has the first, it waits at most this long for more.
    batch_max: int = internal(2000)
    batch_wait_ms: int = internal(10)
    # How often it is found out how complete the profiles are.
    progress_every_ms: int = 500
    # The group notices a dead worker after this long and gives its partitions to others. Kafka allows 6 s and more.
    session_timeout_ms: int = internal(10_000)
    # How late an outcome may come. After that the record of its payment expires from the store.
    outcome_days: int = 120
    flush_timeout_s: int = internal(60)
    # The worker ends if its client delivers nothing for this long although the broker has more records
    # (streams/kafka/stalls/stall_detector.py).
    stall_timeout_s: int = internal(60)
    # The longest time from a payment's arrival on Kafka to its profiles. Exceptions have the form "merchant=5000".
    # The broker may hold records back for a part of the shortest objective, to give more together (`gather_ms_of`).
    freshness_objective_ms: int = 1000
    freshness_exceptions: tuple[str, ...] = ()
    # The worker stops if more than this share of the last `dead_letter_window` records are dead letters.
    dead_letter_window: int = internal(1000)
    dead_letter_share_max: float = 0.2
    # The address of /livez, /readyz and /metrics. Port 0 takes a free port; the first line on stdout tells it.
    http_host: str = "127.0.0.1"
    http_port: int = 0
    # The longest time a stop may take, the batch in flight included. It is less than the 30 s that Kubernetes grants.
    stop_timeout_s: int = internal(20)
    # How far a payment's own time may lie before and after its arrival on Kafka (streams/profiles/decoder.py).
    past_ms_max: int = TIMES.past_ms_max
    future_ms_max: int = TIMES.future_ms_max

    def __post_init__(self) -> None:
        for name in ("past_ms_max", "future_ms_max"):
            require_between("stream", name, getattr(self, name), 0, TIME_BOUND_MS_MAX)

    @property
    def times(self) -> TimeBounds:
        """Returns the bounds for a payment's own time."""
        return TimeBounds(self.past_ms_max, self.future_ms_max)

    @property
    def agents_group(self) -> str:
        """Returns the consumer group of the Faust agents."""
        return f"{self.group_id}-faust"

    @property
    def counts_group(self) -> str:
        """Returns the consumer group that counts decisions and joins outcomes."""
        return f"{self.group_id}-counts"

    def group_of(self, profile_set: str) -> str:
        """Returns the consumer group of a profile set's workers: its committed offsets are part of the set."""
        return f"{self.group_id}-{profile_set}" if profile_set else self.group_id


@dataclass(frozen=True)
class PipelineTiming:
    """The worker's clock and its pauses. Tests hand in shorter ones."""

    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    # The pause before the first retry of a store that is down; each further pause is twice as long, up to 5 s.
    retry_first_s: float = 0.1
    # How often the worker asks the broker whether the payments that outcomes wait for are in their profiles.
    ask_committed_every_s: float = 0.2
    # Outcomes wait this long for a batch of payments to go with. A batch of their own costs as much, and they come days
    # after their payments.
    outcomes_alone_after_s: float = 0.5
    # How often the worker asks the broker where its partitions end.
    ask_ends_every_s: float = ASK_EVERY_S
    # How often the worker asks the broker for its time.
    ask_time_every_s: float = 10.0


@dataclass(frozen=True)
class PipelineOptions:
    """Options of a worker's pipeline. The default is a worker of the first profile set, which is live."""

    # The profile set that `store` is. Each has repartition topics and a consumer group of its own.
    profile_set: str = ""
    # False for a set that is not live: nothing goes to the changelog and the dead letters.
    publish: bool = True
    # True: read no payments and outcomes, only events on their way to profiles, and end when all are in.
    drain: bool = False
    # True: the changelog says which payments a change adds to a profile, for the overlays of scoring hosts.
    names_payments: bool = False
    # The clock that a process shares among its pipelines and agents. None: one by `timing`.
    clock: BrokerClock | None = None
    timing: PipelineTiming = field(default_factory=PipelineTiming)


def freshness_objectives_ms(settings: StreamSettings, entities: Sequence[str]) -> dict[str, int]:
    """Returns the freshness objective of each kind of entity, in milliseconds. Raises Misconfigured."""
    try:
        return objectives_ms(entities, settings.freshness_objective_ms, settings.freshness_exceptions)
    except ValueError as error:
        raise Misconfigured(f"[stream] freshness_exceptions: {error}") from error


def stream_metrics(settings: StreamSettings, entities: Sequence[str], registry: CollectorRegistry) -> StreamMetrics:
    """Returns the metrics of a process, shared by all pipelines it runs in turn. Raises Misconfigured."""
    return StreamMetrics(registry, freshness_objectives_ms(settings, entities))
