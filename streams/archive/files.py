"""The files of an archive: each Parquet file holds a range of one partition's offsets.

    DIR/TOPIC/date=YYYY-MM-DD/part-PARTITION-FIRSTOFFSET.parquet

The date is the UTC day on which the file's first record reached Kafka; no record of the file reached it on a later day.
A file covers all offsets from its first one to the beginning of the partition's next file. Its footer names that end,
and the records in between that could not be decoded and have no row:

    rows     streams/kafka/topic_rows.py
    footer   `paywarden.archive`, JSON: partition, first and end offset, undecoded, and times to skip the file by; in a
             file with hashes of e-mail addresses, which key made them (`key_digest`); in a sealed file
             (sealed_rows.py), which keys open it

A writer writes a file beside its place, syncs it and renames it. The files alone therefore say how far an archive has
come.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby, pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paywarden.schemas import arrow_files
from paywarden.schemas.durability import sync_folder
from paywarden.schemas.erasure_keys import ErasureKeys
from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.schemas.file_state import open_lock
from paywarden.streams.archive.sealed_rows import Seal, is_sealed, is_sealed_by_card, sealed, unsealed
from paywarden.streams.kafka.topic_rows import OFFSET, TIMESTAMP, TopicRows, Undecoded

TIME_COLUMNS = {
    "payments": "event_time_ms",
    "outcomes": "outcome_time_ms",
    "decisions": "event_time_ms",
    "shadow-decisions": "decided_time_ms",
    "verdicts": TIMESTAMP,
    "drift-alerts": "time_ms",
    "drift-acknowledgements": "time_ms",
}
"""The column with the event's own time, by topic."""
TOPICS = tuple(TIME_COLUMNS)
"""The topics that can be archived."""

_log = logging.getLogger(__name__)

_FOOTER = b"paywarden.archive"
_NAME = re.compile(r"part-([0-9]+)-([0-9]+)\.parquet")
_LOCK_FILE = ".lock"
_UNFINISHED = ".unfinished"


class ArchiveUnwritable(TemporaryFailure):
    """The folder of an archive takes no files now: its disk is full, for example."""


@dataclass(frozen=True)
class ArchiveFile:
    """A file of an archive, as its footer describes it."""

    path: Path
    partition: int
    offsets: range
    timestamp_ms_max: int
    """The newest of Kafka's own times of its records."""
    times_ms: tuple[int, int] | None
    """The earliest and the latest of the events' own times; None for a file without rows."""
    undecoded: tuple[Undecoded, ...]
    topic_id: str = ""
    """The id of the topic that the offsets belong to; "" if the cluster has no ids."""
    key_digest: str = ""
    """Which key made the hashes in the file (features/catalogue/identity.py); "" for a file without hashes."""
    seal: Seal | None = None
    """What opens the file's rows; None for a file that is not sealed."""


def topic_folder(archive: Path, topic: str) -> Path:
    """Returns the folder of a topic in an archive."""
    return archive / topic


@contextmanager
def locked(archive: Path, topic: str) -> Iterator[None]:
    """Lock a topic's files for one writer. Removes the unfinished files of a killed writer.

    Raises Misconfigured when another process writes them, ArchiveUnwritable when they cannot be written.
    """
    folder = topic_folder(archive, topic)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open_lock(folder / _LOCK_FILE) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in folder.glob(f"date=*/*{_UNFINISHED}"):
                path.unlink()
            yield
    except BlockingIOError:
        raise Misconfigured(f"another process is writing to {folder}") from None
    except OSError as error:
        raise ArchiveUnwritable(f"cannot write an archive to {folder}: {error.strerror or error}") from error


def write_part(  # noqa: PLR0913
    archive: Path,
    topic: str,
    partition: int,
    offsets: range,
    *,
    day_ms: int,
    rows: TopicRows,
    topic_id: str = "",
    key_digest: str = "",
    keys: ErasureKeys | None = None,
) -> Path:
    """Write a file whose date is the day of `day_ms`, sealed with `keys`. On return it is on disk, whole.

    After an OSError it is not there.
    """
    date = datetime.fromtimestamp(day_ms / 1000, UTC).date().isoformat()
    path = topic_folder(archive, topic) / f"date={date}" / f"part-{partition}-{offsets.start}.parquet"
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(path.name + _UNFINISHED)
    content = _footer(topic, partition, offsets, rows) | {"topic_id": topic_id}
    if key_digest:
        content["key_digest"] = key_digest
    table = rows.table
    if keys is not None and is_sealed(topic):
        content["seal"] = Seal.of(keys, table.schema).to_json()
        table = sealed(table, topic, keys, TIME_COLUMNS[topic])
    footer = {_FOOTER: json.dumps(content).encode()}
    try:
        with unfinished.open("wb") as file:
            pq.write_table(table.replace_schema_metadata(footer), file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        # A part of a file would keep a full disk full.
        unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return path


def _footer(topic: str, partition: int, offsets: range, rows: TopicRows) -> dict[str, object]:
    timestamps = [pc.max(rows.table[TIMESTAMP]).as_py() or 0, *(record.timestamp_ms for record in rows.undecoded)]
    times = pc.min_max(rows.table[TIME_COLUMNS[topic]]).as_py()
    return {
        "topic": topic,
        "partition": partition,
        "first_offset": offsets.start,
        "end_offset": offsets.stop,
        "timestamp_ms_max": max(timestamps),
        "times_ms": [times["min"], times["max"]] if len(rows.table) else None,
        "undecoded": [[record.offset, record.timestamp_ms, record.reason] for record in rows.undecoded],
    }


def read_parts(archive: Path, topic: str) -> dict[int, list[ArchiveFile]]:
    """Returns the files of a topic by partition, in order of offsets.

    Raises Misconfigured for a file whose footer does not match its name, or for two files with the same offsets.
    """
    parts = [_part(path, topic) for path in topic_folder(archive, topic).glob("date=*/part-*.parquet")]
    parts.sort(key=lambda part: (part.partition, part.offsets.start, part.path))
    by_partition = {partition: list(files) for partition, files in groupby(parts, key=lambda part: part.partition)}
    for files in by_partition.values():
        for earlier, later in pairwise(files):
            if later.offsets.start < earlier.offsets.stop:
                raise Misconfigured(f"{earlier.path} and {later.path} cover the same offsets: remove one of them")
    return by_partition


def has_sealed_files(archive: Path) -> bool:
    """Whether a file of any topic is sealed. Raises the errors of `read_parts`."""
    return any(part.seal for topic in TOPICS for files in read_parts(archive, topic).values() for part in files)


def _part(path: Path, topic: str) -> ArchiveFile:
    try:
        footer = (pq.read_schema(path).metadata or {}).get(_FOOTER)
    except arrow_files.UNREADABLE as error:
        raise Misconfigured(f"{path} cannot be read as Parquet: {(str(error).splitlines() or [''])[0]}") from error
    name = _NAME.fullmatch(path.name)
    try:
        content = json.loads(footer or b"")
        partition, offsets = content["partition"], range(content["first_offset"], content["end_offset"])
        if name is None or (topic, int(name[1]), int(name[2])) != (content["topic"], partition, offsets.start):
            raise Misconfigured(f"{path} is not what its name says: its footer is of {content['topic']} {partition}")
        times = None if content["times_ms"] is None else (content["times_ms"][0], content["times_ms"][1])
        undecoded = tuple(Undecoded(partition, *fields) for fields in content["undecoded"])
        return ArchiveFile(
            path,
            partition,
            offsets,
            content["timestamp_ms_max"],
            times,
            undecoded,
            topic_id=content["topic_id"],
            key_digest=content.get("key_digest", ""),
            seal=Seal.from_json(content["seal"]) if "seal" in content else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise Misconfigured(f"{path} is no file of an archive: its footer does not say what it covers") from error


def missing_ranges(wanted: range, covered: Sequence[range]) -> list[range]:
    """Returns the ranges to add, so that all offsets from the first to the last are covered, `wanted` included.

    `covered` are in order and do not touch or overlap. Example: wanted 5…9 and covered [0…2] returns [3…9].
    """
    if not covered:
        return [wanted] if wanted else []
    first, stop = covered[0].start, covered[-1].stop
    if wanted:
        first, stop = min(first, wanted.start), max(stop, wanted.stop)
    edges = [first, *(edge for offsets in covered for edge in (offsets.start, offsets.stop)), stop]
    gaps = (range(edges[place], edges[place + 1]) for place in range(0, len(edges), 2))
    return [gap for gap in gaps if gap]


def read_archive(
    archive: Path,
    topic: str,
    schema: pa.Schema,
    *,
    since_ms: int | None = None,
    until_ms: int | None = None,
    times_ms: tuple[int | None, int | None] = (None, None),
    optional: Sequence[str] = (),
    key_digest: str = "",
) -> TopicRows:
    """Returns the rows of a topic with the columns of `schema`, partition by partition, in order of offsets.

    `since_ms` and `until_ms` mean the same as in TopicSource.ranges. Files without an event between the two `times_ms`
    (None: no bound) are not read. An `optional` column may be missing in a file; its values are then null. With
    `key_digest`, the key of that digest must have made the hashes in the files.

    Rows that nobody can open any more are left out, and a warning has their number.

    Raises Misconfigured for a missing topic, a gap between a partition's files, a missing column, or another key.
    """
    folder = topic_folder(archive, topic)
    if not folder.is_dir():
        raise Misconfigured(
            f"{folder} is not there: `paywarden admin archive --topic {topic} --out {archive}` makes it"
        )
    tables, undecoded = [schema.empty_table()], []
    opener = Opener(archive, topic)
    for partition, parts in read_parts(archive, topic).items():
        check_joined(folder, partition, parts)
        asked = _asked(parts, since_ms, until_ms)
        for part in parts:
            if part.offsets.stop <= asked.start or part.offsets.start >= asked.stop:
                continue
            undecoded += [record for record in part.undecoded if record.offset in asked]
            if part.times_ms is not None and _overlaps(part.times_ms, times_ms):
                _check_key(part, key_digest)
                tables.append(_cast(part.path, opener.open(part, asked), schema, optional))
    opener.warn_of_erased()
    return TopicRows(pa.concat_tables(tables), tuple(undecoded))


class Opener:
    """Reads the files of one topic of an archive, sealed or not."""

    def __init__(self, archive: Path, topic: str) -> None:
        self._archive, self._topic = archive, topic
        self._keys: dict[str, ErasureKeys] = {}
        self._payments: dict[str, dict[bytes, bytes]] = {}
        self._erased = 0

    def open(self, part: ArchiveFile, offsets: range | None = None) -> pa.Table:
        """Returns the file's rows at these offsets, with all their columns and without those that are erased.

        Raises Misconfigured for a file or keys that cannot be read.
        """
        table = _within(_read(part.path), part.offsets if offsets is None else offsets)
        if part.seal is None:
            return table
        keys = self._keys_of(part.seal, part.path)
        payments = None if is_sealed_by_card(self._topic) else self._payment_keys(part.seal, keys)
        opened = unsealed(table, self._topic, part.seal, keys, payments)
        self._erased += len(table) - len(opened)
        return opened

    def warn_of_erased(self) -> None:
        """Log how many rows were left out so far, because nobody can open them any more."""
        if self._erased:
            _log.warning("%d %s of erased cards are missing from %s", self._erased, self._topic, self._archive)

    def _keys_of(self, seal: Seal, path: Path) -> ErasureKeys:
        if seal.path not in self._keys:
            self._keys[seal.path] = ErasureKeys(Path(seal.path))
        keys = self._keys[seal.path]
        if keys.id != seal.keys_id:
            raise Misconfigured(f"{path} was sealed with other keys than those in {seal.path}: mount or restore them")
        return keys

    def _payment_keys(self, seal: Seal, keys: ErasureKeys) -> dict[bytes, bytes]:
        """Returns the keys of all payments that the archive names, by their hash: a payment's id opens its outcomes."""
        if seal.path not in self._payments:
            ids: set[str] = set()
            for topic in ("payments", "decisions"):
                if topic_folder(self._archive, topic).is_dir():
                    opener = Opener(self._archive, topic)
                    for parts in read_parts(self._archive, topic).values():
                        for part in parts:
                            ids.update(opener.open(part)["payment_id"].to_pylist())
            self._payments[seal.path] = dict(map(keys.payment_key, ids))
        return self._payments[seal.path]


def _check_key(part: ArchiveFile, key_digest: str) -> None:
    if key_digest and part.key_digest not in ("", key_digest):
        raise Misconfigured(
            f"{part.path}: another identity key made its hashes of e-mail addresses: wanted the key of digest "
            f"{key_digest}, got {part.key_digest}; set [features] identity_key_file to the key of that deployment"
        )


def check_joined(folder: Path, partition: int, parts: Sequence[ArchiveFile]) -> None:
    """Raises Misconfigured if offsets between the files of a partition are missing."""
    for earlier, later in pairwise(parts):
        if earlier.offsets.stop != later.offsets.start:
            raise Misconfigured(
                f"{folder}: partition {partition} has a gap: offsets {earlier.offsets.stop} to "
                f"{later.offsets.start - 1} are missing before {later.path.name}; "
                "`paywarden admin archive` adds them if the topic still has them"
            )


def _asked(parts: Sequence[ArchiveFile], since_ms: int | None, until_ms: int | None) -> range:
    """Returns the offsets of a partition that Kafka would return for this range of its own times."""
    first = parts[0].offsets.start if since_ms is None else _first_offset_at(parts, since_ms)
    stop = parts[-1].offsets.stop if until_ms is None else _first_offset_at(parts, until_ms)
    return range(first, stop)


def _first_offset_at(parts: Sequence[ArchiveFile], time_ms: int) -> int:
    """Returns the offset of the first record with this time or a later one; the end if there is none."""
    for part in parts:
        if part.timestamp_ms_max >= time_ms:
            rows = pq.read_table(part.path, columns=[OFFSET, TIMESTAMP], partitioning=None)
            undecoded = [record.offset for record in part.undecoded if record.timestamp_ms >= time_ms]
            first = pc.min(rows.filter(pc.greater_equal(rows[TIMESTAMP], time_ms))[OFFSET]).as_py()
            return int(min([*undecoded, *([] if first is None else [first])]))
    return parts[-1].offsets.stop


def _overlaps(times_ms: tuple[int, int], wanted: tuple[int | None, int | None]) -> bool:
    first, last = wanted
    return (last is None or times_ms[0] <= last) and (first is None or times_ms[1] >= first)


def _read(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path, partitioning=None)
    except arrow_files.UNREADABLE as error:
        raise Misconfigured(f"{path} cannot be read as Parquet: {(str(error).splitlines() or [''])[0]}") from error
    if OFFSET not in table.column_names:
        raise Misconfigured(f"{path}: column {OFFSET} is missing")
    return table


def _cast(path: Path, table: pa.Table, schema: pa.Schema, optional: Sequence[str]) -> pa.Table:
    for field in schema:
        if field.name not in table.column_names and field.name in optional:
            table = table.append_column(field.name, pa.nulls(len(table), field.type))
        elif field.name not in table.column_names:
            raise Misconfigured(f"{path}: column {field.name} is missing")
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise Misconfigured(f"{path}: wanted other types of columns: {(str(error).splitlines() or [''])[0]}") from error


def _within(table: pa.Table, offsets: range) -> pa.Table:
    is_asked = pc.and_(pc.greater_equal(table[OFFSET], offsets.start), pc.less(table[OFFSET], offsets.stop))
    return table.filter(is_asked)
