"""A copy of the embedded store, from which the stream goes on as if nothing had happened.

A profile contains events up to an offset, and its worker's committed offset is never ahead of it. The order
does the rest:

    backup    1. note the committed offsets        2. copy the store: it has all events below them, and more
    restore   1. put the copy in place             2. commit the noted offsets
    stream    reads from there; an event that a profile contains already is skipped

A backup of a store that is being written is therefore exact, however long the copy takes. Kafka must still have the
records from the noted offsets on: `restore` refuses where they have expired.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lmdb
from confluent_kafka import KafkaException, TopicPartition

from paywarden.features.stores.lmdb import DATA_FILE
from paywarden.schemas.errors import BrokerUnavailable, Misconfigured, StoreUnavailable
from paywarden.schemas.file_state import read_regular
from paywarden.schemas.private_files import make_private_folder
from paywarden.streams.kafka.admin import make_admin, partitions_in, watermarks
from paywarden.streams.kafka.client import REACH_TIMEOUT_S, KafkaSettings, reason_of
from paywarden.streams.kafka.reading import make_consumer
from paywarden.streams.maintenance.add_partitions import members_of

MANIFEST = "backup.json"
_STORE, _SETS = "store", "store.sets"
_LOCK_FILE = "lock.mdb"
_FORMAT = 1

Offsets = dict[str, dict[int, int | None]]


@dataclass(frozen=True)
class Backup:
    """The content of `backup.json`. Offsets are by topic, without its prefix, and partition; None: none committed."""

    profile_set: str
    group: str
    taken_time_ms: int
    offsets: Offsets
    format: int = _FORMAT


@dataclass(frozen=True)
class BackedUp:
    """The store and the workers that a backup is of. `topics` are those that the group reads, without the prefix."""

    store: Path
    kafka: KafkaSettings
    profile_set: str
    group: str
    topics: Sequence[str]


def back_up(what: BackedUp, folder: Path, *, now_ms: int) -> Backup:
    """Write a backup into `folder`, which must be empty or absent. Processes may go on meanwhile.

    Raises Misconfigured if the folder is not empty or there is no store; BrokerUnavailable; StoreUnavailable.
    """
    if folder.exists() and any(folder.iterdir()):
        raise Misconfigured(f"{folder}: wanted an empty folder for the backup")
    if not (what.store / DATA_FILE).exists():
        raise Misconfigured(f"there is no store at {what.store}")
    backup = Backup(what.profile_set, what.group, now_ms, _committed(what))
    make_private_folder(folder)
    _copy_tree(what.store, folder / _STORE)
    _copy_tree(_sets_of(what.store), folder / _SETS)
    # Last: a backup without it was interrupted.
    (folder / MANIFEST).write_text(json.dumps(dataclasses.asdict(backup), indent=1) + "\n", encoding="utf-8")
    return backup


def restore(what: BackedUp, folder: Path) -> Backup:
    """Put a backup in place of a store that is gone, and let the stream go on from its offsets.

    Raises Misconfigured if there is a store, if workers run, if the backup is of another group or is not complete, or
    if records that it needs have expired; BrokerUnavailable; StoreUnavailable. It checks all of this before it writes.
    """
    backup = read_backup(folder)
    if backup.group != what.group:
        raise Misconfigured(f"[stream] group_id: the backup in {folder} is of group {backup.group}, not {what.group}")
    for place in (what.store, _sets_of(what.store)):
        if place.exists() and any(place.iterdir()):
            raise Misconfigured(f"{place} is not empty: move it away first")
    if members := members_of(make_admin(what.kafka), what.group):
        raise Misconfigured(f"{members} stream workers are running: stop them first")
    places = _places_to_commit(what, backup)
    _copy_tree(folder / _STORE, what.store)
    _copy_tree(folder / _SETS, _sets_of(what.store))
    consumer = make_consumer(what.kafka, group_id=what.group)
    try:
        consumer.commit(offsets=places, asynchronous=False)
    except KafkaException as error:
        raise BrokerUnavailable(f"Kafka does not take the offsets of the backup: {reason_of(error)}") from error
    finally:
        consumer.close()
    return backup


def read_backup(folder: Path) -> Backup:
    """Returns the content of backup.json. Raises Misconfigured where the backup is not complete."""
    try:
        fields = json.loads(read_regular(folder / MANIFEST))
        if fields["format"] != _FORMAT:
            raise Misconfigured(f"{folder / MANIFEST}: format: wanted {_FORMAT}, got {fields['format']!r}")
        offsets = {
            str(topic): {int(partition): None if offset is None else int(offset) for partition, offset in rows.items()}
            for topic, rows in fields["offsets"].items()
        }
        return Backup(str(fields["profile_set"]), str(fields["group"]), int(fields["taken_time_ms"]), offsets)
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise Misconfigured(f"{folder} is not a complete backup: {MANIFEST} cannot be read") from error


def _committed(what: BackedUp) -> Offsets:
    """Returns the group's committed offset of every partition that it reads."""
    admin, consumer = make_admin(what.kafka), make_consumer(what.kafka, group_id=what.group)
    try:
        found: Offsets = {}
        for name in what.topics:
            topic = what.kafka.topic(name)
            asked = [TopicPartition(topic, number) for number in partitions_in(admin, what.kafka, name)]
            answers = consumer.committed(asked, timeout=REACH_TIMEOUT_S)
            found[name] = {one.partition: one.offset if one.offset >= 0 else None for one in answers}
    except KafkaException as error:
        raise BrokerUnavailable(f"Kafka does not give the committed offsets: {reason_of(error)}") from error
    finally:
        consumer.close()
    return found


def _places_to_commit(what: BackedUp, backup: Backup) -> list[TopicPartition]:
    """Returns the offsets at which the group goes on. Raises Misconfigured where Kafka has lost a needed record."""
    consumer = make_consumer(what.kafka, group_id=what.group)
    try:
        places = []
        for name, partitions in backup.offsets.items():
            for partition, offset in partitions.items():
                first, _ = watermarks(consumer, what.kafka.topic(name), partition)
                start = 0 if offset is None else offset
                if start < first:
                    raise Misconfigured(
                        f"{name}, partition {partition}: the backup needs records from offset {start} on, and Kafka "
                        f"has them from {first} on: run `paywarden admin rebuild` instead"
                    )
                places.append(TopicPartition(what.kafka.topic(name), partition, start))
    finally:
        consumer.close()
    return places


def _copy_tree(source: Path, target: Path) -> None:
    """Copy a folder of stores and small files. A store is copied in one read transaction, without its free pages."""
    if not source.is_dir():
        return
    make_private_folder(target)
    for entry in sorted(source.iterdir()):
        if entry.is_dir():
            _copy_tree(entry, target / entry.name)
        elif entry.name not in (DATA_FILE, _LOCK_FILE):
            shutil.copyfile(entry, target / entry.name)
            (target / entry.name).chmod(0o600)
    if (source / DATA_FILE).exists():
        _copy_store(source, target)


def _copy_store(source: Path, target: Path) -> None:
    try:
        with lmdb.open(str(source), readonly=True, create=False, max_dbs=0, readahead=False) as environment:
            environment.copy(str(target), compact=True)
        (target / DATA_FILE).chmod(0o600)
    except (lmdb.Error, OSError) as error:
        raise StoreUnavailable(f"cannot copy the store at {source}: {error}") from error


def _sets_of(store: Path) -> Path:
    return Path(f"{store}.sets")
