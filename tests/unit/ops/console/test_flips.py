"""For each feature, the nearest value that would change the action is found; no nearer value changes it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paywarden.models.bundle.bundle import MODEL_TEXT, golden_payments
from paywarden.models.bundle.explanations import FEATURE, read_trees
from paywarden.models.policy.policy import ConfiguredRule, Policy, PolicySettings
from paywarden.ops.console.decisions.flips import Cuts, cuts_of, flips
from paywarden.ops.recomputation import decide_again
from tests.worlds.small import small_world

RULE = ConfiguredRule("busy", "card_count_1h >= 3", "review")
bundle = small_world.loaded_bundle


@cache
def vectors() -> NDArray[np.float32]:
    return golden_payments(small_world.trained_bundle())


def names() -> list[str]:
    return bundle().manifest.feature_names


@cache
def policy(review_at: float, has_rule: bool) -> Policy:
    rules = (RULE,) if has_rule else ()
    return Policy(PolicySettings(review_at=review_at, decline_at=0.5, rules=rules), review_at=0.5, decline_at=0.5)


@cache
def cuts(review_at: float, has_rule: bool) -> Cuts:
    trees = read_trees(small_world.trained_bundle() / MODEL_TEXT, len(names()))
    return cuts_of([trees], policy(review_at, has_rule), names())


def decision_about(row: int) -> dict[str, Any]:
    """Returns what a decision about a golden payment keeps."""
    optional = dict.fromkeys(("device_id", "ip", "mcc", "country", "channel", "utc_offset_minutes"))
    request = {"payment_id": "p", "card_id": "c", "merchant_id": "m", "event_time_ms": 1_700_000_000_000}
    money = {"amount_minor": 100, "currency": "EUR"}
    return {**optional, **request, **money, "flags": [], "reasons": [], "vector": vectors()[row].tobytes()}


def with_value(decision: dict[str, Any], name: str, value: float) -> dict[str, Any]:
    vector = np.frombuffer(decision["vector"], dtype="<f4").copy()
    vector[names().index(name)] = value
    return decision | {"vector": vector.tobytes()}


@settings(max_examples=25, deadline=None)
@given(
    row=st.deferred(lambda: st.integers(0, len(vectors()) - 1)),
    review_at=st.sampled_from((0.004, 0.02, 0.1)),
    has_rule=st.booleans(),
)
def test_a_flip_is_the_nearest_value_that_changes_the_action(row: int, review_at: float, has_rule: bool) -> None:
    decision = decision_about(row)
    chosen = policy(review_at, has_rule)

    def action(changed: dict[str, Any]) -> str:
        return decide_again(changed, bundle(), chosen, small_world.rates()).action

    before = action(decision)
    for flip in flips(decision, bundle(), chosen, small_world.rates(), cuts(review_at, has_rule)):
        assert action(with_value(decision, flip.feature, flip.then)) == flip.action != before
        if np.isnan(flip.now):
            continue
        # One float nearer, or one whole number nearer, the action is still the same.
        nearer = float(np.nextafter(np.float32(flip.then), np.float32(flip.now)))
        if flip.now.is_integer() and flip.then.is_integer():
            nearer = flip.then + (1 if flip.then < flip.now else -1)
        assert action(with_value(decision, flip.feature, nearer)) == before


def test_a_rule_is_a_cut_as_well() -> None:
    row = int(np.argmin(bundle().score(vectors())))
    decision = with_value(decision_about(row), "card_count_1h", 2.0)
    found = flips(decision, bundle(), policy(0.49, True), small_world.rates(), cuts(0.49, True), count=50)
    assert ("card_count_1h", 3.0, "review") in [(flip.feature, flip.then, flip.action) for flip in found]


def test_without_a_way_to_another_action_there_is_none() -> None:
    rule = ConfiguredRule("all", "amount_minor >= 0", "decline", override=True)
    always = Policy(PolicySettings(rules=(rule,)), review_at=0.5, decline_at=0.5)
    trees = read_trees(small_world.trained_bundle() / MODEL_TEXT, len(names()))
    made = cuts_of([trees], always, names())
    assert flips(decision_about(0), bundle(), always, small_world.rates(), made) == []


@pytest.mark.parametrize(
    ("edge", "value"), [(np.inf, 3.0), (-np.inf, 3.0), (1e300, 2.5), (np.inf, np.nan), (1.0, np.inf)]
)
def test_a_split_beyond_all_numbers_is_no_cut(edge: float, value: float) -> None:
    """LightGBM writes `inf` for a split of missing values from all others: the page of each decision answered 500."""
    trees = read_trees(small_world.trained_bundle() / MODEL_TEXT, len(names()))
    feature = int(trees.nodes[0, FEATURE])
    trees.thresholds[trees.nodes[:, FEATURE] == feature] = edge
    chosen = policy(0.02, False)
    made = cuts_of([trees], chosen, names())
    assert all(np.isfinite(np.float32(each)).all() for each in made.of_feature)
    decision = with_value(decision_about(0), names()[feature], value)
    for flip in flips(decision, bundle(), chosen, small_world.rates(), made, count=50):
        assert np.isfinite(flip.then)


@pytest.mark.parametrize("row", [0, 7])
def test_steps_come_in_order_and_each_feature_once(row: int) -> None:
    found = flips(decision_about(row), bundle(), policy(0.02, False), small_world.rates(), cuts(0.02, False))
    assert [flip.steps for flip in found] == sorted(flip.steps for flip in found)
    assert len({flip.feature for flip in found}) == len(found)
