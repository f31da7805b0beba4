"""Shares of clients at a gateway: how exact they are for many clients at once, and how a noisy one affects others."""

from __future__ import annotations

import asyncio
import hashlib
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
import uvloop

from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load import run_arrivals, run_load
from paywarden.ops.loadgen.target import LoadOptions
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from perf.tools.measuring import drive
from perf.tools.servers import Server
from perf.worlds.gateway_world import (
    AHEAD,
    LOAD,
    LOAD_KEY,
    ClientShare,
    Gateway,
    Place,
    measured_ahead,
    places_of,
    requests,
    running_gateway,
)
from tests.services.clients.gateway_kills import route_of

# Calls of a client that would pass within the run, on average: fewer, and one call is more than a percent.
CALLS_OF_CLIENT = 120
# Two calls a second of each client, so that a thousand clients are a load that two shared cores carry.
SHARE = 2
_OFFERED_TIMES = 1.5
_CONNECTIONS = 32

NOISY = ClientShare("noisy", "the-key-of-a-noisy-client", 500)
NOISY_TIMES = 5
_NOISY_CONNECTIONS = 32
# The other client sends longer than the measured one, so that it is there to the end.
_LONGER_S = 1
# The first round is not measured.
_WARM_UP_S = 1.5

# Its calls are refused, but for one a second.
BURSTS = ClientShare("bursts", "the-key-of-a-client-with-bursts", 1)
BURST_CALLS = 240
BURSTS_PER_SECOND = 10
_BURST_CONNECTIONS = 2


def many_clients(count: int) -> list[ClientShare]:
    """Returns clients, each with a key of its own and the same share."""
    names = (f"client-{number:04}" for number in range(count))
    return [ClientShare(name, hashlib.sha256(name.encode()).hexdigest()[:43], SHARE) for name in names]


@dataclass
class _Sent:
    """The calls of one client. Times are of the first and of the last call, in seconds."""

    calls: int = 0
    taken: int = 0
    refused: int = 0
    first_s: float = 0.0
    last_s: float = 0.0

    def note(self, status: int, at_s: float) -> None:
        self.first_s = self.first_s or at_s
        self.last_s = at_s
        self.calls += 1
        self.taken += status == 200
        self.refused += status == 429


def share_errors(target: str, places: Sequence[Place], count: int, seconds: float) -> dict[str, float]:
    """Let all clients send more than their share at once, and compare the answers of each with its burst and its rate.

    Returns the largest and the mean error as shares. Raises RuntimeError if a call is neither taken nor refused.
    """
    clients = many_clients(count)
    with running_gateway(target, places, [LOAD, *clients]) as gateway:
        sent = asyncio.run(_all_send(gateway.url, clients, seconds))
    errors = []
    for client, one in zip(clients, sent, strict=True):
        if one.taken + one.refused != one.calls:
            raise RuntimeError(f"{one.calls - one.taken - one.refused} of {one.calls} calls of a client failed")
        burst = max(1, client.calls_per_second // 10)
        # A call and the burst may come at once, and the bucket fills until the last call. A call is a whole one.
        allowed = 1 + burst + client.calls_per_second * (one.last_s - one.first_s)
        errors.append(max(0.0, abs(one.taken - allowed) - 1) / allowed)
    return {
        f"limit_clients_{target}": count,
        f"limit_calls_{target}": sum(one.calls for one in sent),
        f"limit_clients_error_share_{target}": max(errors),
        f"limit_clients_mean_error_share_{target}": statistics.fmean(errors),
    }


async def _all_send(url: str, clients: Sequence[ClientShare], seconds: float) -> list[_Sent]:
    """Each connection sends for its clients in turns, a call at a time, so that each client keeps to its rate."""
    sent = [_Sent() for _ in clients]
    each = 1 / (SHARE * _OFFERED_TIMES)
    calls = max(1, int(seconds / each))
    start = time.monotonic() + 0.2

    async def serve_some(first: int) -> None:
        address = urlsplit(url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        mine = range(first, len(clients), _CONNECTIONS)
        for turn in range(calls):
            for place, number in enumerate(mine):
                due = start + (turn + place / len(mine)) * each
                if (rest := due - time.monotonic()) > 0:
                    await asyncio.sleep(rest)
                writer.write(_request(clients[number], number, turn))
                at = time.monotonic()
                sent[number].note(await _status(reader), at)
        writer.close()

    await asyncio.gather(*(serve_some(first) for first in range(min(_CONNECTIONS, len(clients)))))
    return sent


def _request(client: ClientShare, number: int, turn: int) -> bytes:
    body = ScoreRequest(
        payment_id=f"{client.name}-{turn}",
        event_time_ms=time.time_ns() // 1_000_000,
        card_id=f"card-{number}",
        merchant_id="merchant",
        amount_minor=1,
        currency="EUR",
    ).SerializeToString()
    head = (
        f"POST /v1/score HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/x-protobuf\r\n"
        f"Authorization: Bearer {client.key}\r\nx-paywarden-route: {route_of(f'card-{number}')}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _status(reader: asyncio.StreamReader) -> int:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
    await reader.readexactly(int(length or 0))
    return int(head.split(b" ", 2)[1])


def beside_a_noisy_client(
    target: str, hosts: Sequence[Server], ways: Sequence[str], rate: float, seconds: float, rounds: int
) -> dict[str, float]:
    """Measure a client beside another one that keeps to its share, and beside one that sends five times as much.

    The other client is a process of its own with a low priority. Its use of the cores is no fault of the gateway:
    the client is measured, too, while that process sends as much to a second gateway, which refuses it. Rounds go in
    turns; the first warms up.
    """
    figures: dict[str, float] = {}
    with (
        running_gateway(target, places_of(hosts), [LOAD, NOISY]) as gateway,
        running_gateway(target, places_of(hosts), [LOAD, NOISY]) as second,
    ):
        within, over = (str(NOISY.calls_per_second * times) for times in (1, NOISY_TIMES))
        others = {
            "calm": (gateway.url, NOISY.key, within, "1"),
            "noisy": (gateway.url, NOISY.key, over, "1"),
            "elsewhere": (second.url, NOISY.key, over, "1"),
        }
        for way in ways:
            beside = _beside(others, gateway, hosts, way, rate, seconds, rounds)
            p99 = {name: statistics.median(one.p99_ms for one in beside[name]) for name in others}
            figures |= {f"{way}{name}_p99_ms_{target}": value for name, value in p99.items()}
            told = ", ".join(f"{name} {value:.2f} ms" for name, value in p99.items())
            print(f"noise, {target}, {way.rstrip('_') or 'ahead'}: p99 {told}", flush=True)
            for name in ("noisy", "elsewhere"):
                figures[f"{way}{name}_p99_ratio_{target}"] = float(np.divide(p99[name], p99["calm"]))
            if way == AHEAD:
                refused = statistics.median(one.refused for one in beside["noisy"])
                figures[f"noisy_refused_per_s_{target}"] = refused / (seconds + _LONGER_S)
                figures[f"refusal_cpu_us_{target}"] = _refusal_cpu_us(beside["calm"], beside["noisy"])
    return figures


def beside_bursts(target: str, hosts: Sequence[Server], rate: float, seconds: float, rounds: int) -> dict[str, float]:
    """Measure a client over HTTP/1.1 beside another one whose gRPC calls are refused: single ones, and bursts."""
    with running_gateway(target, places_of(hosts), [LOAD, BURSTS], with_grpc=True) as gateway:
        others = {
            name: (gateway.grpc_url, BURSTS.key, str(burst * BURSTS_PER_SECOND), str(burst))
            for name, burst in (("single", 1), ("burst", BURST_CALLS))
        }
        beside = _beside(others, gateway, hosts, AHEAD, rate, seconds, rounds)
    single, burst = (statistics.median(one.p99_ms for one in beside[name]) for name in ("single", "burst"))
    return {
        f"single_p99_ms_{target}": single,
        f"burst_p99_ms_{target}": burst,
        f"burst_p99_ratio_{target}": float(np.divide(burst, single)),
    }


@dataclass(frozen=True)
class _Beside:
    """One round: the p99 of the client, the gateway's CPU seconds in it, and how many calls of the other it refused."""

    p99_ms: float
    cpu_s: float
    refused: int


def _beside(
    others: dict[str, tuple[str, str, str, str]],
    gateway: Gateway,
    hosts: Sequence[Server],
    way: str,
    rate: float,
    seconds: float,
    rounds: int,
) -> dict[str, list[_Beside]]:
    """Returns the rounds of a client beside each other one, in turns. The first round warms up and is left out."""
    options = LoadOptions(connections=_NOISY_CONNECTIONS, connections_max=_NOISY_CONNECTIONS, token=LOAD_KEY)
    found: dict[str, list[_Beside]] = {name: [] for name in others}
    for turn in range(rounds + 1):
        lasts_s = seconds if turn else min(seconds, _WARM_UP_S)
        for name, (url, key, calls, burst) in others.items():
            command = [
                sys.executable,
                "-m",
                "perf.parts.gateway_shares",
                url,
                key,
                calls,
                burst,
                str(lasts_s + _LONGER_S),
            ]
            before_s = gateway.cpu_seconds()
            with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                process.stdout.readline()
                bodies = stamped_bodies(requests(), id_prefix=f"n{turn}{way[:1]}{name[0]}")
                with measured_ahead(way, hosts, gateway, behind=[process.pid]):
                    load = run_load(gateway.url, bodies, rate=rate, seconds=lasts_s, seed=turn, options=options)
                    report = drive(load)
                    refused = int(process.stdout.readline() or 0)
            if process.returncode != 0 or report.ok != report.sent:
                raise RuntimeError(f"{report.sent - report.ok} of {report.sent} calls beside a {name} client failed")
            if turn:
                found[name].append(_Beside(report.p99_ms, gateway.cpu_seconds() - before_s, refused))
    return found


def _refusal_cpu_us(calm: Sequence[_Beside], noisy: Sequence[_Beside]) -> float:
    """Returns the CPU time of a refused call: the extra time of the noisy rounds by their extra refusals."""
    more_s = statistics.median(one.cpu_s for one in noisy) - statistics.median(one.cpu_s for one in calm)
    more = statistics.median(one.refused for one in noisy) - statistics.median(one.refused for one in calm)
    return more_s / more * 1e6


def main() -> None:
    """Be the other client: URL KEY CALLS_A_SECOND BURST SECONDS. Prints a line at the start, and its refused calls."""
    import os

    url, key, calls, burst, seconds = sys.argv[1:]
    os.nice(10)
    connections = _BURST_CONNECTIONS if url.startswith("grpc") else _NOISY_CONNECTIONS
    options = LoadOptions(connections=connections, connections_max=connections, token=key)
    bodies = stamped_bodies(requests(), id_prefix="noise")
    due = np.repeat(np.arange(0.0, float(seconds), int(burst) / float(calls)), int(burst))
    print("begins", flush=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(run_arrivals(url, bodies, due, options=options))
    print(report.shed, flush=True)


if __name__ == "__main__":
    main()
