"""Starts the processes of a demonstration, asks them for health and metrics, and stops them.

Each prints the address of its health and metrics on the first line of stdout, and logs to a file.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from paywarden.ops.demo.verdict import MetricsReading
from paywarden.schemas.errors import TemporaryFailure

PARTS = ("stream", "companion", "serve")
"""Commands, in the order of their start."""
# A start takes seconds on a quiet machine, and minutes where ten processes want each core.
START_TIMEOUT_S = 900.0
_TELL_EVERY_S = 15.0
_ANSWER_TIMEOUT_S = 5.0
# For all processes together. Their folders are removed, so nothing is lost when a busy machine kills one.
_STOP_TIMEOUT_S = 6.0
_LOOK_EVERY_S = 0.1


class DemoPart:
    """One running command."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: Path) -> None:
        self.name, self._process, self._log = name, process, log
        self.address = ""
        """Address of its health and metrics; empty until the process has printed it."""

    @property
    def pid(self) -> int:
        """Returns the process id."""
        return self._process.pid

    def has_ended(self) -> bool:
        """Returns whether the process has ended."""
        return self._process.poll() is not None

    def read_address(self) -> None:
        """Read the address if the process has printed it."""
        output = self._process.stdout
        assert output is not None
        if not self.address and select.select([output], [], [], 0)[0]:
            self.address = output.readline().strip()

    def read_more_addresses(self, count: int) -> list[str]:
        """Returns the next `count` lines of a process that prints all its addresses at once; fewer if it has ended."""
        output = self._process.stdout
        assert output is not None
        return [line for line in (output.readline().strip() for _ in range(count)) if line]

    def reading(self, *, with_metrics: bool = True) -> MetricsReading:
        """Returns its current health and metrics."""
        missing, metrics = self._missing(), self._metrics() if with_metrics else {}
        # Asked last: a process that did not answer may have ended meanwhile.
        status = self._process.poll()
        return MetricsReading(
            self.name, exit_status=status, missing=missing, metrics=metrics, last_line=self.last_line()
        )

    def ask_to_stop(self) -> None:
        """Send SIGTERM if it still runs."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> None:
        """Wait for its end, and kill it after `timeout_s` with its workers."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # A worker that is frozen outlives its parent.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _missing(self) -> tuple[str, ...]:
        if not self.address:
            return ("it has not said its address",)
        try:
            with urllib.request.urlopen(f"{self.address}/readyz", timeout=_ANSWER_TIMEOUT_S):
                return ()
        except urllib.error.HTTPError as error:
            with error:
                return _missing_in(error.read())
        except OSError as error:
            return (f"{self.address}/readyz does not answer: {error}",)

    def _metrics(self) -> dict[str, dict[tuple[str, ...], float]]:
        try:
            with urllib.request.urlopen(f"{self.address}/metrics", timeout=_ANSWER_TIMEOUT_S) as answer:
                text = answer.read().decode()
        except (ValueError, OSError):
            return {}
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = tuple(value for _, value in sorted(sample.labels.items()))
                found.setdefault(sample.name, {})[labels] = sample.value
        return found

    def last_line(self) -> str:
        """Returns the last line of its log."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1] if lines else "it has logged nothing"


class Parts:
    """All processes of the demonstration."""

    def __init__(self, parts: list[DemoPart]) -> None:
        self._parts = parts

    @property
    def parts(self) -> list[DemoPart]:
        """Returns the parts, in the order of their start."""
        return self._parts

    def part(self, name: str) -> DemoPart:
        """Returns the part of a command."""
        return self._parts[PARTS.index(name)]

    def add(self, part: DemoPart) -> None:
        """Count one more process among them."""
        self._parts.append(part)

    @property
    def target(self) -> str:
        """Returns the URL of the scoring endpoint."""
        return self.part("serve").address

    @property
    def pids(self) -> dict[str, int]:
        """Returns the process id of each part, by name. Workers of `serve` are its children."""
        return {part.name: part.pid for part in self._parts}

    def all_run(self) -> bool:
        """Returns whether all still run."""
        return not any(part.has_ended() for part in self._parts)

    def readings(self) -> list[MetricsReading]:
        """Returns the current health and metrics of all."""
        return [part.reading() for part in self._parts]

    def trouble(self) -> str:
        """Returns the trouble of the first process that has ended, or else is not ready; "" without any."""
        # A process that has ended may be why another is not ready.
        readings = sorted(self.readings(), key=lambda one: one.exit_status is None)
        return next(filter(None, (reading.trouble() for reading in readings)), "")

    def wait_until_ready(self, say: Callable[[str], object], timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until all are ready, and `say` now and then which are not.

        Raises TemporaryFailure naming a part that has ended or is not ready in time.
        """
        patience = Patience(timeout_s, say)
        while True:
            for part in self._parts:
                part.read_address()
            readings = [part.reading(with_metrics=False) for part in self._parts]
            ended = [reading for reading in readings if reading.exit_status is not None]
            unready = [reading for reading in readings if reading.trouble()]
            if not unready:
                return
            trouble = (ended or unready)[0].trouble()
            if ended or not patience.goes_on(trouble):
                raise TemporaryFailure(f"demo: {trouble}")
            time.sleep(_LOOK_EVERY_S)


class Patience:
    """Limits the wait for work that may still come, with a line about it now and then."""

    def __init__(
        self, timeout_s: float, say: Callable[[str], object], now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._timeout_s, self._say, self._now_s = timeout_s, say, now_s
        self._began_s = self._since_s = self._told_s = now_s()
        self._done: object = None

    def goes_on(self, missing: str, done: object = None) -> bool:
        """Note which processes are missing, and which are done.

        Returns False after `timeout_s` in which no more was done.
        """
        now_s = self._now_s()
        if done != self._done:
            self._since_s, self._done = now_s, done
        if now_s - self._told_s >= _TELL_EVERY_S:
            self._told_s = now_s
            self._say(f"waiting for {now_s - self._began_s:.0f} s: {missing}")
        return now_s - self._since_s < self._timeout_s


@contextmanager
def running_parts(config: Path, folder: Path, names: Sequence[str] = PARTS) -> Iterator[Parts]:
    """Start processes, all or those of `names`, with their logs in `folder`; stop them at the end."""
    parts: list[DemoPart] = []
    try:
        # Each enters the list as it starts: if the next cannot start, those before it are stopped.
        parts.extend(_started(name, config, folder / f"{name}.log") for name in names)
        yield Parts(list(parts))
    finally:
        for part in parts:
            part.ask_to_stop()
        deadline_s = time.monotonic() + _STOP_TIMEOUT_S
        for part in parts:
            part.wait(max(0.0, deadline_s - time.monotonic()))


def _started(name: str, config: Path, log_file: Path) -> DemoPart:
    with log_file.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "paywarden", "--config", str(config), name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # A group of its own: Ctrl-C ends the demonstration, which then stops its processes in order.
            process_group=0,
        )
    return DemoPart(name, process, log_file)


def _missing_in(body: bytes) -> tuple[str, ...]:
    try:
        return tuple(map(str, json.loads(body)["missing"])) or ("it does not say why",)
    except (ValueError, KeyError, TypeError):
        return ("it does not say why",)
