"""The stream worker end to end on a real Kafka: payments a second, freshness, and where the time goes.

Measured: one worker process on one core, from `payments` to the changelog, three entities a payment, effectively once
as in production: decode, payment records, frames, profiles, store, changelog, flush, commit. Kafka and the process
that writes the payments share both cores with it. Stores: memory (a dictionary) and Aerospike's official client
against the test stand-in, or against a real server at PAYWARDEN_TEST_AEROSPIKE. Used for: the capacity of a worker,
and noticing when a stage becomes dearer. Throughput comes from a backlog. Freshness comes from an open loop at half
the required throughput, without its first quarter. Each run checks that every event was applied once.

    python -m perf.pipeline [--payments N] [--store memory,aerospike] [--json FILE]

Needs the services that `make services` fetches. Stages are wall time of the worker's one thread, and as `…_cpu_us…` its
CPU time, which a busy machine does not stretch; "clients" is the CPU time of the Kafka client's own threads in the same
process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
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
from paywarden.streams.kafka.topics import TopicSettings, create_topics
from paywarden.streams.profiles.pipeline import Pipeline
from paywarden.streams.profiles.settings import StreamSettings, stream_metrics
from perf.tools.counted_store import truncate_sets
from perf.worlds.payments_load import PaymentMaker, send_all, send_at_rate
from tests.services.servers.kafka import KafkaServer
from tests.standin.aerospike_server import StandIn

_ENTITIES = ("card", "merchant", "device")
_FRESHNESS_SECONDS = 20.0
_TARGETS = {"memory": 15_000, "aerospike": 6_000}
# Cards, and how many of them pay. The second has a hundred times as many entities with the same payments. In the third
# payments are spread so thin that almost no two of a batch share a profile.
_POPULATIONS = {"": (10_000, 10_000), "_1m_cards": (1_000_000, 10_000), "_1m_cards_active": (1_000_000, 1_000_000)}
_STAGES = ("read", "decode", "keep", "route", "update", "changelog", "flush", "commit")
_DAY_MS = 86_400_000
# The benchmark's own Aerospike sets: it empties them at its start. A new prefix for each run would use up the names of
# sets, and a cluster has a bounded number of them.
_SET_PREFIX = "perf$"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--payments", type=int, default=200_000, help="in the backlog of each run")
    parser.add_argument("--store", default="memory,aerospike", help="which stores, with commas")
    parser.add_argument("--json", help="also write the figures there")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        _work(json.loads(arguments.worker))
        return
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, KafkaServer(Path(folder)) as kafka:
        for store in arguments.store.split(","):
            with _store_address(store) as address:
                for suffix, (cards, active) in _POPULATIONS.items() if store == "memory" else [("", (10_000, 10_000))]:
                    report = _throughput(kafka.bootstrap, store, address, cards, active, arguments.payments)
                    figures |= _figures(f"{store}{suffix}", report)
                if store == "memory":
                    figures |= _freshness(kafka.bootstrap, store, address)
    for name, value in figures.items():
        print(f"{name:<48} {value:>14,.2f}")
    _write(arguments.json, figures)


def _write(path: str | None, figures: dict[str, float]) -> None:
    if path:
        Path(path).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _figures(name: str, report: dict[str, Any]) -> dict[str, float]:
    payments = report["payments"]
    stages = {f"{name}_{stage}_us_per_payment": report["stages"].get(stage, 0.0) / payments * 1e6 for stage in _STAGES}
    cpu = {f"{name}_{stage}_cpu_us_per_payment": report["cpu"].get(stage, 0.0) / payments * 1e6 for stage in _STAGES}
    return {
        f"payments_per_second_{name}": payments / report["seconds"],
        f"{name}_cpu_us_per_payment": report["cpu_seconds"] / payments * 1e6,
        f"{name}_clients_us_per_payment": (report["cpu_seconds"] - report["thread_seconds"]) / payments * 1e6,
        f"{name}_profiles_per_payment": report["profiles"] / payments,
        **stages,
        **cpu,
    }


def _throughput(bootstrap: str, store: str, address: str, cards: int, active: int, count: int) -> dict[str, Any]:
    """Measure a backlog. The profiles before it are as large for many cards as for few."""
    kafka = _new_topics(bootstrap)
    maker = PaymentMaker(cards=cards, active=active, seed=1)
    sent = send_all(kafka, maker.take(count, last_ms=time.time_ns() // 1_000_000, span_ms=_DAY_MS))
    worker = _start(kafka, store, address, cards, sent)
    return _finish(worker, sent)


def _freshness(bootstrap: str, store: str, address: str) -> dict[str, float]:
    kafka = _new_topics(bootstrap)
    maker = PaymentMaker(cards=10_000, seed=2)
    rate = _TARGETS[store] / 2
    worker = _start(kafka, store, address, maker.cards, int(rate * (_FRESHNESS_SECONDS - 1)))
    assert worker.stdout is not None
    assert worker.stdout.readline().strip() == "ready"
    sent = send_at_rate(kafka, maker, rate=rate, seconds=_FRESHNESS_SECONDS)
    report = _finish(worker, sent, exact=False)
    ages = np.array(report["ages_ms"])
    # The first quarter is the start: fetches begin, caches fill, and the worker catches up.
    ages = ages[len(ages) // 4 :]
    p50, p99, p999 = np.percentile(ages, [50, 99, 99.9])
    return {
        "freshness_rate": rate,
        "freshness_p50_ms": float(p50),
        "freshness_p99_ms": float(p99),
        "freshness_p999_ms": float(p999),
        "freshness_max_ms": float(ages.max()),
    }


def _new_topics(bootstrap: str) -> KafkaSettings:
    kafka = KafkaSettings(bootstrap=bootstrap, topic_prefix=f"p{uuid.uuid4().hex[:8]}-")
    create_topics(kafka, TopicSettings(), _ENTITIES)
    return kafka


def _start(kafka: KafkaSettings, store: str, address: str, cards: int, wanted: int) -> subprocess.Popen[str]:
    spec = {
        "bootstrap": kafka.bootstrap,
        "prefix": kafka.topic_prefix,
        "store": store,
        "address": address,
        "cards": cards,
        "wanted": wanted,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "perf.pipeline", "--worker", json.dumps(spec)], stdout=subprocess.PIPE, text=True
    )


def _finish(worker: subprocess.Popen[str], sent: int, *, exact: bool = True) -> dict[str, Any]:
    assert worker.stdout is not None
    report: dict[str, Any] = json.loads(worker.stdout.read().splitlines()[-1])
    assert worker.wait() == 0
    if exact:
        assert report["payments"] == sent
        assert report["events"] == len(_ENTITIES) * sent
    assert report["replayed"] == 0
    return report


@contextmanager
def _store_address(store: str) -> Iterator[str]:
    real = os.environ.get("PAYWARDEN_TEST_AEROSPIKE", "")
    if store != "aerospike" or real:
        yield real
        return
    with StandIn() as server:
        yield server.address


# The worker's process


def _work(spec: dict[str, Any]) -> None:
    """Run a worker until it has applied all payments; the last line on stdout is its report."""
    os.sched_setaffinity(0, {(os.cpu_count() or 1) - 1})
    engine = FeatureEngine()
    engine.warm_up()
    store = _store(spec, engine)
    registry = CollectorRegistry()
    settings = StreamSettings(group_id=f"{spec['prefix']}stream")
    pipeline = Pipeline(
        clients=KafkaClients.of(KafkaSettings(bootstrap=spec["bootstrap"], topic_prefix=spec["prefix"])),
        settings=settings,
        store=store,
        engine=engine,
        rates=load_rates(),
        ids=LocalSchemaIds(),
        metrics=stream_metrics(settings, engine.plan.entity_names, registry),
    )
    watch = _Watch(pipeline, registry, spec["wanted"])
    settle_collection()
    # An open loop begins when the worker has its partitions: joining the group takes seconds, and is another figure.
    Thread(target=_announce, args=(pipeline,), daemon=True).start()
    pipeline.run(watch.stop)
    print(json.dumps(watch.report()), flush=True)


def _announce(pipeline: Pipeline) -> None:
    while pipeline.problems():
        time.sleep(0.05)
    print("ready", flush=True)


class _Watch:
    """Sees each batch of profiles as the metrics do. Starts the clock at the first, stops the worker after the last."""

    def __init__(self, pipeline: Pipeline, registry: CollectorRegistry, wanted: int) -> None:
        self.stop = Event()
        self._registry, self._wanted, self._events = registry, wanted, 0
        self._ages: list[int] = []
        self._started: tuple[float, float, float] | None = None
        self._cpu: defaultdict[str, float] = defaultdict(float)
        count, take, timed = pipeline.metrics.applied, pipeline._consumer.take, pipeline._timed

        def counted(entity: str, **figures: Any) -> None:
            count(entity, **figures)
            self._events += figures["events"]
            self._ages += figures["ages_ms"].tolist()
            if self._events >= len(_ENTITIES) * self._wanted:
                self.stop.set()

        def taken(count_max: int, timeout_s: float, first_s: float | None = None) -> Any:
            consumed = take(count_max, timeout_s, first_s)
            if self._started is None and consumed.records:
                self._started = (time.perf_counter(), time.process_time(), time.thread_time())
            return consumed

        @contextmanager
        def timed_twice(stage: str) -> Iterator[None]:
            begun = time.thread_time()
            with timed(stage):
                yield
            self._cpu[stage] += time.thread_time() - begun

        pipeline.metrics.applied = counted  # type: ignore[method-assign]
        pipeline._timed = timed_twice  # type: ignore[method-assign]
        pipeline._consumer.take = taken  # type: ignore[method-assign]

    def report(self) -> dict[str, Any]:
        assert self._started is not None
        seconds, cpu, thread = self._started

        def total(name: str, **labels: str) -> float:
            return self._registry.get_sample_value(f"paywarden_stream_{name}", labels) or 0.0

        return {
            "payments": int(total("payments_total")),
            "events": self._events,
            "replayed": sum(total("replayed_total", entity=entity) for entity in _ENTITIES),
            "profiles": sum(total("profiles_written_total", entity=entity) for entity in _ENTITIES),
            "batches": int(total("batches_total")),
            "seconds": time.perf_counter() - seconds,
            "cpu_seconds": time.process_time() - cpu,
            "thread_seconds": time.thread_time() - thread,
            "stages": {stage: total("stage_seconds_sum", stage=stage) for stage in _STAGES},
            "cpu": self._cpu,
            "ages_ms": self._ages[-400_000:],
        }


def _store(spec: dict[str, Any], engine: FeatureEngine) -> ProfileStore:
    """Returns the store, with a profile of ten payments for every possible entity."""
    store: ProfileStore
    if spec["store"] == "aerospike":
        return _aerospike_store(spec["address"])
    store = MemoryStore()
    for entity, keys in enumerate(PaymentMaker(cards=spec["cards"], seed=0).keys()):
        state = _profile(engine, entity)
        store.write(dict.fromkeys(keys, state), ttl_s=0)
    return store


def _aerospike_store(address: str) -> AerospikeStore:
    """Returns an empty store: on a real server, without the records of an earlier run."""
    settings = AerospikeSettings(hosts=(address,))
    truncate_sets(settings, lambda name: name.startswith(_SET_PREFIX))
    return AerospikeStore(settings, set_prefix=_SET_PREFIX)


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
