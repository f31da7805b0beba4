"""The process of `paywarden stream`: a Faust app with the pipeline as a supervised thread in it.

    start   web server, pipeline thread, then Faust's producer, consumer and agents
    live    until a signal, or until the pipeline or Faust fails
    stop    the pipeline (its batch in flight ends first), Faust, the web server

Kafka going away ends nothing by itself: Faust's client reconnects for ever, and the pipeline has a patience of
its own. What fails ends the whole process, see streams/supervised.py.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

import faust
from aiokafka.errors import KafkaError
from faust.app.base import BootStrategy
from faust.types import ProcessingGuarantee
from mode import ServiceT
from prometheus_client import CollectorRegistry

from schemas.errors import BrokerUnavailable
from streams.collection import settle_collection
from streams.credentials import broker_urls, credentials
from streams.faust_consumer import KafkaTransport
from streams.faust_logs import calm_logs
from streams.kafka import MESSAGE_BYTES_MAX, KafkaSettings
from streams.pipeline import StreamSettings
from streams.supervised import Supervised, SupervisedThread
from streams.web import HealthWeb

_log = logging.getLogger(__name__)

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
# Leaving the consumer group is a courtesy; without it the group waits for the session's end.
_FAUST_STOP_TIMEOUT_S: Final = 5.0
# Faust commits what agents have worked off this often; after a crash so much is read again.
_COMMIT_EVERY_S: Final = 1.0
_REQUEST_TIMEOUT_S: Final = 40.0


class _BootStrategy(BootStrategy):
    """What is started in which order, and stopped in the other."""

    app: StreamApp

    def server(self) -> Iterable[ServiceT]:
        """Health first, so that a start that takes long can be watched; then the firehose, which needs no Faust."""
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


class StreamApp(faust.App):
    """A Faust app that runs a pipeline beside its agents and serves health and metrics.

    Made and used in one thread. Agents are added before `run` (streams/agents.py). Raises Misconfigured.
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
        self._failure: BaseException | None = None
        self._to_end = asyncio.Event()
        self._started_up = self._stopping = False
        # Awaited while Faust still runs, when all is to stop; each bounds itself.
        self.before_stop: list[Callable[[], Awaitable[None]]] = []
        super().__init__(f"{settings.group_id}-faust", **_options(kafka, settings))
        self.transport = KafkaTransport(self.conf.broker_consumer, self)
        self.pipeline = SupervisedThread(
            pipeline, name="pipeline", stop_timeout_s=settings.stop_timeout_s, on_end=self.fail
        )
        self.on_startup_finished = self._note_started_up

    async def run_until(self, stop: asyncio.Event) -> None:
        """Start, live until `stop` is set or something fails, stop. Raises what has failed."""
        self.loop = asyncio.get_running_loop()
        self._to_end = stop
        starting = asyncio.create_task(self._start())
        await stop.wait()
        self._stopping = True
        try:
            await self.pipeline.stop()
        except Exception as error:  # noqa: BLE001  # raised below; Faust is stopped first
            self.fail(error)
        await asyncio.gather(*(last() for last in self.before_stop))
        await self._stop_faust()
        starting.cancel()
        await asyncio.wait([starting])
        if self._failure is not None:
            raise self._failure

    def fail(self, error: BaseException) -> None:
        """End the process, with the first error that is reported. Callable from any thread."""
        if self._failure is None:
            self._failure = _translated(error)
        self.loop.call_soon_threadsafe(self._to_end.set)

    def live(self) -> bool:
        """Whether nothing has failed."""
        return self._failure is None and (self._stopping or self.pipeline.live)

    def problems(self) -> Sequence[str]:
        """Why the process is not ready, one line each."""
        found = ["the process is stopping"] if self._stopping else []
        if not self._started_up:
            found.append("the agents have not started")
        return [*found, *self.pipeline.problems()]

    async def _start(self) -> None:
        try:
            await self.start()
        except Exception as error:  # noqa: BLE001  # `run_until` raises it
            self.fail(error)

    async def _stop_faust(self) -> None:
        # Not wait_for: Faust swallows a cancellation here and there, and that would wait for it all the same.
        stopping = asyncio.create_task(self.stop())
        _, unfinished = await asyncio.wait([stopping], timeout=_FAUST_STOP_TIMEOUT_S)
        if unfinished:
            _log.warning(
                "Faust did not stop within %g s; the consumer group will miss this member", _FAUST_STOP_TIMEOUT_S
            )
            stopping.cancel()
        elif (error := stopping.exception()) is not None:
            self.fail(error)

    async def _note_started_up(self) -> None:
        self._started_up = True

    def _crash(self, reason: BaseException) -> None:
        # By this Faust's services tell each other of a failure, from whichever thread it happened in.
        super()._crash(reason)
        self.fail(reason)

    def _create_directories(self) -> None:
        """None: our state is in the profile store and in Kafka."""

    def _new_web(self) -> HealthWeb:
        return HealthWeb(
            self,
            health=self,
            registry=self._registry,
            host=self._settings.http_host,
            port=self._settings.http_port,
            announce=self._announce,
        )


def run(app: StreamApp, stop: threading.Event) -> None:
    """Run the app in this (the main) thread until SIGTERM or SIGINT; a second one ends the process at once.

    `stop` is set if there was a signal before. Raises what ended the app otherwise.
    """
    calm_logs()
    settle_collection()
    asyncio.run(_run(app, stop))


async def _run(app: StreamApp, stopped: threading.Event) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal() -> None:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        stop.set()

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal)
    if not stopped.is_set():
        await app.run_until(stop)


def _options(kafka: KafkaSettings, settings: StreamSettings) -> dict[str, Any]:
    """Faust's settings; all that matter, also where they are the defaults."""
    session_timeout_s = settings.session_timeout_ms / 1000
    return {
        "broker": broker_urls(kafka),
        "broker_credentials": credentials(kafka),
        "broker_client_id": "paywarden",
        "broker_session_timeout": session_timeout_s,
        "broker_heartbeat_interval": session_timeout_s / 4,
        "broker_request_timeout": max(_REQUEST_TIMEOUT_S, session_timeout_s),
        "broker_commit_interval": _COMMIT_EVERY_S,
        "consumer_auto_offset_reset": "earliest",
        "consumer_max_fetch_size": MESSAGE_BYTES_MAX,
        # Of all partitions together: so much still comes of those that are held.
        "broker_max_poll_records": 2_000,
        "producer_acks": -1,
        # The agents write with librdkafka (streams/kafka.py); this is for whatever Faust might write itself.
        "producer_compression_type": None if kafka.compression == "none" else kafka.compression,
        "producer_max_request_size": MESSAGE_BYTES_MAX,
        "processing_guarantee": ProcessingGuarantee.AT_LEAST_ONCE,
        # Topics are made by `paywarden topics create`, with their retention.
        "topic_allow_declare": False,
        "topic_disable_leader": True,
        "store": "memory://",
        "autodiscover": False,
        # Without this the environment would win over all of the above, by names as common as DEBUG.
        "env": {},
    }


def _translated(error: BaseException) -> BaseException:
    if isinstance(error, KafkaError):
        translated = BrokerUnavailable(f"Faust's Kafka client gave up: {type(error).__name__}")
        translated.__cause__ = error
        return translated
    return error
