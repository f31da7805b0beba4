"""Shared by the benchmarks of the scoring path: a load on a server, rounds in turns, the table at the end."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from paywarden.ops.loadgen.load_run import run_closed, run_load
from paywarden.ops.loadgen.report import LoadReport
from paywarden.ops.loadgen.target import LoadOptions
from perf.tools.servers import Server

# For latencies: connections before the first request, and the most there may be.
LATENCY_OPTIONS = LoadOptions(connections=32, connections_max=512)
# How many microseconds of a second real-time threads may run; -1: all.
_RT_LIMIT = Path("/proc/sys/kernel/sched_rt_runtime_us")


@dataclass(frozen=True)
class Measured:
    """A load's report, with the server's CPU time, and how long its workers were ready to run and had no core.

    A tail of latencies that is not longer than that wait is the machine's: other processes had the worker's core.
    """

    report: LoadReport
    server_cpu_us: float
    core_wait_ms: float


@dataclass(frozen=True)
class Scenario:
    """A load on a server. Without a `rate` it is a closed loop."""

    name: str
    server: Server
    target: str
    bodies: Iterator[bytes]
    options: LoadOptions
    seconds: float
    rate: float | None = None

    def run(self, seed: int) -> Measured:
        """Measure once. More than a few refusals raise an error in a closed loop, and so does any failure."""
        before, waited_before_s = self.server.cpu_seconds(), self.server.core_wait_seconds()
        if self.rate is None:
            report = drive(run_closed(self.target, self.bodies, seconds=self.seconds, options=self.options))
            assert report.ok + report.shed == report.sent, f"{self.name}: {report}"
            # If other processes take its core, a worker refuses for a moment, as it should.
            assert report.ok >= 0.95 * report.sent, f"{self.name}: {report}"
        else:
            load = run_load(
                self.target, self.bodies, rate=self.rate, seconds=self.seconds, seed=seed, options=self.options
            )
            with ahead_of_others([os.getpid(), *self.server.worker_pids()]):
                report = drive(load)
        cpu_us = (self.server.cpu_seconds() - before) / max(1, report.ok) * 1e6
        return Measured(report, cpu_us, (self.server.core_wait_seconds() - waited_before_s) * 1000)


@contextmanager
def ahead_of_others(pids: Iterable[int], priority: int = 1) -> Iterator[None]:
    """Give the threads of these processes real-time priority meanwhile, as far as this user may (root may).

    In this process only the calling thread gets it: others do a companion's work here, and would stop the load for it.
    A thread with a higher `priority` goes first, too, among those that are ahead.

    At 17,000 payments a second, a daemon of the machine that takes a core for 4 ms makes 70 payments late. With
    real-time priority load and server are measured, not the daemon. But Linux stops real-time threads for 50 ms of each
    second that they fill, and a worker that polls fills its core: see `warn_of_limit`.
    """
    this = os.getpid()
    processes = set(pids)
    threads = [int(thread) for pid in processes - {this} for thread in os.listdir(f"/proc/{pid}/task")]
    if this in processes:
        threads.append(threading.get_native_id())
    for thread in threads:
        with suppress(PermissionError, ProcessLookupError):
            os.sched_setscheduler(thread, os.SCHED_RR, os.sched_param(priority))
    try:
        yield
    finally:
        for thread in threads:
            with suppress(PermissionError, ProcessLookupError):
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def warn_of_limit() -> None:
    """Print how to lift Linux's limit of real-time threads, if it is there. It makes one payment in twenty late.

    Since 6.12 Linux has a second one, the server of fair tasks: ordinary threads that have waited for a core get 50 ms
    of each second on it, before real-time ones. The first limit does not govern it. A worker that fills its core is
    stopped for as long as they have work, at most 50 ms; `Measured.core_wait_ms` contains it.
    """
    if _RT_LIMIT.exists() and _RT_LIMIT.read_text(encoding="ascii").strip() != "-1":
        print(
            "Linux stops the worker for 50 ms a second; as root: sysctl kernel.sched_rt_runtime_us=-1 (usual: 950000)"
        )
    if has_fair_server(os.uname().release):
        print("Linux also gives its core to ordinary threads for up to 50 ms a second: see core_wait_ms of each load")


def has_fair_server(release: str) -> bool:
    """Whether this release of Linux lets ordinary threads run before real-time ones that fill a core."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return sys.platform == "linux" and found is not None and (int(found[1]), int(found[2])) >= (6, 12)


def drive(load: Any) -> LoadReport:
    """Run a load to its end in an event loop of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report: LoadReport = runner.run(load)
    return report


def in_turns(scenarios: Sequence[Scenario], rounds: int) -> dict[str, list[Measured]]:
    """Measure in turns, A B C, A B C, …: other work of the machine disturbs all alike. Drops the first round."""
    measured: dict[str, list[Measured]] = {scenario.name: [] for scenario in scenarios}
    for turn in range(rounds + 1):
        for scenario in scenarios:
            one = scenario.run(seed=turn)
            time.sleep(0.2)
            if turn:
                measured[scenario.name].append(one)
    return measured


def median_of(measured: Sequence[Measured], of: Callable[[Measured], float]) -> float:
    """Returns the value of the middle round."""
    return statistics.median(map(of, measured))


def print_rounds(title: str, unit: str, values: Mapping[str, Sequence[float]]) -> None:
    """Print a table of median, least and most over the rounds."""
    print(f"\n{title:<38} {'median':>12} {'least':>12} {'most':>12}   {unit}")
    for name, row in values.items():
        print(f"  {name:<36} {statistics.median(row):>12,.2f} {min(row):>12,.2f} {max(row):>12,.2f}")


def arguments_of(document: str | None, *more: tuple[str, dict[str, Any]]) -> argparse.Namespace:
    """Parse the command line of a benchmark: --json and its own options. `--help` shows all of `document`."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="also write the figures there")
    for name, options in more:
        parser.add_argument(name, **options)
    return parser.parse_args()


def finish(figures: Mapping[str, Any], json_file: str | None) -> None:
    """Print the figures by name, and write them to a file if one is named."""
    print()
    for name, value in figures.items():
        print(f"{name:<48} {value:>14,.3f}" if isinstance(value, (int, float)) else f"{name:<48} {value!s:>14}")
    if json_file:
        Path(json_file).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
