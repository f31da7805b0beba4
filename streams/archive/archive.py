"""Copy a topic into an archive of Parquet files (streams/archive/files.py).

1. look     compare the offsets that the files cover with the wanted ones; only missing offsets are read
2. gather   a partition's records, until the file is full, a day has ended, or the range is complete
3. write    the file, and rename it into its place

    covered 0…999, wanted 1500…1999    reads 1000…1999: an archive has no gaps

What can go wrong:

- The process is killed: the same call goes on behind the last whole file.
- The topic was deleted and created again, or has lost its end: the run ends with an error.
- Missing records have expired from the topic: the run ends with an error and writes nothing of that range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from paywarden.features.catalogue.identity import LAPTOP_KEY, IdentityKey
from paywarden.schemas.avro import SchemaIds
from paywarden.schemas.erasure_keys import ErasureKeys
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import TABLE_ALONE, PaymentFields
from paywarden.streams.archive.files import locked, missing_ranges, read_parts, topic_folder, write_part
from paywarden.streams.kafka.reading import Record
from paywarden.streams.kafka.topic_rows import RowBuilder, TopicSource, Undecoded, hashed_fields

# The most rows of a file: about 10 MB on disk, and the most that one partition holds in memory.
RECORDS_MAX = 100_000
_DAY_MS = 86_400_000


@dataclass
class Archived:
    """The rows and files that a run added. `is_whole`: the archive now has everything that was wanted."""

    rows: int = 0
    files: int = 0
    undecoded: list[Undecoded] = field(default_factory=list)
    is_whole: bool = True


class Archiver:
    """Writes one topic into an archive."""

    def __init__(
        self,
        source: TopicSource,
        ids: SchemaIds,
        topic: str,
        archive: Path,
        *,
        records_max: int = RECORDS_MAX,
        fields: PaymentFields = TABLE_ALONE,
        key: IdentityKey = LAPTOP_KEY,
        keys: ErasureKeys | None = None,
    ) -> None:
        """`fields` are those of a payment; `key` makes the hashes of e-mail addresses, `keys` seal the rows."""
        self._source, self._topic, self._archive = source, topic, archive
        self._rows, self._records_max = RowBuilder(topic, ids, fields, key), records_max
        self._topic_id, self._keys = "", keys
        self._key_digest = key.digest if topic == "payments" and hashed_fields(fields) else ""

    def wanted(self, since_ms: int | None, until_ms: int | None) -> dict[int, range]:
        """Returns by partition the offsets that a run should cover; see TopicSource.ranges."""
        return self._source.ranges(since_ms, until_ms)

    def run(self, wanted: dict[int, range], stop: Event, progress: Callable[[int], object]) -> Archived:
        """Add the missing records of these offsets; `progress` gets the number of each batch. `stop` ends it early.

        Raises Misconfigured for files that are no archive, or for missing records that have expired from the topic.
        Raises BrokerUnavailable and TemporaryFailure, after which the same call resumes.
        """
        done = Archived()
        with locked(self._archive, self._topic):
            self._topic_id = self._source.topic_id()
            self._check_same()
            covered = {
                partition: [part.offsets for part in parts]
                for partition, parts in read_parts(self._archive, self._topic).items()
            }
            missing = {
                partition: missing_ranges(offsets, covered.get(partition, []))
                for partition, offsets in sorted(wanted.items())
            }
            for partition, ranges in missing.items():
                for offsets in ranges:
                    self._check_there(partition, offsets)
            for partition, ranges in missing.items():
                for offsets in ranges:
                    is_last = not any(later.start >= offsets.stop for later in covered.get(partition, []))
                    self._add(partition, offsets, done, stop, progress, may_be_empty=is_last)
        done.is_whole = not stop.is_set()
        return done

    def _check_same(self) -> None:
        """Raises Misconfigured if the files' offsets do not belong to the topic as it is now."""
        parts = read_parts(self._archive, self._topic)
        folder, now = topic_folder(self._archive, self._topic), self._topic_id
        if self._keys is None and any(part.seal for files in parts.values() for part in files):
            raise Misconfigured(f"{folder} is sealed: set [erasure] keys, or go on in another folder")
        known = {part.topic_id for files in parts.values() for part in files} - {""}
        if now and known and now not in known:
            raise Misconfigured(
                f"{folder} holds another topic of this name: it was deleted and created again, or is on another "
                "cluster: "
                f"its id is {now}, the files have offsets of {', '.join(sorted(known))}; go on in another folder"
            )
        for partition, files in parts.items():
            stop, end = files[-1].offsets.stop, self._source.end(partition)
            if stop > end:
                raise Misconfigured(
                    f"{folder}: partition {partition} is archived to offset {stop}, and the topic ends at {end}: it "
                    "has lost records and may have others at their offsets; go on in another folder"
                )

    def _check_there(self, partition: int, offsets: range) -> None:
        begin = self._source.begin(partition)
        if begin > offsets.start:
            raise Misconfigured(
                f"{topic_folder(self._archive, self._topic)}: partition {partition} needs offset {offsets.start} next, "
                f"and the topic begins at {begin}: the records between have expired; go on in another folder"
            )

    def _add(
        self,
        partition: int,
        offsets: range,
        done: Archived,
        stop: Event,
        progress: Callable[[int], object],
        *,
        may_be_empty: bool,
    ) -> None:
        """Write files for a range of offsets. They cover it without a gap, even where offsets have no records."""
        # Drop the records that a failed run has gathered: they are read again.
        self._rows.take()
        first, day_ms, position, has_jumped = offsets.start, 0, offsets.start, False
        for records in self._source.records(partition, offsets):
            for record in records:
                if self._rows.count and _is_full(self._rows.count, self._records_max, day_ms, record):
                    self._write(partition, range(first, record.offset), day_ms, done, has_jumped=has_jumped)
                    first, has_jumped = record.offset, False
                if self._rows.count == 0:
                    day_ms = record.timestamp_ms
                has_jumped |= record.offset != position
                self._rows.add(record)
                position = record.offset + 1
            progress(len(records))
            if stop.is_set():
                break
        else:
            # Cover also the offsets at the end of the range that no reader sees.
            position = offsets.stop
        if self._rows.count or (not may_be_empty and position > first):
            self._write(partition, range(first, position), day_ms, done, has_jumped=has_jumped)

    def _write(self, partition: int, offsets: range, day_ms: int, done: Archived, *, has_jumped: bool) -> None:
        if has_jumped and self._source.begin(partition) > offsets.start:
            # Transaction markers leave such holes, but so do records that expire before they are read.
            raise Misconfigured(
                f"topic {self._topic}, partition {partition}: records from offset {offsets.start} on expired while "
                "they were read: nothing of these was written"
            )
        rows = self._rows.take()
        write_part(
            self._archive,
            self._topic,
            partition,
            offsets,
            day_ms=day_ms,
            rows=rows,
            topic_id=self._topic_id,
            key_digest=self._key_digest,
            keys=self._keys,
        )
        done.rows += len(rows.table)
        done.files += 1
        done.undecoded += rows.undecoded


def _is_full(count: int, records_max: int, day_ms: int, record: Record) -> bool:
    return count >= records_max or record.timestamp_ms // _DAY_MS > day_ms // _DAY_MS
