"""The promises and the cost of the clients of ops/clients: the deadline, restarts, kills, processor time.

Each client's driver puts an open load on `paywarden serve` with two workers and a small model. All share the machine.

    NAME_cpu_us                      processor time of the client's process by calls, at `--rate`
    NAME_bare_cpu_us                 the same by the language's own HTTP client, without any of the rules: the same
                                     requests and threads, a round of each in turns, medians
    NAME_cpu_ratio                   the one by the other. Both include the cost of the driver's load
    NAME_p99_9_over_deadline_ms      return less deadline, 99.9th percentile, while the host is stopped (SIGSTOP):
                                     the client's threads with real-time priority, as far as this user may (root may)
    NAME_shared_p99_9_over_…         the same at the usual priority, with the waits for a core that other processes have
    NAME_max_over_…, NAME_core_wait_ms   the latest return, and how long the client's threads waited for a core in all
    NAME_machine_stall_ms            how late threads that only sleep, with real-time priority, woke meanwhile:
                                     a client that returns no later is kept waiting by the machine
    NAME_errors_at_restarts          calls without the service's own decision while two hosts restart in turns, all
                                     clients at once
    NAME_restarts                    how many restarts that were, half of them by SIGTERM and half by `--take-over`
    NAME_restarted_calls             under how many calls
    NAME_duplicates                  payments with two decisions after kills of workers (kill -9), with all retries
    NAME_kills, NAME_killed_calls    how many kills, under how many calls
    errors_at_restarts, restarted_calls, duplicates, kills, killed_calls    of all clients together

Used for: whether a payment service may rely on its deadline, and the cost of a client beside a bare call.

    python -m perf.clients [--only cost,deadline,restarts,kills] [--clients python,typescript] [--rate N] [--seconds N]
                           [--rounds N] [--restarts N] [--kills N] [--kill-seconds N] [--piece N] [--append FILE]
                           [--minutes N] [--json FILE]

How long a part takes by these settings on a quiet machine; on a busy one starts take several times as long:

    cost        a minute for each of `--clients`
    deadline    half a minute for each
    restarts    3 seconds for each of `--restarts`, all clients at once, and half a minute for each 25 of them
    kills       `--kill-seconds` for each client, and half a minute for each 25 `--kills`

The published figures: --restarts 50 --rate 100 (four minutes for all clients), and --kills 1000 --kill-seconds 2000
--rate 500 for a million calls of each client (three hours for all). In pieces: `--only restarts,kills … --append
counts.json --minutes 8`, again until the file has all; a piece has at most `--piece` restarts or kills. A driver that
begins calls late (NAME_late_share) was short of processors itself. Clients whose tools are missing are left out.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from perf.tools.measuring import Witness, ahead_of_others, arguments_of, finish
from perf.tools.pieces import Pieces
from perf.tools.servers import core_wait_seconds
from perf.worlds.gateway_world import AHEAD, SHARED
from tests.services.clients.client_drivers import DRIVERS, Driver
from tests.services.clients.served_clients import Host, load_with_kills, load_with_restarts, running_hosts
from tests.services.fetch import ServiceMissing

_DEADLINE_MS = 40
# Where answers are counted and not their time.
_PATIENT_MS = 5_000
_CARDS = 1000
PARTS = ("cost", "deadline", "restarts", "kills")
# The counts, and the names of their sums.
_RESTART_COUNTS = ("errors_at_restarts", "restarts", "restarted_calls")
_KILL_COUNTS = ("duplicates", "kills", "killed_calls")
# Restarts or kills of a piece, which takes about a minute, with new hosts.
_PIECE = 25
# A restart takes two seconds: for one of them a host says that it stops.
_RESTART_S = 2.08


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--only", {"default": ",".join(PARTS), "help": "parts, with commas between them"}),
        ("--clients", {"default": ",".join(DRIVERS), "help": "names, with commas between them"}),
        ("--rate", {"type": float, "default": 200.0, "help": "calls a second"}),
        ("--seconds", {"type": float, "default": 5.0, "help": "of each measurement"}),
        ("--rounds", {"type": int, "default": 3, "help": "of the cost, in turns"}),
        ("--restarts", {"type": int, "default": 4, "help": "of two hosts"}),
        ("--kills", {"type": int, "default": 10, "help": "of workers"}),
        ("--kill-seconds", {"type": float, "default": 10.0, "help": "of the load with kills"}),
        ("--piece", {"type": int, "default": _PIECE, "help": "restarts or kills between two pairs of new hosts"}),
        ("--append", {"type": Path, "help": "keep the counts there, and go on after those it holds"}),
        ("--minutes", {"type": float, "help": "begin no restarts or kills after so long"}),
    )
    parts = arguments.only.split(",")
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"clients: --only: wanted some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    pieces = Pieces(arguments.append, arguments.minutes)
    commands = dict(_commands(arguments.clients.split(",")))
    found: dict[str, dict[str, float]] = {name: {} for name in commands}
    for name, command in commands.items():
        if {"cost", "deadline"} & set(parts):
            found[name] |= _timed(name, command, parts, arguments)
        if "kills" in parts:
            found[name] |= _killed(name, command, pieces, arguments)
    if "restarts" in parts and commands:
        for name, counts in _restarted(commands, pieces, arguments).items():
            found[name] |= counts
    figures: dict[str, Any] = {}
    for name, measured in found.items():
        for key in (*_RESTART_COUNTS, *_KILL_COUNTS):
            # All clients meet the same restarts.
            if key in measured and key != "restarts":
                figures[key] = figures.get(key, 0) + measured[key]
        figures |= {f"{name.replace('-', '_')}_{key}": value for key, value in measured.items()}
    finish(figures, arguments.json)


def _commands(names: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    """Yields the clients whose tools are there, with the commands of their drivers."""
    for name in names:
        try:
            yield name, DRIVERS[name]()
        except ServiceMissing as error:
            print(f"{name} is left out: {error}", file=sys.stderr)


@contextmanager
def _served(commands: Mapping[str, Sequence[str]]) -> Iterator[tuple[dict[str, Driver], list[Host]]]:
    """Yields the drivers of clients that have met both of two new hosts."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="paywarden-clients-"))
        hosts = stack.enter_context(running_hosts(Path(folder), 2))
        drivers = {name: stack.enter_context(Driver(command)) for name, command in commands.items()}
        for name, driver in drivers.items():
            # The first calls compile, connect and fill caches.
            driver.ask(settings={"urls": [host.url for host in hosts], "deadline_ms": _PATIENT_MS})
            driver.ask(load={"rate": 200.0, "seconds": 1.0, "id": f"warm-{name}", "cards": _CARDS})
        yield drivers, hosts
        for driver in drivers.values():
            driver.ask(close=True)


def _timed(name: str, command: Sequence[str], parts: Sequence[str], arguments: Namespace) -> dict[str, float]:
    """Measure the cost of a call, and how late it returns while its host is stopped."""
    figures: dict[str, float] = {}

    def load(kind: str, seconds: float = arguments.seconds) -> dict[str, Any]:
        return {"rate": arguments.rate, "seconds": seconds, "id": f"{name}-{kind}", "cards": _CARDS}

    with _served({name: command}) as (drivers, hosts):
        one, driver = [hosts[0].url], drivers[name]
        if "cost" in parts:
            driver.ask(settings={"urls": one, "deadline_ms": _PATIENT_MS})
            figures |= _cost(driver, name, arguments)
        if "deadline" in parts:
            driver.ask(settings={"urls": one, "deadline_ms": _DEADLINE_MS, "queue_max": 0})
            driver.ask(load=load("before", 1.0))
            # The usual priority first: threads that begin with real-time priority keep it.
            for way, before in ((SHARED, nullcontext()), (AHEAD, ahead_of_others([driver.pid]))):
                with hosts[0].stopped(), before, Witness() as witness:
                    waited_ms = -core_wait_seconds(driver.pid) * 1000
                    stopped = driver.ask(load=load(f"{way}stopped"), timeout_s=arguments.seconds + 60)["load"]
                    waited_ms += core_wait_seconds(driver.pid) * 1000
                assert stopped["answered"] == stopped["failed"] == 0, stopped
                figures |= {f"{way}p99_9_over_deadline_ms": stopped["over_p99_9_ms"]}
                figures |= {f"{way}max_over_deadline_ms": stopped["over_max_ms"], f"{way}core_wait_ms": waited_ms}
                figures[f"{way}machine_stall_ms"] = witness.longest_ms
    return figures


def _cost(driver: Driver, name: str, arguments: Namespace) -> dict[str, float]:
    """Returns the medians of rounds in which the client and its language's own HTTP client take turns."""
    ways: dict[str, list[dict[str, Any]]] = {"load": [], "bare": []}
    for turn in range(arguments.rounds + 1):
        for way, reports in ways.items():
            # The first turn compiles, connects and fills caches.
            seconds = arguments.seconds if turn else 1.0
            load = {"rate": arguments.rate, "seconds": seconds, "id": f"{name}-{way}-{turn}", "cards": _CARDS}
            report = driver.ask(**{way: load}, timeout_s=seconds + 60)["load"]
            if report["answered"] != report["calls"]:
                raise RuntimeError(f"{name}: {way}: {report['calls'] - report['answered']} calls were not answered")
            if turn:
                reports.append(report)

    def median(way: str, key: str) -> float:
        return statistics.median(float(report[key]) for report in ways[way])

    calls = sum(report["calls"] for report in ways["load"])
    return {
        "cpu_us": median("load", "cpu_us"),
        "bare_cpu_us": median("bare", "cpu_us"),
        "cpu_ratio": median("load", "cpu_us") / median("bare", "cpu_us"),
        "p50_ms": median("load", "p50_ms"),
        "bare_p50_ms": median("bare", "p50_ms"),
        "p99_ms": median("load", "p99_ms"),
        "bare_p99_ms": median("bare", "p99_ms"),
        "late_share": sum(report["late_calls"] for report in ways["load"]) / calls,
    }


def _restarted(
    commands: Mapping[str, Sequence[str]], pieces: Pieces, arguments: Namespace
) -> dict[str, dict[str, int]]:
    """Restart hosts under the loads of all clients at once; returns the counts of each client."""

    def measure_piece(seed: int, restarts: int) -> dict[str, int]:
        seconds = _RESTART_S * restarts
        load = {"rate": arguments.rate, "seconds": seconds, "id": f"restarted-{seed}", "cards": _CARDS}
        with _served(commands) as (drivers, hosts):
            reports = load_with_restarts(drivers, hosts, load, restarts)
        counts = {}
        for name, report in reports.items():
            print(f"{name}: {report}")
            counts["restarts"] = report["restarts"]
            counts[f"{name} errors"] = report["calls"] - report["answered"]
            counts[f"{name} calls"] = report["calls"]
        return counts

    name = "_".join(["restarts", *commands])
    counts = pieces.measure(name, "restarts", arguments.restarts, arguments.piece, measure_piece)
    values = {
        name: (counts.get(f"{name} errors", 0), counts["restarts"], counts.get(f"{name} calls", 0)) for name in commands
    }
    return {name: dict(zip(_RESTART_COUNTS, value, strict=True)) for name, value in values.items()}


def _killed(name: str, command: Sequence[str], pieces: Pieces, arguments: Namespace) -> dict[str, float]:
    def measure_piece(seed: int, kills: int) -> dict[str, int]:
        seconds = arguments.kill_seconds * kills / arguments.kills
        load = {"rate": arguments.rate, "seconds": seconds, "id": f"killed-{seed}", "cards": _CARDS}
        with _served({name: command}) as (drivers, hosts):
            drivers[name].ask(settings={"urls": [hosts[0].url], "deadline_ms": _PATIENT_MS})
            report = load_with_kills(drivers, hosts[0], load, kills, seed=seed)[name]
        print(f"{name}: {report}")
        return dict(zip(_KILL_COUNTS, (report["duplicates"], report["kills"], report["calls"]), strict=True))

    counts = pieces.measure(f"kills_{name}", "kills", arguments.kills, arguments.piece, measure_piece)
    return {key: counts.get(key, 0) for key in _KILL_COUNTS}


if __name__ == "__main__":
    main()
