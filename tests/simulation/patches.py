"""Puts the simulated clock, files and producers in place of the real ones, in the modules that use them.

Production code knows nothing of it. A seam is the name of a module that another module of ours imports: `time`, `os`,
`Path`, `secrets`. What takes a clock or a client as an argument is handed the simulated one instead.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import pkgutil
import select as real_select
import sys
import threading
import time as real_time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import paywarden.scoring
import paywarden.streams.companion
import paywarden.streams.kafka
import paywarden.streams.profiles
from paywarden.scoring.engine import chunk_call as loop
from paywarden.scoring.engine.batching.batcher import Chunk
from paywarden.scoring.engine.chunk_frame import ChunkFrame
from paywarden.scoring.engine.records import RecordWriter
from paywarden.scoring.engine.scorer import PaymentScorer
from paywarden.scoring.engine.served_model import Served
from paywarden.scoring.http import http_front as front
from paywarden.scoring.idempotency.decision_cache import DecisionCache
from paywarden.scoring.server import supervisor
from paywarden.scoring.state.outbox import writer as outbox_writer
from paywarden.streams.companion import mirror_write
from paywarden.streams.kafka import producers
from paywarden.streams.profiles import events
from tests.simulation import files
from tests.simulation.cluster.broker import Broker
from tests.simulation.cluster.producers import SimulatedProducer
from tests.simulation.world import Actor, World

# Packages whose files and clock are simulated.
_DURABILITY = "paywarden.schemas.durability"
_FILE_ROOMS = ("paywarden.scoring.", "paywarden.streams.companion.", _DURABILITY)
_CLOCK_ROOMS = ("paywarden.scoring.", "paywarden.streams.", "paywarden.features.stores.", _DURABILITY)
# The shortest wait of an idle thread.
_IDLE_S = 0.25
_DECISION_CACHE_STEPS = ("claimed", "settle", "release")
# A companion may die before each of them.
_MIRROR_STEPS = ("begin_write", "put_all", "move_segment", "grow_index", "commit_write", "note_allocated")


class VirtualTime:
    """The module `time` on virtual time."""

    def __init__(self) -> None:
        self.world: World | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(real_time, name)

    def _world(self) -> World:
        assert self.world is not None
        return self.world

    def monotonic(self) -> float:
        return 1000.0 + self._world().now

    def perf_counter(self) -> float:
        return 1000.0 + self._world().now

    def monotonic_ns(self) -> int:
        return int(self.monotonic() * 1e9)

    def perf_counter_ns(self) -> int:
        return int(self.monotonic() * 1e9)

    def clock_gettime_ns(self, clock: int) -> int:
        assert clock == real_time.CLOCK_BOOTTIME
        return self.monotonic_ns()

    def time(self) -> float:
        return self._world().wall_s()

    def time_ns(self) -> int:
        return int(self._world().wall_s() * 1000) * 1_000_000

    def sleep(self, seconds: float) -> None:
        self._world().pause(seconds)


TIME = VirtualTime()
_CLOCKS: dict[Any, Any] = {
    real_time.monotonic: TIME.monotonic,
    real_time.perf_counter: TIME.perf_counter,
    real_time.time: TIME.time,
    real_time.sleep: TIME.sleep,
}


class _NoCollector:
    """The module `gc` for a worker: a collection would take longer than a history."""

    callbacks: list[Any] = []  # noqa: RUF012 - the module's name

    def collect(self) -> int:
        return 0

    def freeze(self) -> None: ...


class SimulatedSelect:
    """The module `select` for the supervisor: it wakes when a child has ended, as by SIGCHLD."""

    def __getattr__(self, name: str) -> Any:
        return getattr(real_select, name)

    def poll(self) -> SimulatedPoll:
        return SimulatedPoll()


class SimulatedPoll:
    """A wait for the supervisor's pipe."""

    def __init__(self) -> None:
        self._fds: list[int] = []

    def register(self, fd: int, _: int) -> None:
        self._fds.append(fd)

    def poll(self, wait_ms: float | None) -> list[tuple[int, int]]:
        world = files.files().world
        world.seam("poll")
        assert world.current is not None
        ended = world.current.life.ended_children
        if not ended:
            world.sleep(3600.0 if wait_ms is None else wait_ms / 1000)
        return [(self._fds[0], real_select.POLLIN)] if ended else []


class SimulatedThreading:
    """The module `threading`: threads are actors of their process, and waits are virtual."""

    def __getattr__(self, name: str) -> Any:
        return getattr(threading, name)

    def Thread(self, *, target: Callable[..., object], args: Sequence[Any] = (), **_: object) -> SimulatedThread:  # noqa: N802
        return SimulatedThread(target, args)

    def Event(self) -> SimulatedEvent:  # noqa: N802
        return SimulatedEvent()

    def Lock(self) -> SimulatedLock:  # noqa: N802
        return SimulatedLock()


class SimulatedThread:
    """A thread of the running process."""

    def __init__(self, target: Callable[..., object], arguments: Sequence[Any]) -> None:
        self._target, self._arguments = target, arguments
        self._actor: Actor | None = None

    @property
    def ident(self) -> int | None:
        return None if self._actor is None else 1

    def start(self) -> None:
        self._actor = files.files().world.start_thread(lambda: self._target(*self._arguments))

    def is_alive(self) -> bool:
        return self._actor is not None and not self._actor.has_ended

    def join(self, timeout: float | None = None) -> None:
        world = files.files().world
        deadline = world.now + (1e9 if timeout is None else timeout)
        while self.is_alive() and world.now < deadline:
            world.sleep(0.01)


class SimulatedEvent:
    """An event whose wait is virtual."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: list[Actor] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        for actor in self._waiting:
            files.files().world.wake(actor)

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        world = files.files().world
        world.seam("wait")
        if not self._is_set:
            assert world.current is not None
            self._waiting.append(world.current)
            # An idle thread turns every few milliseconds, which would cost the simulator most of its time.
            world.sleep(3600.0 if timeout is None else max(timeout, _IDLE_S))
            self._waiting.remove(world.current)
        return self._is_set


class SimulatedLock:
    """A lock between threads of one process."""

    def __init__(self) -> None:
        self._is_held = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        del timeout
        world = files.files().world
        while self._is_held:
            if not blocking:
                return False
            world.sleep(0.001)
        self._is_held = True
        return True

    def release(self) -> None:
        self._is_held = False

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def _import_all() -> list[ModuleType]:
    for package in (
        paywarden.scoring,
        paywarden.streams.companion,
        paywarden.streams.kafka,
        paywarden.streams.profiles,
    ):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(found.name)
    return [module for name, module in sorted(sys.modules.items()) if name.startswith("paywarden.")]


@contextmanager
def patched() -> Iterator[None]:
    """Patch the modules of this process until the block ends. It costs a second at the first time."""
    undo: list[Callable[[], object]] = []

    def put(owner: Any, name: str, value: Any) -> None:
        before = getattr(owner, name)
        setattr(owner, name, value)
        undo.append(lambda: setattr(owner, name, before))

    sim_os = files.SimulatedOs()
    for module in _import_all():
        name = module.__name__
        if name.startswith(_CLOCK_ROOMS) and getattr(module, "time", None) is real_time:
            put(module, "time", TIME)
        if name.startswith(_FILE_ROOMS):
            if getattr(module, "os", None) is sys.modules["os"]:
                put(module, "os", sim_os)
            if getattr(module, "Path", None) is Path:
                put(module, "Path", files.SimulatedPath)
            if getattr(module, "gc", None) is sys.modules["gc"]:
                put(module, "gc", _NoCollector())
            if getattr(module, "threading", None) is threading:
                put(module, "threading", SimulatedThreading())
            if getattr(module, "secrets", None) is sys.modules["secrets"]:
                put(module, "secrets", SimpleNamespace(token_hex=_token_hex))
        if name.startswith(_CLOCK_ROOMS):
            for function in _functions_of(module):
                _patch_defaults(function, put)
    durability = sys.modules[_DURABILITY]
    put(durability, "_BOOT_ID", files.SimulatedPath("/proc/sys/kernel/random/boot_id"))
    # The built-in function, which the module does not have as its own.
    vars(durability)["open"] = files.open_small
    undo.append(lambda: vars(durability).pop("open"))
    if hasattr(events, "LABEL_CHANGES_MAX"):
        # A bound that histories reach.
        put(events, "LABEL_CHANGES_MAX", 30)
    put(outbox_writer, "reserve", files.reserve)
    # Compiled code knows no virtual time: what a worker may meet before a look-up comes before the call that makes it.
    put(ChunkFrame, "look", _look)
    for step in _MIRROR_STEPS:
        put(mirror_write, step, _as_seam(getattr(mirror_write, step), step))
    put(PaymentScorer, "_fill", _fill)
    put(producers, "make_producer", _make_producer)
    put(front, "accept", _accept)
    put(supervisor, "select", SimulatedSelect())
    for step in _DECISION_CACHE_STEPS:
        put(DecisionCache, step, _as_seam(getattr(DecisionCache, step), step))
    levels = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(levels)
        for action in reversed(undo):
            action()


def _functions_of(module: ModuleType) -> Iterator[FunctionType]:
    for value in list(vars(module).values()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if isinstance(value, FunctionType):
            yield value
        elif isinstance(value, type):
            yield from (member for member in list(vars(value).values()) if isinstance(member, FunctionType))


def _patch_defaults(function: FunctionType, put: Callable[[Any, str, Any], None]) -> None:
    """Replace the real clocks among the default values of a function's parameters."""
    defaults, keywords = function.__defaults__ or (), function.__kwdefaults__ or {}
    if any(value in _CLOCKS for value in defaults if callable(value)):
        put(function, "__defaults__", tuple(_CLOCKS.get(v, v) if callable(v) else v for v in defaults))
    if any(value in _CLOCKS for value in keywords.values() if callable(value)):
        put(function, "__kwdefaults__", {k: _CLOCKS.get(v, v) if callable(v) else v for k, v in keywords.items()})


def _token_hex(size: int) -> str:
    return files.files().world.random.randbytes(size).hex()


class Cluster:
    """The broker that producers made by `Sender` belong to."""

    broker: Broker | None = None


def _make_producer(*_: object, only_failures: bool = False, **__: object) -> Any:
    broker = Cluster.broker
    assert broker is not None
    actor = broker.world.current
    assert actor is not None
    return SimulatedProducer(broker, actor, only_failures=only_failures)


async def _accept(factory: Callable[[], Any], _: object, **__: object) -> Any:
    actor = files.files().world.current
    assert actor is not None
    assert actor.accept is not None
    return actor.accept(factory)


_real_look, _real_fill = ChunkFrame.look, PaymentScorer._fill


def _look(self: ChunkFrame, serving: Served, writer: RecordWriter) -> None:
    """End the compiled call before the look-up, where a worker may die."""
    _real_look(self, serving, writer)
    self._frames[loop.LOOK_UP] = 0


def _fill(self: PaymentScorer, chunk: Chunk, status: int) -> int:
    own = files.files()
    own.seam("look up")
    actor = own.world.current
    if actor is not None and actor.name in own.dies_reading and not actor.is_dead:
        own.dies_reading.discard(actor.name)
        own.world.die()
    frame = self._frame
    if frame._mirror_frames is not None:
        frame._frames[loop.LOOK_UP] = frame._mirror_frames[0].address
    return _real_fill(self, chunk, status)


def _as_seam(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    def seam(self: Any, *arguments: Any) -> Any:
        files.files().world.seam(name)
        return method(self, *arguments)

    return seam


@contextmanager
def running(world: World, broker: Broker, root: Path) -> Iterator[files.Files]:
    """Give the shims this world, broker and folder."""
    TIME.world, Cluster.broker = world, broker
    with files.using(files.Files(world, root)) as own:
        try:
            yield own
        finally:
            with contextlib.suppress(AttributeError):
                TIME.world = Cluster.broker = None
