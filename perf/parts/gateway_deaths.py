"""Hosts behind a gateway that die: the calls that they still get, the cards that move, payments decided twice."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load import run_load
from paywarden.ops.loadgen.target import LoadOptions
from perf.tools.measuring import drive
from perf.worlds.gateway_world import (
    LOAD,
    LOAD_KEY,
    Gateway,
    Place,
    hosts_of_cards,
    places_of,
    requests,
    running_gateway,
    running_hosts,
)
from tests.services.clients import served_clients
from tests.services.clients.gateway_kills import killed_under_load
from tests.services.hosts.always_well import always_well

NAMES = tuple(f"scoring-{number}" for number in range(1, 5))
# Cards may move by the share of a host that goes, and half as much again.
MOVED_SHARE_MAX = 1.5 / len(NAMES)
_CARDS = 1000
# From when on a dead host should get no calls.
_NOTICED_S = 1.0
_CONNECTIONS = 64
_WRITTEN_TIMEOUT_S = 10.0


def one_host_dies(target: str, rate: float, seconds: float) -> dict[str, float]:
    """Kill one of four hosts under load (kill -9).

    `dead_host_share` is the share of the calls from a second later on that the gateway sent to it, by its access log;
    `moved_share` the share of all cards that then have another host than before.
    """
    with running_hosts(0, NAMES) as servers:
        places = places_of(servers, NAMES)
        with running_gateway(target, places, [LOAD], access_log=True) as gateway:
            before = hosts_of_cards(gateway.url, "before", cards=_CARDS)
            gone, process = places[-1], servers[-1].process
            failed = _load_while(gateway, rate, seconds, process.kill)
            after = hosts_of_cards(gateway.url, "after", cards=_CARDS)
    moved = sum(before[card].most_common(1)[0][0] != hosts.most_common(1)[0][0] for card, hosts in after.items())
    late, to_gone = failed.calls, failed.hosts[f"127.0.0.1:{gone.http}"]
    return {
        f"calls_after_a_second_{target}": late,
        f"dead_host_share_{target}": to_gone / late,
        f"dead_host_failed_share_{target}": failed.failed / failed.sent,
        f"moved_share_{target}": moved / len(after),
    }


class _Late:
    """The lines of the access log from a second after the death on, and the calls sent and failed in the whole run."""

    def __init__(self, lines: Sequence[dict[str, str]], sent: int, failed: int) -> None:
        self.calls, self.sent, self.failed = len(lines), sent, failed
        self.hosts: Counter[str] = Counter()
        for line in lines:
            # nginx names each host that it asked.
            self.hosts.update(set(line["host"].replace(" : ", ", ").split(", ")))


def _load_while(gateway: Gateway, rate: float, seconds: float, kill: Callable[[], None]) -> _Late:
    """Send payments for `seconds`, with the death after a quarter of it."""
    options = LoadOptions(connections=_CONNECTIONS, connections_max=_CONNECTIONS * 4, token=LOAD_KEY)
    # The size of the access log a second after the death.
    seen: list[int] = []

    def wait_and_kill() -> None:
        time.sleep(seconds / 4)
        kill()
        time.sleep(_NOTICED_S)
        seen.append(gateway.access_log.stat().st_size)

    killer = threading.Thread(target=wait_and_kill)
    killer.start()
    # Without a routing header a call goes to any host: all hosts get their part of the calls.
    bodies = stamped_bodies(requests(), id_prefix="death")
    report = drive(run_load(gateway.url, bodies, rate=rate, seconds=seconds, options=options))
    killer.join()
    until = time.monotonic() + _WRITTEN_TIMEOUT_S
    lines: list[dict[str, str]] = []
    while time.monotonic() < until and len(lines) < (seconds * 3 / 4 - _NOTICED_S) * rate * 0.5:
        time.sleep(0.2)
        lines = _lines_from(gateway.access_log, seen[0])
    return _Late(lines, report.sent, report.sent - report.ok)


def _lines_from(log: Path, size: int) -> list[dict[str, str]]:
    """Returns the whole lines that were written after the first `size` bytes."""
    with log.open("rb") as file:
        file.seek(size)
        text = file.read().decode()
    # The first line may have begun before.
    whole = text[: text.rfind("\n") + 1].splitlines()[1:]
    return [json.loads(line) for line in whole]


def workers_are_killed(target: str, seed: int, kills: int) -> dict[str, int]:
    """Kill workers of two real hosts while callers pay through the gateway and ask again until they are answered.

    Returns one piece's counts: `kills`, `payments`, `repeats` and the payments with a `double` decision.
    """
    with (
        tempfile.TemporaryDirectory(prefix="paywarden-gateway-") as folder,
        served_clients.running_hosts(Path(folder), 2) as hosts,
        always_well() as health,
    ):
        places = [
            Place(f"scoring-{number}", urlsplit(host.url).port or 0, health) for number, host in enumerate(hosts, 1)
        ]
        with running_gateway(target, places, [LOAD]) as gateway:
            killed = killed_under_load(gateway.url, hosts, kills, key=LOAD_KEY, name=f"{target}-{seed}")
    return asdict(killed)
