"""The stream worker end to end on a real Kafka: payments a second, freshness, and where the time goes.

Measured: one worker process on one core, from `payments` to the changelog, three entities a payment, effectively once
as in production: decode, payment records, frames, profiles, store, changelog, flush, commit. Kafka and the process
that writes the payments share both cores with it. Stores: memory (a dictionary) and Aerospike's official client
against the test stand-in, or against a real server at PAYWARDEN_TEST_AEROSPIKE. Used for: the capacity of a worker,
and noticing when a stage becomes dearer. Throughput comes from a backlog. Freshness comes from an open loop at half
the required throughput, without its first quarter. Each run checks that every event was applied once.

    python -m perf.pipeline [--payments N] [--store memory,aerospike] [--json FILE]

Needs the services that `make services` fetches. Stages are wall time of the worker's one thread; "clients" is the CPU
time of the Kafka client's own threads in the same process.
"""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from paywarden.features.kernel import ATTRIBUTE_COUNT
from paywarden.features.profiles.engine import Events, FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.features.stores.aerospike.store import AerospikeSettings, AerospikeStore
from paywarden.features.stores.base import ProfileStore
from paywarden.features.stores.memory import MemoryStore
from paywarden.schemas.avro import LocalSchemaIds
from paywarden.streams.health.gc_tuning import settle_collection
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.profiles.pipeline import Pipeline
from paywarden.streams.profiles.settings import StreamSettings, stream_metrics
from perf.tools.aerospike import running_aerospike
from perf.tools.measuring import arguments_of, finish
from perf.tools.processes import alone
from perf.worlds.kafka_world import ENTITIES, new_topics
from perf.worlds.payments_load import PaymentMaker, send_all, send_at_rate
from tests.services.servers.kafka import KafkaServer

_FRESHNESS_SECONDS = 20.0
# Half of the payments a second that a worker must manage.
_FRESHNESS_RATE = 7_500
# Cards, and how many of them pay. The second has a hundred times as many entities with the same payments. In the third
# payments are spread so thin that almost no two of a batch share a profile.
_FEW_CARDS = (10_000, 10_000)
_POPULATIONS = {"": _FEW_CARDS, "_1m_cards": (1_000_000, 10_000), "_1m_cards_active": (1_000_000, 1_000_000)}
_STAGES = ("read", "decode", "keep", "route", "update", "changelog", "flush", "commit")
_DAY_MS = 86_400_000
# The benchmark's own Aerospike sets: it empties them at its start. A new prefix for each run would use up the names of
# sets, and a cluster has a bounded number of them.
_SET_PREFIX = "perf$"


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--payments", {"type": int, "default": 200_000, "help": "in the backlog of each run"}),
        ("--store", {"default": "memory,aerospike", "help": "which stores, with commas"}),
    )
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name, KafkaServer(Path(name) / "kafka") as kafka, ExitStack() as stack:
        bench = _Bench(kafka.bootstrap, Path(name))
        for store in arguments.store.split(","):
            if store == "aerospike":
                aerospike = stack.enter_context(running_aerospike(lambda found: found.startswith(_SET_PREFIX)))
                figures |= bench.throughput(store, _FEW_CARDS, arguments.payments, aerospike)
                continue
            for suffix, cards in _POPULATIONS.items():
                figures |= bench.throughput(f"{store}{suffix}", cards, arguments.payments)
            figures |= bench.freshness()
    finish(figures, arguments.json)


@dataclass(frozen=True)
class _Task:
    """The work of a worker's process. It makes the file `ready` once it has its partitions."""

    kafka: KafkaSettings
    aerospike: AerospikeSettings | None
    cards: int
    payments: int
    ready: Path


class _Bench:
    """Runs workers against one Kafka."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        self._bootstrap, self._folder = bootstrap, folder

    def throughput(
        self, name: str, cards: tuple[int, int], count: int, aerospike: AerospikeSettings | None = None
    ) -> dict[str, float]:
        """Measure a backlog. The profiles before it are as large for many cards as for few."""
        kafka = new_topics(self._bootstrap)
        maker = PaymentMaker(cards=cards[0], active=cards[1], seed=1)
        sent = send_all(kafka, maker.take(count, last_ms=time.time_ns() // 1_000_000, span_ms=_DAY_MS))
        report = alone(_work, _Task(kafka, aerospike, cards[0], sent, self._folder / "ready"))
        assert (report["payments"], report["events"]) == (sent, len(ENTITIES) * sent)
        assert report["replayed"] == 0
        of_each = 1e6 / sent
        figures = {
            f"payments_per_second_{name}": sent / report["seconds"],
            f"{name}_cpu_us_per_payment": report["cpu_seconds"] * of_each,
            f"{name}_clients_us_per_payment": (report["cpu_seconds"] - report["thread_seconds"]) * of_each,
            f"{name}_profiles_per_payment": report["profiles"] / sent,
        }
        for stage in _STAGES:
            figures[f"{name}_{stage}_us_per_payment"] = report["stages"].get(stage, 0.0) * of_each
        return figures

    def freshness(self) -> dict[str, float]:
        """Measure the age of payments in their profiles, in an open loop."""
        kafka, maker = new_topics(self._bootstrap), PaymentMaker(cards=_FEW_CARDS[0], seed=2)
        ready = self._folder / "ready-for-load"
        task = _Task(kafka, None, maker.cards, int(_FRESHNESS_RATE * (_FRESHNESS_SECONDS - 1)), ready)
        with ThreadPoolExecutor(1) as pool:
            working: Future[Any] = pool.submit(alone, _work, task)
            # Joining the group takes seconds, and is another figure.
            while not ready.exists():
                assert not working.done(), working.exception()
                time.sleep(0.05)
            send_at_rate(kafka, maker, rate=_FRESHNESS_RATE, seconds=_FRESHNESS_SECONDS)
            report = working.result()
        assert report["replayed"] == 0
        ages = np.array(report["ages_ms"])
        # The first quarter is the start: fetches begin, caches fill, and the worker catches up.
        ages = ages[len(ages) // 4 :]
        quantiles = {"p50": 50, "p99": 99, "p999": 99.9, "max": 100}
        figures = {f"freshness_{name}_ms": float(np.percentile(ages, share)) for name, share in quantiles.items()}
        return figures | {"freshness_rate": _FRESHNESS_RATE}


# The worker's process


def _work(task: _Task) -> dict[str, Any]:
    """Run a worker until it has applied all payments; return its report."""
    os.sched_setaffinity(0, {(os.cpu_count() or 1) - 1})
    engine = FeatureEngine()
    engine.warm_up()
    registry = CollectorRegistry()
    settings = StreamSettings(group_id=f"{task.kafka.topic_prefix}stream")
    pipeline = Pipeline(
        clients=KafkaClients.of(task.kafka),
        settings=settings,
        store=_store(task, engine),
        engine=engine,
        rates=load_rates(),
        ids=LocalSchemaIds(),
        metrics=stream_metrics(settings, engine.plan.entity_names, registry),
    )
    watch = _Watch(pipeline, registry, task.payments)
    settle_collection()
    Thread(target=_announce, args=(pipeline, task.ready), daemon=True).start()
    pipeline.run(watch.stop)
    return watch.report()


def _announce(pipeline: Pipeline, ready: Path) -> None:
    while pipeline.problems():
        time.sleep(0.05)
    ready.touch()


class _Watch:
    """Sees each batch of profiles as the metrics do. Starts the clock at the first, stops the worker after the last."""

    def __init__(self, pipeline: Pipeline, registry: CollectorRegistry, wanted: int) -> None:
        self.stop = Event()
        self._registry, self._wanted, self._events = registry, wanted, 0
        self._ages: list[int] = []
        self._started: tuple[float, float, float] | None = None
        count, take = pipeline.metrics.applied, pipeline._consumer.take

        def counted(entity: str, **figures: Any) -> None:
            count(entity, **figures)
            self._events += figures["events"]
            self._ages += figures["ages_ms"].tolist()
            if self._events >= len(ENTITIES) * self._wanted:
                self.stop.set()

        def taken(count_max: int, timeout_s: float, first_s: float | None = None) -> Any:
            consumed = take(count_max, timeout_s, first_s)
            if self._started is None and consumed.records:
                self._started = (time.perf_counter(), time.process_time(), time.thread_time())
            return consumed

        pipeline.metrics.applied = counted  # type: ignore[method-assign]
        pipeline._consumer.take = taken  # type: ignore[method-assign]

    def report(self) -> dict[str, Any]:
        assert self._started is not None
        seconds, cpu, thread = self._started

        def total(name: str, **labels: str) -> float:
            return self._registry.get_sample_value(f"paywarden_stream_{name}", labels) or 0.0

        return {
            "payments": int(total("payments_total")),
            "events": self._events,
            "replayed": sum(total("replayed_total", entity=entity) for entity in ENTITIES),
            "profiles": sum(total("profiles_written_total", entity=entity) for entity in ENTITIES),
            "seconds": time.perf_counter() - seconds,
            "cpu_seconds": time.process_time() - cpu,
            "thread_seconds": time.thread_time() - thread,
            "stages": {stage: total("stage_seconds_sum", stage=stage) for stage in _STAGES},
            "ages_ms": self._ages[-400_000:],
        }


def _store(task: _Task, engine: FeatureEngine) -> ProfileStore:
    """Return an empty Aerospike, or a dictionary with a profile of ten payments for every possible entity."""
    if task.aerospike is not None:
        return AerospikeStore(task.aerospike, set_prefix=_SET_PREFIX)
    store = MemoryStore()
    for entity, keys in enumerate(PaymentMaker(cards=task.cards, seed=0).keys()):
        store.write(dict.fromkeys(keys, _profile(engine, entity)), ttl_s=0)
    return store


def _profile(engine: FeatureEngine, entity: int) -> bytes:
    count, now_ms = 10, time.time_ns() // 1_000_000
    numbers, ones = np.arange(count), np.ones(count, dtype=np.int64)
    attributes = np.ones((count, ATTRIBUTE_COUNT), dtype=np.int64)
    attributes[:, 0] = now_ms - _DAY_MS - (count - numbers) * 3 * _DAY_MS // 2
    attributes[:, 1:3] = 4999
    events = Events(np.array([0, count]), np.zeros(count, np.uint8), numbers, ones, -ones, -ones, -ones)
    return engine.apply(entity, events, attributes, [None], engine.new_slots(0)).states[0]


if __name__ == "__main__":
    main()
