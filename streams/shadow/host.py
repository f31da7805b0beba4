"""Runs the challengers of a host, each in a process of its own, and says how they are.

    paywarden shadow run ──starts──► paywarden shadow run --challenger b-42       a crash ends this one alone
                         ──starts──► paywarden shadow run --challenger strict     one line of JSON a second on stdout

1. Start the process of every challenger. Its status is on stdout; the log goes to stderr as always.
2. A process that has ended is started again after a pause. The pause doubles, up to a minute, and is short again once
   the process has run for a minute.
3. The challenger of a rollout in the shadow comes and goes while the others run (candidate.py).
4. A process that says nothing for `hang_timeout_s` is killed, and counts as ended. It may take longer to load.
5. At the stop, ask all challengers to end, and kill them after a few seconds.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from threading import Event
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from paywarden.streams.shadow.shadow_evaluation import REASONS

_log = logging.getLogger(__name__)

PAUSE_S_MIN, PAUSE_S_MAX = 1.0, 60.0
_TURN_S = 0.25
_ROUND_S_MAX = 30.0
_END_S = 5.0
# A process may take this many times `hang_timeout_s` to load: on a busy host the idle class gets little.
_START_TIMEOUTS = 10
_LINE_BYTES_MAX = 65_536


class ShadowMetrics:
    """The metrics of `paywarden shadow run`, by challenger. Counts outlive the process of a challenger."""

    def __init__(self, registry: CollectorRegistry, challengers: Sequence[str]) -> None:
        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"paywarden_shadow_{name}", documentation, ("challenger", *labels), registry=registry)

        def gauge(name: str, documentation: str) -> Gauge:
            return Gauge(f"paywarden_shadow_{name}", documentation, ("challenger",), registry=registry)

        self.evaluated = counter("evaluated", "Decisions that have a partner on shadow-decisions.")
        self.left_out = counter("left_out", "Decisions that have no partner, and why.", "reason")
        self.gone = counter("gone_bytes", "Bytes of outboxes that were deleted or damaged before they were read.")
        self.cpu = counter("cpu_seconds", "CPU time of the challenger's process.")
        self.restarts = counter("restarts", "Times the challenger's process ended and was started again.")
        self.up = gauge("up", "Whether the challenger's process runs and has loaded its files.")
        self.waiting = gauge("waiting_bytes", "Decisions that wait for the challenger, of the worker with the most.")
        self.lag = gauge("lag_seconds", "The age of the newest decision evaluated, while others wait; else 0.")
        self._gauges = self.up, self.waiting, self.lag
        for name in challengers:
            self.begin(name)

    def begin(self, name: str) -> None:
        """Show a challenger."""
        for metric in (self.evaluated, self.gone, self.cpu, self.restarts, *self._gauges):
            metric.labels(name)
        for reason in REASONS:
            self.left_out.labels(name, reason)

    def forget(self, name: str) -> None:
        """Show a challenger no more that nobody wants any longer. Its counts stay."""
        for gauge in self._gauges:
            gauge.remove(name)


class ShadowHealth:
    """Written by the host's loop, read in any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turned_at = clock()
        self.troubles: Mapping[str, str] = {}
        """Why a challenger does not evaluate, by its name; empty if all do."""

    def note_turn(self) -> None:
        self._turned_at = self._clock()

    def live(self) -> bool:
        """Returns whether the loop turns."""
        return self._clock() - self._turned_at < _ROUND_S_MAX

    def problems(self) -> Sequence[str]:
        """Returns a line for each challenger that does not evaluate."""
        return [f"challenger {name}: {why}" for name, why in sorted(self.troubles.items())]


class ShadowHost:
    """Starts, watches and ends the processes of challengers."""

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        *,
        metrics: ShadowMetrics,
        health: ShadowHealth,
        hang_timeout_s: float,
        follow: Callable[[], Mapping[str, Sequence[str]]] = dict,
    ) -> None:
        """`commands`: the command lines, by the challenger's name. `follow` returns further ones, at each turn."""
        self._metrics, self._health = metrics, health
        self._selector = selectors.DefaultSelector()
        self._hang_timeout_s, self._follow = hang_timeout_s, follow
        self._children = [self._child(name, command) for name, command in commands.items()]
        self._configured = set(commands)
        # Those that nobody wants any more, until they have ended.
        self._leaving: list[_Child] = []

    def run(self, stop: Event) -> None:
        """Watch until `stop` is set, then end all."""
        try:
            while not stop.is_set():
                self.turn(_TURN_S)
        finally:
            self.end()

    def turn(self, wait_s: float) -> None:
        """Start processes that are due, and read the processes' messages for at most `wait_s`."""
        self._change()
        for child in self._children:
            child.look(time.monotonic())
        for key, _ in self._selector.select(wait_s):
            key.data.read()
        self._health.troubles = {child.name: child.trouble for child in self._children if child.trouble}
        self._health.note_turn()

    def _change(self) -> None:
        """Start the challengers that should run beside the configured ones, and stop those that should not."""
        wanted = {name: command for name, command in self._follow().items() if name not in self._configured}
        now = time.monotonic()
        for child in [child for child in self._children if child.name not in {*self._configured, *wanted}]:
            _log.info("shadow %s: nobody wants it any more", child.name)
            child.ask_to_end()
            child.kill_at = now + _END_S
            self._children.remove(child)
            self._leaving.append(child)
        self._leaving = [child for child in self._leaving if not child.is_gone(now)]
        running = {child.name for child in (*self._children, *self._leaving)}
        for name, command in wanted.items():
            if name not in running:
                self._metrics.begin(name)
                self._children.append(self._child(name, command))

    def _child(self, name: str, command: Sequence[str]) -> _Child:
        return _Child(name, command, self._metrics, self._selector, self._hang_timeout_s)

    def end(self) -> None:
        """End every process."""
        children = [*self._children, *self._leaving]
        for child in children:
            child.ask_to_end()
        deadline = time.monotonic() + _END_S
        for child in children:
            child.end(max(0.0, deadline - time.monotonic()))
        self._selector.close()


class _Child:
    """The process of one challenger, or the pause before its next start."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        metrics: ShadowMetrics,
        selector: selectors.BaseSelector,
        hang_timeout_s: float,
    ) -> None:
        self.name, self._command, self._metrics = name, command, metrics
        self._selector, self._hang_timeout_s = selector, hang_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = self._due = self._heard_at = 0.0
        self._pause_s = PAUSE_S_MIN
        self._unread = b""
        # The counts of the process that are in the metrics.
        self._before: dict[str, float] = {}
        self.trouble = "it has not started"
        self.kill_at = 0.0

    def look(self, now: float) -> None:
        """Start the process if that is due; notice its end, and kill it if it hangs."""
        process = self._process
        if process is None:
            if now >= self._due:
                self._start(now)
            return
        patience_s = self._hang_timeout_s * (1 if self._before else _START_TIMEOUTS)
        if process.poll() is None and now - self._heard_at > patience_s:
            _log.error("shadow %s: it has said nothing for %g s and is killed", self.name, patience_s)
            process.kill()
            process.wait()
        if process.poll() is not None:
            self._note_end(now)

    def _start(self, now: float) -> None:
        try:
            process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        except OSError as error:
            self._pause(now, f"it cannot be started: {error.strerror}")
            return
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._selector.register(process.stdout, selectors.EVENT_READ, self)
        self._process, self._started_at, self._heard_at = process, now, now
        self._before, self._unread = {}, b""

    def _note_end(self, now: float) -> None:
        assert self._process is not None
        self.read()
        status = self._process.returncode
        self._close()
        self._metrics.restarts.labels(self.name).inc()
        if now - self._started_at > PAUSE_S_MAX:
            self._pause_s = PAUSE_S_MIN
        how = f"signal {-status}" if status < 0 else f"status {status}"
        self._pause(now, f"its process ended with {how}: the log says why")
        _log.error("shadow %s: its process ended with %s, and is started again", self.name, how)

    def _pause(self, now: float, why: str) -> None:
        self.trouble, self._due = why, now + self._pause_s
        self._pause_s = min(2 * self._pause_s, PAUSE_S_MAX)

    def read(self) -> None:
        """Take the process's messages."""
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            data = os.read(self._process.stdout.fileno(), _LINE_BYTES_MAX)
        except BlockingIOError:
            return
        if not data:
            # The process is about to end: without this the selector would wake the loop until it has.
            with suppress(KeyError):
                self._selector.unregister(self._process.stdout)
        *lines, self._unread = (self._unread + data).split(b"\n")
        self._unread = self._unread[-_LINE_BYTES_MAX:]
        for line in lines:
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                _log.error("shadow %s: its process wrote something else than its status to stdout", self.name)

    def _take(self, status: Mapping[str, Any]) -> None:
        metrics, name = self._metrics, self.name
        self._count("evaluated", metrics.evaluated.labels(name), status["evaluated"])
        for reason, count in status["left_out"].items():
            self._count(reason, metrics.left_out.labels(name, reason), count)
        self._count("gone", metrics.gone.labels(name), status["gone_bytes"])
        self._count("cpu", metrics.cpu.labels(name), status["cpu_s"])
        metrics.waiting.labels(name).set(status["waiting_bytes"])
        metrics.lag.labels(name).set(status["lag_s"])
        metrics.up.labels(name).set(1)
        self._heard_at, self.trouble = time.monotonic(), str(status["trouble"])

    def _count(self, what: str, metric: Counter, count: float) -> None:
        """Add the process's counts since its last status. A record that Kafka refused is taken back later."""
        more = count - self._before.setdefault(what, 0.0)
        if more > 0:
            metric.inc(more)
            self._before[what] = count

    def is_gone(self, now: float) -> bool:
        """Whether a process that was asked to end has ended; past `kill_at` it is killed."""
        if self._process is not None:
            if self._process.poll() is None and now < self.kill_at:
                return False
            self.end(0.0)
        self._metrics.forget(self.name)
        return True

    def ask_to_end(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def end(self, timeout_s: float) -> None:
        """Wait for the end of the process, and kill it after that."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()

    def _close(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with suppress(KeyError):
            self._selector.unregister(self._process.stdout)
        self._process.stdout.close()
        self._process = None
        self._metrics.up.labels(self.name).set(0)
