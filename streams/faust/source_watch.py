"""Make sure that the agents read the topics which the offsets in their store belong to.

The counts of decisions and the join of outcomes belong to no profile set, so they have a register of their own beside
the sets (streams/kafka/source_register.py). It is compared when the app is made, before any agent reads, and every ten
seconds from then on. A change ends the app with one line.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from paywarden.features.stores.base import ProfileStore
from paywarden.schemas.errors import TemporaryFailure
from paywarden.streams.kafka.admin import end_offsets_of
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.group_consumer import cut_of
from paywarden.streams.kafka.source_register import (
    BESIDE_SOURCES_KEY,
    SourceRegister,
    base_of,
    changed_error,
    problem_of,
)
from paywarden.streams.kafka.topic_identity import ASK_EVERY_S, topic_ids

if TYPE_CHECKING:
    from paywarden.streams.faust.app import StreamApp

_log = logging.getLogger(__name__)


class SourceWatch:
    """Compares the topics of the agents with the register in their store."""

    def __init__(self, clients: KafkaClients, store: ProfileStore, names: tuple[str, ...]) -> None:
        """Compare for the first time. Raises SourceChanged, BrokerUnavailable, StoreUnavailable."""
        self._clients, self._names = clients, {clients.topic(name): name for name in names}
        self._register = SourceRegister(store, BESIDE_SOURCES_KEY, self._names)
        entries = self._register.check(topic_ids(clients.admin, self._names))
        self.bases = {self._names[topic]: base_of(entry.generation) for topic, entry in entries.items()}
        """The number added to the offsets of each topic before they are stored, by name without prefix."""
        self._positions: dict[str, Callable[[], Mapping[int, int]]] = {}

    def follow(self, name: str, positions: Callable[[], Mapping[int, int]]) -> None:
        """Compare also the ends of a topic's partitions with where this worker is in them."""
        self._positions[self._clients.topic(name)] = positions

    def start(self, app: StreamApp) -> None:
        """Compare again and again while the app runs."""

        async def keep_comparing() -> None:
            while not app.should_stop:
                await asyncio.sleep(ASK_EVERY_S)
                await self.compare()

        app.add_task(keep_comparing)

    async def compare(self) -> None:
        """Compare once. Raises SourceChanged, Misconfigured."""
        # Before the ends: records read meanwhile must not count as lost.
        positions = {topic: dict(ask()) for topic, ask in self._positions.items()}
        try:
            await asyncio.to_thread(self._compare, positions)
        except TemporaryFailure as error:
            _log.debug("the topics of the agents are compared later: %s", error)

    def _compare(self, positions: Mapping[str, Mapping[int, int]]) -> None:
        self._register.check(topic_ids(self._clients.admin, self._names))
        for topic, of_topic in positions.items():
            ends = end_offsets_of(self._clients.admin, topic, of_topic) or {}
            for partition, end in ends.items():
                if end < of_topic[partition]:
                    cut = cut_of(partition, of_topic[partition], end)
                    entry = self._register.note_cut(topic, cut)
                    raise changed_error({topic: problem_of(entry, "")}, self._names)
