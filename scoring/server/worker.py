"""The life of a scoring worker: opens its outbox, metrics and the mirror, listens, serves until it is told to stop.

A worker has one scorer, one queue before it (`MicroBatcher`) and a `Front` for every protocol, each with its listeners.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from typing import Protocol

import uvloop

from paywarden.models.policy.policy import flags_of
from paywarden.schemas.errors import PaywardenError
from paywarden.scoring.engine.batcher import MicroBatcher
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.scorer import PaymentScorer
from paywarden.scoring.grpc.front import GrpcServer
from paywarden.scoring.grpc.metrics import GrpcMetrics
from paywarden.scoring.http.front import HttpServer
from paywarden.scoring.idempotency.decision_cache import DecisionCache, DecisionCacheMetrics, worker_name
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.shared import Registry, render
from paywarden.scoring.metrics.worker import GarbagePauses, HttpMetrics, ScoringMetrics, StageTimes
from paywarden.scoring.net.listeners import open_listener
from paywarden.scoring.net.tls import Tls
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.server.context import Endpoints, ServerContext
from paywarden.scoring.state.outbox import OutboxMetrics, OutboxWriter

_log = logging.getLogger(__name__)

# How often a worker looks whether there is a mirror, or another one, and whether its parent lives.
_LOOK_S = 0.5


class Front(Protocol):
    """A protocol that calls come in by. It hands them to the worker's `MicroBatcher`."""

    async def start(self, listener: socket.socket, tls: Tls | None = None) -> None:
        """Accept connections from a listening socket, which is the front's from now on. May be called for several."""

    async def stop(self) -> None:
        """Take no more calls, answer those in flight, close. Bounded in time."""


def worker_main(host: ServerContext, worker: int, gate: Endpoints, parent: int) -> int:
    """The whole life of a worker, which `parent` has forked; returns its exit code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_work(host, worker, gate, parent))
    except PaywardenError as error:
        _log.error("worker %d: %s", worker, error)
        return 1
    except Exception:  # noqa: BLE001 - the top of the process: a bug is logged whole, then the parent restarts it
        _log.exception("worker %d: a bug ended it", worker)
        return 70
    return 0


async def _work(host: ServerContext, worker: int, gate: Endpoints, parent: int) -> None:
    name, registry = worker_name(worker), Registry()
    http_metrics, grpc_metrics = HttpMetrics.declare(registry), GrpcMetrics.declare(registry)
    pauses, stages = GarbagePauses(registry), StageTimes(registry)
    entities = host.engine.plan.entity_names
    scoring_metrics = ScoringMetrics.declare(registry, flags=flags_of(entities), entities=entities)
    model_metrics = ModelMetrics.declare(registry)
    answered_metrics, outbox_metrics = DecisionCacheMetrics.declare(registry), OutboxMetrics.declare(registry)
    registry.open(host.metrics_directory, name)
    outbox = OutboxWriter(host.outbox, name, outbox_metrics)
    # After the outbox: its lock says that an earlier process of this worker appends nothing more.
    table = DecisionCache(host.answered, host.outbox, worker, answered_metrics)
    scorer = PaymentScorer(
        engine=host.engine,
        models=ModelChain(host.bundles, metrics=model_metrics, settings=host.chain),
        policy=host.policy,
        mirror=host.mirror,
        outbox=outbox,
        metrics=scoring_metrics,
        answered=table,
        stages=stages,
    )
    intake = RequestDecoder(host.engine.plan, host.rates, host.limits)
    turns = MicroBatcher(scorer, intake=intake, settings=host.admission, stages=stages, busy_poll=host.busy_poll)
    http = HttpServer(
        turns,
        host.http,
        metrics=http_metrics,
        metrics_text=lambda: render(host.metrics_directory),
        tokens=gate.tokens,
        metrics_need_token=host.auth.metrics_need_token,
    )
    authorise = None if gate.tokens is None else gate.tokens.allows
    grpc = GrpcServer(turns, settings=host.grpc, metrics=grpc_metrics, authorise=authorise)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    gate.refresh()
    await _listen(http, grpc, host, gate)
    # What is alive now stays for ever: no collection needs to look at it again.
    gc.collect()
    gc.freeze()
    pauses.watch()
    _log.info("%s listens on %s", name, " ".join(gate.addresses(host)))
    look = asyncio.create_task(_look_around(scorer, outbox, gate, parent))
    # If it ends, the worker would miss a new mirror, and the end of its parent.
    look.add_done_callback(lambda _: stopped.set())
    await stopped.wait()
    look.cancel()
    # At once: each takes no more calls from now on, and the slowest says how long it takes.
    await asyncio.gather(http.stop(), grpc.stop())
    table.close()
    outbox.close()
    pauses.forget()
    registry.close()
    with contextlib.suppress(asyncio.CancelledError):
        await look


async def _listen(http: Front, grpc: Front, host: ServerContext, gate: Endpoints) -> None:
    if gate.grpc_port is not None:
        await grpc.start(open_listener(host.grpc.host, gate.grpc_port, backlog=host.grpc.backlog), gate.tls)
    if gate.grpc_unix is not None:
        await grpc.start(gate.grpc_unix)
    # Last: who can ask over HTTP whether the worker is ready may then call it in any way.
    await http.start(open_listener(host.http.host, gate.http_port, backlog=host.http.backlog), gate.tls)
    if gate.http_unix is not None:
        await http.start(gate.http_unix)


async def _look_around(scorer: PaymentScorer, outbox: OutboxWriter, gate: Endpoints, parent: int) -> None:
    """Take up what appears or is replaced: mirror, tokens, certificates; tell what the outbox holds.

    Ends when the parent has died and cannot say so.
    """
    while os.getppid() == parent:
        scorer.open_mirror()
        gate.refresh()
        outbox.note_unshipped()
        await asyncio.sleep(_LOOK_S)
    _log.error("the parent is gone: stopping")
