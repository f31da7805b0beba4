"""Runs one scoring worker, from the fork until it has stopped.

    HttpServer ─┐
                ├─► MicroBatcher ─► PaymentScorer ─► mirror, models, policy, outbox
    GrpcServer ─┘

1. The worker opens its metrics and its outbox. The outbox's lock ensures that no earlier process of this worker
   appends any more. Only then does it open the decision cache, which ends the claims of that process.
2. It inherits its releases from the parent. Only the candidate's share of the cards may change (rollout_share.py).
3. It listens: gRPC first, HTTP last, because /readyz is on HTTP.
4. Twice a second its watch (watch.py) looks for a new mirror, tokens, certificates and another share, repairs the
   outbox, and checks that its parent lives. Its heart beats meanwhile.
5. On SIGTERM or SIGINT both fronts take no more calls, answer those in flight, and close.
6. On SIGUSR1 another worker accepts from its sockets. It accepts no more, answers one more call of each connection,
   closes the connection after it, and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import itertools
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import uvloop

from paywarden.models.policy.policy import flags_of
from paywarden.schemas.errors import PaywardenError
from paywarden.scoring.engine.batching.batcher import MicroBatcher
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.scorer import PaymentScorer, ScorerOptions
from paywarden.scoring.engine.vectors import ROWS_MAX
from paywarden.scoring.grpc.grpc_front import GrpcServer
from paywarden.scoring.grpc.metrics import GrpcMetrics
from paywarden.scoring.http.http_front import HttpServer
from paywarden.scoring.idempotency.decision_cache import DecisionCache, DecisionCacheMetrics, worker_name
from paywarden.scoring.metrics.exposition import MetricsRenderer
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.release import ReleaseInfo
from paywarden.scoring.metrics.shared_metrics import Gauge, MetricsRegistry
from paywarden.scoring.metrics.worker_metrics import GarbagePauses, HttpMetrics, ScoringMetrics, StageTimes, ready_gauge
from paywarden.scoring.net.tls import Tls
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.server.context import Endpoints, ServerContext
from paywarden.scoring.server.deployment.releases import Serving, orders_path
from paywarden.scoring.server.mapped_files import map_pages
from paywarden.scoring.server.rollout_share import RolloutShare
from paywarden.scoring.server.takeover import GRPC, HTTP
from paywarden.scoring.server.watch import WorkerMustEnd, WorkerWatch, declare_failures
from paywarden.scoring.state.held_cards import HeldCards
from paywarden.scoring.state.outbox import OutboxMetrics, OutboxWriter
from paywarden.scoring.state.overlay.overlay import Overlay, OverlayMetrics

_log = logging.getLogger(__name__)

# The exit status of a worker that a bug ended.
BUG = 70
RETIRE = signal.SIGUSR1
"""Asks a worker to end while another one accepts from its sockets."""
# An idle worker tries its disk in one of this many rounds, every five seconds: the next payment may have to wait for
# it.
_DISK_TRIED_EVERY = 10
# The host has no descriptor, memory or disk left: that is no bug, and ends when there is room.
_WANT_OF_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT})


class Front(Protocol):
    """The server of one protocol. It submits calls to the worker's `MicroBatcher`."""

    async def start(self, listener: socket.socket, tls: Tls | None = None) -> None:
        """Accept connections from `listener`, which now belongs to this front. Call it once for each listener."""

    async def stop(self, *, is_taken_over: bool = False) -> None:
        """Take no more calls, answer those in flight, close. It ends within a time limit.

        `is_taken_over`: another process accepts from the same listeners.
        """


def worker_main(
    host: ServerContext,
    worker: int,
    gate: Endpoints,
    parent: int,
    beat: Callable[[], None],
    place: int,
    serving: Serving,
) -> int:
    """Run a worker that the process `parent` has forked. Returns its exit code.

    `worker` is its number, which no other worker of the machine has; it listens on the sockets of `place`.

    The worker calls `beat` as long as its event loop turns.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_work(host, worker, gate, parent, beat, place, serving))
    except PaywardenError as error:
        _log.error("worker %d: %s", worker, error)
        return 1
    except OSError as error:
        if error.errno not in _WANT_OF_ROOM:
            _log.exception("worker %d: a bug ended it", worker)
            return BUG
        _log.error("worker %d: %s", worker, error.strerror)
        return 1
    except Exception:  # noqa: BLE001 - the top of the process: a bug is logged whole, then the parent restarts it
        _log.exception("worker %d: a bug ended it", worker)
        return BUG
    return 0


async def _work(
    host: ServerContext,
    worker: int,
    gate: Endpoints,
    parent: int,
    beat: Callable[[], None],
    place: int,
    serving: Serving,
) -> None:
    name, registry = worker_name(worker), MetricsRegistry()
    http_metrics, grpc_metrics = HttpMetrics.declare(registry), GrpcMetrics.declare(registry)
    pauses, stages = GarbagePauses(registry), StageTimes(registry)
    entities = host.engine.plan.entity_names
    scoring_metrics = ScoringMetrics.declare(registry, flags=flags_of(entities), entities=entities)
    model_metrics = ModelMetrics.declare(registry)
    answered_metrics, outbox_metrics = DecisionCacheMetrics.declare(registry), OutboxMetrics.declare(registry)
    overlay_metrics = OverlayMetrics.declare(registry) if host.overlay.enabled else None
    watch_failures = declare_failures(registry)
    ready = ready_gauge(registry)
    registry.open(host.metrics_directory, name)
    outbox = OutboxWriter(host.outbox, name, outbox_metrics)
    # After the outbox, whose lock ensures that an earlier process of this worker appends nothing more.
    table = DecisionCache(host.answered, host.outbox, worker, answered_metrics)
    overlay = None
    if overlay_metrics is not None:
        overlay = Overlay(host.overlay, host.engine, rows_max=ROWS_MAX, metrics=overlay_metrics)
    held_cards = None
    if host.shards is not None:
        held_cards = HeldCards(host.shards, host.engine.plan.entity_keys, entities)
    release = serving.active
    intake = RequestDecoder(host.engine.plan, host.rates, host.limits)
    scorer = PaymentScorer(
        engine=host.engine,
        intake=intake,
        models=ModelChain(release.bundles, metrics=model_metrics),
        policy=release.policy.policy,
        mirror=host.mirror,
        outbox=outbox,
        metrics=scoring_metrics,
        options=ScorerOptions(
            origins=release.origins,
            answered=table,
            stages=stages,
            exploration=None if host.exploration is None else host.exploration.open(),
            overlay=overlay,
            held_cards=held_cards,
        ),
    )
    info = ReleaseInfo(host.metrics_directory, name)
    share = RolloutShare(scorer, serving, orders_path(host.runtime, parent), models=model_metrics, info=info)
    batcher = MicroBatcher(
        scorer,
        intake=intake,
        settings=host.admission,
        stages=stages,
    )
    http = HttpServer(
        batcher,
        host.http,
        metrics=http_metrics,
        metrics_text=MetricsRenderer(host.metrics_directory).text,
        tokens=gate.tokens,
        metrics_need_token=host.auth.metrics_need_token,
    )
    caller_of = None if gate.tokens is None else gate.tokens.caller_of
    fields = host.engine.plan.fields
    grpc = GrpcServer(batcher, settings=host.grpc, metrics=grpc_metrics, caller_of=caller_of, fields=fields)
    stopped, retired = asyncio.Event(), asyncio.Event()

    def retire() -> None:
        retired.set()
        stopped.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    loop.add_signal_handler(RETIRE, retire)
    loop.add_signal_handler(signal.SIGHUP, share.look_at_once)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT, RETIRE))
    share.look_at_once()
    gate.refresh()
    scorer.open_mirror()
    mapped = [host.mirror.data_file, Path(host.answered.path), *([Path(host.overlay.path)] if overlay else ())]
    for file in mapped:
        map_pages(file)
    await _listen(http, grpc, gate, place)
    # All objects of now live until the end, so exclude them from every later garbage collection.
    gc.collect()
    gc.freeze()
    pauses.watch()
    _log.info("%s listens on %s", name, " ".join(gate.addresses(host)))
    steps = _steps(scorer, share, outbox, gate, parent, ready)
    watch = asyncio.create_task(WorkerWatch(steps, watch_failures, beat).run())
    watch.add_done_callback(lambda _: stopped.set())
    await stopped.wait()
    # Stop both at once, so that neither takes calls while the other finishes. The heart goes on beating.
    is_taken_over = retired.is_set()
    await asyncio.gather(http.stop(is_taken_over=is_taken_over), grpc.stop(is_taken_over=is_taken_over))
    watch.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watch
    ready.set(0)
    table.close()
    outbox.close()
    pauses.forget()
    info.close()
    registry.close()


async def _listen(http: Front, grpc: Front, gate: Endpoints, place: int) -> None:
    """Listen on every port."""
    for listener in gate.places.of(place, GRPC):
        await grpc.start(listener, gate.tls)
    # HTTP last: when /readyz can be asked, every other way to call the worker is open.
    for listener in gate.places.of(place, HTTP):
        await http.start(listener, gate.tls)


def _steps(
    scorer: PaymentScorer,
    share: RolloutShare,
    outbox: OutboxWriter,
    gate: Endpoints,
    parent: int,
    ready: Gauge,
) -> Mapping[str, Callable[[], object]]:
    """Returns the steps of a round of the watch. A mirror that is not there yet is no failure."""
    rounds = itertools.count()
    return {
        "mirror": lambda: scorer.open_mirror() or True,
        "release": share.look,
        "tokens": lambda: gate.tokens is None or gate.tokens.refresh(),
        "certificate": lambda: gate.tls is None or gate.tls.refresh(),
        "outbox": lambda: _look_after(outbox, parent, tries_disk=next(rounds) % _DISK_TRIED_EVERY == 0),
        "unshipped": outbox.note_unshipped,
        "ready": lambda: ready.set(not scorer.readiness()),
    }


def _look_after(outbox: OutboxWriter, parent: int, *, tries_disk: bool) -> None:
    """Try the outbox. Raises WorkerMustEnd if only another process can append, or the parent is gone."""
    if os.getppid() != parent:
        raise WorkerMustEnd("the parent is gone")
    if why := outbox.must_end():
        raise WorkerMustEnd(why)
    outbox.look(tries_disk=tries_disk)
