"""The cost and promises of a gateway: latency, a card's host, hosts under overload, shares of clients, deaths of hosts.

Hosts with the real HTTP front and a constant answer stand behind each target, Envoy and nginx, configured by
`paywarden gateway render`, without TLS and with API keys. All share the machine's cores.

For latencies the load, the gateway and the hosts have real-time priority, as far as this user may (root may), and the
other client a lower one. Otherwise a gateway would be charged for each time slice of the load generator, of the other
client's process and of the machine's other processes that a woken thread waits for. `shared_…` has these in it.

    added_p99_ms_TARGET                  p99 of an open loop at `--rate` through the gateway, less the p99 without it
    cpu_us_TARGET                        the gateway's CPU time for each of these calls
    sticky_share                         payments of a card that met the host of most of them; the worse target
    ejected_at_overload                  hosts that lost cards while five times their capacity came; both targets
    limit_error_share_TARGET             how far one client's answers are from its share, at twice the share
    limit_clients_error_share_TARGET     the same of the worst of `--clients` clients, who all send at once
    noisy_p99_ratio_TARGET               p99 beside a client at five times its share, to that beside one within it
    elsewhere_p99_ratio_TARGET           the same while another gateway refuses that client: its process's effect
    noisy_refused_per_s_TARGET           calls a second of that client that are refused: four of five, if it keeps up
    refusal_cpu_us_TARGET                the gateway's CPU time for each call of that client that it refuses
    burst_p99_ratio_TARGET               p99 beside bursts over HTTP/2 that are refused, to that beside single calls
    shared_…                             the first three, and p50 and p99, without the priorities named above
    dead_host_share_TARGET               calls to a host from a second after its death on (kill -9), of all calls
    dead_host_failed_share_TARGET        calls that failed in that whole run: a caller asks again
    moved_share_TARGET                   cards that have another host after one of four died; 1.5/4 may
    double_decisions(_TARGET)            payments with two decisions, `--kills` workers killed, with all retries

Used for: whether a gateway costs a millisecond at most, whether shedding load is taken for sickness, and what a caller
may rely on while hosts die.

    python -m perf.gateway [--only latency,overload,clients,noise,bursts,deaths,kills] [--targets envoy,nginx]
                           [--ways ahead,shared] [--rate N] [--seconds N] [--rounds N] [--clients N] [--kills N]
                           [--append FILE] [--minutes N] [--json FILE]

How long a part takes by these settings on a quiet machine; on a busy one starts take several times as long:

    latency     3 minutes, or half of it for one of `--ways`
    overload    40 seconds
    clients     2 minutes
    noise       6 minutes: 90 seconds for each target and each of `--ways`
    bursts      2 minutes
    deaths      1 minute
    kills       a minute for each 50 `--kills` of a target

The published figures: --kills 1000 (ten minutes a target on a quiet machine). In pieces: `--only kills --kills 1000
--append counts.json --minutes 8`, again until both targets have all. A target that is not installed is left out. The
answers are checked: each has the id of its payment.
"""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.load import run_load
from paywarden.ops.loadgen.report import LoadReport
from paywarden.ops.loadgen.target import LoadOptions
from perf.parts.gateway_deaths import MOVED_SHARE_MAX, one_host_dies, workers_are_killed
from perf.parts.gateway_shares import CALLS_OF_CLIENT, SHARE, beside_a_noisy_client, beside_bursts, share_errors
from perf.tools.measuring import arguments_of, drive, finish
from perf.tools.pieces import Pieces
from perf.tools.servers import Server
from perf.worlds.gateway_world import (
    AHEAD,
    HOSTS,
    LOAD,
    LOAD_KEY,
    SHARED,
    TARGETS,
    ClientShare,
    Gateway,
    hosts_of_cards,
    is_installed,
    measured_ahead,
    places_of,
    requests,
    running_gateway,
    running_hosts,
    sticky_share,
)

PARTS = ("latency", "overload", "clients", "noise", "bursts", "deaths", "kills")
# By the names that `--ways` takes.
_WAYS = {"ahead": AHEAD, "shared": SHARED}
_LIMIT = 500
_LIMITED = ClientShare("limited", "the-key-of-a-limited-client", _LIMIT)
# A payment takes two milliseconds on the hosts of the overload: 500 a second each.
_TAKES_US = 2_000
_OVERLOAD_TIMES = 5
_CLIENTS_S = CALLS_OF_CLIENT / SHARE
# A minute or two.
_KILLS_OF_PIECE = 50
# Long enough for a second look at a host that was taken out (`out_ms` of [to_hosts] and [nginx]).
_DEATH_S = 12.0


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--only", {"default": ",".join(PARTS), "help": "parts, with commas between them"}),
        ("--targets", {"default": ",".join(TARGETS), "help": "gateways, with commas between them"}),
        ("--ways", {"default": ",".join(_WAYS), "help": "of latencies: with real-time priority, and at the usual one"}),
        ("--rate", {"type": float, "default": 2_000.0, "help": "calls a second"}),
        ("--seconds", {"type": float, "default": 6.0, "help": "of each measurement"}),
        ("--rounds", {"type": int, "default": 3, "help": "of latencies, in turns"}),
        ("--clients", {"type": int, "default": 1_000, "help": "with keys and shares of their own"}),
        ("--kills", {"type": int, "default": 20, "help": "of workers of real hosts, for each target"}),
        ("--append", {"type": Path, "help": "keep the counts of the kills there, and go on after those it holds"}),
        ("--minutes", {"type": float, "help": "begin no kills after so long"}),
    )
    pieces = Pieces(arguments.append, arguments.minutes)
    parts = _chosen("--only", arguments.only, PARTS)
    targets = [target for target in _chosen("--targets", arguments.targets, TARGETS) if is_installed(target)]
    ways = [_WAYS[way] for way in _chosen("--ways", arguments.ways, list(_WAYS))]
    figures: dict[str, float] = {}
    if {"latency", "clients", "noise", "bursts"} & set(parts):
        with running_hosts(0) as hosts:
            figures |= _undisturbed(hosts, targets, parts, ways, arguments)
    if "overload" in parts:
        with running_hosts(_TAKES_US) as hosts:
            figures["ejected_at_overload"] = 0
            for target in targets:
                with running_gateway(target, places_of(hosts), [LOAD]) as gateway:
                    ejected, shed = _overloaded(gateway.url, arguments.seconds)
                figures["ejected_at_overload"] += ejected
                figures[f"shed_share_{target}"] = shed
    if "deaths" in parts:
        for target in targets:
            figures |= one_host_dies(target, arguments.rate / 2, max(_DEATH_S, arguments.seconds))
        figures["moved_share_max"] = MOVED_SHARE_MAX
    if "kills" in parts:
        for target in targets:
            measure_piece = partial(workers_are_killed, target)
            counts = pieces.measure(f"kills_{target}", "kills", arguments.kills, _KILLS_OF_PIECE, measure_piece)
            figures[f"kills_{target}"] = counts["kills"]
            figures |= {f"killed_{key}_{target}": counts.get(key, 0) for key in ("payments", "repeats")}
            figures[f"double_decisions_{target}"] = counts.get("double", 0)
        figures["double_decisions"] = sum(figures[f"double_decisions_{target}"] for target in targets)
    finish(figures, arguments.json)


def _chosen(option: str, text: str, known: Sequence[str]) -> list[str]:
    """Returns the names in an option. Raises SystemExit for an unknown one."""
    chosen = text.split(",")
    if unknown := set(chosen) - set(known):
        raise SystemExit(f"gateway: {option}: wanted some of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    return chosen


def _undisturbed(
    hosts: Sequence[Server],
    targets: Sequence[str],
    parts: Sequence[str],
    ways: Sequence[str],
    arguments: Namespace,
) -> dict[str, float]:
    """Measure the parts that need hosts that are well and never late."""
    figures: dict[str, float] = {}
    places = places_of(hosts)
    if "latency" in parts:
        with ExitStack() as stack:
            clients = [LOAD, _LIMITED]
            gateways = {target: stack.enter_context(running_gateway(target, places, clients)) for target in targets}
            figures |= _added(hosts, gateways, ways, arguments)
            seen = {target: hosts_of_cards(gateway.url, f"s{target[0]}") for target, gateway in gateways.items()}
            figures["sticky_share"] = min(map(sticky_share, seen.values()))
            for target, gateway in gateways.items():
                figures[f"limit_error_share_{target}"] = _limit_error(gateway.url, arguments.seconds)
    for target in targets:
        if "clients" in parts:
            figures |= share_errors(target, places, arguments.clients, _CLIENTS_S)
        if "noise" in parts:
            rate, seconds, rounds = arguments.rate / 4, arguments.seconds, arguments.rounds
            figures |= beside_a_noisy_client(target, hosts, ways, rate, seconds, rounds)
        if "bursts" in parts:
            figures |= beside_bursts(target, hosts, arguments.rate / 4, arguments.seconds, arguments.rounds)
    return figures


def _added(
    hosts: Sequence[Server], gateways: dict[str, Gateway], ways: Sequence[str], arguments: Namespace
) -> dict[str, float]:
    """Returns the latencies with and without each gateway, medians over rounds in turns, and its CPU time a call."""
    rate, seconds = arguments.rate, arguments.seconds
    urls = {"direct": hosts[0].http} | {name: gateway.url for name, gateway in gateways.items()}
    reports: dict[tuple[str, str], list[LoadReport]] = {(way, name): [] for way in ways for name in urls}
    cpu_us: dict[str, list[float]] = {name: [] for name in gateways}
    # Few connections: after a pause of the machine hundreds of new ones would be measured, and not calls.
    options = LoadOptions(connections=32, connections_max=32, token=LOAD_KEY)
    for turn in range(arguments.rounds + 1):
        for way, name in reports:
            bodies = stamped_bodies(requests(), id_prefix=f"a{turn}{way[:1]}{name[0]}")
            gateway = gateways.get(name)
            before_s = gateway.cpu_seconds() if gateway else 0.0
            with measured_ahead(way, hosts, gateway):
                report = drive(run_load(urls[name], bodies, rate=rate, seconds=seconds, seed=turn, options=options))
            if report.ok != report.sent:
                raise RuntimeError(f"{name}: {report.sent - report.ok} of {report.sent} calls were not answered")
            # The first round warms up.
            if turn:
                reports[way, name].append(report)
                if gateway and way == AHEAD:
                    cpu_us[name].append((gateway.cpu_seconds() - before_s) / report.sent * 1e6)
    figures: dict[str, float] = {}
    for way in ways:
        p99, p50 = (
            {name: statistics.median(getattr(one, key) for one in reports[way, name]) for name in urls}
            for key in ("p99_ms", "p50_ms")
        )
        figures |= {f"{way}p99_ms_{name}": value for name, value in p99.items()}
        figures |= {f"{way}p50_ms_{name}": value for name, value in p50.items()}
        figures |= {f"{way}added_p99_ms_{name}": p99[name] - p99["direct"] for name in gateways}
        lags = (statistics.median(one.lag_p99_ms for one in reports[way, name]) for name in urls)
        figures[f"{way}lag_p99_ms"] = max(lags)
    return figures | {f"cpu_us_{name}": statistics.median(row) for name, row in cpu_us.items() if row}


def _limit_error(url: str, seconds: float) -> float:
    """Returns how far the answers of a client with a share are from the share and its burst."""
    options = LoadOptions(connections=16, connections_max=16, token=_LIMITED.key)
    bodies = stamped_bodies(requests(), id_prefix="limit")
    report = drive(run_load(url, bodies, rate=2 * _LIMIT, seconds=seconds, arrivals="fixed", options=options))
    return report.ok / (_LIMIT * seconds + _LIMIT / 10) - 1


def _overloaded(url: str, seconds: float) -> tuple[int, float]:
    """Returns how many hosts lost cards to an overload, and the share of calls that were refused in it."""
    before = hosts_of_cards(url, "before", cards=100)
    capacity = len(HOSTS) * 1e6 / _TAKES_US
    options = LoadOptions(connections=64, connections_max=512, token=LOAD_KEY)
    bodies = stamped_bodies(requests(), id_prefix="over")
    report = drive(run_load(url, bodies, rate=_OVERLOAD_TIMES * capacity, seconds=seconds, options=options))
    # A host that was taken out would be out for seconds: look at once.
    after = hosts_of_cards(url, "after", cards=100)
    lost = {host for card, hosts in before.items() for host in hosts if host not in after[card]}
    return len(lost), report.shed / report.sent


if __name__ == "__main__":
    main()
