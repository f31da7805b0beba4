"""The archive's files: their content, how a run resumes, and the errors."""

from __future__ import annotations

import errno
import fcntl
import re
import shutil
from itertools import combinations_with_replacement, pairwise
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.schemas.errors import Misconfigured
from paywarden.streams.archive.archive import Archived, Archiver
from paywarden.streams.archive.files import ArchiveUnwritable, missing_ranges, read_archive, read_parts
from paywarden.streams.kafka.topic_rows import OFFSET, PARTITION, TIMESTAMP, rows_schema
from tests.fakes.topic_memory import IDS, Killed, MemoryTopic
from tests.worlds.operate.backup_page import run_copies

DAY_MS = 86_400_000
MONDAY = 19_723 * DAY_MS  # 2024-01-01
SCHEMA = rows_schema("payments")


def payment(number: int, event_time_ms: int = MONDAY) -> dict[str, Any]:
    return {
        "payment_id": f"p{number}",
        "event_time_ms": event_time_ms,
        "card_id": f"c{number % 5}",
        "merchant_id": "m",
        "amount_minor": number,
        "currency": "EUR",
    }


def topic_of(*counts: int) -> MemoryTopic:
    """Returns a topic with `count` payments in each partition, an hour apart."""
    topic = MemoryTopic("payments")
    for partition, count in enumerate(counts):
        for number in range(count):
            topic.append(partition, payment(1000 * partition + number), MONDAY + number * 3_600_000)
    return topic


def archive(
    topic: MemoryTopic,
    folder: Path,
    since_ms: int | None = None,
    until_ms: int | None = None,
    *,
    records_max: int = 10,
    stop: Event | None = None,
) -> Archived:
    archiver = Archiver(topic, IDS, topic.name, folder, records_max=records_max)
    return archiver.run(archiver.wanted(since_ms, until_ms), stop or Event(), lambda _: None)


def rows(folder: Path, **options: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_archive(folder, "payments", SCHEMA, **options).table.to_pylist()
    return found


def places(folder: Path, **options: Any) -> list[tuple[int, int]]:
    return [(row[PARTITION], row[OFFSET]) for row in rows(folder, **options)]


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.parquet"))


def all_places(topic: MemoryTopic) -> list[tuple[int, int]]:
    return [(p, one.offset) for p, log in sorted(topic.partitions.items()) for one in log if one is not None]


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(Misconfigured) as refused:
        read_archive(folder, "payments", SCHEMA, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# What is written


def test_every_record_is_archived_once_with_its_place_and_time(tmp_path: Path) -> None:
    topic = topic_of(25, 3)
    done = archive(topic, tmp_path)
    assert (done.rows, done.is_whole) == (28, True)
    assert places(tmp_path) == all_places(topic)
    last = rows(tmp_path)[24]
    assert last[TIMESTAMP] == MONDAY + 24 * 3_600_000
    assert {name: last[name] for name in payment(24)} == payment(24)
    assert last["device_id"] is None


def test_a_file_ends_when_it_is_full_or_a_later_day_begins(tmp_path: Path) -> None:
    archive(topic_of(30), tmp_path)
    assert names(tmp_path) == [
        "payments/date=2024-01-01/part-0-0.parquet",
        "payments/date=2024-01-01/part-0-10.parquet",
        "payments/date=2024-01-01/part-0-20.parquet",
        "payments/date=2024-01-02/part-0-24.parquet",
    ]


def test_a_record_with_an_earlier_time_stays_in_the_open_file(tmp_path: Path) -> None:
    topic = MemoryTopic("payments")
    for number, hours in enumerate((23, 25, 23, 26)):
        topic.append(0, payment(number), MONDAY + hours * 3_600_000)
    archive(topic, tmp_path)
    assert [part.offsets for part in read_parts(tmp_path, "payments")[0]] == [range(1), range(1, 4)]


def test_undecodable_records_are_named_in_the_footer(tmp_path: Path) -> None:
    topic = topic_of(2)
    topic.append_bytes(0, b"nonsense", MONDAY + 7)
    topic.append_bytes(0, None, MONDAY + 8)
    topic.append(0, payment(9), MONDAY + 9)
    done = archive(topic, tmp_path)
    assert [(one.partition, one.offset, one.timestamp_ms) for one in done.undecoded] == [
        (0, 2, MONDAY + 7),
        (0, 3, MONDAY + 8),
    ]
    assert str(done.undecoded[1]) == "partition 0, offset 3: the record has no value"
    assert places(tmp_path) == [(0, 0), (0, 1), (0, 4)]
    assert list(read_archive(tmp_path, "payments", SCHEMA).undecoded) == done.undecoded


def test_a_topic_without_decodable_records_is_still_covered(tmp_path: Path) -> None:
    topic = MemoryTopic("payments")
    topic.append_bytes(0, b"nonsense", MONDAY)
    assert archive(topic, tmp_path).files == 1
    assert archive(topic, tmp_path).files == 0


def test_offsets_without_records_leave_no_gap_between_files(tmp_path: Path) -> None:
    topic = MemoryTopic("payments")
    for number in range(15):
        topic.append(0, payment(number), MONDAY)
        topic.append_unseen(0)
    archive(topic, tmp_path, records_max=4)
    parts = read_parts(tmp_path, "payments")[0]
    assert all(one.offsets.stop == other.offsets.start for one, other in pairwise(parts))
    assert places(tmp_path) == all_places(topic)


# Going on


def test_a_repeated_run_reads_and_writes_nothing(tmp_path: Path) -> None:
    topic = topic_of(25, 3)
    archive(topic, tmp_path)
    topic.asked.clear()
    assert archive(topic, tmp_path) == Archived()
    assert topic.asked == []


@pytest.mark.parametrize("killed_after", range(0, 60, 7))
def test_a_killed_run_resumes_without_duplicates(killed_after: int, tmp_path: Path) -> None:
    topic = topic_of(33, 4, 21)
    topic.fails_after = killed_after
    with pytest.raises(Killed):
        archive(topic, tmp_path)
    # The state after a kill in the middle of a file.
    (tmp_path / "payments/date=2024-01-01").mkdir(exist_ok=True)
    (tmp_path / "payments/date=2024-01-01/part-0-10.parquet.unfinished").write_bytes(b"PAR1")
    topic.fails_after = None
    archive(topic, tmp_path)
    assert places(tmp_path) == all_places(topic)
    assert not list(tmp_path.rglob("*.unfinished"))


def test_a_stopped_run_keeps_its_files_and_says_so(tmp_path: Path) -> None:
    topic, stop = topic_of(25), Event()
    stop.set()
    assert not archive(topic, tmp_path, stop=stop).is_whole
    assert places(tmp_path) == [(0, offset) for offset in range(7)]
    archive(topic, tmp_path)
    assert places(tmp_path) == all_places(topic)


def test_a_later_run_adds_newer_and_older_records(tmp_path: Path) -> None:
    topic = topic_of(40)
    hours = 3_600_000
    archive(topic, tmp_path, MONDAY + 12 * hours, MONDAY + 20 * hours)
    assert places(tmp_path) == [(0, offset) for offset in range(12, 20)]
    archive(topic, tmp_path, MONDAY + 30 * hours)
    # An archive has no gaps.
    assert places(tmp_path) == [(0, offset) for offset in range(12, 40)]
    archive(topic, tmp_path)
    assert places(tmp_path) == all_places(topic)


def test_a_lost_file_is_written_again(tmp_path: Path) -> None:
    topic = topic_of(30)
    archive(topic, tmp_path)
    (tmp_path / "payments/date=2024-01-01/part-0-10.parquet").unlink()
    assert archive(topic, tmp_path).rows == 10
    assert places(tmp_path) == all_places(topic)


def test_a_lost_file_without_visible_records_is_covered_again(tmp_path: Path) -> None:
    topic = topic_of(30)
    archive(topic, tmp_path)
    (tmp_path / "payments/date=2024-01-01/part-0-10.parquet").unlink()
    topic.partitions[0][10:20] = [None] * 10
    archive(topic, tmp_path)
    assert places(tmp_path) == all_places(topic)


@given(
    st.lists(st.integers(0, 60), unique=True, max_size=8).map(sorted),
    st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted),
)
def test_covered_and_missing_ranges_join_without_a_gap(edges: list[int], asked: list[int]) -> None:
    covered = [range(first, stop) for first, stop in zip(edges[::2], edges[1::2], strict=False)]
    wanted = range(*asked)
    missing = missing_ranges(wanted, covered)
    offsets = sorted(offset for one in [*covered, *missing] for offset in one)
    assert len(set(offsets)) == len(offsets)
    assert set(wanted) <= set(offsets)
    assert not offsets or offsets == list(range(offsets[0], offsets[-1] + 1))


# What is refused


def test_records_that_expired_before_the_archive_are_named(tmp_path: Path) -> None:
    topic = topic_of(10)
    archive(topic, tmp_path)
    for number in range(10):
        topic.append(0, payment(50 + number), MONDAY)
    topic.begins[0] = 15
    said = r"partition 0 needs offset 10 next, and the topic begins at 15: the records between have expired"
    with pytest.raises(Misconfigured, match=said):
        archive(topic, tmp_path)


def test_records_that_expire_during_a_read_are_an_error(tmp_path: Path) -> None:
    class Expiring(MemoryTopic):
        def records(self, partition: int, offsets: range) -> Any:
            self.begins[partition] = 6
            self.partitions[partition][:6] = [None] * 6
            return super().records(partition, offsets)

    topic = Expiring("payments")
    topic.partitions = topic_of(9).partitions
    with pytest.raises(Misconfigured, match="partition 0: records from offset 0 on expired while they were read"):
        archive(topic, tmp_path)
    assert names(tmp_path) == []


def test_a_second_writer_of_a_topic_is_refused(tmp_path: Path) -> None:
    (tmp_path / "payments").mkdir()
    with (tmp_path / "payments/.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Misconfigured, match="another process is writing to"):
            archive(topic_of(3), tmp_path)


def test_a_full_disk_leaves_no_part_of_a_file_and_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = topic_of(10)
    write_table = pq.write_table

    def no_room(table: Any, file: Any, **options: Any) -> None:
        write_table(table, file, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("paywarden.streams.archive.files.pq.write_table", no_room)
    with pytest.raises(ArchiveUnwritable, match=r"cannot write an archive to .*: No space left on device"):
        archive(topic, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"] == []
    monkeypatch.undo()
    archive(topic, tmp_path)
    assert places(tmp_path) == all_places(topic)


def test_a_gap_is_named_by_its_partition_and_offsets(tmp_path: Path) -> None:
    archive(topic_of(3, 30), tmp_path)
    (tmp_path / "payments/date=2024-01-01/part-1-10.parquet").unlink()
    assert "partition 1 has a gap: offsets 10 to 19 are missing before part-1-20.parquet" in refusal(tmp_path)


def test_files_with_the_same_offsets_are_named(tmp_path: Path) -> None:
    archive(topic_of(20), tmp_path)
    folder = tmp_path / "payments/date=2024-01-01"
    (tmp_path / "payments/date=2024-01-05").mkdir()
    (tmp_path / "payments/date=2024-01-05/part-0-10.parquet").write_bytes((folder / "part-0-10.parquet").read_bytes())
    assert "cover the same offsets" in refusal(tmp_path)


def test_a_file_under_another_name_is_refused(tmp_path: Path) -> None:
    archive(topic_of(20), tmp_path)
    folder = tmp_path / "payments/date=2024-01-01"
    (folder / "part-0-10.parquet").rename(folder / "part-2-10.parquet")
    assert "part-2-10.parquet is not what its name says" in refusal(tmp_path)


@pytest.mark.parametrize("is_parquet", [True, False])
def test_a_file_that_no_archiver_wrote_is_refused(is_parquet: bool, tmp_path: Path) -> None:
    archive(topic_of(5), tmp_path)
    path = tmp_path / "payments/date=2024-01-01/part-0-0.parquet"
    if is_parquet:
        pq.write_table(pq.read_table(path, partitioning=None).replace_schema_metadata({}), path)
    else:
        path.write_bytes(b"nonsense")
    wanted = "is no file of an archive" if is_parquet else "cannot be read as Parquet"
    assert wanted in refusal(tmp_path)


def test_a_missing_column_is_named_with_its_file_unless_it_may_be_missing(tmp_path: Path) -> None:
    archive(topic_of(5), tmp_path)
    path = tmp_path / "payments/date=2024-01-01/part-0-0.parquet"
    whole = pq.read_table(path, partitioning=None)
    pq.write_table(whole.drop_columns(["declined"]), path)
    assert rows(tmp_path, optional=("declined",))[0]["declined"] is None
    pq.write_table(whole.drop_columns(["amount_minor"]), path)
    assert refusal(tmp_path, optional=("declined",)) == f"{path}: column amount_minor is missing"


def test_a_topic_that_is_not_archived_is_named_with_its_command(tmp_path: Path) -> None:
    assert f"`paywarden admin archive --topic payments --out {tmp_path}`" in refusal(tmp_path)


# Reading a part of it


def test_a_range_of_arrival_times_matches_kafkas(tmp_path: Path) -> None:
    topic = MemoryTopic("payments")
    # Clocks differ, and an undecodable record has a time too.
    for number, minutes in enumerate((0, 5, 3, 9, 4, 20, 15, 30)):
        if number == 3:
            topic.append_bytes(0, b"nonsense", MONDAY + minutes * 60_000)
        else:
            topic.append(0, payment(number), MONDAY + minutes * 60_000)
    archive(topic, tmp_path, records_max=2)
    for since, until in combinations_with_replacement((-1, 0, 1, 3, 4, 5, 9, 10, 20, 30, 31), 2):
        since_ms, until_ms = MONDAY + since * 60_000, MONDAY + until * 60_000
        wanted = topic.ranges(since_ms, until_ms)[0]
        got = read_archive(tmp_path, "payments", SCHEMA, since_ms=since_ms, until_ms=until_ms)
        offsets = [*got.table[OFFSET].to_pylist(), *(one.offset for one in got.undecoded)]
        assert sorted(offsets) == list(wanted), (since, until)


def test_files_of_other_days_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = MemoryTopic("payments")
    for day in range(5):
        for number in range(3):
            topic.append(0, payment(10 * day + number, MONDAY + day * DAY_MS + number), MONDAY + day * DAY_MS)
    archive(topic, tmp_path)
    read: list[str] = []
    whole = pq.read_table

    def counted(path: Path, **options: Any) -> Any:
        read.append(re.findall(r"date=(\S+?)/", str(path))[0])
        return whole(path, **options)

    monkeypatch.setattr(pq, "read_table", counted)
    times = [row["event_time_ms"] for row in rows(tmp_path, times_ms=(MONDAY + DAY_MS, MONDAY + 3 * DAY_MS - 1))]
    assert read == ["2024-01-02", "2024-01-03"]
    assert {time // DAY_MS for time in times} == {MONDAY // DAY_MS + 1, MONDAY // DAY_MS + 2}


def test_a_topic_made_anew_is_not_added_to_the_files_of_the_old_one(tmp_path: Path) -> None:
    archive(topic_of(5), tmp_path)
    another = topic_of(8)
    another.id = "id-2"
    with pytest.raises(Misconfigured, match=r"its id is id-2, the files have offsets of id-1; go on in another folder"):
        archive(another, tmp_path)
    assert len(rows(tmp_path)) == 5
    # A cluster without ids cannot say which topic it is.
    another.id = ""
    archive(another, tmp_path)
    assert len(rows(tmp_path)) == 8


def test_a_topic_that_ends_before_the_files_is_not_added(tmp_path: Path) -> None:
    archive(topic_of(5), tmp_path)
    with pytest.raises(Misconfigured, match=r"partition 0 is archived to offset 5, and the topic ends at 3"):
        archive(topic_of(3), tmp_path)


def test_an_archive_that_was_destroyed_goes_on_from_its_copy(tmp_path: Path) -> None:
    live, copy = tmp_path / "live", tmp_path / "copy"
    copy.mkdir()
    topic = topic_of(40, 25)
    archive(topic, live / "archive")
    run_copies("archive", live, copy, back=False)
    for number in range(40, 60):
        topic.append(0, payment(number), MONDAY + number * 3_600_000)
    archive(topic, live / "archive")
    wanted = read_archive(live / "archive", "payments", SCHEMA).table
    assert wanted.num_rows == 85

    shutil.rmtree(live / "archive")
    run_copies("archive", live, copy, back=True)
    assert read_archive(live / "archive", "payments", SCHEMA).table.num_rows == 65
    archive(topic, live / "archive")
    assert read_archive(live / "archive", "payments", SCHEMA).table == wanted
