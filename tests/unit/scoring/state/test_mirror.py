from __future__ import annotations

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
from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.state import mirror_form as form
from paywarden.scoring.state.mirror_file import FILE_NAME, MirrorAbsent, MirrorDamaged, MirrorFull, MirrorSettings
from paywarden.streams.companion import mirror_writer
from paywarden.streams.companion.mirror_writer import MirrorWriter, discard
from tests.oracles.mirror_reading import KeyReader as MirrorReader
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
    """A MirrorReader in a process of its own."""

    def __init__(self, settings: MirrorSettings, item_max: int = 4) -> None:
        self.process, self._here = template.call(_answer, settings, item_max)
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


def _answer(there: Connection, settings: MirrorSettings, item_max: int) -> None:
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


def test_a_reader_in_another_process_sees_what_is_committed_at_once(
    writer: MirrorWriter, reader: ReaderProcess
) -> None:
    for number in range(50):
        writer.apply({b"card:1": b"state %d" % number}, {0: number}, number + 1)
        assert reader.look_up(b"card:1") == (number + 1, [KNOWN], [b"state %d" % number])


def test_a_profile_of_no_bytes_is_known_though_nothing_can_read_it(writer: MirrorWriter, reader: ReaderProcess) -> None:
    writer.apply({b"card:1": b"", b"card:2": b"two"}, {}, 5)
    assert reader.look_up(b"card:1", b"card:2", b"card:3")[1:] == ([KNOWN, KNOWN, UNKNOWN], [b"", b"two", b""])


@pytest.mark.parametrize("count", [0, 1, 40, 1_000])
def test_a_look_up_finds_what_was_written_last(settings: MirrorSettings, count: int) -> None:
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
    for _ in range(20):
        asked = [random_.choice([key(), b"", *random_.sample([*kept], min(len(kept), 3))]) for _ in range(90)]
        assert reader.look_up(asked) == 7
        bounds = reader.bounds.tolist()
        found = [reader.states[bounds[at] : bounds[at + 1]].tobytes() for at in range(90)]
        assert found == [kept.get(name, b"")[:5_000] for name in asked]
        assert [*reader.found] == [ABSENT if not name else KNOWN if name in kept else UNKNOWN for name in asked]
    reader.close()


def test_a_mirror_that_is_being_filled_is_complete_to_zero(writer: MirrorWriter, reader: ReaderProcess) -> None:
    writer.apply({b"card:1": b"one"}, {0: 1})
    assert reader.look_up(b"card:1")[0] == 0


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
    for first in range(0, 60_000, 10_000):
        writer.apply({b"card:%06d" % number: bytes(500) for number in range(first, first + 10_000)}, {0: first}, first)
    assert writer.profile_count() == 60_000
    for number in (0, 31_234, 59_999):
        assert reader.look_up(b"card:%06d" % number)[:2] == (50_000, [KNOWN])
    assert reader.look_up(b"card:060000")[1] == [UNKNOWN]


def test_a_reader_follows_a_companion_that_came_back_with_a_larger_size(settings: MirrorSettings) -> None:
    small = MirrorSettings(path=settings.path, size_mb=8)
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
    (Path(settings.path) / FILE_NAME).write_bytes(b"something else")
    with pytest.raises(MirrorAbsent):
        MirrorReader(settings, item_max=1, profile_bytes_max=10)


def filled(settings: MirrorSettings) -> None:
    """Make a mirror of 500 profiles, and close it."""
    writer = MirrorWriter(settings)
    writer.apply({b"card:%04d" % number: bytes(300) for number in range(500)}, {0: 1}, 1)
    writer.close()


def write_all(settings: MirrorSettings) -> None:
    """Write each profile of a mirror that was filled."""
    with closing(MirrorWriter(settings)) as writer:
        writer.apply({b"card:%04d" % number: bytes(200) for number in range(500)}, {0: 2})


def in_new_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_writer, "boot_id", lambda: "the boot after")


@pytest.mark.parametrize("what", ["another file", "no index", "no records", "odd bytes"])
def test_a_damaged_mirror_is_told_from_a_failure_and_can_be_made_anew(settings: MirrorSettings, what: str) -> None:
    filled(settings)
    path = settings.data_file
    content = bytearray(path.read_bytes())
    if what == "another file":
        content[:8] = b"SQLite f"
    elif what == "no index":
        content[form.SEGMENT_BYTES : 2 * form.SEGMENT_BYTES] = bytes(form.SEGMENT_BYTES)
    elif what == "no records":
        content[2 * form.SEGMENT_BYTES :] = bytes(len(content) - 2 * form.SEGMENT_BYTES)
    else:
        for at in range(form.SEGMENT_BYTES, len(content), 97):
            content[at] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(MirrorDamaged, match="the mirror is damaged"):
        write_all(settings)
    discard(settings)
    writer = MirrorWriter(settings)
    assert (writer.positions(), writer.profile_count()) == ({}, 0)
    writer.close()


def test_a_writer_finds_damage_where_it_never_writes(settings: MirrorSettings) -> None:
    filled(settings)
    with closing(MirrorWriter(settings)) as writer:
        for _ in range(4):
            writer.check()
        content = settings.data_file.read_bytes()
        with settings.data_file.open("r+b") as file:
            file.seek(content.index(b"card:0321"))
            file.write(b"\xff")
        # One of two parts has it.
        found: list[str] = []
        for _ in range(2):
            try:
                writer.check()
            except MirrorDamaged as error:
                found.append(str(error))
        assert set(found) == {"the mirror is damaged: not all of it can be read"}


def test_a_writer_sees_that_another_process_has_written_to_the_file(settings: MirrorSettings) -> None:
    filled(settings)
    with closing(MirrorWriter(settings)) as writer:
        with settings.data_file.open("r+b") as file:
            file.seek(form.COMMITTED_AT * 8)
            file.write(b"\x09")
        with pytest.raises(MirrorDamaged, match="has changed its header"):
            writer.apply({b"card:c": b"state"}, {})


def test_a_mirror_has_one_writer_at_a_time(settings: MirrorSettings) -> None:
    writer = MirrorWriter(settings)
    with pytest.raises(Misconfigured, match="another process writes the mirror at"):
        MirrorWriter(settings)
    writer.close()
    MirrorWriter(settings).close()


@pytest.mark.parametrize("size_mb", [0, 7, 65_537])
def test_a_size_that_no_mirror_can_have_is_refused(size_mb: int) -> None:
    with pytest.raises(Misconfigured, match=rf"^\[mirror\] size_mb: wanted 8 to 65536, got {size_mb}\Z"):
        MirrorSettings(size_mb=size_mb)


# Bytes that stay of a file: none, a part of the header, the header, and a part of the index and of the records.
CUTS = (0, 100, 4096, 1_500_000, 2_500_000)


@pytest.mark.parametrize("size", CUTS)
def test_a_mirror_that_was_cut_short_is_refused_and_can_be_made_anew(settings: MirrorSettings, size: int) -> None:
    """A read behind the end of a mapped file killed companion and workers, at each start again."""
    filled(settings)
    os.truncate(Path(settings.path) / FILE_NAME, size)
    with pytest.raises(MirrorAbsent):
        MirrorReader(settings, item_max=1, profile_bytes_max=PROFILE_BYTES_MAX)
    with pytest.raises(MirrorDamaged, match="the mirror is damaged"):
        write_all(settings)
    discard(settings)
    with closing(MirrorWriter(settings)) as writer:
        assert (writer.positions(), writer.profile_count()) == ({}, 0)


@pytest.mark.parametrize("is_copied", [True, False])
def test_a_writer_sees_that_another_file_is_in_the_place_of_its_own(settings: MirrorSettings, is_copied: bool) -> None:
    """It wrote to a file that nobody reads any more, and readers had an old copy for ever."""
    filled(settings)
    writer = MirrorWriter(settings)
    writer.check()
    path = settings.data_file
    kept = path.rename(path.with_name("kept"))
    if is_copied:
        shutil.copy(kept, path)
    wanted = "was replaced" if is_copied else "was cut short"
    with pytest.raises(MirrorDamaged, match=wanted):
        writer.check()
    with pytest.raises(MirrorDamaged, match=wanted):
        writer.apply({b"card:c": b"state"}, {})
    path.unlink(missing_ok=True)
    kept.rename(path)
    writer.check()
    writer.close()


@pytest.mark.parametrize("size", [*CUTS, None])
def test_a_writer_sees_that_its_file_was_cut_short_or_deleted(settings: MirrorSettings, size: int | None) -> None:
    filled(settings)
    writer = MirrorWriter(settings)
    path = Path(settings.path) / FILE_NAME
    if size is None:
        path.unlink()
    else:
        os.truncate(path, size)
    with pytest.raises(MirrorDamaged, match="its file was cut short"):
        writer.check()
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
    os.truncate(Path(settings.path) / FILE_NAME, size)
    assert reader.is_replaced()
    reader.close()


def test_a_mirror_on_a_disk_that_lost_its_power_is_made_anew(
    settings: MirrorSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    filled(settings)
    # This companion was killed: nothing says that the file was closed.
    MirrorWriter(settings)._release()
    again = MirrorWriter(settings)
    assert again.profile_count() == 500
    again._release()
    in_new_boot(monkeypatch)
    anew = MirrorWriter(settings)
    assert (anew.profile_count(), "is filled again" in caplog.text) == (0, True)
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
    writer = MirrorWriter(MirrorSettings(path=str(tmp_path), size_mb=8))
    writer.apply({b"card:1": b"one"}, {0: 1}, 1)
    with pytest.raises(MirrorFull, match=r"^the mirror is full: mirror\.size_mb is 8\Z"):
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
from paywarden.scoring.state.mirror_file import FILE_NAME, MirrorSettings
from paywarden.streams.companion.mirror_writer import MirrorWriter

writer = MirrorWriter(MirrorSettings(path=sys.argv[1], size_mb=64))
first = writer.positions().get(0, 0) + 1
for number in itertools.count(first):
    state = b"%d" % number
    writer.apply({b"card:%d" % card: state for card in range(200)}, {0: number}, number)
    if number == first:
        print("writing", flush=True)
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


def change(writer: MirrorWriter, number: int) -> None:
    """Give every profile another state."""
    writer.apply({b"card:%d" % card: b"%d" % number + bytes(496) for card in range(500)}, {0: number}, number)


def test_readers_killed_in_a_look_up_leave_nothing_behind(settings: MirrorSettings) -> None:
    small = MirrorSettings(path=settings.path, size_mb=8)
    with closing(MirrorWriter(small)) as writer:
        used = []
        for number in range(4):
            change(writer, number)
            reader = ReaderProcess(small)
            reader._here.send((b"card:1",))
            reader.process.kill()
            reader.process.wait()
            reader._here.close()
            used.append(writer.used_bytes())
        assert used[-1] == used[0]


def test_a_mirror_that_is_nearly_full_takes_changes_for_ever(settings: MirrorSettings) -> None:
    """Room for what is replaced comes from segments that are emptied."""
    random_ = random.Random(7)
    small = MirrorSettings(path=settings.path, size_mb=8)
    with closing(MirrorWriter(small)) as writer:
        kept: dict[bytes, bytes] = {}
        while writer.used_bytes() < 0.9 * (8 << 20):
            new = {
                b"card:%d" % card: random_.randbytes(random_.randrange(900))
                for card in range(len(kept), len(kept) + 50)
            }
            writer.apply(new, {})
            kept |= new
        for number in range(400):
            changed = {key: random_.randbytes(random_.randrange(900)) for key in random_.sample([*kept], 100)}
            writer.apply(changed, {0: number})
            kept |= changed
        assert writer.read(kept) == kept
        with pytest.raises(MirrorFull):
            writer.apply({b"merchant:%d" % number: bytes(900) for number in range(2_000)}, {})
        assert writer.read(kept) == kept
        # To delete needs no room.
        for key in [*kept]:
            writer.apply({key: None}, {})
        assert (writer.profile_count(), writer.positions()) == (0, {0: 399})


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
        "from paywarden.streams.companion.mirror_writer import *; "
        "MirrorWriter(MirrorSettings(path=sys.argv[1])).apply({}, {})"
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
