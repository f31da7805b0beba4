"""Folds: what a worker keeps of hot entities, how much work a payment is at most, and the oracle's bits all along."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.features.profiles.engine import UnreadableProfile
from paywarden.scoring.state import overlay_table as tables
from paywarden.scoring.state.overlay_walk import VISITS_MAX
from tests.worlds.stream.overlay_world import OverlayWorld

HOT = [b"", b"merchant:hot", b""]
MERCHANT = 1


class HotMerchant(OverlayWorld):
    """A world whose marks are trusted, and whose payments are all of one merchant."""

    def __init__(self, folder: Path, **chosen: Any) -> None:
        super().__init__(folder, seed=1, **{"payments_max": 4096, "marks_max": 20_000, **chosen})
        self.now_ms += self.settings.doubt_ms + 1

    def make(self) -> int:
        number = super().make()
        self.payments[number].keys = HOT
        return number

    def answer_many(self, count: int, worker: int = 0) -> range:
        """Answer payments, a millisecond apart."""
        first = len(self.payments)
        for _ in range(count):
            self.answer(self.make(), worker)
            self.now_ms += 1
        return range(first, len(self.payments))

    def bring(self, numbers: Sequence[int], partition: int = 0) -> None:
        """Put payments on Kafka, and bring a profile with them to the mirror."""
        topic = self.topics[partition]
        for number in numbers:
            made = self.payments[number]
            made.source, made.offset = 2 * partition, len(topic.records)
            topic.records.append(number)
        self.read(MERCHANT, topic, len(topic.records))
        self.apply(len(self.changelog))

    def work(self, worker: int = 0, number: int | None = None) -> tuple[int, int, int]:
        """Score a new payment. Returns the rows of the table that were looked at, what folds got, and what counted."""
        before = self.workers[worker].metrics.folded.value
        self.check(self.make() if number is None else number, worker)
        numbers = self.workers[worker]._numbers
        counted = self.workers[worker].metrics.folded.value - before
        return int(numbers[tables.VISITED]), int(numbers[tables.REFOLDED]), counted


def test_a_new_profile_lets_a_worker_read_no_row_of_a_hot_merchant_again(tmp_path: Path) -> None:
    """It looked at every pending row, for each new profile. Each row of the table is looked at once, and 16 again."""
    world, looked_at = HotMerchant(tmp_path, events_max=4096), 0
    pending: list[int] = []
    for burst in range(12):
        pending += world.answer_many(40)
        visited, refolded, counted = world.work()
        looked_at += visited
        assert counted == len(pending)
        if burst:
            assert (visited, refolded) == (40, 40)
        # A profile with a part of what is pending: the others are added once.
        contained, pending = pending[:30], pending[30:]
        world.bring(contained)
        assert world.work() == (0, len(pending), len(pending))
        # As long as no other profile comes, nothing is added again.
        assert world.work() == (0, 0, len(pending))
    assert looked_at == 12 * 40 + 16
    assert world.wrong == 0


def test_payments_that_are_over_leave_a_fold_without_another_look_at_the_table(tmp_path: Path) -> None:
    world = HotMerchant(tmp_path, events_max=4096, lifetime_ms=1000)
    for _ in range(10):
        world.answer_many(30)
        world.now_ms += 70
        world.work()
    world.now_ms += 200
    visited, refolded, counted = world.work()
    assert visited == 0
    assert 0 < refolded == counted < 300
    world.now_ms += 1000
    assert world.work()[1:] == (0, 0)
    assert world.wrong == 0


@given(st.integers(0, 2**32), st.sampled_from([(2, 8), (16, 40), (0, 3)]))
@settings(max_examples=12, deadline=None)
def test_with_more_than_events_max_the_newest_count_while_profiles_come(
    tmp_path_factory: pytest.TempPathFactory, seed: int, limits: tuple[int, int]
) -> None:
    """At least half of events_max, or all that are pending; exactly the newest ones, to the bit."""
    singly, most = limits
    world = HotMerchant(tmp_path_factory.mktemp("world"), singly_max=singly, events_max=most)
    world.random.seed(seed)
    waiting: list[int] = []
    for _ in range(25):
        waiting += world.answer_many(world.random.choice((1, 3, most)), world.random.randrange(2))
        if world.random.random() < 0.5:
            # One partition may lag far behind the other: then the newest payments are the first in a profile.
            is_newest = world.random.random() < 0.5
            for _ in range(min(len(waiting), world.random.choice((1, most, 2 * most)))):
                world.bring([waiting.pop(-1 if is_newest else 0)], int(is_newest))
        if world.random.random() < 0.1:
            world.now_ms += 300
        assert_newest_count(world, world.random.randrange(2), most)


def assert_newest_count(world: HotMerchant, worker: int, most: int) -> None:
    wrong, chosen, number = world.wrong, world.settings, world.make()
    world.settings = replace(chosen, events_max=10_000)
    contains = world.mirror.get(HOT[MERCHANT], (b"", frozenset[int]()))[1]
    pending = len(world._pending(number, HOT[MERCHANT], contains))
    _, _, counted = world.work(worker, number)
    assert min((most + 1) // 2, pending) <= counted <= min(most, pending)
    world.wrong = wrong
    if counted:
        world.settings = replace(chosen, events_max=counted)
        world.work(worker, number)
        assert world.wrong == wrong
    world.settings = chosen


def test_a_payment_that_is_scored_again_leaves_the_fold_of_others_alone(tmp_path: Path) -> None:
    world = HotMerchant(tmp_path, events_max=200)
    answered = world.answer_many(50)
    world.work()
    _, _, counted = world.work(number=answered[20])
    assert counted == 49
    assert world.work() == (0, 0, 50)
    assert world.wrong == 0


@pytest.mark.parametrize("most", [20, 300])
def test_a_payment_with_two_rows_counts_until_the_second_is_over(tmp_path: Path, most: int) -> None:
    world = HotMerchant(tmp_path, singly_max=2, events_max=most, lifetime_ms=1600)
    twice, *_ = world.answer_many(6)
    world.now_ms += 800
    world.answer(twice, worker=1)
    world.answer_many(3)
    assert world.work()[2] == 9
    # The first row is over: the payment counts by its second.
    world.now_ms += 800
    assert world.work()[2] == 4
    world.now_ms += 800
    assert world.work()[2] == 0
    assert world.wrong == 0


def test_what_a_fold_finds_contained_is_cut_off_for_workers_without_one(tmp_path: Path) -> None:
    world = HotMerchant(tmp_path, events_max=2000)
    answered = world.answer_many(600)
    world.work(worker=0)
    world.bring(answered)
    assert world.work(worker=0) == (0, 0, 0)
    visited, _, counted = world.work(worker=1)
    assert (counted, visited <= VISITS_MAX) == (0, True)
    assert world.wrong == 0


def test_a_fold_of_a_profile_that_cannot_be_read_is_given_up(tmp_path: Path) -> None:
    """A damaged profile in the mirror is an error of its payment, and no fold stands in for it, then or later."""
    world = HotMerchant(tmp_path, events_max=200)
    answered = world.answer_many(30)
    assert world.work()[2] == 30
    world.answer_many(3)
    before, transaction = dict(world.mirror), world.transaction
    world.bring(answered[:10])
    good = world.mirror[HOT[MERCHANT]]
    world.mirror[HOT[MERCHANT]] = bytes([*good[0][:-1], good[0][-1] ^ 1]), good[1]
    with pytest.raises(UnreadableProfile):
        world.work()
    world.mirror[HOT[MERCHANT]] = good
    assert world.work()[2] == 23
    # Once more, and the next look-up is of an earlier transaction.
    world.mirror[HOT[MERCHANT]] = b"\x06 damaged", good[1]
    world.answer_many(2)
    with pytest.raises(UnreadableProfile):
        world.work()
    (world.mirror, world.transaction), latest = (before, transaction), world.transaction
    assert world.work()[2] == 35
    world.mirror[HOT[MERCHANT]], world.transaction = good, latest
    assert world.work()[2] == 25
    assert world.wrong == 0


# A table that somebody has damaged


def seen(world: HotMerchant, worker: int) -> tuple[bytes, int]:
    """Returns the vector of a payment of the merchant through a worker, and how many pending payments it has."""
    number, overlay = 0, world.workers[worker]
    world._look_up(world.payments[number], world._readers[worker])
    before = overlay.metrics.folded.value
    if worker == 1:
        assert world.chunk_worker.fill(HOT, b"asks", world.transaction)
    else:
        assert overlay.fill(HOT, [b"asks"], world.transaction)
    return world._readers[worker].out.tobytes(), overlay.metrics.folded.value - before


def vandalise(world: HotMerchant) -> None:
    """Write a hostile number somewhere into the table: anywhere, into a row, a link, a moment, or the newest number."""
    table, shape, random = world.workers[0]._table, world.workers[0]._shape, world.random
    assert table is not None
    entities, width = int(shape[tables.SHAPE_ENTITIES]), int(shape[tables.SHAPE_WIDTH])
    size = int(tables.row_size(entities, width))
    first = tables.HEAD_SIZE + int(shape[tables.SHAPE_BUCKETS]) * tables.BUCKET_SIZE
    at = first + random.randrange(40) * size
    value = random.choice((*HOSTILE, random.randrange(-(1 << 63), 1 << 63)))
    kind = random.randrange(6)
    if kind == 0:
        table[random.randrange(tables.HEAD_SIZE, len(table))] = value
    elif kind == 1:
        table[at + random.randrange(size)] = value
    elif kind == 2:
        # Rows in a circle.
        table[at + tables.ROW_HEAD + entities + MERCHANT] = random.randrange(1, 40)
    elif kind == 3:
        table[tables.NEXT_AT] = random.choice((value, random.randrange(200)))
    else:
        # With a right check, as only somebody with a bad purpose makes it.
        if kind == 4:
            table[at + tables.ROW_HEAD + 3 * entities + random.randrange(width)] = value
        else:
            table[at + tables.MOMENT] = world.now_ms + random.randrange(-20_000, 20_000)
        table[at + tables.CHECK] = check_in_python(table, at, entities, width)


HOSTILE = (-1, 0, 1, 2, (1 << 63) - 1, -(1 << 63), 1 << 62, -(1 << 62), 1 << 49, 1 << 40)


def check_in_python(table: Any, at: int, entities: int, width: int) -> np.int64:
    """Returns a row's check, as overlay_table.check_of makes it."""
    with np.errstate(over="ignore"):
        check = table[at + tables.MOMENT] ^ (table[at + tables.TAG] * np.int64(31))
        for place in range(entities):
            check = (check ^ table[at + tables.ROW_HEAD + place]) * np.int64(0x1F3D5B79)
        for place in range(width):
            check = (check ^ table[at + tables.ROW_HEAD + 3 * entities + place]) * np.int64(0x1F3D5B79)
            check ^= check >> np.int64(29)
    return np.int64(check)


@given(st.integers(0, 2**32), st.sampled_from([(1, 40), (16, 300)]))
@settings(max_examples=20, deadline=None)
def test_a_table_of_hostile_numbers_ends_no_worker_and_heals_in_a_few_lifetimes(
    tmp_path_factory: pytest.TempPathFactory, seed: int, limits: tuple[int, int]
) -> None:
    singly, most = limits
    world = HotMerchant(tmp_path_factory.mktemp("world"), singly_max=singly, events_max=most, payments_max=128)
    world.random.seed(seed)
    world.answer_many(30)
    for _ in range(world.random.choice((1, 3, 20, 100))):
        vandalise(world)
        if world.random.random() < 0.3:
            worker = world.random.randrange(2)
            seen(world, worker)
            # However rows are linked, a payment looks at a bounded number of them, in each of 16 slots.
            visited = world.workers[worker]._numbers[tables.VISITED]
            assert visited <= 2 * tables.BUCKET_SLOTS * (2 * most + 2 * VISITS_MAX)
    for _ in range(10):
        for overlay, reader in zip(world.workers, world._readers, strict=True):
            world.now_ms += world.settings.lifetime_ms // 2 + 1
            world._look(overlay, reader)
        before = [seen(world, worker) for worker in range(2)]
        added = world.workers[0].metrics.added.value
        row = np.array([world.payments[0].row], dtype=np.int64)
        for number in range(3):
            world.workers[0].add([*HOT], [b"new %d" % number], row, int(row[0, 0]))
        counts = [seen(world, worker)[1] - before[worker][1] for worker in range(2)]
        if [before[0][1], before[1][1], world.workers[0].metrics.added.value - added, *counts] == [0, 0, 3, 3, 3]:
            break
    else:
        pytest.fail("it has not healed within ten lifetimes")
    assert before[0] == before[1]
    assert seen(world, 0) == seen(world, 1)


# A worker that is killed


def add_for_ever(world: HotMerchant, begun: mmap.mmap, ended: mmap.mmap, first: int) -> None:
    """Add payments, some hundreds a call, and count the calls that begin and end. A child process does it."""
    overlay, made = world.workers[0], world.payments[0]
    assert overlay._table is not None
    rows = np.array([made.row] * ROWS, dtype=np.int64)
    hashes = np.array([0, world.tags.hash_of_key(HOT[MERCHANT]), 0] * ROWS, dtype=np.int64)
    for call in range(CALLS):
        tags = np.arange(first + call * ROWS, first + (call + 1) * ROWS, dtype=np.int64)
        begun[0] = call + 1
        tables.add_all(
            overlay._table, overlay._shape, rows, hashes, tags, overlay._numbers,
            world.now_ms, 0, 1 << 60, tables.OWN,
        )  # fmt: skip
        ended[0] = call + 1
    signal.pause()


# A call takes half a millisecond. A few of the twelve are killed in the middle.
ROWS, CALLS = 900, 3


def test_folds_are_right_when_another_worker_is_killed_while_it_adds(tmp_path: Path) -> None:
    """All rows of calls that ended count, and any of the last call: as for a worker that begins anew."""
    world = HotMerchant(tmp_path, events_max=4000, lifetime_ms=10_000)
    world.random.seed(3)
    for kill in range(12):
        # What was before is over.
        world.now_ms += 2 * world.settings.lifetime_ms + 1
        world.answer_many(40)
        assert seen(world, worker=1)[1] == 40
        begun, ended = mmap.mmap(-1, 1), mmap.mmap(-1, 1)
        child = os.fork()
        if child == 0:
            try:
                add_for_ever(world, begun, ended, first=1000 + kill * ROWS * CALLS)
            finally:
                os._exit(1)
        wanted = world.random.randrange(1, CALLS + 1)
        # The fold is used while the other worker adds. If it is not, the kill comes sooner.
        while begun[0] < wanted:
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            if kill % 2:
                assert 40 <= seen(world, worker=1)[1] <= 40 + ROWS * CALLS
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        vector, counted = seen(world, worker=1)
        assert ROWS * ended[0] <= counted - 40 <= ROWS * begun[0]
        world.restart(0)
        assert seen(world, worker=0) == (vector, counted)
        # Both go on: the next payment counts once for each.
        world.answer(world.make(), worker=kill % 2)
        assert seen(world, worker=0) == seen(world, worker=1)
        assert seen(world, worker=1)[1] == counted + 1
        begun.close()
        ended.close()
