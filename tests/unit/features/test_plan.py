"""The plan: its digests change with what they stand for and with nothing else, and it lays tables out well."""

from __future__ import annotations

from dataclasses import replace

import pytest

from features import kernel
from features.catalogue import CATALOGUE
from features.declare import (
    DAY_MS,
    HOUR_MS,
    Catalogue,
    Entity,
    Feature,
    Measure,
    Recency,
    RequestValue,
    ratio,
    request,
)
from features.plan import MEASURES, RECENCIES, RECENCY_REACH_MS, REQUEST_VALUES, Plan, compile_plan

card = Entity("card", key="card_id")
merchant = Entity("merchant", key="merchant_id")
BASE_FEATURES = (
    request.amount("amount"),
    request.hour("hour"),
    card.count("count_1d", "1d"),
    card.amount_mean("mean_7d", "7d"),
    ratio("to_mean", "amount", "mean_7d"),
    merchant.fraud_share("share", "30d", delay="7d"),
)


def plan_of(*features: Feature) -> Plan:
    return compile_plan(Catalogue((card, merchant), features or BASE_FEATURES))


def changed(place: int, feature: Feature) -> Plan:
    return plan_of(*BASE_FEATURES[:place], feature, *BASE_FEATURES[place + 1 :])


def state_digest(plan: Plan, entity: int = 0) -> int:
    return int(plan.words[plan.words[kernel.ENTITIES_AT + entity] + kernel.DIGEST])


def table_count(plan: Plan, entity: int = 0) -> int:
    return int(plan.words[plan.words[kernel.ENTITIES_AT + entity] + kernel.TABLE_COUNT])


def test_the_kernel_and_the_language_number_things_alike() -> None:
    assert MEASURES == (Measure.COUNT, Measure.AMOUNT_SUM, Measure.AMOUNT_MAX, Measure.FRAUD_COUNT)
    assert list(range(len(MEASURES))) == [kernel.COUNT, kernel.AMOUNT_SUM, kernel.AMOUNT_MAX, kernel.FRAUD_COUNT]
    assert len(REQUEST_VALUES) == kernel.REQUEST_VALUE_COUNT
    assert REQUEST_VALUES == (RequestValue.AMOUNT, RequestValue.HOUR, RequestValue.NIGHT, RequestValue.WEEKEND)
    assert RECENCIES == (Recency.SINCE_LAST, Recency.SINCE_FIRST)


def test_the_same_catalogue_has_the_same_digest_and_plan() -> None:
    assert plan_of().digest == plan_of().digest
    assert plan_of().words.tolist() == plan_of().words.tolist()
    assert len(plan_of().digest) == 16


CHANGES = {
    "a window": changed(2, card.count("count_1d", "2d")),
    "a hop": changed(2, card.count("count_1d", "1d", hop="6h")),
    "a delay": changed(5, merchant.fraud_share("share", "30d", delay="8d")),
    "a measure": changed(2, card.amount_sum("count_1d", "1d")),
    "an entity": changed(2, merchant.count("count_1d", "1d")),
    "a name": changed(2, card.count("count_of_a_day", "1d")),
    "a request value": changed(1, request.night("hour")),
    "what is divided": changed(4, ratio("to_mean", "hour", "mean_7d")),
    "what it is divided by": changed(4, ratio("to_mean", "amount", "count_1d")),
    "the order": plan_of(BASE_FEATURES[1], BASE_FEATURES[0], *BASE_FEATURES[2:]),
    "one feature more": plan_of(*BASE_FEATURES, request.night("night")),
    "one feature less": plan_of(*BASE_FEATURES[:-1]),
}


@pytest.mark.parametrize("what", list(CHANGES))
def test_the_digest_changes_with(what: str) -> None:
    assert CHANGES[what].digest != plan_of().digest


def test_no_two_changes_have_the_same_digest() -> None:
    assert len({plan.digest for plan in CHANGES.values()}) == len(CHANGES)


def test_the_digest_tells_a_request_value_from_a_feature_of_its_name() -> None:
    other = card.count("amount", "1d")
    assert plan_of(other, request.amount("x")).digest != plan_of(other, Feature("x", "", "", "amount")).digest


def test_words_for_people_do_not_change_the_digest() -> None:
    assert changed(1, replace(BASE_FEATURES[1], meaning="o'clock", unit="h")).digest == plan_of().digest


@pytest.mark.parametrize(
    "what",
    ["a name", "a request value", "what is divided", "what it is divided by", "the order", "one feature more"],
)
def test_the_state_digest_stays_while_tables_stay(what: str) -> None:
    # Stored profiles go on being used: only the vector has changed.
    assert state_digest(CHANGES[what]) == state_digest(plan_of())


@pytest.mark.parametrize("what", ["a window", "a hop", "a measure", "an entity"])
def test_the_state_digest_changes_with_the_tables(what: str) -> None:
    assert state_digest(CHANGES[what]) != state_digest(plan_of())


def test_the_state_digest_is_of_one_entity() -> None:
    assert state_digest(CHANGES["a delay"], entity=0) == state_digest(plan_of(), entity=0)
    assert state_digest(CHANGES["a delay"], entity=1) != state_digest(plan_of(), entity=1)


def test_a_window_inside_a_table_that_is_there_leaves_the_state_digest() -> None:
    more = plan_of(*BASE_FEATURES, card.count("count_5h", "5h"), card.count("count_2d", "2d"))
    assert state_digest(more) == state_digest(plan_of())


def test_windows_of_one_hop_share_a_table() -> None:
    assert table_count(plan_of(card.count("a", "10m"), card.amount_max("b", "1h"), card.amount_mean("c", "30m"))) == 1
    assert table_count(plan_of(card.count("a", "10m"), card.count("b", "1d"))) == 2


def test_two_features_of_one_measure_and_window_share_a_slot() -> None:
    once = plan_of(card.count("a", "1d"))
    assert plan_of(card.count("a", "1d"), card.count("b", "1d")).slot_count == once.slot_count
    # The mean's denominator is the count that is there already; only its sum is new.
    assert plan_of(card.count("a", "1d"), card.amount_mean("b", "1d")).slot_count == once.slot_count + 1


def test_an_entity_without_features_has_no_tables() -> None:
    plan = plan_of(card.count("a", "1d"))
    assert table_count(plan, entity=1) == 0
    assert plan.retention_ms[1] == 0


def test_a_table_reaches_to_the_end_of_its_longest_window() -> None:
    plan = plan_of(card.count("a", "1d"), card.count("b", "5h"), merchant.fraud_share("c", "7d", delay="7d"))
    assert plan.retention_ms == (DAY_MS + HOUR_MS, 14 * DAY_MS + 6 * HOUR_MS)


def test_an_entity_with_a_recency_is_kept_beyond_its_windows() -> None:
    # A store that forgot it with its windows would have it be new where a replay says how long it was away.
    plan = plan_of(card.count("a", "1d"), card.seconds_since_last("b"), merchant.count("c", "1d"))
    assert plan.retention_ms == (RECENCY_REACH_MS, DAY_MS + HOUR_MS)


def test_names_entities_and_keys_are_in_catalogue_order() -> None:
    plan = compile_plan(CATALOGUE)
    assert plan.names == CATALOGUE.names
    assert plan.feature_count == len(CATALOGUE.features)
    assert plan.entity_names == ("card", "merchant", "device")
    assert plan.entity_keys == ("card_id", "merchant_id", "device_id")
