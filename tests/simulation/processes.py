"""The processes of the simulated deployment: each runs the real code, with simulated things around it.

    scoring host   worker-0, worker-1: `scoring/server/worker.py` whole, on an event loop of virtual time
                   companion:          `Companion.run`
    stream hosts   stream-0, stream-1: `Pipeline.run`

A supervisor starts a process again a moment after it has ended, as the real ones do.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import cache, partial
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RateTable, load_rates
from paywarden.features.stores.memory import MemoryStore
from paywarden.features.stores.profile_sets import LiveSet
from paywarden.models.policy.policy import Policy, PolicySettings
from paywarden.models.policy.prepared_policy import PreparedPolicy
from paywarden.schemas.avro import LocalSchemaIds
from paywarden.scoring.engine import chunk_frame
from paywarden.scoring.engine.batching.batcher import AdmissionSettings
from paywarden.scoring.grpc.grpc_settings import GrpcSettings
from paywarden.scoring.http.http_settings import HttpSettings
from paywarden.scoring.idempotency import decision_cache
from paywarden.scoring.idempotency.decision_cache import DecisionCacheSettings
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.net.tls import TlsSettings
from paywarden.scoring.net.tokens import AuthSettings
from paywarden.scoring.requests import fast_requests
from paywarden.scoring.requests.validation import RequestLimits
from paywarden.scoring.server import worker as scoring_worker
from paywarden.scoring.server.context import Endpoints, ServerContext
from paywarden.scoring.server.deployment.releases import (
    Release,
    ReleaseOrders,
    Serving,
    orders_path,
    release_of,
)
from paywarden.scoring.server.places import Places
from paywarden.scoring.server.supervisor import HostParts, Supervisor, SupervisorMetrics, Worker
from paywarden.scoring.server.takeover import HTTP
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.scoring.state.outbox import OutboxSettings
from paywarden.streams.companion.companion import Companion, CompanionSettings, FillSource, HostFiles
from paywarden.streams.decision_index.database import DuckDbDatabase
from paywarden.streams.decision_index.filler import TOPICS as INDEX_TOPICS
from paywarden.streams.decision_index.filler import IndexFiller
from paywarden.streams.decision_index.index import DecisionIndex
from paywarden.streams.decision_index.reviews import ReviewQueue, ReviewRules
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.profiles.pipeline import Pipeline
from paywarden.streams.profiles.stream_settings import PipelineOptions, PipelineTiming, StreamSettings, stream_metrics
from tests.simulation.cluster.broker import Broker
from tests.simulation.cluster.clients import clients_of
from tests.simulation.files import Files
from tests.simulation.store import SimulatedStore, StoreState
from tests.simulation.world import Actor, Died, Failed, World

WORKERS, STREAMS = 2, 2
ENTITIES = ("card", "merchant", "device")
TOPICS = {
    "payments": 2,
    "outcomes": 1,
    "repartition-card": 2,
    "repartition-merchant": 2,
    "repartition-device": 1,
    "profiles": 2,
    "decisions": 2,
    "outbox-cursors": 1,
    "dead-letters": 1,
}
GROUP = "paywarden-stream"
BATCH_MAX = 8
# The group takes a stream worker for dead after this. Kafka allows no less.
SESSION_S = 6
# A segment takes some six decisions, so that segments end and begin all the time.
SEGMENT_BYTES, OUTBOX_BYTES = 4096, 64 * 1024
# Real waits are shorter. An idle process turns this often, and each turn costs the simulator time.
_IDLE_MS = 1000
_RESTART_S = 0.3
# Above this, a process that always fails at its start is taken for one that never comes up.
SUPERVISOR, INDEX = "supervisor", "index"
# Of every rollout.
SALT = "000102030405060708090a0b0c0d0e0f"
# A worker that has not turned for so long is replaced.
HANG_S = 4.0
# A worker that was well is started again after 0.1 s. Calls of the simulator take their time.
_START_AGAIN_S = 1.5


class ConstantModel:
    """A model that scores by the first features. It stands for a trained one: what it says does not matter here."""

    native = False

    def margins(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(np.nansum(vectors[:, :4].astype(np.float64), axis=1) % 5.0 - 4.0)


class _NoReasons:
    def reasons(self, vector: NDArray[np.float32], count_max: int) -> list[str]:
        del vector, count_max
        return []


@dataclass(frozen=True)
class Parts:
    """Parts that all histories of a process share, because they are slow to make and never change."""

    engine: FeatureEngine
    rates: RateTable
    ids: LocalSchemaIds
    # The one that a host starts with, and another one, by key.
    release: Release
    releases: dict[str, Release]


@cache
def parts() -> Parts:
    engine = FeatureEngine()
    engine.warm_up()
    decision_cache.warm_up()
    fast_requests.warm_up()
    chunk_frame.warm_up()
    policy = Policy(PolicySettings(), review_at=0.3, decline_at=0.6)
    releases = [
        release_of((_bundle(version),), (digest * 32,), PreparedPolicy.of(policy))
        for version, digest in (("sim", "ab"), ("other", "cd"))
    ]
    return Parts(engine, load_rates(), LocalSchemaIds(), releases[0], {one.key: one for one in releases})


def _bundle(version: str) -> Any:
    manifest = SimpleNamespace(model_version=version, calibration_slope=1.0, calibration_intercept=0.0)
    return SimpleNamespace(manifest=manifest, predictor=ConstantModel(), explainer=_NoReasons(), close=lambda: None)


def _no_endpoints() -> Endpoints:
    """Returns endpoints without ports: `Listening` stands for the HTTP port."""
    make: Any = Endpoints
    none = dict.fromkeys(field.name for field in fields(Endpoints))
    places = SimpleNamespace(of=lambda _, kind: [None] if kind == HTTP else [])
    known = {"http_port": 0, "admin_port": 0, "places": places}
    return cast(Endpoints, make(**none | {name: value for name, value in known.items() if name in none}))


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop on virtual time, without sockets."""

    def __init__(self, actor: Actor) -> None:
        super().__init__()
        self._actor, self._world = actor, actor.world
        self._selector: Any = self

    def time(self) -> float:
        return self._world.now

    def select(self, timeout: float | None) -> list[Any]:
        """Wait for what others schedule here, or for the next timer."""
        if self._actor.is_dead:
            raise Died
        if timeout is None:
            self._world.wait()
        elif timeout > 0:
            self._world.sleep(timeout)
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        del event_list

    def _write_to_self(self) -> None:
        self._world.wake(self._actor)

    def add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:  # type: ignore[override]
        """Processes here are killed, not asked to stop. A supervisor's SIGHUP arrives."""
        if sig == signal.SIGHUP:
            self._actor.life.signals[sig] = lambda: self.call_soon_threadsafe(callback, *args)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and not self._actor.is_dead and self._world.failure is None and not self._actor.has_ended:
            raise error


class Transport(asyncio.Transport):
    """The worker's end of a connection. Its bytes arrive at the caller a moment later."""

    def __init__(self, listening: Listening, received: Callable[[bytes], object], closed: Callable[[], object]) -> None:
        super().__init__()
        self._listening, self._received, self._closed = listening, received, closed
        self._world = listening.actor.world
        self._is_closing = False

    def write(self, data: Any) -> None:
        self._world.seam(f"answer {len(data)}")
        content = bytes(data)
        self._world.after(0.0005, lambda: self._received(content))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._listening.drop(self)
            self._world.after(0.0005, self._closed)

    def abort(self) -> None:
        self.close()

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Listening:
    """A worker's open port."""

    def __init__(self, actor: Actor, loop: VirtualLoop, factory: Callable[[], Any]) -> None:
        self.actor, self._loop, self._factory = actor, loop, factory
        self._open: dict[Transport, Any] = {}
        actor.life.at_end.append(self._reset)

    def connect(self, received: Callable[[bytes], object], closed: Callable[[], object]) -> Callable[[bytes], object]:
        """Open a connection; returns the function that sends bytes on it."""
        transport = Transport(self, received, closed)
        waiting: list[bytes] = []

        def accept() -> None:
            connection = self._factory()
            self._open[transport] = connection
            connection.connection_made(transport)
            for data in waiting:
                connection.data_received(data)

        def send(data: bytes) -> None:
            if transport in self._open:
                self._loop.call_soon_threadsafe(self._give, transport, data)
            else:
                waiting.append(data)

        self._loop.call_soon_threadsafe(accept)
        return send

    def _give(self, transport: Transport, data: bytes) -> None:
        connection = self._open.get(transport)
        if connection is not None:
            connection.data_received(data)

    def drop(self, transport: Transport) -> None:
        connection = self._open.pop(transport, None)
        if connection is not None:
            self._loop.call_soon_threadsafe(connection.connection_lost, None)

    def _reset(self) -> None:
        """The process has ended: the kernel resets its connections."""
        for transport in list(self._open):
            transport._is_closing = True
            self.actor.world.after(0.0005, transport._closed)
        self._open.clear()

    @property
    def connection_count(self) -> int:
        return len(self._open)


class StopEvent(Event):
    """An event to stop by, whose wait is virtual."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def wait(self, timeout: float | None = None) -> bool:
        self._world.seam("wait")
        if not self.is_set():
            self._world.sleep(3600.0 if timeout is None else timeout)
        return self.is_set()


@dataclass
class Process:
    """A process that is started again whenever it ends."""

    name: str
    machine: str
    work: Callable[[Actor], object]
    actor: Actor | None = None
    starts: int = 0
    outcomes: list[str] = field(default_factory=list)
    # The reason why it must not be started again: an operator has to act.
    is_given_up: bool = False

    @property
    def is_alive(self) -> bool:
        return self.actor is not None and not self.actor.is_over


class More(NamedTuple):
    """Parts that only some histories have: the host's own supervisor, an index of decisions."""

    is_supervised: bool = False
    has_index: bool = False


class Deployment:
    """The whole system in one world."""

    def __init__(
        self,
        world: World,
        broker: Broker,
        own: Files,
        root: Path,
        *,
        fsync: str = "never",
        more: More,
    ) -> None:
        self.is_supervised = more.is_supervised
        # Until then forks fail; until then the worker of a name dies at each start.
        self.fork_fails_until = 0.0
        self.crashes_until: dict[str, float] = {}
        # When a worker ended, and whether it had run long enough to be started again at once.
        self.ends: dict[str, tuple[float, bool]] = {}
        # The release that every worker should serve.
        self.orders = ReleaseOrders(parts().release.key)
        # The generation of each worker that was started.
        self.servings: dict[str, Serving] = {}
        self.world, self.broker, self.files, self.root = world, broker, own, root
        self.kafka = KafkaSettings()
        for name, count in TOPICS.items():
            broker.create(name, count)
        self.store_state = StoreState()
        self.store = MemoryStore(clock=lambda: world.wall_s("store"))
        self.mirror = MirrorSettings(path=str(root / "mirror"), size_mb=8)
        self.outbox = OutboxSettings(
            directory=str(root / "outbox"),
            segment_bytes=SEGMENT_BYTES,
            total_bytes_max=OUTBOX_BYTES,
            fsync=fsync,
        )
        self.answered = DecisionCacheSettings(path=str(root / "answered"), window_s=600, payments_max=2048)
        self.listening: dict[str, Listening] = {}
        self.companion: Companion | None = None
        self.pipelines: dict[str, Pipeline] = {}
        self.processes: dict[str, Process] = {}
        for number in range(WORKERS):
            self._add(f"worker-{number}", "host", partial(self._score, number))
        if more.is_supervised:
            self._add(SUPERVISOR, "host", self._supervise)
        self._add("companion", "host", self._accompany)
        for number in range(STREAMS):
            self._add(f"stream-{number}", f"stream-host-{number}", self._stream)
        self.index: DecisionIndex | None = None
        if more.has_index:
            for name in INDEX_TOPICS:
                if name not in broker.topics:
                    broker.create(name, 1)
            self.index = DecisionIndex(DuckDbDatabase(root / "index.duckdb", threads=1))
            self._add(INDEX, "index-host", self._follow_decisions)
        self._metrics = stream_metrics(self._stream_settings(), ENTITIES, CollectorRegistry())

    def _add(self, name: str, machine: str, work: Callable[[Actor], object]) -> None:
        self.processes[name] = Process(name, machine, work)

    def start(self) -> None:
        decision_cache.prepare(self.answered)
        for process in self.processes.values():
            if not (self.is_supervised and process.name.startswith("worker-")):
                self.begin(process)

    def begin(self, process: Process) -> None:
        """Start a process."""
        process.starts += 1
        process.actor = self.world.start(process.name, process.machine, process.work)
        process.actor.life.at_end.append(lambda: self._ended(process))

    def _ended(self, process: Process) -> None:
        def again() -> None:
            assert process.actor is not None
            process.outcomes.append(process.actor.outcome)
            if not process.is_given_up:
                self.begin(process)

        # A restart takes longer when it keeps failing.
        pause_s = _RESTART_S * (1 + min(8, process.starts // 4))
        self.world.after(pause_s * (0.5 + self.world.random.random()), again)

    def alive(self, prefix: str = "") -> list[Process]:
        return [p for name, p in self.processes.items() if name.startswith(prefix) and p.is_alive]

    def close(self) -> None:
        """Close what is outside of the simulated files."""
        if self.index is not None:
            self.index.database.close()

    def _follow_decisions(self, actor: Actor) -> None:
        assert self.index is not None
        filler = IndexFiller(
            self.index,
            ReviewQueue(self.index.database, ReviewRules()),
            clients_of(self.broker, actor, self.kafka),
            parts().ids,
            now_ms=self.world.wall_ms,
        )
        filler.run(StopEvent(self.world), retry_s=0.5)

    # The scoring host

    def _supervise(self, actor: Actor) -> None:
        for name, process in self.processes.items():
            # systemd and containers leave no process of a service alone: one that stands still would hold its files.
            life = None if process.actor is None else process.actor.life
            if name.startswith("worker-") and life is not None and life.frozen_until > self.world.now + HANG_S:
                self.world.kill(life)
        del actor
        # The first act of its deployer.
        self.order(self.orders)
        HostSupervisor(self).run()

    def order(self, orders: ReleaseOrders) -> None:
        """Order workers to serve releases, as a supervisor's deployer does.

        A generation that cannot serve them ends at once: here a new one shares no sockets with it.
        """
        self.orders = orders
        pid = 1
        if self.is_supervised:
            process = self.processes[SUPERVISOR]
            if not process.is_alive:
                return
            assert process.actor is not None
            pid = process.actor.life.pid
        path = orders_path(self.root / "serve", pid)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_text(json.dumps(asdict(orders)), encoding="utf-8")
        for process in self.alive("worker-"):
            if process.name in self.servings and not self.servings[process.name].covers(orders):
                assert process.actor is not None
                self.world.kill(process.actor.life)

    def forked(self, number: int, work: Callable[[], object]) -> int:
        """Start the process of a worker for the supervisor, which is running. Returns its pid. Raises OSError."""
        world, process = self.world, self.processes[f"worker-{number}"]
        world.seam("fork")
        if world.now < self.fork_fails_until:
            world.faults["failed_fork"] += 1
            # Nobody knows how long it would have taken otherwise.
            self.ends.pop(process.name, None)
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self._check_start(process.name)
        process.starts += 1
        process.actor = actor = world.fork(process.name, lambda _: work())
        if world.now < self.crashes_until.get(process.name, 0.0):
            actor.life.fuse = world.random.randrange(30)

        def ended() -> None:
            ran_s = world.now - actor.life.started_at
            process.outcomes.append(actor.outcome or "killed")
            # One that outlives its supervisor is nothing to the next one, which may have waited long before it ended.
            if actor.life.parent is not None and not actor.life.parent.is_dead:
                self.ends[process.name] = world.now, ran_s > 1.0

        actor.life.at_end.insert(0, ended)
        return actor.life.pid

    def _check_start(self, name: str) -> None:
        """The history fails if a worker is started late: one that crashes again and again must not hold up another."""
        supervisor = self.processes[SUPERVISOR].actor
        assert supervisor is not None
        ended_at, was_well = self.ends.get(name, (0.0, False))
        if not was_well or supervisor.life.started_at >= ended_at or supervisor.life.frozen_since > ended_at:
            return
        gap_s = self.world.now - ended_at
        if gap_s > _START_AGAIN_S and self.world.failure is None:
            text = f"{name} ended at {ended_at:.2f} s and is started again {gap_s:.2f} s later"
            self.world.failure = Failed("restart_late", text)

    def _score(self, number: int, actor: Actor) -> None:
        self.score(number, actor, 1, lambda: None)

    def score(self, number: int, actor: Actor, parent: int, beat: Callable[[], None]) -> None:
        """Run a worker."""
        shared = parts()
        context = ServerContext(
            engine=shared.engine,
            rates=shared.rates,
            release=shared.release,
            http=HttpSettings(),
            grpc=GrpcSettings(enabled=False),
            admission=AdmissionSettings(deadline_ms=200, wait_ms_max=100),
            auth=AuthSettings(),
            tls=TlsSettings(),
            limits=RequestLimits(),
            mirror=self.mirror,
            outbox=self.outbox,
            answered=self.answered,
            metrics_directory=self.root / "metrics",
            catalogue=CATALOGUE,
            # The deployer, which this host has not, would ask them.
            releases=cast(Any, None),
            runtime=self.root / "serve",
        )
        loop = VirtualLoop(actor)

        actor.accept = lambda factory: self._listen(actor, loop, factory)
        endpoints = _no_endpoints()
        known = {key: shared.releases[key] for key in self.orders.keys}
        serving = self.servings[f"worker-{number}"] = Serving(self.orders, known)
        actor.life.at_end.append(lambda: self.listening.pop(actor.name, None))
        loop.run_until_complete(scoring_worker._work(context, number, endpoints, parent, beat, 0, serving))

    def _listen(self, actor: Actor, loop: VirtualLoop, factory: Callable[[], Any]) -> Any:
        self.listening[actor.name] = Listening(actor, loop, factory)
        return SimpleNamespace(close=lambda: self.listening.pop(actor.name, None))

    def _accompany(self, actor: Actor) -> None:
        self.companion = Companion(
            clients=clients_of(self.broker, actor, self.kafka),
            settings=CompanionSettings(batch_wait_ms=_IDLE_MS, stall_timeout_s=6),
            files=HostFiles(self.mirror, self.outbox, outbox_keep_s=self.answered.keep_s),
            ids=parts().ids,
            entities=ENTITIES,
            fill=FillSource(look=lambda: LiveSet("", 0, None), open_store=lambda _: self._view()),
        )
        self.companion.run(StopEvent(self.world))

    def _view(self) -> Any:
        return SimulatedStore(self.world, self.store, self.store_state)

    # The stream

    def _stream_settings(self) -> StreamSettings:
        return StreamSettings(
            batch_max=BATCH_MAX,
            batch_wait_ms=_IDLE_MS,
            # At rest the claims that write the mirror come half as often.
            progress_every_ms=1000,
            session_timeout_ms=1000 * SESSION_S,
            # Long enough that what is wrong meanwhile shows.
            stall_timeout_s=20,
        )

    def _stream(self, actor: Actor) -> None:
        shared = parts()
        pipeline = Pipeline(
            clients=clients_of(self.broker, actor, self.kafka),
            settings=self._stream_settings(),
            store=self._view(),
            engine=shared.engine,
            rates=shared.rates,
            ids=shared.ids,
            metrics=self._metrics,
            options=PipelineOptions(timing=PipelineTiming(ask_committed_every_s=0.2)),
        )
        self.pipelines[actor.name] = pipeline
        pipeline.run(StopEvent(self.world))


class HostSupervisor(Supervisor):
    """The real supervisor, whose forks are threads of the simulator."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._starting = 0
        super().__init__(
            WORKERS,
            HostParts(self._run_worker, Places(WORKERS, {})),
            stop_s=5.0,
            hang_timeout_s=HANG_S,
            metrics=SupervisorMetrics.declare(MetricsRegistry()),
            serving=Serving.of(parts().release),
        )

    def _start(self, worker: Any) -> None:
        self._starting = worker.number
        super()._start(worker)

    def fork_apart(self, work: Callable[[], int]) -> int:
        return self._deployment.forked(self._starting, work)

    def _run_worker(self, worker: Worker, beat: Callable[[], None]) -> int:
        actor = self._deployment.world.current
        assert actor is not None
        assert actor.life.parent is not None
        self._deployment.score(worker.number, actor, actor.life.parent.pid, beat)
        return 0


def group_lag(broker: Broker) -> dict[str, int]:
    """Returns by topic how many records the stream has not committed."""
    committed = broker.group(GROUP).committed
    lag: dict[str, int] = {}
    for topic in ("payments", "outcomes", *(f"repartition-{entity}" for entity in ENTITIES)):
        for number, log in enumerate(broker.topics[topic].logs):
            behind = log.end - committed.get((topic, number), 0)
            lag[topic] = lag.get(topic, 0) + max(0, behind)
    return lag


def index_lag(deployment: Deployment) -> bool:
    """Returns whether the index, if there is one, lacks records that a reader can see."""
    if deployment.index is None:
        return False
    for name in INDEX_TOPICS:
        known = deployment.index.sources(name)
        for number, log in enumerate(deployment.broker.topics[name].logs):
            seen = [offset for offset, entry in enumerate(log.entries) if entry.is_visible]
            next_offset = known[number].next_offset if number in known else 0
            if seen and next_offset <= seen[-1]:
                return True
    return False
