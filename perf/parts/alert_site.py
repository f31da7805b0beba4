"""A running system of its own, with its Prometheus and its Alertmanager, in which faults are injected.

    site = Site(SiteOptions("store", folder, kafka.bootstrap), stack)
    site.start("stream", "companion", "serve")
    site.suffer(Fault(("PaywardenProcessDown",), "the companion is killed", site.kill_companion, site.start_companion))

Prometheus has `ops/alerts.yml` and the intervals of `ops/prometheus.yml`, and Alertmanager has `ops/alertmanager.yml`:
only addresses differ. A watch looks at both once a second, and notes when an alert fires, when it is held back and when
it ends. Processes that end by themselves are started again, as systemd does it.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from paywarden.streams.kafka.client import KafkaSettings
from perf.parts.payment_stream import PaymentStream
from tests.services.ports import free_port
from tests.services.product.deployment import Deployment
from tests.services.product.processes import PaywardenProcess, is_ready, wait_until
from tests.services.servers.prometheus import OPS, ask, running_alertmanager, running_prometheus, served
from tests.worlds.operate.alert_table import PAGE, table_of
from tests.worlds.small import small_world

# On a busy machine a scrape or an evaluation may be late.
_GRACE_S = 150.0
_LOOK_S = 1.0
_SETTLE_S, _START_S = 45.0, 300.0
# What Deployment sets for tests in a hurry, and the defaults instead.
_DEFAULTS = {
    "progress_every_ms = 50\n": "progress_every_ms = 500\n",
    "batch_wait_ms = 5\n": "batch_wait_ms = 20\n",
    "decisions_every_ms = 100\n": "",
    "freshness_objective_ms = 100\n": "",
}
PATIENT = "deadline_ms = 5000\nwait_ms_max = 3000\n"


@dataclass(frozen=True)
class Fault:
    """Alerts that must fire after `inject` and clear after `mend`, in at most these seconds each.

    `follow` are consequences that may fire besides. The seconds are those of docs/operate/alerts.md, and a grace.
    """

    alerts: tuple[str, ...]
    text: str
    inject: Callable[[], object]
    mend: Callable[[], object]
    follow: tuple[str, ...] = ()
    # An alert that clears after an hour is not waited for.
    clears: bool = True
    # How much longer than stated it may stay: until the next blocks of decisions are evaluated, say.
    more_s: float = 0.0
    # How much later than stated it may fire, where the fault takes that long to have its effect.
    later_s: float = 0.0


@dataclass
class Seen:
    """What was seen of an alert: seconds from the fault until it fired, and from its end until it was gone."""

    alert: str
    site: str
    text: str
    fires_s: int | None = None
    clears_s: int | None = None
    held_back: bool = False
    trouble: str = ""


@dataclass(frozen=True)
class Notification:
    """One message of Alertmanager."""

    time_s: float
    receiver: str
    status: str
    alerts: tuple[str, ...]


@dataclass(frozen=True)
class SiteOptions:
    """What a site is: `settings` are lines for sections, and `replaced` other text of the configuration."""

    name: str
    folder: Path
    bootstrap: str
    settings: Mapping[str, str] = field(default_factory=dict)
    replaced: Mapping[str, str] = field(default_factory=dict)
    aerospike: str | None = None
    bundle: Path | None = None
    rate: float = 10.0
    jobs: tuple[str, ...] = ("stream", "companion", "serve")
    # Further tables of the configuration, at its end.
    tail: str = ""
    # Without it drift is not looked for: payments of a fault are few, and not like those of the training.
    watches_drift: bool = False
    # Each site adds itself.
    sites: list[Site] = field(default_factory=list)


class Site:
    """A deployment and its watch. Methods may be called from several threads."""

    def __init__(self, options: SiteOptions, stack: ExitStack) -> None:
        self.name, self.options = options.name, options
        options.sites.append(self)
        folder = options.folder / options.name
        folder.mkdir()
        self.folder = folder
        prefix = f"{options.name}-"
        self.kafka = KafkaSettings(bootstrap=options.bootstrap, topic_prefix=prefix)
        self.deployment = stack.enter_context(
            Deployment(folder, options.bootstrap, prefix, aerospike=options.aerospike)
        )
        small_world.copied_bundle(folder, options.bundle)
        self.ports = {job: free_port() for job in ("stream", "companion", "serve", "shadow", "http", "grpc", "other")}
        self._configure(options)
        self.deployment.create_topics()
        self.processes: dict[str, PaywardenProcess] = {}
        # Those that a fault has ended.
        self._away: set[str] = set()
        # Variables for processes that start from now on, by name.
        self.environment: dict[str, dict[str, str]] = {}
        self.notifications: list[Notification] = []
        self.seen: list[Seen] = []
        self.log: list[str] = []
        self._lock = threading.Lock()
        self._firing: dict[str, float] = {}
        self._ever: dict[str, list[tuple[float, float]]] = {}
        self.held_back: set[str] = set()
        self._stack = stack
        self.payments = PaymentStream(
            self.kafka, f"http://127.0.0.1:{self.ports['http']}", f"127.0.0.1:{self.ports['grpc']}", options.rate
        )
        stack.callback(self.payments.stop)
        self._stopped = threading.Event()
        self._watch = threading.Thread(target=self._look, name=f"watch-{self.name}", daemon=True)
        stack.callback(self._stopped.set)

    def _configure(self, options: SiteOptions) -> None:
        config = self.deployment.config
        text = config.read_text(encoding="utf-8")
        for old, new in {**_DEFAULTS, **options.replaced}.items():
            assert old in text, (old, text)
            text = text.replace(old, new)
        text = text.replace("[http]\nport = 0", f"[http]\nport = {self.ports['http']}")
        text = text.replace("[grpc]\nport = 0", f"[grpc]\nport = {self.ports['grpc']}")
        config.write_text(text, encoding="utf-8")
        lines: dict[str, str] = {
            "stream": f"http_port = {self.ports['stream']}\n",
            "companion": f"http_port = {self.ports['companion']}\n",
            "serve": f"admin_port = {self.ports['serve']}\n",
            "shadow": f"http_port = {self.ports['shadow']}\n",
            "drift_detection": "" if options.watches_drift else "payments_min = 1000000\n",
        }
        for section, more in options.settings.items():
            lines[section] = lines.get(section, "") + more
        if "admission" not in options.settings:
            lines["admission"] = PATIENT
        for section, more in lines.items():
            if more:
                self.deployment.configure(section, more)
        if options.tail:
            with config.open("a", encoding="utf-8") as file:
                file.write(options.tail)

    def _run_monitoring(self, stack: ExitStack) -> None:
        receivers = {name: stack.enter_context(served(take=partial(self._take, name))) for name in ("page", "ticket")}
        text = (OPS / "alertmanager.yml").read_text(encoding="utf-8")
        text = re.sub(r"http://127.0.0.1:9094/(\w+)", lambda match: f"http://{receivers[match[1]]}/", text)
        manager = stack.enter_context(running_alertmanager(self.folder / "alertmanager", text))
        self._manager = f"http://{manager}"
        rules = {name: (OPS / name).read_text(encoding="utf-8") for name in ("alerts.yml", "recording.yml")}
        targets: dict[str, list[str]] = {}
        for job in self.options.jobs:
            # The other one is the companion of a second host.
            targets.setdefault("companion" if job == "other" else job, []).append(f"127.0.0.1:{self.ports[job]}")
        self.prometheus = stack.enter_context(
            running_prometheus(self.folder / "prometheus", targets, rules=rules, alertmanager=manager, scrape="15s")
        )

    def _take(self, receiver: str, told: Any) -> None:
        alerts = tuple(sorted(f"{alert['labels']['alertname']}:{alert['status']}" for alert in told["alerts"]))
        self.notifications.append(Notification(time.time(), receiver, told["status"], alerts))
        self.say(f"{receiver} {told['status']}: {', '.join(alerts)}")

    def say(self, text: str) -> None:
        """Print a line, and keep it."""
        line = f"{time.strftime('%H:%M:%S')} {self.name:<8} {text}"
        self.log.append(line)
        print(line, flush=True)

    # Processes

    def start(self, *names: str) -> None:
        """Start processes, and wait until they are ready. The first one begins the watch and the payments."""
        for name in names:
            self.run(name)
        for name in names:
            if name != "shadow":
                ready = partial(is_ready, self.address(name))
                wait_until(ready, f"{self.name}'s {name} is ready", _START_S, 0.5)
        if "serve" in names:
            self.payments.start()
        if not self._watch.is_alive():
            self._run_monitoring(self._stack)
            self._watch.start()
            self.settle()

    def settle(self) -> None:
        """Wait for two scrapes: what is counted before the first is no increase."""
        time.sleep(_SETTLE_S)

    def run(self, name: str) -> PaywardenProcess:
        """Start a process without waiting until it is ready."""
        arguments = ("shadow", "run") if name == "shadow" else (name,)
        environment = self.environment.get(name)
        self.processes[name] = self.deployment.start(*arguments, environment=environment, afresh=True)
        self._away.discard(name)
        return self.processes[name]

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def stop(self, name: str) -> None:
        self._away.add(name)
        self.processes[name].stop()

    def kill(self, name: str) -> None:
        self._away.add(name)
        self.processes[name].kill()

    def restart(self, name: str) -> None:
        """Start a process again that was killed or stopped."""
        if self.processes[name].process.poll() is None:
            self.stop(name)
        self.run(name)

    def signal(self, name: str, number: int) -> None:
        self.processes[name].process.send_signal(number)

    # Faults

    def suffer(self, fault: Fault) -> None:
        """Inject the fault, wait until its alerts fire, mend it, and wait until they are gone."""
        seen = [Seen(alert, self.name, fault.text) for alert in fault.alerts]
        with self._lock:
            self.seen += seen
        try:
            self._suffer(fault, seen)
        except Exception as error:  # noqa: BLE001 - the other faults go on, and the report says it
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            for one in seen:
                one.trouble = one.trouble or what
            self.say(f"TROUBLE with {fault.alerts}: {what}")

    def _suffer(self, fault: Fault, seen: Sequence[Seen]) -> None:
        began = time.time()
        self.say(f"inject: {fault.text}")
        # A fault that takes a moment to make says when it began.
        told = fault.inject()
        began = told if isinstance(told, float) else began
        for one in seen:
            limit = began + STATED[one.alert][0] + max(_GRACE_S, fault.later_s)
            at = self._wait(partial(self._since, one.alert, began), limit)
            if at is None:
                one.trouble = f"did not fire within {limit - began:.0f} s"
                self.say(f"MISSED {one.alert}")
            else:
                one.fires_s = round(at - began)
        # Alertmanager has heard of it, and says which it holds back.
        time.sleep(3 * _LOOK_S)
        for one in seen:
            one.held_back = one.alert in self.held_back
        self.say(f"mend: {fault.text}")
        fault.mend()
        ended = time.time()
        for one in seen if fault.clears else ():
            if one.fires_s is None:
                continue
            limit = ended + STATED[one.alert][1] + max(_GRACE_S, fault.more_s)
            at = self._wait(partial(self._gone, one.alert), limit)
            if at is None:
                one.trouble = f"did not clear within {limit - ended:.0f} s"
                self.say(f"STAYS {one.alert}")
            else:
                one.clears_s = max(0, round(at - ended))

    def _gone(self, alert: str) -> float | None:
        """Returns when the alert was last seen to be gone; None while it fires."""
        return None if alert in self._firing else self._ever[alert][-1][1]

    def _since(self, alert: str, began: float) -> float | None:
        times = [self._firing.get(alert, 0.0), *(since for since, _ in self._ever.get(alert, ()))]
        return min((at for at in times if at >= began - 1), default=None)

    def _wait(self, look: Callable[[], float | None], limit: float) -> float | None:
        while (found := look()) is None and time.time() < limit:
            time.sleep(0.5)
        return found

    def together(self, *threads: Sequence[Fault]) -> None:
        """Suffer several rows of faults at the same time; each row is one after the other."""

        def one_after_the_other(faults: Sequence[Fault]) -> None:
            for fault in faults:
                self.suffer(fault)

        with ThreadPoolExecutor(len(threads)) as pool:
            list(pool.map(one_after_the_other, threads))

    def _look(self) -> None:
        while not self._stopped.wait(_LOOK_S):
            self._start_ended()
            with suppress(OSError, KeyError, AssertionError):
                self._look_once()

    def _start_ended(self) -> None:
        """Start processes again that have ended by themselves, as systemd and Kubernetes do."""
        for name, process in list(self.processes.items()):
            if name not in self._away and process.process.poll() is not None:
                self.say(f"{name} has ended with {process.process.poll()}, and is started again")
                self.run(name)

    def _look_once(self) -> None:
        firing, now = self.prometheus.firing(), time.time()
        for alert in sorted(firing - set(self._firing)):
            self.say(f"fires {alert}")
            self._firing[alert] = now
        for alert in sorted(set(self._firing) - firing):
            self.say(f"clears {alert}")
            since = self._firing.pop(alert)
            self._ever.setdefault(alert, []).append((since, now))
        told = ask(self._manager, "/api/v2/alerts")
        states: dict[str, set[str]] = {}
        for alert in told:
            states.setdefault(alert["labels"]["alertname"], set()).add(alert["status"]["state"])
        self.held_back = {name for name, those in states.items() if those == {"suppressed"}}

    def fired(self) -> set[str]:
        """Returns every alert that fired here."""
        return set(self._firing) | set(self._ever)


def _stated() -> dict[str, tuple[int, int]]:
    """Returns the seconds to fire and to clear of each alert, as docs/operate/alerts.md has them."""
    found = {}
    for line in table_of(PAGE.read_text(encoding="utf-8")):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        found[f"Paywarden{cells[0].split(']')[0].lstrip('[')}"] = (int(cells[-2]), int(cells[-1]))
    return found


STATED = _stated()


class Pulses:
    """Stops a process for a part of each second or so (SIGSTOP), as a machine without a free core would."""

    def __init__(self, pids: Callable[[], Sequence[int]], *, stopped_s: float, running_s: float) -> None:
        self._pids, self._stopped_s, self._running_s = pids, stopped_s, running_s
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        self._ended.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        pids = self._pids()
        for _ in itertools.count():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            self._ended.wait(self._stopped_s)
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            if self._ended.wait(self._running_s):
                return
