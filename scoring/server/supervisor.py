"""Runs a scoring host: a parent process that reserves the ports and keeps N worker processes alive.

    parent   checks settings, compiles, loads the bundles, reserves ports ─ fork ─► worker 0, worker 1, …
    worker   scoring/server/worker.py

1. The parent imports and warms up everything before it forks. A worker therefore starts in milliseconds, and shares
   the parent's memory (copy-on-write).
2. The parent opens no database and starts no thread before the fork, because neither survives one.
3. If a worker ends, the parent starts it again: after 0.1 s at first, and after at most 10 s when it keeps failing.
4. SIGTERM or SIGINT stops all workers, and the parent ends after the last one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.scoring.engine import records
from paywarden.scoring.idempotency import decision_cache as answered
from paywarden.scoring.requests import fast_requests
from paywarden.scoring.server.context import Endpoints, ServerContext, open_endpoints
from paywarden.scoring.server.worker import worker_main
from paywarden.scoring.state.mirror import has_mirror

_log = logging.getLogger(__name__)

# Exponential back-off: the pause before a restart doubles while a worker keeps dying at once. A worker that has run for
# a second was able to start, so its pause is the shortest again.
_RESTART_FIRST_S = 0.1
_RESTART_MOST_S = 10.0
_NAP_S = 0.05
_HEALTHY_AFTER_S = 1.0
# A worker bounds its own stop, and closes its files after that; a worker that takes longer has hung.
_CLOSE_S = 5.0
# The exit status of a worker that a bug ended (scoring/worker.py).
_BUG = 70


def serve(host: ServerContext, worker_count: int, *, announce: Callable[[Sequence[str]], None]) -> None:
    """Run the workers until SIGTERM or SIGINT. `announce` gets the reserved addresses, HTTP's first.

    Raises Misconfigured when a port or socket is taken or the settings cannot be used, and TemporaryFailure when a
    worker did not stop as it should.
    """
    if worker_count < 1:
        raise Misconfigured(f"--workers: wanted at least 1, got {worker_count}")
    with open_endpoints(host) as endpoints:
        host.engine.warm_up()
        answered.warm_up()
        fast_requests.warm_up()
        records.warm_up()
        answered.prepare(host.answered)
        parent = _Parent(host, worker_count, endpoints)
        parent.heed_signals()
        if not has_mirror(host.mirror):
            _log.warning(
                "there is no mirror at %s yet: payments are answered without profiles, and /readyz says 503, until "
                "`paywarden companion` has filled it",
                host.mirror.path,
            )
        announce(endpoints.addresses(host))
        parent.run()


class _Parent:
    """Starts workers, restarts those that die, and stops all of them at the end."""

    def __init__(self, host: ServerContext, worker_count: int, endpoints: Endpoints) -> None:
        self._host, self._count, self._endpoints = host, worker_count, endpoints
        self._pids: dict[int, int] = {}
        self._started: dict[int, float] = {}
        self._pause_s = dict.fromkeys(range(worker_count), _RESTART_FIRST_S)
        self._stopping = False
        # What was wrong with a stop.
        self._failure = ""

    def heed_signals(self) -> None:
        """Make SIGTERM and SIGINT a clean stop from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGALRM, self._kill)

    def run(self) -> None:
        """Until every worker has ended after a stop. Raises TemporaryFailure when one failed to stop."""
        for worker in range(self._count):
            self._start(worker)
        while self._pids:
            pid, status = os.wait()
            worker = self._pids.pop(pid)
            if not self._stopping:
                self._restart(worker, status)
            elif os.waitstatus_to_exitcode(status) == _BUG:
                self._failure = f"a bug ended worker {worker} while it stopped"
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self._failure:
            raise TemporaryFailure(self._failure)

    def _start(self, worker: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        # Block signals: a stop between reading `_stopping` and storing the child's pid would miss the child.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        if not self._stopping:
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                os._exit(worker_main(self._host, worker, self._endpoints, parent))
            self._pids[pid] = worker
            self._started[worker] = time.monotonic()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))

    def _restart(self, worker: int, status: int) -> None:
        if time.monotonic() - self._started[worker] > _HEALTHY_AFTER_S:
            self._pause_s[worker] = _RESTART_FIRST_S
        pause_s = self._pause_s[worker]
        self._pause_s[worker] = min(2 * pause_s, _RESTART_MOST_S)
        code = os.waitstatus_to_exitcode(status)
        _log.error("worker %d ended with %d; starting it again in %.1f s", worker, code, pause_s)
        # Sleep in short naps: a signal does not interrupt a sleep, and a stop must not wait for a long pause.
        until = time.monotonic() + pause_s
        while not self._stopping and time.monotonic() < until:
            time.sleep(min(pause_s, _NAP_S))
        self._start(worker)

    def _kill(self, *_: object) -> None:
        self._failure = f"workers did not stop within {self._stop_s():g} s and were killed"
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _stop_s(self) -> float:
        protocols = (self._host.http, self._host.grpc)
        return max(one.drain_delay_ms + one.stop_timeout_ms for one in protocols) / 1000 + _CLOSE_S

    def _stop(self, *_: object) -> None:
        if not self._stopping:
            signal.setitimer(signal.ITIMER_REAL, self._stop_s())
        self._stopping = True
        for pid in self._pids:
            # The worker may have ended just now.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
