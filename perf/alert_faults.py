"""Does every alert fire on a fault of real processes, and how long does it take?

Several systems run beside each other. Most have a `stream`, a `companion` and a `serve` with fourteen payments a
second; each has a Prometheus with `ops/alerts.yml` and the intervals of `ops/prometheus.yml`, and an Alertmanager with
`ops/alertmanager.yml`. Kafka is real; Aerospike is a stand-in that speaks its protocol. A system suffers its faults one
after the other, or several that have nothing to do with each other. In one of them nothing happens: its alerts must be
silent.

    python -m perf.alert_faults [--only SYSTEM …] [--json FILE] [--record]

It takes about 50 minutes and 10 GB for all systems, and needs root for small disks, control groups and priorities. Read
from the output when each alert fires, is held back, is told and clears. `--record` puts the seconds into
tests/worlds/operate/real_faults.json, and `python -m tests.worlds.operate.alert_table` takes them from there into
docs/operate/alerts.md. What a run does not see stays there as it was.

Needs the services that `make services` fetches, Prometheus and Alertmanager.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

from perf.parts.alert_host_faults import disks, host, quiet, slow, workers_end
from perf.parts.alert_model_faults import (
    cards,
    challengers,
    drift,
    drift_small,
    mirror,
    models,
    outcomes,
    overlay,
    rollout,
)
from perf.parts.alert_site import Seen, Site, SiteOptions
from perf.parts.alert_stream_faults import broker, outbox, store
from tests.services.servers.kafka import KafkaServer
from tests.worlds.operate.alert_table import REAL, rules
from tests.worlds.small import small_world

_NICE = -15
# Systems that start at the same moment take each other's cores.
_START_EVERY_S = 8.0

SYSTEMS: Mapping[str, Callable[[SiteOptions, ExitStack], None]] = {
    "quiet": quiet,
    "host": host,
    "workers": workers_end,
    "disks": disks,
    "slow": slow,
    "broker": broker,
    "outbox": outbox,
    "store": store,
    "models": models,
    "challengers": challengers,
    "mirror": mirror,
    "overlay": overlay,
    "cards": cards,
    "rollout": rollout,
    "drift": drift,
    "drift-small": drift_small,
    "outcomes": outcomes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--json", type=Path, help="the file for all that was seen")
    parser.add_argument("--record", action="store_true", help=f"put the seconds into {REAL.name}")
    arguments = parser.parse_args()
    # A signal to end leaves no process behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    _prefer(os.getpid())
    small_world.trained_bundle()
    with tempfile.TemporaryDirectory(prefix="paywarden-alerts-") as name, ExitStack() as stack:
        kafka = stack.enter_context(KafkaServer(Path(name) / "kafka"))
        _prefer(kafka.pid)
        sites: list[Site] = []
        threads = []
        for system in arguments.only:
            options = SiteOptions(system, Path(name), kafka.bootstrap, sites=sites)
            given = (SYSTEMS[system], options, stack.enter_context(ExitStack()))
            threads.append(threading.Thread(target=_run, args=given, name=system, daemon=True))
            threads[-1].start()
            time.sleep(_START_EVERY_S)
        try:
            for thread in threads:
                thread.join()
        finally:
            # Also of a run that somebody ends.
            _tell(sites)
            if arguments.json:
                arguments.json.write_text(json.dumps(_report(sites), indent=1), encoding="utf-8")
            if arguments.record:
                record([one for site in sites for one in site.seen])


def record(seen: Iterable[Seen]) -> None:
    """Put what was seen into the file; of several faults of one alert, the first that was not held back."""
    known = json.loads(REAL.read_text(encoding="utf-8")) if REAL.exists() else {}
    found: dict[str, Seen] = {}
    for one in seen:
        before = found.get(one.alert)
        if one.fires_s is not None and not one.trouble and (before is None or before.held_back > one.held_back):
            found[one.alert] = one
    known |= {
        alert: {"fault": one.text, "fires_s": one.fires_s, "clears_s": one.clears_s, "held_back": one.held_back}
        for alert, one in found.items()
    }
    ordered = {alert: known[alert] for alert in rules() if alert in known}
    REAL.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _tell(sites: Iterable[Site]) -> None:
    for site in sites:
        site.say(f"fired: {', '.join(sorted(site.fired())) or 'nothing'}; {len(site.notifications)} notifications")
        for one in site.seen:
            state = "held back" if one.held_back else ""
            print(f"{one.alert:<34} fires {one.fires_s} s, clears {one.clears_s} s {state} {one.trouble}", flush=True)


def _report(sites: Iterable[Site]) -> dict[str, object]:
    return {
        site.name: {
            "seen": [asdict(one) for one in site.seen],
            "fired": sorted(site.fired()),
            "notifications": [asdict(one) for one in site.notifications],
            "log": site.log,
        }
        for site in sites
    }


def _prefer(pid: int) -> None:
    """Other programs on the machine must not make requests slow or the mirror late."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, _NICE)
        # Where sessions share the cores equally, the nice value counts within a session alone.
        Path(f"/proc/{pid}/autogroup").write_text(str(_NICE), encoding="utf-8")


def _run(scenario: Callable[[SiteOptions, ExitStack], None], options: SiteOptions, stack: ExitStack) -> None:
    try:
        scenario(options, stack)
    except BaseException:  # noqa: BLE001 - the other systems go on
        traceback.print_exc()


if __name__ == "__main__":
    main()
