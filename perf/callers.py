"""Two callers on one worker: one sends ten times the worker's capacity, the other must not notice.

Measured, on one worker of `paywarden serve` with tokens: the capacity, in a closed loop. Then the latencies of a quiet
caller (an open loop with Poisson arrivals at a twentieth of the capacity), in turns:

    alone      nobody else
    shared     beside a noisy caller with its own token: `--times` the capacity, as fast as the sockets take it
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

import os
import selectors
import socket
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load_run import run_closed, run_load
from paywarden.ops.loadgen.target import LoadOptions
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from perf.tools.measuring import ahead_of_others, arguments_of, drive, finish
from perf.tools.servers import Server, pin_load, serving
from perf.worlds.scoring_world import World, built_world

QUIET, NOISY = "quiet-token-0123456789", "noisy-token-0123456789"
_QUIET_SHARE = 1 / 20
_QUOTA_SHARE = 1 / 4
_ROUNDS = 3
_NOISE_CONNECTIONS = 16
# The noise begins this long before the quiet caller's load, and ends this long after it.
_AROUND_S = 1.5
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
            most = drive(run_closed(server.http, bodies, seconds=arguments.seconds, options=_CAPACITY))
            capacity = most.ok_per_second
            print(f"capacity {capacity:,.0f} payments a second", flush=True)
            load = _Load(world, capacity, arguments.times, arguments.seconds, "open")
            figures = {"capacity_per_second": capacity, "times": arguments.times}
            figures |= _measure(server, load, {"alone": "", "shared": NOISY, "one_name": QUIET})
        with world.config.open("a", encoding="utf-8") as config:
            config.write(f"[admission]\ncaller_payments_per_second = {int(capacity * _QUOTA_SHARE)}\n")
        with serving(world.config) as server:
            load = load._replace(ids="quota", has_quotas=True)
            figures |= _measure(server, load, {"quota_alone": "", "quota_shared": NOISY})
    figures["ratio_shared"] = figures["shared_p99_ms"] / figures["alone_p99_ms"]
    figures["ratio_one_name"] = figures["one_name_p99_ms"] / figures["alone_p99_ms"]
    figures["ratio_quota"] = figures["quota_shared_p99_ms"] / figures["quota_alone_p99_ms"]
    finish(figures, arguments.json)


def _ask_for_tokens(world: World) -> None:
    tokens = Path(world.config).parent / "tokens"
    tokens.write_text(f"quiet:{QUIET}\nnoisy:{NOISY}\n", encoding="ascii")
    tokens.chmod(0o600)
    with world.config.open("a", encoding="utf-8") as config:
        config.write(f'[auth]\ntokens_file = "{tokens}"\n')


class _Load(NamedTuple):
    """The load: the quiet caller's share of `capacity`, beside `times` the capacity, for `seconds` each time.

    `ids` begins the payments' ids. No id is sent twice: a worker answers a payment that it knows from its memory.
    """

    world: World
    capacity: float
    times: float
    seconds: float
    ids: str
    has_quotas: bool = False


def _measure(server: Server, load: _Load, noises: Mapping[str, str]) -> dict[str, float]:
    """Measure the quiet caller's latencies in turns. `noises`: name of a measurement → token of its noise, if any."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in noises}
    bodies = stamped_bodies(load.world.requests, id_prefix=load.ids)
    for turn in range(_ROUNDS):
        for place, (name, token) in enumerate(noises.items()):
            if not token:
                rows[name].append(_quiet(server, bodies, load, turn))
                continue
            sent = f"{load.ids}{turn}-{place}", token, load.capacity * load.times, load.seconds + 2 * _AROUND_S
            with ProcessPoolExecutor(1) as pool:
                noise = pool.submit(_blast, server.http, load.world.requests, *sent)
                time.sleep(_AROUND_S)
                rows[name].append(_quiet(server, bodies, load, turn) | noise.result())
    return {
        f"{name}_{key}": statistics.median(row[key] for row in found)
        for name, found in rows.items()
        for key in found[0]
    }


def _quiet(server: Server, bodies: Iterator[bytes], load: _Load, seed: int) -> dict[str, float]:
    # A worker without quotas is full, and Linux stops a full real-time thread now and then.
    ahead = [os.getpid(), *(server.worker_pids() if load.has_quotas else ())]
    rate = load.capacity * _QUIET_SHARE
    with ahead_of_others(ahead):
        report = drive(run_load(server.http, bodies, rate=rate, seconds=load.seconds, seed=seed, options=_OPTIONS))
    figures = {name: getattr(report, name) for name in ("p50_ms", "p99_ms", "lag_p99_ms")}
    return figures | {"refused_share": 1 - report.ok / report.sent}


def _blast(
    url: str, payments: Sequence[ScoreRequest], ids: str, token: str, per_second: float, seconds: float
) -> dict[str, float]:
    """Write requests at a rate, each connection as fast as its socket takes them; throw answers away."""
    os.nice(19)
    address = urlsplit(url)
    head = f"POST /v1/score HTTP/1.1\r\nHost: perf\r\nAuthorization: Bearer {token}"
    head += "\r\nContent-Type: application/x-protobuf"
    bodies = islice(stamped_bodies(payments, id_prefix=ids), _NOISE_PAYMENTS)
    requests = [f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]
    parts = cycle([b"".join(requests[at : at + _PIPELINED]) for at in range(0, len(requests), _PIPELINED)])
    selector = selectors.DefaultSelector()
    rests: dict[socket.socket, memoryview] = {}

    def connect() -> None:
        raw = socket.create_connection((address.hostname or "", address.port or 0))
        raw.setblocking(False)
        rests[raw] = memoryview(b"")
        selector.register(raw, selectors.EVENT_READ | selectors.EVENT_WRITE)

    for _ in range(_NOISE_CONNECTIONS):
        connect()
    began, count, admitted = time.monotonic(), 0, 0
    while (elapsed := time.monotonic() - began) < seconds:
        due = elapsed * per_second
        if count > due:
            time.sleep(min(0.01, (count - due) / per_second))
        for key, events in selector.select(0.01):
            raw: socket.socket = key.fileobj  # type: ignore[assignment]
            try:
                if events & selectors.EVENT_READ:
                    # An answer that is cut in two is not seen.
                    admitted += raw.recv(1 << 18).count(b" 200 OK")
                if events & selectors.EVENT_WRITE and count <= due:
                    if not rests[raw]:
                        rests[raw], count = memoryview(next(parts)), count + _PIPELINED
                    rests[raw] = rests[raw][raw.send(rests[raw]) :]
            except ConnectionError:
                # The worker closes the connection of a caller that reads too slowly.
                selector.unregister(raw)
                raw.close()
                del rests[raw]
                connect()
    for raw in rests:
        raw.close()
    return {"offered_per_second": count / seconds, "admitted_per_second": admitted / seconds}


if __name__ == "__main__":
    main()
