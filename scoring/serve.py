"""The scoring host: a parent that holds the port and keeps N workers alive, each a process of its own.

    parent   checks everything once, compiles, loads the bundles ─ fork ─► worker 0, worker 1, …
    worker   opens its outbox, metrics file and the mirror, listens on the shared port, serves

The parent imports and warms everything before it forks, so a worker starts in milliseconds and shares its
memory. It opens no database and starts no thread before that: neither survives a fork.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from features.engine import FeatureEngine
from features.money import RateTable
from models.bundle import Bundle
from schemas.errors import Misconfigured, PaywardenError
from scoring.http import HttpServer, HttpSettings, open_listener, reserve_port
from scoring.metrics import HttpMetrics, Registry, ScoringMetrics, render
from scoring.mirror import MirrorSettings
from scoring.model_chain import ChainSettings, ModelChain
from scoring.model_metrics import ModelMetrics
from scoring.outbox import OutboxSettings, OutboxWriter
from scoring.policy import Policy, flags_of
from scoring.scorer import PaymentScorer
from scoring.wire import RequestLimits

_log = logging.getLogger(__name__)

# A worker that dies at once, again and again, is started more and more rarely.
_RESTART_FIRST_S = 0.1
_RESTART_MOST_S = 10.0
_NAP_S = 0.05
_HEALTHY_AFTER_S = 10.0
# How often a worker looks whether there is a mirror, or another one, and whether its parent lives.
_LOOK_S = 0.5


@dataclass(frozen=True)
class Host:
    """What every worker of a host works with; made once, before the workers are."""

    engine: FeatureEngine
    rates: RateTable
    bundles: Sequence[Bundle]
    chain: ChainSettings
    policy: Policy
    http: HttpSettings
    limits: RequestLimits
    mirror: MirrorSettings
    outbox: OutboxSettings
    metrics_directory: Path


def serve(host: Host, worker_count: int, *, announce: Callable[[int], None]) -> None:
    """Run the workers until SIGTERM or SIGINT; `announce` gets the port once it is held.

    Raises Misconfigured when the port is taken or the settings cannot be used.
    """
    if worker_count < 1:
        raise Misconfigured(f"--workers: wanted at least 1, got {worker_count}")
    with reserve_port(host.http.host, host.http.port) as held:
        port = held.getsockname()[1]
        host.engine.warm_up()
        parent = _Parent(host, worker_count, port)
        parent.heed_signals()
        announce(port)
        parent.run()


class _Parent:
    """Starts workers, starts them again when they die, and takes them down with itself."""

    def __init__(self, host: Host, worker_count: int, port: int) -> None:
        self._host, self._count, self._port = host, worker_count, port
        self._pids: dict[int, int] = {}
        self._started: dict[int, float] = {}
        self._pause_s = dict.fromkeys(range(worker_count), _RESTART_FIRST_S)
        self._stopping = False

    def heed_signals(self) -> None:
        """From now on SIGTERM and SIGINT are a clean stop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def run(self) -> None:
        """Until every worker has ended after a stop."""
        for worker in range(self._count):
            self._start(worker)
        while self._pids:
            pid, status = os.wait()
            worker = self._pids.pop(pid)
            if not self._stopping:
                self._restart(worker, status)

    def _start(self, worker: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        # A stop between the look at `_stopping` and the note of the child's pid would miss the child.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        if not self._stopping:
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                os._exit(_worker_main(self._host, worker, self._port, parent))
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
        # In short naps: a signal does not end one, and a stop must not wait for the longest pause.
        until = time.monotonic() + pause_s
        while not self._stopping and time.monotonic() < until:
            time.sleep(min(pause_s, _NAP_S))
        self._start(worker)

    def _stop(self, *_: object) -> None:
        self._stopping = True
        for pid in self._pids:
            # One may have ended just now.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def _worker_main(host: Host, worker: int, port: int, parent: int) -> int:
    """The whole life of a worker; returns its exit code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_work(host, f"worker-{worker}", port, parent))
    except PaywardenError as error:
        _log.error("worker %d: %s", worker, error)
        return 1
    except Exception:  # noqa: BLE001 - the top of the process: a bug is logged whole, then the parent restarts it
        _log.exception("worker %d: a bug ended it", worker)
        return 70
    return 0


async def _work(host: Host, name: str, port: int, parent: int) -> None:
    registry = Registry()
    http_metrics = HttpMetrics.declare(registry)
    entities = host.engine.plan.entity_names
    scoring_metrics = ScoringMetrics.declare(registry, flags=flags_of(entities), entities=entities)
    model_metrics = ModelMetrics.declare(registry)
    registry.open(host.metrics_directory, name)
    outbox = OutboxWriter(host.outbox, name)
    scorer = PaymentScorer(
        engine=host.engine,
        rates=host.rates,
        models=ModelChain(host.bundles, metrics=model_metrics, settings=host.chain),
        policy=host.policy,
        mirror=host.mirror,
        outbox=outbox,
        metrics=scoring_metrics,
    )
    server = HttpServer(
        scorer,
        settings=host.http,
        limits=host.limits,
        currencies=host.rates.currencies,
        metrics=http_metrics,
        metrics_text=lambda: render(host.metrics_directory),
    )
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    await server.start(open_listener(host.http.host, port, backlog=host.http.backlog))
    # What is alive now stays for ever: no collection needs to look at it again.
    gc.collect()
    gc.freeze()
    _log.info("%s listens on %s:%d", name, host.http.host, port)
    look = asyncio.create_task(_look_around(scorer, parent, stopped))
    await stopped.wait()
    look.cancel()
    await server.stop()
    outbox.close()
    registry.close()


async def _look_around(scorer: PaymentScorer, parent: int, stopped: asyncio.Event) -> None:
    """Take up the mirror when it appears or is replaced; stop when the parent has died and cannot say so."""
    while os.getppid() == parent:
        scorer.open_mirror()
        await asyncio.sleep(_LOOK_S)
    _log.error("the parent is gone: stopping")
    stopped.set()
