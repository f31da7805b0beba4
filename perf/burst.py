"""A burst of five times a worker's capacity, for ten seconds: admitted payments stay fast, refusals come at once.

Measured, on one worker of `paywarden serve`: first its capacity, in a closed loop. Then comes one open loop with
Poisson arrivals: half of the capacity, the burst, and half of the capacity again. This runs twice:

    calls of eight payments over HTTP, one call on a connection at a time, at five times the capacity
    single payments over gRPC, at as many times the capacity as one process can send (`single_times`)

Single payments at five times the capacity would be more requests than a bare echo answers on that core: no refusal
could then be in time. Latencies are those of the burst, from when each call was due. Recovery is the time from the
end of the burst to the first of five tenths of a second in a row without a refusal and with a p99 of at most twice
the p99 before the burst. Used for: whether overload stays harmless.

    python -m perf.burst [--entities N] [--times N] [--trees N] [--pause-ms MS] [--json FILE]

One process of the load sends 60,000 single payments a second, which is less than 2.4 times a worker's capacity. A
larger model makes a slower worker: with `--trees 4000` the load reaches 2.4 times. Its training takes a quarter of an
hour, once.

With `--pause-ms` callers pause for that time, five times a second in the burst, and then send at once what they held
back. The load's own lag is in all latencies; `lag_p99_ms` says how large it was. Rates count payments.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load import arrival_times, run_arrivals, run_closed
from paywarden.ops.loadgen.report import LoadReport, RequestLog
from paywarden.ops.loadgen.target import LoadOptions
from paywarden.schemas.proto.split_pb2 import SplitBatchRequest
from perf.tools.measuring import arguments_of, drive, finish
from perf.tools.servers import Server, pin_load, serving
from perf.worlds.scoring_world import TRAINING, WorldSize, built_world

_BEFORE_S, _BURST_S, _AFTER_S = 4.0, 10.0, 6.0
_BATCH = 8
_BATCH_CAPACITY = LoadOptions(connections=16, connections_max=16)
_BATCH_BURST = LoadOptions(connections=128, connections_max=512)
_SINGLE_CAPACITY = LoadOptions(connections=8, streams=8)
_SINGLE_BURST = LoadOptions(connections=32, streams=100)
# The rate that one process of the load can send over gRPC with little lag of its own.
_OFFERED_MAX = 60_000.0
_PAUSE_EVERY_S = 0.2
_WINDOW_S = 0.1
_CALM_WINDOWS = 5
_REFUSED = (429, 504)


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--entities", {"type": int, "default": 100_000, "help": "in the mirror, at least"}),
        ("--times", {"type": float, "default": 5.0, "help": "the capacity"}),
        ("--trees", {"type": int, "default": TRAINING.trees, "help": "of the model (default: %(default)s)"}),
        ("--pause-ms", {"type": float, "default": 0.0, "help": "pauses of the callers, five times a second"}),
    )
    pause_s = arguments.pause_ms / 1000
    pin_load()
    size = WorldSize(training=replace(TRAINING, trees=arguments.trees))
    with built_world(arguments.entities, size) as world, serving(world.config) as server:
        assert server.grpc is not None
        bodies = stamped_bodies(world.requests, id_prefix="burst")
        url, batches = f"{server.http}/v1/score:batch", _batches(bodies)
        capacity = _capacity(url, batches, _BATCH_CAPACITY)
        due = arrivals(capacity, arguments.times, pause_s)
        figures = _burst(server, url, batches, _BATCH_BURST, due, _BATCH)
        figures |= {"capacity_per_second": capacity * _BATCH, "times": arguments.times}
        capacity = _capacity(server.grpc, bodies, _SINGLE_CAPACITY)
        times = min(arguments.times, _OFFERED_MAX / capacity)
        single = _burst(server, server.grpc, bodies, _SINGLE_BURST, arrivals(capacity, times, pause_s), 1)
        single |= {"capacity_per_second": capacity, "times": times}
    figures |= {f"single_{name}": value for name, value in single.items()}
    finish(figures, arguments.json)


def _batches(bodies: Iterator[bytes]) -> Iterator[bytes]:
    """Yields serialised batches of this many requests."""
    while True:
        yield SplitBatchRequest(requests=itertools.islice(bodies, _BATCH)).SerializeToString()


def _capacity(target: str, bodies: Iterator[bytes], options: LoadOptions) -> float:
    """Returns calls a second."""
    drive(run_closed(target, bodies, seconds=1.0, options=options))
    return drive(run_closed(target, bodies, seconds=4.0, options=options)).ok_per_second


def _burst(
    server: Server,
    target: str,
    bodies: Iterator[bytes],
    options: LoadOptions,
    due_s: NDArray[np.float64],
    payments: int,
) -> dict[str, float | None]:
    """Returns the figures. `payments` is the number in each call."""
    record = RequestLog()
    report = drive(run_arrivals(target, bodies, due_s, options=options, record=record))
    assert is_well(server)
    figures = figures_of(record, report)
    for name in ("offered_per_second", "admitted_per_second", "refused_per_second"):
        figures[name] = (figures[name] or 0.0) * payments
    return figures


def arrivals(capacity: float, times: float, pause_s: float = 0.0) -> NDArray[np.float64]:
    """Returns when requests are due: before, in and after the burst. Those that are held back are due after a pause."""
    burst_from, burst_to = _BEFORE_S, _BEFORE_S + _BURST_S
    burst_s = arrival_times(capacity * times, _BURST_S, "poisson", 2)
    since_pause_s = burst_s % _PAUSE_EVERY_S
    burst_s = np.where(since_pause_s < pause_s, burst_s - since_pause_s + pause_s, burst_s)
    return np.concatenate(
        (
            arrival_times(capacity / 2, _BEFORE_S, "poisson", 1),
            burst_from + burst_s,
            burst_to + arrival_times(capacity / 2, _AFTER_S, "poisson", 3),
        )
    )


def is_well(server: Server) -> bool:
    """Returns whether the worker still runs and is the same process as before."""
    return server.process.poll() is None


def figures_of(record: RequestLog, report: LoadReport) -> dict[str, float | None]:
    """Returns the figures of the burst and of the time after it."""
    due = np.array(record.due_s)
    status, latency_ms = np.array(record.status), np.array(record.latency_ms)
    burst_to = _BEFORE_S + _BURST_S
    before, burst = due < _BEFORE_S, (due >= _BEFORE_S) & (due < burst_to)
    ok, refused = status == 200, np.isin(status, _REFUSED)
    before_p99_ms = _percentile(latency_ms[before & ok], 99)
    return {
        "offered_per_second": float(burst.sum() / _BURST_S),
        "admitted_per_second": float((burst & ok).sum() / _BURST_S),
        "refused_per_second": float((burst & refused).sum() / _BURST_S),
        "failed": float((~ok & ~refused).sum()),
        "before_p99_ms": before_p99_ms,
        "admitted_p50_ms": _percentile(latency_ms[burst & ok], 50),
        "admitted_p99_ms": _percentile(latency_ms[burst & ok], 99),
        "admitted_max_ms": _percentile(latency_ms[burst & ok], 100),
        "refused_p50_ms": _percentile(latency_ms[burst & refused], 50),
        "refused_p99_ms": _percentile(latency_ms[burst & refused], 99),
        "refused_max_ms": _percentile(latency_ms[burst & refused], 100),
        "recovery_seconds": recovery_seconds(due - burst_to, ok, latency_ms, calm_ms=2 * before_p99_ms),
        "lag_p99_ms": report.lag_p99_ms,
    }


def recovery_seconds(
    since_s: NDArray[np.float64], ok: NDArray[np.bool_], latency_ms: NDArray[np.float32], *, calm_ms: float
) -> float | None:
    """Returns the seconds of recovery, as the head of this file defines it; None without recovery.

    `since_s` are the times at which requests were due, in seconds after the burst, ascending; all of shape (requests,).
    """
    calm = 0
    windows = int(np.floor(since_s[-1] / _WINDOW_S)) if len(since_s) else 0
    for window in range(windows):
        first, last = np.searchsorted(since_s, [window * _WINDOW_S, (window + 1) * _WINDOW_S])
        here = slice(int(first), int(last))
        is_calm = bool(ok[here].all()) and _percentile(latency_ms[here], 99) <= calm_ms
        calm = calm + 1 if is_calm else 0
        if calm == _CALM_WINDOWS:
            return (window + 1 - _CALM_WINDOWS) * _WINDOW_S
    return None


def _percentile(values: NDArray[np.float32], share: float) -> float:
    return float(np.percentile(values, share)) if len(values) else 0.0


if __name__ == "__main__":
    main()
