"""Counting decisions on a real Kafka: decisions that a stream worker counts and joins in a second of its CPU time.

Measured: `paywarden stream`, a process of its own, reads a backlog of `decisions` (in transactions, as companions write
them) into tiles of five minutes with all segments and features, and into the records that outcomes are joined to, saved
in LMDB and committed. Nothing is stubbed; there are no payments and no outcomes. `decisions_per_second`: decisions by
the worker's CPU time: the rate of one full core. `counted_per_second` is by the clock: Kafka works on the same cores.
Used for: the capacity of a worker. The run checks that every decision was counted once.

    python -m perf.drift_counts [--decisions N] [--json FILE]

Needs the services that `make services` fetches.
"""

from __future__ import annotations

import time

import numpy as np

from paywarden.models.bundle.bundle import load_bundle
from paywarden.ops.demo.processes import running_parts
from paywarden.ops.demo.verdict import MetricsReading
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import make_transactional_producer
from perf.tools.measuring import arguments_of, finish
from perf.worlds.kafka_world import kafka_world, timed_work
from perf.worlds.scoring_world import Past, WorldSize, make_past, vectors_of
from tests.worlds.stream.decision_records import decision

# Decisions a second in the backlog's timestamps, decisions in a transaction, and different vectors.
_MADE_PER_SECOND = 2_000
_TRANSACTION = 200
_VECTORS = 1_000


def main() -> None:
    arguments = arguments_of(__doc__, ("--decisions", {"type": int, "default": 200_000, "help": "in the backlog"}))
    past = make_past(WorldSize())
    with kafka_world() as world:
        _send(world.kafka, past, arguments.decisions)
        config = world.write_config(more=f'[drift]\nbundles = ["{past.bundle.resolve()}"]\n')
        with running_parts(config, world.folder, ["stream"]) as parts:
            work = timed_work(parts.parts[0], _counted_and_joined, arguments.decisions)
            counted = parts.parts[0].reading().total("paywarden_drift_actions_total")
    assert counted == arguments.decisions, f"{counted} of {arguments.decisions} decisions were counted"
    figures = {
        "decisions_per_second": work.records / work.cpu_s,
        "counted_per_second": work.records / work.took_s,
        "cpu_us_per_decision": work.cpu_s / work.records * 1e6,
    }
    finish(figures, arguments.json)


def _counted_and_joined(reading: MetricsReading) -> int:
    counted = reading.total("paywarden_drift_decisions_total")
    return min(counted, reading.total("paywarden_outcomes_rows_total", "decisions"))


def _send(kafka: KafkaSettings, past: Past, count: int) -> None:
    """Send decisions that end now."""
    bundle = load_bundle(past.bundle, catalogue_digest=past.engine.plan.digest)
    vectors = vectors_of(past, _VECTORS)
    scores, version = bundle.score(vectors), bundle.manifest.model_version
    actions = np.digitize(scores, [bundle.manifest.review_at, bundle.manifest.decline_at]).tolist()
    ids = LocalSchemaIds()
    encoder = Encoder("decisions", ids.id_of("decisions"))
    producer = make_transactional_producer(kafka, "perf-decisions", linger_ms=2, transaction_timeout_ms=30_000)
    producer.init_transactions(30)
    first_ms = time.time_ns() // 1_000_000 - count * 1000 // _MADE_PER_SECOND
    for number in range(count):
        if number % _TRANSACTION == 0:
            if number:
                producer.commit_transaction(30)
            producer.begin_transaction()
        row, time_ms = number % _VECTORS, first_ms + number * 1000 // _MADE_PER_SECOND
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
            action=("approve", "review", "decline")[actions[row]],
            flags=["unknown_card"] if row % 20 == 0 else [],
            model_version=version,
            catalogue_digest=past.engine.plan.digest,
            vector=vectors[row].tobytes(),
            profile_age_ms=100 + row,
        )
        producer.produce(kafka.topic("decisions"), encoder.encode(record), key=record["payment_id"])
    producer.commit_transaction(30)


if __name__ == "__main__":
    main()
