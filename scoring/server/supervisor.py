"""Keeps the worker processes of a scoring host alive, and replaces them by a new generation.

    parent   ─ fork ─► worker of place 0, of place 1, … (worker.py)   admin (admin.py): to the parent one more worker

1. The parent opens no database and starts no thread before a fork, because neither survives one.
2. If a worker ends, the parent starts it again: after 0.1 s at first, and after at most 10 s when it keeps failing.
   Each worker has a pause of its own. A fork that fails is tried again in the same way.
3. A worker whose heart does not beat for `hang_timeout_s` is killed, and started again (heartbeat.py).
4. SIGTERM or SIGINT stops all workers, and the parent ends after the last one.
5. Another bundle or policy comes into service with a new generation of workers. SIGHUP, or another deployment file,
   asks for it (deployment/deployer.py):

       place 0   old worker ──────────────── SIGUSR1 ──► answers what it has, closes its connections, ends
                    successor forked ─ listens ─┘ accepts from the same socket (places.py)
       place 1                                    old worker ── … half of the places at a time, at least one

   Until the first successor works, the release may be given up, and the old workers know nothing of it. There are
   never more processes than half as many again, at least one, so the last generation must end before the next begins.
6. If a file that workers map is gone or cut short, the parent ends, and says so (mapped_files.py).
7. Another parent may take the ports over, for new software or another feature catalogue (takeover.py).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.scoring.metrics.release import CHECK, SwapMetrics, swap_failures
from paywarden.scoring.metrics.shared_metrics import Counter, MetricsRegistry
from paywarden.scoring.server import hang_ups
from paywarden.scoring.server.deployment.deployer import Deployer
from paywarden.scoring.server.deployment.releases import Serving
from paywarden.scoring.server.heartbeat import LOOK_S, HangDetector, Heartbeats
from paywarden.scoring.server.places import Places
from paywarden.scoring.server.takeover import HandOverDesk
from paywarden.scoring.server.worker import BUG, RETIRE

_log = logging.getLogger(__name__)

# Exponential back-off: the pause before a restart doubles while a worker keeps dying at once. A worker that has run for
# a second was able to start, so its pause is the shortest again.
_RESTART_FIRST_S = 0.1
_RESTART_MOST_S = 10.0
_HEALTHY_AFTER_S = 1.0
# How often the parent looks whether workers have begun, while another host or generation waits for them.
_BEGIN_S = 0.02
# How often a worker of a new generation is started, until one of them works.
_TRIES_MAX = 5
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
REASONS = ("hung", "killed", "failed", "bug", "ended")

# Runs a worker, and returns its exit code. Gets the worker and a function that it calls to show that it works.
Work = Callable[["Worker", Callable[[], None]], int]


@dataclass(frozen=True)
class SupervisorMetrics:
    """The metrics of the parent: `restarts` by why the worker had ended, one of REASONS."""

    restarts: Mapping[str, Counter]
    fork_failures: Counter
    check_failures: Counter
    swaps: SwapMetrics

    @classmethod
    def declare(cls, registry: MetricsRegistry) -> SupervisorMetrics:
        restarts = {
            reason: registry.counter(
                "paywarden_worker_restarts_total",
                "Workers that ended unasked, and were started again.",
                ("reason",),
                (reason,),
            )
            for reason in REASONS
        }
        return cls(
            restarts,
            registry.counter(
                "paywarden_fork_failures_total", "Workers that could not be forked, for want of memory or processes."
            ),
            swap_failures(registry, CHECK),
            SwapMetrics.declare(registry),
        )


def spare_count(worker_count: int) -> int:
    """Returns how many more workers there are at most while a generation follows another one."""
    return max(1, worker_count // 2)


@dataclass(eq=False)
class Worker:
    """One process of a place: the worker that serves there, or its successor."""

    place: int
    # No two workers at a time have the same one.
    number: int
    # The releases that it serves. None: it serves no release, and has no successor.
    serving: Serving | None
    hangs: HangDetector
    # 0 while it does not run; then it is started at `due`.
    pid: int = 0
    due: float = 0.0
    started: float = 0.0
    # The beats of this number's earlier processes.
    beats: int = 0
    pause_s: float = _RESTART_FIRST_S
    is_hung: bool = False
    # When it is killed, if it was asked to retire and has not ended.
    ends: float = math.inf
    # The logged reason of the last failed fork.
    fork_trouble: str = field(default="")


class HostParts(NamedTuple):
    """The work and the files of a host's workers."""

    work: Work
    places: Places
    look: Callable[[], str] = lambda: ""
    """Runs before each start and twice a second. Returns why the host must end; empty if it need not."""
    first_number: int = 0
    """The number of the first worker, by which outboxes, metrics and log lines name it."""


class Supervisor:
    """Starts workers, restarts those that die or hang, replaces generations, and stops all workers at the end."""

    def __init__(
        self,
        worker_count: int,
        parts: HostParts,
        *,
        stop_s: float,
        hang_timeout_s: float,
        metrics: SupervisorMetrics,
        serving: Serving,
        has_admin: bool = False,
        fork: Callable[[], int] = os.fork,
    ) -> None:
        """`stop_s` is the time of all workers together for a stop. `hang_timeout_s` 0: no worker is taken for hung.

        `has_admin`: a process without payments runs beside the workers.
        """
        self._work, self._places, self._look_at_files, self._first_number = parts
        self._stop_s, self._metrics, self._fork = stop_s, metrics, fork
        self._hang_timeout_s = hang_timeout_s
        self._numbers = range(worker_count + spare_count(worker_count))
        self._hearts = Heartbeats(len(self._numbers) + 1)
        # By place.
        self._workers = [self._made(place, place, serving) for place in range(worker_count)]
        if has_admin:
            self._workers.append(self._made(worker_count, len(self._numbers), None))
        self._successors: list[Worker] = []
        self._retiring: list[Worker] = []
        # The generation that is wanted, and the last one of which a worker has worked.
        self.serving = self._proven = serving
        self._is_complete, self._tries = True, 0
        self._stop_signal: signal.Signals | None = None
        # The error of a stop.
        self._failure = ""
        # A signal wakes the parent by a byte in this pipe.
        self._awake, self._wake = os.pipe()
        self._look_at = 0.0
        self._deployer: Deployer | None = None
        self._deploy_at = math.inf
        self._desk: HandOverDesk | None = None
        self._all_work: Callable[[], object] | None = None

    def when_all_work(self, call: Callable[[], object]) -> None:
        """Call a function once, when every worker has begun its work."""
        self._all_work = call

    def heed_signals(self, deployer: Deployer | None = None, desk: HandOverDesk | None = None) -> None:
        """Make SIGTERM and SIGINT a clean stop from now on, and SIGHUP a look at the wanted deployment.

        A SIGHUP that came while the host started is heeded now.
        """
        self._desk = desk
        if deployer is not None:
            self._deployer, self._deploy_at = deployer, 0.0
        signal.signal(signal.SIGHUP, self._hang_up)
        os.set_blocking(self._awake, False)
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in _STOP_SIGNALS:
            signal.signal(number, self._stop)
        # Without a handler the signal would not wake the parent.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        if hang_ups.held():
            self._hang_up()

    def run(self) -> None:
        """Until every worker has ended. Raises TemporaryFailure if a file is gone, or a worker failed to stop."""
        while self._stop_signal is None:
            now = time.monotonic()
            if trouble := self._look_at_files():
                self._failure = f"{trouble}: the host ends, and its next start makes it"
                self._stop_signal = signal.SIGTERM
                break
            for worker in (*self._workers, *self._successors):
                if not worker.pid and worker.due <= now:
                    self._start(worker)
            self._succeed(now)
            self._look(now)
            if self._deployer is not None and self._deploy_at <= now:
                self._deploy_at = self._deployer.look(now)
            if self._all_work is not None and all(map(self._works, self._workers)):
                call, self._all_work = self._all_work, None
                call()
            self._sleep()
            self._reap()
        self._end_all()

    def renew(self, serving: Serving) -> None:
        """Let all workers serve these releases: at once, if the present generation has them, else by another one."""
        if self.serving.covers(serving.orders):
            self.signal_all(signal.SIGHUP)
            return
        self._dismiss_successors()
        self.serving, self._is_complete, self._tries = serving, False, 0

    def fork_apart(self, work: Callable[[], int]) -> int:
        """Run `work` in a child that is no worker; returns its pid. The child ends with the result. Raises OSError."""
        for stream in (sys.stdout, sys.stderr):
            # Its reader may be gone.
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        # Block signals: a stop must not reach the child before the child has a handler of its own.
        signal.pthread_sigmask(signal.SIG_BLOCK, (*_STOP_SIGNALS, RETIRE))
        try:
            pid = self._fork()
            if pid == 0:
                self._become(work)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_STOP_SIGNALS, RETIRE))
        return pid

    def signal_all(self, number: signal.Signals) -> bool:
        """Send a signal to all workers; returns whether one runs."""
        # A child that has ended is not reaped before, so its pid is still its own.
        running = [worker.pid for worker in self._all if worker.pid]
        for pid in running:
            os.kill(pid, number)
        return bool(running)

    @property
    def _all(self) -> list[Worker]:
        return [*self._workers, *self._successors, *self._retiring]

    def _made(self, place: int, number: int, serving: Serving | None) -> Worker:
        return Worker(place, number, serving, HangDetector(self._hang_timeout_s))

    def _name_of(self, worker: Worker) -> str:
        return "the admin process" if worker.serving is None else f"worker {self._first_number + worker.number}"

    def _works(self, worker: Worker) -> bool:
        """Whether the worker's process has begun its work."""
        return bool(worker.pid) and self._hearts.count(worker.number) > worker.beats

    def _succeed(self, now: float) -> None:
        """Let successors that work take their places, and start those that are missing."""
        for successor in [*self._successors]:
            if self._works(successor):
                self._succeed_to(successor.place, successor, now)
        orders = self.serving.orders
        waiting = [one for one in self._workers if one.serving is not None and not one.serving.covers(orders)]
        if not waiting and not self._is_complete:
            self._complete()
        for worker in waiting:
            number = next((n for n in self._numbers if all(one.number != n for one in self._all)), None)
            if number is None:
                return
            if all(one.place != worker.place for one in self._successors):
                successor = self._made(worker.place, number, self.serving)
                self._successors.append(successor)
                self._start(successor)

    def _succeed_to(self, place: int, successor: Worker, now: float) -> None:
        before, self._workers[place] = self._workers[place], successor
        self._successors.remove(successor)
        self._proven = self.serving
        self._dismiss(before, now)

    def _complete(self) -> None:
        """Note that every worker serves the wanted releases."""
        self._is_complete, self._proven = True, self.serving
        self._metrics.swaps.swaps.add(1)
        self._metrics.swaps.time.set(time.time())
        origin = self.serving.active.origins[0]
        _log.info(
            "model %s decides from now on (bundle %s, policy %s)",
            self.serving.active.model_version,
            origin.bundle_digest[:16],
            origin.policy_digest[:16],
        )
        self._unload()

    def _give_up(self, why: str) -> None:
        """Go on with the generation before: no worker of the newest one works."""
        self._dismiss_successors()
        self.serving, self._is_complete = self._proven, True
        self._metrics.swaps.failures.add(1)
        if self._deployer is not None:
            self._deployer.give_up(self._proven, why)
        self._unload()

    def _unload(self) -> None:
        if self._deployer is not None:
            self._deployer.keep([self.serving, *(one.serving for one in self._workers if one.serving is not None)])

    def _dismiss_successors(self) -> None:
        now = time.monotonic()
        for successor in self._successors:
            self._dismiss(successor, now)
        self._successors.clear()

    def _dismiss(self, worker: Worker, now: float) -> None:
        """Let a worker end when it has answered what it has accepted."""
        if worker.pid:
            os.kill(worker.pid, RETIRE)
            worker.ends = now + self._stop_s
            self._retiring.append(worker)

    def _start(self, worker: Worker) -> None:
        worker.beats = self._hearts.count(worker.number)
        try:
            self._places.open(worker.place)
            pid = self.fork_apart(lambda: self._work(worker, lambda: self._hearts.beat(worker.number)))
        except (OSError, Misconfigured) as error:
            self._postpone(worker, error)
            return
        worker.pid, worker.started, worker.is_hung, worker.fork_trouble = pid, time.monotonic(), False, ""
        worker.hangs.begin(worker.beats)

    def _become(self, work: Callable[[], int]) -> NoReturn:
        """Be another process from now on, which does this work. Stop signals are blocked until it unblocks them."""
        code = BUG
        try:
            signal.set_wakeup_fd(-1)
            for number in (*_STOP_SIGNALS, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            os.close(self._awake)
            os.close(self._wake)
            code = work()
        finally:
            os._exit(code)

    def _postpone(self, worker: Worker, error: OSError | Misconfigured) -> None:
        """Try a fork that failed again later."""
        self._metrics.fork_failures.add(1)
        if worker.fork_trouble != (trouble := getattr(error, "strerror", None) or str(error)):
            _log.error("%s cannot be forked, which is tried again: %s", self._name_of(worker), trouble)
        worker.fork_trouble = trouble
        self._pause(worker)

    def _pause(self, worker: Worker) -> float:
        pause_s = worker.pause_s
        worker.pause_s = min(2 * pause_s, _RESTART_MOST_S)
        worker.due = time.monotonic() + pause_s
        return pause_s

    def _look(self, now: float) -> None:
        """Kill the workers that hang, or take too long to retire."""
        if now < self._look_at:
            return
        self._look_at = now + LOOK_S
        for worker in self._all:
            if not worker.pid or worker.is_hung:
                continue
            hangs, is_late = worker.hangs.look(self._hearts.count(worker.number)), now > worker.ends
            if hangs or is_late:
                what = f"turned for {self._hang_timeout_s:g} s" if hangs else f"retired within {self._stop_s:g} s"
                _log.error("%s has not %s: killing it", self._name_of(worker), what)
                worker.is_hung = True
                os.kill(worker.pid, signal.SIGKILL)

    def _sleep(self, until: float | None = None) -> None:
        """Sleep until a signal, the next start or the next look."""
        if until is None:
            due = [worker.due for worker in (*self._workers, *self._successors) if not worker.pid]
            until = min([self._look_at, self._deploy_at, *due])
            if self._all_work is not None or not self._is_complete:
                until = min(until, time.monotonic() + _BEGIN_S)
        poll = select.poll()
        poll.register(self._awake, select.POLLIN)
        asking = self._desk.files if self._desk is not None and self._stop_signal is None else []
        for file in asking:
            poll.register(file, select.POLLIN)
        wait_ms = None if until == math.inf else max(0.0, until - time.monotonic()) * 1000
        ready = {fd for fd, _ in poll.poll(wait_ms)}
        if self._awake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._awake, 4096)
        if self._desk is not None and any(file.fileno() in ready for file in asking):
            self._desk.turn()

    def _reap(self) -> None:
        """Note which workers have ended, and when they are started again."""
        while ended := _ended_child():
            pid, code = ended
            for worker in self._all:
                if worker.pid == pid:
                    worker.pid = 0
                    self._note_end(worker, code)
            if self._deployer is not None and self._deployer.ended(pid, code):
                self._deploy_at = 0.0

    def _note_end(self, worker: Worker, code: int) -> None:
        if self._stop_signal is not None:
            if code == BUG:
                self._failure = f"a bug ended {self._name_of(worker)} while it stopped"
            return
        if worker in self._retiring:
            self._retiring.remove(worker)
            return
        if time.monotonic() - worker.started > _HEALTHY_AFTER_S:
            worker.pause_s = _RESTART_FIRST_S
        self._metrics.restarts[_reason(worker, code)].add(1)
        name, is_successor = self._name_of(worker), worker in self._successors
        if is_successor and self._proven is not self.serving:
            self._tries += 1
            if self._tries >= _TRIES_MAX:
                self._successors.remove(worker)
                self._give_up(f"{name} ended with {code}")
                return
        if not is_successor and all(one.place != worker.place for one in self._successors):
            # Nobody accepts the connections that wait there.
            self._places.lose(worker.place)
        pause_s = self._pause(worker)
        _log.error("%s ended with %d; starting it again in %.1f s", name, code, pause_s)

    def _end_all(self) -> None:
        assert self._stop_signal is not None
        # What a worker closes from now on is closed.
        self._places.close()
        self.signal_all(self._stop_signal)
        deadline = time.monotonic() + self._stop_s
        while any(worker.pid for worker in self._all):
            self._sleep(deadline)
            self._reap()
            if time.monotonic() >= deadline and self.signal_all(signal.SIGKILL):
                self._failure = f"workers did not stop within {self._stop_s:g} s and were killed"
                deadline = math.inf
        if self._failure:
            raise TemporaryFailure(self._failure)

    def retire(self) -> None:
        """End all workers: another host accepts from their sockets."""
        self._stop_signal = RETIRE

    def _stop(self, *_: object) -> None:
        self._stop_signal = signal.SIGTERM

    def _hang_up(self, *_: object) -> None:
        if self._deployer is not None:
            self._deployer.hang_up()
            self._deploy_at = 0.0


def _ended_child() -> tuple[int, int] | None:
    """Returns the pid and the exit code of a child that has ended, or None."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, os.waitstatus_to_exitcode(status)) if pid else None


def _reason(worker: Worker, code: int) -> str:
    if worker.is_hung:
        return "hung"
    if code < 0:
        return "killed"
    return {0: "ended", BUG: "bug"}.get(code, "failed")
