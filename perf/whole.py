"""The whole system on a real Kafka: the cost of a payment in every process, at the rates people start with.

Measured: `paywarden serve` with one worker, `companion`, `stream` and Kafka together on all cores of the machine, with
default settings. A payment system sends payments in an open loop, publishes each answered payment, and two seconds
later an outcome of one payment in ten. The load and the payment system share the cores, and are not counted. For each
rate: cores of every process, bytes of Kafka, latencies, and the age of profiles.

`max_per_second` is the rate at which the slower of endpoint and stream works if the load sends as fast as it is
answered. `paywarden capacity --measured FILE` plans with these figures.

    python -m perf.whole [--rates 0,20,200,500,1000,3000] [--seconds 20] [--store aerospike] [--json FILE]

Kafka has the settings of the Compose file. Aerospike is the tests' stand-in, whose process nobody counts, or with
PAYWARDEN_TEST_AEROSPIKE=host:port that real server. Needs the services that `make services` fetches.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from paywarden.ops.capacity.coefficients import FULL_SHARE
from paywarden.ops.demo.processes import Parts, running_parts
from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load_run import LoadAnswer, run_closed, run_load
from paywarden.ops.loadgen.report import LoadReport
from paywarden.ops.loadgen.target import LoadOptions
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import make_producer
from perf.tools.aerospike import running_aerospike
from perf.tools.measuring import arguments_of, drive, finish
from perf.tools.processes import cpu_seconds
from perf.worlds.kafka_world import kafka_world
from tests.services.fetch import tool
from tests.services.ports import free_port

_RATES = "0,20,200,500,1000,3000"
_PARTS = ("serve", "companion", "stream", "kafka")
_PAYMENTS_PER_OUTCOME, _OUTCOME_AFTER_S = 10, 2.0
_PAYMENTS_PER_FRAUD = 200
# First of all the load runs for this long, at this rate: Kafka's JVM compiles the code that runs often.
_JVM_WARM_S, _JVM_WARM_RATE = 60.0, 500
# Before each measurement the load runs for this long, so that caches and adaptive batches are those of the rate.
_WARM_S = 6.0


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--rates", {"default": _RATES, "help": "payments a second, with commas"}),
        ("--seconds", {"type": float, "default": 20.0, "help": "of each measurement"}),
        ("--cards", {"type": int, "default": 20_000, "help": "that pay"}),
        ("--store", {"choices": ("lmdb", "aerospike"), "default": "lmdb", "help": "of the profiles"}),
    )
    rates, jmx_port = [int(rate) for rate in arguments.rates.split(",")], free_port()
    with ExitStack() as stack:
        store = stack.enter_context(running_aerospike()) if arguments.store == "aerospike" else ""
        world = stack.enter_context(kafka_world(_jmx(jmx_port)))
        requests = world.prepare(arguments.cards).requests
        config = world.write_config(store=store)
        parts = stack.enter_context(running_parts(config, world.folder))
        parts.wait_until_ready(print)
        system = _System(parts, world.kafka_pid, jmx_port, world.kafka, requests)
        figures = _measure(system, rates, arguments.seconds)
    finish(figures, arguments.json)


def _jmx(port: int) -> Sequence[str]:
    name = "-Dcom.sun.management.jmxremote"
    options = [f"{name}.port={port}", f"{name}.rmi.port={port}", f"{name}.host=127.0.0.1"]
    return [*options, f"{name}.authenticate=false", f"{name}.ssl=false", "-Djava.rmi.server.hostname=127.0.0.1"]


def _measure(system: _System, rates: Sequence[int], seconds: float) -> dict[str, float]:
    figures: dict[str, float] = {"machine_cores": psutil.cpu_count() or 1}
    # The just-in-time compilers compile the code of the load.
    system.load(_JVM_WARM_RATE, _JVM_WARM_S, [])
    for rate in rates:
        figures |= system.at(rate, seconds)
    return figures | _marginal(figures, rates) | {"max_per_second": system.most(seconds)}


def _marginal(figures: Mapping[str, float], rates: Sequence[int]) -> dict[str, float]:
    """Return the bytes that one payment more brings to Kafka: the slope of a line through the lower rates."""
    rates = [rate for rate in rates if figures[f"cores_{rate}"] < FULL_SHARE * figures["machine_cores"]]
    if len(rates) < 2:
        return {}
    slopes = {}
    for way in ("in", "out"):
        bytes_per_second = [figures[f"kafka_bytes_{way}_per_second_{rate}"] for rate in rates]
        slopes[f"kafka_bytes_{way}_per_payment"] = float(np.polyfit(rates, bytes_per_second, 1)[0])
    return slopes


@dataclass(frozen=True)
class _Reading:
    """Counters at one moment: CPU seconds by process, and Kafka's bytes in and out."""

    time_s: float
    cpu_s: Mapping[str, float]
    kafka: Mapping[str, int]


class _System:
    """The running system, and the payment system around it."""

    def __init__(
        self, parts: Parts, kafka_pid: int, jmx_port: int, kafka: KafkaSettings, requests: Sequence[ScoreRequest]
    ) -> None:
        self._parts, self._jmx_port, self._kafka, self._requests = parts, jmx_port, kafka, requests
        self._pids = {**parts.pids, "kafka": kafka_pid}
        self._runs = 0

    def at(self, rate: int, seconds: float) -> dict[str, float]:
        """Measure at a rate."""
        ages: list[int] = []
        self._wait_or_load(rate, _WARM_S, [])
        before = self._reading()
        report = self._wait_or_load(rate, seconds, ages)
        after = self._reading()
        assert self._parts.all_run(), self._parts.trouble()
        took_s = after.time_s - before.time_s
        cores = {part: (after.cpu_s[part] - before.cpu_s[part]) / took_s for part in _PARTS}
        figures = {f"cores_{rate}": sum(cores.values())} | {f"cores_{rate}_{part}": cores[part] for part in _PARTS}
        for way in ("in", "out"):
            figures[f"kafka_bytes_{way}_per_second_{rate}"] = (after.kafka[way] - before.kafka[way]) / took_s
        if report is not None:
            figures |= {f"{name}_{rate}": getattr(report, name) for name in ("p50_ms", "p99_ms", "p999_ms")}
            figures |= {f"lag_p99_ms_{rate}": report.lag_p99_ms, f"not_ok_{rate}": report.sent - report.ok}
            for share in (50, 99):
                figures[f"profile_age_p{share}_ms_{rate}"] = float(np.percentile(ages, share))
        print(", ".join(f"{name} {value:,.3f}" for name, value in figures.items()), flush=True)
        return figures

    def most(self, seconds: float) -> float:
        """Return the payments a second of the slower of endpoint and stream, when a closed loop keeps both busy."""
        options = LoadOptions(connections=16, connections_max=16)
        with _PaymentSystem(self._kafka, []) as payments:
            worked = self._stream_payments()
            bodies, on_answer = self._bodies(), payments.on_answer
            load = run_closed(self._parts.target, bodies, seconds=seconds, on_answer=on_answer, options=options)
            report = drive(load)
            worked = self._stream_payments() - worked
        return min(report.ok_per_second, worked / seconds)

    def load(self, rate: int, seconds: float, ages: list[int]) -> LoadReport:
        """Run an open loop."""
        with _PaymentSystem(self._kafka, ages) as payments:
            bodies, on_answer = self._bodies(), payments.on_answer
            return drive(run_load(self._parts.target, bodies, rate=rate, seconds=seconds, on_answer=on_answer))

    def _wait_or_load(self, rate: int, seconds: float, ages: list[int]) -> LoadReport | None:
        if rate:
            return self.load(rate, seconds, ages)
        time.sleep(seconds)
        return None

    def _bodies(self) -> Iterator[bytes]:
        self._runs += 1
        return stamped_bodies(self._requests, id_prefix=f"w{self._runs}")

    def _stream_payments(self) -> float:
        return self._parts.part("stream").reading().total("paywarden_stream_payments_total")

    def _reading(self) -> _Reading:
        # Kafka is asked first: the Java program that asks takes a second, which nothing may count.
        program = Path(__file__).parent / "tools" / "KafkaCounts.java"
        command = [tool("java"), str(program), str(self._jmx_port)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        kafka = {name: int(count) for name, count in map(str.split, done.stdout.splitlines())}
        return _Reading(time.monotonic(), {part: cpu_seconds(pid) for part, pid in self._pids.items()}, kafka)


class _PaymentSystem:
    """Publishes each answered payment, and outcomes of some. A thread does it: the load must not wait for Kafka."""

    def __init__(self, kafka: KafkaSettings, ages: list[int]) -> None:
        ids = LocalSchemaIds()
        self._producer = make_producer(kafka, linger_ms=5)
        self._payment_topic, self._outcome_topic = kafka.topic("payments"), kafka.topic("outcomes")
        self._payments = Encoder("payments", ids.id_of("payments"))
        self._outcomes = Encoder("outcomes", ids.id_of("outcomes"))
        self._ages = ages
        self._answered: deque[bytes] = deque()
        self._due: deque[tuple[float, str, str]] = deque()
        self._published = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._publish_all)

    def __enter__(self) -> _PaymentSystem:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self._producer.flush(30) == 0, "Kafka has not taken all payments"

    def on_answer(self, answer: LoadAnswer) -> None:
        """Take an answer of the load."""
        if answer.status == 200:
            self._ages.append(ScoreResponse.FromString(answer.body).profile_age_ms)
            self._answered.append(answer.request)

    def _publish_all(self) -> None:
        while not (self._stop.is_set() and not self._answered):
            while self._answered:
                self._publish(self._answered.popleft())
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                _, payment_id, label = self._due.popleft()
                value = {"payment_id": payment_id, "label": label, "source": "analyst"}
                value["outcome_time_ms"] = time.time_ns() // 1_000_000  # type: ignore[assignment]
                self._producer.produce(self._outcome_topic, self._outcomes.encode(value), key=payment_id)
            self._producer.poll(0)
            self._stop.wait(0.005)

    def _publish(self, body: bytes) -> None:
        request = ScoreRequest.FromString(body)
        record = {
            field.name: getattr(request, field.name) if not field.has_presence or request.HasField(field.name) else None
            for field in ScoreRequest.DESCRIPTOR.fields
        }
        self._producer.produce(self._payment_topic, self._payments.encode(record), key=request.card_id)
        self._published += 1
        if self._published % _PAYMENTS_PER_OUTCOME == 0:
            label = "fraud" if self._published % _PAYMENTS_PER_FRAUD == 0 else "genuine"
            self._due.append((time.monotonic() + _OUTCOME_AFTER_S, request.payment_id, label))


if __name__ == "__main__":
    main()
