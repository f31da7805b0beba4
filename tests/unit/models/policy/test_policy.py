from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.models.policy.policy import (
    ACTIONS,
    CONDITIONS_MAX,
    FLAGS,
    MIRROR_ABSENT,
    MODEL_ABSENT,
    ConfiguredRule,
    ConfiguredSegment,
    Facts,
    Policy,
    PolicySettings,
    policy_digest,
)
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest

NAMES = [feature.name for feature in CATALOGUE.features]


def facts(score: float | None, flags: Sequence[str] = (), payment: ScoreRequest | None = None, **known: float) -> Facts:
    """Returns facts with a payment and some features by name; all others are missing."""
    vector = np.full(len(NAMES), np.nan, dtype=np.float32)
    for name, value in known.items():
        vector[NAMES.index(name)] = value
    payment = payment or ScoreRequest(card_id="c", merchant_id="m", amount_minor=1000, currency="EUR")
    return Facts(payment, payment.amount_minor, vector, score, flags)


def policy(**settings: Any) -> Policy:
    return Policy(PolicySettings(**settings), review_at=0.3, decline_at=0.9)


def with_rules(*rules: tuple[str, str, str, bool], **settings: Any) -> Policy:
    return policy(rules=tuple(ConfiguredRule(*rule) for rule in rules), **settings)


def with_segments(*segments: tuple[Any, ...], **settings: Any) -> Policy:
    return policy(segments=tuple(ConfiguredSegment(*segment) for segment in segments), **settings)


def test_score_at_a_threshold_takes_the_stricter_action() -> None:
    assert policy().decide(facts(0.3, ())) == ("review", ["score_at_or_above_review_threshold"])
    assert policy().decide(facts(0.9, ())) == ("decline", ["score_at_or_above_decline_threshold"])


def test_thresholds_are_not_rounded_to_float32() -> None:
    """A float32 0.9 is below 0.9: scores and thresholds stay float64."""
    assert policy().decide(facts(float(np.float32(0.9)), ()))[0] == "review"


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
def test_an_unknown_action_is_refused_naming_the_flags_setting(flag: str) -> None:
    with pytest.raises(Misconfigured, match=rf"^policy\.on_{flag}: wanted one of approve, review, decline, got 'deny'"):
        policy(**{f"on_{flag}": "deny"})


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
    action, reasons = checked.decide(facts(score, flags))
    wanted = [checked.decide(facts(score, ()))[0]] + [asked[f"on_{flag}"] for flag in flags]
    assert ACTIONS.index(action) == max(map(ACTIONS.index, wanted))
    assert bool(reasons) == (action != "approve")
    assert [flag for flag in flags if asked[f"on_{flag}"] == action != "approve"] == [r for r in reasons if r in FLAGS]


# Rules


def test_score_flags_and_rules_that_asked_for_the_action_are_all_reasons() -> None:
    checked = with_rules(
        ("one", "card_count_1h >= 5", "review", False),
        ("two", "True", "review", False),
        ("three", 'mcc == "7995"', "decline", False),
    )
    reasons = ["score_at_or_above_review_threshold", MIRROR_ABSENT, "rule:one", "rule:two"]
    assert checked.decide(facts(0.4, [MIRROR_ABSENT], card_count_1h=9)) == ("review", reasons)
    gambling = ScoreRequest(mcc="7995")
    assert checked.decide(facts(0.4, [MIRROR_ABSENT], gambling, card_count_1h=9)) == ("decline", ["rule:three"])


def test_a_rule_that_overrides_decides_alone_and_the_first_one_does() -> None:
    checked = with_rules(
        ("strict", "True", "decline", False),
        ("own_shops", 'merchant_id == "ours"', "approve", True),
        ("stolen", 'card_id == "stolen"', "decline", True),
    )
    stolen = ScoreRequest(merchant_id="theirs", card_id="stolen")
    ours = ScoreRequest(merchant_id="ours", card_id="stolen")
    assert checked.decide(facts(0.99, [MODEL_ABSENT], ours)) == ("approve", ["rule:own_shops"])
    assert checked.decide(facts(0.0, (), stolen)) == ("decline", ["rule:stolen"])
    assert checked.decide(facts(0.0)) == ("decline", ["rule:strict"])


# Segments


def test_the_first_segment_that_applies_sets_the_thresholds() -> None:
    checked = with_segments(("large", "amount >= 500_00", 0.1, 0.2), ("online", 'channel == "ecom"', 0.5, 0.0))
    large = ScoreRequest(amount_minor=60_000, channel="ecom")
    online = ScoreRequest(amount_minor=100, channel="ecom")
    assert checked.decide(facts(0.1, (), large)) == ("review", ["score_at_or_above_review_threshold:large"])
    assert checked.decide(facts(0.2, (), large)) == ("decline", ["score_at_or_above_decline_threshold:large"])
    assert checked.decide(facts(0.4, (), online)) == ("approve", [])
    # A threshold that a segment does not set is the general one.
    assert checked.decide(facts(0.9, (), online)) == ("decline", ["score_at_or_above_decline_threshold:online"])
    assert checked.decide(facts(0.4)) == ("review", ["score_at_or_above_review_threshold"])


# Refused settings


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [("a", "True", "deny", False)],
            "policy.rules \"a\" action: wanted one of approve, review, decline, got 'deny'",
        ),
        (
            [("a", "True", "approve", False)],
            'policy.rules "a" action: "approve" asks for nothing; with override = true',
        ),
        ([("A b", "True", "review", False)], "policy.rules, number 1: name: wanted at most 64 of a to z, 0 to 9 and _"),
        ([("a", "True", "review", False)] * 2, 'policy.rules: there are two with the name "a"'),
        ([("a", "amount >", "review", False)], 'policy.rules "a", character 9: this cannot be read'),
        (
            [("a", "amuont > 5", "review", False)],
            "policy.rules \"a\", character 1: there is no name 'amuont'; did you mean",
        ),
    ],
)
def test_a_rule_that_is_wrong_is_refused_by_name(rules: list[tuple[str, str, str, bool]], message: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        with_rules(*rules)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        (("a", "True", 1.5, 0.0), 'policy.segments "a" review_at: wanted a score above 0 and at most 1, got 1.5'),
        (("a", "True", 0.0, math.nan), 'policy.segments "a" decline_at: wanted a score above 0'),
        (("a", "True", 0.95, 0.0), 'policy.segments "a" review_at (0.95) must not be above'),
        (("", "True", 0.0, 0.0), "policy.segments, number 1: name: wanted"),
        (("a", "score", 0.0, 0.0), 'policy.segments "a", character 1: wanted a condition, got a number'),
    ],
)
def test_a_segment_that_is_wrong_is_refused_by_name(segment: tuple[Any, ...], message: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        with_segments(segment)
    assert str(refused.value).startswith(message)


def test_more_rules_than_there_may_be_are_refused() -> None:
    rules = [(f"r{number}", "True", "review", False) for number in range(CONDITIONS_MAX + 1)]
    with_rules(*rules[:-1])
    with pytest.raises(Misconfigured, match=r"^policy\.rules: wanted at most 200, got 201"):
        with_rules(*rules)


def test_a_negative_count_of_reasons_is_refused() -> None:
    with pytest.raises(Misconfigured, match=r"^policy\.reason_features_max: wanted at least 0, got -1"):
        policy(reason_features_max=-1)


# Many at once


@given(st.lists(st.floats(0, 1), min_size=1), st.floats(0.01, 1), st.floats(0.01, 1))
def test_actions_of_many_scores_are_those_of_each(scores: list[float], one: float, other: float) -> None:
    checked = policy(review_at=min(one, other), decline_at=max(one, other))
    scores += [checked._thresholds.review_at, checked._thresholds.decline_at]
    actions = checked.actions_of(np.array(scores))
    assert [ACTIONS[action] for action in actions] == [checked.decide(facts(score)).action for score in scores]


@pytest.mark.parametrize("override", [False, True])
def test_a_rule_does_nothing_for_payments_after_its_last_day(override: bool) -> None:
    rule = ConfiguredRule("attack", 'mcc == "7995"', "review", override, until="2024-02-29")
    checked = policy(rules=(rule,))
    last_ms = 1_709_251_199_999
    actions = [
        checked.decide(facts(0.0, (), ScoreRequest(mcc="7995", event_time_ms=time_ms))).action
        for time_ms in (0, last_ms, last_ms + 1)
    ]
    assert actions == ["review", "review", "approve"]
    assert checked.fields == {"mcc", "event_time_ms"}
    assert policy(rules=(dataclasses.replace(rule, until=""),)).fields == {"mcc"}


@pytest.mark.parametrize("day", ["2024-02-30", "soon", "2024-02-29T00:00", "20240229"])
def test_a_rule_with_a_wrong_last_day_is_refused(day: str) -> None:
    with pytest.raises(Misconfigured, match=r'policy.rules "a" until: wanted a day such as 2026-12-31, got '):
        policy(rules=(ConfiguredRule("a", "amount > 5", "review", until=day),))


def test_a_policy_says_which_fields_its_conditions_read() -> None:
    assert policy().fields == frozenset()
    assert not policy().has_conditions
    checked = with_segments(
        ("a", 'channel == "ecom"', 0.0, 0.0),
        rules=(ConfiguredRule("b", "amount > 5 and amount_minor > 5", "review"),),
    )
    assert checked.has_conditions
    assert checked.fields == {"channel", "amount_minor"}


def test_equal_policies_have_one_digest_and_every_change_another() -> None:
    lists = {"new": frozenset({"a", "b"})}
    rule = ConfiguredRule("r", "amount > 5", "review")
    settings = PolicySettings(review_at=0.2, rules=(rule,), lists={"new": ("a", "b")})
    same = PolicySettings(review_at=0.2, rules=(rule,), lists={"new": ("@file",)})
    assert policy_digest(settings, lists) == policy_digest(same, {"new": frozenset(["b", "a"])})
    assert Policy(settings, review_at=0.3, decline_at=0.9, lists=lists).digest == policy_digest(settings, lists)
    others = [
        (dataclasses.replace(settings, review_at=0.3), lists),
        (dataclasses.replace(settings, on_mirror_stale="review"), lists),
        (dataclasses.replace(settings, rules=(dataclasses.replace(rule, when="amount > 6"),)), lists),
        (dataclasses.replace(settings, rules=(dataclasses.replace(rule, until="2026-12-31"),)), lists),
        (dataclasses.replace(settings, rules=()), lists),
        (settings, {"new": frozenset({"a"})}),
        (settings, {"old": frozenset({"a", "b"})}),
    ]
    assert len({policy_digest(*other) for other in [(settings, lists), *others]}) == 8


def test_the_digest_of_a_policy_stays_what_it_was() -> None:
    """Decisions and registries name policies by it. A setting that is added must not change it."""
    assert policy_digest(PolicySettings(), {}) == "cbded723121ac107efe3648c7740abdec9364de3d6315d864099a783e2b03b36"
