"""The price and the savings of each compression on our own records: `python -m perf.compression [--json FILE]`.

A producer with our settings writes real payments, decisions, profiles and repartition frames to a real Kafka, in
batches of 1, 10 and 100 records for a partition: a quiet topic has batches of one, a backlog has large ones. It prints
bytes a record on the wire, and CPU time a record of the producer, the broker and a reader: medians of three rounds in
turns.
The figures decide the defaults of `[kafka] compression` and `internal_compression`.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.cimpl import NewTopic

from paywarden.features.catalogue.attributes import row_of
from paywarden.features.datasets.simulator import simulate
from paywarden.features.history.history import history_of_tables
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.profiles.events import ARRIVED_MS, ATTRIBUTES_AT, OFFSET, ROW_WIDTH, EntityEvents
from paywarden.streams.profiles.repartition import encode_frame
from perf.tools.measuring import arguments_of, finish
from tests.services.servers.kafka import KafkaServer

# librdkafka's codec and level.
_CODECS = {"none": ("none", -1), "gzip": ("gzip", -1), "gzip_1": ("gzip", 1), "lz4": ("lz4", -1), "zstd": ("zstd", -1),
           "snappy": ("snappy", -1)}  # fmt: skip
_BATCHES = (1, 10, 100)
_ROUNDS = 3
_RECORDS = 6_000


@dataclass(frozen=True)
class _Cost:
    """The cost of one record."""

    wire_bytes: float
    producer_us: float
    broker_us: float
    reader_us: float


def main() -> None:
    """Measure and print the figures."""
    arguments = arguments_of(__doc__)
    figures: dict[str, float] = {}
    kinds = _records()
    with tempfile.TemporaryDirectory() as folder, KafkaServer(Path(folder)) as kafka:
        for kind, values in kinds.items():
            plain = sum(map(len, values)) / len(values)
            print(f"\n{kind}: {plain:,.0f} bytes a record; us of CPU a record")
            print(f"{'batch':>6} {'codec':<8} {'wire bytes':>11} {'producer':>9} {'broker':>9} {'reader':>9}")
            for batch in _BATCHES:
                costs = _in_turns(kafka, kind, values, batch)
                for codec, cost in costs.items():
                    print(
                        f"{batch:>6} {codec:<8} {cost.wire_bytes:>11,.0f} {cost.producer_us:>9.1f} "
                        f"{cost.broker_us:>9.1f} {cost.reader_us:>9.1f}"
                    )
                    for name in ("wire_bytes", "producer_us", "broker_us", "reader_us"):
                        figures[f"{kind}_{batch}_{codec}_{name}"] = getattr(cost, name)
    finish({}, None)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _records() -> dict[str, list[bytes]]:
    """Returns values as the topics hold them, from a simulated stream."""
    payments, outcomes = simulate(cards=2_000, days=20, seed=1)
    engine, history = FeatureEngine(), history_of_tables(payments, outcomes)
    passage = PointInTimeReplay(history, engine, load_rates())
    vectors = np.concatenate([chunk.vectors.copy() for chunk in passage.chunks()])
    rows = payments.slice(len(payments) - _RECORDS).to_pylist()
    ids = LocalSchemaIds()
    payment, decision, profile = (Encoder(name, ids.id_of(name)) for name in ("payments", "decisions", "profiles"))
    states = [state for entity in passage.profiles for state in entity if state is not None][:_RECORDS]
    return {
        "payments": [payment.encode(row) for row in rows],
        "decisions": [
            decision.encode(_decision(row, vector.astype("<f4").tobytes(), engine.plan.digest))
            for row, vector in zip(rows, vectors[-_RECORDS:], strict=True)
        ],
        "profiles": [
            profile.encode({"entity": "card", "state": state, "written_time_ms": 1_764_000_000_000 + number})
            for number, state in enumerate(states)
        ],
        "frames": _frames(rows),
    }


def _decision(row: dict[str, Any], vector: bytes, digest: str) -> dict[str, Any]:
    shared = {name: value for name, value in row.items() if name != "declined"}
    return {
        **shared,
        "decision_id": f"{hash(row['payment_id']) & (2**128 - 1):032x}",
        "decided_time_ms": row["event_time_ms"] + 40,
        "score": float(vector[0]) / 255,
        "action": "approve",
        "reasons": [],
        "flags": [],
        "model_version": "2026-01-01-abcdef",
        "catalogue_digest": digest,
        "vector": vector,
        "profile_age_ms": 700,
    }


def _frames(payments: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """Returns repartition frames of ten events each."""
    keys, rows = [], np.zeros((len(payments), ROW_WIDTH), dtype=np.int64)
    for number, one in enumerate(payments):
        keys.append(f"card:{one['card_id']}".encode())
        time_ms, minor = one["event_time_ms"], one["amount_minor"]
        rows[number, OFFSET], rows[number, ARRIVED_MS] = number, time_ms
        rows[number, ATTRIBUTES_AT:] = row_of(one, event_time_ms=time_ms, amount=minor, amount_minor=minor)
    return [
        encode_frame(EntityEvents(keys[at : at + 10], rows[at : at + 10]), {0: 1_764_000_000_000}, 6)
        for at in range(0, len(payments), 10)
    ]


def _in_turns(kafka: KafkaServer, kind: str, values: Sequence[bytes], batch: int) -> dict[str, _Cost]:
    measured: dict[str, list[_Cost]] = {name: [] for name in _CODECS}
    for turn in range(_ROUNDS + 1):
        for name, (codec, level) in _CODECS.items():
            topic = f"{kind}-{batch}-{name}-{turn}"
            kafka.create_topics(NewTopic(topic, num_partitions=1, replication_factor=1))
            cost = _measure(kafka, topic, values, batch, codec, level)
            if turn:
                measured[name].append(cost)
    return {
        name: _Cost(*(median(getattr(cost, field) for cost in costs) for field in _Cost.__dataclass_fields__))
        for name, costs in measured.items()
    }


def _measure(kafka: KafkaServer, topic: str, values: Sequence[bytes], batch: int, codec: str, level: int) -> _Cost:
    broker = psutil.Process(kafka.pid)
    producer = Producer(
        {
            **KafkaSettings(bootstrap=kafka.bootstrap).connection(),
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": 1_000,
            "batch.num.messages": batch,
            "compression.type": codec,
            "compression.level": level,
            "delivery.report.only.error": True,
        }
    )
    producer.list_topics(topic, timeout=10)
    sent = values[: max(600, len(values) // (1 if batch > 1 else 6))]
    cpu = _cpu_of(lambda: _produce(producer, topic, sent), broker)
    wire_bytes = _log_bytes(kafka, topic)
    read = _cpu_of(lambda: _read(kafka.bootstrap, topic, len(sent)), broker)
    return _Cost(wire_bytes / len(sent), cpu[0] / len(sent), cpu[1] / len(sent), read[0] / len(sent))


def _log_bytes(kafka: KafkaServer, topic: str) -> int:
    """Returns the bytes that the broker has on disk: the batches as they came over the wire."""
    return sum(file.stat().st_size for file in (kafka.data / f"{topic}-0").glob("*.log"))


def _produce(producer: Producer, topic: str, values: Sequence[bytes]) -> None:
    for number, value in enumerate(values):
        producer.produce(topic, value, key=f"card-{number:08d}")
    producer.flush(60)


def _read(bootstrap: str, topic: str, count: int) -> None:
    options = {**KafkaSettings(bootstrap=bootstrap).connection(), "group.id": "perf", "enable.auto.commit": False}
    with closing(Consumer(options)) as consumer:
        consumer.assign([TopicPartition(topic, 0, 0)])
        left = count
        while left:
            left -= sum(message.error() is None for message in consumer.consume(min(left, 1_000), timeout=1.0))


def _cpu_of(work: Callable[[], object], broker: psutil.Process) -> tuple[float, float]:
    """Returns the CPU time of this process and of the broker, in microseconds."""
    ours, theirs = _used_s(), broker.cpu_times()
    work()
    time.sleep(0.05)
    after = broker.cpu_times()
    return (_used_s() - ours) * 1e6, (after.user + after.system - theirs.user - theirs.system) * 1e6


def _used_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
