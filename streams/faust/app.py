"""The process of `paywarden stream`: a Faust app with the pipeline as a supervised thread in it.

    start   web server, pipeline thread, then Faust's producer, consumer and agents
    live    until a signal, or until the pipeline or Faust fails
    stop    the pipeline (its batch in flight ends first) and the agents' last saves, Faust, the web server

An outage of Kafka ends nothing by itself: Faust's client reconnects for ever, and the pipeline has its own retries. A
part that fails ends the whole process, see streams/faust/supervised_thread.py.

Every step of the stop is bounded, and a step that raises or is cancelled keeps no later step from running. The first
error is the one that `run_until` raises. If something hangs in spite of that, streams/health/process_end.py ends the
process.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

import faust
import faust.utils.venusian
from aiokafka.errors import CorruptRecordException, KafkaError
from faust.app.base import BootStrategy
from faust.tables.manager import TableManager
from faust.types import ProcessingGuarantee, TopicT
from mode import ServiceT
from prometheus_client import CollectorRegistry

from paywarden.schemas.errors import BrokerUnavailable
from paywarden.streams.faust.consumer import KafkaTransport
from paywarden.streams.faust.credentials import credentials
from paywarden.streams.faust.logs import calm_logs
from paywarden.streams.faust.supervised_thread import Supervised, SupervisedThread
from paywarden.streams.faust.web import HealthWeb
from paywarden.streams.health.gc_tuning import settle_collection
from paywarden.streams.health.process_end import TIDY_UP_S, ProcessEnd
from paywarden.streams.kafka.client import MESSAGE_BYTES_MAX, KafkaSettings, broker_urls
from paywarden.streams.profiles.settings import StreamSettings

_log = logging.getLogger(__name__)

# Leaving the consumer group is a courtesy; without it the group waits for the session's end.
_FAUST_STOP_TIMEOUT_S: Final = 5.0
# The time of each step of a stop when earlier steps have used up the time.
_LAST_STEP_S: Final = 0.25
# Faust commits the agents' progress this often; after a crash at most this much is read again.
_COMMIT_EVERY_S: Final = 1.0
_REQUEST_TIMEOUT_S: Final = 40.0
# The event loop notes that it turns this often. A loop that has not turned for this long hangs.
_TURN_EVERY_S: Final = 1.0
_TURN_S_MAX: Final = 60.0


def _attach_nothing(*_: object, **__: object) -> None:
    """Skip Faust's note of where an agent or a task was defined.

    Only Faust's search for agents reads it, which we do not use. To make the note, Python looks up the files of all
    loaded modules, thousands of system calls at each start.
    """


faust.utils.venusian.attach = _attach_nothing


class _BootStrategy(BootStrategy):
    """The order in which services are started. They are stopped in the reverse order."""

    app: StreamApp

    def server(self) -> Iterable[ServiceT]:
        """Start health first, so a long start can be watched; then the payments' pipeline, which needs no Faust."""
        return [
            self.app.web,
            self.app.pipeline,
            *self.sensors(),
            *self.kafka_producer(),
            *self.kafka_consumer(),
            *self.agents(),
            *self.kafka_conductor(),
            *self.tables(),
        ]


class _NoTables(TableManager):
    """The app has no tables. Faust would give them a second to register before the app joins its consumer group."""

    # As Faust's own services, which log warnings only (streams/faust/logs.py).
    logger = logging.getLogger("faust.services")

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()


class StreamApp(faust.App):
    """A Faust app that runs a pipeline beside its agents and serves health and metrics.

    Made and used in one thread. Agents are added before `run` (ops/wiring/agents.py). Raises Misconfigured.
    """

    BootStrategy = _BootStrategy
    logger = logging.getLogger("faust.app")

    def __init__(
        self,
        pipeline: Supervised,
        *,
        kafka: KafkaSettings,
        settings: StreamSettings,
        registry: CollectorRegistry,
        announce: Callable[[str], object],
    ) -> None:
        self._settings, self._registry, self._announce = settings, registry, announce
        # Told of every failure, from any thread.
        self.on_failure: Callable[[BaseException], object] = lambda _: None
        self._failure: BaseException | None = None
        self._to_end = asyncio.Event()
        self._started_up = self._stopping = False
        self._turned_at = time.monotonic()
        # Awaited while Faust still runs, when all is to stop; each bounds itself.
        self.before_stop: list[Callable[[], Awaitable[None]]] = []
        super().__init__(settings.agents_group, **_options(kafka, settings))
        self.transport = KafkaTransport(self.conf.broker_consumer, self)
        self.pipeline = SupervisedThread(
            pipeline, name="pipeline", stop_timeout_s=_own_stop_s(settings), on_end=self.fail
        )
        self.on_startup_finished = self._note_started_up

    async def run_until(self, stop: asyncio.Event) -> None:
        """Start, live until `stop` is set or something fails, stop. Raises the first error."""
        self.loop = asyncio.get_running_loop()
        self._to_end = stop
        self._note_turn()
        starting = asyncio.create_task(self.start())
        starting.add_done_callback(self._on_start_ended)
        try:
            await stop.wait()
        except asyncio.CancelledError as error:
            self.fail(error)
        self._stopping = True
        deadline = self.loop.time() + _own_stop_s(self._settings)
        # The pipeline limits its own stop, and logs the work that it abandons.
        await self._step(self.pipeline.stop(), self._settings.stop_timeout_s)
        await self._step(_all(self.before_stop), deadline - self.loop.time())
        if not await self._step(self.stop(), min(_FAUST_STOP_TIMEOUT_S, deadline - self.loop.time())):
            _log.warning("Faust did not stop in time; the consumer group will miss this member")
        starting.cancel()
        await self._step(_ended(starting), _LAST_STEP_S)
        if self._failure is not None:
            raise self._failure

    def add_agent(self, topic: TopicT, name: str, read: Callable[[Any], Awaitable[None]]) -> None:
        """Read a topic's records with an agent whose failure ends the app.

        Faust would start a failed agent again, without the record it was working on.
        """

        async def agent(stream: Any) -> None:
            await self.lasting(read(stream))

        self.agent(topic, name=name)(agent)

    def add_task(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` once the app is up."""

        async def task() -> None:
            await self.lasting(work())

        self.task(task)

    async def lasting(self, work: Awaitable[None]) -> None:
        """Await work that the app cannot do without: if it fails, the app fails.

        A cancellation that nobody asked for is a failure, too. It comes from a client that has given up its own wait.
        Faust would take it for the end of the task and go on without the task.
        """
        try:
            await work
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if not self._stopping and task is not None and not task.cancelling():
                self.fail(error)
            raise
        except Exception as error:
            self.fail(error)
            raise

    def fail(self, error: BaseException) -> None:
        """End the process, with the first error that is reported. Callable from any thread."""
        if self._failure is None:
            self._failure = _translated(error)
            self.on_failure(self._failure)
        self.loop.call_soon_threadsafe(self._to_end.set)

    def live(self) -> bool:
        """Whether nothing has failed and the event loop turns: the threads that serve health go on if it hangs."""
        if time.monotonic() - self._turned_at >= _TURN_S_MAX:
            return False
        return self._failure is None and (self._stopping or self.pipeline.live)

    def problems(self) -> Sequence[str]:
        """Return why the process is not ready, one line each; empty if it is."""
        found = ["the process is stopping"] if self._stopping else []
        if not self._started_up:
            found.append("the agents have not started")
        return [*found, *self.pipeline.problems()]

    def _on_start_ended(self, starting: asyncio.Task[None]) -> None:
        if starting.cancelled():
            if not self._stopping:
                self.fail(asyncio.CancelledError())
        elif (error := starting.exception()) is not None:
            self.fail(error)

    async def _step(self, work: Coroutine[Any, Any, object], timeout_s: float) -> bool:
        """Await a step of the stop, at most `timeout_s`; an error of it fails the app. False when it took too long.

        Not wait_for: Faust swallows a cancellation here and there, and that would wait for it all the same.
        """
        step = asyncio.create_task(work)
        try:
            await asyncio.wait([step], timeout=max(_LAST_STEP_S, timeout_s))
        except asyncio.CancelledError as error:
            self.fail(error)
        if not step.done():
            step.cancel()
            return False
        if step.cancelled():
            self.fail(asyncio.CancelledError())
        elif (error_of_step := step.exception()) is not None:
            self.fail(error_of_step)
        return True

    def _note_turn(self) -> None:
        self._turned_at = time.monotonic()
        self.loop.call_later(_TURN_EVERY_S, self._note_turn)

    async def _note_started_up(self) -> None:
        self._started_up = True

    def _crash(self, reason: BaseException) -> None:
        # By this Faust's services tell each other of a failure, from whichever thread it happened in.
        super()._crash(reason)
        self.fail(reason)

    def _create_directories(self) -> None:
        """Create none: our state is in the profile store and in Kafka."""

    def _new_web(self) -> HealthWeb:
        return HealthWeb(
            self,
            health=self,
            registry=self._registry,
            host=self._settings.http_host,
            port=self._settings.http_port,
            announce=self._announce,
        )


def run(app: StreamApp, end: ProcessEnd) -> None:
    """Run the app in this thread until `end.stop` is set. Raises the error that ended the app otherwise."""
    calm_logs()
    settle_collection()
    app.on_failure = end.begin
    asyncio.run(_run(app, end))


async def _run(app: StreamApp, end: ProcessEnd) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def pass_on() -> None:
        end.stop.wait()
        # The loop may be closed by then.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=pass_on, name="stop", daemon=True).start()
    try:
        if not end.stop.is_set():
            await app.run_until(stop)
    finally:
        # asyncio now cancels the tasks that are left, and waits for threads that may be waiting for a store.
        end.begin()
        end.work_is_done()


async def _all(works: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Await all of them, and raise the first error when the last one has ended."""
    results = await asyncio.gather(*(work() for work in works), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])


def _own_stop_s(settings: StreamSettings) -> float:
    """Returns the time for the app's steps: the interpreter needs the rest."""
    return max(0.0, settings.stop_timeout_s - TIDY_UP_S)


def _options(kafka: KafkaSettings, settings: StreamSettings) -> dict[str, Any]:
    """Return Faust's settings: all that matter, including those that equal the defaults."""
    session_timeout_s = settings.session_timeout_ms / 1000
    return {
        "broker": broker_urls(kafka),
        "broker_credentials": credentials(kafka),
        "broker_client_id": "paywarden",
        "broker_session_timeout": session_timeout_s,
        "broker_heartbeat_interval": session_timeout_s / 4,
        "broker_request_timeout": max(_REQUEST_TIMEOUT_S, session_timeout_s),
        "broker_commit_interval": _COMMIT_EVERY_S,
        "broker_check_crcs": kafka.check_crcs,
        "consumer_auto_offset_reset": "earliest",
        "consumer_max_fetch_size": MESSAGE_BYTES_MAX,
        # Over all partitions. Held partitions still deliver at most this many records.
        "broker_max_poll_records": 2_000,
        "producer_acks": -1,
        # The agents write with librdkafka (streams/kafka/client.py); this is for anything Faust might write itself.
        "producer_compression_type": None if kafka.compression == "none" else kafka.compression,
        "producer_max_request_size": MESSAGE_BYTES_MAX,
        "processing_guarantee": ProcessingGuarantee.AT_LEAST_ONCE,
        # Topics are made by `paywarden topics create`, with their retention.
        "topic_allow_declare": False,
        "topic_disable_leader": True,
        "store": "memory://",
        "TableManager": _NoTables,
        "autodiscover": False,
        # Without this, environment variables would override all of the above, by names as common as DEBUG.
        "env": {},
    }


def _translated(error: BaseException) -> BaseException:
    """Return one of our errors for an error of Kafka's client; any other error as it is."""
    if isinstance(error, CorruptRecordException):
        message = "Kafka gave a record with a wrong checksum (the embedded broker needs [kafka] check_crcs = false)"
    elif isinstance(error, KafkaError):
        message = f"Faust's Kafka client gave up: {type(error).__name__}"
    elif isinstance(error, asyncio.CancelledError):
        # Raised as it is, it would cancel the caller that awaits the app.
        message = "Faust's Kafka client has cancelled an operation that was under way"
    else:
        return error
    translated = BrokerUnavailable(message)
    translated.__cause__ = error
    return translated
