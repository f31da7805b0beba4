"""The p99 of a scoring worker while something behind it fails, compared with its p99 undisturbed.

Everything is real but Kafka, which is the embedded broker in a process of its own: stream, companion and one worker of
`paywarden serve` on a core of its own. An open loop with Poisson arrivals meets one fault after the other:

    companion    stopped (SIGSTOP): the outbox grows, the mirror grows old
    kafka        broker and stream stopped (SIGSTOP): the store gets no writes, and nothing moves behind the host
    slow_sync    every sync of a file in the outbox takes 50 ms longer; fsync is "interval"
    slow_write   every write to a file in the outbox takes a millisecond longer

Each fault ends before the next begins. At the end every answered decision must be on the topic, or the benchmark fails.
A preloaded library, perf/tools/slow_disk.c, makes the disk slow; this program compiles it. Used for: the promise that
none of the faults raises the p99.

    python -m perf.faults [--rate R] [--seconds S] [--json FILE]

Broker, stream, companion and the load share the other cores. On a machine with two cores a higher rate would measure
them instead of the worker. `--rate 0` takes half of the worker's capacity, for machines with more cores.
"""

from __future__ import annotations

import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import Consumer

from paywarden.features.profiles.money import load_rates
from paywarden.features.stores.lmdb import LmdbSettings, LmdbStore
from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load import LoadAnswer, run_closed, run_load
from paywarden.ops.loadgen.report import LoadReport
from paywarden.ops.loadgen.target import LoadOptions
from paywarden.schemas.avro import Decoder, LocalSchemaIds
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.reading import consume, make_consumer
from paywarden.streams.maintenance.backfill import backfill
from perf.tools.measuring import LATENCY_OPTIONS, arguments_of, drive, finish
from perf.tools.servers import Server, load_core, pin_load, running, serving
from perf.worlds.scoring_world import WorldSize, make_past, requests_over

_SLOW_SYNC_US, _SLOW_WRITE_US = 50_000, 1_000
_DELIVERY_TIMEOUT_S = 60.0

_CONFIG = """\
[kafka]
bootstrap = "{bootstrap}"
check_crcs = false
[store]
kind = "lmdb"
[lmdb]
path = "{folder}/store"
[mirror]
path = "{memory}/mirror"
[outbox]
directory = "{folder}/outbox"
fsync = "interval"
[serve]
bundle = "{bundle}"
metrics = "{memory}/metrics"
[http]
port = 0
"""


@dataclass
class _Host:
    """All processes, the answered decisions, and those that have arrived on the topic."""

    broker: Server
    stream: Server
    companion: Server
    worker: Server
    requests: list[ScoreRequest]
    slow_disk: Path
    answered: set[str] = field(default_factory=set)
    arrived: set[str] = field(default_factory=set)


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--rate", {"type": float, "default": 2000.0, "help": "payments a second; 0: half of the capacity"}),
        ("--seconds", {"type": float, "default": 10.0, "help": "of each fault"}),
    )
    pin_load()
    with ExitStack() as stack:
        host = stack.enter_context(_running_host())
        stack.enter_context(_reading(host))
        figures = _measure(host, arguments.rate, arguments.seconds)
        figures["answered"], figures["lost"] = len(host.answered), _lost(host)
    finish(figures, arguments.json)
    assert figures["lost"] == 0, "answered decisions are not on the topic"


def _measure(host: _Host, rate: float, seconds: float) -> dict[str, float]:
    options = LoadOptions(connections=64, connections_max=64)
    bodies = stamped_bodies(host.requests, id_prefix="warm")
    most = drive(run_closed(host.worker.http, bodies, seconds=2.0, options=options, on_answer=_noting(host)))
    rate = rate or most.ok_per_second / 2
    figures: dict[str, float] = {"capacity_per_second": most.ok_per_second, "rate": rate}
    for name, fault in _faults(host).items():
        # Shipping a backlog would take the load's core: each fault begins without one.
        _lost(host)
        with fault():
            report = _load(host, rate, seconds, name)
        figures |= {
            f"{name}_p50_ms": report.p50_ms,
            f"{name}_p99_ms": report.p99_ms,
            f"{name}_p999_ms": report.p999_ms,
            f"{name}_not_ok": report.sent - report.ok,
            f"{name}_lag_p99_ms": report.lag_p99_ms,
        }
        print(
            f"{name:<14} p99 {report.p99_ms:.2f} ms, {report.sent - report.ok} of {report.sent} not answered",
            flush=True,
        )
        time.sleep(1.0)
    return figures


def _load(host: _Host, rate: float, seconds: float, name: str) -> LoadReport:
    bodies = stamped_bodies(host.requests, id_prefix=name[:9])
    load = run_load(
        host.worker.http, bodies, rate=rate, seconds=seconds, options=LATENCY_OPTIONS, on_answer=_noting(host)
    )
    return drive(load)


def _noting(host: _Host) -> Callable[[LoadAnswer], None]:
    def note(answer: LoadAnswer) -> None:
        if answer.status == 200:
            host.answered.add(ScoreResponse.FromString(answer.body).decision_id)

    return note


# Faults


def _faults(host: _Host) -> dict[str, Callable[[], AbstractContextManager[None]]]:
    return {
        "undisturbed": nullcontext,
        "companion": lambda: _stopped(host.companion),
        "kafka": lambda: _stopped(host.broker, host.stream),
        "slow_sync": lambda: _slow(host, "sync"),
        "slow_write": lambda: _slow(host, "write"),
    }


@contextmanager
def _stopped(*servers: Server) -> Iterator[None]:
    for server in servers:
        server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for server in servers:
            server.process.send_signal(signal.SIGCONT)


@contextmanager
def _slow(host: _Host, kind: str) -> Iterator[None]:
    switch = host.slow_disk.with_name(f"{host.slow_disk.name}.{kind}")
    switch.touch()
    try:
        yield
    finally:
        switch.unlink()


def slow_disk_library(folder: Path) -> Path:
    """Compile perf/tools/slow_disk.c. Raises Misconfigured without a compiler."""
    library = folder / "slow_disk.so"
    source = Path(__file__).parent / "tools" / "slow_disk.c"
    try:
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", str(source), "-o", str(library), "-ldl"], check=True)
    except FileNotFoundError as error:
        raise Misconfigured("there is no C compiler (gcc) on this machine") from error
    return library


def slow_disk_environment(library: Path, folder: Path, switch: Path) -> dict[str, str]:
    """Returns the environment that gives a process a slow disk under `folder`, switched by `switch`.write and .sync."""
    return {
        "LD_PRELOAD": str(library),
        "PAYWARDEN_SLOW_PATH": str(folder),
        "PAYWARDEN_SLOW_SWITCH": str(switch),
        "PAYWARDEN_SLOW_WRITE_US": str(_SLOW_WRITE_US),
        "PAYWARDEN_SLOW_SYNC_US": str(_SLOW_SYNC_US),
    }


# Processes


@contextmanager
def _running_host() -> Iterator[_Host]:
    past = make_past(WorldSize())
    memory_root = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paywarden-perf-")))
        memory = stack.enter_context(tempfile.TemporaryDirectory(prefix="paywarden-perf-", dir=memory_root))
        with closing(LmdbStore.from_settings(LmdbSettings(path=str(folder / "store")))) as store:
            backfill(past.history, store, engine=past.engine, rates=load_rates(), outcome_days=30)
        core = load_core()
        broker = stack.enter_context(running("paywarden", "broker", core=core))
        config = folder / "paywarden.toml"
        text = _CONFIG.format(bootstrap=_bootstrap(broker), folder=folder, memory=memory, bundle=past.bundle.resolve())
        config.write_text(text, encoding="utf-8")
        switch = folder / "slow"
        environment = slow_disk_environment(slow_disk_library(folder), folder / "outbox", switch)
        stream = stack.enter_context(running("paywarden", "--config", str(config), "stream", core=core))
        companion = stack.enter_context(running("paywarden", "--config", str(config), "companion", core=core))
        worker = stack.enter_context(serving(config, environment=environment))
        yield _Host(broker, stream, companion, worker, requests_over(past.payments, None, WorldSize()), switch)


def _bootstrap(broker: Server) -> str:
    return next(iter(broker.addresses.values()))


# Decisions


@contextmanager
def _reading(host: _Host) -> Iterator[None]:
    """Read the decisions as they come: the embedded broker keeps only the last of them."""
    over = threading.Event()
    consumer = make_consumer(KafkaSettings(bootstrap=_bootstrap(host.broker)), group_id="paywarden-faults")
    thread = threading.Thread(target=_read, args=(consumer, host.arrived, over))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        consumer.close()


def _read(consumer: Consumer, arrived: set[str], over: threading.Event) -> None:
    decoder = Decoder("decisions", LocalSchemaIds())
    consumer.subscribe(["decisions"])
    while not over.is_set():
        for record in consume(consumer, 500, 0.1).records:
            assert record.value is not None
            arrived.add(decoder.decode(record.value)["decision_id"])


def _lost(host: _Host) -> int:
    """Returns how many answered decisions have not arrived after enough time."""
    until = time.monotonic() + _DELIVERY_TIMEOUT_S
    while (missing := host.answered - host.arrived) and time.monotonic() < until:
        time.sleep(0.2)
    return len(missing)


if __name__ == "__main__":
    main()
