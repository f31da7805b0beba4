"""`paywarden demo --keep`: leaves the demonstration running, and says where to look.

1. The usual demonstration comes first, with its summary.
2. Further processes are started that only a person looks at: the console, where its command is installed. Its people,
   rules, registry and case are those of demo_desk.py.
3. One JSON object on stdout names every address.
4. The simulated world goes on in real time, for as long as the demonstration runs (kept_load.py). From the next block
   of drift detection on a share of the payments is shifted: drift in progress, with usual payments of the time before
   to compare with.
5. SIGTERM, Ctrl-C or the end of a process ends everything.

    {"endpoint": "http://127.0.0.1:36017", …, "stop": "kill 4711"}
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from paywarden.models.drift.detectors import LENGTHS_MS
from paywarden.ops.demo.demo_desk import PEOPLE, Desk
from paywarden.ops.demo.kept_load import SHIFTED_CHANNEL, SHIFTED_SHARE, SHIFTED_TIMES, send_later
from paywarden.ops.demo.live_run import LiveSystem
from paywarden.ops.demo.processes import START_TIMEOUT_S, Patience, running_parts
from paywarden.ops.times import now_ms
from paywarden.schemas.errors import TemporaryFailure

DRIFT_SETTINGS = "[drift]\ngrace_ms = 5000\n"
"""A section for a person who waits: blocks of decisions are evaluated soon."""
_CONSOLE_SETTINGS = """\
[console]
port = 0
people = {people}
keys = {keys}
folder = {folder}
processes = {processes}
[decision_index]
path = {index}
"""
_DRIFT = (
    f"from {{since}} on {SHIFTED_SHARE:.0%} of the payments have {SHIFTED_TIMES} times their amount and "
    f"the channel {SHIFTED_CHANNEL}; `drift status` and the console show it about ten minutes later"
)
# Before the shift comes this much of usual payments, or more: the page of an alert compares with them.
_USUAL_MS = 30_000
_CONSOLE = "paywarden.ops.commands.run.console"
_LOOK_EVERY_S = 0.1
_PROMETHEUS = """\
# Scrapes the demonstration: prometheus --config.file=FILE
global:
  scrape_interval: 5s
rule_files: {rules}
scrape_configs:
{jobs}"""


def keep_running(
    live: LiveSystem,
    desk: Desk,
    summary: dict[str, Any],
    *,
    announce: Callable[[str], object],
    say: Callable[[str], object],
    stop: threading.Event,
    command: Sequence[str] = (),
) -> None:
    """Announce all addresses as one JSON object, and send payments until `stop` is set.

    `command` starts a command of Paywarden with the demonstration's configuration. Raises TemporaryFailure naming a
    process that has ended.
    """
    with ExitStack() as stack:
        grpc, admin = live.parts.part("serve").read_more_addresses(2)
        # Health and metrics of `serve` are at a port of their own.
        bases = {part.name: part.address for part in live.parts.parts} | {"serve": admin.removeprefix("admin ")}
        console = _console(stack, live, desk, bases, stop, say) if find_spec(_CONSOLE) is not None else None
        shift_ms = shift_time_ms(now_ms())
        found = {**addresses(live, bases, command, shift_ms), "grpc": grpc, "console": console, "people": PEOPLE}
        found["summary"] = summary
        announce(json.dumps(found, indent=2))
        say(f"running until Ctrl-C or `kill {os.getpid()}`")
        send_later(stop, live, shift_ms, say)
        trouble = "" if stop.is_set() else live.parts.trouble()
    if not stop.is_set():
        raise TemporaryFailure(f"demo: {trouble or 'a process has ended'}")


def shift_time_ms(time_ms: int) -> int:
    """Returns when payments begin to be shifted: with a block of drift detection, some time after `time_ms`.

    Detection says of a change in which block it began. A change in the middle of the first block seems to have begun
    before the demonstration, in an hour without any payment.
    """
    block_ms = LENGTHS_MS[0]
    return -(-(time_ms + _USUAL_MS) // block_ms) * block_ms


def addresses(live: LiveSystem, bases: Mapping[str, str], command: Sequence[str], shift_ms: int) -> dict[str, Any]:
    """Returns where everything is. Writes a configuration for Prometheus beside that of the processes.

    `bases` has the address of health and metrics of each process.
    """
    dashboards = _beside_us("dashboards")
    rules = [path for name in ("alerts.yml", "recording.yml") if (path := _beside_us(name)) is not None]
    prometheus = live.config.with_name("prometheus.yml")
    prometheus.write_text(_prometheus(bases, rules), encoding="utf-8")
    paywarden = " ".join([*command, "--config", str(live.config)])
    return {
        "endpoint": live.parts.target,
        "metrics": {name: f"{base}/metrics" for name, base in bases.items()},
        "readyz": {name: f"{base}/readyz" for name, base in bases.items()},
        "kafka": live.kafka.bootstrap,
        "dashboards": str(dashboards) if dashboards else None,
        "rules": [str(path) for path in rules],
        "prometheus": str(prometheus),
        "config": str(live.config),
        "logs": {part.name: str(live.config.with_name(f"{part.name}.log")) for part in live.parts.parts},
        "drift": _DRIFT.format(since=time.strftime("%H:%M:%S", time.localtime(shift_ms / 1000))),
        "drift_status": f"{paywarden} drift status",
        "pids": {"demo": os.getpid(), **live.parts.pids},
        "stop": f"kill {os.getpid()}",
    }


@contextmanager
def stop_at_a_signal() -> Iterator[threading.Event]:
    """Yields an event that SIGTERM, SIGINT and SIGHUP set. Further signals do not disturb the end."""
    stop = threading.Event()

    def on_signal(_: int, __: FrameType | None) -> None:
        stop.set()

    # The handlers stay: the processes are stopped after this block, in a limited time.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` has it
            signal.signal(number, on_signal)
    yield stop


def _console(
    stack: ExitStack,
    live: LiveSystem,
    desk: Desk,
    bases: Mapping[str, str],
    stop: threading.Event,
    say: Callable[[str], object],
) -> str | None:
    """Start the analysts' pages; returns their address, or None after saying why there are none."""
    folder = live.config.parent
    config = folder / "console.toml"
    more = _CONSOLE_SETTINGS.format(
        folder=json.dumps(str(folder / "console")),
        people=json.dumps(str(desk.people)),
        keys=json.dumps(str(desk.keys)),
        processes=json.dumps([f"{name}={base}" for name, base in bases.items()]),
        index=json.dumps(str(folder / "decisions.duckdb")),
    )
    config.write_text(live.config.read_text(encoding="utf-8") + more, encoding="utf-8")
    [part] = stack.enter_context(running_parts(config, folder, ("console",))).parts
    patience = Patience(START_TIMEOUT_S, say)
    while not part.address and not part.has_ended() and not stop.wait(_LOOK_EVERY_S):
        part.read_address()
        if not patience.goes_on("the console has not said its address"):
            break
    if not part.address:
        say(f"there is no console: {part.last_line()}")
        return None
    live.parts.add(part)
    return part.address


def _beside_us(name: str) -> Path | None:
    """Returns a file or folder of `ops/`; None where it is not installed."""
    path = Path(__file__).parents[1] / name
    return path if path.exists() else None


def _prometheus(bases: Mapping[str, str], rules: Sequence[Path]) -> str:
    jobs = "".join(
        f"  - job_name: {name}\n    static_configs:\n      - targets: [{json.dumps(urlsplit(base).netloc)}]\n"
        for name, base in bases.items()
    )
    return _PROMETHEUS.format(rules=json.dumps([str(path) for path in rules]), jobs=jobs)
