"""Look for open transactions on the topics of a stream worker, in a task of its app."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.stalls.open_transactions import ASK_EVERY_S, TransactionWatch

if TYPE_CHECKING:
    from paywarden.streams.faust.app import StreamApp


def add_transaction_watch(
    app: StreamApp, clients: KafkaClients, registry: CollectorRegistry, names: Iterable[str]
) -> None:
    """Look at these topics while the app runs: their names without prefix. Raises as `TransactionWatch` does."""
    watch = TransactionWatch(clients, names, registry)

    async def keep_looking() -> None:
        while not app.should_stop:
            await asyncio.sleep(ASK_EVERY_S)
            await asyncio.to_thread(watch.look)

    app.add_task(keep_looking)
