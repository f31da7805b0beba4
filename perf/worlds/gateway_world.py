"""Gateways before hosts with the real HTTP front and a constant answer."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from paywarden.ops.gateway.description import read_description
from paywarden.ops.times import now_ms
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from perf.tools.servers import Server, running
from tests.services.clients.gateway_kills import route_of
from tests.services.product.processes import wait_until
from tests.services.servers.gateways import RunningGateway, running_gateway

HOSTS = ("scoring-1", "scoring-2")
LOAD_KEY = "the-key-of-the-load"
_CALLS_OF_CARD = 5


@dataclass(frozen=True)
class Place:
    """A host as the gateway sees it: its ports for calls and for health."""

    name: str
    http: int
    health: int


@contextmanager
def running_hosts(takes_us: int) -> Iterator[list[Server]]:
    """Yield the hosts. Each has a port of its own for health, as `paywarden serve` has."""
    with ExitStack() as stack:
        cores = sorted(os.sched_getaffinity(0))
        module, servers = "perf.worlds.gateway_host", list[Server]()
        for place, name in enumerate(HOSTS):
            options, core = (name, "--takes-us", str(takes_us)), cores[place % len(cores)]
            servers.append(stack.enter_context(running(module, *options, ready_path="/readyz", core=core)))
        yield servers


def places_of(servers: Sequence[Server]) -> list[Place]:
    """Return the places of hosts of `running_hosts`."""
    return [
        Place(name, urlsplit(server.http).port or 0, int(server.addresses["health"].partition(":")[2]))
        for name, server in zip(HOSTS, servers, strict=True)
    ]


@contextmanager
def gateway_before(target: str, places: Sequence[Place]) -> Iterator[RunningGateway]:
    """Start a gateway before these hosts, for one client with a key. It writes no access log."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # nginx's workers run as another user.
        folder.chmod(0o755)
        (folder / "secret").write_text("s" * 32 + "\n", encoding="ascii")
        (folder / "secret").chmod(0o600)
        text = '[listen]\ngrpc = ""\n[to_hosts]\nsecret_file = "secret"\ntimeout_ms = 1000\n'
        key = hashlib.sha256(LOAD_KEY.encode()).hexdigest()
        text += f'[[clients]]\nname = "load"\nkeys = ["{key}"]\ncalls_per_second = 1000000\n'
        for place in places:
            text += f'[[hosts]]\nname = "{place.name}"\naddress = "127.0.0.1"\n'
            text += f"http = {place.http}\nhealth = {place.health}\n"
        (folder / "gateway.toml").write_text(text, encoding="utf-8")
        description = read_description(folder / "gateway.toml")
        with running_gateway(target, description, folder / target, access_log=False) as gateway:
            wait_until(lambda: _has_hosts(url_of(gateway)), f"{target} finds its hosts well")
            yield gateway


def url_of(gateway: RunningGateway) -> str:
    return f"http://127.0.0.1:{gateway.http_port}"


def pids_of(gateway: RunningGateway) -> list[int]:
    """Return the processes of a gateway, the first one first: nginx has several."""
    first = psutil.Process(gateway.process.pid)
    return [first.pid, *(each.pid for each in first.children(recursive=True))]


def _has_hosts(url: str) -> bool:
    try:
        return len(hosts_of_cards(url, "ready", cards=20)) == 20
    except (OSError, http.client.HTTPException, RuntimeError):
        return False


def requests() -> list[ScoreRequest]:
    return [
        ScoreRequest(card_id=f"card-{number}", merchant_id="merchant", amount_minor=1000, currency="EUR")
        for number in range(1000)
    ]


def hosts_of_cards(url: str, prefix: str, *, cards: int) -> dict[str, Counter[str]]:
    """Send payments of cards, each several times; return the hosts that answered each card, counted."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port or 0, timeout=30)
    found: dict[str, Counter[str]] = {}
    for number, request in enumerate(requests()[:cards] * _CALLS_OF_CARD):
        request.payment_id, request.event_time_ms = f"{prefix}-{number}", now_ms()
        headers = {
            "Content-Type": "application/x-protobuf",
            "Authorization": f"Bearer {LOAD_KEY}",
            "x-paywarden-route": route_of(request.card_id),
        }
        connection.request("POST", "/v1/score", request.SerializeToString(), headers)
        reply = connection.getresponse()
        body = reply.read()
        if reply.status != 200:
            raise RuntimeError(f"a payment was answered {reply.status}")
        answer = ScoreResponse.FromString(body)
        assert answer.payment_id == request.payment_id
        found.setdefault(request.card_id, Counter())[answer.model_version] += 1
    connection.close()
    return found


def sticky_share(found: dict[str, Counter[str]]) -> float:
    """Return the share of payments that met the host of most payments of their card."""
    return sum(max(hosts.values()) for hosts in found.values()) / sum(hosts.total() for hosts in found.values())
