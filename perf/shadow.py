"""A challenger in the shadow: does every decision get a partner, do callers wait longer, and what does it cost?

Measured, on all cores of the machine: `paywarden serve` with one worker, `companion`, `stream` and Kafka. First the
capacity, in a closed loop. Then an open loop at a share of it, and a closed loop, in turns without and with
`paywarden shadow run`, whose one challenger is a copy of the served bundle.

The capacity is that of the whole machine: the payments of the closed loop, by the time until Kafka has their decisions.
The endpoint alone answers more payments, and their decisions are then shipped later.

    python -m perf.shadow [--load 0.75] [--seconds 15] [--rounds 3] [--cards 5000] [--waiting-bytes N] [--json FILE]

`paired_share`: the share of the open loops' decisions that got a partner, counted once the challenger has no more to
read. `p99_ratio`: the callers' p99 with the challenger to that without, medians of the rounds. `cpu_ratio`: CPU time of
the host's processes, likewise: serve, companion and challenger to serve and companion. At overload
`overload_ok_ratio` is the payments answered with the challenger to those without, and `overload_paired_share` the
share that the challenger kept up with: it should fall before the payments do.

`shadow_us` is the challenger's CPU time a decision, and `shadow_cores_wanted` the cores for all decisions of the
load. `shadow_cores_got` are the cores that it got while the load ran, `idle_cores` those that nobody used then. A
challenger runs in SCHED_IDLE: if it got less than it wanted and nothing was idle, others filled the cores, and it
caught up later. With a small `--waiting-bytes` ([shadow] waiting_bytes_max) it takes its share of the cores within
these loads.

Needs the services that `make services` fetches.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.models.bundle.bundle import MANIFEST
from paywarden.ops.demo.demo import prepare_world
from paywarden.ops.demo.live_run import LOCAL_CONFIG
from paywarden.ops.demo.processes import Parts, running_parts
from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load import run_closed, run_load
from paywarden.ops.loadgen.report import LoadReport
from paywarden.ops.loadgen.target import LoadOptions
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.topics import TopicSettings, create_topics
from perf.tools.measuring import arguments_of, drive, finish
from tests.services.servers.kafka import PRODUCTION_JVM, KafkaServer

_CHALLENGER = "copy"
_HOST = ("serve", "companion")
_OPTIONS = LoadOptions(connections=16, connections_max=16)
_CLOSED_S, _WARM_S = 10.0, 3.0
_PATIENCE_S = 60.0
_LOOK_S = 0.1


@dataclass(frozen=True)
class _Round:
    report: LoadReport
    cpu_s: float
    # Decisions with a partner, and those that were shed.
    paired: float = 0.0
    shed: float = 0.0
    # CPU time of the challenger, until it had read all, and while the load ran; and cores that were idle then.
    shadow_cpu_s: float = 0.0
    shadow_cores: float = 0.0
    idle_cores: float = 0.0


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--load", {"type": float, "default": 0.75, "help": "share of the capacity"}),
        ("--seconds", {"type": float, "default": 15.0, "help": "of each load"}),
        ("--rounds", {"type": int, "default": 3, "help": "without and with the challenger"}),
        ("--cards", {"type": int, "default": 5_000, "help": "that pay"}),
        ("--waiting-bytes", {"type": int, "help": "that may wait for the challenger (default: the setting's)"}),
    )
    with (
        tempfile.TemporaryDirectory(prefix="paywarden-perf-") as name,
        tempfile.TemporaryDirectory(prefix="paywarden-perf-", dir="/dev/shm") as memory,
    ):
        folder = Path(name)
        world = prepare_world(
            folder, CATALOGUE, seconds=1, rate=arguments.cards * 1.5 / 1.2, seed=1, console=Console(stderr=True)
        )
        with KafkaServer(folder / "kafka", jvm=PRODUCTION_JVM) as kafka:
            create_topics(
                KafkaSettings(bootstrap=kafka.bootstrap),
                TopicSettings(),
                [entity.name for entity in CATALOGUE.entities],
            )
            config = folder / "paywarden.toml"
            text = LOCAL_CONFIG.format(bootstrap=kafka.bootstrap, folder=folder, memory=memory, answered="")
            waiting = arguments.waiting_bytes and f"[shadow]\nwaiting_bytes_max = {arguments.waiting_bytes}\n"
            challenger = f'[[shadow.challengers]]\nname = "{_CHALLENGER}"\nbundle = "{_copied(folder)}"\n'
            config.write_text(text + (waiting or "") + challenger, encoding="utf-8")
            with running_parts(config, folder) as parts:
                parts.wait_until_ready(print)
                system = _System(parts, config, world.requests)
                figures = system.measure(arguments.load, arguments.seconds, arguments.rounds)
    finish(figures, arguments.json)


def _copied(folder: Path) -> Path:
    """Returns a copy of the served bundle, the same trees under another name."""
    copy = folder / "challenger"
    shutil.copytree(folder / "bundle", copy)
    content = json.loads((copy / MANIFEST).read_text(encoding="utf-8"))
    content["model_version"] = _CHALLENGER
    (copy / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return copy


class _System:
    """The running system, without and with a challenger."""

    def __init__(self, parts: Parts, config: Path, requests: list[ScoreRequest]) -> None:
        self._parts, self._config, self._requests = parts, config, requests
        self._runs = 0

    def measure(self, load: float, seconds: float, rounds: int) -> dict[str, float]:
        self._closed(_WARM_S)
        capacity = self._capacity()
        rate = load * capacity
        print(f"capacity {capacity:.0f}/s, rate {rate:.0f}/s", flush=True)
        quiet, shadowed = [], []
        quiet_ok, shadowed_ok, kept_up, shed = [], [], [], 0.0
        for number in range(rounds):
            quiet.append(self._round(rate, seconds))
            quiet_ok.append(self._closed(seconds).ok_per_second)
            with self._shadow() as shadow:
                shadowed.append(self._round(rate, seconds, shadow))
                before = shadow.drained()
                overloaded = self._closed(seconds)
                after = shadow.drained()
            shadowed_ok.append(overloaded.ok_per_second)
            kept_up.append((after["evaluated"] - before["evaluated"]) / overloaded.ok)
            shed += after["shed"] - before["shed"]
            for title, one in (("without", quiet[-1]), ("with", shadowed[-1])):
                print(
                    f"round {number} {title:<8} p50 {one.report.p50_ms:6.2f} ms  p99 {one.report.p99_ms:6.2f} ms  "
                    f"cpu {one.cpu_s / one.report.ok * 1e6:6.1f} us  paired {one.paired:.0f} of {one.report.ok}  "
                    f"challenger's cores {one.shadow_cores:.2f}",
                    flush=True,
                )
        paired = sum(one.paired for one in shadowed)
        shadow_us = sum(one.shadow_cpu_s for one in shadowed) / max(1.0, paired) * 1e6
        return {
            "capacity_per_second": capacity,
            "rate": rate,
            "paired_share": paired / sum(one.report.ok for one in shadowed),
            "shadow_us": shadow_us,
            "shadow_cores_wanted": shadow_us * rate / 1e6,
            "shadow_cores_got": statistics.median(one.shadow_cores for one in shadowed),
            "idle_cores": statistics.median(one.idle_cores for one in shadowed),
            "shed": sum(one.shed for one in shadowed),
            "p99_ratio": _median(shadowed, "p99_ms") / _median(quiet, "p99_ms"),
            "p50_ratio": _median(shadowed, "p50_ms") / _median(quiet, "p50_ms"),
            "cpu_ratio": _cpu_us(shadowed) / _cpu_us(quiet),
            "cpu_us_quiet": _cpu_us(quiet),
            "cpu_us_shadow": _cpu_us(shadowed),
            "p99_ms_quiet": _median(quiet, "p99_ms"),
            "p99_ms_shadow": _median(shadowed, "p99_ms"),
            "overload_ok_ratio": statistics.median(shadowed_ok) / statistics.median(quiet_ok),
            "overload_paired_share": statistics.median(kept_up),
            "overload_shed": shed,
        }

    def _capacity(self) -> float:
        """Returns how many payments a second are answered and shipped while the load takes all it can get."""
        before, began = self._shipped(), time.monotonic()
        answered = self._closed(_CLOSED_S).ok
        while (left := before + answered - self._shipped()) > 0:
            if time.monotonic() > began + _CLOSED_S + _PATIENCE_S:
                raise RuntimeError(f"the companion does not ship: {left} decisions wait")
            time.sleep(_LOOK_S)
        return answered / (time.monotonic() - began)

    def _shipped(self) -> int:
        return self._parts.part("companion").reading().total("paywarden_companion_decisions_shipped_total")

    def _round(self, rate: float, seconds: float, shadow: _Shadow | None = None) -> _Round:
        self._open(rate, _WARM_S)
        before = {} if shadow is None else shadow.drained()
        host_cpu_s, shadow_cpu_s = self._cpu_s(), 0.0 if shadow is None else _cpu_seconds(shadow.process.pid)
        idle_s, began = psutil.cpu_times().idle, time.monotonic()
        report = self._open(rate, seconds)
        host_cpu_s = self._cpu_s() - host_cpu_s
        if shadow is None:
            return _Round(report, host_cpu_s)
        took_s = time.monotonic() - began
        shadow_cores = (_cpu_seconds(shadow.process.pid) - shadow_cpu_s) / took_s
        idle_cores = (psutil.cpu_times().idle - idle_s) / took_s
        # The challenger evaluates its last batches after the load has ended, and their CPU time counts.
        after = shadow.drained()
        shadow_cpu_s = _cpu_seconds(shadow.process.pid) - shadow_cpu_s
        paired, shed = (after[name] - before[name] for name in ("evaluated", "shed"))
        return _Round(report, host_cpu_s + shadow_cpu_s, paired, shed, shadow_cpu_s, shadow_cores, idle_cores)

    def _open(self, rate: float, seconds: float) -> LoadReport:
        return drive(run_load(self._parts.target, self._bodies(), rate=rate, seconds=seconds))

    def _closed(self, seconds: float) -> LoadReport:
        return drive(run_closed(self._parts.target, self._bodies(), seconds=seconds, options=_OPTIONS))

    def _bodies(self) -> Iterator[bytes]:
        self._runs += 1
        return stamped_bodies(self._requests, id_prefix=f"s{self._runs}")

    def _cpu_s(self) -> float:
        return sum(_cpu_seconds(self._parts.pids[part]) for part in _HOST)

    @contextmanager
    def _shadow(self) -> Iterator[_Shadow]:
        command = [sys.executable, "-P", "-m", "paywarden", "--config", str(self._config), "shadow", "run"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            shadow = _Shadow(process, process.stdout.readline().strip())
            shadow.wait(lambda counts: counts["up"] == 1)
            yield shadow
        finally:
            process.terminate()
            process.communicate(timeout=_PATIENCE_S)


@dataclass(frozen=True)
class _Shadow:
    """A running `paywarden shadow run`, and the address of its metrics."""

    process: subprocess.Popen[str]
    address: str

    def counts(self) -> dict[str, float]:
        """Returns evaluated, shed, waiting and up."""
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name.removeprefix("paywarden_shadow_")
                if sample.labels.get("reason", "shed") == "shed":
                    found[name] = sample.value
        return {
            "evaluated": found["evaluated_total"],
            "shed": found["left_out_total"],
            "waiting": found["waiting_bytes"],
            "up": found["up"],
        }

    def wait(self, is_done: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        """Returns the counts once they are as wanted."""
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, "shadow run has ended"
            with suppress(OSError):
                counts = self.counts()
                if is_done(counts):
                    return counts
            time.sleep(0.1)
        raise RuntimeError("the challenger does not get ready, or does not catch up")

    def drained(self) -> dict[str, float]:
        """Returns the counts once the challenger has nothing left to read: two looks agree that it has."""
        while True:
            before = self.wait(lambda counts: counts["waiting"] == 0)
            time.sleep(2.0)
            after = self.wait(lambda counts: counts["waiting"] == 0)
            if after == before:
                return after


def _cpu_seconds(pid: int) -> float:
    parent = psutil.Process(pid)
    times = [each.cpu_times() for each in (parent, *parent.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def _median(rounds: list[_Round], name: str) -> float:
    return float(statistics.median(getattr(one.report, name) for one in rounds))


def _cpu_us(rounds: list[_Round]) -> float:
    return float(statistics.median(one.cpu_s / one.report.ok * 1e6 for one in rounds))


if __name__ == "__main__":
    main()
