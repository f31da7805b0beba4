"""Every worker learns the same from the hours that are kept; followed levels are restored exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from paywarden.models.drift.counts import Counts
from paywarden.models.drift.detectors import DAY_MS, HOUR_MS
from paywarden.models.drift.signal_layout import Kinds
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.drift.drift_counts import Binnings, Model
from paywarden.streams.drift.learning import FollowedLevels, LiveReferences, counted_binning
from tests.worlds.small.small_decisions import SmallDecisions, reference

TODAY_MS = 19_730 * DAY_MS


def model_version() -> str:
    return reference().model_version


@cache
def binnings() -> Binnings:
    return Binnings({model_version(): counted_binning(reference())})


@cache
def day() -> Counts:
    return SmallDecisions().counts(reference().binning, TODAY_MS, 3000, DAY_MS)


class Past:
    """Hours of the days before today. The first day begins in the morning."""

    def __init__(self, version: str, days: int, first_hour: int = 9) -> None:
        model, binning = binnings().of(version)
        decisions = SmallDecisions(seed=1)
        first_ms = TODAY_MS - days * DAY_MS - (24 - first_hour) * HOUR_MS
        self.hours = {
            hour: {model: decisions.counts(binning, hour, 50, HOUR_MS)} for hour in range(first_ms, TODAY_MS, HOUR_MS)
        }
        self.reads = 0

    def __call__(self, start_ms: int, end_ms: int) -> Iterator[tuple[int, dict[Model, Counts]]]:
        self.reads += 1
        for hour in range(start_ms, end_ms, HOUR_MS):
            yield hour, self.hours.get(hour, {})


def live(past: Past, days_min: int = 2) -> LiveReferences:
    return LiveReferences({model_version(): reference()}, binnings(), past, days_min=days_min)


@pytest.mark.parametrize(("days", "is_learnt"), [(1, False), (2, True)])
def test_nothing_is_learnt_before_enough_whole_days(days: int, is_learnt: bool) -> None:
    found = live(Past(model_version(), days)).of(model_version(), TODAY_MS + 5)
    assert found is not None
    assert np.isfinite(found.baseline.level).all() == is_learnt
    assert found.counts.payments[0] == (days * 24 * 50 if is_learnt else 0)


def test_a_known_model_learns_only_what_its_bundle_lacks() -> None:
    found = live(Past(model_version(), 2)).of(model_version(), TODAY_MS)
    assert found is not None
    assert found.kinds == Kinds.QUALITY
    assert {signal.segment for signal in found.layout.signals} == {"overall"}
    unknown = live(Past("m-9", 2)).of("m-9", TODAY_MS)
    assert unknown is not None
    assert unknown.kinds == Kinds.SCORE | Kinds.QUALITY


def test_every_worker_learns_the_same_once_a_day() -> None:
    past = Past(model_version(), 3)
    one, other = live(past), live(past)
    first = one.of(model_version(), TODAY_MS)
    reads = past.reads
    assert one.of(model_version(), TODAY_MS + DAY_MS - 1) is first
    assert past.reads == reads
    # Decisions after midnight change nothing for this day.
    past.hours[TODAY_MS] = past.hours[TODAY_MS - HOUR_MS]
    again = other.of(model_version(), TODAY_MS + 2 * HOUR_MS)
    assert first is not None
    assert again is not None
    assert again.digest == first.digest
    tomorrow = one.of(model_version(), TODAY_MS + DAY_MS)
    assert tomorrow is not None
    assert tomorrow.digest != first.digest


def test_a_model_without_kept_hours_expects_nothing() -> None:
    found = live(Past("m-9", 2)).of(model_version(), TODAY_MS)
    assert found is not None
    assert np.isnan(found.baseline.level).all()


def test_a_reference_of_live_decisions_needs_no_learnt_one() -> None:
    whole = replace(reference(), kinds=reference().kinds | Kinds.QUALITY)
    own = LiveReferences({model_version(): whole}, binnings(), Past(model_version(), 2), days_min=2)
    assert own.nothing_of(model_version()) is None
    assert own.of(model_version(), TODAY_MS) is None
    assert counted_binning(whole) is whole.binning


def moved() -> FollowedLevels:
    levels = FollowedLevels([reference()])
    levels.follow(reference(), reference().block(day(), TODAY_MS, DAY_MS, levels.of(reference())))
    assert np.any(levels.of(reference()))
    return levels


def test_levels_are_restored_and_the_bytes_behind_them_returned() -> None:
    other = FollowedLevels([reference()])
    assert other.restore(moved().to_bytes() + b"more") == b"more"
    assert np.array_equal(other.of(reference()), moved().of(reference()))
    assert other.restore(b"") == b""
    assert not np.any(other.of(reference()))


def test_another_reference_of_the_same_model_begins_anew() -> None:
    another = replace(reference(), review_at=0.123)
    other = FollowedLevels([another])
    assert other.restore(moved().to_bytes()) == b""
    assert not np.any(other.of(another))


def test_levels_of_a_reference_that_is_found_later_go_on_where_they_were() -> None:
    later = FollowedLevels([])
    assert later.restore(moved().to_bytes() + b"more") == b"more"
    again = FollowedLevels([])
    again.restore(later.to_bytes())
    again.add(reference())
    assert np.array_equal(again.of(reference()), moved().of(reference()))
    # Added twice, or never kept: nothing changes, or it begins at 0.
    again.add(reference())
    assert np.array_equal(again.of(reference()), moved().of(reference()))
    fresh = FollowedLevels([])
    fresh.add(reference())
    assert not np.any(fresh.of(reference()))


@pytest.mark.parametrize("cut", [1, 5, 100])
def test_damaged_levels_are_refused_and_change_nothing(cut: int) -> None:
    levels = moved()
    with pytest.raises(InvalidEvent, match="damaged"):
        levels.restore(FollowedLevels([reference()]).to_bytes()[:-cut])
    assert np.array_equal(levels.of(reference()), moved().of(reference()))
