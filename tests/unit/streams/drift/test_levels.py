"""Followed levels come back as they were, and only those of the references that are here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from paywarden.models.drift.detectors import DAY_MS
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.drift.levels import FollowedLevels
from tests.worlds.small_decisions import SmallDecisions, reference

REFERENCE = reference()
DAY = SmallDecisions().counts(REFERENCE.binning, 19_730 * DAY_MS, 3000, DAY_MS)


def moved() -> FollowedLevels:
    levels = FollowedLevels([REFERENCE])
    levels.follow(REFERENCE, REFERENCE.block(DAY, 19_730 * DAY_MS, DAY_MS, levels.of(REFERENCE)))
    assert np.any(levels.of(REFERENCE))
    return levels


def test_levels_come_back_and_leave_what_is_behind_them() -> None:
    other = FollowedLevels([REFERENCE])
    assert other.restore(moved().to_bytes() + b"more") == b"more"
    assert np.array_equal(other.of(REFERENCE), moved().of(REFERENCE))
    assert other.restore(b"") == b""
    assert not np.any(other.of(REFERENCE))


def test_another_reference_of_the_same_model_begins_anew() -> None:
    another = replace(REFERENCE, review_at=0.123)
    other = FollowedLevels([another])
    assert other.restore(moved().to_bytes()) == b""
    assert not np.any(other.of(another))


@pytest.mark.parametrize("cut", [1, 5, 100])
def test_damaged_levels_are_refused_and_change_nothing(cut: int) -> None:
    levels = moved()
    with pytest.raises(InvalidEvent, match="damaged"):
        levels.restore(FollowedLevels([REFERENCE]).to_bytes()[:-cut])
    assert np.array_equal(levels.of(REFERENCE), moved().of(REFERENCE))
