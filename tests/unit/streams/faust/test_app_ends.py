"""The app ends after any error while it starts, runs or stops: a test raises one in every await, one by one.

An event loop runs a task from one await to the next. `Faults` counts these steps in all tasks of the app, and throws an
error into one of them. A run for each step, and each kind of error, leaves no await out.
"""

from __future__ import annotations

import asyncio
import collections.abc
import gc
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any, cast

import pytest

from paywarden.schemas.errors import TemporaryFailure
from paywarden.streams.faust import app as app_module
from paywarden.streams.profiles.settings import StreamSettings
from tests.patience import PATIENCE_S
from tests.unit.streams.faust.test_app import World

# A step of closing something that was hit leaves it open: the end of the process closes it.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning"
)
ERRORS = [asyncio.CancelledError, RuntimeError]
# The Faust of a test has nothing to leave, and what hangs in it is not waited for.
STOP_S = 0.3


class Faults:
    """Throws `error` into the step number `at` of those after `armed` is set."""

    def __init__(self, error: type[BaseException], at: int) -> None:
        self._error, self._at = error, at
        self.armed = False
        self.steps = 0
        self.hit: str | None = None

    def task(
        self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        """A task factory."""
        return asyncio.Task(_Steps(self, work), loop=loop, **options)

    def is_due(self, work: Coroutine[Any, Any, Any]) -> bool:
        """Whether this step fails."""
        self.steps += self.armed
        if not self.armed or self.steps != self._at:
            return False
        self.hit = getattr(work, "__qualname__", repr(work))
        return True

    def thrown(self) -> BaseException:
        """The error."""
        return self._error("injected")


class _Steps(collections.abc.Coroutine[Any, Any, Any]):
    """A coroutine whose steps are counted."""

    def __init__(self, faults: Faults, work: Coroutine[Any, Any, Any]) -> None:
        self._faults, self._work = faults, work
        self.__qualname__ = getattr(work, "__qualname__", repr(work))

    def send(self, value: Any) -> Any:
        return self._work.throw(self._faults.thrown()) if self._faults.is_due(self) else self._work.send(value)

    def throw(self, *error: Any) -> Any:
        return self._work.throw(*error)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Any:
        return self._work.__await__()


async def until(condition: Callable[[], bool]) -> None:
    """Poll, for half a minute at most."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def life(faults: Faults, act: Callable[[World, asyncio.Event], Coroutine[Any, Any, None]]) -> World:
    """An app's life with a fault in it, to its end. Raises what ended the app, AssertionError if nothing did."""
    world = World(StreamSettings(stop_timeout_s=5))

    async def save() -> None:
        await asyncio.to_thread(lambda: None)

    world.app.before_stop.append(save)

    async def live() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().set_task_factory(cast(Any, faults.task))
        running = asyncio.create_task(world.app.run_until(stop))
        await act(world, stop)
        _, unfinished = await asyncio.wait([running], timeout=PATIENCE_S)
        faults.armed = False
        assert not unfinished, f"it goes on after {faults.hit}"
        await running

    try:
        asyncio.run(live())
    finally:
        world.app.consumer._thread.thread_loop.close()  # type: ignore[attr-defined]
    return world


def ends_after(error: type[BaseException], act: Callable[..., Coroutine[Any, Any, None]]) -> dict[str, int]:
    """Lives with a fault in one step after the other. How many of them there were, by the task that was hit."""
    hit: dict[str, int] = {}
    at = 0
    while True:
        at += 1
        faults = Faults(error, at)
        # The errors that are thrown, and what a cancellation becomes.
        with suppress(RuntimeError, TemporaryFailure):
            world = life(faults, lambda world, stop, faults=faults: act(faults, world, stop))  # type: ignore[misc]
            assert world.pipeline.finished, faults.hit
        if faults.hit is None:
            return hit
        hit[faults.hit] = hit.get(faults.hit, 0) + 1


@pytest.fixture(autouse=True)
def _quick_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(app_module, "_FAUST_STOP_TIMEOUT_S", STOP_S)
    yield
    gc.collect()


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_in_any_await_of_the_stop_ends_the_app(error: type[BaseException]) -> None:
    async def stop_it(faults: Faults, world: World, stop: asyncio.Event) -> None:
        await until(lambda: not world.app.problems())
        faults.armed = True
        stop.set()

    # Those that the order of a stop is made of were among them.
    assert {"StreamApp.run_until", "Service.stop", "_all", "life.<locals>.save"} <= ends_after(error, stop_it).keys()


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_in_any_await_of_the_start_ends_the_app(error: type[BaseException]) -> None:
    async def start_it(faults: Faults, world: World, stop: asyncio.Event) -> None:
        # A task that is cancelled before its first step has not begun.
        await asyncio.sleep(0)
        faults.armed = True
        await until(lambda: not world.app.problems() or stop.is_set())
        faults.armed = False
        stop.set()

    assert {"Service.start"} <= ends_after(error, start_it).keys()
