"""What the clients of ops/clients keep and cost: the deadline, restarts, kills, processor time.

Each client's driver puts an open load on `paywarden serve` with two workers and a small model. All share the machine.

    NAME_cpu_us                      processor time of the client's process by calls, at `--rate`
    NAME_bare_cpu_us                 the same by the language's own HTTP client, without any of the rules
    NAME_p99_9_over_deadline_ms      return less deadline, at the 99.9th percentile, while the host is stopped (SIGSTOP)
    NAME_errors_at_restarts          calls without the service's own decision while two hosts restart in turns
    NAME_restarts                    how many restarts that were, half of them by SIGTERM and half by `--take-over`
    NAME_duplicates                  payments with two decisions after kills of workers (kill -9), with all retries
    NAME_kills, NAME_killed_calls    how many kills, under how many calls

Used for: whether a payment service may rely on its deadline, and what a client costs beside a bare call.

    python -m perf.clients [--clients python,typescript] [--rate N] [--seconds N] [--restarts N] [--kills N] [--json F]

The published figures: --restarts 50, and --kills 1000 --kill-seconds 2000 --rate 500 for a million calls. A driver that
begins calls late (NAME_late_share) was short of processors itself. Clients whose tools are missing are left out.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perf.tools.measuring import arguments_of, finish
from tests.services.clients.client_drivers import DRIVERS, Driver
from tests.services.clients.served_clients import Host, load_with_kills, load_with_restarts, running_hosts
from tests.services.fetch import ServiceMissing

_DEADLINE_MS = 40
# Where answers are counted and not their time.
_PATIENT_MS = 5_000
# Of one restart, with the second in which a host says that it stops.
_RESTART_S = 6.0
_CARDS = 1000


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--clients", {"default": ",".join(DRIVERS), "help": "names, with commas between them"}),
        ("--rate", {"type": float, "default": 200.0, "help": "calls a second"}),
        ("--seconds", {"type": float, "default": 5.0, "help": "of each measurement"}),
        ("--restarts", {"type": int, "default": 4, "help": "of two hosts"}),
        ("--kills", {"type": int, "default": 10, "help": "of workers"}),
        ("--kill-seconds", {"type": float, "default": 10.0, "help": "of the load with kills"}),
    )
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="paywarden-clients-") as folder, running_hosts(Path(folder), 2) as hosts:
        for name in arguments.clients.split(","):
            try:
                command = DRIVERS[name]()
            except ServiceMissing as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
            with Driver(command) as driver:
                measured = _measure(driver, hosts, name, arguments)
            figures |= {f"{name.replace('-', '_')}_{key}": value for key, value in measured.items()}
    finish(figures, arguments.json)


def _measure(driver: Driver, hosts: Sequence[Host], name: str, arguments: Namespace) -> dict[str, float]:
    figures: dict[str, float] = {}
    one, both = [hosts[0].url], [host.url for host in hosts]

    def load(kind: str, seconds: float = arguments.seconds) -> dict[str, Any]:
        return {"rate": arguments.rate, "seconds": seconds, "id": f"{name}-{kind}", "cards": _CARDS}

    # The first calls compile, connect and fill caches.
    driver.ask(settings={"urls": one, "deadline_ms": _PATIENT_MS})
    driver.ask(load=load("warm", 1.0))
    calm = driver.ask(load=load("calm"), timeout_s=arguments.seconds + 60)["load"]
    assert calm["answered"] == calm["calls"], calm
    bare = driver.ask(bare=load("bare"), timeout_s=arguments.seconds + 60)["load"]
    assert bare["failed"] == 0, bare
    figures |= {"cpu_us": calm["cpu_us"], "bare_cpu_us": bare["cpu_us"], "p50_ms": calm["p50_ms"]}
    figures |= {"p99_ms": calm["p99_ms"], "late_share": calm["late_calls"] / calm["calls"]}

    driver.ask(settings={"urls": one, "deadline_ms": _DEADLINE_MS, "queue_max": 0})
    driver.ask(load=load("before", 1.0))
    with hosts[0].stopped():
        stopped = driver.ask(load=load("stopped"), timeout_s=arguments.seconds + 60)["load"]
    assert stopped["answered"] == stopped["failed"] == 0, stopped
    figures |= {"p99_9_over_deadline_ms": stopped["over_p99_9_ms"], "max_over_deadline_ms": stopped["over_max_ms"]}

    driver.ask(settings={"urls": both, "deadline_ms": _PATIENT_MS})
    seconds = arguments.restarts * _RESTART_S
    restarted = load_with_restarts({name: driver}, hosts, load("restarted", seconds), arguments.restarts)[name]
    print(f"{name}: {restarted}")
    figures |= {"errors_at_restarts": restarted["calls"] - restarted["answered"], "restarts": restarted["restarts"]}

    driver.ask(settings={"urls": one, "deadline_ms": _PATIENT_MS})
    killed = load_with_kills({name: driver}, hosts[0], load("killed", arguments.kill_seconds), arguments.kills)[name]
    print(f"{name}: {killed}")
    figures |= {"duplicates": killed["duplicates"], "kills": killed["kills"], "killed_calls": killed["calls"]}
    driver.ask(close=True)
    return figures


if __name__ == "__main__":
    main()
