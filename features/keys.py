"""Which entity a payment belongs to: the store key of a profile, from the payment's own fields."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.history import History
from features.store import KEY_BYTES_MAX
from schemas.errors import InvalidEvent

# Between the ids of a combination: the character that ASCII has for it. No id may hold it.
SEPARATOR = "\x1f"


def entity_key(entity: str, ids: Sequence[str]) -> bytes:
    """The store key: `entity:id`, of a combination the ids with SEPARATOR between them.

    Two ids may be longer together than a key can be: a digest stands for them then. A single id is never replaced.
    Raises InvalidEvent when an id of a combination holds SEPARATOR.
    """
    if len(ids) == 1:
        return f"{entity}:{ids[0]}".encode()
    if any(SEPARATOR in identity for identity in ids):
        raise InvalidEvent("holds a control character")
    key = f"{entity}:{SEPARATOR.join(ids)}".encode()
    if len(key) <= KEY_BYTES_MAX:
        return key
    return f"{entity}:{hashlib.blake2b(key, digest_size=32).hexdigest()}".encode()


@dataclass(frozen=True)
class EntityColumn:
    """The entity of one kind that each payment of a history has, by number: -1 for none. `codes`: shape (payments,)."""

    entity: str
    codes: NDArray[np.int64]
    count: int
    _fields: tuple[tuple[list[str], NDArray[np.int64]], ...]

    def store_keys(self) -> list[bytes]:
        """The store key of each entity, by number."""
        columns = [[names[code] for code in codes.tolist()] for names, codes in self._fields]
        return [entity_key(self.entity, ids) for ids in zip(*columns, strict=True)]


def entity_column(history: History, entity: str, fields: Sequence[str]) -> EntityColumn:
    """Number the entities that these fields of the payments name together, in ascending order of the fields' values."""
    coded = [history.coded(field) for field in fields]
    present = np.flatnonzero(np.all([column.codes >= 0 for column in coded], axis=0))
    codes = np.zeros(len(present), dtype=np.int64)
    # One field after the other, numbered anew each time: the product of three can outgrow 64 bits.
    for column in coded:
        codes = np.unique(codes * max(1, len(column.names)) + column.codes[present], return_inverse=True)[1]
    numbered = np.full(len(history), -1, dtype=np.int64)
    numbered[present] = codes
    count = int(codes.max(initial=-1)) + 1
    example = np.zeros(count, dtype=np.int64)
    example[codes] = present
    parts = tuple((column.names.to_pylist(), column.codes[example].astype(np.int64)) for column in coded)
    return EntityColumn(entity, numbered, count, parts)
