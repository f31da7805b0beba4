"""Erase forgotten cards from copies below a folder that no key seals.

    histories, replays, archives     a Parquet file is written again without rows of these cards and of their payments
    backups of the embedded store    a store is written again without their profiles and the records of their payments
    exported dead letters            deleted: 0-17.key has the id of the card or of the payment, 0-17.value the rest

The file of erasure keys knows the cards, as keyed hashes, and until when each is erased. Later payments stay. The call
therefore needs no list of cards, and also works for a copy that comes back from another disk years later.

1. note       the payments of these cards, from every Parquet file that has both ids
2. replace    each file with something of them: a new file beside it, a sync, a rename

LMDB leaves bytes of deleted records in its pages, even in a compacted copy. A new store is therefore filled record by
record.

What can go wrong:

- The process is killed: the same call goes on. Each file is the old one or the new one.
- A file has ids of payments alone, and their cards are in no file below the folder: its rows stay.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from paywarden.features.profiles.keys import SEPARATOR
from paywarden.features.profiles.plan import Plan
from paywarden.features.stores.lmdb import DATA_FILE, EXPIRY_BYTES
from paywarden.schemas import arrow_files
from paywarden.schemas.durability import sync_folder
from paywarden.schemas.erasure_keys import ErasureKeys
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.proto.store_pb2 import PaymentRecord
from paywarden.streams.maintenance.backup import MANIFEST, read_backup

_NEW = ".without-erased"
_LETTER_KEY = re.compile(r"[0-9]+-[0-9]+\.key")
_PAYMENT = b"payment:"
_COLUMNS = ("card_id", "payment_id", "event_time_ms")


@dataclass
class Swept:
    """How many rows of Parquet files, records of stores and dead letters were erased."""

    rows: int = 0
    records: int = 0
    letters: int = 0


def sweep(folder: Path, keys: ErasureKeys, plan: Plan) -> Swept:
    """Erase all cards that were forgotten from the copies below a folder. Raises Misconfigured, OSError."""
    return _Sweep(keys, plan).run(folder)


class _Sweep:
    def __init__(self, keys: ErasureKeys, plan: Plan) -> None:
        self._keys, self._done = keys, Swept()
        self._until_by_card: dict[str, int] = {}
        self._payments: set[str] = set()
        # The place of the card in the ids of each kind of entity that has one.
        self._card_places = {
            name.encode(): (len(fields), fields.index("card_id"))
            for name, fields in zip(plan.entity_names, plan.entity_keys, strict=True)
            if "card_id" in fields
        }

    def run(self, folder: Path) -> Swept:
        paths = sorted(path for path in folder.rglob("*.parquet") if path.is_file() and not path.is_symlink())
        for path in paths:
            for table in _row_groups(path, _COLUMNS):
                if {"card_id", "payment_id"} <= set(table.column_names):
                    self._payments.update(table.filter(pa.array(self._of_cards(table)))["payment_id"].to_pylist())
        for path in paths:
            self._sweep_rows(path)
        for manifest in sorted(folder.rglob(MANIFEST)):
            taken_ms = read_backup(manifest.parent).taken_time_ms
            for data in sorted(manifest.parent.rglob(DATA_FILE)):
                self._sweep_store(data.parent, taken_ms)
        for path in sorted(folder.rglob("*.key")):
            if _LETTER_KEY.fullmatch(path.name):
                self._sweep_letter(path)
        return self._done

    def _until_ms(self, card: str) -> int:
        if card not in self._until_by_card:
            self._until_by_card[card] = self._keys.erased_until_ms(card)
        return self._until_by_card[card]

    # Parquet files

    def _of_cards(self, table: pa.Table) -> NDArray[np.bool_]:
        """Returns which rows are payments of erased cards, and not later than the erasure."""
        cards = pc.fill_null(pc.cast(table["card_id"], pa.string()), "").combine_chunks().dictionary_encode()
        untils = np.array([self._until_ms(card) for card in cards.dictionary.to_pylist()], dtype=np.int64)
        until_ms = untils[cards.indices.to_numpy()]
        if "event_time_ms" not in table.column_names:
            return np.asarray(until_ms > 0, dtype=np.bool_)
        time_ms = pc.fill_null(table["event_time_ms"], 0).to_numpy()
        return np.asarray((until_ms > 0) & (time_ms <= until_ms), dtype=np.bool_)

    def _is_erased(self, table: pa.Table) -> NDArray[np.bool_]:
        is_erased = np.zeros(len(table), dtype=np.bool_)
        if "card_id" in table.column_names:
            is_erased |= self._of_cards(table)
        if "payment_id" in table.column_names:
            ids = pc.cast(table["payment_id"], pa.string())
            is_erased |= pc.is_in(ids, value_set=pa.array(self._payments, pa.string())).to_numpy()
        return is_erased

    def _sweep_rows(self, path: Path) -> None:
        count = sum(int(self._is_erased(table).sum()) for table in _row_groups(path, _COLUMNS))
        if not count:
            return
        new = path.with_name(path.name + _NEW)
        with new.open("wb") as file:
            with pq.ParquetWriter(file, pq.read_schema(path), compression="zstd") as writer:
                for table in _row_groups(path):
                    writer.write_table(table.filter(pa.array(~self._is_erased(table))))
            file.flush()
            os.fsync(file.fileno())
        _replace(path, new)
        self._done.rows += count

    # Stores

    def _sweep_store(self, store: Path, taken_ms: int) -> None:
        def is_card_erased(key: bytes) -> bool:
            entity, _, identity = key.partition(b":")
            if entity not in self._card_places:
                return False
            count, place = self._card_places[entity]
            ids = identity.decode().split(SEPARATOR) if count > 1 else [identity.decode()]
            return len(ids) == count and self._until_ms(ids[place]) >= taken_ms

        # Combinations whose ids are too long are named by records of payments alone.
        named: set[bytes] = set()
        with lmdb.open(str(store), readonly=True, lock=False, create=False) as old, old.begin() as reading:
            for key, value in _payment_records(reading):
                of_record = _keys_in(value)
                if any(map(is_card_erased, of_record)):
                    named.add(key)
                    named.update(one for one in of_record if one.partition(b":")[0] in self._card_places)
            erased = named | set(filter(is_card_erased, reading.cursor().iternext(values=False)))
            count = sum(reading.get(key) is not None for key in erased)
            if count:
                _fill_without(store, reading, erased)
        if count:
            _replace(store / DATA_FILE, store / _NEW / DATA_FILE)
            shutil.rmtree(store / _NEW)
        self._done.records += count

    # Dead letters

    def _sweep_letter(self, path: Path) -> None:
        identity = path.read_bytes().decode(errors="replace")
        if identity in self._payments or self._until_ms(identity) > 0:
            path.with_suffix(".value").unlink(missing_ok=True)
            path.unlink()
            self._done.letters += 1


def _row_groups(path: Path, columns: tuple[str, ...] | None = None) -> Iterator[pa.Table]:
    """Yields the groups of rows of a file, with those of the columns that it has."""
    try:
        with pq.ParquetFile(path) as file:
            names = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
            if names != []:
                for number in range(file.num_row_groups):
                    yield file.read_row_group(number, columns=names)
    except arrow_files.UNREADABLE as error:
        raise Misconfigured(f"{path} cannot be read as Parquet: {(str(error).splitlines() or [''])[0]}") from error


def _payment_records(transaction: lmdb.Transaction) -> Iterator[tuple[bytes, bytes]]:
    cursor = transaction.cursor()
    is_there = cursor.set_range(_PAYMENT)
    while is_there and (key := bytes(cursor.key())).startswith(_PAYMENT):
        yield key, bytes(cursor.value())[EXPIRY_BYTES:]
        is_there = cursor.next()


def _keys_in(record: bytes) -> list[bytes]:
    """Returns the keys that a record of a payment names; none for a damaged one."""
    try:
        return [key.encode() for key in PaymentRecord.FromString(record).keys]
    except DecodeError:
        return []


def _fill_without(store: Path, reading: lmdb.Transaction, erased: Set[bytes]) -> None:
    """Fill a new store in a folder within the old one's."""
    new = store / _NEW
    shutil.rmtree(new, ignore_errors=True)
    map_size = 2 * (store / DATA_FILE).stat().st_size + (1 << 24)
    with lmdb.open(str(new), map_size=map_size, mode=0o600) as fresh, fresh.begin(write=True) as writing:
        for key, value in reading.cursor():
            if key not in erased:
                writing.put(key, value, append=True)


def _replace(path: Path, new: Path) -> None:
    shutil.copymode(path, new)
    new.replace(path)
    sync_folder(path.parent)
