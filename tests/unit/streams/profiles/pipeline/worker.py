"""A stream worker without a broker: clients in memory, and a store that can be down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from threading import Event, Timer
from typing import Any

from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.features.stores.base import StoreConflict, StoreHealth, TtlS, Versioned
from paywarden.features.stores.memory import MemoryStore
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.errors import BrokerUnavailable, StoreUnavailable
from paywarden.schemas.payment_fields import TIME_BOUND_MS_MAX
from paywarden.streams.profiles.pipeline import Pipeline
from paywarden.streams.profiles.repartition import decode_frame
from paywarden.streams.profiles.stream_settings import PipelineOptions, PipelineTiming, StreamSettings
from tests.fakes.kafka import FakeBroker, FakeConsumer, Place, clients_of
from tests.worlds.stream.packed import without_sources
from tests.worlds.stream.topics import batch_profiles, small_world

P0, P1, O0 = ("payments", 0), ("payments", 1), ("outcomes", 0)
FRAMES: tuple[Place, ...] = (("repartition-card", 0), ("repartition-merchant", 0), ("repartition-device", 0))
TIMING = PipelineTiming(
    retry_first_s=0.001, ask_committed_every_s=0.0, outcomes_alone_after_s=0.0, ask_time_every_s=0.0
)
# The arrival of records on Kafka, and the worker's clock ten minutes later.
KAFKA_MS, NOW_MS = 1_800_000_000_000, 1_800_000_600_000
HOUR_MS = 3_600_000


class FakeSender:
    """Queues records. `flush` gives them to the broker in order, unless the broker is down."""

    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self.queued: list[tuple[str, int, bytes | None, bytes | None]] = []
        self.sent: list[tuple[str, int, bytes | None, bytes | None]] = []
        self.is_broker_away = False
        # Whether it tells the offsets of frames, as the real one does.
        self.tells = False
        # Runs before the next flush.
        self.meanwhile: Callable[[], object] = lambda: None
        # The time of the broker; 0: it says none.
        self.stamp_ms = 0
        self._wanting: list[Callable[[int, int], object]] = []

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None,
        partition: int = -1,
        on_sent: Callable[[int, int], object] = lambda *_: None,
        **_: object,
    ) -> None:
        self.queued.append((topic, max(0, partition), key, value))
        if topic.startswith("repartition-"):
            self._wanting.append(on_sent if self.tells else lambda *_: None)

    def poll(self) -> None:
        pass

    def flush(self, timeout_s: float) -> None:
        del timeout_s
        if self.is_broker_away:
            raise BrokerUnavailable("away")
        self.meanwhile()
        wanting, self._wanting = iter(self._wanting), []
        for topic, partition, _, value in self.queued:
            if topic.startswith("repartition-"):
                offset = self._broker.append((topic, partition), value, NOW_MS)
                next(wanting, lambda *_: None)(offset, self.stamp_ms)
        self.sent += self.queued
        self.queued = []

    def frames(self) -> list[int]:
        """Returns the event count of each frame for cards, queued or sent."""
        values = [value for topic, _, _, value in self.sent + self.queued if topic == "repartition-card"]
        return [len(decode_frame(value, 1).keys) for value in values]


class Store(MemoryStore):
    """A store that can be down or in conflict. At each refused call it runs the next of `meanwhile`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = False
        self.why_hidden = ""
        self.meanwhile: list[Callable[[], object]] = []
        self.conflicts = 0
        self.calls = 0

    def read_versioned(self, keys: Sequence[bytes]) -> list[Versioned]:
        self._check()
        return super().read_versioned(keys)

    def write(self, values: Mapping[bytes, bytes], *, ttl_s: TtlS, versions: Mapping[bytes, int] | None = None) -> None:
        self._check()
        if self.conflicts:
            self.conflicts -= 1
            raise StoreConflict("another was faster")
        super().write(values, ttl_s=ttl_s, versions=versions)

    def health(self) -> StoreHealth:
        return StoreHealth("away" if self.is_away else "", self.why_hidden)

    def _check(self) -> None:
        self.calls += 1
        if self.is_away:
            if self.meanwhile:
                self.meanwhile.pop(0)()
            raise StoreUnavailable("away")


@cache
def engine() -> FeatureEngine:
    return FeatureEngine()


@cache
def world() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    payments, outcomes = small_world()
    return payments.slice(0, 60).to_pylist(), outcomes.to_pylist()


class Worker:
    """A pipeline with its broker, clients and store in memory."""

    def __init__(
        self, *places: Place, batch_max: int = 100, timing: PipelineTiming = TIMING, progress_every_ms: int = 0
    ) -> None:
        self.broker = FakeBroker(partition_counts={"payments": 2})
        self.client = FakeConsumer(self.broker)
        self.clients = [self.client, FakeConsumer(self.broker)]
        self.sender = FakeSender(self.broker)
        self.store = Store()
        self.stop = Event()
        self.now_ms = NOW_MS
        ids = LocalSchemaIds()
        self._payments = Encoder("payments", ids.id_of("payments"))
        self._outcomes = Encoder("outcomes", ids.id_of("outcomes"))
        self.pipeline = Pipeline(
            clients=clients_of(self.broker, consumers=self.clients, sender=self.sender),
            # The payments are years older than their records.
            settings=StreamSettings(
                batch_max=batch_max,
                batch_wait_ms=1,
                progress_every_ms=progress_every_ms,
                stall_timeout_s=20,
                past_ms_max=TIME_BOUND_MS_MAX,
            ),
            store=self.store,
            engine=engine(),
            rates=load_rates(),
            ids=ids,
            options=PipelineOptions(timing=replace(timing, now_ms=lambda: self.now_ms)),
        )
        self.pipeline.join()
        self.client.will_assign(*(places or (P0, P1, O0, *FRAMES)))

    def end(self, topic: str, partition: int) -> int:
        return self.broker.end((topic, partition))

    def pay(self, rows: Sequence[Mapping[str, Any]], place: Place = P0) -> None:
        for number, row in enumerate(rows):
            self.broker.append(place, self._payments.encode(dict(row)), KAFKA_MS + number)

    def report(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            self.broker.append(O0, self._outcomes.encode(dict(row)), KAFKA_MS)

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.pipeline.step(self.stop)

    def step_while_store_is_away(self, *, lost: Place | None = None) -> None:
        """Run a step while the store is down; a stop ends it, or the loss of a partition."""
        self.store.is_away = True
        if lost is not None:
            self.step_revoking(lost)
        else:
            timer = Timer(0.05, self.stop.set)
            timer.start()
            self.step()
            timer.join()
            self.stop.clear()

    def step_revoking(self, lost: Place) -> None:
        consume = self.client.consume

        def consume_then_revoke(count_max: int, timeout: float) -> Any:
            found = consume(count_max, timeout)
            if count_max > 1:
                # The worker has taken its batch.
                self.client.consume = consume  # type: ignore[method-assign]
                self.client.will_revoke(lost)
            return found

        self.client.consume = consume_then_revoke  # type: ignore[method-assign]
        self.step()

    def profiles(self) -> dict[bytes, bytes]:
        return {key: value for entity in engine().plan.entity_names for key, value in self.store.scan(entity)}


def profiles_of(count: int) -> dict[bytes, bytes]:
    """Returns the profiles of the first `count` payments, in the form of `Worker.profiles`."""
    payments, outcomes = small_world()
    return in_essence(batch_profiles(payments.slice(0, count), outcomes.slice(0, 0)))


def in_essence(profiles: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    return {key: without_sources(value) for key, value in profiles.items()}


def assert_profiles_are_of(worker: Worker, count: int) -> None:
    assert in_essence(worker.profiles()) == profiles_of(count)


def outcomes_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    wanted = {row["payment_id"] for row in rows}
    return [row for row in world()[1] if row["payment_id"] in wanted]
