"""The p99 of a scoring worker while something behind it fails, compared with its p99 undisturbed.

Everything is real: Kafka, stream, companion, and one worker of `paywarden serve` on a core of its own. An open loop
with Poisson arrivals meets one fault after the other:

    companion    stopped (SIGSTOP): the outbox grows, the mirror grows old
    kafka        broker and stream stopped (SIGSTOP): the store gets no writes, and nothing moves behind the host
    slow_sync    every sync of a file in the outbox takes 50 ms longer; fsync is "interval"
    slow_write   every write to a file in the outbox takes a millisecond longer

Each fault ends before the next begins. At the end every answered decision must be on the topic, or the benchmark fails.
A preloaded library, perf/tools/slow_disk.c, makes the disk slow; this program compiles it. Used for: the promise that
none of the faults raises the p99.

    python -m perf.faults [--rate R] [--seconds S] [--json FILE]

Kafka, stream, companion and the load share the other cores. On a machine with two cores a higher rate would measure
them instead of the worker. `--rate 0` takes half of the worker's capacity, for machines with more cores. Needs the
services that `make services` fetches.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

from paywarden.ops.demo.processes import running_parts
from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load_run import LoadAnswer, run_closed, run_load
from paywarden.ops.loadgen.target import LoadOptions
from paywarden.schemas.avro import Decoder, LocalSchemaIds
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.reading import consume, make_consumer
from perf.tools.measuring import LATENCY_OPTIONS, arguments_of, drive, finish
from perf.tools.servers import pin_load, serving
from perf.worlds.kafka_world import kafka_world

_SLOW_SYNC_US, _SLOW_WRITE_US = 50_000, 1_000
_DELIVERY_TIMEOUT_S = 60.0
_CARDS = 5_000


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--rate", {"type": float, "default": 2000.0, "help": "payments a second; 0: half of the capacity"}),
        ("--seconds", {"type": float, "default": 10.0, "help": "of each fault"}),
    )
    pin_load()
    with kafka_world() as world:
        requests = world.prepare(_CARDS).requests
        # The section of Kafka stands last in the local settings, the outbox's keys in the middle.
        config = world.write_config()
        text = config.read_text(encoding="utf-8")
        config.write_text(text.replace("[outbox]\n", '[outbox]\nfsync = "interval"\n'), encoding="utf-8")
        switch = world.folder / "slow"
        environment = _slow_disk(world.folder, switch)
        with running_parts(config, world.folder, ["stream", "companion"]) as parts:
            parts.wait_until_ready(print)
            with serving(config, environment=environment) as worker:
                faults: dict[str, Callable[[], AbstractContextManager[None]]] = {
                    "undisturbed": nullcontext,
                    "companion": partial(_stopped, [parts.pids["companion"]]),
                    "kafka": partial(_stopped, [world.kafka_pid, parts.pids["stream"]]),
                    "slow_sync": partial(_switched, switch.with_suffix(".sync")),
                    "slow_write": partial(_switched, switch.with_suffix(".write")),
                }
                answered = set[str]()
                figures = _measure(worker.http, requests, faults, answered, arguments.rate, arguments.seconds)
                figures |= {"answered": len(answered), "lost": _lost(world.kafka, answered)}
    finish(figures, arguments.json)
    assert figures["lost"] == 0, "answered decisions are not on the topic"


def _measure(
    url: str,
    requests: Sequence[ScoreRequest],
    faults: dict[str, Callable[[], AbstractContextManager[None]]],
    answered: set[str],
    rate: float,
    seconds: float,
) -> dict[str, float]:
    def note(answer: LoadAnswer) -> None:
        if answer.status == 200:
            answered.add(ScoreResponse.FromString(answer.body).decision_id)

    options = LoadOptions(connections=64, connections_max=64)
    most = drive(
        run_closed(url, stamped_bodies(requests, id_prefix="warm"), seconds=2.0, options=options, on_answer=note)
    )
    rate = rate or most.ok_per_second / 2
    figures: dict[str, float] = {"capacity_per_second": most.ok_per_second, "rate": rate}
    for name, fault in faults.items():
        # Shipping a backlog takes the load's core.
        time.sleep(2.0)
        bodies = stamped_bodies(requests, id_prefix=name[:9])
        with fault():
            report = drive(run_load(url, bodies, rate=rate, seconds=seconds, options=LATENCY_OPTIONS, on_answer=note))
        keys = ("p50_ms", "p99_ms", "p999_ms", "lag_p99_ms")
        figures |= {f"{name}_{key}": getattr(report, key) for key in keys} | {f"{name}_not_ok": report.sent - report.ok}
        print(f"{name:<14} p99 {report.p99_ms:.2f} ms, {report.sent - report.ok} of {report.sent} not answered")
    return figures


@contextmanager
def _stopped(pids: Sequence[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def _switched(switch: Path) -> Iterator[None]:
    switch.touch()
    try:
        yield
    finally:
        switch.unlink()


def _slow_disk(folder: Path, switch: Path) -> dict[str, str]:
    """Return the environment that gives a process a slow outbox while there is a file `switch`.write or .sync."""
    library, source = folder / "slow_disk.so", Path(__file__).parent / "tools" / "slow_disk.c"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", str(source), "-o", str(library), "-ldl"], check=True)
    return {
        "LD_PRELOAD": str(library),
        "PAYWARDEN_SLOW_PATH": str(folder / "outbox"),
        "PAYWARDEN_SLOW_SWITCH": str(switch),
        "PAYWARDEN_SLOW_WRITE_US": str(_SLOW_WRITE_US),
        "PAYWARDEN_SLOW_SYNC_US": str(_SLOW_SYNC_US),
    }


def _lost(kafka: KafkaSettings, answered: set[str]) -> int:
    """Return how many answered decisions are not on the topic after enough time."""
    decoder, missing = Decoder("decisions", LocalSchemaIds()), set(answered)
    consumer = make_consumer(kafka, group_id="paywarden-faults")
    consumer.subscribe([kafka.topic("decisions")])
    until = time.monotonic() + _DELIVERY_TIMEOUT_S
    while missing and time.monotonic() < until:
        for record in consume(consumer, 500, 0.1).records:
            assert record.value is not None
            missing.discard(decoder.decode(record.value)["decision_id"])
    consumer.close()
    return len(missing)


if __name__ == "__main__":
    main()
