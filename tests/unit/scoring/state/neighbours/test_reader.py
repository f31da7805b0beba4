"""Profiles looked up by identity."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from paywarden.features.catalogue.identity import LAPTOP_KEY
from paywarden.features.kernel import ABSENT, KNOWN, UNKNOWN
from paywarden.features.profiles.keys import hashed_id
from paywarden.scoring.state.identity_index import IdentityIndex, record_prefix
from paywarden.scoring.state.mirror import MirrorReader
from paywarden.scoring.state.mirror_file import MirrorAbsent, MirrorSettings
from paywarden.scoring.state.neighbours.neighbour_reader import NeighbourReader
from paywarden.streams.companion.mirror_writer import MirrorWriter
from tests.patience import PATIENCE_S
from tests.services.product import template

INDEX = IdentityIndex({"merchant": False, "device": True}, LAPTOP_KEY)
# The places of a payment: two merchants and a device.
PLACES = ("merchant", "merchant", "device")
PROFILE_BYTES_MAX = 64
ROWS_MAX = 8

Found = list[tuple[int, bytes]]


@pytest.fixture
def settings(tmp_path: Path) -> MirrorSettings:
    return MirrorSettings(path=str(tmp_path / "mirror"), size_mb=64)


def merchant(number: int) -> int:
    return LAPTOP_KEY.of(f"m-{number}")


def device(number: int) -> int:
    return LAPTOP_KEY.of(f"d-{number}")


def key_of_device(number: int) -> bytes:
    return b"device:" + hashed_id(device(number)).encode()


def record(entity: str, identity: int) -> bytes:
    return record_prefix(entity) + hashed_id(identity).encode()


class Reader:
    """A reader in a process of its own."""

    def __init__(self, settings: MirrorSettings, *, size_mb: int | None = None) -> None:
        wanted = MirrorSettings(path=settings.path, size_mb=size_mb or settings.size_mb)
        self._process, self._here = template.call(_answer, wanted)
        assert self._here.recv() == "open"

    def look_up(self, *identities: int) -> Found:
        """Returns presence and profile by place."""
        self._here.send(identities)
        found: Found = self._here.recv()
        return found

    def close(self) -> None:
        self._here.send(None)
        assert self._process.wait(PATIENCE_S) == 0
        self._here.close()


def _answer(there: Connection, settings: MirrorSettings) -> None:
    with closing(MirrorReader(settings, item_max=4, profile_bytes_max=200)) as mirror:
        reader = NeighbourReader(mirror, PLACES, rows_max=ROWS_MAX, profile_bytes_max=PROFILE_BYTES_MAX)
        there.send("open")
        while (identities := there.recv()) is not None:
            reader.identities[: len(identities)] = identities
            # What an earlier look-up has left.
            reader.presence[:], reader.bounds[1:] = 9, 9
            try:
                reader.look_up(len(identities) // len(PLACES))
            except MirrorAbsent as error:
                there.send([(-1, str(error).encode())])
                continue
            bounds = reader.bounds[: len(identities) + 1].tolist()
            states = [reader.states[start:end].tobytes() for start, end in itertools.pairwise(bounds)]
            there.send(list(zip(reader.presence[: len(identities)].tolist(), states, strict=True)))
    there.close()


@pytest.fixture
def reader(settings: MirrorSettings) -> Iterator[Reader]:
    with closing(MirrorWriter(settings)) as writer:
        list(writer.keep_index(INDEX))
        writer.apply({b"merchant:m-1": b"one", key_of_device(1): b"device", b"card:m-2": b"card"}, {}, 5)
    opened = Reader(settings)
    yield opened
    opened.close()


def put(settings: MirrorSettings, values: Mapping[bytes, bytes | None]) -> None:
    """Change the mirror behind the index's back."""
    with closing(MirrorWriter(settings)) as writer:
        writer.apply(values, {})


def test_a_neighbour_is_known_unknown_or_absent(reader: Reader) -> None:
    assert reader.look_up(merchant(1), 0, device(1)) == [(KNOWN, b"one"), (ABSENT, b""), (KNOWN, b"device")]
    # A place is of one entity: a merchant's identity names no device, and a device's no merchant.
    assert reader.look_up(merchant(2), device(1), merchant(1)) == [(UNKNOWN, b"")] * 3
    assert reader.look_up(0, 0, 0) == [(ABSENT, b"")] * 3
    assert reader.look_up() == []


@pytest.mark.parametrize("number", [1, 2**32 - 1, -1, -(2**63), 2**62 - 1])
def test_a_number_that_is_no_identity_stands_for_no_neighbour(reader: Reader, number: int) -> None:
    assert reader.look_up(number, merchant(1), number) == [(ABSENT, b""), (KNOWN, b"one"), (ABSENT, b"")]


def test_the_neighbours_that_are_there_are_found(settings: MirrorSettings) -> None:
    random_ = random.Random(3)
    states: dict[bytes, bytes] = {}
    with closing(MirrorWriter(MirrorSettings(path=settings.path, size_mb=8))) as writer:
        list(writer.keep_index(INDEX))
        writer.apply({}, {}, 5)
    # The mirror will grow beyond what this reader has mapped.
    reader = Reader(settings, size_mb=8)
    with closing(MirrorWriter(settings)) as writer:
        list(writer.keep_index(INDEX))
        for size in (1, 5, 50, 5000, 50):
            keys = [b"merchant:m-%d" % random_.randrange(6000) for _ in range(size)]
            keys += [key_of_device(random_.randrange(6000)) for _ in range(size)]
            changes = {key: random_.choice([None, b"", random_.randbytes(60), bytes(400)]) for key in keys}
            states |= {key: state for key, state in changes.items() if state is not None}
            for key in changes:
                if changes[key] is None:
                    states.pop(key, None)
            writer.apply(changes, {})
            for _ in range(10):
                asked, wanted = _drawn(random_, states)
                assert reader.look_up(*asked) == wanted
    reader.close()


def _drawn(random_: random.Random, states: Mapping[bytes, bytes]) -> tuple[list[int], Found]:
    """Draw the neighbours of some payments: those who are there, and others. Returns what must be found, too."""
    asked: list[int] = []
    wanted: Found = []
    merchants = [int(key[11:]) for key in states if key.startswith(b"merchant:m-")] or [0]
    for place in PLACES * random_.randrange(ROWS_MAX + 1):
        number = random_.choice([random_.choice(merchants), random_.randrange(6000)])
        key, identity = (
            (b"merchant:m-%d" % number, merchant(number))
            if place == "merchant"
            else (key_of_device(number), device(number))
        )
        if random_.random() < 0.2:
            asked.append(0)
            wanted.append((ABSENT, b""))
        else:
            asked.append(identity)
            wanted.append((KNOWN, states[key][:PROFILE_BYTES_MAX]) if key in states else (UNKNOWN, b""))
    return asked, wanted


def test_a_record_that_names_no_profile_is_no_neighbour(settings: MirrorSettings, reader: Reader) -> None:
    put(settings, {b"merchant:m-1": None})
    assert reader.look_up(merchant(1), merchant(1), device(1))[:2] == [(UNKNOWN, b"")] * 2


@pytest.mark.parametrize(
    "damaged",
    [b"", b"m", b"merchant:", b"card:m-2", b"\0positions", b"merchant:m-1\0", b"x" * 511, b"merchant:" + b"y" * 9000],
)
def test_a_damaged_record_is_no_neighbour(settings: MirrorSettings, reader: Reader, damaged: bytes) -> None:
    put(settings, {record("merchant", merchant(1)): damaged})
    found = [(UNKNOWN, b""), (ABSENT, b""), (KNOWN, b"device")]
    assert reader.look_up(merchant(1), 0, device(1)) == found
    # The others of the same look-up are found all the same.
    assert reader.look_up(merchant(1), 0, device(1), 0, merchant(1), device(1))[:3] == found


def test_a_mirror_without_an_index_has_no_neighbours(settings: MirrorSettings) -> None:
    with closing(MirrorWriter(settings)) as writer:
        writer.apply({b"merchant:m-1": b"one"}, {})
    reader = Reader(settings)
    assert reader.look_up(merchant(1), 0, 0) == [(UNKNOWN, b""), (ABSENT, b""), (ABSENT, b"")]
    reader.close()


def _notes(there: Connection, settings: MirrorSettings) -> None:
    with closing(MirrorReader(settings, item_max=4, profile_bytes_max=200)) as mirror:
        there.send("open")
        while there.recv() is not None:
            there.send(INDEX.is_served_by(mirror.index_note()))
    there.close()


def test_a_reader_knows_whether_the_index_is_whole_and_new(settings: MirrorSettings) -> None:
    with closing(MirrorWriter(settings)) as writer:
        writer.apply({b"merchant:m-1": b"one"}, {})
    process, here = template.call(_notes, settings)
    assert here.recv() == "open"

    def is_whole() -> bool:
        here.send("?")
        found: bool = here.recv()
        return found

    assert not is_whole()
    with closing(MirrorWriter(settings)) as writer:
        steps = writer.keep_index(INDEX)
        next(steps)
        assert not is_whole()
        list(steps)
        assert is_whole()
        writer.apply({b"merchant:m-2": b"two"}, {0: 1}, 5)
        writer.note_profile_set("blue")
        writer.clear()
        assert is_whole()
    with closing(MirrorWriter(settings)) as writer:
        # A companion that keeps no index.
        writer.apply({b"merchant:m-3": b"three"}, {})
        assert not is_whole()
    here.send(None)
    assert process.wait(PATIENCE_S) == 0
