"""Flink beside the stream worker: the same payments from the same kind of broker, three rolling windows a payment.

The job is SQL, as a team would write it: for card, merchant and device the payments and the amount of the last hour, a
record for each on Kafka, exactly once. State is in memory, and Flink has one core, as `paywarden stream` has in
perf.pipeline. Kafka's connector and Avro are jars beside Flink's Python package, and need Maven.

    payments_per_second, cpu_us_per_payment     from a backlog, without its first tenth; the slowest windows count
    visible_p50_ms, visible_p99_ms              at `--rate`, from a payment's arrival on Kafka until a reader of
                                                committed records has all three windows

Each window of the backlog is compared with one that is made here. A payment's windows wait until each partition has had
a payment a second later. No partition may count as idle: with an idle timeout of 1 s, a partition that was read late
counted as idle meanwhile, and of 20,000 payments Flink dropped 8,500 of merchants that other partitions had shown.

    python -m perf.flink [--payments 200000] [--rate 1000] [--checkpoint-seconds 1] [--json FILE]
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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import psutil
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
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
_PAYMENT = load_schema(str(Path(__file__).parents[1] / "schemas" / "avsc" / "payments.avsc"))
_TYPES = {"entity": "string", "payment_id": "string", "payments": "long", "amount_minor": "long"}
_FIELDS = [{"name": name, "type": ["null", kind]} for name, kind in _TYPES.items()]
_WINDOW = parse_schema({"type": "record", "name": "window", "fields": _FIELDS})


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--payments", {"type": int, "default": 200_000, "help": "in the backlog"}),
        ("--rate", {"type": int, "default": 1000, "help": "payments a second of the open loop; 0: none"}),
        ("--checkpoint-seconds", {"type": int, "default": 1, "help": "between commits"}),
    )
    with kafka_world() as world:
        figures = _backlog(world.kafka.bootstrap, arguments.payments, arguments.checkpoint_seconds)
        print(figures, flush=True)
        if arguments.rate:
            figures |= _open_loop(world.kafka.bootstrap, arguments.rate, arguments.checkpoint_seconds)
    finish(figures, arguments.json)


@contextmanager
def _job(
    bootstrap: str, checkpoint_s: int, payments: Iterable[tuple[str, bytes]]
) -> Iterator[tuple[subprocess.Popen[bytes], KafkaSettings]]:
    """Run a job on one core, on new topics that hold these payments. Yield its process, and what names its topics."""
    home = CACHE.absolute() / "flink"
    python = interpreter_of("flink", _PACKAGES)
    for one in _JARS[len(list(home.glob("*.jar"))) :]:
        maven("dependency:copy", f"-Dartifact={one}", f"-DoutputDirectory={home}", cwd=home)
    kafka = KafkaSettings(bootstrap=bootstrap, topic_prefix=f"f{uuid.uuid4().hex[:8]}-")
    topics = [NewTopic(kafka.topic_prefix + name, _PARTITIONS, 1) for name in ("payments", *ENTITIES)]
    # Without a name, the client would end before it has the answers.
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for made in admin.create_topics(topics).values():
        made.result()
    send_all(kafka, "payments", _bare(payments))
    jars = ";".join(path.as_uri() for path in sorted(home.glob("*.jar")))
    asked: dict[str, Any] = {"jars": jars, "prefix": kafka.topic_prefix, "bootstrap": bootstrap, "entities": ENTITIES}
    core, child = server_core(), Path(__file__).parent / "peers" / "flink_child.py"
    with tempfile.TemporaryDirectory(prefix="paywarden-perf-", ignore_cleanup_errors=True) as folder:
        asked |= {"folder": Path(folder).as_uri(), "checkpoint": checkpoint_s}
        command = [str(python), str(child), json.dumps(asked)]
        process = subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, {core}))
        try:
            yield process, kafka
        finally:
            for each in _tree(process):
                each.kill()
            process.wait()


def _tree(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    assert process.poll() is None, "Flink ended: its words are above"
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def _bare(records: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """Yield payments without the schema's id, which Flink's format `avro` does not know."""
    return ((key, value[_HEADER_BYTES:]) for key, value in records)


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


def _backlog(bootstrap: str, count: int, checkpoint_s: int) -> dict[str, float]:
    """Measure a backlog, as perf.pipeline does, and compare each window."""
    maker = PaymentMaker(cards=_CARDS, seed=1)
    records = list(maker.take(count, last_ms=time.time_ns() // 1_000_000, span_ms=_DAY_MS))
    found: dict[str, list[bytes]] = {name: [] for name in ENTITIES}
    begun, ended, deadline = None, None, time.monotonic() + _TIMEOUT_S
    newest = time.monotonic()
    with _job(bootstrap, checkpoint_s, records) as (process, kafka):
        for batch in _read(kafka, ENTITIES, "read_uncommitted"):
            cpu_s = sum(sum(each.cpu_times()[:2]) for each in _tree(process))
            now = time.monotonic()
            newest = now if batch or begun is None else newest
            for one in batch:
                found[one.topic().removeprefix(kafka.topic_prefix)].append(one.value())
            done = min(map(len, found.values()))
            if begun is None and done >= count * _BEGIN_SHARE:
                begun = done, cpu_s, now
            if ended is None and done >= count * _END_SHARE:
                ended = done, cpu_s, now
            if (begun and now - newest > _QUIET_S) or now > deadline:
                break
    figures = _differences([_decoded(value, _PAYMENT) for _, value in _bare(records)], found)
    if begun is not None and ended is not None:
        work, cpu_s, took_s = (after - before for before, after in zip(begun, ended, strict=True))
        figures |= {"payments_per_second": work / took_s, "cpu_us_per_payment": cpu_s / work * 1e6}
    return figures


def _differences(payments: list[dict[str, Any]], found: dict[str, list[bytes]]) -> dict[str, float]:
    """Return for each entity how many windows came, and how many of them are wrong."""
    figures: dict[str, float] = {}
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


def _open_loop(bootstrap: str, rate: int, checkpoint_s: int) -> dict[str, float]:
    """Measure how long payments wait until all their windows can be read, without the first quarter."""
    visible: dict[str, list[float]] = defaultdict(list)
    sent_ms: list[float] = []
    begun_ms, stop = None, Event()
    with _job(bootstrap, checkpoint_s, ()) as (_, kafka):
        sender = Thread(target=_send, args=(kafka, rate, sent_ms, stop), daemon=True)
        sender.start()
        for batch in _read(kafka, ENTITIES, "read_committed"):
            now_ms = time.time_ns() / 1e6
            for one in batch:
                visible[_decoded(one.value(), _WINDOW)["payment_id"]].append(now_ms)
            # The job's start is another figure.
            begun_ms = now_ms if begun_ms is None and batch else begun_ms
            if begun_ms is not None and now_ms > begun_ms + _SECONDS * 1000:
                break
        stop.set()
        sender.join()
    assert begun_ms is not None
    # Payments that came last still wait.
    first, last = (begun_ms + _SECONDS * share * 1000 for share in (0.25, 0.75))
    seen = [(at, visible[f"pay-{number:012d}"]) for number, at in enumerate(sent_ms, 1) if first < at < last]
    ages = [max(times) - at for at, times in seen if len(times) == len(ENTITIES)]
    p50, p99 = np.quantile(ages, (0.5, 0.99)).tolist()
    return {"rate": rate, "measured_share": len(ages) / len(seen), "visible_p50_ms": p50, "visible_p99_ms": p99}


def _send(kafka: KafkaSettings, rate: int, sent_ms: list[float], stop: Event) -> None:
    maker, started = PaymentMaker(cards=_CARDS, seed=2), time.monotonic()
    while not stop.is_set():
        due, now_ms = int(rate * (time.monotonic() - started)) - len(sent_ms), time.time_ns() / 1e6
        send_all(kafka, "payments", _bare(maker.take(due, last_ms=int(now_ms), span_ms=10)))
        sent_ms += [now_ms] * due
        time.sleep(0.05)


def _decoded(content: bytes, schema: Any) -> dict[str, Any]:
    record = schemaless_reader(BytesIO(content), schema)
    assert isinstance(record, dict)
    return record


if __name__ == "__main__":
    main()
