"""The head of a partition: only its owner writes it, and its bytes are fixed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest

from paywarden.features.stores.base import StoreConflict, TtlS
from paywarden.features.stores.memory import MemoryStore
from paywarden.schemas.errors import StoreUnavailable
from paywarden.streams.counts.checkpoint import QUIET_EVERY_MS, Checkpoint, HeadPlace, PendingRows, pack, unpack
from paywarden.streams.drift.drift_counts import CountCell, CountingProgress, Model, Totals
from paywarden.streams.drift.drift_state import CountTile, DriftHead
from paywarden.streams.outcomes.outcome_state import Day, JoinProgress, OutcomeHead
from paywarden.streams.outcomes.payments import Arm

KEY = b"outcomes:head:d0"


class LossyStore(MemoryStore):
    """Loses the answer to a write: the record is written, and the writer hears that the store is away."""

    loses_answers = False

    def write(self, values: Mapping[bytes, bytes], *, ttl_s: TtlS, versions: Mapping[bytes, int] | None = None) -> None:
        super().write(values, ttl_s=ttl_s, versions=versions)
        if self.loses_answers:
            raise StoreUnavailable("away")


def take_over(store: MemoryStore) -> Checkpoint[OutcomeHead]:
    return Checkpoint.take_over(HeadPlace(store, KEY, OutcomeHead, 60, "partition d0"))


def stored(store: MemoryStore) -> OutcomeHead:
    (data,) = store.read([KEY])
    assert data is not None
    return OutcomeHead.decode(data)


def head(next_offset: int) -> OutcomeHead:
    return OutcomeHead("somebody", JoinProgress(next_offset))


def test_a_new_owner_continues_from_the_saved_head() -> None:
    store = MemoryStore()
    take_over(store).save(head(500), is_all=True)
    assert take_over(store).saved.progress.next_offset == 500


def test_a_save_keeps_the_owners_token() -> None:
    store = MemoryStore()
    checkpoint = take_over(store)
    checkpoint.save(head(500), is_all=True)
    assert stored(store).owner == checkpoint.saved.owner != "somebody"


def test_a_former_owner_cannot_overwrite_its_successors_head() -> None:
    store = MemoryStore()
    former = take_over(store)
    take_over(store).save(head(700), is_all=True)
    with pytest.raises(StoreConflict, match="partition d0 is another worker's"):
        former.save(head(500), is_all=True)
    assert stored(store).progress.next_offset == 700


def test_a_save_whose_answer_is_lost_can_be_repeated() -> None:
    store = LossyStore()
    checkpoint = take_over(store)
    store.loses_answers = True
    with pytest.raises(StoreUnavailable):
        checkpoint.save(head(500), is_all=True)
    assert checkpoint.saved.progress.next_offset == 0
    store.loses_answers = False
    checkpoint.save(head(600), is_all=True)
    assert stored(store).progress.next_offset == checkpoint.saved.progress.next_offset == 600


def test_the_quiet_mark_is_saved_only_with_all_that_was_handed_over() -> None:
    store = MemoryStore()
    checkpoint = take_over(store)
    checkpoint.note_quiet(QUIET_EVERY_MS)
    has_news = [checkpoint.has_quiet_news]
    checkpoint.note_quiet(QUIET_EVERY_MS + 1)
    has_news.append(checkpoint.has_quiet_news)
    checkpoint.save(head(500), is_all=False)
    assert stored(store).quiet_ms == 0
    checkpoint.save(head(600), is_all=True)
    assert stored(store).quiet_ms == QUIET_EVERY_MS + 1
    has_news.append(checkpoint.has_quiet_news)
    assert has_news == [False, True, False]


def test_what_settling_a_head_changes_is_stored_with_the_new_token() -> None:
    store = MemoryStore()
    take_over(store).save(head(500), is_all=True)
    place = HeadPlace(store, KEY, OutcomeHead, 60, "partition d0")
    checkpoint = Checkpoint.take_over(place, lambda _: head(900))
    assert stored(store) == checkpoint.saved == OutcomeHead(checkpoint.saved.owner, JoinProgress(900))


def test_rows_are_worked_on_only_after_they_were_handed_over() -> None:
    rows = PendingRows(5, lambda offset, record: (offset, record["name"]))
    for offset in (4, 5, 6, 6):
        rows.add(offset, {"name": "a"})
    assert (rows.handed_over, rows.handed_to, len(rows)) == ([], 5, 2)
    rows.hand_over()
    rows.add(7, {"name": "b"})
    rows.skip(8)
    assert (rows.handed_over, rows.handed_to, len(rows)) == ([(5, "a"), (6, "a")], 7, 3)
    rows.hand_over()
    assert rows.handed_to == 9


def test_packed_cells_are_a_length_a_json_header_and_the_cells() -> None:
    data = pack({"next_offset": 500}, [(("m1", "a"), b"abc"), (("m2", ""), b"d")])
    header = b'{"next_offset":500,"cells":[["m1","a",3],["m2","",1]]}'
    assert data == len(header).to_bytes(4, "little") + header + b"abcd"
    assert unpack(data) == ({"next_offset": 500}, [(["m1", "a"], b"abc"), (["m2", ""], b"d")])


def test_heads_and_tiles_have_these_bytes() -> None:
    cells = {CountCell(60_000, Model("m1", "b1")): b"xyz"}
    progress = CountingProgress(7, 1, 2, {"m1": 2}, Totals(decisions=6))
    header = (
        b'{"owner":"o","quiet_ms":9,"progress":{"next_offset":7,"first_ms":1,"newest_ms":2,"versions":{"m1":2},'
        b'"totals":{"decisions":6,"late":0,"future":0,"old":0,"unknown":0,"other":0}},"cells":[[60000,"m1","b1",3]]}'
    )
    drift = DriftHead("o", progress, 9, cells)
    assert drift.encode() == len(header).to_bytes(4, "little") + header + b"xyz"
    assert DriftHead.decode(drift.encode()) == drift
    tile = CountTile(60_000, 7, cells)
    header = b'{"start_ms":60000,"next_offset":7,"cells":[[60000,"m1","b1",3]]}'
    assert tile.encode() == len(header).to_bytes(4, "little") + header + b"xyz"
    assert CountTile.decode(tile.encode()) == tile
    outcomes = OutcomeHead("o", JoinProgress(7, 1, {Arm("m1", "a"): 2}, Counter(joined=3)), 9)
    assert outcomes.encode() == (
        b'{"owner":"o","quiet_ms":9,"next_offset":7,"first_ms":1,"newest_of":[["m1","a",2]],"totals":{"joined":3}}'
    )
    assert OutcomeHead.decode(outcomes.encode()) == outcomes
    assert Day(7).encode() == b'\x1c\x00\x00\x00{"next_offset":7,"cells":[]}'
