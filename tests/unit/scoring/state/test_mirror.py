from __future__ import annotations

import mmap
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from paywarden.features.kernel import ABSENT, KNOWN, UNKNOWN
from paywarden.features.stores.lmdb_file import missing_bytes
from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.state import lmdb_calls, lmdb_pages, mirror_look_up
from paywarden.scoring.state import mirror as mirrors
from paywarden.scoring.state.mirror import (
    MirrorAbsent,
    MirrorDamaged,
    MirrorFull,
    MirrorReader,
    MirrorSettings,
    MirrorWriter,
    discard,
)
from tests.patience import PATIENCE_S
from tests.services.product import template
from tests.services.product.processes import PaywardenProcess, run_program

PROFILE_BYTES_MAX = 64


@pytest.fixture
def settings(tmp_path: Path) -> MirrorSettings:
    return MirrorSettings(path=str(tmp_path / "deep" / "mirror"), size_mb=64)


@pytest.fixture
def writer(settings: MirrorSettings) -> Iterator[MirrorWriter]:
    opened = MirrorWriter(settings)
    yield opened
    opened.close()


class ReaderProcess:
    """A MirrorReader in a process of its own, as LMDB may be open only once in a process."""

    def __init__(self, settings: MirrorSettings, item_max: int = 4, *, through_python: bool = False) -> None:
        self.process, self._here = template.call(_answer, settings, item_max, through_python)
        assert self._here.recv() == "open"

    def look_up(self, *keys: bytes | None) -> tuple[int, list[int], list[bytes]]:
        """Returns the current (complete_to_ms, presence, states)."""
        self._here.send(keys)
        answer: tuple[int, list[int], list[bytes]] = self._here.recv()
        return answer

    def close(self) -> None:
        self._here.send(None)
        assert self.process.wait(PATIENCE_S) == 0
        self._here.close()


def _answer(there: Connection, settings: MirrorSettings, item_max: int, through_python: bool) -> None:
    if through_python:
        lmdb_calls.functions = lambda: None  # type: ignore[assignment]
    reader = MirrorReader(settings, item_max=item_max, profile_bytes_max=PROFILE_BYTES_MAX)
    there.send("open")
    while (keys := there.recv()) is not None:
        try:
            complete_to_ms = reader.look_up(keys)
        except MirrorAbsent as error:
            there.send((-1, [], [str(error).encode()]))
            continue
        bounds = reader.bounds.tolist()
        states = [reader.states[bounds[i] : bounds[i + 1]].tobytes() for i in range(len(keys))]
        presence = reader.presence[: len(keys)].tobytes()
        assert reader.found == presence
        there.send((complete_to_ms, [*presence], states))
    reader.close()
    there.close()


@pytest.fixture
def reader(writer: MirrorWriter, settings: MirrorSettings) -> Iterator[ReaderProcess]:
    writer.apply({}, {})
    opened = ReaderProcess(settings)
    yield opened
    opened.close()


# Writing and reading


def test_a_new_mirror_holds_nothing(writer: MirrorWriter) -> None:
    assert (writer.positions(), writer.profile_count(), writer.complete_to_ms()) == ({}, 0, None)


def test_a_reader_in_another_process_sees_what_is_committed_at_once(
    writer: MirrorWriter, reader: ReaderProcess
) -> None:
    for number in range(50):
        writer.apply({b"card:1": b"state %d" % number}, {0: number}, number + 1)
        assert reader.look_up(b"card:1") == (number + 1, [KNOWN], [b"state %d" % number])


def test_known_unknown_and_absent_entities_are_distinguished(writer: MirrorWriter, reader: ReaderProcess) -> None:
    writer.apply({b"card:1": b"one", b"device:3": b"three"}, {}, 5)
    keys = (b"card:1", b"merchant:2", None, b"device:3")
    assert reader.look_up(*keys) == (5, [KNOWN, UNKNOWN, ABSENT, KNOWN], [b"one", b"", b"", b"three"])
    # The buffers hold nothing of the previous look-up.
    assert reader.look_up(None, b"device:3") == (5, [ABSENT, KNOWN], [b"", b"three"])


def test_a_profile_of_no_bytes_is_known_though_nothing_can_read_it(writer: MirrorWriter, reader: ReaderProcess) -> None:
    writer.apply({b"card:1": b"", b"card:2": b"two"}, {}, 5)
    assert reader.look_up(b"card:1", b"card:2", b"card:3")[1:] == ([KNOWN, KNOWN, UNKNOWN], [b"", b"two", b""])


def test_a_look_up_through_python_finds_the_same_as_the_compiled_one(settings: MirrorSettings) -> None:
    """Where the package lmdb does not export LMDB's functions, the look-up goes through Python."""
    random_ = random.Random(5)
    keys = [b"card:%d" % number for number in range(30)]
    small, large = MirrorSettings(path=settings.path, size_mb=1), settings
    writer = MirrorWriter(small)
    writer.apply({keys[0]: b"one"}, {}, 0)
    readers = [ReaderProcess(small, 40), ReaderProcess(small, 40, through_python=True)]
    for number in range(40):
        if number == 30:
            # Beyond what the readers have mapped.
            writer.close()
            writer = MirrorWriter(large)
            writer.apply({b"merchant:%d" % merchant: bytes(500) for merchant in range(5000)}, {})
        changes = {
            key: random_.choice([None, random_.randbytes(random_.randrange(90))]) for key in random_.sample(keys, 9)
        }
        writer.apply(changes, {}, number)
        asked = [random_.choice([None, key]) for key in random_.sample(keys, random_.randrange(30))]
        compiled, through_python = (reader.look_up(*asked) for reader in readers)
        assert compiled == through_python
    for reader in readers:
        reader.close()
    writer.close()


@pytest.mark.parametrize("count", [0, 1, 40, 1_000])
@pytest.mark.parametrize("asks_lmdb", [False, True])
def test_keys_found_in_the_pages_are_those_that_lmdb_finds(
    settings: MirrorSettings, count: int, asks_lmdb: bool
) -> None:
    random_ = random.Random(count)

    def key() -> bytes:
        # Common beginnings, keys that begin with others, and bytes above 127.
        kind = random_.choice([b"card:", b"card:card-0000", b"merchant:\xc3\xa9", b"device:"])
        return kind + random_.choice([b"%d", b"%012d", b"%d\xff"]) % random_.randrange(2 * count + 9)

    writer = MirrorWriter(settings)
    kept: dict[bytes, bytes] = {}
    for _ in range(4):
        some = {key(): random_.randbytes(random_.choice([0, 1, 7, 8, 63, 500, 3_000, 9_000])) for _ in range(count)}
        gone = random_.sample([*kept], len(kept) // 5)
        writer.apply({**some, **dict.fromkeys(gone)}, {}, 7)
        kept.update(some)
        for name in gone:
            kept.pop(name)
    writer.close()
    reader = MirrorReader(settings, item_max=90, profile_bytes_max=5_000)
    assert reader._numbers[mirror_look_up.PAGE_BYTES] == mmap.PAGESIZE
    if asks_lmdb:
        reader._numbers[mirror_look_up.PAGE_BYTES] = 0
    for _ in range(20):
        asked = [random_.choice([key(), b"", *random_.sample([*kept], min(len(kept), 3))]) for _ in range(90)]
        assert reader.look_up(asked) == 7
        bounds = reader.bounds.tolist()
        found = [reader.states[bounds[at] : bounds[at + 1]].tobytes() for at in range(90)]
        assert found == [kept.get(name, b"")[:5_000] for name in asked]
        assert [*reader.found] == [ABSENT if not name else KNOWN if name in kept else UNKNOWN for name in asked]
    reader.close()


def test_the_pages_are_those_of_the_readers_own_transaction(settings: MirrorSettings) -> None:
    """Two transactions later the writer writes the page anew that says where they are."""
    writer = MirrorWriter(settings)
    writer.apply({b"card:1": b"one"}, {}, 5)
    writer.close()
    reader = MirrorReader(settings, item_max=4, profile_bytes_max=64)
    reader.look_up([b"card:1"])
    value_at, snapshot = int(reader._frame._arrays["values"][3]), reader.snapshot
    page = mmap.PAGESIZE
    assert lmdb_pages.root_of(value_at, page, snapshot)[3] == 1
    head = Path(settings.path, "data.mdb").read_bytes()[: lmdb_pages.META_BYTES]
    assert lmdb_pages.page_bytes_of(head) == page
    # Another version, another size, and no file of LMDB.
    for at in (20, 41, 16):
        assert lmdb_pages.page_bytes_of(head[:at] + b"\x07" + head[at + 1 :]) == 0
    for other in (snapshot - 1, snapshot + 1, snapshot + 2):
        assert lmdb_pages.root_of(value_at, page, other) == (0, 0, 0, 0)
    reader.close()


def test_a_page_number_behind_the_last_page_is_damage_and_no_crash(settings: MirrorSettings) -> None:
    writer = MirrorWriter(settings)
    writer.apply({b"card:%d" % number: bytes(60) for number in range(300)}, {}, 5)
    writer.close()
    reader = MirrorReader(settings, item_max=4, profile_bytes_max=64)
    reader.look_up([b"card:1"])
    file = Path(settings.path, "data.mdb")
    content = bytearray(file.read_bytes())
    root = int.from_bytes(content[mmap.PAGESIZE * (reader.snapshot & 1) + 128 :][:8], "little") * mmap.PAGESIZE
    # Each node of the root begins with the number of a page.
    for at in range(16, int.from_bytes(content[root + 12 : root + 14], "little"), 2):
        node = root + int.from_bytes(content[root + at : root + at + 2], "little")
        content[node + 3] = 0x7F
    with file.open("r+b") as opened:
        opened.write(content)
    with pytest.raises(MirrorAbsent):
        reader.look_up([b"card:1", b"card:200"])
    reader.close()


def test_a_mirror_that_is_being_filled_is_complete_to_zero(writer: MirrorWriter, reader: ReaderProcess) -> None:
    writer.apply({b"card:1": b"one"}, {0: 1})
    assert reader.look_up(b"card:1")[0] == 0


def test_completeness_stays_when_a_batch_does_not_set_it(writer: MirrorWriter, reader: ReaderProcess) -> None:
    writer.apply({}, {0: 1}, 7)
    writer.apply({b"card:1": b"one"}, {0: 2})
    assert writer.complete_to_ms() == 7
    assert reader.look_up()[0] == 7


def test_none_erases_a_profile_and_an_unknown_one_may_be_erased(writer: MirrorWriter, reader: ReaderProcess) -> None:
    writer.apply({b"card:1": b"one", b"card:2": b"two"}, {})
    writer.apply({b"card:1": None, b"card:9": None}, {})
    assert reader.look_up(b"card:1", b"card:2")[1] == [UNKNOWN, KNOWN]
    assert writer.profile_count() == 1


def test_clear_forgets_everything_for_readers_too(writer: MirrorWriter, reader: ReaderProcess) -> None:
    writer.apply({b"card:1": b"one"}, {0: 3, 1: 4}, 5)
    writer.clear()
    assert (writer.positions(), writer.profile_count(), writer.complete_to_ms()) == ({}, 0, None)
    assert reader.look_up(b"card:1") == (0, [UNKNOWN], [b""])
    writer.apply({b"card:1": b"anew"}, {0: 1})
    assert reader.look_up(b"card:1")[2] == [b"anew"]


def test_positions_are_kept_by_partition(writer: MirrorWriter) -> None:
    writer.apply({}, {0: 1, 1: 2, 10: 3, 2: 2**62})
    writer.apply({}, {1: 5})
    assert writer.positions() == {0: 1, 1: 5, 2: 2**62, 10: 3}


def test_profile_count_counts_profiles_alone(writer: MirrorWriter) -> None:
    writer.apply({b"card:%d" % number: b"x" for number in range(10)}, {0: 1, 1: 2}, 9)
    assert writer.profile_count() == 10


def test_used_bytes_grow_with_the_profiles_and_stay_below_the_limit(
    writer: MirrorWriter, settings: MirrorSettings
) -> None:
    before = writer.used_bytes()
    writer.apply({b"card:%d" % number: bytes(1000) for number in range(200)}, {})
    assert before + 200 * 1000 <= writer.used_bytes() <= settings.size_mb << 20


def test_reopening_keeps_everything(settings: MirrorSettings) -> None:
    first = MirrorWriter(settings)
    first.apply({b"card:1": b"one"}, {0: 3}, 5)
    first.close()
    second = MirrorWriter(settings)
    assert (second.positions(), second.profile_count(), second.complete_to_ms()) == ({0: 3}, 1, 5)
    second.close()


def test_a_mirror_may_grow_far_beyond_its_size_at_its_readers_start(
    writer: MirrorWriter, reader: ReaderProcess
) -> None:
    """A reader without a map size would map 10 MB, and could never read a larger mirror."""
    for first in range(0, 60_000, 10_000):
        writer.apply({b"card:%06d" % number: bytes(500) for number in range(first, first + 10_000)}, {0: first}, first)
    assert writer.profile_count() == 60_000
    for number in (0, 31_234, 59_999):
        assert reader.look_up(b"card:%06d" % number)[:2] == (50_000, [KNOWN])
    assert reader.look_up(b"card:060000")[1] == [UNKNOWN]


def test_a_reader_follows_a_companion_that_came_back_with_a_larger_size(settings: MirrorSettings) -> None:
    small = MirrorSettings(path=settings.path, size_mb=1)
    first = MirrorWriter(small)
    first.apply({b"card:1": b"one"}, {}, 1)
    reader = ReaderProcess(small)
    first.close()
    second = MirrorWriter(settings)
    second.apply({b"card:%06d" % number: bytes(500) for number in range(10_000)}, {}, 2)
    assert reader.look_up(b"card:009999", b"card:1")[:2] == (2, [KNOWN, KNOWN])
    reader.close()
    second.close()


def test_a_state_larger_than_any_of_this_catalogue_is_cut_not_a_bug(
    writer: MirrorWriter, reader: ReaderProcess
) -> None:
    writer.apply({b"card:1": bytes(range(1, 200)), b"merchant:1": b"fits"}, {}, 1)
    states = [bytes(range(1, 1 + PROFILE_BYTES_MAX)), b"fits", bytes(range(1, 1 + PROFILE_BYTES_MAX))]
    assert reader.look_up(b"card:1", b"merchant:1", b"card:1") == (1, [KNOWN] * 3, states)


def test_a_key_that_no_mirror_can_hold_is_unknown(writer: MirrorWriter, reader: ReaderProcess) -> None:
    writer.apply({b"card:1": b"one"}, {}, 1)
    assert reader.look_up(b"card:" + b"x" * 600, b"card:1")[:2] == (1, [UNKNOWN, KNOWN])


# Refusals


def test_there_is_no_mirror_before_a_companion_makes_one(settings: MirrorSettings) -> None:
    with pytest.raises(MirrorAbsent, match="there is no mirror at"):
        MirrorReader(settings, item_max=1, profile_bytes_max=10)
    Path(settings.path).mkdir(parents=True)
    with pytest.raises(MirrorAbsent):
        MirrorReader(settings, item_max=1, profile_bytes_max=10)
    (Path(settings.path) / "data.mdb").write_bytes(b"something else")
    with pytest.raises(MirrorAbsent):
        MirrorReader(settings, item_max=1, profile_bytes_max=10)


def filled(settings: MirrorSettings) -> None:
    """Make a mirror with pages on several levels, and close it."""
    writer = MirrorWriter(settings)
    writer.apply({b"card:%04d" % number: bytes(300) for number in range(500)}, {0: 1}, 1)
    writer.close()


def write_all(settings: MirrorSettings) -> None:
    """Write each profile of a mirror that was filled."""
    with closing(MirrorWriter(settings)) as writer:
        writer.apply({b"card:%04d" % number: bytes(200) for number in range(500)}, {0: 2})


def in_new_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "boot_id", lambda: "the boot after")


@pytest.mark.parametrize("what", ["no file of LMDB", "pages of zeros"])
def test_a_damaged_mirror_is_told_from_a_failure_and_can_be_made_anew(settings: MirrorSettings, what: str) -> None:
    filled(settings)
    path = Path(settings.path) / "data.mdb"
    content = bytearray(path.read_bytes())
    if what == "pages of zeros":
        content[2 * 4096 :] = bytes(len(content) - 2 * 4096)
    else:
        content[16] ^= 0x04
        content[4096 + 16] ^= 0x04
    path.write_bytes(content)
    with pytest.raises(MirrorDamaged, match="the mirror is damaged"):
        write_all(settings)
    discard(settings)
    writer = MirrorWriter(settings)
    assert (writer.positions(), writer.profile_count()) == ({}, 0)
    writer.close()


# Bytes that stay of a file of 70 pages: none, half a meta page, one, both, and a part of the others.
CUTS = (0, 2000, 4096, 8192, 100_000)


@pytest.mark.parametrize("size", CUTS)
def test_a_mirror_that_was_cut_short_is_refused_and_can_be_made_anew(settings: MirrorSettings, size: int) -> None:
    """A read behind the end of a mapped file killed companion and workers, at each start again."""
    filled(settings)
    os.truncate(Path(settings.path) / "data.mdb", size)
    with pytest.raises(MirrorAbsent):
        MirrorReader(settings, item_max=1, profile_bytes_max=PROFILE_BYTES_MAX)
    with pytest.raises(MirrorDamaged, match="the mirror is damaged"):
        write_all(settings)
    discard(settings)
    with closing(MirrorWriter(settings)) as writer:
        assert (writer.positions(), writer.profile_count()) == ({}, 0)


@pytest.mark.parametrize("name", ["data.mdb", "lock.mdb"])
@pytest.mark.parametrize("is_copied", [True, False])
def test_a_writer_sees_that_another_file_is_in_the_place_of_its_own(
    settings: MirrorSettings, name: str, is_copied: bool
) -> None:
    """It wrote to a file that nobody reads any more, and readers had an old copy for ever."""
    filled(settings)
    writer = MirrorWriter(settings)
    writer.check_readers()
    path = Path(settings.path) / name
    kept = path.rename(path.with_name("kept"))
    if is_copied:
        shutil.copy(kept, path)
    wanted = "was replaced" if is_copied or name == "lock.mdb" else "was cut short"
    with pytest.raises(MirrorDamaged, match=wanted):
        writer.check_readers()
    with pytest.raises(MirrorDamaged, match=wanted):
        writer.apply({b"card:c": b"state"}, {})
    path.unlink(missing_ok=True)
    kept.rename(path)
    writer.check_readers()
    writer.close()


@pytest.mark.parametrize("size", [*CUTS, None])
def test_a_writer_sees_that_its_file_was_cut_short_or_deleted(settings: MirrorSettings, size: int | None) -> None:
    filled(settings)
    writer = MirrorWriter(settings)
    path = Path(settings.path) / "data.mdb"
    if size is None:
        path.unlink()
    else:
        os.truncate(path, size)
    with pytest.raises(MirrorDamaged, match="its file was cut short"):
        writer.check_readers()
    with pytest.raises(MirrorDamaged, match="its file was cut short"):
        writer.apply({b"card:c": b"state"}, {})
    writer.close()
    discard(settings)
    filled(settings)


@pytest.mark.parametrize("size", CUTS)
def test_a_reader_sees_that_its_file_was_cut_short(settings: MirrorSettings, size: int) -> None:
    filled(settings)
    reader = MirrorReader(settings, item_max=1, profile_bytes_max=PROFILE_BYTES_MAX)
    assert not reader.is_replaced()
    os.truncate(Path(settings.path) / "data.mdb", size)
    assert reader.is_replaced()
    reader.close()


def test_no_transaction_leaves_a_file_shorter_than_its_pages(settings: MirrorSettings) -> None:
    """LMDB writes no pages that a transaction takes and gives back. Here the twelfth did that with the last page."""
    drawn = random.Random(270)
    with closing(MirrorWriter(settings)) as writer:
        for position in range(12):
            changes: dict[bytes, bytes | None] = {}
            for _ in range(drawn.choice((1, 10, 200))):
                size = drawn.choice((0, 0, 0, 300, 1500, 1900))
                changes[b"card:%04d" % drawn.randrange(400)] = bytes(size) if size else None
            writer.apply(changes, {0: position})
            assert missing_bytes(Path(settings.path) / "data.mdb") == 0


def test_a_mirror_on_a_disk_that_lost_its_power_is_made_anew(
    settings: MirrorSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    filled(settings)
    # This companion was killed: nothing says that the file was closed.
    MirrorWriter(settings)._env.close()
    again = MirrorWriter(settings)
    assert again.profile_count() == 500
    again._env.close()
    in_new_boot(monkeypatch)
    anew = MirrorWriter(settings)
    assert (anew.profile_count(), "is filled anew" in caplog.text) == (0, True)
    anew.close()


def test_a_mirror_that_was_closed_is_kept_over_a_new_start_of_the_machine(
    settings: MirrorSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(settings)
    in_new_boot(monkeypatch)
    writer = MirrorWriter(settings)
    assert writer.profile_count() == 500
    writer.close()


def test_a_full_mirror_names_the_setting_and_keeps_its_profiles(tmp_path: Path) -> None:
    writer = MirrorWriter(MirrorSettings(path=str(tmp_path), size_mb=1))
    writer.apply({b"card:1": b"one"}, {0: 1}, 1)
    with pytest.raises(MirrorFull, match=r"^the mirror is full: mirror\.size_mb is 1\Z"):
        writer.apply({b"card:%d" % number: bytes(1000) for number in range(5000)}, {0: 2}, 2)
    assert (writer.positions(), writer.profile_count(), writer.complete_to_ms()) == ({0: 1}, 1, 1)
    writer.apply({b"card:2": b"two"}, {0: 2})
    writer.clear()
    assert writer.profile_count() == 0
    writer.close()


def test_a_place_that_cannot_be_used_is_refused_by_the_settings_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(Misconfigured, match=r"^mirror\.path: cannot use "):
        MirrorWriter(MirrorSettings(path=str(tmp_path / "file" / "mirror")))


# Killed processes

_KILLED_WRITER = """
import itertools, sys
from paywarden.scoring.state.mirror import MirrorSettings, MirrorWriter

writer = MirrorWriter(MirrorSettings(path=sys.argv[1], size_mb=64))
first = writer.positions().get(0, 0) + 1
print("writing", flush=True)
for number in itertools.count(first):
    state = b"%d" % number
    writer.apply({b"card:%d" % card: state for card in range(200)}, {0: number}, number)
"""


def test_positions_never_run_ahead_of_profiles_when_the_writer_is_killed(
    settings: MirrorSettings, tmp_path: Path
) -> None:
    moments = random.Random(5)
    last = 0
    for _ in range(8):
        child = PaywardenProcess.of_program(tmp_path, _KILLED_WRITER, settings.path)
        assert child.first_line() == "writing"
        time.sleep(moments.uniform(0.0, 0.05))
        child.kill()
        writer = MirrorWriter(settings)
        position = writer.positions().get(0, 0)
        states = set(writer.read(b"card:%d" % card for card in range(200)).values())
        assert states == ({b"%d" % position} if position else {None})
        assert (writer.complete_to_ms() or 0) == position >= last
        writer.close()
        last = position
    assert last > 0


def test_a_reader_works_on_while_the_writer_is_killed_and_comes_back(settings: MirrorSettings, tmp_path: Path) -> None:
    writer = MirrorWriter(settings)
    writer.apply({b"card:%d" % card: b"0" for card in range(200)}, {})
    writer.close()
    reader = ReaderProcess(settings, item_max=200)
    keys = [b"card:%d" % card for card in range(200)]
    newest = 0
    for _ in range(3):
        child = PaywardenProcess.of_program(tmp_path, _KILLED_WRITER, settings.path)
        assert child.first_line() == "writing"
        for _ in range(100):
            complete_to_ms, presence, states = reader.look_up(*keys)
            # All keys of a look-up are of one moment, never half of a transaction.
            assert set(states) == {b"%d" % complete_to_ms}
            assert set(presence) == {KNOWN}
            assert complete_to_ms >= newest
            newest = complete_to_ms
        child.kill()
        assert reader.look_up(*keys)[1] == [KNOWN] * 200
    assert newest > 0
    reader.close()


def test_readers_that_were_killed_do_not_use_up_the_readers_table(settings: MirrorSettings) -> None:
    few = MirrorSettings(path=settings.path, size_mb=16, readers_max=3)
    writer = MirrorWriter(few)
    writer.apply({b"card:1": b"one"}, {}, 1)
    for _ in range(5):
        reader = ReaderProcess(few)
        assert reader.look_up(b"card:1")[1] == [KNOWN]
        reader.process.kill()
        reader.process.wait()
    last = ReaderProcess(few)
    assert last.look_up(b"card:1")[1] == [KNOWN]
    last.close()
    writer.close()


_READER_IN_A_LOOK_UP = """
import sys, time
import lmdb

transaction = lmdb.open(sys.argv[1], map_size=4 << 20, readonly=True).begin(buffers=True)
assert transaction.get(b"card:1") is not None
print("inside", flush=True)
time.sleep(600)
"""


@pytest.fixture
def stuck_reader(settings: MirrorSettings, tmp_path: Path) -> Iterator[PaywardenProcess]:
    """A process that stands in a look-up of a mirror of 4 MiB."""
    child = PaywardenProcess.of_program(tmp_path, _READER_IN_A_LOOK_UP, settings.path)
    assert child.first_line() == "inside"
    yield child
    child.kill()


@pytest.fixture
def small_writer(settings: MirrorSettings) -> Iterator[MirrorWriter]:
    opened = MirrorWriter(MirrorSettings(path=settings.path, size_mb=4))
    opened.apply({b"card:%d" % card: bytes(500) for card in range(500)}, {}, 1)
    yield opened
    opened.close()


def test_a_writer_that_begins_finds_a_place_where_dead_readers_have_them_all(
    settings: MirrorSettings, tmp_path: Path
) -> None:
    """As a companion that was killed and is started again: it reads where it was."""
    few = MirrorSettings(path=settings.path, size_mb=4, readers_max=2)
    writer = MirrorWriter(few)
    writer.apply({b"card:1": b"one"}, {0: 7}, 1)
    # While a worker has the mirror open, LMDB forgets no reader by itself.
    worker = ReaderProcess(few)
    readers = [PaywardenProcess.of_program(tmp_path, _READER_IN_A_LOOK_UP, settings.path) for _ in range(2)]
    assert [reader.first_line() for reader in readers] == ["inside", "inside"]
    for reader in readers:
        reader.kill()
    writer.close()
    again = MirrorWriter(few)
    assert again.positions() == {0: 7}
    again.close()
    worker.close()


def change(writer: MirrorWriter, number: int) -> None:
    """Give every profile another state."""
    writer.apply({b"card:%d" % card: b"%d" % number + bytes(496) for card in range(500)}, {0: number}, number)


def test_a_reader_killed_in_a_look_up_lets_the_file_grow_no_further(
    small_writer: MirrorWriter, stuck_reader: PaywardenProcess
) -> None:
    stuck_reader.kill()
    sizes, freed = [], []
    for number in range(40):
        change(small_writer, number)
        freed.append(small_writer.check_readers())
        sizes.append(small_writer.used_bytes())
    assert sum(freed) == 1
    assert sizes[-1] == sizes[5]
    assert small_writer.complete_to_ms() == 39


def test_a_mirror_that_a_reader_holds_full_takes_changes_when_the_reader_is_gone(
    small_writer: MirrorWriter, stuck_reader: PaywardenProcess
) -> None:
    def fill() -> int:
        for number in range(100):
            try:
                change(small_writer, number)
            except MirrorFull:
                return number
        raise AssertionError("a reader that stands in a look-up holds nothing")

    last = fill()
    # The reader lives, so its place is its own.
    assert small_writer.check_readers() == 0
    with pytest.raises(MirrorFull):
        change(small_writer, last)
    assert small_writer.complete_to_ms() == last - 1
    stuck_reader.kill()
    assert small_writer.check_readers() == 1
    for number in range(last, last + 40):
        change(small_writer, number)
    assert small_writer.complete_to_ms() == last + 39


def test_a_reader_knows_when_another_mirror_has_taken_its_place(settings: MirrorSettings, tmp_path: Path) -> None:
    writer = MirrorWriter(settings)
    writer.apply({b"card:1": b"one"}, {}, 1)
    writer.close()
    reader = MirrorReader(settings, item_max=1, profile_bytes_max=10)
    assert not reader.is_replaced()
    shutil.move(settings.path, tmp_path / "away")
    # There is no new mirror yet, and the old one is better than none.
    assert not reader.is_replaced()
    script = (
        "from paywarden.scoring.state.mirror import *; MirrorWriter(MirrorSettings(path=sys.argv[1])).apply({}, {})"
    )
    script = f"import sys; {script}"
    assert run_program(script, settings.path).returncode == 0
    assert reader.is_replaced()
    assert reader.look_up([b"card:1"]) == 1
    reader.close()


def test_a_mirror_belongs_to_the_identity_key_that_filled_it(writer: MirrorWriter) -> None:
    writer.claim_identity("key-a")
    writer.apply({b"card:c": b"state"}, {0: 7}, 5)
    assert writer.profile_count() == 1
    writer.clear()
    assert writer.profile_count() == 0
    writer.claim_identity("key-a")
    with pytest.raises(
        Misconfigured, match="filled for the identity key of digest key-a, and this companion has"
    ) as error:
        writer.claim_identity("key-b")
    assert "\n" not in str(error.value)
