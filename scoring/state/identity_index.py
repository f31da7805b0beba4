"""The mirror's index by identity: a card remembers its merchants as identities, and a profile stands under its key.

    card:c-17                            remembers the merchants 4b1c60f2a9d3e875 and 53f8d7a2c04b916e
    \\0index:merchant:4b1c60f2a9d3e875    merchant:m-1       a record of this index
    merchant:m-1                         the profile
    \\0indexed                            the mirror's transaction 812, the identity key's digest, merchant=text

1. Only entities that features of other entities look at have records. A catalogue without such features has no index.
2. The companion writes a record in the transaction that adds its profile, and deletes it with the profile.
3. `\\0indexed` is written in every transaction. If the mirror's newest transaction has another number, a companion that
   keeps no index has changed profiles since then, and the index is made anew.
4. `steps` makes what a catalogue needs, by a walk over the keys, and removes what it does not need. An entity stands in
   `\\0indexed` only while it has all its records. A walk that was interrupted begins again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paywarden.features import kernel
from paywarden.features.catalogue.identity import IdentityKey
from paywarden.features.profiles.keys import field_named, has_hashed_key
from paywarden.features.profiles.plan import Plan

INDEXED = b"\0indexed"
INDEX = b"\0index:"
# The keys of a transaction while the index is made.
_STEP_KEYS = 5_000
# An identity in 16 digits. Its highest bit but one is set (kernel.IDENTITY_BIT), and the highest is not.
_HASHED_ID = re.compile(rb"[4-7][0-9a-f]{15}")
_TEXT, _HASHED = "text", "hashed"
_FORMS = {_TEXT: False, _HASHED: True}

Changing = Callable[[], AbstractContextManager[Any]]
"""Begins a transaction that changes the mirror: an lmdb.Transaction."""
KeysFrom = Callable[[bytes, int], list[bytes]]
"""Returns at most so many keys of the mirror, from the first that is not before a key."""


def record_prefix(entity: str) -> bytes:
    """Returns how the keys of an entity's records begin. The identity in 16 hex digits follows."""
    return INDEX + entity.encode() + b":"


@dataclass(frozen=True)
class IndexNote:
    """What `\\0indexed` says. `entities`: those with all their records, and whether their keys hold hashed ids."""

    transaction: int
    key_digest: str
    entities: Mapping[str, bool] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Returns the note as the mirror keeps it."""
        said = (f"{name}={_HASHED if is_hashed else _TEXT}" for name, is_hashed in sorted(self.entities.items()))
        return " ".join((str(self.transaction), self.key_digest, *said)).encode()

    @classmethod
    def of_bytes(cls, value: bytes | None) -> IndexNote | None:
        """Returns the note from the bytes of `to_bytes`; None for other bytes."""
        try:
            transaction, digest, *said = (value or b"").decode().split(" ")
            pairs = [entity.split("=") for entity in said]
            return cls(int(transaction), digest, {name: _FORMS[form] for name, form in pairs})
        except (ValueError, KeyError):
            return None


class IdentityIndex:
    """Keeps the index of one mirror. The transactions that it gets are of the type lmdb.Transaction, and write."""

    def __init__(self, entities: Mapping[str, bool], key: IdentityKey) -> None:
        """`entities`: those whose profiles are found by identity, and whether their keys hold hashed ids."""
        self.entities, self._key = dict(entities), key
        self._prefixes = tuple(f"{name}:".encode() for name in self.entities)

    def is_served_by(self, note: IndexNote | None) -> bool:
        """Whether an index with this note has all records of these entities."""
        if note is None or note.key_digest != self._key.digest:
            return False
        return all(note.entities.get(name) == is_hashed for name, is_hashed in self.entities.items())

    def records(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Returns the keys of profiles by the keys of their records.

        Profiles of other entities have none, nor have keys that no payment of these entities can have.
        """
        found: dict[bytes, bytes] = {}
        own: list[bytes] = []
        for key in keys:
            name, _, identity = key.partition(b":")
            is_hashed = self.entities.get(name.decode(errors="replace"))
            if is_hashed is False and identity:
                own.append(key)
            elif is_hashed and _HASHED_ID.fullmatch(identity):
                found[INDEX + key] = key
        for key, number in zip(own, self._identities_of([key.partition(b":")[2] for key in own]), strict=True):
            found[b"%b%b:%016x" % (INDEX, key.partition(b":")[0], number)] = key
        return found

    def follow(self, transaction: Any, profiles: Mapping[bytes, bytes | None]) -> None:
        """Add the records of profiles that the mirror lacks so far, and delete those of erased ones (None).

        Call it before the profiles are written, in the same transaction.
        """
        own = [key for key in profiles if key.startswith(self._prefixes)]
        new = [key for key in own if profiles[key] is not None and transaction.get(key) is None]
        for record, key in self.records(new).items():
            transaction.put(record, key)
        for record in self.records([key for key in own if profiles[key] is None]):
            transaction.delete(record)

    def sign(self, transaction: Any) -> None:
        """Note that the index is as new as this transaction. Call it in every transaction."""
        note = IndexNote.of_bytes(transaction.get(INDEXED))
        self._note(transaction, {} if note is None else note.entities)

    def begin_anew(self, transaction: Any) -> None:
        """Note that an empty mirror has all records that it needs."""
        self._note(transaction, self.entities)

    def steps(self, note: IndexNote | None, changing: Changing, keys_from: KeysFrom) -> Iterator[None]:
        """Make the index as these entities need it, step by step; no steps if it is so already.

        `note`: of the index as it is; None if it cannot be used. Between the steps no profile may change, unless by
        `follow`. Raises what `changing` raises.
        """
        found = note.entities if note is not None and note.key_digest == self._key.digest else {}
        kept = {name: form for name, form in self.entities.items() if found.get(name) == form}
        if kept == self.entities == found and (kept or not _records_from(keys_from, INDEX)):
            return
        with changing() as transaction:
            self._note(transaction, kept)
        yield
        yield from _delete_all(changing, keys_from, kept)
        for name, is_hashed in self.entities.items():
            if name in kept:
                continue
            prefix = f"{name}:".encode()
            begin = prefix
            while keys := [key for key in keys_from(begin, _STEP_KEYS) if key.startswith(prefix)]:
                with changing() as transaction:
                    for record, key in self.records(keys).items():
                        transaction.put(record, key)
                begin = keys[-1] + b"\0"
                yield
            kept[name] = is_hashed
            with changing() as transaction:
                self._note(transaction, kept)
        if not self.entities:
            with changing() as transaction:
                transaction.delete(INDEXED)

    def _note(self, transaction: Any, entities: Mapping[str, bool]) -> None:
        transaction.put(INDEXED, IndexNote(transaction.id(), self._key.digest, entities).to_bytes())

    def _identities_of(self, texts: Sequence[bytes]) -> list[int]:
        if not texts:
            return []
        data = np.frombuffer(bytearray(b"".join(texts)), dtype=np.uint8)
        ends, found = np.cumsum(list(map(len, texts)), dtype=np.int64), np.zeros(len(texts), dtype=np.int64)
        kernel.identities_of_texts(data, ends, self._key.low, self._key.high, found)
        return found.tolist()


def index_of(plan: Plan) -> IdentityIndex:
    """Returns the index that a mirror needs for a catalogue; one of no entity for one without hops."""
    targets = sorted(set(plan.listed))
    keys = {plan.entity_names[target]: plan.entity_keys[target][0] for target in targets}
    return IdentityIndex({name: has_hashed_key(field_named(key, plan.fields)) for name, key in keys.items()}, plan.key)


def _records_from(keys_from: KeysFrom, begin: bytes) -> list[bytes]:
    return [key for key in keys_from(begin, _STEP_KEYS) if key.startswith(INDEX)]


def _delete_all(changing: Changing, keys_from: KeysFrom, kept: Iterable[str]) -> Iterator[None]:
    """Delete the records of all entities but those that are kept."""
    left = tuple(map(record_prefix, kept))
    begin = INDEX
    while keys := _records_from(keys_from, begin):
        begin = keys[-1] + b"\0"
        gone = [key for key in keys if not (left and key.startswith(left))]
        if gone:
            with changing() as transaction:
                for key in gone:
                    transaction.delete(key)
        yield
