"""Unreadable bytes of an outbox are set aside, and every other record is shipped once."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from hypothesis import given
from hypothesis import strategies as st

from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry, OutboxRecord
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.state.outbox import RETRIED, Cursor, OutboxReader, OutboxUnavailable, OutboxWriter, framed
from paywarden.streams.companion import set_aside_entries, shipping
from paywarden.streams.companion.cursors import ShippedTo
from paywarden.streams.companion.retry_set_aside import entries_of, readable, retry, why_not
from paywarden.streams.companion.set_aside_entries import SetAsideEntries, SetAsideEntry, Unreadable
from paywarden.streams.companion.shipment import read_entry
from tests.worlds.endpoint.hostile_requests import fields_of, groups, varint, written
from tests.worlds.stream.shipped import World, entry

MUST_ABORT = KafkaException(KafkaError(KafkaError._TIMED_OUT, "records timed out", txn_requires_abort=True))
REQUEST = ScoreRequest(
    payment_id="p",
    event_time_ms=5,
    card_id="c",
    merchant_id="m",
    amount_minor=7,
    currency="EUR",
    utc_offset_minutes=-60,
)


def encode(decision: OutboxEntry) -> bytes:
    return Encoder("decisions", LocalSchemaIds().id_of("decisions")).encode(shipping.decision_of(decision))


def poisoned(body: bytes) -> bytes:
    """Returns a record about a request of these bytes."""
    record = OutboxRecord(
        request=body,
        response=ScoreResponse(payment_id="p", decision_id="d", action="approve").SerializeToString(),
        decided_time_ms=9,
    )
    return record.SerializeToString()


MANY_LEVELS = poisoned(REQUEST.SerializeToString() + groups(100))
OVERLONG = poisoned(b"".join(written(*field, number_size=8) for field in fields_of(REQUEST)))


@contextmanager
def shipping_bug() -> Iterator[None]:
    """The writer of decisions fails."""

    def failing(*_: object) -> bytes:
        raise ValueError("a bug")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shipping, "decision_of", failing)
        yield


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    built = World(tmp_path)
    yield built
    built.writer.close()


def entries(world: World) -> list[SetAsideEntry]:
    return entries_of(world.settings)


def flip(world: World, position: int, worker: str = "worker-0") -> None:
    path = max(path for path in (Path(world.settings.directory) / worker).glob("*.log") if int(path.stem) <= position)
    content = bytearray(path.read_bytes())
    content[position - int(path.stem)] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("payload", [MANY_LEVELS, OVERLONG, b"no decision"], ids=["levels", "overlong", "noise"])
def test_a_record_that_cannot_be_parsed_is_set_aside_and_shipping_goes_on(
    world: World, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Unreadable):
        # Otherwise the test shows nothing.
        read_entry(payload)
    (begin,) = world.decide("p0")
    end = world.writer.append(payload)
    world.decide("p1")
    with closing(OutboxWriter(world.settings, "worker-1")) as other:
        other.append(entry("q", 1))
    world.rounds()
    assert sorted(world.broker.decisions) == ["p0", "p1", "q"]
    (aside,) = entries(world)
    assert (aside.worker, aside.begin, aside.end, aside.kind, aside.read()) == (
        "worker-0",
        begin,
        end,
        "record",
        payload,
    )
    assert stat.S_IMODE(aside.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(aside.path.parent.stat().st_mode) == 0o700
    assert world.shipper.set_aside_counts() == {"worker-0": 1, "worker-1": 0}
    assert world.shipper.set_aside() == {"worker-0": (1, len(payload)), "worker-1": (0, 0)}
    assert caplog.text.count("set aside") == 2  # one line, which names the command
    # A companion that starts again does not meet it a second time.
    world.shipper = world.new_shipper()
    world.decide("p2")
    world.rounds()
    assert world.broker.decisions[-1] == "p2"
    assert world.shipper.set_aside_counts()["worker-0"] == 0


def test_a_decision_that_meets_a_bug_is_set_aside_without_its_text(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decision_of = shipping.decision_of

    def failing(entry: OutboxEntry, variant: str = "") -> dict[str, Any]:
        if entry.request.payment_id == "p1":
            raise ValueError("card-secret")
        return decision_of(entry, variant)

    monkeypatch.setattr(shipping, "decision_of", failing)
    world.decide("p0", "p1", "p2")
    world.settle()
    assert world.broker.decisions == ["p0", "p2"]
    assert "ValueError" in caplog.text
    assert "card-secret" not in caplog.text
    # Mended, it is shipped.
    monkeypatch.undo()
    assert list(retry(world.settings, entries(world), encode).sent.values()) == [1]
    world.rounds()
    assert world.broker.decisions == ["p0", "p2", "p1"]


def test_damaged_bytes_are_set_aside_and_the_records_behind_them_are_shipped(world: World) -> None:
    ends = world.decide("p0", "p1", "p2", "p3")
    before = (Path(world.settings.directory) / "worker-0" / f"{0:020d}.log").read_bytes()
    flip(world, ends[0] + 9)
    flip(world, ends[1] + 2)
    with closing(OutboxWriter(world.settings, "worker-1")) as other:
        other.append(entry("q", 1))
    world.settle()
    assert sorted(world.broker.decisions) == ["p0", "p3", "q"]
    (aside,) = entries(world)
    assert (aside.begin, aside.end, aside.kind) == (ends[0], ends[2], "damage")
    assert len(aside.read()) == ends[2] - ends[0]
    assert world.broker.cursors["worker-0"].position == ends[3]
    # It stays while it is damaged, and the command says why.
    assert why_not(world.settings, aside, encode).startswith("no whole record begins at byte 0 of ")
    assert list(retry(world.settings, [aside], encode).refused) == [aside]
    # An operator gets the bytes back, from a copy or another disk.
    aside.path.write_bytes(before[ends[0] : ends[2]])
    assert retry(world.settings, [aside], encode).sent == {aside: 2}
    world.rounds()
    assert sorted(world.broker.decisions) == ["p0", "p1", "p2", "p3", "q"]
    assert entries(world) == []


@pytest.mark.parametrize("kind", ["damage", "gap"])
def test_a_segment_that_is_damaged_or_gone_gives_way_to_the_next_one(tmp_path: Path, kind: str) -> None:
    world = World(tmp_path, segment_bytes=100, total_bytes_max=10_000)
    ends = world.decide(*(f"p{number}" for number in range(12)))
    _, second, third, _ = sorted((tmp_path / "worker-0").glob("*.log"))
    size = second.stat().st_size
    if kind == "damage":
        second.write_bytes(bytes(size))
    else:
        second.unlink()
    world.settle()
    whole = [number for number, end in enumerate(ends) if not int(second.stem) < end <= int(third.stem)]
    assert world.broker.decisions == [f"p{number}" for number in whole]
    assert len(whole) == 9
    (aside,) = entries(world)
    assert (aside.kind, aside.begin, aside.end) == (kind, int(second.stem), int(third.stem))
    assert aside.read() == (bytes(size) if kind == "damage" else b"")
    assert why_not(world.settings, aside, encode).startswith(
        "no whole record begins at byte 0" if kind == "damage" else "the outbox lacked these 81 bytes"
    )
    world.writer.close()


@pytest.mark.parametrize("is_confirmed_at_once", [True, False])
def test_a_decision_that_is_appended_between_two_looks_is_no_damage(
    world: World, monkeypatch: pytest.MonkeyPatch, is_confirmed_at_once: bool
) -> None:
    """The reader finds no record, then the outbox is longer than what was read: twice, long after each other."""
    world.shipper = world.new_shipper(damage_confirm_s=0.0 if is_confirmed_at_once else 1e-9)
    world.decide("p0")
    world.settle()
    end, appended = OutboxReader.end, iter((["p1", "p2"], ["p3", "p4"]))

    def append_and_look(reader: OutboxReader) -> int:
        batch = next(appended, [])
        if batch:
            world.writer.append_frames(b"".join(framed(entry(payment_id, 1)) for payment_id in batch))
        return end(reader)

    # As if half a record had been there.
    monkeypatch.setattr(OutboxReader, "has_after", lambda *_: True)
    monkeypatch.setattr(OutboxReader, "end", append_and_look)
    world.settle()
    assert (world.broker.decisions, entries(world)) == (["p0", "p1", "p2", "p3", "p4"], [])


def test_the_whole_records_of_a_write_that_was_cut_short_are_decisions(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `kill -9`: nothing is set aside, and nothing waits."""
    world.decide("p0")
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:-1]))
    with pytest.raises(OutboxUnavailable):
        world.writer.append_frames(framed(entry("p1", 1)) + framed(entry("p2", 1)))
    monkeypatch.setattr(os, "write", write)
    world.settle()
    assert (world.broker.decisions, entries(world)) == (["p0", "p1"], [])
    assert world.shipper.waiting_bytes() == {"worker-0": 0}
    world.writer.close()
    world.writer = OutboxWriter(world.settings, "worker-0")
    world.decide("p3")
    world.settle()
    assert (world.broker.decisions, entries(world)) == (["p0", "p1", "p3"], [])


def test_damage_must_stay_before_it_is_set_aside_and_holds_up_one_outbox(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A reader may see a write that a full disk has cut short, just before the writer takes it back."""
    world.shipper = world.new_shipper(damage_confirm_s=3600)
    ends = world.decide("p0", "p1", "p2")
    flip(world, ends[0] + 9)
    with closing(OutboxWriter(world.settings, "worker-1")) as other:
        other.append(entry("q", 1))
    world.rounds()
    assert sorted(world.broker.decisions) == ["p0", "q"]
    assert caplog.text.count("the outbox of worker-0 waits, the others do not") == 1
    flip(world, ends[0] + 9)
    world.rounds()
    assert sorted(world.broker.decisions) == ["p0", "p1", "p2", "q"]
    assert entries(world) == []


def test_a_failed_transaction_sets_nothing_aside_twice(world: World) -> None:
    world.broker.fails["commit"] = [MUST_ABORT] * 3
    world.decide("p0")
    world.writer.append(b"no decision")
    world.decide("p1")
    world.rounds(10)
    assert world.broker.decisions == ["p0", "p1"]
    assert world.shipper.set_aside_counts() == {"worker-0": 1}


def test_a_companion_killed_after_setting_aside_counts_it_once_more_at_most(world: World) -> None:
    world.broker.fails["begin"] = [MUST_ABORT]
    world.writer.append(b"no decision")
    world.rounds(1)
    assert len(entries(world)) == 1
    world.shipper = world.new_shipper()
    world.decide("p0")
    world.rounds()
    assert world.broker.decisions == ["p0"]
    assert len(entries(world)) == 1
    assert world.shipper.set_aside_counts() == {"worker-0": 0}


@pytest.mark.parametrize("bound", ["entries", "bytes"])
def test_an_outbox_that_has_set_aside_too_much_waits_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, bound: str
) -> None:
    world = World(tmp_path, set_aside_bytes_max=25 if bound == "bytes" else 1000)
    if bound == "entries":
        monkeypatch.setattr(set_aside_entries, "ENTRIES_MAX", 2)
    for number in range(3):
        world.writer.append(b"no decision")
        world.decide(f"p{number}")
    with closing(OutboxWriter(world.settings, "worker-1")) as other:
        other.append(entry("q", 1))
    world.rounds(10)
    assert sorted(world.broker.decisions) == ["p0", "p1", "q"]
    assert caplog.text.count("and takes no more") == 1
    assert world.shipper.waiting_bytes()["worker-0"] > 0
    entries(world)[0].remove()
    world.rounds()
    assert sorted(world.broker.decisions) == ["p0", "p1", "p2", "q"]
    world.writer.close()


def test_a_disk_without_room_for_what_is_set_aside_holds_up_one_outbox(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    world.decide("p0")
    world.writer.append(b"no decision")
    world.decide("p1")
    with closing(OutboxWriter(world.settings, "worker-1")) as other:
        other.append(entry("q", 1))
    with monkeypatch.context() as patched:
        patched.setattr(SetAsideEntries, "put", full)
        world.rounds()
    assert sorted(world.broker.decisions) == ["p0", "q"]
    world.rounds()
    assert sorted(world.broker.decisions) == ["p0", "p1", "q"]


def test_a_disk_without_room_for_the_cursor_stops_nothing_and_is_made_room_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A companion that ended there would never delete a segment, and the disk would stay full."""
    world = World(tmp_path, segment_bytes=100, total_bytes_max=10_000)

    def full(*_: object) -> None:
        raise OutboxUnavailable("outbox: cannot store the cursor: No space left on device")

    world.decide(*(f"p{number}" for number in range(20)))
    with monkeypatch.context() as patched:
        patched.setattr(Cursor, "store", full)
        world.rounds()
        world.shipper.drain(5)
    assert len(world.broker.decisions) == 20
    assert len(list((tmp_path / "worker-0").glob("*.log"))) == 1
    assert caplog.text.count("cannot store the cursor") == 1
    # After a loss of power the local cursor is behind segments that are gone: they were shipped.
    position = world.broker.cursors["worker-0"].position
    world.broker.cursors["worker-0"] = ShippedTo(position, world.broker.cursors["worker-0"].time_ms, "the boot before")
    Cursor(world.settings, "worker-0").store(0)
    world.shipper = world.new_shipper()
    world.decide("p20", decided_time_ms=2**40 * 2)
    world.rounds()
    assert world.broker.decisions[20:] == ["p20"]
    assert entries(world) == []
    world.writer.close()


def test_an_outbox_that_cannot_be_read_holds_up_no_other(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.decide("p0")
    broken = Path(world.settings.directory) / "worker-1"
    broken.mkdir()
    # A segment that is a folder: every read gets EISDIR.
    (broken / f"{0:020d}.log").mkdir()
    world.rounds()
    assert world.broker.decisions == ["p0"]
    assert caplog.text.count("the outbox of worker-1 waits, the others do not") == 1


def test_folders_that_are_no_workers_are_left_alone_and_named_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world.decide("p0")
    root = Path(world.settings.directory)
    (root / "lost+found").mkdir()
    copy = root / "worker-0.bak"
    copy.mkdir()
    for path in (root / "worker-0").glob("*.log"):
        (copy / path.name).write_bytes(path.read_bytes())
    world.rounds()
    assert world.broker.decisions == ["p0"]
    assert [caplog.text.count(f"'{name}' beside the outboxes") for name in ("lost+found", "worker-0.bak")] == [1, 1]
    assert (copy / f"{0:020d}.log").exists()


def test_after_a_reboot_an_unreadable_record_hides_no_new_decision(world: World) -> None:
    world.decide("p0", decided_time_ms=1)
    world.writer.append(b"no decision")
    world.decide("p1", decided_time_ms=2)
    world.rounds()
    cursor = world.broker.cursors["worker-0"]
    world.broker.cursors["worker-0"] = ShippedTo(cursor.position, cursor.time_ms, "the boot before")
    Cursor(world.settings, "worker-0").store(0)
    # Among the new decisions is one that nobody can read.
    begin = world.writer.position
    world.writer.append(b"none either")
    world.decide("p2", decided_time_ms=cursor.time_ms + 1)
    world.shipper = world.new_shipper()
    world.rounds()
    assert world.broker.decisions == ["p0", "p1", "p2"]
    assert [aside.begin for aside in entries(world)][1:] == [begin]


# The command that ships it


@pytest.mark.parametrize(
    "payload",
    [
        b"no decision",
        MANY_LEVELS,
        OVERLONG,
        poisoned(b"\x0a\x05p"),
        poisoned(b"\x0c"),
        poisoned(b"\x80" * 20),
        poisoned(b"\x0a\x01\xff"),
        poisoned(b"\x0f\x01"),
        poisoned(varint(1 << 60 | 2)),
        OutboxRecord(request=REQUEST.SerializeToString()).SerializeToString(),
        b"\x0a",
    ],
)
def test_what_holds_no_decision_is_never_shipped_by_a_retry(payload: bytes) -> None:
    with pytest.raises(Unreadable):
        readable(payload)


def test_a_retry_that_was_killed_before_it_deleted_the_entry_ships_nothing_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shipping_bug():
        world.decide("p")
        world.settle()
    with monkeypatch.context() as patched:
        patched.setattr(SetAsideEntry, "remove", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            retry(world.settings, entries(world), encode)
    world.rounds()
    assert world.broker.decisions == ["p"]
    assert len(entries(world)) == 1
    retry(world.settings, entries(world), encode)
    world.rounds()
    assert world.broker.decisions == ["p"]
    assert entries(world) == []


def test_a_retry_waits_until_the_companion_has_passed_the_entry(world: World) -> None:
    with shipping_bug():
        world.decide("p")
        world.broker.fails["commit"] = [MUST_ABORT]
        world.rounds(1)
        (aside,) = entries(world)
        assert "has not passed it yet" in retry(world.settings, [aside], encode).refused[aside]
        world.settle()
    assert retry(world.settings, [aside], encode).sent == {aside: 1}


def test_two_retries_at_a_time_are_refused(world: World) -> None:
    with closing(OutboxWriter(world.settings, RETRIED)), pytest.raises(Misconfigured, match="has another writer"):
        retry(world.settings, [], encode)


@given(data=st.data())
def test_whatever_is_damaged_and_fails_each_readable_decision_is_shipped_once(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    world = World(tmp_path_factory.mktemp("world"), segment_bytes=data.draw(st.sampled_from([150, 1 << 20])))
    others = {name: OutboxWriter(world.settings, name) for name in ("worker-1", "worker-2")}
    whole: list[str] = []
    for number in range(data.draw(st.integers(1, 25))):
        writer = data.draw(st.sampled_from([world.writer, *others.values()]))
        worker = writer._directory.name
        kind = data.draw(st.sampled_from(["decision", "decision", "decision", "poison", "damaged", "round", "restart"]))
        if kind == "poison":
            writer.append(data.draw(st.sampled_from([MANY_LEVELS, OVERLONG, b"no decision"])))
        elif kind == "round":
            call = data.draw(st.sampled_from(["begin", "commit", "produce"]))
            world.broker.fails[call] = [MUST_ABORT] * data.draw(st.integers(0, 2))
            world.rounds(2)
        elif kind == "restart":
            world.shipper = world.new_shipper()
        else:
            begin = writer.position
            end = writer.append(entry(f"p{number}", 1))
            if kind == "damaged":
                flip(world, data.draw(st.integers(begin, end - 1)), worker)
            else:
                whole.append(f"p{number}")
    for writer in (world.writer, *others.values()):
        # Behind everything, so that no damage lies at an end.
        name = f"last-{writer._directory.name}"
        writer.append(entry(name, 1))
        whole.append(name)
    world.rounds(12)
    assert sorted(world.broker.decisions) == sorted(whole)
    world.writer.close()
    for writer in others.values():
        writer.close()
