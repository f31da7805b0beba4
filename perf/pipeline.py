"""The stream worker end to end on a real Kafka: payments a second, freshness, and where the time goes.

Measured: `paywarden stream`, a process of its own on one core, from `payments` to the changelog, three entities a
payment, effectively once as in production. Kafka and the process that writes the payments share the cores. Stores:
memory (a dictionary in the worker), LMDB, and Aerospike's official client against the test stand-in, or against a real
server at PAYWARDEN_TEST_AEROSPIKE. Used for: the capacity of a worker, and noticing when a stage becomes dearer.

    payments_per_second_STORE     from a backlog, by the clock, without its first tenth; `STORE_cpu_us_per_payment` is
                                  the worker's CPU time, which a busy machine does not stretch
    STORE_STAGE_us_per_payment    wall time of the worker's thread in each stage of a batch
    freshness_p99_ms, …_mean_ms   from a payment's arrival on Kafka into its profiles, in an open loop at half of the
                                  required rate, without its first quarter. The mean is exact, and a percentile lies
                                  on a line between two bounds of the worker's histogram

    python -m perf.pipeline [--payments N] [--store memory,lmdb,aerospike] [--json FILE]

Needs the services that `make services` fetches. Each run checks that every event was applied once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from paywarden.ops.demo.processes import DemoPart, running_parts
from paywarden.ops.demo.verdict import MetricsReading
from paywarden.streams.kafka.client import KafkaSettings
from perf.tools.aerospike import running_aerospike
from perf.tools.measuring import arguments_of, finish
from perf.tools.servers import server_core
from perf.worlds.kafka_world import ENTITIES, KafkaWorld, kafka_world, new_topics, timed_work
from perf.worlds.payments_load import PaymentMaker, send_all, send_at_rate
from tests.services.product.processes import wait_until

_CARDS = 10_000
_FRESHNESS_S = 20.0
# Half of the payments a second that a worker must manage.
_FRESHNESS_RATE = 7_500
_STAGES = ("decode", "keep", "route", "update", "changelog", "flush", "commit")
_DAY_MS = 86_400_000


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--payments", {"type": int, "default": 200_000, "help": "in the backlog of each store"}),
        ("--store", {"default": "memory,aerospike", "help": "which stores, with commas"}),
    )
    figures: dict[str, float] = {}
    with ExitStack() as stack:
        world = stack.enter_context(kafka_world())
        for kind in arguments.store.split(","):
            if kind == "aerospike":
                store = stack.enter_context(running_aerospike())
            else:
                store = f'[store]\nkind = "{kind}"\n[lmdb]\npath = "{world.folder}/store"\n'
            figures |= _throughput(world, kind, store, arguments.payments)
            if kind == "memory":
                figures |= _freshness(world, store)
    finish(figures, arguments.json)


@contextmanager
def _worker(world: KafkaWorld, kafka: KafkaSettings, store: str) -> Iterator[DemoPart]:
    """Run a stream worker on one core, on new topics."""
    # The section of Kafka is the last one.
    more = f'topic_prefix = "{kafka.topic_prefix}"\n[stream]\ngroup_id = "{kafka.topic_prefix}stream"\n'
    with running_parts(world.write_config(store=store, more=more), world.folder, ["stream"]) as parts:
        # The process has one thread now, and those that it starts stay on its core.
        os.sched_setaffinity(parts.pids["stream"], {server_core()})
        yield parts.parts[0]


def _throughput(world: KafkaWorld, name: str, store: str, count: int) -> dict[str, float]:
    """Measure a backlog."""
    kafka, maker = new_topics(world.kafka.bootstrap), PaymentMaker(cards=_CARDS, seed=1)
    sent = send_all(kafka, "payments", maker.take(count, last_ms=time.time_ns() // 1_000_000, span_ms=_DAY_MS))
    with _worker(world, kafka, store) as worker:
        work = timed_work(worker, _applied_payments, sent)
        reading = worker.reading()
    assert reading.total("paywarden_stream_profile_events_total") == len(ENTITIES) * sent
    assert reading.total("paywarden_stream_replayed_total") == 0
    written = reading.total("paywarden_stream_profiles_written_total")
    seconds = reading.metrics["paywarden_stream_stage_seconds_sum"]
    return {
        f"payments_per_second_{name}": work.records / work.took_s,
        f"{name}_cpu_us_per_payment": work.cpu_s / work.records * 1e6,
        f"{name}_profiles_per_payment": written / sent,
        **{f"{name}_{stage}_us_per_payment": seconds.get((stage,), 0.0) / sent * 1e6 for stage in _STAGES},
    }


def _applied_payments(reading: MetricsReading) -> float:
    return reading.total("paywarden_stream_profile_events_total") / len(ENTITIES)


def _freshness(world: KafkaWorld, store: str) -> dict[str, float]:
    """Measure the age of payments in their profiles, in an open loop."""
    kafka, maker = new_topics(world.kafka.bootstrap), PaymentMaker(cards=_CARDS, seed=2)
    with _worker(world, kafka, store) as worker:
        # Joining the group takes seconds, and is another figure.
        while worker.reading(with_metrics=False).trouble():
            worker.read_address()
            time.sleep(0.1)
        # The first quarter is the start: fetches begin, caches fill, and the worker catches up.
        sent = send_at_rate(kafka, maker, rate=_FRESHNESS_RATE, seconds=_FRESHNESS_S / 4)
        wait_until(lambda: _applied_payments(worker.reading()) >= sent, "the worker catches up")
        before, before_s = _ages(worker)
        sent += send_at_rate(kafka, maker, rate=_FRESHNESS_RATE, seconds=_FRESHNESS_S * 3 / 4)
        wait_until(lambda: _applied_payments(worker.reading()) >= sent, "all payments are applied")
        after, after_s = _ages(worker)
    counts = np.array(list(after.values())) - list(before.values())
    # The last bound is infinite.
    bounds_ms = [0.0, *(bound * 1000 for bound in list(after)[:-1])]
    quantiles = np.interp(np.array([0.5, 0.99, 0.999]) * counts[-1], [0.0, *counts[:-1]], bounds_ms).tolist()
    figures = {f"freshness_{name}_ms": value for name, value in zip(("p50", "p99", "p999"), quantiles, strict=True)}
    mean_ms = (after_s - before_s) / float(counts[-1]) * 1000
    return figures | {"freshness_mean_ms": mean_ms, "freshness_rate": _FRESHNESS_RATE}


def _ages(worker: DemoPart) -> tuple[dict[float, float], float]:
    """Return how many payments of cards had at most which age in seconds, in order, and the sum of the ages."""
    metrics, name = worker.reading().metrics, "paywarden_stream_event_to_store_seconds"
    found = metrics[f"{name}_bucket"].items()
    buckets = sorted((float(bound), count) for (entity, bound), count in found if entity == "card")
    return dict(buckets), metrics[f"{name}_sum"][("card",)]


if __name__ == "__main__":
    main()
