"""A worker that has no core for a moment: are the calls that gather meanwhile answered, or refused?

Measured, on one worker of `paywarden serve` over HTTP: an open loop without anything else, and one during which the
worker is stopped (SIGSTOP) and goes on (SIGCONT) again and again, as when something else has its core. Load and worker
have a real-time priority as far as this user may, so that other processes make no further stops.

    python -m perf.stops [--rate R] [--stop MS] [--every S] [--seconds S] [--entities N] [--json FILE]

The rate should be at most half of the worker's capacity: a stop is then made up for in as much time again. `refused`
counts calls that got no 200 in the load with stops, and `refused_quiet` in the other. `p99_ms` contains the stops,
since a latency counts from when a call was due.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load import run_load
from paywarden.ops.loadgen.report import LoadReport
from paywarden.ops.loadgen.target import LoadOptions
from perf.tools.measuring import ahead_of_others, arguments_of, drive, finish
from perf.tools.servers import pin_load, serving
from perf.worlds.scoring_world import built_world

_OPTIONS = LoadOptions(connections=8)


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--rate", {"type": float, "default": 6_000.0, "help": "calls a second"}),
        ("--stop", {"type": float, "default": 40.0, "help": "milliseconds of a stop"}),
        ("--every", {"type": float, "default": 0.3, "help": "seconds between stops"}),
        ("--seconds", {"type": float, "default": 5.0, "help": "of each load"}),
        ("--entities", {"type": int, "default": 20_000, "help": "in the mirror, at least"}),
    )
    pin_load()
    with built_world(arguments.entities) as world, serving(world.config) as server:
        (worker,) = server.worker_pids()
        bodies = stamped_bodies(world.requests, id_prefix="stop")

        def load() -> LoadReport:
            target = f"{server.http}/v1/score"
            return drive(run_load(target, bodies, rate=arguments.rate, seconds=arguments.seconds, options=_OPTIONS))

        with ahead_of_others([os.getpid(), worker]):
            quiet = load()
            with _stopped(worker, arguments.stop / 1000, arguments.every) as stops:
                stopped = load()
    figures = {
        "stops": len(stops),
        "calls": stopped.sent,
        "refused": stopped.sent - stopped.ok,
        "refused_quiet": quiet.sent - quiet.ok,
        "p99_ms_quiet": quiet.p99_ms,
        "p50_ms": stopped.p50_ms,
        "p99_ms": stopped.p99_ms,
        "max_ms": stopped.max_ms,
    }
    finish(figures, arguments.json)


@contextmanager
def _stopped(process: int, stop_s: float, every_s: float) -> Iterator[list[float]]:
    """Stop a process again and again; gives the list of when it did, which grows."""
    is_over, stops = threading.Event(), list[float]()

    def stop() -> None:
        while not is_over.wait(every_s):
            os.kill(process, signal.SIGSTOP)
            try:
                time.sleep(stop_s)
            finally:
                os.kill(process, signal.SIGCONT)
            stops.append(time.monotonic())

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        yield stops
    finally:
        is_over.set()
        thread.join()


if __name__ == "__main__":
    main()
