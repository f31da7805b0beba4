"""What a worker still answers when far more is asked of it than it can do.

Measured, on one worker of `paywarden serve` with default settings, single payments, over HTTP and over gRPC. The
worker's capacity is that of a closed loop of 64 calls. It is measured before and after each load, because other work on
the machine changes it: a load's capacity is the mean of the two. Of each front:

    open_2x, open_5x              an open loop with Poisson arrivals, at two and at five times the capacity
    closed_256, _1000, _3000      that many connections, each of which asks again at once after an answer or a refusal
    stops                         half of the capacity while the worker is stopped for 5 to 50 ms, once a second

`goodput_share` is the answers within the deadline (42 ms from when the call was due) a second, divided by the capacity.
`answered_p99_ms` is over all answers, and `refused_p99_ms` over all refusals (429 and 504); both count from when the
caller sent the call, since a caller whose connections are all busy waits for one before. `unanswered_share` is of
connections that were closed, and of calls that were reset or got nothing within five seconds. `recovery_seconds` is the
time from the end of open_5x to the first of five tenths of a second in a row, at half of the capacity, in which nothing
is refused and p99 is at most twice that of half of the capacity before. Of `stops`, `missed_share` is the share of the
calls due outside the stops themselves that had no answer. Used for: whether a worker keeps answering under any load.

    python -m perf.overload [--front http|grpc] [--seconds S] [--trees N] [--half-core] [--json FILE]

The model is large (`--trees`), so that one process of load can send five times the capacity; `lag_p99_ms` says how late
the load itself was. With `--half-core` a busy process shares the worker's core. The same with loads that nobody here
wrote: `wrk -t1 -c1000 -d6 -s FILE.lua URL`, and h2load (package nghttp2-client).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load_run import arrival_times, run_arrivals, run_closed
from paywarden.ops.loadgen.report import RequestLog
from paywarden.ops.loadgen.target import LoadOptions
from perf.tools.measuring import arguments_of, drive, finish
from perf.tools.servers import Server, pin_load, server_core, serving
from perf.worlds.scoring_world import TRAINING, WorldSize, built_world

_DEADLINE_MS = 42.0
_CAPACITY = {
    "http": LoadOptions(connections=64, connections_max=64),
    "grpc": LoadOptions(connections=8, streams=8),
}
_OPEN = {
    "http": LoadOptions(connections=256, connections_max=2048, give_up_ms=42),
    "grpc": LoadOptions(connections=32, streams=100, give_up_ms=42),
}
_CLOSED = (256, 1000, 3000)
_CAPACITY_S = 2.0
_TIMES = (2.0, 5.0)
_STOP_S = 0.005, 0.05
_WINDOW_S = 0.1
_CALM_WINDOWS = 5
_REFUSED = (429, 504)
# Trees of a model that takes half a minute to train: few payments, many trees.
_TREES = 6000
_TRAINING_CARDS = 500


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--front", {"choices": ("http", "grpc", "both"), "default": "both", "help": "default: %(default)s"}),
        ("--seconds", {"type": float, "default": 6.0, "help": "of each load"}),
        ("--trees", {"type": int, "default": _TREES, "help": "of the model (default: %(default)s)"}),
        ("--half-core", {"action": "store_true", "help": "a busy process shares the worker's core"}),
    )
    pin_load()
    size = WorldSize(training_cards=_TRAINING_CARDS, training=replace(TRAINING, trees=arguments.trees))
    figures: dict[str, float | None] = {}
    with built_world(100_000, size) as world, serving(world.config) as server, busy_core(on=arguments.half_core):
        bodies = stamped_bodies(world.requests, id_prefix="overload")
        for front in ("http", "grpc") if arguments.front == "both" else (arguments.front,):
            url = server.http if front == "http" else server.grpc
            assert url is not None
            figures |= {
                f"{front}_{name}": value
                for name, value in _figures_of(server, front, url, bodies, arguments.seconds).items()
            }
    recoveries = [value for name, value in figures.items() if name.endswith("recovery_seconds")]
    figures["recovery_seconds"] = (
        None if None in recoveries else max(value for value in recoveries if value is not None)
    )
    finish(figures, arguments.json)


@contextmanager
def busy_core(*, on: bool) -> Iterator[None]:
    """Let a busy process share the servers' core, or do nothing."""
    if not on:
        yield
        return
    process = multiprocessing.Process(target=_spin, args=(server_core(),), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _spin(core: int) -> None:
    os.sched_setaffinity(0, {core})
    while True:
        pass


def _figures_of(
    server: Server, front: str, url: str, bodies: Iterator[bytes], seconds: float
) -> dict[str, float | None]:
    """Return the figures of one front."""

    def measured_capacity() -> float:
        # What the load before has left in the sockets.
        time.sleep(1.0)
        return drive(run_closed(url, bodies, seconds=_CAPACITY_S, options=_CAPACITY[front])).ok_per_second

    measured_capacity()
    capacity = measured_capacity()
    figures: dict[str, float | None] = {"capacity_per_second": capacity}

    def note(name: str, found: dict[str, float | None]) -> None:
        nonlocal capacity
        before, capacity = capacity, measured_capacity()
        figures[f"{name}_capacity_per_second"] = mean = (before + capacity) / 2
        within = found.pop("within_per_second")
        assert within is not None
        figures[f"{name}_goodput_share"] = within / mean
        figures.update({f"{name}_{figure}": value for figure, value in found.items()})

    for times in _TIMES:
        name = f"open_{times:.0f}x"
        found = _open(url, bodies, capacity, times, seconds, _OPEN[front])
        figures["recovery_seconds"] = found.pop("recovery_seconds")
        note(name, found)
    for count in _CLOSED:
        note(f"closed_{count}", _closed(url, bodies, count, seconds))
    figures |= _stopped(server, url, bodies, capacity / 2, seconds, _OPEN[front])
    assert server.process.poll() is None, "the server has ended"
    return figures


def _open(
    url: str, bodies: Iterator[bytes], capacity: float, times: float, seconds: float, options: LoadOptions
) -> dict[str, float | None]:
    """Offer half of the capacity, `times` the capacity, and half of it again."""
    before_s, after_s = 2.0, 4.0
    overload_to = before_s + seconds
    due = np.concatenate(
        (
            arrival_times(capacity / 2, before_s, "poisson", 1),
            before_s + arrival_times(capacity * times, seconds, "poisson", 2),
            overload_to + arrival_times(capacity / 2, after_s, "poisson", 3),
        )
    )
    record = RequestLog()
    report = drive(run_arrivals(url, bodies, due, options=options, record=record))
    due_s, status, latency_ms, wait_ms = _arrays(record)
    # A load that cannot keep up is still sending its overload after `overload_to`.
    here = (due_s >= before_s) & (due_s < overload_to)
    calm_ms = 2 * _percentile(latency_ms[(due_s < before_s) & (status == 200)], 99)
    return _shares(status[here], latency_ms[here], wait_ms[here], seconds) | {
        "offered_per_second": float(here.sum() / seconds),
        "lag_p99_ms": report.lag_p99_ms,
        "recovery_seconds": recovery_seconds(due_s - overload_to, status == 200, latency_ms, calm_ms=calm_ms),
    }


def _closed(url: str, bodies: Iterator[bytes], count: int, seconds: float) -> dict[str, float | None]:
    """Let that many connections ask again at once. The first second, in which they open, does not count."""
    options = LoadOptions(connections=count, connections_max=count, streams=1)
    record = RequestLog()
    drive(run_closed(url, bodies, seconds=seconds + 1.0, options=options, record=record))
    due_s, status, latency_ms, wait_ms = _arrays(record)
    ends = due_s + latency_ms / 1000
    first = float(due_s[min(len(due_s), count) - 1]) if len(due_s) else 0.0
    here = (ends >= first + 1.0) & (due_s < first + seconds)
    return _shares(status[here], latency_ms[here], wait_ms[here], seconds - 1.0)


def _stopped(
    server: Server, url: str, bodies: Iterator[bytes], rate: float, seconds: float, options: LoadOptions
) -> dict[str, float | None]:
    """Stop the worker for 5 to 50 ms once a second."""
    (worker,) = server.worker_pids()
    stops: list[tuple[float, float]] = []
    over = threading.Event()
    rng = np.random.default_rng(7)

    def stop_now_and_then() -> None:
        while not over.wait(1.0):
            begun = time.perf_counter()
            os.kill(worker, signal.SIGSTOP)
            time.sleep(rng.uniform(*_STOP_S))
            os.kill(worker, signal.SIGCONT)
            stops.append((begun, time.perf_counter()))

    record = RequestLog()
    thread = threading.Thread(target=stop_now_and_then)
    thread.start()
    begun = time.perf_counter()
    try:
        drive(
            run_arrivals(
                url, bodies, arrival_times(rate, max(seconds, 10.0), "poisson", 5), options=options, record=record
            )
        )
    finally:
        over.set()
        thread.join()
    due_s, status, latency_ms, _ = _arrays(record)
    in_stop = np.zeros(len(due_s), dtype=bool)
    for stop_from, stop_to in stops:
        # The load begins a moment after `begun`: a tenth of a second covers it.
        in_stop |= (due_s + begun >= stop_from - 0.1) & (due_s + begun <= stop_to + 0.1)
    outside = ~in_stop
    return {
        "stops_missed_share": float((status[outside] != 200).sum() / max(1, outside.sum())),
        "stops_all_missed_share": float((status != 200).sum() / max(1, len(status))),
        "stops_answered_p99_ms": _percentile(latency_ms[status == 200], 99),
    }


def _arrays(
    record: RequestLog,
) -> tuple[NDArray[np.float64], NDArray[np.int16], NDArray[np.float32], NDArray[np.float32]]:
    return np.array(record.due_s), np.array(record.status), np.array(record.latency_ms), np.array(record.wait_ms)


def _shares(
    status: NDArray[np.int16], latency_ms: NDArray[np.float32], wait_ms: NDArray[np.float32], seconds: float
) -> dict[str, float | None]:
    """Return the figures of the calls of these seconds."""
    ok, refused = status == 200, np.isin(status, _REFUSED)
    worker_ms = latency_ms - wait_ms
    return {
        "within_per_second": float((ok & (latency_ms <= _DEADLINE_MS)).sum() / seconds),
        "answered_p99_ms": _percentile(worker_ms[ok], 99),
        "refused_p99_ms": _percentile(worker_ms[refused], 99),
        "refused_share": float(refused.mean()) if len(status) else 0.0,
        "unanswered_share": float((~ok & ~refused).mean()) if len(status) else 0.0,
    }


def recovery_seconds(
    since_s: NDArray[np.float64], ok: NDArray[np.bool_], latency_ms: NDArray[np.float32], *, calm_ms: float
) -> float | None:
    """Return the seconds of recovery, as the head of this file defines it; None without recovery.

    `since_s` are the times at which requests were due, in seconds after the overload, ascending. Shapes (requests,).
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
