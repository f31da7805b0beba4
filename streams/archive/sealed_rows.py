"""Rows of an archive that only the key of their card opens (schemas/erasure_keys.py).

    payments, decisions, shadow-decisions   sealed with the card's key
    outcomes, verdicts                      name a payment and no card: sealed with a key made of the payment's id

    kafka_partition, kafka_offset, kafka_timestamp_ms     as in other files
    sealed_by    the id of the card's key, or a keyed hash of the payment's id; empty where the card was erased before
    sealed       a nonce, then all other columns as JSON under AES-256-GCM, bound to topic, partition and offset

If the key of a card is destroyed, its payments and decisions are unreadable, and their ids with them. The outcomes and
verdicts of these payments are then unreadable, too: who reads an archive knows no other ids than those in it.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from paywarden.schemas.erasure_keys import ErasureKeys
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.kafka.topic_rows import OFFSET, PARTITION, TIMESTAMP

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_BY_CARD: Final = ("payments", "decisions", "shadow-decisions")
_BY_PAYMENT: Final = ("outcomes", "verdicts")
_PLACES: Final = (PARTITION, OFFSET, TIMESTAMP)
_NONCE_BYTES: Final = 12


@dataclass(frozen=True)
class Seal:
    """The file of keys that opens a sealed file, the id of these keys, and the columns of the rows."""

    path: str
    keys_id: str
    schema: pa.Schema

    @classmethod
    def of(cls, keys: ErasureKeys, schema: pa.Schema) -> Seal:
        """Returns the seal of a file that is written now."""
        return cls(str(keys.path), keys.id, schema)

    def to_json(self) -> dict[str, str]:
        """Returns the form that a footer has."""
        columns = base64.b64encode(self.schema.serialize().to_pybytes()).decode()
        return {"keys": self.path, "keys_id": self.keys_id, "columns": columns}

    @classmethod
    def from_json(cls, content: Mapping[str, str]) -> Seal:
        """Returns the seal in a footer. Raises ValueError, KeyError or TypeError for another form."""
        columns = pa.py_buffer(base64.b64decode(content["columns"]))
        return cls(content["keys"], content["keys_id"], pa.ipc.read_schema(columns))


def is_sealed(topic: str) -> bool:
    """Whether the rows of a topic belong to a card: alerts do not."""
    return topic in _BY_CARD or topic in _BY_PAYMENT


def is_sealed_by_card(topic: str) -> bool:
    """Whether the rows of a topic are sealed with keys of cards, and not with ids of payments."""
    return topic in _BY_CARD


def sealed(table: pa.Table, topic: str, keys: ErasureKeys, time_column: str) -> pa.Table:
    """Returns the rows sealed. `time_column` stands in where Kafka gave no time. Raises Misconfigured."""
    rows = table.to_pylist()
    by_card = keys.keys_for({row["card_id"] for row in rows}) if topic in _BY_CARD else {}
    columns: dict[str, list[Any]] = {name: table[name].to_pylist() for name in _PLACES}
    columns |= {"sealed_by": [], "sealed": []}
    for row in rows:
        if topic in _BY_CARD:
            key_id, key, until_ms = by_card[row["card_id"]]
            name = b"" if (row[TIMESTAMP] or row[time_column]) <= until_ms else key_id.to_bytes(8, "little")
        else:
            name, key = keys.payment_key(row["payment_id"])
        columns["sealed_by"].append(name)
        columns["sealed"].append(_seal(row, topic, key) if name else b"")
    kinds = [table.schema.field(name) for name in _PLACES]
    schema = pa.schema([*kinds, pa.field("sealed_by", pa.binary()), pa.field("sealed", pa.binary())])
    return pa.Table.from_pydict(columns, schema)


def unsealed(
    table: pa.Table, topic: str, seal: Seal, keys: ErasureKeys, payments: Mapping[bytes, bytes] | None
) -> pa.Table:
    """Returns the rows that can be opened. `payments`: the keys of payments by their hash, for a topic without cards.

    Raises Misconfigured for a row that was changed after it was sealed.
    """
    rows = table.to_pylist()
    found = payments
    if found is None:
        of_cards = keys.keys_of({int.from_bytes(row["sealed_by"], "little") for row in rows})
        found = {key_id.to_bytes(8, "little"): key for key_id, key in of_cards.items()}
    binary = [field.name for field in seal.schema if pa.types.is_binary(field.type)]
    names = [name for name in seal.schema.names if name not in _PLACES]
    opened = []
    for row in rows:
        key = found.get(row["sealed_by"])
        if key is not None:
            values = dict(zip(names, _open(row, topic, key), strict=True))
            for name in binary:
                if values[name] is not None:
                    values[name] = base64.b64decode(values[name])
            opened.append(values | {name: row[name] for name in _PLACES})
    return pa.Table.from_pylist(opened, seal.schema)


def _seal(row: Mapping[str, Any], topic: str, key: bytes) -> bytes:
    values = [
        base64.b64encode(value).decode() if isinstance(value, bytes) else value
        for name, value in row.items()
        if name not in _PLACES
    ]
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + _cipher(key).encrypt(nonce, json.dumps(values).encode(), _bound_to(row, topic))


def _open(row: Mapping[str, Any], topic: str, key: bytes) -> list[Any]:
    from cryptography.exceptions import InvalidTag

    data = row["sealed"]
    try:
        plain = _cipher(key).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], _bound_to(row, topic))
    except InvalidTag as error:
        place = f"partition {row[PARTITION]}, offset {row[OFFSET]}"
        raise Misconfigured(f"topic {topic}, {place}: the archive's row was changed after it was sealed") from error
    values: list[Any] = json.loads(plain)
    return values


def _bound_to(row: Mapping[str, Any], topic: str) -> bytes:
    return f"{topic}/{row[PARTITION]}/{row[OFFSET]}".encode()


def _cipher(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)
