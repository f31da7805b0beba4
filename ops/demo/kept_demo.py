"""`paywarden demo --keep`: leaves the demonstration running, and says where to look.

1. The usual demonstration comes first, with its summary.
2. Further processes are started that only a person looks at: the console, where its command is installed.
3. One JSON object on stdout names every address.
4. The same payments are sent again, with new ids, for as long as the demonstration runs. From the next block of drift
   detection on a share of them is shifted: drift in progress, with usual payments of the time before to compare with.
5. SIGTERM, Ctrl-C or the end of a process ends everything.

    {"endpoint": "http://127.0.0.1:36017", …, "stop": "kill 4711"}
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import uvloop

from paywarden.models.drift.detectors import LENGTHS_MS
from paywarden.ops.demo.live_run import AGAIN, LiveSystem, Publisher
from paywarden.ops.demo.processes import START_TIMEOUT_S, DemoPart, Patience, running_part
from paywarden.ops.loadgen.load import LoadAnswer, run_load
from paywarden.ops.loadgen.traffic import stamped
from paywarden.ops.times import now_ms
from paywarden.schemas.avro import LocalSchemaIds
from paywarden.schemas.errors import PaywardenError, TemporaryFailure
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.streams.kafka.producers import make_producer

DRIFT_SETTINGS = "grace_ms = 5000\n"
"""Lines of [drift] for a person who waits: blocks of decisions are evaluated soon."""
# Demo people may come in: the console listens on a loopback address.
_CONSOLE_SETTINGS = """\
[console]
port = 0
folder = {folder}
processes = {processes}
[decision_index]
path = {index}
"""
SHIFTED_SHARE = 0.4
"""The share of the payments that change."""
SHIFTED_TIMES = 6
"""The factor of the amounts of shifted payments."""
SHIFTED_CHANNEL = "moto"
"""Their channel: telephone, which the simulator does not know."""
_DRIFT = (
    f"from {{since}} on {SHIFTED_SHARE:.0%} of the payments have {SHIFTED_TIMES} times their amount and "
    f"the channel {SHIFTED_CHANNEL}; `drift status` and the console show it about ten minutes later. "
    "Another alert is about how often cards pay: the same payments come round after round"
)
# Before the shift comes this much of usual payments, or more: the page of an alert compares with them.
_USUAL_MS = 30_000
_CONSOLE = "paywarden.ops.commands.run.console"
# Arrival times are drawn and latencies kept for a whole load, so that one is short.
_LOAD_S = 60.0
_LOOK_EVERY_S = 0.1
# Before a load that failed starts again; and how long the connections of a load may take to close.
_AGAIN_S, _STOP_S = 1.0, 2.0
SILENCE_S = 10.0
"""After so long without an answer a person is told. A busy machine refuses for a second or two."""
_PROMETHEUS = """\
# Scrapes the demonstration: prometheus --config.file=FILE
global:
  scrape_interval: 5s
rule_files: {rules}
scrape_configs:
{jobs}"""


def keep_running(
    live: LiveSystem,
    summary: dict[str, Any],
    *,
    rate: float,
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
        console = _console(stack, live, bases, say) if find_spec(_CONSOLE) is not None else None
        shift_ms = shift_time_ms(now_ms())
        found = {**addresses(live, bases, command, shift_ms), "grpc": grpc, "console": console, "summary": summary}
        announce(json.dumps(found, indent=2))
        say(f"running until Ctrl-C or `kill {os.getpid()}`")
        _send_until(stop, live, rate, shift_ms, say)
    if not stop.is_set():
        trouble = next(filter(None, (reading.trouble() for reading in live.parts.readings())), "a process has ended")
        raise TemporaryFailure(f"demo: {trouble}")


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


def repeated(
    requests: Sequence[ScoreRequest], *, is_over: Callable[[], bool], is_shifted: Callable[[], bool]
) -> Iterator[ScoreRequest]:
    """Yields the requests round after round with new payment ids until `is_over`; while `is_shifted`, some are."""
    for number in count(2):
        for place, request in enumerate(requests):
            if is_over():
                return
            again = type(request)()
            again.CopyFrom(request)
            again.payment_id = f"{request.payment_id}{AGAIN}{number}"
            if place % 10 < SHIFTED_SHARE * 10 and is_shifted():
                again.amount_minor *= SHIFTED_TIMES
                again.channel = SHIFTED_CHANNEL
            yield again


def _send_until(
    stop: threading.Event, live: LiveSystem, rate: float, shift_ms: int, say: Callable[[str], object]
) -> None:
    """Send payments until `stop` is set or a process has ended."""
    world = live.world
    publisher = Publisher(make_producer(live.kafka, linger_ms=5), LocalSchemaIds(fields=world.fields), world)
    silence = Silence(say)

    def is_over() -> bool:
        return stop.is_set() or not live.parts.all_run()

    def on_answer(answer: LoadAnswer) -> None:
        if answer.status == 200:
            silence.answered()
            publisher.publish(answer.request)

    def is_shifted() -> bool:
        return now_ms() >= shift_ms

    bodies = stamped(repeated(world.requests, is_over=is_over, is_shifted=is_shifted))

    def load() -> Awaitable[object]:
        return run_load(live.parts.target, bodies, rate=rate, seconds=_LOAD_S, on_answer=on_answer)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(send_until(is_over, load, silence, say))


async def send_until(
    is_over: Callable[[], bool], load: Callable[[], Awaitable[object]], silence: Silence, say: Callable[[str], object]
) -> None:
    """Run a load after the other until `is_over`, whatever the load does then. If one fails, say why and go on."""
    while not is_over():
        sending = asyncio.ensure_future(load())
        while not sending.done() and not is_over():
            await asyncio.wait([sending], timeout=_LOOK_EVERY_S)
            silence.look()
        if not sending.done():
            sending.cancel()
            await asyncio.wait([sending], timeout=_STOP_S)
        elif (error := sending.exception()) is not None:
            if not isinstance(error, (PaywardenError, OSError)):
                raise error
            say(f"sending payments failed and starts again: {error}")
            await asyncio.sleep(_AGAIN_S)


class Silence:
    """Says when no payment was answered for `SILENCE_S`, and when answers come again."""

    def __init__(self, say: Callable[[str], object], now_s: Callable[[], float] = time.monotonic) -> None:
        self._say, self._now_s = say, now_s
        self._answered_s, self._is_told = now_s(), False

    def answered(self) -> None:
        """Note an answer."""
        now_s = self._now_s()
        if self._is_told:
            self._say(f"payments are answered again, after {now_s - self._answered_s:.0f} s")
        self._answered_s, self._is_told = now_s, False

    def look(self) -> None:
        """Say it, once, if the last answer is too long ago."""
        if not self._is_told and self._now_s() - self._answered_s >= SILENCE_S:
            self._is_told = True
            self._say(f"no payment was answered for {SILENCE_S:.0f} s; the demonstration goes on sending")


def _console(stack: ExitStack, live: LiveSystem, bases: Mapping[str, str], say: Callable[[str], object]) -> str | None:
    """Start the analysts' pages; returns their address, or None after saying why there are none."""
    folder = live.config.parent
    config = folder / "console.toml"
    more = _CONSOLE_SETTINGS.format(
        folder=json.dumps(str(folder / "console")),
        processes=json.dumps([f"{name}={base}" for name, base in bases.items()]),
        index=json.dumps(str(folder / "decisions.duckdb")),
    )
    config.write_text(live.config.read_text(encoding="utf-8") + more, encoding="utf-8")
    part: DemoPart = stack.enter_context(running_part("console", config, folder))
    patience = Patience(START_TIMEOUT_S, say)
    while not part.address and not part.has_ended() and patience.goes_on("the console has not said its address"):
        part.read_address()
        time.sleep(_LOOK_EVERY_S)
    if not part.address:
        say(f"there is no console: {part.last_line()}")
    return part.address or None


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
