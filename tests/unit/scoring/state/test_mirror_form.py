"""What the form of the mirror's file promises: no torn read, whatever the writer does and whenever it dies."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from paywarden.features.kernel import KNOWN
from paywarden.scoring.state import mirror_form as form
from paywarden.scoring.state import mirror_look_up
from paywarden.scoring.state.mirror_file import MirrorAbsent, MirrorDamaged, MirrorSettings, MirrorView
from paywarden.streams.companion.mirror_writer import MirrorWriter
from tests.oracles.mirror_reading import KeyReader as MirrorReader
from tests.patience import PATIENCE_S
from tests.services.product import template
from tests.services.product.processes import PaywardenProcess, run_program

CARDS = 300
KEYS = [b"card:%d" % card for card in range(CARDS)]
VALUE_BYTES_MAX = 4_000


def value(key: bytes, version: int) -> bytes:
    """Returns the value of a key in a transaction: any part of another one shows. Some versions lack the key."""
    drawn = random.Random(b"%b %d" % (key, version))
    return (b"%b %d " % (key, version)).ljust(drawn.randrange(60, VALUE_BYTES_MAX), b"%d" % drawn.randrange(10))


def is_there(key: bytes, version: int) -> bool:
    return random.Random(b"%d %b" % (version, key)).random() < 0.9


def content(version: int) -> dict[bytes, bytes | None]:
    """Returns what transaction `version` writes: a value of its own for each key, or nothing."""
    return {key: value(key, version) if is_there(key, version) else None for key in KEYS}


@pytest.fixture
def settings(tmp_path: Path) -> MirrorSettings:
    return MirrorSettings(path=str(tmp_path / "mirror"), size_mb=16)


def _read(there: Connection, settings: MirrorSettings, seed: int) -> None:
    """Look up until told to stop; answer with what was torn, and how many versions were seen."""
    drawn, torn, seen = random.Random(seed), list[str](), set[int]()
    with closing(MirrorReader(settings, item_max=64, profile_bytes_max=VALUE_BYTES_MAX)) as reader:
        there.send("open")
        while not there.poll():
            keys = drawn.sample(KEYS, drawn.choice((1, 3, 64)))
            version = reader.look_up(keys)
            seen.add(version)
            bounds = reader.bounds.tolist()
            for item, key in enumerate(keys):
                found = reader.states[bounds[item] : bounds[item + 1]].tobytes()
                wanted = value(key, version) if is_there(key, version) else b""
                if found != wanted or (reader.found[item] == KNOWN) != is_there(key, version):
                    torn.append(f"{key!r} as of {version}: {found[:20]!r}")
    there.send((torn[:5], len(seen)))
    there.close()


def _read_quickly(there: Connection, settings: MirrorSettings, _: int) -> None:
    """As `_read`, for transactions that follow each other as quickly as look-ups: all is of one number."""
    torn, seen = list[str](), set[int]()
    keys, size = KEYS[:64], VALUE_BYTES_MAX
    with closing(MirrorReader(settings, item_max=len(keys), profile_bytes_max=size)) as reader:
        there.send("open")
        while not there.poll():
            wanted = b"%016d" % reader.look_up(keys)
            found = reader.states.reshape(len(keys), size)
            # How the values begin, and how they end.
            ends = np.unique(found[:, [*range(16), *range(size - 16, size)]], axis=0)
            if ends.tobytes() != wanted * 2 or reader.found != bytes([KNOWN]) * len(keys):
                torn.append(f"as of {wanted!r}: {ends.tobytes()!r}")
            seen.add(int(wanted))
    there.send((torn[:5], len(seen)))
    there.close()


def read_while(
    settings: MirrorSettings,
    work: Callable[[], object],
    read: Callable[[Connection, MirrorSettings, int], None] = _read,
    *,
    readers: int = 2,
) -> list[str]:
    """Have processes read while the writer works; returns what they saw torn."""
    calls = [template.call(read, settings, seed) for seed in range(readers)]
    for _, here in calls:
        assert here.recv() == "open"
    work()
    found: list[str] = []
    for process, here in calls:
        here.send("stop")
        torn, versions = here.recv()
        assert process.wait(PATIENCE_S) == 0
        here.close()
        assert versions > 3
        found += torn
    return found


def write_versions(writer: MirrorWriter, count: int) -> None:
    """Write as many transactions, with growth of the index, emptied segments and a clearing in between."""
    drawn = random.Random(count)
    for version in range(2, count + 2):
        others: dict[bytes, bytes | None] = {}
        if version % 40 < 20:
            others = {b"other:%d" % drawn.randrange(60_000): bytes(drawn.randrange(80)) for _ in range(1_000)}
        writer.apply({**content(version), **others}, {0: version}, version)
        if version % 100 == 99:
            gone = [key for key in writer.all_keys() if key.startswith(b"other:")]
            writer.apply({**content(version), **dict.fromkeys(gone)}, {0: version}, version)


def test_readers_see_each_transaction_whole_while_the_mirror_changes_and_grows(settings: MirrorSettings) -> None:
    with closing(MirrorWriter(settings)) as writer:
        writer.apply(content(1), {0: 1}, 1)
        bits = int(writer.numbers[form.INDEX_BITS])
        assert read_while(settings, lambda: write_versions(writer, 250)) == []
        # The index has grown, and segments were emptied and written again.
        assert int(writer.numbers[form.INDEX_BITS]) > bits
        assert writer.newest_transaction() > 270
        assert writer.read(KEYS) == content(251)


def test_readers_that_a_quick_writer_overtakes_see_nothing_torn(settings: MirrorSettings) -> None:
    """Readers stop in the middle of look-ups, since there are more of them than processors."""
    small = MirrorSettings(path=settings.path, size_mb=8)
    with closing(MirrorWriter(small)) as writer:

        def write(number: int) -> None:
            state = (b"%016d" % number).ljust(VALUE_BYTES_MAX - 16, b".") + b"%016d" % number
            writer.apply(dict.fromkeys(KEYS[:64], state), {}, number)

        def write_on() -> None:
            until = time.monotonic() + 4.0
            number = 1
            while time.monotonic() < until:
                number += 1
                write(number)

        write(1)
        assert read_while(small, write_on, _read_quickly, readers=4) == []


def test_a_reader_starts_again_when_the_writer_is_two_transactions_ahead(settings: MirrorSettings) -> None:
    """One transaction ahead changes nothing that the reader sees; two may overwrite it."""
    with closing(MirrorWriter(settings)) as writer, closing(MirrorView(settings)) as view:
        writer.apply({b"card:1": b"one"}, {}, 1)
        numbers = view.numbers

        def is_current_after(changes: int) -> bool:
            assert view.read([b"card:1"])[b"card:1"] is not None
            for _ in range(changes):
                writer.apply({b"card:1": b"another"}, {}, 2)
            return bool(mirror_look_up.is_still_current(numbers))

        assert [is_current_after(changes) for changes in range(4)] == [True, True, False, False]


_KILLED_WRITER = """
import itertools, sys
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.streams.companion.mirror_writer import MirrorWriter
from tests.unit.scoring.state.test_mirror_form import content

writer = MirrorWriter(MirrorSettings(path=sys.argv[1], size_mb=16))
first = writer.positions()[0] + 1
for version in itertools.count(first):
    others = {b"other:%d-%d" % (version, at): bytes(50) for at in range(500)}
    gone = {b"other:%d-%d" % (version - 20, at): None for at in range(500)}
    writer.apply(content(version) | others | gone, {0: version}, version)
    if version == first:
        print("writing", flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_the_transaction_before(settings: MirrorSettings, tmp_path: Path) -> None:
    with closing(MirrorWriter(settings)) as writer:
        writer.apply(content(1), {0: 1}, 1)
    moments = random.Random(3)
    last = 1

    def kill_often() -> None:
        nonlocal last
        for _ in range(10):
            child = PaywardenProcess.of_program(tmp_path, _KILLED_WRITER, settings.path)
            assert child.first_line() == "writing"
            time.sleep(moments.uniform(0.0, 0.08))
            child.kill()
            with closing(MirrorView(settings)) as view:
                version = view.positions()[0]
                assert view.read(KEYS) == content(version)
                assert view.complete_to_ms() == version > last
            last = version
            # The next writer undoes a transaction that was not committed, and counts the profiles.
            with closing(MirrorWriter(settings)) as writer:
                assert writer.profile_count() == len(writer.all_keys()) - 1

    assert read_while(settings, kill_often) == []


@pytest.mark.parametrize("seed", range(4))
def test_no_damage_crashes_a_reader_or_a_writer(settings: MirrorSettings, seed: int) -> None:
    """In a process of its own: a read behind the end of the file would end it."""
    with closing(MirrorWriter(settings)) as writer:
        writer.apply({**content(1), **{b"other:%d" % at: bytes(40) for at in range(30_000)}}, {0: 1}, 1)
    program = f"from tests.unit.scoring.state.test_mirror_form import damage; damage({settings.path!r}, {seed})"
    done = run_program(program)
    assert done.returncode == 0, (signal.Signals(-done.returncode).name if done.returncode < 0 else "", done.stderr)


def damage(path: str, seed: int) -> None:
    """Damage a mirror again and again, and read and write it each time."""
    drawn = random.Random(seed)
    settings = MirrorSettings(path=path, size_mb=16)
    whole = settings.data_file.read_bytes()
    reader = MirrorReader(settings, item_max=64, profile_bytes_max=VALUE_BYTES_MAX)
    outcomes = set()
    # The header's words, the index, and the records.
    ranges = [(0, 256), (form.SEGMENT_BYTES, 3 * form.SEGMENT_BYTES), (3 * form.SEGMENT_BYTES, 6 * form.SEGMENT_BYTES)]
    for _ in range(80):
        with settings.data_file.open("r+b") as file:
            begin, end = drawn.choice(ranges)
            for _ in range(drawn.choice((1, 20, 3_000))):
                file.seek(drawn.randrange(begin, end))
                file.write(drawn.choice((b"\0", b"\xff", drawn.randbytes(1), drawn.randbytes(8), b"\xff" * 8)))
        for _ in range(5):
            try:
                reader.look_up(drawn.sample(KEYS, 64))
                outcomes.add("read")
            except MirrorAbsent:
                outcomes.add("absent")
        try:
            with closing(MirrorView(settings)) as view:
                view.all_keys()
        except MirrorAbsent:
            outcomes.add("no keys")
        try:
            with closing(MirrorWriter(settings)) as writer:
                writer.check()
                writer.apply({b"card:1": b"x", b"card:2": None}, {0: 2})
                outcomes.add("written")
        except MirrorDamaged:
            outcomes.add("damaged")
        settings.data_file.write_bytes(whole)
    reader.close()
    assert {"read", "absent", "damaged"} <= outcomes, outcomes


def test_a_mirror_is_written_whole_before_readers_see_it(settings: MirrorSettings) -> None:
    """A companion that dies while it makes one leaves a file that nobody takes for a mirror."""
    folder = Path(settings.path)
    folder.mkdir(parents=True)
    new = settings.data_file.with_name(settings.data_file.name + ".new")
    new.write_bytes(b"\0" * 5_000)
    with pytest.raises(MirrorAbsent):
        MirrorView(settings)
    with closing(MirrorWriter(settings)) as writer:
        writer.apply({b"card:1": b"one"}, {})
        assert not new.exists()


def test_keys_of_any_bytes_and_length_are_told_apart(settings: MirrorSettings) -> None:
    drawn = random.Random(11)
    keys = {drawn.randbytes(drawn.choice((1, 2, 7, 8, 9, 200, 511))) for _ in range(5_000)} - {b""}
    values = {key: key[::-1] for key in keys}
    with closing(MirrorWriter(settings)) as writer:
        writer.apply(values, {})
        assert writer.read(keys) == values
        assert sorted(writer.all_keys()) == sorted(keys)
        assert writer.profile_count() == sum(key[0] != 0 for key in keys)


def test_a_walk_over_all_keys_survives_the_growth_of_the_index(settings: MirrorSettings) -> None:
    kept = {b"card:%d" % card for card in range(20_000)}
    with closing(MirrorWriter(settings)) as writer:
        writer.apply(dict.fromkeys(kept, b"one"), {})
        seen: list[bytes] = []
        for number, keys in enumerate(writer.walk()):
            seen += keys
            writer.apply({b"other:%d-%d" % (number, at): b"two" for at in range(500)}, {})
        found = [key for key in seen if key in kept]
        assert len(found) == len(kept)
        assert set(found) == kept
        assert len(set(seen)) == len(seen)


def test_a_copy_of_a_mirror_is_a_mirror(settings: MirrorSettings, tmp_path: Path) -> None:
    with closing(MirrorWriter(settings)) as writer:
        writer.apply(content(1), {0: 1}, 1)
    shutil.copytree(settings.path, tmp_path / "copy")
    with closing(MirrorWriter(MirrorSettings(path=str(tmp_path / "copy"), size_mb=8))) as copied:
        assert copied.read(KEYS) == content(1)
