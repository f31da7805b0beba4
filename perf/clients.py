"""The promises and the cost of the clients of ops/clients: the deadline, restarts, processor time.

Each client's driver puts an open load on `paywarden serve` with two workers and a small model. All share the machine.

    NAME_cpu_us                      processor time of the client's process by calls, at `--rate`
    NAME_bare_cpu_us                 the same by the language's own HTTP client, without any of the rules: the same
                                     requests and threads, a round of each in turns, medians
    NAME_p99_9_over_deadline_ms      return less deadline, 99.9th percentile, while the host is stopped (SIGSTOP):
                                     the client's threads with real-time priority, as far as this user may (root may)
    NAME_max_over_…, NAME_core_wait_ms   the latest return, and how long the client's threads waited for a core in all
    NAME_errors_at_restarts          calls without the service's own decision while two hosts restart in turns, all
                                     clients at once, half of the `--restarts` by SIGTERM and half by `--take-over`

Used for: whether a payment service may rely on its deadline, and the cost of a client beside a bare call.

    python -m perf.clients [--only cost,deadline,restarts] [--clients python,typescript] [--rate N] [--seconds N]
                           [--rounds N] [--restarts N] [--json FILE]

A part takes a minute or less for each client, and two seconds for each restart. Clients whose tools are missing are
left out.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from perf.tools.measuring import ahead_of_others, arguments_of, finish
from perf.tools.servers import core_wait_seconds
from tests.services.clients.client_drivers import DRIVERS, Driver
from tests.services.clients.served_clients import Host, load_with_restarts, running_hosts
from tests.services.fetch import ServiceMissing

_DEADLINE_MS = 40
# Where answers are counted and not their time.
_PATIENT_MS = 5_000
_CARDS = 1000
_PARTS = ("cost", "deadline", "restarts")
# A restart takes two seconds: for one of them a host says that it stops.
_RESTART_S = 2.08


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--only", {"default": ",".join(_PARTS), "help": "parts, with commas between them"}),
        ("--clients", {"default": ",".join(DRIVERS), "help": "names, with commas between them"}),
        ("--rate", {"type": float, "default": 200.0, "help": "calls a second"}),
        ("--seconds", {"type": float, "default": 5.0, "help": "of each measurement"}),
        ("--rounds", {"type": int, "default": 3, "help": "of the cost, in turns"}),
        ("--restarts", {"type": int, "default": 4, "help": "of two hosts"}),
    )
    parts = arguments.only.split(",")
    if unknown := set(parts) - set(_PARTS):
        raise SystemExit(f"clients: --only: wanted some of {', '.join(_PARTS)}, got {', '.join(sorted(unknown))}")
    commands = dict(_commands(arguments.clients.split(",")))
    found: dict[str, dict[str, float]] = {name: {} for name in commands}
    for name, command in commands.items():
        with _served({name: command}) as (drivers, hosts):
            driver = drivers[name]
            if "cost" in parts:
                found[name] |= _cost(driver, hosts[0], name, arguments)
            if "deadline" in parts:
                found[name] |= _deadline(driver, hosts[0], name, arguments)
    if "restarts" in parts and commands:
        with _served(commands) as (drivers, hosts):
            load = _load(arguments, "restarted", _RESTART_S * arguments.restarts)
            for name, report in load_with_restarts(drivers, hosts, load, arguments.restarts).items():
                errors = report["calls"] - report["answered"]
                found[name] |= {"restarted_calls": report["calls"], "errors_at_restarts": errors}
    figures = {f"{name.replace('-', '_')}_{key}": value for name, row in found.items() for key, value in row.items()}
    finish(figures, arguments.json)


def _commands(names: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the clients whose tools are there, with the commands of their drivers."""
    for name in names:
        try:
            yield name, DRIVERS[name]()
        except ServiceMissing as error:
            print(f"{name} is left out: {error}", file=sys.stderr)


@contextmanager
def _served(commands: Mapping[str, Sequence[str]]) -> Iterator[tuple[dict[str, Driver], list[Host]]]:
    """Yield the drivers of clients that have met both of two new hosts."""
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


def _load(arguments: Namespace, name: str, seconds: float) -> dict[str, Any]:
    return {"rate": arguments.rate, "seconds": seconds, "id": name, "cards": _CARDS}


def _deadline(driver: Driver, host: Host, name: str, arguments: Namespace) -> dict[str, float]:
    """Return how late calls return while their host is stopped."""
    driver.ask(settings={"urls": [host.url], "deadline_ms": _DEADLINE_MS, "queue_max": 0})
    driver.ask(load=_load(arguments, f"{name}-before", 1.0))
    load = _load(arguments, f"{name}-stopped", arguments.seconds)
    with host.stopped(), ahead_of_others([driver.pid]):
        waited_s = -core_wait_seconds(driver.pid)
        stopped = driver.ask(load=load, timeout_s=arguments.seconds + 60)["load"]
        waited_s += core_wait_seconds(driver.pid)
    assert stopped["answered"] == stopped["failed"] == 0, stopped
    return {
        "p99_9_over_deadline_ms": stopped["over_p99_9_ms"],
        "max_over_deadline_ms": stopped["over_max_ms"],
        "core_wait_ms": waited_s * 1000,
    }


def _cost(driver: Driver, host: Host, name: str, arguments: Namespace) -> dict[str, float]:
    """Return the medians of rounds in which the client and its language's own HTTP client take turns."""
    driver.ask(settings={"urls": [host.url], "deadline_ms": _PATIENT_MS})
    ways: dict[str, list[dict[str, Any]]] = {"load": [], "bare": []}
    for turn in range(arguments.rounds + 1):
        for way, reports in ways.items():
            # The first turn compiles, connects and fills caches.
            load = _load(arguments, f"{name}-{way}-{turn}", arguments.seconds if turn else 1.0)
            report = driver.ask(**{way: load}, timeout_s=arguments.seconds + 60)["load"]
            if report["answered"] != report["calls"]:
                raise RuntimeError(f"{name}: {way}: {report['calls'] - report['answered']} calls were not answered")
            if turn:
                reports.append(report)
    return {
        f"{prefix}{key}": statistics.median(float(report[key]) for report in ways[way])
        for way, prefix in (("load", ""), ("bare", "bare_"))
        for key in ("cpu_us", "p50_ms", "p99_ms")
    }


if __name__ == "__main__":
    main()
