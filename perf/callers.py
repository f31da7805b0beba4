"""Two callers on one worker: one sends ten times the worker's capacity, the other must not notice.

Measured, on one worker of `paywarden serve` with tokens: the capacity, in a closed loop. Then the latencies of a quiet
caller (an open loop with Poisson arrivals at a twentieth of the capacity), in turns:

    alone      nobody else
    shared     beside a noisy caller with a token of his own: `--times` the capacity, as fast as the sockets take it
    one_name   beside the same noise under the quiet caller's token: the callers cannot be told apart

The same once more on a worker with a quota of a quarter of the capacity for each caller (`[admission]
caller_payments_per_second`): `quota_alone` and `quota_shared`.

Used for: whether one token can move the latencies of others. `ratio_shared` is the p99 beside the noise by the p99
alone, and `ratio_quota` the same with a quota; `ratio_one_name` is what it would be without a queue for each caller.

    python -m perf.callers [--entities N] [--times N] [--seconds N] [--json FILE]

The noise comes from a process of its own, which shares the load's core at the lowest priority and counts no latencies.
Load and worker go ahead of it and of all others, if this user may do that (perf/tools/measuring.py).
`offered` is what its sockets have taken: a worker that leaves them unread slows it down, and that is the point.
`admitted` is the part of it that was answered with 200.
"""

from __future__ import annotations

import multiprocessing
import os
import selectors
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load import run_closed, run_load
from paywarden.ops.loadgen.report import LoadReport
from paywarden.ops.loadgen.target import LoadOptions
from perf.tools.measuring import ahead_of_others, arguments_of, drive, finish
from perf.tools.servers import Server, pin_load, serving
from perf.worlds.scoring_world import World, built_world

QUIET, NOISY = "quiet-token-0123456789", "noisy-token-0123456789"
_QUIET_SHARE = 1 / 20
_QUOTA_SHARE = 1 / 4
_ROUNDS = 3
_NOISE_CONNECTIONS = 16
# Requests that the noise writes at a time. More than a connection may have unanswered, so that some always wait.
_PIPELINED = 64
# Payments of the noise before their ids come again. A payment that comes again is answered more cheaply.
_NOISE_PAYMENTS = 200_000
_CAPACITY = LoadOptions(connections=16, connections_max=16, token=QUIET)
_OPTIONS = LoadOptions(connections=16, connections_max=256, token=QUIET)


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--entities", {"type": int, "default": 100_000, "help": "in the mirror, at least"}),
        ("--times", {"type": float, "default": 10.0, "help": "the capacity"}),
        ("--seconds", {"type": float, "default": 6.0, "help": "of each measurement"}),
    )
    pin_load()
    with built_world(arguments.entities) as world:
        _ask_for_tokens(world)
        with serving(world.config) as server:
            bodies = stamped_bodies(world.requests, id_prefix="capacity")
            drive(run_closed(server.http, bodies, seconds=1.0, options=_CAPACITY))
            capacity = drive(
                run_closed(server.http, bodies, seconds=arguments.seconds, options=_CAPACITY)
            ).ok_per_second
            figures = {"capacity_per_second": capacity, "times": arguments.times}
            load = _Load(world, capacity, arguments.seconds, "open")
            noise = capacity * arguments.times
            noises = {"alone": None, "shared": _Sent(NOISY, noise), "one_name": _Sent(QUIET, noise)}
            figures |= _measure(server, load, noises)
        with world.config.open("a", encoding="utf-8") as config:
            config.write(f"[admission]\ncaller_payments_per_second = {int(capacity * _QUOTA_SHARE)}\n")
        with serving(world.config) as server:
            load = load._replace(ids="quota", has_quotas=True)
            figures |= _measure(server, load, {"quota_alone": None, "quota_shared": _Sent(NOISY, noise)})
    for name, beside, alone in (
        ("shared", "shared", "alone"),
        ("one_name", "one_name", "alone"),
        ("quota", "quota_shared", "quota_alone"),
    ):
        figures[f"ratio_{name}"] = figures[f"{beside}_p99_ms"] / figures[f"{alone}_p99_ms"]
    finish(figures, arguments.json)


def _ask_for_tokens(world: World) -> None:
    tokens = Path(world.config).parent / "tokens"
    tokens.write_text(f"quiet:{QUIET}\nnoisy:{NOISY}\n", encoding="ascii")
    tokens.chmod(0o600)
    with world.config.open("a", encoding="utf-8") as config:
        config.write(f'[auth]\ntokens_file = "{tokens}"\n')


class _Load(NamedTuple):
    """The load: the quiet caller's share of `capacity`, for `seconds` each time.

    `ids` begins the payments' ids. No id is sent twice: a worker answers a payment that it knows from its memory.
    """

    world: World
    capacity: float
    seconds: float
    ids: str
    has_quotas: bool = False


class _Sent(NamedTuple):
    """A noise: its token and its payments a second."""

    token: str
    per_second: float


def _measure(server: Server, load: _Load, noises: Mapping[str, _Sent | None]) -> dict[str, float]:
    """Measure the quiet caller's latencies in turns. `noises`: name of a measurement → its noise, if any."""
    bodies = stamped_bodies(load.world.requests, id_prefix=load.ids)
    reports: dict[str, list[LoadReport]] = {name: [] for name in noises}
    offered: dict[str, list[float]] = {name: [] for name, noise in noises.items() if noise is not None}
    admitted: dict[str, list[float]] = {name: [] for name in offered}
    for turn in range(_ROUNDS):
        for place, (name, wanted) in enumerate(noises.items()):
            if wanted is None:
                reports[name].append(_quiet(server, bodies, load, turn))
                continue
            with _Noise(server, load.world, wanted, f"{load.ids}{turn}-{place}") as noise:
                reports[name].append(_quiet(server, bodies, load, turn))
            offered[name].append(noise.per_second)
            admitted[name].append(noise.admitted_per_second)
    figures: dict[str, float] = {}
    for name, found in reports.items():
        figures[f"{name}_p50_ms"] = _middle([report.p50_ms for report in found])
        figures[f"{name}_p99_ms"] = _middle([report.p99_ms for report in found])
        figures[f"{name}_lag_p99_ms"] = _middle([report.lag_p99_ms for report in found])
        figures[f"{name}_refused_share"] = _middle([1 - report.ok / report.sent for report in found])
    for name, rates in offered.items():
        figures[f"{name}_offered_per_second"] = _middle(rates)
        figures[f"{name}_admitted_per_second"] = _middle(admitted[name])
    return figures


def _quiet(server: Server, bodies: Iterator[bytes], load: _Load, seed: int) -> LoadReport:
    # A worker without quotas is full, and Linux stops a full real-time thread now and then.
    ahead = [os.getpid(), *(server.worker_pids() if load.has_quotas else ())]
    rate = load.capacity * _QUIET_SHARE
    with ahead_of_others(ahead):
        return drive(run_load(server.http, bodies, rate=rate, seconds=load.seconds, seed=seed, options=_OPTIONS))


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


class _Noise:
    """A process that sends payments without waiting for answers, until the block ends."""

    def __init__(self, server: Server, world: World, sent: _Sent, id_prefix: str) -> None:
        bodies = islice(stamped_bodies(world.requests, id_prefix=id_prefix), _NOISE_PAYMENTS)
        context = multiprocessing.get_context("fork")
        self._sent: SimpleQueue[float] = context.SimpleQueue()
        self._stop = context.Event()
        self._process = context.Process(
            target=_blast,
            args=(server.http, sent.token, list(bodies), sent.per_second, self._stop, self._sent),
        )
        self.per_second = self.admitted_per_second = 0.0

    def __enter__(self) -> _Noise:
        self._process.start()
        # The first number says that the noise has begun.
        self._sent.get()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.per_second, self.admitted_per_second = self._sent.get(), self._sent.get()
        self._process.join()


def _blast(
    url: str, token: str, bodies: Sequence[bytes], per_second: float, stop: object, sent: SimpleQueue[float]
) -> None:
    """Write requests at a rate, each connection as fast as its socket takes them; throw answers away."""
    os.nice(19)
    address = urlsplit(url)
    head = f"POST /v1/score HTTP/1.1\r\nHost: perf\r\nAuthorization: Bearer {token}"
    head += "\r\nContent-Type: application/x-protobuf"
    requests = [f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]
    parts = [b"".join(requests[at : at + _PIPELINED]) for at in range(0, len(requests), _PIPELINED)]
    selector = selectors.DefaultSelector()
    rests: dict[socket.socket, memoryview] = {}
    for _ in range(_NOISE_CONNECTIONS):
        raw = socket.create_connection((address.hostname or "", address.port or 0))
        raw.setblocking(False)
        rests[raw] = memoryview(b"")
        selector.register(raw, selectors.EVENT_READ | selectors.EVENT_WRITE)
    began, count, place, admitted = time.monotonic(), 0, 0, 0
    sent.put(0.0)
    while not stop.is_set():  # type: ignore[attr-defined]
        due = (time.monotonic() - began) * per_second
        if count > due:
            time.sleep(min(0.01, (count - due) / per_second))
        for key, events in selector.select(0.01):
            raw = key.fileobj  # type: ignore[assignment]
            if events & selectors.EVENT_READ:
                # An answer that is cut in two is not seen.
                admitted += raw.recv(1 << 18).count(b" 200 OK")
            if events & selectors.EVENT_WRITE and count <= due:
                if not rests[raw]:
                    rests[raw] = memoryview(parts[place % len(parts)])
                    place, count = place + 1, count + _PIPELINED
                rests[raw] = rests[raw][raw.send(rests[raw]) :]
    took_s = time.monotonic() - began
    sent.put(count / took_s)
    sent.put(admitted / took_s)
    for raw in rests:
        raw.close()


if __name__ == "__main__":
    main()
