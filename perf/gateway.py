"""The cost and promises of a gateway: added latency, a card's host, hosts under overload, payments decided twice.

Hosts with the real HTTP front and a constant answer stand behind each target, Envoy and nginx, configured by
`paywarden gateway render`, without TLS and with an API key. All share the machine's cores. For latencies the load, the
gateway and the hosts have real-time priority, as far as this user may (root may). Otherwise a gateway would be charged
for each time slice of other processes that a woken thread waits for.

    added_p99_ms_TARGET         p99 of an open loop at `--rate` through the gateway, less the p99 without it
    cpu_us_TARGET               the gateway's CPU time for each of these calls
    sticky_share                payments of a card that met the host of most of them; the worse target
    ejected_at_overload         hosts that lost cards while five times their capacity came; both targets
    double_decisions(_TARGET)   payments with two decisions, `--kills` workers killed, with all retries

Used for: whether a gateway costs a millisecond at most, whether shedding load is taken for sickness, and what a caller
may rely on while workers die.

    python -m perf.gateway [--only latency overload kills] [--targets envoy nginx] [--rate N] [--seconds N] [--rounds N]
                           [--kills N] [--json FILE]

The published figures: --kills 1000, ten minutes a target on a quiet machine. A target that is not installed is left
out. The answers are checked: each has the id of its payment.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load_run import run_load
from paywarden.ops.loadgen.report import LoadReport
from paywarden.ops.loadgen.target import LoadOptions
from perf.tools.measuring import ahead_of_others, arguments_of, drive, finish
from perf.tools.processes import cpu_seconds
from perf.worlds.gateway_world import (
    HOSTS,
    LOAD_KEY,
    Place,
    gateway_before,
    hosts_of_cards,
    pids_of,
    places_of,
    requests,
    running_hosts,
    sticky_share,
    url_of,
)
from tests.services.clients import served_clients
from tests.services.clients.gateway_kills import killed_under_load
from tests.services.hosts.always_well import always_well
from tests.services.servers.gateways import TARGETS, missing_tool

_PARTS = ("latency", "overload", "kills")
_CARDS = 400
# A payment takes two milliseconds on the hosts of the overload: 500 a second each.
_TAKES_US = 2_000
_OVERLOAD_TIMES = 5


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--only", {"nargs": "+", "choices": _PARTS, "default": _PARTS, "help": "parts"}),
        ("--targets", {"nargs": "+", "choices": TARGETS, "default": TARGETS, "help": "gateways"}),
        ("--rate", {"type": float, "default": 2_000.0, "help": "calls a second"}),
        ("--seconds", {"type": float, "default": 6.0, "help": "of each measurement"}),
        ("--rounds", {"type": int, "default": 3, "help": "of latencies, in turns"}),
        ("--kills", {"type": int, "default": 20, "help": "of workers of real hosts, for each target"}),
    )
    targets = [target for target in arguments.targets if missing_tool(target) is None]
    figures: dict[str, float] = {}
    if "latency" in arguments.only:
        figures |= _latency(targets, arguments.rate, arguments.seconds, arguments.rounds)
    if "overload" in arguments.only:
        figures |= _overload(targets, arguments.seconds)
    if "kills" in arguments.only:
        figures |= _kills(targets, arguments.kills)
    finish(figures, arguments.json)


def _latency(targets: Sequence[str], rate: float, seconds: float, rounds: int) -> dict[str, float]:
    """Return the latencies with and without each gateway, medians over rounds in turns, and its CPU time a call."""
    # Few connections: after a pause of the machine hundreds of new ones would be measured, and not calls.
    options = LoadOptions(connections=32, connections_max=32, token=LOAD_KEY)
    with running_hosts(0) as hosts, ExitStack() as stack:
        gateways = {target: stack.enter_context(gateway_before(target, places_of(hosts))) for target in targets}
        urls = {"direct": hosts[0].http} | {name: url_of(gateway) for name, gateway in gateways.items()}
        reports: dict[str, list[LoadReport]] = {name: [] for name in urls}
        cpu_us: dict[str, list[float]] = {name: [] for name in gateways}
        for turn in range(rounds + 1):
            for name, url in urls.items():
                bodies = stamped_bodies(requests(), id_prefix=f"a{turn}{name[0]}")
                pids = pids_of(gateways[name]) if name in gateways else []
                before_s = sum(map(cpu_seconds, pids[:1]))
                with ahead_of_others([os.getpid(), *(host.process.pid for host in hosts), *pids]):
                    report = drive(run_load(url, bodies, rate=rate, seconds=seconds, seed=turn, options=options))
                if report.ok != report.sent:
                    raise RuntimeError(f"{name}: {report.sent - report.ok} of {report.sent} calls were not answered")
                # The first round warms up.
                if turn:
                    reports[name].append(report)
                    if pids:
                        cpu_us[name].append((cpu_seconds(pids[0]) - before_s) / report.sent * 1e6)
        sticky = [
            sticky_share(hosts_of_cards(url_of(one), f"s{name[0]}", cards=_CARDS)) for name, one in gateways.items()
        ]
    figures: dict[str, float] = {"sticky_share": min(sticky)}
    for key in ("p99_ms", "p50_ms", "lag_p99_ms"):
        figures |= {f"{key}_{name}": statistics.median(getattr(one, key) for one in reports[name]) for name in urls}
    for name, row in cpu_us.items():
        figures[f"added_p99_ms_{name}"] = figures[f"p99_ms_{name}"] - figures["p99_ms_direct"]
        figures[f"cpu_us_{name}"] = statistics.median(row)
    return figures


def _overload(targets: Sequence[str], seconds: float) -> dict[str, float]:
    """Return how many hosts lost cards to an overload, and the share of calls that were refused in it."""
    figures: dict[str, float] = {"ejected_at_overload": 0}
    rate = _OVERLOAD_TIMES * len(HOSTS) * 1e6 / _TAKES_US
    options = LoadOptions(connections=64, connections_max=512, token=LOAD_KEY)
    with running_hosts(_TAKES_US) as hosts:
        for target in targets:
            with gateway_before(target, places_of(hosts)) as gateway:
                before = hosts_of_cards(url_of(gateway), "before", cards=100)
                bodies = stamped_bodies(requests(), id_prefix="over")
                report = drive(run_load(url_of(gateway), bodies, rate=rate, seconds=seconds, options=options))
                # A host that was taken out would be out for seconds: look immediately.
                after = hosts_of_cards(url_of(gateway), "after", cards=100)
            lost = {host for card, found in before.items() for host in found if host not in after[card]}
            figures["ejected_at_overload"] += len(lost)
            figures[f"shed_share_{target}"] = report.shed / report.sent
    return figures


def _kills(targets: Sequence[str], kills: int) -> dict[str, float]:
    """Kill workers of two real hosts while callers pay through the gateway and ask again until they are answered."""
    figures: dict[str, float] = {"double_decisions": 0}
    for target in targets:
        with (
            tempfile.TemporaryDirectory(prefix="paywarden-gateway-") as folder,
            served_clients.running_hosts(Path(folder), len(HOSTS)) as hosts,
            always_well() as health,
        ):
            ports = [urlsplit(host.url).port or 0 for host in hosts]
            places = [Place(name, port, health) for name, port in zip(HOSTS, ports, strict=True)]
            with gateway_before(target, places) as gateway:
                killed = killed_under_load(url_of(gateway), hosts, kills, key=LOAD_KEY, name=target)
        figures |= {f"kills_{target}": killed.kills, f"double_decisions_{target}": killed.double}
        figures |= {f"killed_payments_{target}": killed.payments, f"killed_repeats_{target}": killed.repeats}
        figures["double_decisions"] += killed.double
    return figures


if __name__ == "__main__":
    main()
