from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import Misconfigured
from scoring.policy import ACTIONS, FLAGS, MIRROR_ABSENT, MIRROR_STALE, UNKNOWN_CARD, Policy, PolicySettings


def policy(**settings: Any) -> Policy:
    return Policy(PolicySettings(**settings), review_at=0.3, decline_at=0.9)


def test_score_at_a_threshold_takes_the_stricter_action() -> None:
    assert policy().decide(0.3, ()) == ("review", ["score_at_or_above_review_threshold"])
    assert policy().decide(0.9, ()) == ("decline", ["score_at_or_above_decline_threshold"])


def test_score_just_below_a_threshold_takes_the_milder_action() -> None:
    assert policy().decide(float(np.nextafter(0.3, 0)), ()) == ("approve", [])
    assert policy().decide(float(np.nextafter(0.9, 0)), ())[0] == "review"


def test_thresholds_are_not_rounded_to_float32() -> None:
    """A float32 0.9 is below 0.9: scores and thresholds stay float64."""
    assert policy().decide(float(np.float32(0.9)), ())[0] == "review"


def test_no_score_asks_for_nothing() -> None:
    assert policy().decide(None, ()) == ("approve", [])
    assert policy().decide(None, [MIRROR_ABSENT]) == ("review", [MIRROR_ABSENT])


def test_equal_thresholds_leave_no_room_for_review() -> None:
    checked = Policy(PolicySettings(), review_at=0.5, decline_at=0.5)
    assert [checked.decide(score, ())[0] for score in (0.4, 0.5, 1.0)] == ["approve", "decline", "decline"]


def test_a_flag_asks_for_a_stricter_action_and_is_the_reason() -> None:
    assert policy(on_mirror_stale="decline").decide(0.5, [MIRROR_STALE]) == ("decline", [MIRROR_STALE])


def test_a_flag_never_makes_an_action_milder() -> None:
    assert policy(on_mirror_absent="review").decide(0.95, [MIRROR_ABSENT])[0] == "decline"
    assert policy(on_mirror_absent="approve").decide(0.95, [MIRROR_ABSENT])[0] == "decline"


def test_everything_that_asked_for_the_action_is_a_reason() -> None:
    decided = policy(on_unknown_card="review").decide(0.5, [UNKNOWN_CARD, MIRROR_ABSENT, MIRROR_STALE])
    assert decided == ("review", ["score_at_or_above_review_threshold", UNKNOWN_CARD, MIRROR_ABSENT])


def test_by_default_an_unknown_entity_asks_for_nothing() -> None:
    assert policy().decide(0.1, [UNKNOWN_CARD, "unknown_merchant", "unknown_device"]) == ("approve", [])


def test_thresholds_of_the_settings_go_before_the_bundles() -> None:
    checked = policy(review_at=0.5, decline_at=0.6)
    assert [checked.decide(score, ())[0] for score in (0.45, 0.5, 0.6)] == ["approve", "review", "decline"]
    assert policy(decline_at=0.5).decide(0.4, ())[0] == "review"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.1, 1.1])
@pytest.mark.parametrize("name", ["review_at", "decline_at"])
def test_a_threshold_that_is_no_score_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(Misconfigured, match=rf"^policy\.{name}: wanted a score above 0 and at most 1, got"):
        policy(**{name: value})


@pytest.mark.parametrize("value", [math.nan, 0.0, 1.5])
def test_a_threshold_of_a_bundle_is_checked_as_well(value: float) -> None:
    with pytest.raises(Misconfigured, match=r"policy\.decline_at"):
        Policy(PolicySettings(), review_at=0.1, decline_at=value)


def test_thresholds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(
        Misconfigured, match=r"policy\.review_at \(0\.95\) must not be above policy\.decline_at \(0\.9\)"
    ):
        policy(review_at=0.95)


@pytest.mark.parametrize("flag", FLAGS)
def test_an_action_that_there_is_not_is_refused_by_the_setting_of_its_flag(flag: str) -> None:
    with pytest.raises(Misconfigured, match=rf"^policy\.on_{flag}: wanted one of approve, review, decline, got 'deny'"):
        policy(**{f"on_{flag}": "deny"})


def test_an_unknown_entity_without_a_setting_of_its_own_takes_that_of_others() -> None:
    assert policy(on_unknown_other="decline").decide(0.0, ["unknown_wallet"]) == ("decline", ["unknown_wallet"])
    assert policy().decide(0.0, ["unknown_wallet"]) == ("approve", [])
    with pytest.raises(Misconfigured, match=r"^policy\.on_unknown_other: wanted one of"):
        policy(on_unknown_other="deny")


actions = st.sampled_from(ACTIONS)


@given(
    st.fixed_dictionaries({f"on_{flag}": actions for flag in FLAGS}),
    st.floats(0, 1),
    st.lists(st.sampled_from(FLAGS), unique=True),
)
def test_the_action_is_the_strictest_that_anything_asked_for(
    asked: dict[str, str], score: float, flags: list[str]
) -> None:
    checked = policy(**asked)
    action, reasons = checked.decide(score, flags)
    wanted = [checked.decide(score, ())[0]] + [asked[f"on_{flag}"] for flag in flags]
    assert ACTIONS.index(action) == max(map(ACTIONS.index, wanted))
    assert bool(reasons) == (action != "approve")
    assert [flag for flag in flags if asked[f"on_{flag}"] == action != "approve"] == [r for r in reasons if r in FLAGS]
