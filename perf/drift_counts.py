"""Counting decisions on a real Kafka: decisions a second of a worker on one core.

Measured: Faust's agent as `paywarden stream` has it, from `decisions` (in transactions, as companions write them) into
tiles of five minutes with all segments and features, and into the records that outcomes are joined to, saved and
committed. Stubbed: the pipeline, which does nothing; the store, which is a dictionary; and the detection, which finds
nothing (it takes milliseconds every five minutes). Kafka shares the cores. Used for: the capacity of a worker, and
noticing when our part becomes dearer. The run checks that every decision was counted once.

    python -m perf.drift_counts [--decisions N] [--json FILE]

Needs the services that `make services` fetches.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry

from paywarden.features.profiles.money import load_rates
from paywarden.features.stores.memory import MemoryStore
from paywarden.models.drift.binning import FEATURE_BINS, Binning
from paywarden.models.metrics.costs import CostSettings
from paywarden.ops.wiring.agents import DriftParts, OutcomeParts, add_agents
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.streams.drift.counts import Binnings
from paywarden.streams.drift.evaluation import NoDetection
from paywarden.streams.drift.settings import DriftSettings
from paywarden.streams.drift.state import FIVE_MS, Adder, merged, read_heads
from paywarden.streams.faust.app import StreamApp
from paywarden.streams.health.gc_tuning import settle_collection
from paywarden.streams.kafka.admin import partitions_of
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.producers import make_transactional_producer
from paywarden.streams.outcomes import state as outcome_state
from paywarden.streams.outcomes.payments import SourcePartition
from paywarden.streams.outcomes.settings import OutcomeSettings
from paywarden.streams.outcomes.state import DECISIONS
from paywarden.streams.profiles.settings import StreamSettings
from perf.tools.measuring import arguments_of, finish
from perf.tools.processes import alone, memory_kib
from perf.worlds.kafka_world import new_topics
from tests.services.servers.kafka import KafkaServer
from tests.worlds.stream.decision_records import decision

_FEATURES = 60
_VERSION = "m1"
# Decisions a second in the backlog's timestamps, and decisions in a transaction.
_MADE_PER_SECOND = 2_000
_TRANSACTION = 200


def main() -> None:
    arguments = arguments_of(__doc__, ("--decisions", {"type": int, "default": 200_000, "help": "in the backlog"}))
    with tempfile.TemporaryDirectory() as folder, KafkaServer(Path(folder)) as server:
        kafka = new_topics(server.bootstrap, ("card",))
        first_ms = _send(kafka, arguments.decisions)
        figures = alone(_work, kafka, arguments.decisions, first_ms)
    finish(figures, arguments.json)


def _binning() -> Binning:
    edges = np.tile(np.linspace(-2, 2, FEATURE_BINS - 1, dtype=np.float32), (_FEATURES, 1))
    countries = tuple(f"C{number}" for number in range(20))
    categories = tuple(str(5000 + number) for number in range(20))
    scores = 1 / (1 + np.exp(-np.linspace(-8, 4, 63)))
    return Binning(scores, edges, (("ecom", "pos", "atm"), countries, categories), ("unknown_card", "mirror_stale"))


def _send(kafka: KafkaSettings, count: int) -> int:
    """Send the decisions; returns when the first was made, in ms."""
    chance = np.random.default_rng(1)
    ids = LocalSchemaIds()
    encoder = Encoder("decisions", ids.id_of("decisions"))
    producer = make_transactional_producer(kafka, f"{kafka.topic_prefix}tx", linger_ms=2, transaction_timeout_ms=30_000)
    producer.init_transactions(30)
    vectors = chance.normal(size=(1000, _FEATURES)).astype("<f4")
    scores = 1 / (1 + np.exp(-chance.normal(-4, 2, size=1000)))
    topic, first_ms = kafka.topic("decisions"), time.time_ns() // 1_000_000 - count * 1000 // _MADE_PER_SECOND
    for number in range(count):
        if number % _TRANSACTION == 0:
            if number:
                producer.commit_transaction(30)
            producer.begin_transaction()
        row = number % 1000
        time_ms = first_ms + number * 1000 // _MADE_PER_SECOND
        record = decision(
            f"payment-{number:012}",
            decided_time_ms=time_ms,
            event_time_ms=time_ms - 30,
            card_id=f"card-{number % 50_000:08}",
            merchant_id=f"merchant-{number % 900:06}",
            device_id=f"device-{number % 70_000:08}",
            amount_minor=1000 + row,
            mcc=str(5000 + row % 23),
            country=f"C{row % 25}",
            channel=("ecom", "pos", "atm", None)[row % 4],
            score=float(scores[row]),
            action=("approve", "review", "decline")[(row % 50 == 0) + (row % 200 == 0)],
            flags=["unknown_card"] if row % 20 == 0 else [],
            model_version=_VERSION,
            vector=vectors[row].tobytes(),
            profile_age_ms=100 + row,
        )
        producer.produce(topic, encoder.encode(record), key=record["payment_id"])
    producer.commit_transaction(30)
    return first_ms


# The worker's process


class _Idle:
    """A pipeline that does nothing."""

    def run(self, stop: threading.Event) -> None:
        stop.wait()

    def problems(self) -> Sequence[str]:
        return ()

    def turns(self) -> bool:
        return True


def _work(kafka: KafkaSettings, wanted: int, first_ms: int) -> dict[str, float]:
    """Count until all decisions are counted and saved; return the figures."""
    os.sched_setaffinity(0, {(os.cpu_count() or 1) - 1})
    store, binnings = MemoryStore(), Binnings({_VERSION: _binning()})
    figures = asyncio.run(_run(kafka, store, binnings, wanted))
    heads = read_heads(store, partitions_of(kafka, "decisions"))
    start_ms = first_ms // FIVE_MS * FIVE_MS
    sums = merged(store, heads, start_ms, start_ms + 60 * FIVE_MS, Adder(binnings))
    assert [int(one.payments[0]) for one in sums.values()] == [wanted], sums
    return figures


async def _run(kafka: KafkaSettings, store: MemoryStore, binnings: Binnings, wanted: int) -> dict[str, float]:
    settings, registry = StreamSettings(group_id=f"{kafka.topic_prefix}stream"), CollectorRegistry()
    app = StreamApp(_Idle(), kafka=kafka, settings=settings, registry=registry, announce=lambda _: None)
    parts, outcomes = DriftParts(store, binnings, NoDetection(), DriftSettings()), OutcomeSettings()
    add_agents(
        app, clients=KafkaClients.of(kafka), ids=LocalSchemaIds(), registry=registry,
        session_timeout_ms=settings.session_timeout_ms, now_ms=lambda: time.time_ns() // 1_000_000, drift=parts,
        outcomes=OutcomeParts(load_rates(), CostSettings(), outcomes),
    )  # fmt: skip
    partitions = partitions_of(kafka, "decisions")
    sources = [SourcePartition(DECISIONS, partition) for partition in partitions]
    stop = asyncio.Event()
    settle_collection()
    running = asyncio.create_task(app.run_until(stop))
    began: tuple[float, float] | None = None
    ended: tuple[float, float] | None = None
    while True:
        await asyncio.sleep(0.02)
        counted = sum(head.progress.totals.decisions for head in read_heads(store, partitions).values())
        joined = sum(head.progress.totals.total() for head in outcome_state.read_heads(store, sources).values())
        count = counted if joined else 0
        if began is None and count:
            # The clock starts at the first save. Decisions before it belong to the start and do not count.
            began, first = _clocks(), count
        if ended is None and min(count, joined) >= wanted - outcomes.save_records:
            # And it ends before the last ones, which wait for `save_every_ms`.
            ended, last = _clocks(), count
        if count >= wanted and joined >= wanted:
            break
    stop.set()
    await running
    assert began is not None
    assert ended is not None
    assert count == wanted
    wall_s, cpu_s = (end - start for end, start in zip(ended, began, strict=True))
    return {
        "decisions_per_second": (last - first) / wall_s,
        "cpu_us_per_decision": cpu_s / (last - first) * 1e6,
        "resident_mb": memory_kib("VmHWM") / 1024,
    }


def _clocks() -> tuple[float, float]:
    """Return wall time and CPU time of the process."""
    return time.perf_counter(), time.process_time()


if __name__ == "__main__":
    main()
