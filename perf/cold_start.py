"""A scoring worker's start with an existing mirror, as after a deployment or a crash, until it answers.

Measured: seconds from the start of the process `paywarden serve` until /readyz answers 200, with a million entities in
the mirror. Then p99 of the first hundred requests, one after the other on a new connection, and of two thousand later
requests sent alike. The bundle is compiled, the kernel is in numba's cache, and the file cache is warm, as on any host
that has served before. Used for: how long a host is away when it restarts, and whether callers notice.

    python -m perf.cold_start [--entities N] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from itertools import islice

import numpy as np

from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load_run import run_closed
from paywarden.ops.loadgen.report import RequestLog
from paywarden.ops.loadgen.target import LoadOptions
from perf.tools.measuring import arguments_of, drive, finish
from perf.tools.servers import pin_load, serving
from perf.worlds.scoring_world import World, built_world

_FIRST, _WARM_UP, _STEADY = 100, 3000, 2000
_ONE_CONNECTION = LoadOptions(connections=1, connections_max=1)


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--entities", {"type": int, "default": 1_000_000, "help": "in the mirror, at least"}),
        ("--rounds", {"type": int, "default": 5, "help": "starts"}),
    )
    pin_load()
    with built_world(arguments.entities) as world:
        rounds = [_start(world) for _ in range(arguments.rounds)]
        figures = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        most = {f"{name}_max": max(one[name] for one in rounds) for name in rounds[0]}
        finish(figures | most | {"entities": world.entities, "rounds": len(rounds)}, arguments.json)


def _start(world: World) -> dict[str, float]:
    bodies = stamped_bodies(world.requests, id_prefix="cold")
    started = time.perf_counter()
    with serving(world.config) as server:
        ready_seconds = time.perf_counter() - started
        first = _latencies_ms(server.http, bodies, _FIRST)
        _latencies_ms(server.http, bodies, _WARM_UP)
        steady = _latencies_ms(server.http, bodies, _STEADY)
    return {
        "ready_seconds": ready_seconds,
        "first_ms": float(first[0]),
        "first_100_p99_ms": float(np.percentile(first, 99)),
        "steady_p99_ms": float(np.percentile(steady, 99)),
        "steady_p50_ms": float(np.percentile(steady, 50)),
    }


def _latencies_ms(url: str, bodies: Iterator[bytes], count: int) -> list[float]:
    """Send requests one after the other on a new connection; return their latencies. Each must be answered with 200."""
    record = RequestLog()
    drive(run_closed(url, islice(bodies, count), seconds=60.0, options=_ONE_CONNECTION, record=record))
    assert list(record.status) == [200] * count
    return list(record.latency_ms)


if __name__ == "__main__":
    main()
