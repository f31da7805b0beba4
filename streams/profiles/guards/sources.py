"""Make sure that a worker reads the topics which the offsets in its store belong to (streams/kafka/source_register.py).

The worker compares before it joins its group, before it processes the first records of an assignment, and every ten
seconds. In between the client tells when the broker does not have the next offset. No record of another topic is
therefore processed under an offset of the old one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from paywarden.features.stores.base import ProfileStore
from paywarden.schemas.errors import TemporaryFailure
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.source_register import (
    SOURCES_KEY,
    SourceChanged,
    SourceEntry,
    SourceRegister,
    base_of,
    changed_error,
    problem_of,
    require_same,
)
from paywarden.streams.kafka.topic_identity import IdentityWatch, topic_ids

_log = logging.getLogger(__name__)


class SourceCheck:
    """Compares the topics of one worker with the register in its store. Not thread-safe."""

    def __init__(
        self, clients: KafkaClients, store: ProfileStore, names: Mapping[str, str], key: bytes = SOURCES_KEY
    ) -> None:
        """`names`: the topics, by full name the name without prefix. `key`: that of the register in the store."""
        self._admin, self._names = clients.admin, dict(names)
        self._register = SourceRegister(store, key, names)
        self._watch = IdentityWatch(clients.admin, names)
        self.is_due = True
        """Whether the topics must be compared before records of them are processed."""

    def check(self) -> dict[str, int]:
        """Compare now. Returns the number added to the offsets of each topic before they are stored, by full name.

        Raises SourceChanged, Misconfigured, StoreUnavailable, BrokerUnavailable.
        """
        entries = self._register.check(topic_ids(self._admin, self._names))
        self.is_due = False
        return {topic: base_of(entry.generation) for topic, entry in entries.items()}

    def look(self) -> None:
        """Compare when it is time to, without waiting for Kafka. Raises SourceChanged, Misconfigured."""
        ids = self._watch.look()
        if ids is None:
            return
        try:
            known = self._register.read()
        except TemporaryFailure:
            # A batch that waits for the store says so.
            return
        require_same(known, ids, self._names)

    def changed(self, topic: str, cut: str) -> SourceChanged:
        """Returns the error to raise for a topic that ends before the last record that was read.

        If it is the same topic, every later start must know: by then the lost offsets may belong to other records.
        """
        try:
            self.check()
            self._register.note_cut(topic, cut)
        except SourceChanged as error:
            return error
        except TemporaryFailure as error:
            _log.warning("the store cannot note that %s has lost records: %s", topic, error)
        return changed_error({topic: problem_of(SourceEntry("", cut=cut), "")}, self._names)
