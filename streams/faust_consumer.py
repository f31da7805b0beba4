"""Faust's Kafka consumer where its settings do not reach.

It knows insides of Faust 0.15 and aiokafka; tests/integration/test_stream_app.py fails when they change.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiokafka
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from mode.threads import WorkerThread

# Services log under the module they are written in; these belong with Faust's.
_log = logging.getLogger("faust.transport")


class _DaemonThread(WorkerThread):
    """Does not hold up the end of a process that could not stop it in time."""

    def __init__(self, service: Any, **options: Any) -> None:
        super().__init__(service, **options)
        self.daemon = True


class _ConsumerThread(AIOKafkaConsumerThread):
    Worker = _DaemonThread
    logger = _log

    def _create_worker_consumer(self, transport: Transport) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        # As our other consumers have it: records of transactions that were given up are none.
        consumer._isolation_level = "read_committed"
        return consumer

    async def on_thread_stop(self) -> None:
        """Leave the group and close the connections."""
        try:
            await super().on_thread_stop()
        except asyncio.CancelledError:
            # Nobody cancels this: with the broker away, aiokafka's fetcher trips over its own cancelled wait, and
            # does not come to its last step.
            assert self._consumer is not None
            await self._consumer._client.close()

    def on_crash(self, msg: str, *fmt: Any, **_: Any) -> None:
        """To the log like everything else, not onto stderr."""
        _log.error(msg.format(*fmt))


class _Consumer(Consumer):
    logger = _log

    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)


class KafkaTransport(Transport):
    """Faust's aiokafka transport with consumers that read committed records only."""

    Consumer = _Consumer
