"""Damaged records of drift counts and outcomes are set aside, and what reads them starts again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from paywarden.features.stores.memory import MemoryStore
from paywarden.streams.counts.checked_state import CheckedState, SetAsideState
from paywarden.streams.counts.checkpoint import Checkpoint, HeadPlace
from paywarden.streams.drift.drift_counts import CountingProgress
from paywarden.streams.drift.drift_evaluation import EVALUATION_CHECKS, EvaluatedUpTo, read_done
from paywarden.streams.drift.drift_state import DRIFT_CHECKS, CountTile, DriftHead, head_key, read_heads, tile_key
from paywarden.streams.outcomes.outcome_settings import OutcomeSettings
from paywarden.streams.outcomes.outcome_state import (
    OUTCOME_CHECKS,
    JoinProgress,
    OutcomeHead,
    day_key,
    read_day,
    take_over,
)
from paywarden.streams.outcomes.outcome_state import head_key as outcome_head_key
from paywarden.streams.outcomes.payments import SourcePartition

D0 = SourcePartition("d", 0)
CHECKS = {**DRIFT_CHECKS, **EVALUATION_CHECKS, **OUTCOME_CHECKS}


class World:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.inner = MemoryStore()
        self.store = CheckedState(self.inner, CHECKS, SetAsideState(self.registry))

    def damage(self, key: bytes, data: bytes = b"\x09\0\0\0 damaged") -> None:
        self.inner.write({key: data}, ttl_s=0)

    def kept(self, key: bytes) -> bytes | None:
        kind, _, rest = key.partition(b":")
        return self.inner.read([kind + b":unreadable:" + rest])[0]

    def count(self, kind: str) -> float | None:
        return self.registry.get_sample_value("paywarden_state_set_aside_total", {"kind": kind})


def test_a_damaged_head_is_kept_and_its_partition_begins_anew() -> None:
    world, key = World(), outcome_head_key(D0)
    world.damage(key)
    checkpoint = take_over(world.store, D0, OutcomeSettings())
    assert checkpoint.saved.progress == JoinProgress()
    assert (world.kept(key), world.count("outcomes"), world.count("drift")) == (b"\x09\0\0\0 damaged", 1, 0)
    # Its new owner saves, and nothing is set aside again.
    checkpoint.save(OutcomeHead("", JoinProgress(500)), is_all=True)
    assert take_over(world.store, D0, OutcomeSettings()).saved.progress.next_offset == 500
    assert world.count("outcomes") == 1


def test_a_damaged_head_of_drift_counts_leaves_the_other_partitions_alone() -> None:
    world = World()
    world.inner.write({head_key(1): DriftHead("a", CountingProgress(next_offset=7)).encode()}, ttl_s=0)
    world.damage(head_key(0), b"")
    heads = read_heads(world.store, [0, 1])
    assert {number: head.progress.next_offset for number, head in heads.items()} == {1: 7}
    place = HeadPlace(world.store, head_key(0), DriftHead, 60, "partition 0")
    assert Checkpoint.take_over(place).saved.progress.next_offset == 0


def test_damaged_days_and_tiles_and_marks_of_evaluation_are_missing() -> None:
    world = World()
    tile, day = tile_key(300_000, 3, 900_000), day_key(D0, 19730)
    world.damage(tile)
    world.damage(day)
    world.damage(b"drift:evaluated")
    assert world.store.read([tile]) == [None]
    assert read_day(world.store, [D0], 19730) == {}
    done, version = read_done(world.store)
    assert done == EvaluatedUpTo()
    # The version is the damaged record's: a write that names it takes its place.
    world.store.write({b"drift:evaluated": EvaluatedUpTo(5).encode()}, ttl_s=0, versions={b"drift:evaluated": version})
    assert read_done(world.store)[0].done_ms == 5
    assert all(map(world.kept, (tile, day, b"drift:evaluated")))


@pytest.mark.parametrize("beginning", CHECKS)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_record_or_set_aside(beginning: bytes, data: bytes) -> None:
    world = World()
    world.damage(beginning, data)
    (found,) = world.store.read([beginning])
    assert found == data or world.kept(beginning) == data


def test_records_of_other_kinds_are_as_they_are() -> None:
    world = World()
    world.damage(b"outcome:p1")
    world.damage(b"drift:state:owner:0:0")
    assert (
        world.store.read([b"outcome:p1", b"drift:state:owner:0:0", b"outcome:none"])[:2] == [b"\x09\0\0\0 damaged"] * 2
    )
    assert world.inner.read([b"outcome:unreadable:p1"]) == [None]
    assert CountTile.decode(CountTile(5).encode()).start_ms == 5
