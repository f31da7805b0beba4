"""Runs one scoring worker, from the fork until it has stopped.

    HttpServer ─┐
                ├─► MicroBatcher ─► PaymentScorer ─► mirror, models, policy, outbox
    GrpcServer ─┘

1. The worker opens its metrics and its outbox. The outbox's lock ensures that no earlier process of this worker
   appends any more. Only then does it open the decision cache, which ends the claims of that process.
2. It listens: gRPC first, HTTP last, because /readyz is on HTTP.
3. Twice a second its watch (watch.py) looks for a new mirror, tokens, certificates and another bundle or policy
   (worker_swap.py), mends the outbox, and checks that its parent lives. Its heart beats meanwhile.
4. On SIGTERM or SIGINT both fronts take no more calls, answer those in flight, and close.
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import uvloop

from paywarden.models.policy.policy import flags_of
from paywarden.schemas.errors import PaywardenError
from paywarden.scoring.engine.batching.batcher import MicroBatcher
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.scorer import PaymentScorer, ScorerOptions
from paywarden.scoring.engine.vectors import ROWS_MAX
from paywarden.scoring.grpc.front import GrpcServer
from paywarden.scoring.grpc.metrics import GrpcMetrics
from paywarden.scoring.http.front import HttpServer
from paywarden.scoring.idempotency.decision_cache import DecisionCache, DecisionCacheMetrics, worker_name
from paywarden.scoring.metrics.exposition import SharedRendering
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.release import ReleaseInfo, SwapMetrics
from paywarden.scoring.metrics.shared_metrics import Gauge, MetricsRegistry
from paywarden.scoring.metrics.worker import GarbagePauses, HttpMetrics, ScoringMetrics, StageTimes, ready_gauge
from paywarden.scoring.net.listeners import open_listener
from paywarden.scoring.net.tls import Tls
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.server.context import Endpoints, ServerContext
from paywarden.scoring.server.mapped_files import map_pages
from paywarden.scoring.server.takeover import GRPC, HTTP, Control
from paywarden.scoring.server.watch import InThread, WorkerMustEnd, WorkerWatch, declare_failures
from paywarden.scoring.server.worker_swap import ReleaseSwitch
from paywarden.scoring.state.held_cards import HeldCards
from paywarden.scoring.state.outbox import OutboxMetrics, OutboxWriter
from paywarden.scoring.state.overlay import Overlay, OverlayMetrics

_log = logging.getLogger(__name__)

# The exit status of a worker that a bug ended.
BUG = 70
# An idle worker tries its disk in one of this many rounds, every five seconds: the next payment may have to wait for
# it.
_DISK_TRIED_EVERY = 10
# The host has no descriptor, memory or disk left: that is no bug, and ends when there is room.
_WANT_OF_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT})
# How long a worker that stops waits for a step of its watch in a thread: a disk may hang.
_THREAD_STOP_S = 1.0


class Front(Protocol):
    """The server of one protocol. It submits calls to the worker's `MicroBatcher`."""

    async def start(self, listener: socket.socket, tls: Tls | None = None) -> None:
        """Accept connections from `listener`, which now belongs to this front. Call it once for each listener."""

    async def stop(self, *, is_taken_over: bool = False) -> None:
        """Take no more calls, answer those in flight, close. It ends within a time limit.

        `is_taken_over`: another process accepts from the same listeners.
        """


def worker_main(
    host: ServerContext, worker: int, gate: Endpoints, parent: int, beat: Callable[[], None], place: int = 0
) -> int:
    """Run a worker that the process `parent` has forked. Returns its exit code.

    `place` is its number among the workers of this parent, from 0.

    The worker calls `beat` as long as its event loop turns.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_work(host, worker, gate, parent, beat, place))
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
    host: ServerContext, worker: int, gate: Endpoints, parent: int, beat: Callable[[], None], place: int = 0
) -> None:
    name, registry = worker_name(worker), MetricsRegistry()
    http_metrics, grpc_metrics = HttpMetrics.declare(registry), GrpcMetrics.declare(registry)
    pauses, stages = GarbagePauses(registry), StageTimes(registry)
    entities = host.engine.plan.entity_names
    scoring_metrics = ScoringMetrics.declare(registry, flags=flags_of(entities), entities=entities)
    model_metrics, swap_metrics = ModelMetrics.declare(registry), SwapMetrics.declare(registry)
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
    intake = RequestDecoder(host.engine.plan, host.rates, host.limits)
    scorer = PaymentScorer(
        engine=host.engine,
        intake=intake,
        models=ModelChain(host.bundles, metrics=model_metrics, settings=host.chain),
        policy=host.policy,
        mirror=host.mirror,
        outbox=outbox,
        metrics=scoring_metrics,
        options=ScorerOptions(
            origins=host.release.origins,
            answered=table,
            stages=stages,
            exploration=None if host.exploration is None else host.exploration.open(),
            overlay=overlay,
            held_cards=held_cards,
        ),
    )
    info = ReleaseInfo(host.metrics_directory, name)
    switch = ReleaseSwitch(scorer, host, parent, models=model_metrics, metrics=swap_metrics, info=info)
    switch.take_up_at_start()
    batcher = MicroBatcher(
        scorer,
        intake=intake,
        settings=host.admission,
        stages=stages,
        busy_poll=host.busy_poll,
    )
    http = HttpServer(
        batcher,
        host.http,
        metrics=http_metrics,
        metrics_text=SharedRendering(host.metrics_directory, gate.demand.write_fd).text,
        tokens=gate.tokens,
        metrics_need_token=host.auth.metrics_need_token,
    )
    caller_of = None if gate.tokens is None else gate.tokens.caller_of
    fields = host.engine.plan.fields
    grpc = GrpcServer(batcher, settings=host.grpc, metrics=grpc_metrics, caller_of=caller_of, fields=fields)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    loop.add_signal_handler(signal.SIGHUP, switch.look)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    gate.refresh()
    control = Control(gate.controls[place], stopped.set) if gate.controls else None
    scorer.open_mirror()
    mapped = [host.mirror.data_file, Path(host.answered.path), *([Path(host.overlay.path)] if overlay else ())]
    for file in mapped:
        map_pages(file)
    await _listen(http, grpc, host, gate, _inherited(gate, place), control)
    if control is not None:
        loop.add_reader(control.file, control.turn)
    # All objects of now live until the end, so exclude them from every later garbage collection.
    gc.collect()
    gc.freeze()
    pauses.watch()
    _log.info("%s listens on %s", name, " ".join(gate.addresses(host)))
    unshipped = InThread(outbox.note_unshipped)
    steps = _steps(scorer, switch, outbox, unshipped, gate, parent, ready)
    watch = asyncio.create_task(WorkerWatch(steps, watch_failures, beat).run())
    watch.add_done_callback(lambda _: stopped.set())
    await stopped.wait()
    # Stop both at once, so that neither takes calls while the other finishes. The heart goes on beating.
    if control is not None:
        control.turn()
    is_taken_over = control is not None and control.is_taken_over
    await asyncio.gather(http.stop(is_taken_over=is_taken_over), grpc.stop(is_taken_over=is_taken_over))
    watch.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watch
    unshipped.stop(_THREAD_STOP_S)
    ready.set(0)
    table.close()
    outbox.close()
    pauses.forget()
    info.close()
    registry.close()


async def _listen(
    http: Front,
    grpc: Front,
    host: ServerContext,
    gate: Endpoints,
    inherited: Mapping[str, Sequence[socket.socket]],
    control: Control | None,
) -> None:
    """Listen on every port and socket. `inherited`: listeners of an earlier host, by kind, in place of own ones."""

    async def start(front: Front, kind: str, address: str, port: int, backlog: int) -> None:
        for listener in inherited.get(kind) or [open_listener(address, port, backlog=backlog)]:
            if control is not None:
                control.add(kind, listener)
            await front.start(listener, gate.tls)

    if gate.grpc_port is not None:
        await start(grpc, GRPC, host.grpc.host, gate.grpc_port, host.grpc.backlog)
    if gate.grpc_unix is not None:
        await grpc.start(gate.grpc_unix)
    # HTTP last: when /readyz can be asked, every other way to call the worker is open.
    await start(http, HTTP, host.http.host, gate.http_port, host.http.backlog)
    if gate.http_unix is not None:
        await http.start(gate.http_unix)


def _inherited(gate: Endpoints, place: int) -> dict[str, list[socket.socket]]:
    """Returns this worker's share of the listeners that an earlier host has handed over, and closes all others.

    Otherwise a listener would go on taking connections when its own worker has died. A worker that is started again
    has no share: the parent has closed them by then.
    """
    if gate.taken is None:
        return {}
    count = len(gate.controls)
    shares: dict[str, list[socket.socket]] = {}
    for kind in (HTTP, GRPC):
        for number, listener in enumerate(gate.taken.sockets.get(kind, ())):
            if listener.fileno() < 0:
                continue
            if number % count == place:
                shares.setdefault(kind, []).append(listener)
            else:
                listener.close()
    return shares


def _steps(
    scorer: PaymentScorer,
    switch: ReleaseSwitch,
    outbox: OutboxWriter,
    unshipped: InThread,
    gate: Endpoints,
    parent: int,
    ready: Gauge,
) -> Mapping[str, Callable[[], object]]:
    """Returns the steps of a round of the watch. A mirror that is not there yet is no failure."""
    rounds = itertools.count()
    return {
        "mirror": lambda: scorer.open_mirror() or True,
        "release": switch.look,
        "tokens": lambda: gate.tokens is None or gate.tokens.refresh(),
        "certificate": lambda: gate.tls is None or gate.tls.refresh(),
        "outbox": lambda: _look_after(outbox, parent, tries_disk=next(rounds) % _DISK_TRIED_EVERY == 0),
        "unshipped": unshipped,
        "ready": lambda: ready.set(not scorer.readiness()),
    }


def _look_after(outbox: OutboxWriter, parent: int, *, tries_disk: bool) -> None:
    """Mend the outbox. Raises WorkerMustEnd if its files are gone, or the parent is gone and cannot say so."""
    if os.getppid() != parent:
        raise WorkerMustEnd("the parent is gone")
    if outbox.is_deleted():
        raise WorkerMustEnd("outbox: its files were deleted")
    outbox.look(tries_disk=tries_disk)
