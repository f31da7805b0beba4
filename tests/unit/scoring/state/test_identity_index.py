"""The mirror's index by identity: in step with the profiles, whatever happens to either."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from paywarden.features.catalogue.identity import LAPTOP_KEY, IdentityKey
from paywarden.features.profiles.keys import hashed_id
from paywarden.scoring.state.identity_index import INDEX, INDEXED, IdentityIndex, IndexNote, record_prefix
from paywarden.scoring.state.mirror_file import MirrorFull, MirrorSettings
from paywarden.streams.companion.mirror_writer import MirrorWriter
from tests.services.product.processes import PaywardenProcess

# The keys of merchants hold their ids, those of devices hashed ids; cards have no index.
ENTITIES = {"merchant": False, "device": True}
OTHER_KEY = IdentityKey.of_bytes(b"another-key-here")


@pytest.fixture
def settings(tmp_path: Path) -> MirrorSettings:
    return MirrorSettings(path=str(tmp_path / "mirror"), size_mb=64)


@pytest.fixture
def writer(settings: MirrorSettings) -> Iterator[MirrorWriter]:
    with closing(MirrorWriter(settings)) as opened:
        yield opened


def make(writer: MirrorWriter, entities: Mapping[str, bool] = ENTITIES, key: IdentityKey = LAPTOP_KEY) -> int:
    """Make the index; returns the number of steps."""
    return sum(1 for _ in writer.keep_index(IdentityIndex(entities, key)))


def device(number: int) -> bytes:
    return b"device:" + hashed_id(LAPTOP_KEY.of(f"d-{number}")).encode()


def records_in(writer: MirrorWriter) -> dict[bytes, bytes | None]:
    return writer.read([key for key in writer.all_keys() if key.startswith(INDEX)])


def note_in(writer: MirrorWriter) -> IndexNote | None:
    return IndexNote.of_bytes(writer.read([INDEXED])[INDEXED])


def assert_in_step(writer: MirrorWriter, entities: Mapping[str, bool] = ENTITIES) -> None:
    """Each profile of an indexed entity has its record, no other record is there, and the note says so."""
    profiles = [key for key in writer.all_keys() if key.partition(b":")[0].decode() in entities]
    wanted = {}
    for key in profiles:
        name, _, identity = key.decode().partition(":")
        number = int(identity, 16) if entities[name] else LAPTOP_KEY.of(identity)
        wanted[record_prefix(name) + hashed_id(number).encode()] = key
    assert records_in(writer) == wanted
    note = note_in(writer)
    assert note == IndexNote(writer.newest_transaction(), LAPTOP_KEY.digest, entities)


def test_a_record_comes_with_its_profile_and_goes_with_it(writer: MirrorWriter) -> None:
    make(writer)
    writer.apply({b"merchant:m-1": b"one", b"card:c-1": b"card", device(1): b"device"}, {0: 1}, 5)
    assert records_in(writer) == {
        record_prefix("merchant") + hashed_id(LAPTOP_KEY.of("m-1")).encode(): b"merchant:m-1",
        INDEX + device(1): device(1),
    }
    writer.apply({b"merchant:m-1": b"newer", b"merchant:m-2": None}, {})
    assert len(records_in(writer)) == 2
    writer.apply({b"merchant:m-1": None}, {})
    assert list(records_in(writer).values()) == [device(1)]


def test_records_are_no_profiles(writer: MirrorWriter) -> None:
    make(writer)
    writer.apply({b"merchant:%d" % number: b"state" for number in range(50)}, {0: 1}, 9)
    assert (writer.profile_count(), writer.positions(), writer.complete_to_ms()) == (50, {0: 1}, 9)
    writer.clear()
    assert (writer.profile_count(), records_in(writer)) == (0, {})
    writer.apply({b"merchant:1": b"state"}, {})
    assert_in_step(writer)


def test_the_index_is_in_step_after_any_changes_and_new_starts(settings: MirrorSettings) -> None:
    random_ = random.Random(7)
    keys = [b"merchant:m-%d" % number for number in range(30)] + [device(number) for number in range(30)]
    keys += [b"card:c-%d" % number for number in range(30)]
    entities: Mapping[str, bool] = ENTITIES
    for _ in range(25):
        entities = random_.choice([ENTITIES, ENTITIES, {"merchant": False}, {"device": True}])
        with closing(MirrorWriter(settings)) as writer:
            make(writer, entities)
            assert_in_step(writer, entities)
            for _ in range(random_.randrange(4)):
                changed = random_.sample(keys, random_.randrange(1, 20))
                writer.apply({key: random_.choice([None, b"", b"state"]) for key in changed}, {0: 1})
                assert_in_step(writer, entities)
            if random_.random() < 0.2:
                writer.clear()
                assert_in_step(writer, entities)


def test_a_mirror_from_before_the_index_gets_one(writer: MirrorWriter) -> None:
    profiles = {b"merchant:%d" % number: b"state" for number in range(12_000)}
    writer.apply(profiles | {device(1): b"device", b"card:1": b"card"}, {0: 7}, 5)
    assert make(writer) > 2
    assert_in_step(writer)
    assert (writer.profile_count(), writer.positions(), writer.complete_to_ms()) == (12_002, {0: 7}, 5)
    assert make(writer) == 0


def test_a_companion_that_starts_again_finds_its_index(settings: MirrorSettings) -> None:
    """What it does before it asks for the index is no change by somebody else."""
    for number in range(3):
        with closing(MirrorWriter(settings)) as writer:
            writer.claim_identity(LAPTOP_KEY.digest)
            writer.check()
            assert (make(writer) == 0) is (number > 0)
            writer.apply({b"merchant:%d" % number: b"state"}, {0: number}, 5)
            writer.note_profile_set("blue")
            assert_in_step(writer)


def test_an_interrupted_walk_begins_again(settings: MirrorSettings) -> None:
    with closing(MirrorWriter(settings)) as writer:
        writer.apply({b"merchant:%d" % number: b"state" for number in range(12_000)}, {})
        steps = writer.keep_index(IdentityIndex(ENTITIES, LAPTOP_KEY))
        while not records_in(writer):
            next(steps)
        note = note_in(writer)
        assert 0 < len(records_in(writer)) < 12_000
        # Nobody takes the half of an index for an index.
        assert note is not None
        assert note.entities == {}
    with closing(MirrorWriter(settings)) as writer:
        make(writer)
        assert_in_step(writer)


def test_changes_by_a_companion_without_an_index_are_noticed(settings: MirrorSettings) -> None:
    with closing(MirrorWriter(settings)) as writer:
        make(writer)
        writer.apply({b"merchant:1": b"one", b"merchant:2": b"two"}, {})
    # A companion without two-hop features knows nothing of records and note.
    with closing(MirrorWriter(settings)) as writer:
        writer.apply({b"merchant:1": None, b"merchant:3": b"three"}, {})
    with closing(MirrorWriter(settings)) as writer:
        assert make(writer) > 0
        assert_in_step(writer)


def test_an_entity_that_nobody_looks_for_any_more_loses_its_records(writer: MirrorWriter) -> None:
    make(writer)
    writer.apply({b"merchant:1": b"one", device(1): b"device"}, {})
    before = records_in(writer)
    steps = writer.keep_index(IdentityIndex({"merchant": False}, LAPTOP_KEY))
    next(steps)
    # The entity that stays is found all the time.
    note = note_in(writer)
    assert note is not None
    assert note.entities == {"merchant": False}
    assert b"merchant:1" in records_in(writer).values()
    list(steps)
    assert records_in(writer).items() < before.items()
    assert_in_step(writer, {"merchant": False})
    make(writer, {})
    assert (records_in(writer), note_in(writer)) == ({}, None)
    # A catalogue without an index costs nothing.
    assert make(writer, {}) == 0
    writer.apply({b"merchant:2": b"two"}, {})
    assert (records_in(writer), note_in(writer), writer.profile_count()) == ({}, None, 3)


def test_an_index_of_another_identity_key_is_made_anew(writer: MirrorWriter) -> None:
    make(writer, key=OTHER_KEY)
    writer.apply({b"merchant:1": b"one"}, {})
    assert make(writer) > 0
    assert_in_step(writer)


def test_an_entity_whose_keys_have_become_hashed_is_indexed_anew(writer: MirrorWriter) -> None:
    make(writer, {"device": False})
    writer.apply({b"device:d-1": b"one", device(2): b"two"}, {})
    assert len(records_in(writer)) == 2
    make(writer, {"device": True})
    # No payment has a key in the earlier form.
    assert records_in(writer) == {INDEX + device(2): device(2)}


@pytest.mark.parametrize("note", [b"", b"x", b"1", b"\xff\xfe", b"9 abc merchant", b"9 abc merchant=none", b"- - - -"])
def test_a_damaged_note_lets_the_index_be_made_anew(settings: MirrorSettings, note: bytes) -> None:
    with closing(MirrorWriter(settings)) as writer:
        make(writer)
        writer.apply({b"merchant:1": b"one"}, {})
    _put(settings, {INDEXED: note, record_prefix("gone") + b"0" * 16: b"gone:1", INDEX + b"\xff": b""})
    with closing(MirrorWriter(settings)) as writer:
        assert make(writer) > 0
        assert_in_step(writer)


@pytest.mark.parametrize(
    "key",
    [
        *(b"device:", b"device:d-1", b"device:" + b"0" * 16, b"device:" + b"f" * 16, b"device:" + b"4" * 17),
        *(device(1).upper().replace(b"DEVICE", b"device"), b"merchant:", b"merchant", b"\xff\xfe:x", b"card:1"),
    ],
)
def test_a_key_that_no_payment_has_gets_no_record(writer: MirrorWriter, key: bytes) -> None:
    make(writer)
    writer.apply({key: b"state", device(1): b"device"}, {})
    assert records_in(writer) == {INDEX + device(1): device(1)}
    writer.apply({key: None}, {})
    assert records_in(writer) == {INDEX + device(1): device(1)}


def fill(writer: MirrorWriter, *, batch: int) -> int:
    """Write merchants until the mirror is full; returns how many it has taken."""
    for number in itertools.count():
        try:
            writer.apply({b"merchant:%d" % (number * batch + at): bytes(300) for at in range(batch)}, {})
        except MirrorFull:
            return number * batch
    raise AssertionError


def test_a_full_mirror_keeps_profiles_and_index_in_step(tmp_path: Path) -> None:
    settings = MirrorSettings(path=str(tmp_path / "small"), size_mb=8)
    with closing(MirrorWriter(settings)) as writer:
        make(writer)
        assert fill(writer, batch=50) > 100
        assert_in_step(writer)
    with closing(MirrorWriter(MirrorSettings(path=settings.path, size_mb=16))) as writer:
        assert make(writer) == 0
        writer.apply({b"merchant:%d" % gone: None for gone in range(50)}, {})
        assert_in_step(writer)


def test_a_mirror_without_room_for_an_index_says_so_and_gets_one_with_more(tmp_path: Path) -> None:
    small = MirrorSettings(path=str(tmp_path / "small"), size_mb=8)
    with closing(MirrorWriter(small)) as writer:
        count = fill(writer, batch=500)
    with closing(MirrorWriter(small)) as writer, pytest.raises(MirrorFull, match=r"mirror\.size_mb is 8"):
        make(writer)
    with closing(MirrorWriter(MirrorSettings(path=small.path, size_mb=16))) as writer:
        make(writer)
        assert_in_step(writer)
        assert writer.profile_count() == count


_KILLED_WRITER = """
import sys
from paywarden.features.catalogue.identity import LAPTOP_KEY
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.streams.companion.mirror_writer import MirrorWriter
from paywarden.scoring.state.identity_index import IdentityIndex

writer = MirrorWriter(MirrorSettings(path=sys.argv[1], size_mb=64))
list(writer.keep_index(IdentityIndex({"merchant": False}, LAPTOP_KEY)))
print("writing", flush=True)
number = 0
while True:
    number += 1
    writer.apply({b"merchant:%d" % (number + at): b"new" for at in range(20)}, {0: number})
    writer.apply({b"merchant:%d" % at: None for at in range(number)}, {0: number})
"""


def test_no_kill_separates_a_record_from_its_profile(settings: MirrorSettings, tmp_path: Path) -> None:
    for _ in range(4):
        child = PaywardenProcess.of_program(tmp_path, _KILLED_WRITER, settings.path)
        assert child.first_line() == "writing"
        child.kill()
        with closing(MirrorWriter(settings)) as writer:
            assert make(writer, {"merchant": False}) == 0
            assert_in_step(writer, {"merchant": False})


def _put(settings: MirrorSettings, values: Mapping[bytes, bytes]) -> None:
    """Write as a companion that keeps no index."""
    with closing(MirrorWriter(settings)) as writer:
        writer.apply(values, {})
