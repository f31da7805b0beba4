"""The mirror's index by identity: a card remembers its merchants as identities, and a profile stands under its key.

    card:c-17                            remembers the merchants 4b1c60f2a9d3e875 and 53f8d7a2c04b916e
    \\0index:merchant:4b1c60f2a9d3e875    merchant:m-1       a record of this index
    merchant:m-1                         the profile
    \\0indexed                            the mirror's transaction 812, the identity key's digest, merchant=text

1. Only entities that features of other entities look at have records. A catalogue without such features has no index.
2. The companion writes a record in the transaction that adds its profile, and deletes it with the profile.
3. `\\0indexed` is written in every transaction. If the mirror's newest transaction has another number, a companion that
   keeps no index has changed profiles since then, and the index is created again.
4. `steps` makes what a catalogue needs, by a walk over the keys, and removes what it does not need. An entity stands in
   `\\0indexed` only while it has all its records. A walk that was interrupted begins again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from paywarden.features import kernel
from paywarden.features.catalogue.identity import IdentityKey
from paywarden.features.profiles.keys import field_named, has_hashed_key
from paywarden.features.profiles.plan import Plan

INDEXED = b"\0indexed"
INDEX = b"\0index:"
# An identity in 16 digits. Its highest bit but one is set (kernel.IDENTITY_BIT), and the highest is not.
_HASHED_ID = re.compile(rb"[4-7][0-9a-f]{15}")
_TEXT, _HASHED = "text", "hashed"
_FORMS = {_TEXT: False, _HASHED: True}


class Changes(Protocol):
    """A transaction that changes the mirror (streams/companion/mirror_writer.py)."""

    numbered: dict[bytes, Callable[[int], bytes]]

    def put(self, key: bytes, value: bytes) -> None: ...

    def delete(self, key: bytes) -> None: ...

    def missing(self, keys: list[bytes]) -> list[bytes]: ...

    def before(self, key: bytes) -> bytes | None: ...


Changing = Callable[[], AbstractContextManager[Changes]]
"""Begins a transaction."""
Walk = Callable[[], Iterable[list[bytes]]]
"""Returns all keys of the mirror, in parts."""


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
    """Keeps the index of one mirror."""

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

    def follow(self, changes: Changes, profiles: Mapping[bytes, bytes | None]) -> None:
        """Add the records of profiles that the mirror lacks so far, and delete those of erased ones (None)."""
        own = [key for key in profiles if key.startswith(self._prefixes)]
        new = changes.missing([key for key in own if profiles[key] is not None])
        for record, key in self.records(new).items():
            changes.put(record, key)
        for record in self.records([key for key in own if profiles[key] is None]):
            changes.delete(record)

    def sign(self, changes: Changes) -> None:
        """Note that the index is as new as this transaction. Call it in every transaction."""
        if INDEXED not in changes.numbered:
            note = IndexNote.of_bytes(changes.before(INDEXED))
            self._note(changes, {} if note is None else note.entities)

    def begin_anew(self, changes: Changes) -> None:
        """Note that an empty mirror has all records that it needs."""
        self._note(changes, self.entities)

    def steps(self, note: IndexNote | None, changing: Changing, walk: Walk, *, has_records: bool) -> Iterator[None]:
        """Make the index as these entities need it, step by step; no steps if it is so already.

        `note`: of the index as it is; None if it cannot be used. `has_records`: whether there may be any. Between the
        steps no profile may change, unless by `follow`. Raises what `changing` raises.
        """
        found = note.entities if note is not None and note.key_digest == self._key.digest else {}
        kept = {name: form for name, form in self.entities.items() if found.get(name) == form}
        if kept == self.entities == found and (kept or not has_records):
            return
        with changing() as changes:
            self._note(changes, kept)
        yield
        left = tuple(map(record_prefix, kept))
        for keys in walk() if has_records else ():
            gone = [key for key in keys if key.startswith(INDEX) and not (left and key.startswith(left))]
            if gone:
                with changing() as changes:
                    for key in gone:
                        changes.delete(key)
            yield
        lacking = tuple(f"{name}:".encode() for name in self.entities if name not in kept)
        for keys in walk() if lacking else ():
            records = self.records([key for key in keys if key.startswith(lacking)])
            if records:
                with changing() as changes:
                    for record, key in records.items():
                        changes.put(record, key)
            yield
        with changing() as changes:
            if self.entities:
                self._note(changes, self.entities)
            else:
                changes.delete(INDEXED)

    def _note(self, changes: Changes, entities: Mapping[str, bool]) -> None:
        noted = dict(entities)
        changes.numbered[INDEXED] = lambda number: IndexNote(number, self._key.digest, noted).to_bytes()

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
