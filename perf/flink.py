"""Flink beside the stream worker: the same payments from the same kind of broker, three rolling windows a payment.

The job is SQL, as a team would write it: for card, merchant and device the payments and the amount of the last hour, a
record for each on Kafka, exactly once. State is in memory, and Flink has one core, as `paywarden stream` has in
perf.pipeline. Kafka's connector and Avro are jars beside Flink's Python package, and need Maven.

    payments_per_second, cpu_us_per_payment     from a backlog, without its first tenth; the slowest windows count
    visible_p50_ms, visible_p99_ms              at `--rate`, from a payment's arrival on Kafka until a reader of
                                                committed records has all three windows

Each window of the backlog is compared with one that is made here. A payment's windows wait until each partition has had
a payment a second later. No partition may count as idle: with `--idle-seconds 1`, a partition that is read late counts
as idle meanwhile, its payments come behind the watermark, and Flink drops them where the merchant was already seen.

    python -m perf.flink [--payments 200000] [--rate 1000] [--checkpoint-seconds 1] [--idle-seconds 0] [--json FILE]
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
import uuid
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import psutil
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from fastavro import parse_schema, schemaless_reader
from fastavro.schema import load_schema

from paywarden.streams.kafka.client import KafkaSettings
from perf.peers.environments import interpreter_of
from perf.tools.measuring import arguments_of, finish
from perf.tools.servers import server_core
from perf.worlds.kafka_world import ENTITIES, kafka_world
from perf.worlds.payments_load import PaymentMaker, send_all
from perf.worlds.scoring_world import CACHE
from tests.services.fetch import maven

_PACKAGES = ("apache-flink==2.3.0",)
_JARS = ("org.apache.flink:flink-sql-connector-kafka:5.0.0-2.2", "org.apache.flink:flink-sql-avro:2.3.0")
_CARDS, _DAY_MS, _HOUR_MS, _PARTITIONS = 10_000, 86_400_000, 3_600_000, 6
_HEADER_BYTES, _SECONDS, _TIMEOUT_S, _QUIET_S = 5, 40.0, 400.0, 20.0
# The last second of payments waits for later ones.
_BEGIN_SHARE, _END_SHARE = 0.1, 0.99
_PAYMENT = load_schema(Path(__file__).parents[1] / "schemas" / "avsc" / "payments.avsc")
_TYPES = {"entity": "string", "payment_id": "string", "payments": "long", "amount_minor": "long"}
_FIELDS = [{"name": name, "type": ["null", kind]} for name, kind in _TYPES.items()]
_WINDOW = parse_schema({"type": "record", "name": "window", "fields": _FIELDS})


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--payments", {"type": int, "default": 200_000, "help": "in the backlog"}),
        ("--rate", {"type": int, "default": 1000, "help": "payments a second of the open loop; 0: none"}),
        ("--checkpoint-seconds", {"type": int, "default": 1, "help": "between commits"}),
        (
            "--idle-seconds",
            {"type": int, "default": 0, "help": "until a silent partition no longer holds windows back"},
        ),
    )
    options = {"checkpoint": arguments.checkpoint_seconds, "idle": arguments.idle_seconds}
    with kafka_world() as world:
        figures = _backlog(world.kafka.bootstrap, arguments.payments, options)
        if arguments.rate:
            figures |= _open_loop(world.kafka.bootstrap, arguments.rate, options)
    finish(figures, arguments.json)


@dataclass(frozen=True)
class _Job:
    """A running job. `kafka`: the settings that name its topics."""

    process: subprocess.Popen[bytes]
    kafka: KafkaSettings

    def processes(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def cpu_s(self) -> float:
        return sum(sum(each.cpu_times()[:2]) for each in self.processes())


@contextmanager
def _job(bootstrap: str, options: dict[str, int], fill: Callable[[KafkaSettings], object]) -> Iterator[_Job]:
    """Run a job on one core, on new topics. `fill`: writes what is there before it starts."""
    folder = CACHE.absolute() / "flink"
    python = interpreter_of("flink", _PACKAGES)
    for one in _JARS[len(list(folder.glob("*.jar"))) :]:
        maven("dependency:copy", f"-Dartifact={one}", f"-DoutputDirectory={folder}", cwd=folder)
    kafka = KafkaSettings(bootstrap=bootstrap, topic_prefix=f"f{uuid.uuid4().hex[:8]}-")
    topics = [NewTopic(kafka.topic_prefix + name, _PARTITIONS, 1) for name in ("payments", *ENTITIES)]
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for made in admin.create_topics(topics).values():
        made.result()
    fill(kafka)
    jars = ";".join(path.as_uri() for path in sorted(folder.glob("*.jar")))
    checkpoints = tempfile.TemporaryDirectory(prefix="paywarden-perf-")
    asked = {"jars": jars, "prefix": kafka.topic_prefix, "bootstrap": bootstrap, "entities": ENTITIES, **options}
    asked["folder"] = Path(checkpoints.name).as_uri()
    child = Path(__file__).parent / "peers" / "flink_child.py"
    core = server_core()
    job = _Job(
        subprocess.Popen([python, child, json.dumps(asked)], preexec_fn=lambda: os.sched_setaffinity(0, {core})), kafka
    )
    try:
        yield job
    finally:
        for each in job.processes():
            each.kill()
        job.process.wait()
        checkpoints.cleanup()


def _read(kafka: KafkaSettings, names: tuple[str, ...], isolation: str) -> Iterator[list[Any]]:
    """Yield what topics hold, from their beginning, as it comes; an empty list where nothing came for a while."""
    options = {"group.id": uuid.uuid4().hex, "isolation.level": isolation, "fetch.wait.max.ms": 20}
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, **options})
    consumer.assign([TopicPartition(kafka.topic_prefix + name, one, 0) for name in names for one in range(_PARTITIONS)])
    try:
        while True:
            yield [one for one in consumer.consume(10_000, timeout=0.05) if one.error() is None]
    finally:
        consumer.close()


def _backlog(bootstrap: str, count: int, options: dict[str, int]) -> dict[str, float]:
    """Measure a backlog, as perf.pipeline does, and compare each window."""
    maker = PaymentMaker(cards=_CARDS, seed=1)
    records = list(maker.take(count, last_ms=time.time_ns() // 1_000_000, span_ms=_DAY_MS))
    # Flink's format `avro` has no schema id before a record.
    bare = [(key, value[_HEADER_BYTES:]) for key, value in records]
    found: dict[str, list[bytes]] = {name: [] for name in ENTITIES}
    begun, ended, deadline = None, None, time.monotonic() + _TIMEOUT_S
    newest = time.monotonic()
    with _job(bootstrap, options, lambda kafka: send_all(kafka, "payments", iter(bare))) as job:
        for batch in _read(job.kafka, ENTITIES, "read_uncommitted"):
            assert job.process.poll() is None, "Flink ended: its words are above"
            now = time.monotonic()
            newest = now if batch or begun is None else newest
            for one in batch:
                found[one.topic().removeprefix(job.kafka.topic_prefix)].append(one.value())
            done = min(map(len, found.values()))
            if begun is None and done >= count * _BEGIN_SHARE:
                begun = done, job.cpu_s(), now
            if ended is None and done >= count * _END_SHARE:
                ended = done, job.cpu_s(), now
            if (begun and now - newest > _QUIET_S) or now > deadline:
                break
    figures = _differences([_decoded(value, _PAYMENT) for _, value in bare], found)
    if begun is not None and ended is not None:
        work, cpu_s, took_s = (after - before for before, after in zip(begun, ended, strict=True))
        figures |= {"payments_per_second": work / took_s, "cpu_us_per_payment": cpu_s / work * 1e6}
    return figures


def _differences(payments: list[dict[str, Any]], found: dict[str, list[bytes]]) -> dict[str, float]:
    """Return for each entity how many windows came, and how many of them are wrong."""
    figures = {}
    for entity, values in found.items():
        of_entity = defaultdict(list)
        for payment in payments:
            of_entity[payment[f"{entity}_id"]].append((payment["event_time_ms"], payment["amount_minor"]))
        expected = {}
        for name, made in of_entity.items():
            made.sort()
            expected[name] = [at for at, _ in made], [0, *accumulate(amount for _, amount in made)]
        at_of = {payment["payment_id"]: payment["event_time_ms"] for payment in payments}
        wrong = 0
        for value in values:
            window = _decoded(value, _WINDOW)
            times, sums = expected[window["entity"]]
            at = at_of[window["payment_id"]]
            first, last = bisect_left(times, at - _HOUR_MS), bisect_right(times, at)
            wrong += (window["payments"], window["amount_minor"]) != (last - first, sums[last] - sums[first])
        figures |= {f"{entity}_windows": len(values), f"{entity}_windows_wrong": wrong}
    return figures


def _open_loop(bootstrap: str, rate: int, options: dict[str, int]) -> dict[str, float]:
    """Measure how long payments wait until all their windows can be read, without the first quarter."""
    visible: dict[str, list[float]] = defaultdict(list)
    arrived: dict[str, float] = {}
    with _job(bootstrap, options, lambda _: None) as job:
        # The job's start is another figure: the reader waits for its first windows.
        sender = Thread(target=_send, args=(job.kafka, rate, _SECONDS), daemon=True)
        sender.start()
        for batch in _read(job.kafka, ENTITIES, "read_committed"):
            now_ms = time.time_ns() / 1e6
            for one in batch:
                visible[_decoded(one.value(), _WINDOW)["payment_id"]].append(now_ms)
            if not sender.is_alive() and not batch:
                break
        for batch in _read(job.kafka, ("payments",), "read_uncommitted"):
            arrived |= {_decoded(one.value(), _PAYMENT)["payment_id"]: one.timestamp()[1] for one in batch}
            if arrived and not batch:
                break
    first, last = (min(arrived.values()) + _SECONDS * share * 1000 for share in (0.5, 0.9))
    waits = [max(visible[name]) - at for name, at in arrived.items() if first < at < last and len(visible[name]) == 3]
    p50, p99 = np.quantile(waits, (0.5, 0.99)).tolist()
    return {"rate": rate, "measured": len(waits), "visible_p50_ms": p50, "visible_p99_ms": p99}


def _send(kafka: KafkaSettings, rate: int, seconds: float) -> None:
    maker, started, sent = PaymentMaker(cards=_CARDS, seed=2), time.monotonic(), 0
    while (elapsed := time.monotonic() - started) < seconds:
        due = int(rate * elapsed) - sent
        taken = maker.take(due, last_ms=time.time_ns() // 1_000_000, span_ms=10)
        send_all(kafka, "payments", ((key, value[_HEADER_BYTES:]) for key, value in taken))
        sent += due


def _decoded(content: bytes, schema: Any) -> dict[str, Any]:
    record = schemaless_reader(BytesIO(content), schema)
    assert isinstance(record, dict)
    return record


if __name__ == "__main__":
    main()
