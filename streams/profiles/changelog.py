"""The changelog: the newest state of every profile, on the compacted topic `profiles`.

All records of a batch differ only in their state, so everything else is encoded once:

    head (entity) │ length 0 │ tail (moments)              Avro's own encoder writes this with an empty state
    head (entity) │ length n │ state, n bytes │ tail       each record gets its state in that place

Where overlays are on, a record's header PAYMENTS_HEADER names the payments that the change has added to the profile, 20
bytes each: tag, offset, source number (features/profiles/payment_tags.py). A record without it may contain any payment.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from paywarden.features.kernel.toolkit.varint import encode_varint, encode_zigzag
from paywarden.schemas.avro import Decoder, Encoder, SchemaIds, fingerprint
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.profiles.progress.watermarks import CLAIM_KEY, Claim

PAYMENTS_HEADER = "paywarden-payments"
_HEADER_BYTES = 5
# How many beginnings and ends of records a reader remembers.
_REMEMBERED_MAX = 4096
_NONE_NAMED: Mapping[bytes, bytes] = MappingProxyType({})


class Changelog:
    """Writes to the topic; the caller flushes the sender."""

    def __init__(self, sender: Sender, clients: KafkaClients, ids: SchemaIds, entities: Iterable[str]) -> None:
        """Raises BrokerUnavailable, or Misconfigured if the topic does not exist."""
        self._sender, self._topic = sender, clients.topic("profiles")
        self._partitions = clients.partitions("profiles")
        self.places = [(self._topic, partition) for partition in self._partitions]
        """The partitions of the topic."""
        self._encoder = Encoder("profiles", ids.id_of("profiles"))
        self._state_encoders = {entity: ChangelogEncoder(self._encoder, entity) for entity in entities}

    def send(
        self,
        entity: str,
        states: Mapping[bytes, bytes],
        written_time_ms: int,
        arrived_time_ms: int | None = None,
        *,
        named: Mapping[bytes, bytes] = _NONE_NAMED,
    ) -> None:
        """Queue new states by key. `named`: by key, the payments that a change adds. Raises BrokerUnavailable."""
        for key, value in self._state_encoders[entity].encode(states, written_time_ms, arrived_time_ms):
            payments = named.get(key) if named else None
            headers = () if payments is None else ((PAYMENTS_HEADER, payments),)
            self._sender.send(self._topic, value, key=key, headers=headers)

    def erase(self, keys: Iterable[bytes]) -> None:
        """Queue a tombstone for each key. Raises BrokerUnavailable."""
        for key in keys:
            self._sender.send(self._topic, None, key=key)

    def send_claim(self, claim: Claim, now_ms: int) -> None:
        """Queue a claim of completeness. It holds for mirrors that have read to the claim's ends.

        Raises BrokerUnavailable.
        """
        record = {
            "entity": "progress",
            "state": claim.encoded_ends(),
            "written_time_ms": now_ms,
            "complete_to_time_ms": claim.complete_to_ms,
        }
        # By its key a claim is always in the same partition, in the order of the claims.
        self._sender.send(self._topic, self._encoder.encode(record), key=CLAIM_KEY)


class ChangelogEncoder:
    """Encodes the states of one kind of entity."""

    def __init__(self, encoder: Encoder, entity: str) -> None:
        """`encoder` writes records of topic `profiles`."""
        self._encoder, self._entity = encoder, entity
        # The first byte that differs between these two is the state's length.
        empty, other = self._record(b"", 0, None), self._record(b"x", 0, None)
        self._state_at = next(at for at, pair in enumerate(zip(empty, other, strict=False)) if pair[0] != pair[1])
        assert empty[self._state_at] == 0

    def encode(
        self, states: Mapping[bytes, bytes], written_time_ms: int, arrived_time_ms: int | None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yields (key, value) of each state: the same bytes as the Avro encoder writes."""
        empty = self._record(b"", written_time_ms, arrived_time_ms)
        head, tail = empty[: self._state_at], empty[self._state_at + 1 :]
        for key, state in states.items():
            yield key, b"".join((head, _length(len(state)), state, tail))

    def _record(self, state: bytes, written_time_ms: int, arrived_time_ms: int | None) -> bytes:
        return self._encoder.encode(
            {
                "entity": self._entity,
                "state": state,
                "written_time_ms": written_time_ms,
                "complete_to_time_ms": None,
                "arrived_time_ms": arrived_time_ms,
            }
        )


class ChangelogDecoder(Decoder):
    """Reads the changelog's values with the result of the Avro decoder, in a third of its time.

    A stream worker writes hundreds of states with the same moments. The bytes before and after a state are therefore
    mostly known from an earlier record, and the decoder only has to find the state between them. It asks Avro's own
    decoder about anything else, and remembers the answer.
    """

    def __init__(self, ids: SchemaIds) -> None:
        super().__init__("profiles", ids)
        schema = ids.current_schema("profiles")
        # The headers of today's schema: its id in the registry, if there is one, and its fingerprint.
        self._headers = {struct.pack(">BI", 0, number) for number in (ids.id_of("profiles"), fingerprint(schema))}
        # Bytes up to the state, and the entity in them; bytes after it, and the moments in them.
        self._heads: dict[bytes, str] = {}
        self._tails: dict[bytes, tuple[int, int | None, int | None]] = {}

    def decode(self, value: bytes) -> dict[str, Any]:
        """See Decoder."""
        head, start, end = _parts(value)
        entity, moments = self._heads.get(head), self._tails.get(value[end:])
        if entity is None or moments is None:
            record = super().decode(value)
            self._remember(record, value, head, start, end)
            return record
        written_ms, complete_to_ms, arrived_ms = moments
        return {
            "entity": entity,
            "state": value[start:end],
            "written_time_ms": written_ms,
            "complete_to_time_ms": complete_to_ms,
            "arrived_time_ms": arrived_ms,
        }

    def _remember(self, record: dict[str, Any], value: bytes, head: bytes, start: int, end: int) -> None:
        if head[:_HEADER_BYTES] not in self._headers or record["state"] != value[start:end]:
            return
        for known in (self._heads, self._tails):
            if len(known) >= _REMEMBERED_MAX:
                known.clear()
        self._heads[head] = record["entity"]
        self._tails[value[end:]] = (
            record["written_time_ms"], record["complete_to_time_ms"], record["arrived_time_ms"],
        )  # fmt: skip


def _parts(value: bytes) -> tuple[bytes, int, int]:
    """Returns the bytes before the length of a record's state, and where the state begins and ends.

    Anything that is not as a stream worker writes it has an empty head: an entity of at most 63 bytes, lengths that are
    not negative.
    """
    size = len(value)
    at = _HEADER_BYTES + 1 + (value[_HEADER_BYTES] >> 1) if size > _HEADER_BYTES else size
    if at >= size or value[_HEADER_BYTES] & 129:
        return b"", 0, 0
    head, length, shift = value[:at], 0, 0
    while at < size:
        byte = value[at]
        length |= (byte & 127) << shift
        shift += 7
        at += 1
        if byte < 128:
            end = at + (length >> 1)
            return (b"", 0, 0) if length & 1 or end > size else (head, at, end)
    return b"", 0, 0


def _length(length: int) -> bytes:
    """Returns a length encoded as an Avro long."""
    return encode_varint(encode_zigzag(length))
