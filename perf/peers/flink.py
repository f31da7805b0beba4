"""Flink beside the stream worker: the same payments from the same Kafka, a count and a sum for each of three entities.

The job is SQL, as a team would write it: for card, merchant and device the payments and the amount of the last hour, a
record for each, exactly once with a checkpoint every five seconds, state in memory. Kafka's connector and Avro are jars
beside Flink's Python package. It has no profile that a scoring host could read, no outcomes and no repeated payments.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from fastavro import parse_schema, schemaless_reader
from fastavro.schema import load_schema

from paywarden.streams.kafka.client import KafkaSettings
from perf.peers.environments import interpreter_of
from perf.tools.servers import server_core
from perf.worlds.kafka_world import ENTITIES, Work
from perf.worlds.payments_load import PaymentMaker, send_all
from perf.worlds.scoring_world import CACHE
from tests.services.fetch import maven

VERSION = "2.3.0"
_PACKAGES = (f"apache-flink=={VERSION}",)
# There is none for 2.3 yet.
_JARS = ("org.apache.flink:flink-sql-connector-kafka:5.0.0-2.2", f"org.apache.flink:flink-sql-avro:{VERSION}")
_HEADER_BYTES, _HOUR_MS, _TIMEOUT_S = 5, 3_600_000, 900.0
# The last second of payments waits for a later one.
_BEGIN_SHARE, _END_SHARE = 0.1, 0.99
_PARTITIONS = 6
_PAYMENTS_SCHEMA = Path(__file__).parents[2] / "schemas" / "avsc" / "payments.avsc"
_WINDOW = parse_schema(
    {
        "type": "record",
        "name": "window",
        "fields": [
            *({"name": name, "type": ["null", "string"]} for name in ("entity", "payment_id")),
            *({"name": name, "type": ["null", "long"]} for name in ("payments", "amount_minor")),
        ],
    }
)


def flink_windows(bootstrap: str, cards: int, count: int, span_ms: int) -> dict[str, float]:
    """Measure a backlog on one core, as perf.pipeline measures the worker."""
    python = interpreter_of("flink", _PACKAGES)
    prefix = f"f{uuid.uuid4().hex[:8]}-"
    admin, topics = AdminClient({"bootstrap.servers": bootstrap}), [f"{prefix}{name}" for name in ENTITIES]
    made = admin.create_topics([NewTopic(name, _PARTITIONS, 1) for name in (f"{prefix}payments", *topics)])
    for one in made.values():
        one.result()
    records = list(PaymentMaker(cards=cards, seed=1).take(count, last_ms=time.time_ns() // 1_000_000, span_ms=span_ms))
    # Flink's format `avro` has no schema id before a record.
    bare = ((key, value[_HEADER_BYTES:]) for key, value in records)
    sent = send_all(KafkaSettings(bootstrap=bootstrap, topic_prefix=prefix), "payments", bare)
    asked = {"jars": _jars(), "prefix": prefix, "bootstrap": bootstrap, "entities": ENTITIES}
    core = server_core()
    process = subprocess.Popen(
        [str(python), str(Path(__file__).with_name("flink_child.py")), json.dumps(asked)],
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    try:
        work = _timed(process, bootstrap, topics, sent)
        memory = max(each.memory_info().rss for each in _processes(process.pid))
    finally:
        if process.poll() is None:
            for each in _processes(process.pid):
                each.terminate()
        process.wait()
    _check(bootstrap, topics[0], records)
    return {
        "payments_per_second_flink": work.records / work.took_s,
        "flink_cpu_us_per_payment": work.cpu_s / work.records * 1e6,
        "flink_resident_mb": memory / 1e6,
    }


def _jars() -> str:
    folder = CACHE.absolute() / "flink"
    if len(list(folder.glob("*.jar"))) < len(_JARS):
        for one in _JARS:
            maven("dependency:copy", f"-Dartifact={one}", f"-DoutputDirectory={folder}", cwd=folder)
    return ";".join(path.as_uri() for path in sorted(folder.glob("*.jar")))


def _processes(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def _timed(process: subprocess.Popen[bytes], bootstrap: str, topics: list[str], sent: int) -> Work:
    """Wait until nearly all payments have all windows. The first tenth, with the start of the JVM, is left out."""
    begun: Work | None = None
    deadline = time.monotonic() + _TIMEOUT_S
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "flink-watch"})
    try:
        while True:
            assert process.poll() is None, "Flink ended: its words are above"
            assert time.monotonic() < deadline, "Flink takes too long"
            times = [each.cpu_times() for each in _processes(process.pid)]
            done = min(_written(consumer, topic) for topic in topics)
            now = Work(done, sum(one.user + one.system for one in times), time.monotonic())
            if begun is None and done >= sent * _BEGIN_SHARE:
                begun = now
            if begun is not None and done >= sent * _END_SHARE:
                assert done > begun.records, "too few payments: all were there at the first look"
                return Work(*(after - before for before, after in zip(begun, now, strict=True)))
            time.sleep(0.1)
    finally:
        consumer.close()


def _written(consumer: Consumer, topic: str) -> int:
    return sum(consumer.get_watermark_offsets(TopicPartition(topic, one), timeout=30)[1] for one in range(_PARTITIONS))


def _check(bootstrap: str, topic: str, records: list[tuple[str, bytes]]) -> None:
    """Compare the windows of the busiest card with counts that are made here."""
    card = Counter(key for key, _ in records).most_common(1)[0][0]
    payments = load_schema(_PAYMENTS_SCHEMA)
    of_card = [_decoded(value[_HEADER_BYTES:], payments) for key, value in records if key == card]
    found = {}
    for record in _records(bootstrap, topic):
        window = _decoded(record, _WINDOW)
        if window["entity"] == card:
            found[window["payment_id"]] = window["payments"], window["amount_minor"]
    assert found, "Flink wrote no window of the busiest card"
    for one in of_card:
        at = one["event_time_ms"]
        past = [other["amount_minor"] for other in of_card if at - _HOUR_MS <= other["event_time_ms"] <= at]
        # The newest payment may still wait.
        assert found.get(one["payment_id"], (len(past), sum(past))) == (len(past), sum(past)), one["payment_id"]


def _decoded(content: bytes, schema: Any) -> dict[str, Any]:
    record = schemaless_reader(BytesIO(content), schema)
    assert isinstance(record, dict)
    return record


def _records(bootstrap: str, topic: str) -> Iterator[bytes]:
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": uuid.uuid4().hex, "isolation.level": "read_uncommitted"}
    )
    consumer.assign([TopicPartition(topic, one, 0) for one in range(_PARTITIONS)])
    try:
        while batch := consumer.consume(10_000, timeout=3):
            yield from (one.value() for one in batch if one.error() is None)
    finally:
        consumer.close()
