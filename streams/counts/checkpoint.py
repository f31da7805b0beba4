"""Keeps the state of one partition in the store, so that any worker can continue from there.

Each partition has one record in the store, its head:

    owner       a token of the worker that took the partition over
    progress    the processed records: all before `next_offset`, and state that later records depend on
    quiet_ms    all records that were on the topic at this time are processed

    worker A   take_over   {owner: a, next_offset: 0}
    worker A   save        {owner: a, next_offset: 500}   A may now commit offset 500 on Kafka
    worker B   take_over   {owner: b, next_offset: 500}   Kafka has given the partition to B
    worker A   save        StoreConflict                  A finds b's token and drops its state

Every write is a compare-and-set, and a save expects its own token. This is fencing: a worker that still works for a
partition it has lost cannot overwrite its successor's head. If the answer to a write is lost, the worker saves again.

Drift counts (streams/drift/drift_state.py) and the join of outcomes (streams/outcomes/outcome_state.py) each have a
head of this kind. They add fields of their own, and encode them. This module imports no Faust.
"""

from __future__ import annotations

import json
import struct
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, Self, TypeVar

from paywarden.features.stores.base import ProfileStore, StoreConflict, update_records

# Without records a head is written this often, with the time to which there was none.
QUIET_EVERY_MS = 15_000
_LENGTH = struct.Struct("<I")

_ProgressT = TypeVar("_ProgressT")
_RowT = TypeVar("_RowT")
_SourceT = TypeVar("_SourceT")


@dataclass
class CheckpointHead(ABC, Generic[_ProgressT]):
    """The record of one partition; see the module's docstring for the fields."""

    owner: str
    progress: _ProgressT
    quiet_ms: int = 0

    @abstractmethod
    def encode(self) -> bytes:
        """Return the head as it is stored."""

    @classmethod
    @abstractmethod
    def decode(cls, data: bytes) -> Self:
        """Return the head that `encode` turned into these bytes."""

    @classmethod
    @abstractmethod
    def empty(cls) -> Self:
        """Return the head of a partition without any processed record. It has no owner."""


_HeadT = TypeVar("_HeadT", bound=CheckpointHead[Any])


@dataclass(frozen=True)
class HeadPlace(Generic[_HeadT]):
    """The store and key of one partition's head. `name` stands for the partition in error messages."""

    store: ProfileStore
    key: bytes
    head_type: type[_HeadT]
    ttl_s: int
    name: str


class Checkpoint(Generic[_HeadT]):
    """The head of one partition in the hands of its owner. `saved` is the head as the store has it.

    `save` blocks; one thread at a time may call it.
    """

    def __init__(self, place: HeadPlace[_HeadT], saved: _HeadT) -> None:
        self.saved = saved
        # The time to which all records of the topic have been handed over; `saved` may be behind.
        self._quiet_ms = saved.quiet_ms
        self._place = place

    @staticmethod
    def take_over(
        place: HeadPlace[_HeadT], settle: Callable[[_HeadT], _HeadT] = lambda head: head
    ) -> Checkpoint[_HeadT]:
        """Put a new token into the head, which makes the caller its owner.

        `settle` ends work that the owner before may have left unfinished, and returns the head to continue with. It is
        called again if another worker writes the head meanwhile. Raises StoreUnavailable; StoreConflict if others keep
        writing the head.
        """
        taken = place.head_type.empty()

        def take(_: bytes, stored: bytes | None) -> bytes:
            nonlocal taken
            head = place.head_type.empty() if stored is None else place.head_type.decode(stored)
            taken = replace(settle(head), owner=uuid.uuid4().hex)
            return taken.encode()

        update_records(place.store, [place.key], take, ttl_s=place.ttl_s)
        return Checkpoint(place, taken)

    def note_quiet(self, quiet_ms: int) -> None:
        """Note that all that was on the topic at `quiet_ms` has been handed over."""
        self._quiet_ms = max(self._quiet_ms, quiet_ms)

    @property
    def has_quiet_news(self) -> bool:
        """Whether the quiet mark alone is worth a save."""
        return self._quiet_ms > self.saved.quiet_ms + QUIET_EVERY_MS

    def save(self, head: _HeadT, *, is_all: bool) -> None:
        """Write a head with the owner's token. `is_all`: all that was handed over is in it, so it is quiet.

        Raises StoreUnavailable: save the same or more again later; StoreConflict: another worker has the partition.
        """
        place, owner = self._place, self.saved.owner
        head = replace(head, owner=owner, quiet_ms=self._quiet_ms if is_all else self.saved.quiet_ms)

        def replaced(_: bytes, stored: bytes | None) -> bytes:
            if stored is None or place.head_type.decode(stored).owner != owner:
                raise StoreConflict(f"{place.name} is another worker's")
            return head.encode()

        update_records(place.store, [place.key], replaced, ttl_s=place.ttl_s)
        self.saved = head


def stored_heads(
    store: ProfileStore, keys: Mapping[_SourceT, bytes], decode: Callable[[bytes], _HeadT]
) -> dict[_SourceT, _HeadT]:
    """Return the heads of the partitions that have one. Raises StoreUnavailable."""
    stored = store.read(list(keys.values()))
    return {source: decode(data) for source, data in zip(keys, stored, strict=True) if data is not None}


class PendingRows(Generic[_RowT]):
    """Records of one partition that are read and not saved yet, each as a small row.

    One thread may `add` while another works through the rows that were handed over.

        add(5)  add(6)  hand_over()  add(7)      handed_over: rows 5 and 6, handed_to: 7
    """

    def __init__(self, next_offset: int, row_of: Callable[[int, Mapping[str, Any]], _RowT]) -> None:
        """All records before `next_offset` are saved. `row_of` makes a row of an offset and a decoded record."""
        self._row_of = row_of
        self._added: list[_RowT] = []
        self._added_to = next_offset
        self.handed_over: list[_RowT] = []
        # The offset behind the last record that was handed over.
        self.handed_to = next_offset

    def __len__(self) -> int:
        return len(self._added) + len(self.handed_over)

    def add(self, offset: int, record: Mapping[str, Any]) -> None:
        """Add a decoded record. Offsets rise; a record that is not newer than the last one is a repetition."""
        if offset >= self._added_to:
            self._added.append(self._row_of(offset, record))
            self._added_to = offset + 1

    def skip(self, offset: int) -> None:
        """Pass over a record that cannot be decoded."""
        self._added_to = max(self._added_to, offset + 1)

    def hand_over(self) -> None:
        """Hand over all that was added so far. Not while another thread works through the rows."""
        self.handed_over += self._added
        self._added, self.handed_to = [], self._added_to


def pack(fields: Mapping[str, Any], cells: Iterable[tuple[tuple[Any, ...], bytes]]) -> bytes:
    """Return fields and cells as one record: a length, a header in JSON, then the bytes of the cells.

        39 00 00 00 {"next_offset":500,"cells":[["m1","a",120],["m2","",80]]} <120 bytes> <80 bytes>

    A cell is a key of JSON values and its bytes.
    """
    pairs = list(cells)
    table = [(*key, len(data)) for key, data in pairs]
    header = json.dumps({**fields, "cells": table}, separators=(",", ":")).encode()
    return b"".join((_LENGTH.pack(len(header)), header, *(data for _, data in pairs)))


def unpack(data: bytes) -> tuple[dict[str, Any], list[tuple[list[Any], bytes]]]:
    """Return the fields and the cells that `pack` turned into these bytes."""
    start = _LENGTH.size + _LENGTH.unpack_from(data)[0]
    fields = json.loads(data[_LENGTH.size : start])
    cells = []
    for *key, size in fields.pop("cells"):
        cells.append((key, data[start : start + size]))
        start += size
    return fields, cells
