"""The cursors of outboxes on Kafka: how far each host has shipped its decisions.

    topic outbox-cursors (compacted)    key HOST/WORKER    value: position, time in ms, boot id

1. Start: read the cursors of this host, also those behind open transactions of other hosts (`read_cursors`).
2. Ship: write decisions and cursors in the same transaction, so a cursor is never behind its decisions.

A host makes its id once and keeps it in its outbox directory. A new directory makes a new host, which has shipped
nothing.

What can go wrong:

- Another host has died in a transaction. `read_cursors` waits until that transaction has timed out.
- Somebody else has written to the topic. Records that are no cursors are left out.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import TopicPartition

from paywarden.schemas.durability import write_synced
from paywarden.schemas.errors import BrokerUnavailable, Misconfigured
from paywarden.schemas.file_state import read_regular
from paywarden.schemas.private_files import make_private_folder
from paywarden.streams.kafka.admin import written_end_offsets
from paywarden.streams.kafka.client import REACH_TIMEOUT_S
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.reading import consume
from paywarden.streams.kafka.topic_names import CURSORS_TOPIC

_log = logging.getLogger(__name__)

# A read waits for open transactions of other hosts. The transaction of a dead host times out before the read does.
TRANSACTION_TIMEOUT_MS = 10_000
_READ_TIMEOUT_S = TRANSACTION_TIMEOUT_MS / 1000 + REACH_TIMEOUT_S
_READ_BATCH = 10_000


@dataclass(frozen=True)
class ShippedTo:
    """A cursor: a worker's outbox is shipped up to `position`, at the host's `time_ms`, in the boot `boot_id`."""

    position: int
    time_ms: int
    boot_id: str

    def to_bytes(self) -> bytes:
        return f"{self.position} {self.time_ms} {self.boot_id}".encode()

    @classmethod
    def from_bytes(cls, value: bytes) -> ShippedTo:
        """Parses a cursor. Raises Misconfigured for anything else: only companions write to this topic."""
        fields = value.decode("ascii", errors="replace").split(" ")
        if len(fields) != 3 or not (fields[0].isdecimal() and fields[1].isdecimal()):
            raise Misconfigured(f"topic {CURSORS_TOPIC} holds a record that is no cursor")
        return cls(int(fields[0]), int(fields[1]), fields[2])


class HostIdentity:
    """The host's id, kept in its outbox directory, and the lock that lets one process ship for it."""

    def __init__(self, directory: Path) -> None:
        """Raises Misconfigured when the directory cannot be used or another companion ships for it."""
        try:
            make_private_folder(directory)
            self._lock = os.open(directory / "companion.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.host = _host_id(directory / "host")
        except BlockingIOError:
            os.close(self._lock)
            raise Misconfigured(f"outbox: another companion ships from {directory}") from None
        except OSError as error:
            raise Misconfigured(f"outbox: cannot use {directory}: {error.strerror}") from error

    def close(self) -> None:
        """Release the lock: another process may ship."""
        os.close(self._lock)


def _host_id(path: Path) -> str:
    if not path.exists():
        write_synced(path, f"{secrets.token_hex(8)}\n".encode())
    host = read_regular(path).decode("ascii", errors="replace").strip()
    if not host.isalnum():
        raise Misconfigured(
            f"outbox: {path} holds no host id: delete it, and the companion makes a new one and goes on from the file "
            "`cursor` of each outbox"
        )
    return host


def cursor_key(host: str, worker: str) -> bytes:
    """Returns the key of a worker's cursor on the topic."""
    return f"{host}/{worker}".encode()


def read_cursors(clients: KafkaClients, host: str) -> dict[str, ShippedTo]:
    """Returns by worker how far a host's outboxes are shipped.

    It reads every cursor that is committed when it is called, also those behind an open transaction of another host.
    It leaves out records that are no cursors, and says so. Raises BrokerUnavailable, Misconfigured.
    """
    topic = clients.topic(CURSORS_TOPIC)
    ends = written_end_offsets(clients.admin, topic, clients.partitions(CURSORS_TOPIC))
    cursors: dict[str, ShippedTo] = {}
    prefix = cursor_key(host, "")
    consumer = clients.consumer(group_id="paywarden-companion")
    try:
        consumer.assign([TopicPartition(topic, partition, 0) for partition in ends])
        unread = {partition for partition, end in ends.items() if end > 0}
        deadline = time.monotonic() + _READ_TIMEOUT_S
        while unread:
            consumed = consume(consumer, _READ_BATCH, 0.1)
            for record in consumed.records:
                if record.key is None or record.value is None or not record.key.startswith(prefix):
                    continue
                worker = record.key[len(prefix) :].decode(errors="replace")
                try:
                    cursors[worker] = ShippedTo.from_bytes(record.value)
                except Misconfigured as error:
                    # The cursor before it holds, or the one beside the outbox. The next transaction brings another.
                    _log.error("companion: %s, for %s of this host: it is left out", error, worker)
            unread -= {partition for (_, partition), end in consumed.ended.items() if end >= ends[partition]}
            if unread and time.monotonic() > deadline:
                raise BrokerUnavailable(
                    f"Kafka did not give all of {topic} in {_READ_TIMEOUT_S:g} s: has a producer left a transaction "
                    "open there?"
                )
    finally:
        consumer.close()
    return cursors
