"""The overlay against its oracle, and what it does with tables that are full, torn, foreign or half written."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.features.kernel.pending import pending_from_ms
from paywarden.features.kernel.update import mix
from paywarden.scoring.state.overlay import overlay_files
from paywarden.scoring.state.overlay import overlay_table as tables
from paywarden.scoring.state.overlay.overlay_files import MARKS_FILE, prepare
from tests.worlds.stream.overlay_world import NewHost, OverlayWorld

# Few payments of an entity count, or all that a world has.
MANY = {"events_max": 200}


@contextmanager
def made_world(seed: int = 1, **chosen: Any) -> Iterator[OverlayWorld]:
    with TemporaryDirectory() as folder:
        yield OverlayWorld(Path(folder), seed=seed, **chosen)


@pytest.fixture
def world(tmp_path: Path) -> OverlayWorld:
    """A world whose marks are trusted: the first doubt is over."""
    return trusted(tmp_path)


def trusted(folder: Path, **chosen: Any) -> OverlayWorld:
    made = OverlayWorld(folder, seed=1, **chosen)
    made.now_ms += made.settings.doubt_ms + 1
    return made


def counted(world: OverlayWorld, name: str) -> int:
    return sum(getattr(worker.metrics, name).value for worker in world.workers)


@given(st.integers(0, 2**32), st.sampled_from([{}, MANY]))
@settings(max_examples=16, deadline=None)
def test_profile_with_pending_payments_has_the_oracles_bits(seed: int, chosen: dict[str, int]) -> None:
    with made_world(seed, **chosen) as world:
        world.run(250)
    assert world.wrong == 0


@given(st.integers(0, 2**32), st.sampled_from([{}, MANY]))
@settings(max_examples=12, deadline=None)
def test_a_new_host_has_the_oracles_bits_from_its_first_payment(seed: int, chosen: dict[str, int]) -> None:
    with TemporaryDirectory() as folder:
        world = NewHost(Path(folder), seed=seed, **chosen)
        world.run(120)
    assert world.wrong == 0


def test_a_quiet_store_on_a_new_host_is_trusted_at_once_and_no_other(tmp_path: Path) -> None:
    world = OverlayWorld(tmp_path, seed=1)
    life_ms = world.settings.lifetime_ms
    world.now_ms += world.settings.doubt_ms + 1
    number = world.make()
    world.publish()
    for topic in world.topics:
        world.read(0, topic, len(topic.records))
    ((state, _),) = world.store.values()
    made_ms = world.payments[number].row[0]
    assert not world.marks.is_unsure
    world.marks.note_filled([state], made_ms + 2 * life_ms + 1)
    world.marks.begin_anew(mirror_is_empty=True)
    assert not world.marks.is_unsure
    for other, now_ms in (
        (state, made_ms + 2 * life_ms - 1),
        (state[:9], made_ms * 2),
        (b"", made_ms * 2),
        (b"\xff", made_ms),
    ):
        world.now_ms += world.settings.doubt_ms + 1
        assert not world.marks.is_unsure
        world.marks.note_filled([state, other], now_ms)
        assert world.marks.is_unsure
    # A mirror that had profiles, or a table that had rows: their rows or marks may be lost.
    for is_empty, answers in ((False, False), (True, True)):
        world.now_ms += world.settings.doubt_ms + 1
        if answers:
            world.answer(world.make(), worker=0)
        world.marks.begin_anew(mirror_is_empty=is_empty)
        assert world.marks.is_unsure


@given(st.integers(0, 1 << 45), st.integers(100, 600_000), st.integers(-5, 5))
def test_a_payment_is_pending_until_its_step_is_sixteen_steps_old(now_ms: int, life_ms: int, nearby: int) -> None:
    from_ms = pending_from_ms(now_ms, life_ms)
    assert life_ms * 15 // 16 - 1 <= now_ms - from_ms <= life_ms
    moment_ms = from_ms + nearby
    assert (moment_ms >= from_ms) == (now_ms * 16 // life_ms - moment_ms * 16 // life_ms < 16)


def test_a_full_table_is_counted_and_keeps_what_it_has(tmp_path: Path) -> None:
    world = OverlayWorld(tmp_path, seed=1, payments_max=64)
    world.now_ms += 2 * world.settings.lifetime_ms
    made = world.payments[world.make()]
    row = np.array([made.row], dtype=np.int64)
    for number in range(70):
        world.workers[number % 2].add(made.keys, [b"%d" % number], row, int(made.row[0]))
    assert (counted(world, "added"), counted(world, "full")) == (64, 6)
    world.now_ms += 2 * world.settings.lifetime_ms + 1
    world.workers[0].add(made.keys, [b"later"], row, int(made.row[0]))
    assert counted(world, "added") == 65


def test_a_payment_of_another_time_is_not_added(world: OverlayWorld) -> None:
    made = world.payments[world.make()]
    row, far_ms = np.array([made.row], dtype=np.int64), 2 * world.settings.lifetime_ms
    for now_ms in (made.row[0] - far_ms, made.row[0] + far_ms):
        world.workers[0].add(made.keys, [made.name], row, int(now_ms))
    assert (counted(world, "added"), counted(world, "untimely")) == (0, 2)


def damage(world: OverlayWorld, change: Callable[[Any, int], None]) -> None:
    """Change the row of the newest payment."""
    table = world.workers[0]._table
    assert table is not None
    shape = world.workers[0]._shape
    number = int(table[tables.NEXT_AT])
    size = int(tables.row_size(int(shape[0]), int(shape[1])))
    at = tables.HEAD_SIZE + int(shape[tables.SHAPE_BUCKETS]) * tables.BUCKET_SIZE
    change(table, at + (number - 1) % int(shape[tables.SHAPE_ROWS]) * size)


def test_a_row_that_is_being_written_is_left_out(world: OverlayWorld) -> None:
    number = world.make()
    world.answer(number, worker=0)

    def leave_half(table: Any, at: int) -> None:
        table[at + tables.STATE] -= 1

    damage(world, leave_half)
    world.answered.clear()
    other = world.make()
    world.payments[other].keys = world.payments[number].keys
    world.check(other, worker=1)
    assert (world.wrong, counted(world, "folded")) == (0, 0)


@pytest.mark.parametrize(
    "place", [tables.MAGIC_AT, tables.DIGEST_AT, tables.ENTITIES_AT, tables.WIDTH_AT, tables.ROWS_AT, tables.BUCKETS_AT]
)
def test_a_table_of_another_version_catalogue_or_shape_is_not_used(world: OverlayWorld, place: int) -> None:
    """The magic number holds the version. All of these files have the size of ours."""
    path = Path(world.settings.path)
    content = bytearray(path.read_bytes())
    content[8 * place] ^= 1
    path.write_bytes(content)
    reader = world._reader()
    with pytest.raises(AssertionError):
        world._worker(reader)
    prepare(world.settings, world.plan)
    assert world._worker(reader).is_open


def test_marks_of_another_version_are_not_used_and_new_ones_are_doubted(world: OverlayWorld, tmp_path: Path) -> None:
    """By this version's layout they might call a payment contained that is not, or the other way round."""
    path = tmp_path / "mirror" / MARKS_FILE
    content = bytearray(path.read_bytes())
    content[8 * tables.MARK_MAGIC_AT] ^= 1
    path.write_bytes(content)
    with pytest.raises(AssertionError):
        world._worker(world._reader())
    world.marks = world._companion(tmp_path)
    doubts = [world.marks.is_unsure]
    world.now_ms += world.settings.doubt_ms + 1
    assert [*doubts, world.marks.is_unsure] == [True, False]
    world._look(world.workers[1], world._readers[1])
    world.answer(number := world.make(), worker=0)
    assert score_one_like(world, number, worker=1) > 0
    assert world.wrong == 0


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_companion_doubts_marks_of_another_transaction_than_the_mirrors(
    world: OverlayWorld, tmp_path: Path, difference: int
) -> None:
    """Another process wrote the mirror without marks, an older companion for instance; or it is another mirror."""
    assert not world._companion(tmp_path).is_unsure
    world.transaction += difference
    assert world._companion(tmp_path).is_unsure


def score_one_like(world: OverlayWorld, number: int, worker: int) -> int:
    """Score a payment of the same entities; returns how many pending payments were added."""
    before, other = counted(world, "folded"), world.make()
    world.payments[other].keys = world.payments[number].keys
    world.check(other, worker)
    return counted(world, "folded") - before


def test_a_host_that_is_started_again_sees_what_was_answered_before(world: OverlayWorld) -> None:
    world.answer(number := world.make(), worker=0)
    prepare(world.settings, world.plan)
    for place in range(2):
        world.restart(place)
    assert score_one_like(world, number, worker=1) > 0
    assert world.wrong == 0


def test_a_table_of_an_earlier_start_of_the_host_is_replaced(
    world: OverlayWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk. When that time comes again its payments would be pending again, though profiles contain them."""
    world.answer(world.make(), worker=0)
    prepare(world.settings, world.plan)
    assert np.fromfile(world.settings.path, dtype=np.int64)[tables.NEXT_AT] == 1
    monkeypatch.setattr(overlay_files, "boot_id", lambda: "another")
    prepare(world.settings, world.plan)
    table = np.fromfile(world.settings.path, dtype=np.int64)
    assert (table[tables.NEXT_AT], table[tables.MAGIC_AT] != 0) == (0, True)
    assert world._worker(world._reader()).is_open


def test_a_host_whose_clock_begins_anew_trusts_its_marks_after_the_doubt(world: OverlayWorld, tmp_path: Path) -> None:
    # The host has been up for 100 days, and a profile changed without a name of its payments.
    world.now_ms += 100 * 86_400_000
    world.marks.note_unnamed()
    # It starts again. The mirror and its marks are on a disk.
    world.now_ms = 5_000
    world.marks = world._companion(tmp_path)
    doubts = [world.marks.is_unsure]
    world.now_ms += world.settings.doubt_ms + 1
    assert [*doubts, world.marks.is_unsure] == [True, False]
    world.answered.clear()
    world.answer(number := world.make(), worker=0)
    assert score_one_like(world, number, worker=1) > 0


@pytest.mark.parametrize("jump_ms", [1, 400, 999, 1500, 10_000])
def test_nothing_counts_twice_when_the_clock_of_a_host_jumps_back(tmp_path: Path, jump_ms: int) -> None:
    """Marks of before the jump seem to be of the future. They gave way to new marks, and nobody was told."""
    world = trusted(tmp_path, marks_max=64)
    world.now_ms += 2 * jump_ms
    first = world.make()
    answered = [first, *(world.make() for _ in range(39))]
    for number in answered:
        world.payments[number].keys = world.payments[first].keys
        world.answer(number, worker=0)
    bring(world, answered[:30])
    assert score_one_like(world, first, worker=1) > 0
    world.now_ms -= jump_ms
    # The time of the host goes on, and other payments are marked: they find free places, or put the marks in doubt.
    for _ in range(30):
        world.now_ms += 1
        other = world.make()
        world.payments[other].keys = [b"", b"merchant:another", b""]
        bring(world, [other])
        assert not world.marks.is_unsure
        score_one_like(world, first, worker=0)
    assert (world.wrong, world.marks.lost) == (0, 0)


def test_a_mark_that_takes_the_place_of_one_of_the_future_puts_the_marks_in_doubt(tmp_path: Path) -> None:
    world = trusted(tmp_path, marks_max=64)
    bring(world, [world.make() for _ in range(400)])
    world.now_ms += world.settings.doubt_ms + 1
    # They are of a moment that has not come yet, and each place is taken.
    lost, world.now_ms = world.marks.lost, world.now_ms - world.settings.lifetime_ms - world.settings.doubt_ms - 1
    bring(world, [world.make()])
    assert world.marks.lost == lost + 1
    assert world.marks.is_unsure


def bring(world: OverlayWorld, numbers: list[int]) -> None:
    """Put payments on Kafka, and bring profiles with them to the mirror."""
    topic = world.topics[0]
    for number in numbers:
        made = world.payments[number]
        made.source, made.offset = 0, len(topic.records)
        topic.records.append(number)
    for entity in range(world.plan.entity_count):
        world.read(entity, topic, len(topic.records))
    world.apply(len(world.changelog))


def test_a_payment_of_an_unnamed_change_that_is_answered_late_counts_once(world: OverlayWorld) -> None:
    life_ms = world.settings.lifetime_ms
    number = world.make()
    world.publish()
    for entity in range(world.plan.entity_count):
        for topic in world.topics:
            world.read(entity, topic, len(topic.records))
    for change in world.changelog:
        change.named = None
    world.apply(len(world.changelog))
    assert world.marks.is_unsure
    # It was on Kafka first; the host answers it nearly a lifetime after.
    world.now_ms += life_ms - 100
    world.answer(number, worker=0)
    # The doubt would be over if it lasted one lifetime, and the payment is pending.
    world.now_ms += 200
    assert score_one_like(world, number, worker=1) == 0
    assert world.wrong == 0


def test_a_damaged_moment_of_the_marks_ends_with_the_next_transaction(world: OverlayWorld) -> None:
    world.marks._marks[tables.MARK_UNSURE_UNTIL_AT] = 1 << 55
    world.marks.begin(world.transaction)
    world.now_ms += world.settings.doubt_ms + 1
    assert not world.marks.is_unsure


def test_workers_keep_their_table_while_another_catalogue_serves_and_meet_again_after(world: OverlayWorld) -> None:
    number = world.make()
    world.answer(number, worker=0)
    # A version with another catalogue takes the ports over: its table is of another size.
    prepare(replace(world.settings, payments_max=128), world.plan)
    for worker, reader in zip(world.workers, world._readers, strict=True):
        world._look(worker, reader)
    assert score_one_like(world, number, worker=1) > 0
    # It hands them back, and the table of this version is a new one.
    prepare(world.settings, world.plan)
    for place in range(2):
        world.restart(place)
    world.answered.clear()
    assert score_one_like(world, number, worker=1) == 0
    world.answer(number, worker=0)
    assert score_one_like(world, number, worker=1) > 0
    assert world.wrong == 0


def test_rows_that_a_profile_contains_are_cut_off_for_later_readers(world: OverlayWorld) -> None:
    first = world.make()
    for number in (first, *(world.make() for _ in range(9))):
        made = world.payments[number]
        made.keys = world.payments[first].keys
        world.answer(number, worker=0)
        made.source, made.offset = 0, number
        world.topics[0].records.append(number)
    for entity in range(world.plan.entity_count):
        world.read(entity, world.topics[0], 10)
    old_mirror, old_transaction = dict(world.mirror), world.transaction
    world.apply(len(world.changelog))
    # The first reader finds all rows contained, and says so in the table.
    assert score_one_like(world, first, worker=0) == 0
    # Without marks a payment would count again. Readers of this transaction do not get that far.
    marks = world.marks._marks[tables.MARK_HEAD_SIZE :]
    kept = marks.copy()
    marks[:] = 0
    assert score_one_like(world, first, worker=1) == 0
    # A reader that looked the profiles up before must count all of them, regardless of later look-ups.
    marks[:] = kept
    world.mirror, world.transaction = old_mirror, old_transaction
    assert score_one_like(world, first, worker=1) > 0
    assert world.wrong == 0


def answer_many(world: OverlayWorld, count: int, worker: int = 0) -> int:
    """Answer payments of the same entities, 5 ms apart; returns the first one."""
    first = world.make()
    for number in (first, *(world.make() for _ in range(count - 1))):
        world.payments[number].keys = world.payments[first].keys
        world.answer(number, worker)
        world.now_ms += 5
    return first


def test_payments_in_profiles_do_not_hide_older_pending_ones(tmp_path: Path) -> None:
    """One partition may lag far behind the other: then the newest payments are the first in a profile."""
    world = trusted(tmp_path, events_max=8)
    first = answer_many(world, 4)
    newer = [world.make() for _ in range(60)]
    for number in newer:
        world.payments[number].keys = world.payments[first].keys
        world.answer(number, worker=0)
    bring(world, newer)
    assert score_one_like(world, first, worker=1) == 4 * len(list(filter(None, world.payments[first].keys)))
    assert world.wrong == 0


def test_a_payment_with_two_rows_counts_until_the_second_is_over(tmp_path: Path) -> None:
    world = trusted(tmp_path, events_max=64, lifetime_ms=1600)
    first = answer_many(world, 6)
    entities = len(list(filter(None, world.payments[first].keys)))
    world.now_ms += 800
    world.answer(first, worker=1)
    assert score_one_like(world, first, worker=0) == 6 * entities
    # The first row is over: the payment counts by its second.
    world.now_ms += 800
    assert score_one_like(world, first, worker=0) == entities
    world.now_ms += 800
    assert score_one_like(world, first, worker=0) == 0
    assert world.wrong == 0


def test_an_entity_with_two_slots_counts_all_of_its_payments_once(tmp_path: Path) -> None:
    """Two workers may each give an entity a slot if they add its first payments at one time."""
    world = trusted(tmp_path, **MANY)
    first = answer_many(world, 3)
    assert score_one_like(world, first, worker=0) > 0
    table, shape = world.workers[0]._table, world.workers[0]._shape
    assert table is not None
    for key in filter(None, world.payments[first].keys):
        mixed = int(mix(world.tags.hash_of_key(key)))
        slots = [int(tables.bucket_at(shape, mixed, choice)) + place for choice in range(2) for place in range(8)]
        (mine,) = (slot for slot in slots if table[slot] >> tables.NUMBER_BITS == tables.print_of(mixed))
        free = next(slot for slot in slots if table[slot] == 0)
        # The payments so far stay with the second slot; a new one begins with nothing before it.
        table[max(free, mine)], table[min(free, mine)] = table[mine], 0
    for _ in range(4):
        world.payments[number := world.make()].keys = world.payments[first].keys
        world.answer(number, worker=1)
        for worker in range(2):
            assert score_one_like(world, first, worker) > 0
    assert (world.wrong, counted(world, "left_out")) == (0, 0)


def test_a_walk_along_rows_in_a_circle_ends(world: OverlayWorld) -> None:
    first = answer_many(world, 5)

    def link_to_itself(table: Any, at: int) -> None:
        entities = world.plan.entity_count
        table[at + tables.ROW_HEAD + entities : at + tables.ROW_HEAD + 2 * entities] = table[tables.NEXT_AT]

    damage(world, link_to_itself)
    for worker in range(2):
        score_one_like(world, first, worker)
        assert 0 < world.workers[worker]._numbers[tables.VISITED] <= 1000


def test_without_marks_nothing_is_pending(world: OverlayWorld, tmp_path: Path) -> None:
    (tmp_path / "mirror" / "overlay-marks").unlink()
    with pytest.raises(AssertionError):
        world._worker(world._reader())


def test_workers_killed_at_any_moment_leave_a_table_that_works(world: OverlayWorld) -> None:
    made = [world.payments[world.make()] for _ in range(8)]
    now_ms = int(made[0].row[0])
    for _ in range(6):
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            count = 0
            while True:
                one = made[count % len(made)]
                world.workers[0].add(one.keys, [b"%d" % count], np.array([one.row], dtype=np.int64), now_ms)
                # The clock goes on, so that rows and slots are used again.
                world.now_ms += 40
                count += 1
                if count == 300:
                    os.write(writes, b"x")
        assert os.read(reads, 1) == b"x"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reads)
        os.close(writes)
        world.now_ms += 100_000_000
        world.answered.clear()
        number = world.make()
        world.answer(number, worker=1)
        other = world.make()
        world.payments[other].keys = world.payments[number].keys
        world.check(other, worker=1)
    assert world.wrong == 0
    assert counted(world, "folded") >= 6 * 2
