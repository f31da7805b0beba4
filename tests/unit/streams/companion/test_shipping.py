"""Shipping with a producer that fails on request. tests/integration ships to a real broker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, KafkaException

from paywarden.schemas.durability import boot_id
from paywarden.schemas.errors import BrokerUnavailable, Misconfigured
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.state.outbox import Cursor, OutboxSettings, OutboxWriter
from paywarden.streams.companion.cursors import HostIdentity, ShippedTo
from paywarden.streams.companion.shipment import ShippingOptions
from paywarden.streams.companion.shipping import decision_of
from tests.worlds.stream.shipped import World, entry

TIMED_OUT = KafkaException(KafkaError(KafkaError._TIMED_OUT, "not yet", retriable=True))
MUST_ABORT = KafkaException(KafkaError(KafkaError._TIMED_OUT, "records timed out", txn_requires_abort=True))
FENCED = KafkaException(KafkaError(KafkaError._FENCED, "fenced", fatal=True))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    built = World(tmp_path)
    yield built
    built.writer.close()


def test_uncommitted_decisions_count_as_waiting(world: World) -> None:
    ends = world.decide("p0", "p1", "p2")
    assert world.shipper.waiting_bytes() == {}
    world.broker.fails["commit"] = [TIMED_OUT] * 2
    world.rounds(2)
    shipper = world.shipper
    assert (shipper.waiting_bytes(), shipper.under_way, shipper.shipped) == ({"worker-0": ends[2]}, 3, 0)
    world.rounds(1)
    assert (shipper.waiting_bytes(), shipper.under_way, shipper.shipped) == ({"worker-0": 0}, 0, 3)
    assert world.broker.decisions == ["p0", "p1", "p2"]
    assert world.broker.cursors["worker-0"].position == ends[2]


@pytest.mark.parametrize("call", ["init", "begin", "produce", "commit", "abort"])
@pytest.mark.parametrize("failure", [TIMED_OUT, MUST_ABORT, FENCED])
def test_each_decision_is_shipped_once_whatever_call_fails(world: World, call: str, failure: KafkaException) -> None:
    world.broker.fails[call] = [failure, failure]
    if call == "abort":
        world.broker.fails["commit"] = [MUST_ABORT]
    world.decide("p0", "p1")
    world.rounds(8)
    world.decide("p2")
    world.rounds()
    assert world.broker.decisions == ["p0", "p1", "p2"]
    assert world.shipper.under_way == 0


def test_a_full_outbox_does_not_block_the_others(world: World) -> None:
    world.shipper = world.new_shipper(transaction_max=2)
    other = OutboxWriter(world.settings, "worker-1")
    world.decide(*(f"p{number}" for number in range(20)))
    other.append(entry("q", 1))
    world.rounds(4)
    assert "q" in world.broker.decisions
    assert len(world.broker.decisions) < 10
    other.close()


def test_decisions_gather_until_their_time_comes_or_a_transaction_is_full(world: World) -> None:
    world.shipper = world.new_shipper(transaction_max=3, transaction_every_s=3_600)
    world.decide("p0")
    world.rounds(1)
    world.decide("p1", "p2")
    assert [world.shipper.advance() for _ in range(5)] == [0] * 5
    assert world.broker.decisions == ["p0"]
    world.decide(*(f"q{number}" for number in range(8)))
    world.rounds(1)
    # The first full one does not hold up those behind it.
    while world.shipper.advance():
        pass
    assert len(world.broker.decisions) == 11


def test_a_round_gives_the_client_time_to_answer(world: World) -> None:
    """A call that gives up is made again. If librdkafka's own thread gets no CPU meanwhile, it aborts the process."""
    world.decide("p0")
    world.broker.fails["produce"] = [MUST_ABORT]
    world.rounds(3)
    assert world.broker.decisions == ["p0"]
    assert len(world.broker.waits_s) == len(["init", "abort", "commit"])
    assert min(world.broker.waits_s) >= 1


def test_after_few_decisions_the_next_ones_wait_twice_as_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    passed_s, clock = 0.0, time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + passed_s)
    world.shipper = world.new_shipper(transaction_every_s=3_600)
    few = ShippingOptions().few

    def ship(count: int, first: str) -> int:
        world.decide(*(f"{first}{number}" for number in range(count)))
        sent = 0
        for _ in range(5):
            sent += world.shipper.advance()
        return sent

    # After a rest the first one goes at once.
    assert ship(1, "a") == 1
    passed_s += 3_700
    assert ship(few - 1, "b") == 0
    passed_s += 3_700
    assert ship(1, "c") == few
    passed_s += 3_700
    assert ship(1, "d") == 1


def test_a_shipper_says_when_the_next_transaction_is_due(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    passed_s, clock = 0.0, time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + passed_s)
    world.shipper = world.new_shipper(transaction_every_s=3_600)
    # The first transaction says where a new outbox begins.
    world.rounds(1)
    passed_s += 7_300
    # New decisions may come at any time, and nothing is due.
    assert world.shipper.due_in_s() == 0.0
    world.decide("p0")
    world.broker.fails["commit"] = [TIMED_OUT]
    world.shipper.advance()
    # A commit that the broker has not taken yet is tried again soon.
    assert world.shipper.due_in_s() == 0.0
    world.shipper.advance()
    assert 7_100 < world.shipper.due_in_s() <= 7_200
    passed_s += 7_300
    assert world.shipper.due_in_s() == 0.0


def test_a_producer_lost_after_its_commit_sends_nothing_twice(world: World) -> None:
    world.broker.fails["committed"] = [FENCED]
    world.decide("p0")
    world.rounds(8)
    assert world.broker.decisions == ["p0"]
    assert world.broker.producers == 2


def test_too_many_lost_producers_in_a_row_end_shipping(world: World) -> None:
    world.broker.fails["commit"] = [FENCED] * 11
    world.decide("p0")
    with pytest.raises(BrokerUnavailable, match="copy of this host's outbox"):
        world.rounds(100)


def test_a_companion_killed_right_after_a_commit_sends_nothing_twice(world: World) -> None:
    world.decide("p0", "p1")
    world.rounds()
    (Path(world.settings.directory) / "worker-0" / "cursor").unlink()
    world.shipper = world.new_shipper()
    world.decide("p2")
    world.rounds()
    assert world.broker.decisions == ["p0", "p1", "p2"]


def test_a_damaged_digit_of_the_cursor_skips_no_decision(world: World) -> None:
    world.decide("p0", "p1")
    world.rounds()
    world.shipper.drain(1.0)
    path = Path(world.settings.directory) / "worker-0" / "cursor"
    content = path.read_bytes()
    world.decide("p2", "p3")
    # The first digit is a 9 now: the position is behind everything.
    path.write_bytes(b"9" + content[1:])
    world.shipper = world.new_shipper()
    world.rounds()
    assert world.broker.decisions == ["p0", "p1", "p2", "p3"]


def test_an_outbox_that_lost_its_end_ships_only_new_decisions(world: World) -> None:
    # Like after a power loss: the log ends before the shipped position, and other records take the positions.
    ends = world.decide("p0", "p1", "p2", decided_time_ms=1)
    world.rounds()
    cursor = world.broker.cursors["worker-0"]
    Cursor(world.settings, "worker-0").store(ends[0])
    world.writer.close()
    segment = Path(world.settings.directory) / "worker-0" / f"{0:020d}.log"
    segment.write_bytes(segment.read_bytes()[: ends[1]])
    world.writer = OutboxWriter(world.settings, "worker-0")
    world.broker.cursors["worker-0"] = ShippedTo(cursor.position, cursor.time_ms, "the boot before")
    world.decide("q0", "q1", "q2", "q3", decided_time_ms=cursor.time_ms + 1)
    assert world.writer.position > cursor.position
    world.shipper = world.new_shipper()
    world.rounds()
    assert world.broker.decisions == ["p0", "p1", "p2", "q0", "q1", "q2", "q3"]
    assert world.broker.cursors["worker-0"].position == world.writer.position


def test_an_outbox_that_lost_its_new_records_follows_its_writer(world: World) -> None:
    ends = world.decide("p0", "p1")
    world.rounds()
    Cursor(world.settings, "worker-0").store(ends[0])
    world.writer.close()
    segment = Path(world.settings.directory) / "worker-0" / f"{0:020d}.log"
    segment.write_bytes(segment.read_bytes()[: ends[0]])
    world.shipper = world.new_shipper()
    world.rounds()
    world.writer = OutboxWriter(world.settings, "worker-0")
    world.decide("q0", decided_time_ms=1)
    world.rounds()
    assert world.broker.decisions == ["p0", "p1", "q0"]


def test_shipped_decisions_stay_in_the_outbox_for_the_set_time(tmp_path: Path) -> None:
    settings = OutboxSettings(directory=str(tmp_path), segment_bytes=100, total_bytes_max=1600)
    world = World(tmp_path)
    world.writer.close()
    world.settings, world.writer = settings, OutboxWriter(settings, "worker-0")
    world.decide(*(f"p{number}" for number in range(50)))
    for keep_s, are_there in ((3600, True), (0, False)):
        world.shipper = world.new_shipper(keep_s=keep_s)
        world.rounds()
        world.shipper.drain(10)
        assert world.shipper.waiting_bytes() == {"worker-0": 0}
        assert (Path(settings.directory) / "worker-0" / f"{0:020d}.log").exists() is are_there
        # Only decisions that are not shipped count towards the limit.
        world.decide(*(f"{keep_s}-{number}" for number in range(40)))
    assert len(world.broker.decisions) == len(set(world.broker.decisions)) == 90
    world.writer.close()


def test_only_one_process_ships_and_the_host_keeps_its_id(tmp_path: Path) -> None:
    identity = HostIdentity(tmp_path)
    with pytest.raises(Misconfigured, match="another companion"):
        HostIdentity(tmp_path)
    identity.close()
    again = HostIdentity(tmp_path)
    assert again.host == identity.host
    again.close()


@pytest.mark.parametrize("content", [b"", b"\xe5b", b"4 2"])
def test_a_damaged_id_of_the_host_is_refused_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "host").write_bytes(content)
    with pytest.raises(Misconfigured, match="holds no host id: delete it"):
        HostIdentity(tmp_path)


@pytest.mark.parametrize("value", [b"", b"7", b"-1 2 x", b"a b c", b"1 2 3 4"])
def test_a_record_that_is_no_cursor_is_refused(value: bytes) -> None:
    assert ShippedTo.from_bytes(ShippedTo(7, 8, boot_id()).to_bytes()) == ShippedTo(7, 8, boot_id())
    with pytest.raises(Misconfigured, match="no cursor"):
        ShippedTo.from_bytes(value)


def test_a_decision_without_a_score_ships_a_score_of_0_and_its_flags() -> None:
    flags = ["model_error", "model_absent"]
    response = ScoreResponse(payment_id="p", decision_id="d", action="decline", reasons=["model_absent"], flags=flags)
    decision = decision_of(OutboxEntry(request=ScoreRequest(payment_id="p"), response=response))
    assert (decision["score"], decision["model_version"], decision["flags"]) == (0.0, "", flags)
