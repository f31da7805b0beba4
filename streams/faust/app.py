"""The Faust agents of `paywarden stream`: they read topics with few records, such as dead letters.

An app as Faust's documentation shows it, started and stopped in the thread of one part (streams/health/parts.py).
Nothing of Faust is overridden. Topics with tens of thousands of records a second are read elsewhere
(streams/counts/partition_worker.py).

    start   Faust's producer, consumer and agents
    live    until a stop, or until Faust fails
    stop    Faust leaves its group, in at most 5 seconds

An agent's acknowledgements are Faust's own: an agent gets each record at least once. An outage of Kafka ends nothing by
itself, because Faust's client reconnects. If Faust fails, the process ends.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import faust
from aiokafka.errors import CorruptRecordException, KafkaError
from faust.types import ProcessingGuarantee
from mode import ServiceT

from paywarden.schemas.errors import BrokerUnavailable
from paywarden.streams.faust.credentials import credentials
from paywarden.streams.kafka.client import MESSAGE_BYTES_MAX, KafkaSettings, broker_urls
from paywarden.streams.profiles.stream_settings import StreamSettings

_log = logging.getLogger(__name__)

AddAgent = Callable[[faust.App], object]
"""Registers an agent with an app that has not started."""

# Leaving the consumer group is a courtesy; without it the group waits for the session's end.
_STOP_TIMEOUT_S: Final = 5.0
# Faust commits the agents' progress this often; after a crash at most this much is read again.
_COMMIT_EVERY_S: Final = 1.0
_REQUEST_TIMEOUT_S: Final = 40.0
# How often the part looks at Faust, and for how long its event loop may stand still.
_LOOK_EVERY_S: Final = 0.5
_TURN_S_MAX: Final = 60.0


class FaustAgents:
    """A part of the process that runs Faust."""

    def __init__(self, kafka: KafkaSettings, settings: StreamSettings, agents: Sequence[AddAgent]) -> None:
        """Raises Misconfigured for a login that Faust cannot use."""
        self._group, self._options, self._agents = settings.agents_group, app_options(kafka, settings), agents
        self._has_started = False
        self._turned_at = time.monotonic()

    def problems(self) -> Sequence[str]:
        """Return why it is not ready; empty if it is."""
        return () if self._has_started else ("the agents have not started",)

    def turns(self) -> bool:
        """Return whether the event loop turns."""
        return time.monotonic() - self._turned_at < _TURN_S_MAX

    def run(self, stop: threading.Event) -> None:
        """Run Faust until `stop` is set. Raises the error that ended Faust; BrokerUnavailable for Kafka's."""
        # They log each service, and each try to reach a broker. What ends Faust is raised here.
        for name in ("faust", "mode", "aiokafka"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        threading.excepthook = _note_end
        # Faust makes a folder for the tables of an app. This app has none.
        with tempfile.TemporaryDirectory(prefix="paywarden-faust-") as folder:
            # Not asyncio.run: it waits without a limit for tasks that Faust has left behind.
            loop = asyncio.new_event_loop()
            try:
                loop.run_until_complete(self._run(stop, folder))
            finally:
                loop.close()

    async def _run(self, stop: threading.Event, folder: str) -> None:
        app = faust.App(self._group, loop=asyncio.get_running_loop(), datadir=folder, **self._options)
        for add in self._agents:
            add(app)
        starting = asyncio.create_task(app.start())
        try:
            while not stop.is_set():
                self._look(app, starting)
                await asyncio.sleep(_LOOK_EVERY_S)
        finally:
            await _stopped(app)

    def _look(self, app: faust.App, starting: asyncio.Task[None]) -> None:
        """Note that the event loop turns. Raises the error that has ended Faust, or a service of it."""
        self._turned_at = time.monotonic()
        if starting.cancelled():
            raise _translated(asyncio.CancelledError())
        if starting.done() and (error := starting.exception()) is not None:
            raise _translated(error)
        # A crash of the reader of records is not passed on to the app.
        for node in app.beacon.traverse():
            service = getattr(node, "data", node)
            if isinstance(service, ServiceT) and service.crashed:
                raise _translated(service.crash_reason or asyncio.CancelledError())
        self._has_started = starting.done()


def _note_end(ended: threading.ExceptHookArgs) -> None:
    """Print no traceback when a stop cancels what Faust's own thread waits for, as it does while Kafka is away."""
    if not issubclass(ended.exc_type, asyncio.CancelledError):
        threading.__excepthook__(ended)


async def _stopped(app: faust.App) -> None:
    stopping = asyncio.create_task(app.stop())
    # Not wait_for: Faust swallows a cancellation here and there, and that would wait for it all the same.
    await asyncio.wait([stopping], timeout=_STOP_TIMEOUT_S)
    if not stopping.done():
        _log.warning("Faust did not stop within %g s; the consumer group will miss this member", _STOP_TIMEOUT_S)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=_LOOK_EVERY_S)


def app_options(kafka: KafkaSettings, settings: StreamSettings) -> dict[str, Any]:
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
        "broker_max_poll_records": 500,
        "producer_acks": -1,
        # The agents write nothing; this is for anything Faust might write itself.
        "producer_compression_type": None if kafka.compression == "none" else kafka.compression,
        "producer_max_request_size": MESSAGE_BYTES_MAX,
        "processing_guarantee": ProcessingGuarantee.AT_LEAST_ONCE,
        # Topics are made by `paywarden topics create`, with their retention.
        "topic_allow_declare": False,
        "topic_disable_leader": True,
        "store": "memory://",
        "autodiscover": False,
        # Health and metrics of the whole process are served by streams/health/server.py.
        "web_enabled": False,
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
        message = "Faust's Kafka client has cancelled an operation that was under way"
    else:
        return error
    translated = BrokerUnavailable(message)
    translated.__cause__ = error
    return translated
