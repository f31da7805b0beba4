"""Runs a scoring host: a parent process that reserves the ports and keeps N worker processes alive.

    parent   checks settings, compiles, loads the bundles, reserves ports ─ fork ─► worker 0, worker 1, …, admin
    worker   scoring/server/worker.py
    admin    scoring/server/admin.py: health and metrics; to the parent it is one more worker

1. The parent imports and warms up everything before it forks. A worker therefore starts in milliseconds, and shares
   the parent's memory (copy-on-write).
2. The parent opens no database and starts no thread before the fork, because neither survives one.
3. If a worker ends, the parent starts it again: after 0.1 s at first, and after at most 10 s when it keeps failing.
   Each worker has a pause of its own. A fork that fails is tried again in the same way.
4. A worker whose heart does not beat for `[serve] hang_timeout_s` is killed, and started again (heartbeat.py).
5. SIGTERM or SIGINT stops all workers, and the parent ends after the last one.
6. SIGHUP, or another deployment file, changes model and policy without a new worker (deployment/deployer.py).
7. A file that workers map and that is gone or cut short is made anew (mapped_files.py).
8. Another parent may take the ports over, for new software (scoring/server/takeover.py).
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, NoReturn

from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.scoring.engine import one_call, records
from paywarden.scoring.idempotency import decision_cache as answered
from paywarden.scoring.metrics.release import CHECK, swap_failures
from paywarden.scoring.metrics.shared_metrics import Counter, MetricsRegistry
from paywarden.scoring.requests import fast_requests
from paywarden.scoring.server import hang_ups
from paywarden.scoring.server.admin import ADMIN_NAME, admin_main
from paywarden.scoring.server.context import Endpoints, ServerContext, open_endpoints
from paywarden.scoring.server.deployment.deployer import Deployer, HostProcesses
from paywarden.scoring.server.descriptors import secure_descriptors
from paywarden.scoring.server.heartbeat import LOOK_S, HangDetector, Heartbeats
from paywarden.scoring.server.mapped_files import MappedFile
from paywarden.scoring.server.takeover import HandOverDesk, close_taken, control_pairs, name_after, take_over
from paywarden.scoring.server.worker import BUG, worker_main
from paywarden.scoring.state import mirror, overlay
from paywarden.scoring.state.mirror_file import has_mirror
from paywarden.scoring.state.neighbours import hops

_log = logging.getLogger(__name__)

# Exponential back-off: the pause before a restart doubles while a worker keeps dying at once. A worker that has run for
# a second was able to start, so its pause is the shortest again.
_RESTART_FIRST_S = 0.1
_RESTART_MOST_S = 10.0
_HEALTHY_AFTER_S = 1.0
# A worker bounds its own stop, and closes its files after that; a worker that takes longer has hung.
_CLOSE_S = 5.0
# How often the parent looks whether all workers have begun, while another host waits for it.
_BEGIN_S = 0.02
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# The supervisor's file of counts, beside those of the workers.
_METRICS_NAME = "supervisor"
REASONS = ("hung", "killed", "failed", "bug", "ended")

# Runs a worker, and returns its exit code. Gets the worker's number and a function that it calls to show that it works.
Work = Callable[[int, Callable[[], None]], int]


@dataclass(frozen=True)
class SupervisorMetrics:
    """The metrics of the parent: `restarts` by why the worker had ended, one of REASONS.

    `save` writes the counts. Raises OSError.
    """

    restarts: Mapping[str, Counter]
    fork_failures: Counter
    swap_failures: Counter
    save: Callable[[], None]

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
            registry.save,
        )


def serve(
    host: ServerContext,
    worker_count: int,
    *,
    announce: Callable[[Sequence[str]], None],
    takes_over: bool = False,
) -> str | None:
    """Run the workers until SIGTERM or SIGINT. `announce` gets the reserved addresses, HTTP's first.

    `takes_over`: where a host runs with the same `[serve] runtime`, take its ports over and end it.

    Returns the catalogue of the host that has taken this one's ports over ("" if it did not say), and leaves stop
    signals blocked; None after such a signal.

    Raises Misconfigured when a port or socket is taken or the settings cannot be used, and TemporaryFailure when a
    worker did not stop as it should, or another host does not hand its ports over.
    """
    if worker_count < 1:
        raise Misconfigured(f"--workers: wanted at least 1, got {worker_count}")
    secure_descriptors(host.connections())
    if host.exploration is not None:
        host.exploration.require()
    # Before anything is taken: afterwards it must go fast.
    warm_up(host)
    taken = take_over(host.runtime) if takes_over else None
    if takes_over and taken is None:
        _log.info("there is no host to take over: this one starts as usual")
    first = 0 if taken is None else taken.first_worker(worker_count)
    with open_endpoints(host, taken) as opened, _counting(host, first) as metrics:
        claims, pending = _mapped_files(host)
        parent = os.getpid()
        pairs = control_pairs(worker_count)
        endpoints = replace(opened, controls=[pair[1] for pair in pairs])

        def work(number: int, beat: Callable[[], None]) -> int:
            if number == worker_count:
                close_taken(endpoints.taken)
                return admin_main(host, endpoints, parent, beat, name_after(ADMIN_NAME, first))
            return worker_main(host, first + number, endpoints, parent, beat, number)

        def own() -> bool:
            # A worker that starts has the newest tokens and certificate that could be used.
            endpoints.refresh()
            return pending()

        supervisor = Supervisor(
            # The last one serves health and metrics.
            worker_count + 1,
            work,
            name_of=lambda number: "the admin process" if number == worker_count else f"worker {first + number}",
            stop_s=_stop_s(host),
            hang_timeout_s=host.hang_timeout_s,
            metrics=metrics,
            mending=Mending(own=own, shared=claims),
        )
        deployer = _deployer(host, supervisor, metrics)
        takers: list[str] = []
        desk = _desk(
            host, endpoints, supervisor, [pair[0] for pair in pairs], range(first, first + worker_count), takers
        )
        supervisor.heed_signals(deployer, desk)
        if taken is not None:
            supervisor.when_all_work(lambda: taken.ready(host.catalogue_digest))
        if not has_mirror(host.mirror):
            _log.warning(
                "there is no mirror at %s yet: payments are answered without profiles, and /readyz says 503, until "
                "`paywarden companion` has filled it",
                host.mirror.path,
            )
        announce(endpoints.addresses(host))
        try:
            supervisor.run()
        finally:
            for part in (deployer, desk):
                if part is not None:
                    part.close()
        if takers:
            # From here on a stop signal waits until the caller handles signals again: none is lost between two turns.
            signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        return takers[0] if takers and not supervisor.was_signalled else None


def warm_up(host: ServerContext) -> None:
    """Load or compile the code that a host needs before it can serve. The workers share its memory.

    The garbage collector notes something in every object that it looks at. In a forked worker each such page is copied,
    which takes longer than all else that a worker does before it listens. Frozen objects are not looked at.
    """
    host.engine.warm_up()
    answered.warm_up()
    fast_requests.warm_up()
    records.warm_up()
    mirror.warm_up()
    one_call.warm_up()
    if host.engine.plan.hops:
        hops.warm_up()
    if host.overlay.enabled:
        overlay.warm_up(host.engine)
    gc.collect()
    gc.freeze()


def _desk(
    host: ServerContext,
    endpoints: Endpoints,
    supervisor: Supervisor,
    controls: Sequence[socket.socket],
    workers: range,
    takers: list[str],
) -> HandOverDesk | None:
    """Returns the desk that hands the ports over to another host; None if its socket cannot be made.

    `takers` gets the catalogue of the host that takes them over.
    """

    def hand_over(catalogue: str) -> None:
        takers.append(catalogue)
        endpoints.handed_over.set()
        supervisor.stop()

    try:
        return HandOverDesk(
            host.runtime,
            controls=controls,
            running=lambda: [place for place in supervisor.running if place < len(workers)],
            shared=endpoints.shared,
            admin_port=endpoints.admin_port,
            workers=workers,
            hand_over=hand_over,
        )
    except Misconfigured as error:
        _log.warning("no other host can take the ports over: %s", error)
        return None


def _deployer(host: ServerContext, supervisor: Supervisor, metrics: SupervisorMetrics) -> Deployer | None:
    """Returns the deployer, which changes bundle and policy; None if its folder cannot be used."""
    try:
        return Deployer(
            host.releases,
            host.runtime,
            host.release.key,
            catalogue=host.catalogue_digest,
            failures=metrics.swap_failures,
            processes=HostProcesses(supervisor.fork_apart, lambda: supervisor.signal_all(signal.SIGHUP)),
        )
    except Misconfigured as error:
        _log.warning("bundle and policy cannot be changed without a restart: %s", error)
        return None


def _mapped_files(host: ServerContext) -> tuple[Callable[[], bool], Callable[[], bool]]:
    """Prepare the files that workers map; returns two functions that mend the claims and the pending payments."""
    claims = MappedFile(
        host.answered.path,
        lambda: answered.prepare(host.answered),
        "payments that were answered before may be decided again",
    )
    if not host.overlay.enabled:
        return claims.mend, lambda: False
    pending = MappedFile(
        host.overlay.path,
        lambda: overlay.prepare(host.overlay, host.engine.plan),
        "payments of the last seconds are missing in it",
    )
    return claims.mend, pending.mend


@contextlib.contextmanager
def _counting(host: ServerContext, first: int) -> Iterator[SupervisorMetrics]:
    registry = MetricsRegistry()
    metrics = SupervisorMetrics.declare(registry)
    # Not mapped: somebody who cut the file short would end the host.
    registry.open(host.metrics_directory, name_after(_METRICS_NAME, first), mapped=False)
    try:
        yield metrics
    finally:
        registry.close()


def _stop_s(host: ServerContext) -> float:
    return max(one.drain_delay_ms + one.stop_timeout_ms for one in (host.http, host.grpc)) / 1000 + _CLOSE_S


@dataclass
class _Worker:
    number: int
    hangs: HangDetector
    # 0 while it does not run; then it is started at `due`.
    pid: int = 0
    due: float = 0.0
    started: float = 0.0
    pause_s: float = _RESTART_FIRST_S
    is_hung: bool = False
    # The logged reason of the last failed fork.
    fork_trouble: str = field(default="")


class Mending(NamedTuple):
    """Mends files of the workers. Both are called before each start and twice a second; True: a file was made anew."""

    own: Callable[[], bool]
    """Workers notice by themselves that a file was made anew."""
    shared: Callable[[], bool]
    """After this all workers are started again: one that still had the old file would not see the others' writes."""


NOTHING_TO_MEND = Mending(lambda: False, lambda: False)


class Supervisor:
    """Starts workers, restarts those that die or hang, and stops all of them at the end."""

    def __init__(
        self,
        worker_count: int,
        work: Work,
        *,
        stop_s: float,
        hang_timeout_s: float,
        metrics: SupervisorMetrics,
        fork: Callable[[], int] = os.fork,
        name_of: Callable[[int], str] = "worker {}".format,
        mending: Mending = NOTHING_TO_MEND,
    ) -> None:
        """`stop_s` is the time of all workers together for a stop. `hang_timeout_s` 0: no worker is taken for hung."""
        self._mending = mending
        self._work, self._stop_s, self._metrics, self._fork = work, stop_s, metrics, fork
        self._name_of = name_of
        self._hang_timeout_s = hang_timeout_s
        self._hearts = Heartbeats(worker_count)
        self._workers = [_Worker(number, HangDetector(hang_timeout_s)) for number in range(worker_count)]
        self._stopping = False
        # Whether a signal asked for the stop.
        self.was_signalled = False
        # The error of a stop, and of the file of metrics.
        self._failure = self._save_trouble = ""
        # A signal wakes the parent by a byte in this pipe.
        self._awake, self._wake = os.pipe()
        self._look_at = 0.0
        self._deployer: Deployer | None = None
        self._deploy_at = math.inf
        self._desk: HandOverDesk | None = None
        self._all_work: Callable[[], object] | None = None

    @property
    def running(self) -> list[int]:
        """The numbers of the workers that run."""
        return [worker.number for worker in self._workers if worker.pid]

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
        """Until every worker has ended after a stop. Raises TemporaryFailure when one failed to stop."""
        while not self._stopping:
            now = time.monotonic()
            self._mending.own()
            if self._mending.shared():
                self.signal_all(signal.SIGTERM)
            for worker in self._workers:
                if not worker.pid and worker.due <= now:
                    self._start(worker)
            self._look(now)
            if self._deployer is not None and self._deploy_at <= now:
                self._deploy_at = self._deployer.look(now)
            if self._all_work is not None and all(self._hearts.count(worker.number) for worker in self._workers):
                call, self._all_work = self._all_work, None
                call()
            self._sleep()
            self._reap()
            self._save()
        self._end_all()

    def fork_apart(self, work: Callable[[], int]) -> int:
        """Run `work` in a child that is no worker; returns its pid. The child ends with the result. Raises OSError."""
        for stream in (sys.stdout, sys.stderr):
            # Its reader may be gone.
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        # Block signals: a stop must not reach the child before the child has a handler of its own.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        try:
            pid = self._fork()
            if pid == 0:
                self._become(work)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        return pid

    def signal_all(self, number: signal.Signals) -> bool:
        """Send a signal to all workers; returns whether one runs."""
        # A child that has ended is not reaped before, so its pid is still its own.
        running = [worker.pid for worker in self._workers if worker.pid]
        for pid in running:
            os.kill(pid, number)
        return bool(running)

    def _start(self, worker: _Worker) -> None:
        try:
            pid = self.fork_apart(
                lambda: self._work(worker.number, lambda: self._hearts.beat(worker.number)),
            )
        except OSError as error:
            self._postpone(worker, error)
            return
        worker.pid, worker.started, worker.is_hung, worker.fork_trouble = pid, time.monotonic(), False, ""
        worker.hangs.begin(self._hearts.count(worker.number))

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
            if self._deployer is not None:
                self._deployer.leave_to_parent()
            code = work()
        finally:
            os._exit(code)

    def _postpone(self, worker: _Worker, error: OSError) -> None:
        """Try a fork that failed again later."""
        self._metrics.fork_failures.add(1)
        if worker.fork_trouble != (trouble := error.strerror or str(error)):
            _log.error("%s cannot be forked, which is tried again: %s", self._name_of(worker.number), trouble)
        worker.fork_trouble = trouble
        self._pause(worker)

    def _pause(self, worker: _Worker) -> float:
        pause_s = worker.pause_s
        worker.pause_s = min(2 * pause_s, _RESTART_MOST_S)
        worker.due = time.monotonic() + pause_s
        return pause_s

    def _look(self, now: float) -> None:
        """Kill the workers that hang."""
        if now < self._look_at:
            return
        self._look_at = now + LOOK_S
        for worker in self._workers:
            if worker.pid and not worker.is_hung and worker.hangs.look(self._hearts.count(worker.number)):
                name = self._name_of(worker.number)
                _log.error("%s has not turned for %g s: killing it", name, self._hang_timeout_s)
                worker.is_hung = True
                os.kill(worker.pid, signal.SIGKILL)

    def _sleep(self, until: float | None = None) -> None:
        """Sleep until a signal, the next start or the next look."""
        if until is None:
            due = [worker.due for worker in self._workers if not worker.pid]
            until = min([self._look_at, self._deploy_at, *due])
            if self._all_work is not None:
                until = min(until, time.monotonic() + _BEGIN_S)
        poll = select.poll()
        poll.register(self._awake, select.POLLIN)
        asking = self._desk.files if self._desk is not None and not self._stopping else []
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
            for worker in self._workers:
                if worker.pid == pid:
                    worker.pid = 0
                    self._note_end(worker, code)
            if self._deployer is not None and self._deployer.ended(pid, code):
                self._deploy_at = 0.0

    def _note_end(self, worker: _Worker, code: int) -> None:
        if self._stopping:
            if code == BUG:
                self._failure = f"a bug ended {self._name_of(worker.number)} while it stopped"
            return
        if time.monotonic() - worker.started > _HEALTHY_AFTER_S:
            worker.pause_s = _RESTART_FIRST_S
        self._metrics.restarts[_reason(worker, code)].add(1)
        pause_s = self._pause(worker)
        _log.error("%s ended with %d; starting it again in %.1f s", self._name_of(worker.number), code, pause_s)

    def _save(self) -> None:
        """Write the counts. If that fails, the next call writes them."""
        trouble = ""
        try:
            self._metrics.save()
        except OSError as error:
            trouble = error.strerror or str(error)
            if trouble != self._save_trouble:
                _log.error("the supervisor's metrics cannot be written, which is tried again: %s", trouble)
        self._save_trouble = trouble

    def _end_all(self) -> None:
        self.signal_all(signal.SIGTERM)
        deadline = time.monotonic() + self._stop_s
        while any(worker.pid for worker in self._workers):
            self._sleep(deadline)
            self._reap()
            if time.monotonic() >= deadline and self.signal_all(signal.SIGKILL):
                self._failure = f"workers did not stop within {self._stop_s:g} s and were killed"
                deadline = math.inf
        if self._failure:
            raise TemporaryFailure(self._failure)

    def stop(self) -> None:
        """Stop all workers, as SIGTERM does."""
        self._stopping = True

    def _stop(self, *_: object) -> None:
        self._stopping = self.was_signalled = True

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


def _reason(worker: _Worker, code: int) -> str:
    if worker.is_hung:
        return "hung"
    if code < 0:
        return "killed"
    return {0: "ended", BUG: "bug"}.get(code, "failed")
