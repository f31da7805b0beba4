"""How a challenger follows an outbox: live payments alone, forward when it is slow, past what is gone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from paywarden.scoring.state.outbox import Cursor, OutboxReader, OutboxSettings, OutboxWriter
from paywarden.streams.companion.shipment import Shipment, ShippingOptions
from paywarden.streams.shadow.outbox_tail import OutboxTail, cursor_name

RECORD_BYTES = 100


@dataclass
class World:
    folder: Path
    time: float = 0.0
    writers: dict[str, OutboxWriter] = field(default_factory=dict)

    @property
    def settings(self) -> OutboxSettings:
        return OutboxSettings(directory=str(self.folder), segment_bytes=5000, total_bytes_max=1_000_000)

    def append(self, *numbers: int) -> None:
        if "worker-0" not in self.writers:
            self.writers["worker-0"] = OutboxWriter(self.settings, "worker-0")
        for number in numbers:
            self.writers["worker-0"].append(str(number).encode().ljust(RECORD_BYTES))

    def tail(self, **changes: Any) -> OutboxTail:
        options = {"waiting_bytes_max": 1_000_000, "is_new": False} | changes
        return OutboxTail(self.settings, "worker-0", "b-42", clock=lambda: self.time, **options)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for writer in made.writers.values():
        writer.close()


def numbers(tail: OutboxTail, count: int = 10_000) -> list[int]:
    return [int(payload) for payload in tail.read(count).payloads]


def test_a_new_challenger_sees_no_past_payment_and_every_later_one(world: World) -> None:
    world.append(*range(120))
    tail = world.tail()
    assert (numbers(tail), tail.waiting_bytes()) == ([], 0)
    world.append(*range(120, 300))
    assert tail.waiting_bytes() == 180 * (RECORD_BYTES + 8)
    assert numbers(tail, 70) + numbers(tail) == list(range(120, 300))
    assert (tail.passed.shed, tail.passed.gone_bytes) == (0, 0)


def test_a_worker_that_begins_later_is_followed_from_its_first_decision(world: World) -> None:
    world.append(*range(30))
    assert numbers(world.tail(is_new=True)) == list(range(30))


def test_it_goes_on_at_its_cursor_and_repeats_what_came_after(world: World) -> None:
    world.append(0)
    tail = world.tail()
    world.append(1, 2)
    assert numbers(tail) == [1, 2]
    tail.keep()
    world.time = 5.0
    tail.keep()
    world.append(3)
    assert numbers(tail) == [3]
    assert numbers(world.tail()) == [3]
    tail.keep(at_once=True)
    assert numbers(world.tail()) == []
    assert Cursor(world.settings, "worker-0").load() is None, "the companion's cursor is another one"


def test_it_sheds_the_older_half_when_too_many_wait_and_counts_them(world: World) -> None:
    tail = world.tail(is_new=True, waiting_bytes_max=40 * (RECORD_BYTES + 8))
    world.append(*range(40))
    assert len(tail.read(10)) == 10
    assert tail.passed.shed == 0
    world.append(*range(40, 100))
    rest = numbers(tail)
    assert rest == list(range(80, 100))
    assert tail.passed.shed == 70


def test_it_passes_segments_that_were_deleted_before_it_read_them(world: World) -> None:
    world.append(*range(200))
    tail = world.tail(is_new=True)
    assert len(tail.read(10)) == 10
    OutboxReader(world.settings, "worker-0").release(OutboxReader(world.settings, "worker-0").end())
    begin = OutboxReader(world.settings, "worker-0").oldest()
    assert not tail.read(1000)
    assert tail.passed.gone_bytes == begin - 10 * (RECORD_BYTES + 8)
    assert numbers(tail)[-1] == 199


def test_it_passes_damage_once_it_has_lasted(world: World) -> None:
    world.append(*range(20))
    tail = world.tail(is_new=True)
    (segment,) = (world.folder / "worker-0").glob("*.log")
    data = bytearray(segment.read_bytes())
    data[5 * (RECORD_BYTES + 8) + 20] ^= 1
    segment.write_bytes(data)
    assert numbers(tail) == [0, 1, 2, 3, 4]
    assert not tail.read(100)
    world.time = 2.0
    assert not tail.read(100)
    assert numbers(tail) == list(range(6, 20))
    assert tail.passed.gone_bytes == RECORD_BYTES + 8


def test_an_outbox_that_is_made_anew_is_followed_from_its_beginning(world: World) -> None:
    world.append(*range(50))
    tail = world.tail(is_new=True)
    assert len(tail.read(50)) == 50
    tail.keep(at_once=True)
    world.writers.pop("worker-0").close()
    shutil.rmtree(world.folder / "worker-0")
    world.append(7, 8)
    assert numbers(tail) == [7, 8]


def test_a_challenger_that_sleeps_holds_nothing_back(world: World) -> None:
    """The companion also ships and deletes records that a challenger has not read, and ignores its cursor."""
    world.append(*range(200))
    tail = world.tail(is_new=True)
    tail.keep(at_once=True)
    assert (world.folder / "worker-0" / cursor_name("b-42")).exists()
    shipment = Shipment(
        world.settings, "worker-0", None, options=ShippingOptions(), encode=lambda entry: entry.SerializeToString()
    )
    reader = OutboxReader(world.settings, "worker-0")
    assert shipment.waiting_bytes() == reader.end()
    reader.release(reader.end())
    assert reader.oldest() > 0
