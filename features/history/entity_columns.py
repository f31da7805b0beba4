"""The entity of each payment of a history, as one column for each kind of entity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from paywarden.features.catalogue.identity import LAPTOP_KEY, IdentityKey
from paywarden.features.history.declared_columns import holds_hashes
from paywarden.features.history.history import History, parts_of
from paywarden.features.profiles.keys import entity_key, field_named, has_hashed_key, hashed_id


@dataclass(frozen=True)
class EntityColumn:
    """The number of each payment's entity of one kind, -1 for a payment without one. `codes`: shape (payments,)."""

    entity: str
    codes: NDArray[np.integer]
    count: int
    _fields: tuple[tuple[pa.Array, NDArray[np.int64]], ...]
    _is_hashed: tuple[bool, ...]
    """Which of the fields stand in keys as hashes."""
    _key: IdentityKey

    def store_keys(self) -> list[bytes]:
        """Returns the store key of each entity, by number."""
        columns = [
            [texts[code] for code in codes.tolist()]
            for texts, (_, codes) in zip(self._texts(), self._fields, strict=True)
        ]
        return [entity_key(self.entity, ids) for ids in zip(*columns, strict=True)]

    def identities(self) -> NDArray[np.int64]:
        """Returns the identity of each entity of one field, by number: the one in rows of payments."""
        ((names, _),) = self._fields
        if holds_hashes(names.type):
            found: NDArray[np.int64] = names.to_numpy()
            return found
        return np.array(self._key.of_all(names.to_pylist()), dtype=np.int64)

    def _texts(self) -> list[list[str]]:
        """Returns for each field the texts that keys hold for its names."""
        return [
            self._hashed(names) if is_hashed else names.to_pylist()
            for (names, _), is_hashed in zip(self._fields, self._is_hashed, strict=True)
        ]

    def _hashed(self, names: pa.Array) -> list[str]:
        hashes = names.to_pylist() if holds_hashes(names.type) else self._key.of_all(names.to_pylist())
        return list(map(hashed_id, hashes))


def entity_column(
    history: History,
    entity: str,
    fields: Sequence[str],
    key: IdentityKey = LAPTOP_KEY,
) -> EntityColumn:
    """Number the entities that these payment fields identify together, in ascending order of the fields' values.

    `key` makes the hashes of personal fields in store keys.
    """
    is_hashed = tuple(has_hashed_key(field_named(field, history.fields)) for field in fields)
    coded = [history.coded(field) for field in fields]
    first, *others = coded
    # A single field already has these numbers.
    codes, count = first.codes, len(first.names)
    parts: list[tuple[pa.Array, NDArray[np.int64]]] = [(first.names, np.arange(count))]
    if not others:
        return EntityColumn(entity, codes, count, tuple(parts), is_hashed, key)
    numbered = np.zeros(len(history), dtype=np.int64)
    # Field by field, with new numbers each time, since the product of three counts can exceed 64 bits.
    for column in others:
        size = max(1, len(column.names))
        known = _distinct(codes, column.codes, size)
        for rows in parts_of(len(history)):
            pairs, is_there = _pairs(codes[rows], column.codes[rows], size)
            numbered[rows] = np.where(is_there, np.searchsorted(known, pairs), -1)
        parts = [*((names, of[known // size]) for names, of in parts), (column.names, known % size)]
        codes, count = numbered, len(known)
    return EntityColumn(entity, codes, count, tuple(parts), is_hashed, key)


def _distinct(first: NDArray[np.integer], second: NDArray[np.integer], size: int) -> NDArray[np.int64]:
    """Returns the existing pairs of numbers, each as one number, in ascending order."""
    known = np.zeros(0, dtype=np.int64)
    for rows in parts_of(len(first)):
        pairs, is_there = _pairs(first[rows], second[rows], size)
        known = np.union1d(known, pairs[is_there])
    return known


def _pairs(
    first: NDArray[np.integer], second: NDArray[np.integer], size: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Returns each pair as one number, and whether both parts exist."""
    return first.astype(np.int64) * size + second, (first >= 0) & (second >= 0)
