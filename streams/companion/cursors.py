"""How far each host's outboxes are shipped, on Kafka: written in the very transaction that ships, so never behind.

    topic outbox-cursors (compacted)    key HOST/WORKER    value: position, time in ms, boot id

A host's id is made once and kept in its outbox directory. A lost directory is a new host, and nothing of it is shipped.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import TopicPartition

from paywarden.schemas.errors import BrokerUnavailable, Misconfigured
from paywarden.streams.kafka.admin import written_end_offsets
from paywarden.streams.kafka.client import REACH_TIMEOUT_S
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.reading import consume
from paywarden.streams.kafka.topic_names import CURSORS_TOPIC

# A read waits for transactions of other hosts that are open, and those of a host that has died run out first.
TRANSACTION_TIMEOUT_MS = 10_000
_READ_TIMEOUT_S = TRANSACTION_TIMEOUT_MS / 1000 + REACH_TIMEOUT_S
_READ_BATCH = 10_000
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class ShippedTo:
    """Up to which position a worker's outbox is shipped, since when by the host's clock, and in which boot of it."""

    position: int
    time_ms: int
    boot_id: str

    def to_bytes(self) -> bytes:
        return f"{self.position} {self.time_ms} {self.boot_id}".encode()

    @classmethod
    def from_bytes(cls, value: bytes) -> ShippedTo:
        """Raises Misconfigured: nothing else writes there."""
        fields = value.decode("ascii", errors="replace").split(" ")
        if len(fields) != 3 or not (fields[0].isdecimal() and fields[1].isdecimal()):
            raise Misconfigured(f"topic {CURSORS_TOPIC} holds something that is no cursor")
        return cls(int(fields[0]), int(fields[1]), fields[2])


def boot_id() -> str:
    """What tells this run of the machine from the one before; empty where the system has none."""
    return _BOOT_ID.read_text(encoding="ascii").strip() if _BOOT_ID.exists() else ""


class HostIdentity:
    """The host's id, kept in its outbox directory, and the right to ship for it, which one process has."""

    def __init__(self, directory: Path) -> None:
        """Raises Misconfigured when the directory cannot be used or another companion ships for it."""
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(directory / "companion.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.host = _host_id(directory / "host")
        except BlockingIOError:
            os.close(self._lock)
            raise Misconfigured(f"outbox: another companion ships from {directory}") from None
        except OSError as error:
            raise Misconfigured(f"outbox: cannot use {directory}: {error.strerror}") from error

    def close(self) -> None:
        """Another process may ship."""
        os.close(self._lock)


def _host_id(path: Path) -> str:
    if not path.exists():
        new = path.with_suffix(".new")
        with new.open("w", encoding="ascii") as file:
            file.write(secrets.token_hex(8) + "\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(directory)
        os.close(directory)
    host = path.read_text(encoding="ascii").strip()
    if not host.isalnum():
        raise Misconfigured(f"outbox: {path} holds no host id")
    return host


def cursor_key(host: str, worker: str) -> bytes:
    """The key of a worker's cursor on the topic."""
    return f"{host}/{worker}".encode()


def read_cursors(clients: KafkaClients, host: str) -> dict[str, ShippedTo]:
    """By worker, how far a host's outboxes are shipped.

    Everything that is committed when this is called is read, whatever transaction of another host is still open before
    it. Raises BrokerUnavailable, Misconfigured.
    """
    topic = clients.topic(CURSORS_TOPIC)
    ends = written_end_offsets(clients.admin, topic, clients.partitions(CURSORS_TOPIC))
    found: dict[str, ShippedTo] = {}
    prefix = cursor_key(host, "")
    consumer = clients.consumer(group_id="paywarden-companion")
    try:
        consumer.assign([TopicPartition(topic, partition, 0) for partition in ends])
        left = {partition for partition, end in ends.items() if end > 0}
        deadline = time.monotonic() + _READ_TIMEOUT_S
        while left:
            consumed = consume(consumer, _READ_BATCH, 0.1)
            for record in consumed.records:
                if record.key is not None and record.value is not None and record.key.startswith(prefix):
                    found[record.key[len(prefix) :].decode()] = ShippedTo.from_bytes(record.value)
            left -= {partition for (_, partition), end in consumed.ended.items() if end >= ends[partition]}
            if left and time.monotonic() > deadline:
                raise BrokerUnavailable(f"Kafka did not give all of {topic} in {_READ_TIMEOUT_S:g} s")
    finally:
        consumer.close()
    return found
