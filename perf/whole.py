"""The whole system on a real Kafka: the cost of a payment in every process, at the rates people start with.

Measured: `paywarden serve` with one worker, `companion`, `stream` and Kafka together on all cores of the machine, with
the settings that are the default. A payment system sends payments in an open loop, publishes each answered payment, and
two seconds later an outcome of one payment in ten. For each rate: CPU of every process, requests and bytes of Kafka and
of the profile store, latencies, and the age of profiles. Used for: the capacity a deployment needs, and whether a part
became dearer.

    rate      cores: serve companion stream kafka   all │ Kafka: requests/s │ store: requests/s │ p50 ms  p99 ms │ age
    0               0.00      0.03   0.07  0.21   0.31  │   …

Below each line: the requests by kind, the cores of Kafka that the JVM's compilers take (a broker that has run for an
hour compiles no more), and how often the threads of each process wake up in a second. Requests and wake-ups are counts:
they hardly depend on what else the machine does. Last of all the broker is measured alone, without a client: its cost
without Paywarden (`cores_kafka_alone`).

The store is LMDB: a request is a commit to one of its files, and the bytes are those that reach the disk. With `--store
aerospike` it is the official client with the tests' stand-in, which is a process that nobody counts: a request is a
message of the client, and the bytes are those on the connection, both ways. With PAYWARDEN_TEST_AEROSPIKE=host:port it
is that real server, which counts no bytes.

Kafka runs with the settings of the Compose file for one machine; with `--kafka defaults` it runs with its own defaults.

The load and the payment system are on the same cores, and not counted. With `fixed` and `marginal` the cores at a rate
are about `fixed + marginal * rate`. `max_per_second`: the rate at which the slower of endpoint and stream works when
the load sends as fast as it is answered. `paywarden capacity --measured FILE` plans with these figures. `--held-out`
measures at further rates, and shows how far off the line is there (`capacity_error_R`, a share).

    python -m perf.whole [--rates 0,20,200,500,1000,3000] [--held-out 350,700] [--seconds 20] [--kafka defaults]
                         [--store aerospike] [--json FILE]

Needs the services that `make services` fetches.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.ops.capacity.coefficients import FULL_SHARE
from paywarden.ops.capacity.measured_costs import MEASURED
from paywarden.ops.capacity.plan import Requirements, busy_cores
from paywarden.ops.demo.demo import prepare_world
from paywarden.ops.demo.live_run import LOCAL_CONFIG
from paywarden.ops.demo.processes import Parts, running_parts
from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load import LoadAnswer, run_closed, run_load
from paywarden.ops.loadgen.report import LoadReport
from paywarden.ops.loadgen.target import LoadOptions
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import make_producer
from paywarden.streams.kafka.topics import TopicSettings, create_topics
from perf.tools.counted_store import KINDS, CountedStore, StoreCounts, counted_store
from perf.tools.measuring import arguments_of, drive, finish
from perf.tools.shipped_broker import shipped_broker, shipped_jvm
from tests.services.fetch import tool
from tests.services.ports import free_port
from tests.services.servers.kafka import PRODUCTION_BROKER, PRODUCTION_JVM, KafkaServer

_RATES = "0,20,200,500,1000,3000"
# The rate at which the run without outcomes is compared.
_COMPARED_RATE = 500
_SLEPT = re.compile(r"^voluntary_ctxt_switches:\s*(\d+)", re.MULTILINE)
_PARTS = ("serve", "companion", "stream", "kafka")
_PAYMENTS_PER_OUTCOME, _OUTCOME_AFTER_S = 10, 2.0
_PAYMENTS_PER_FRAUD = 200
# First of all the load runs for this long, at this rate: Kafka's JVM compiles the code that runs often.
_JVM_WARM_S, _JVM_WARM_RATE = 60.0, 500
# Before each measurement the load runs for this long, so that caches and adaptive batches are those of the rate.
_WARM_S = 6.0


@dataclass(frozen=True)
class _Reading:
    """Counters at one moment: CPU seconds and wake-ups by process, Kafka's counts by name, and the store's."""

    time_s: float
    cpu_s: Mapping[str, float]
    compiling_s: float
    wakeups: Mapping[str, int]
    kafka: Mapping[str, int]
    store: StoreCounts


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--rates", {"default": _RATES, "help": "payments a second, with commas"}),
        ("--held-out", {"default": "", "help": "rates at which the plan is held against a measurement"}),
        ("--seconds", {"type": float, "default": 20.0, "help": "of each measurement"}),
        ("--cards", {"type": int, "default": 20_000, "help": "that pay"}),
        (
            "--kafka",
            {"choices": ("shipped", "defaults"), "default": "shipped", "help": "whose settings the broker has"},
        ),
        ("--store", {"choices": KINDS, "default": KINDS[0], "help": "of the profiles"}),
    )
    rates = [int(rate) for rate in arguments.rates.split(",")]
    held_out = [int(rate) for rate in arguments.held_out.split(",") if rate]
    with (
        tempfile.TemporaryDirectory(prefix="paywarden-perf-") as name,
        tempfile.TemporaryDirectory(prefix="paywarden-perf-", dir="/dev/shm") as memory,
        counted_store(arguments.store, Path(name)) as store,
    ):
        folder, jmx_port = Path(name), free_port()
        # A day of payments of this many cards.
        world = prepare_world(
            folder, CATALOGUE, seconds=1, rate=arguments.cards * 1.5 / 1.2, seed=1, console=Console(stderr=True)
        )
        is_shipped = arguments.kafka == "shipped"
        broker = {**PRODUCTION_BROKER, **shipped_broker()} if is_shipped else PRODUCTION_BROKER
        jvm = [*PRODUCTION_JVM, *(shipped_jvm() if is_shipped else ()), *_jmx(jmx_port)]
        with KafkaServer(folder / "kafka", settings=broker, jvm=jvm) as kafka:
            settings = KafkaSettings(bootstrap=kafka.bootstrap)
            create_topics(settings, TopicSettings(), [entity.name for entity in CATALOGUE.entities])
            config = folder / "paywarden.toml"
            text = LOCAL_CONFIG.format(bootstrap=kafka.bootstrap, folder=folder, memory=memory, answered="")
            # The first sections say which store there is.
            config.write_text(store.config + text[text.index("[mirror]") :], encoding="utf-8")
            with running_parts(config, folder) as parts:
                parts.wait_until_ready(print)
                system = _System(parts, kafka.pid, jmx_port, settings, world.requests, store)
                figures = _measure(system, rates, held_out, arguments.seconds)
            figures["cores_kafka_alone"] = _alone(kafka.pid, arguments.seconds)
            print(f"Kafka without a client: {figures['cores_kafka_alone']:.3f} cores")
    finish(figures, arguments.json)


def _alone(pid: int, seconds: float) -> float:
    """Returns the cores that a warm broker without a client keeps busy."""
    time.sleep(_WARM_S)
    before_s = _cpu_seconds(pid)
    time.sleep(seconds)
    return (_cpu_seconds(pid) - before_s) / seconds


def _jmx(port: int) -> Sequence[str]:
    name = "-Dcom.sun.management.jmxremote"
    options = [f"{name}.port={port}", f"{name}.rmi.port={port}", f"{name}.host=127.0.0.1"]
    return [*options, f"{name}.authenticate=false", f"{name}.ssl=false", "-Djava.rmi.server.hostname=127.0.0.1"]


def _measure(system: _System, rates: Sequence[int], held_out: Sequence[int], seconds: float) -> dict[str, float]:
    print(f"\n{'rate':>6} {'outcomes':>9} " + " ".join(f"{part:>10}" for part in (*_PARTS, "cores")), end="")
    print(f" {'Kafka: req/s':>12} {'bytes/payment':>14} {'store: req/s':>12} {'bytes/payment':>14}", end="")
    print(f" {'p50 ms':>8} {'p99 ms':>8} {'age p99':>8}")
    figures: dict[str, float] = {}
    cores: dict[int, dict[str, float]] = {}
    figures["machine_cores"] = psutil.cpu_count() or 1
    system.warm()
    for rate in rates:
        found = system.at(rate, seconds, with_outcomes=True)
        figures |= {f"{name}_{rate}" if "{}" not in name else name.format(rate): value for name, value in found.items()}
        cores[rate] = {part: found[f"cores_{{}}_{part}"] for part in _PARTS} | {"all": found["cores"]}
    if _COMPARED_RATE in rates:
        found = system.at(_COMPARED_RATE, seconds, with_outcomes=False)
        figures |= {f"{name}_{_COMPARED_RATE}_no_outcomes": found[name] for name in ("cores", "p50_ms", "p99_ms")}
    figures |= _marginal(figures, cores)
    kinds = len(CATALOGUE.entities)
    for rate in held_out:
        found = system.at(rate, seconds, with_outcomes=True)
        costs = MEASURED.with_figures(figures, "this run")
        planned = sum(busy_cores(costs, Requirements(rate, 0, 1), kinds).values())
        figures[f"capacity_error_{rate}"] = planned / found["cores"] - 1
        print(f"{rate:>6}: planned {planned:.3f} cores, measured {found['cores']:.3f}", flush=True)
    figures["max_per_second"] = system.most(seconds)
    return figures


def _marginal(figures: Mapping[str, float], cores: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Returns each process's CPU without payments and for one payment more, and the bytes that one brings to Kafka.

    Lines through the lower rates.
    """
    rates = [rate for rate, used in cores.items() if used["all"] < FULL_SHARE * (psutil.cpu_count() or 1)]
    if len(rates) < 2:
        return {}
    found: dict[str, float] = {}
    for part in (*_PARTS, "all"):
        slope, fixed = np.polyfit(rates, [cores[rate][part] for rate in rates], 1)
        found |= {f"fixed_cores_{part}": float(fixed), f"marginal_us_{part}": float(slope * 1e6)}
    for way in ("in", "out"):
        bytes_per_second = [figures[f"kafka_bytes_{way}_per_second_{rate}"] for rate in rates]
        found[f"kafka_bytes_{way}_per_payment"] = float(np.polyfit(rates, bytes_per_second, 1)[0])
    return found


class _System:
    """The running system, and the payment system around it."""

    def __init__(
        self,
        parts: Parts,
        kafka_pid: int,
        jmx_port: int,
        kafka: KafkaSettings,
        requests: Sequence[ScoreRequest],
        store: CountedStore,
    ) -> None:
        self._store = store
        self._parts, self._jmx_port, self._kafka, self._requests = parts, jmx_port, kafka, requests
        self._pids = {**parts.pids, "kafka": kafka_pid}
        self._runs = 0

    def warm(self) -> None:
        """Let the load run until the just-in-time compilers have compiled its code."""
        self._load(_JVM_WARM_RATE, _JVM_WARM_S, [], with_outcomes=True)

    def at(self, rate: int, seconds: float, *, with_outcomes: bool) -> dict[str, float]:
        """Measure at a rate. Names with `{}` want the rate in them; to the others it is appended."""
        ages: list[int] = []
        report: LoadReport | None = None
        if rate:
            self._load(rate, _WARM_S, [], with_outcomes=with_outcomes)
        else:
            time.sleep(_WARM_S)
        before = self._reading()
        if rate:
            report = self._load(rate, seconds, ages, with_outcomes=with_outcomes)
        else:
            time.sleep(seconds)
        after = self._reading()
        assert self._parts.all_run(), [reading.trouble() for reading in self._parts.readings()]
        took_s = after.time_s - before.time_s
        cores = {part: (after.cpu_s[part] - before.cpu_s[part]) / took_s for part in _PARTS}
        counts = {name: (count - before.kafka.get(name, 0)) / took_s for name, count in after.kafka.items()}
        bytes_in, bytes_out = counts.pop("BytesInPerSec", 0.0), counts.pop("BytesOutPerSec", 0.0)
        # Kafka counts each fetch of a consumer twice.
        counts.pop("FetchConsumer", None)
        requests = sum(counts.values())
        store_requests = (after.store.requests - before.store.requests) / took_s
        store_bytes = (after.store.moved_bytes - before.store.moved_bytes) / took_s
        wakeups = {part: (after.wakeups[part] - before.wakeups[part]) / took_s for part in _PARTS}
        compiling = (after.compiling_s - before.compiling_s) / took_s
        figures = {
            "cores": sum(cores.values()),
            "cores_{}_kafka_compiling": compiling,
            **{f"wakeups_{{}}_{part}": count for part, count in wakeups.items()},
            **{f"cores_{{}}_{part}": value for part, value in cores.items()},
            "kafka_requests_per_second": requests,
            **{f"kafka_requests_per_second_{{}}_{kind.lower()}": count for kind, count in counts.items() if count},
            "kafka_bytes_in_per_second": bytes_in,
            "kafka_bytes_out_per_second": bytes_out,
            "store_requests_per_second": store_requests,
            "store_bytes_per_second": store_bytes,
        }
        if report is not None:
            figures |= {
                "p50_ms": report.p50_ms,
                "p99_ms": report.p99_ms,
                "p999_ms": report.p999_ms,
                "lag_p99_ms": report.lag_p99_ms,
                "not_ok": report.sent - report.ok,
                "profile_age_p50_ms": float(np.percentile(ages, 50)),
                "profile_age_p99_ms": float(np.percentile(ages, 99)),
                "kafka_requests_per_payment": requests / rate,
                "store_requests_per_payment": store_requests / rate,
                "store_bytes_per_payment": store_bytes / rate,
            }
        line = f"{rate:>6} {'yes' if with_outcomes else 'no':>9} "
        line += " ".join(f"{value:>10.3f}" for value in (*cores.values(), figures["cores"]))
        line += f" {requests:>12.1f} {bytes_in / rate if rate else bytes_in:>14.0f}"
        line += f" {store_requests:>12.1f} {store_bytes / rate if rate else store_bytes:>14.0f}"
        if report is not None:
            line += f" {report.p50_ms:>8.2f} {report.p99_ms:>8.2f} {figures['profile_age_p99_ms']:>8.0f}"
        print(line, flush=True)
        print(f"{'':>17}{_shares(counts)}")
        woken = "  ".join(f"{part} {count:.0f}" for part, count in wakeups.items())
        print(f"{'':>17}compiling {compiling:.3f}  wake-ups/s: {woken}", flush=True)
        return figures

    def most(self, seconds: float) -> float:
        """Returns the payments a second of the slower of endpoint and stream, when a closed loop keeps both busy."""
        options = LoadOptions(connections=16, connections_max=16)
        with _PaymentSystem(self._kafka, [], with_outcomes=True) as payments:
            worked = self._stream_payments()
            load = run_closed(
                self._parts.target, self._bodies(), seconds=seconds, on_answer=payments.on_answer, options=options
            )
            report = drive(load)
            worked = self._stream_payments() - worked
        return min(report.ok_per_second, worked / seconds)

    def _load(self, rate: int, seconds: float, ages: list[int], *, with_outcomes: bool) -> LoadReport:
        with _PaymentSystem(self._kafka, ages, with_outcomes=with_outcomes) as payments:
            return drive(
                run_load(self._parts.target, self._bodies(), rate=rate, seconds=seconds, on_answer=payments.on_answer)
            )

    def _bodies(self) -> Iterator[bytes]:
        self._runs += 1
        return stamped_bodies(self._requests, id_prefix=f"w{self._runs}")

    def _stream_payments(self) -> float:
        stream = next(reading for reading in self._parts.readings() if reading.name == "stream")
        return stream.total("paywarden_stream_payments_total")

    def _reading(self) -> _Reading:
        # Kafka is asked first: the Java program that asks takes a second, which nothing may count.
        kafka = self._kafka_counts()
        cpu_s = {part: _cpu_seconds(pid) for part, pid in self._pids.items()}
        wakeups = {part: _wakeups(pid) for part, pid in self._pids.items()}
        store = self._store.counts(self._pids["stream"])
        return _Reading(time.monotonic(), cpu_s, _compiling_seconds(self._pids["kafka"]), wakeups, kafka, store)

    def _kafka_counts(self) -> dict[str, int]:
        program = Path(__file__).parent / "tools" / "KafkaCounts.java"
        done = subprocess.run(
            [tool("java"), str(program), str(self._jmx_port)], capture_output=True, text=True, check=True
        )
        return {name: int(count) for name, count in map(str.split, done.stdout.splitlines())}


def _shares(requests: Mapping[str, float]) -> str:
    """Returns the requests a second by kind, the most frequent first, without those that are rarer than one in 10 s."""
    kinds = sorted(requests.items(), key=lambda kind: -kind[1])
    return "  ".join(f"{name} {count:.1f}" for name, count in kinds if count >= 0.1)


def _cpu_seconds(pid: int) -> float:
    parent = psutil.Process(pid)
    times = [each.cpu_times() for each in (parent, *parent.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def _compiling_seconds(pid: int) -> float:
    """Returns the CPU seconds of the threads in which a JVM compiles."""
    threads = {thread.id: thread for thread in psutil.Process(pid).threads()}
    spent_s = 0.0
    for number, thread in threads.items():
        # A thread may have ended by now.
        with suppress(OSError):
            if Path(f"/proc/{pid}/task/{number}/comm").read_text(encoding="utf-8").startswith(("C1 Comp", "C2 Comp")):
                spent_s += thread.user_time + thread.system_time
    return spent_s


def _wakeups(pid: int) -> int:
    """Returns how often the threads of a process and its children have gone to sleep, and so been woken."""
    parent, count = psutil.Process(pid), 0
    for process in (parent, *parent.children(recursive=True)):
        for thread in process.threads():
            with suppress(OSError):
                status = Path(f"/proc/{process.pid}/task/{thread.id}/status").read_text(encoding="utf-8")
                count += int(_SLEPT.findall(status)[0])
    return count


class _PaymentSystem:
    """Publishes each answered payment, and outcomes of some. A thread does it: the load must not wait for Kafka."""

    def __init__(self, kafka: KafkaSettings, ages: list[int], *, with_outcomes: bool) -> None:
        ids = LocalSchemaIds()
        self._producer = make_producer(kafka, linger_ms=5)
        self._payment_topic, self._outcome_topic = kafka.topic("payments"), kafka.topic("outcomes")
        self._payments = Encoder("payments", ids.id_of("payments"))
        self._outcomes = Encoder("outcomes", ids.id_of("outcomes"))
        self._ages, self._with_outcomes = ages, with_outcomes
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
        if self._with_outcomes and self._published % _PAYMENTS_PER_OUTCOME == 0:
            label = "fraud" if self._published % _PAYMENTS_PER_FRAUD == 0 else "genuine"
            self._due.append((time.monotonic() + _OUTCOME_AFTER_S, request.payment_id, label))


if __name__ == "__main__":
    main()
