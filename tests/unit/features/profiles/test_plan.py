"""The plan: its digests change with what they stand for and with nothing else, and it lays tables out well."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from paywarden.features import kernel
from paywarden.features.catalogue import attributes
from paywarden.features.catalogue.attributes import channel, country, declined, mcc, merchant_id
from paywarden.features.catalogue.entity import Catalogue, Entity, ratio, request
from paywarden.features.catalogue.expressions import Feature, Measure, Operation, Recency, Recollection, Reduction
from paywarden.features.catalogue.windows import DAY_MS, HOUR_MS
from paywarden.features.kernel import layout
from paywarden.features.kernel.plan_schema import entity_section
from paywarden.features.profiles.plan import OPERATIONS, RECENCY_REACH_MS, Plan, compile_plan
from paywarden.features.profiles.plan_parts import RECENCIES
from paywarden.features.profiles.plan_writer import RECOLLECTIONS, REDUCTIONS
from paywarden.features.profiles.shape import MEASURES
from tests.parity.features_worlds import DECLARED, every_word

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
    return entity_section(plan.words, entity).digest


@pytest.mark.parametrize("kind", [Measure, Reduction, Recollection, Operation])
def test_the_kernel_and_the_language_number_things_alike(
    kind: type[Measure] | type[Reduction] | type[Recollection] | type[Operation],
) -> None:
    numbered = {Measure: MEASURES, Reduction: REDUCTIONS, Recollection: RECOLLECTIONS, Operation: OPERATIONS}[kind]
    assert numbered == tuple(kind)
    assert [getattr(layout, item.name) for item in kind] == list(range(len(kind)))


def test_recencies_stand_in_the_order_in_which_the_kernel_fills_them() -> None:
    assert RECENCIES == (Recency.SINCE_LAST, Recency.SINCE_FIRST)


def test_the_kernel_and_the_attributes_number_columns_alike() -> None:
    columns = {"event_time_ms": kernel.TIME_MS, "amount": kernel.AMOUNT, "amount_minor": kernel.AMOUNT_MINOR}
    columns |= {"utc_offset_minutes": kernel.UTC_OFFSET, "country": kernel.COUNTRY, "declined": kernel.DECLINED}
    by_name = {attribute.name: attribute.column for attribute in attributes.ATTRIBUTES}
    assert {name: by_name[name] for name in columns} == columns
    assert len(attributes.ATTRIBUTES) == kernel.CODE_COUNT
    assert len(attributes.KEYED) == kernel.ATTRIBUTE_COUNT - kernel.CODE_COUNT


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
    "a condition": changed(2, card.count("count_1d", "1d", where=declined)),
    "this payment": changed(2, card.count("count_1d", "1d", including_this=True)),
    "a half-life": changed(2, card.count_decayed("count_1d", "1h", "1d")),
    "a sketch": changed(2, card.distinct("count_1d", merchant_id, "1d")),
    "the size of a sketch": changed(2, card.distinct("count_1d", merchant_id, "1d", bits=128)),
    "what a sketch counts": changed(2, card.distinct("count_1d", mcc, "1d")),
    "a memory": changed(2, card.is_new("count_1d", merchant_id)),
    "the size of a memory": changed(2, card.is_new("count_1d", merchant_id, among=3)),
    "the latest payments": changed(2, replace(card.last("x", 2)[0], name="count_1d")),
    "how many latest payments": changed(2, replace(card.last("x", 3)[0], name="count_1d")),
    "which of the latest payments": changed(2, replace(card.last("x", 2)[1], name="count_1d")),
    "what is kept of the latest payments": changed(2, replace(card.last("x", 2, of=(mcc,))[0], name="count_1d")),
    "two fields that are compared": changed(1, request.equal("hour", attributes.ip, attributes.device_id)),
    "a prior": changed(5, merchant.fraud_share_smoothed("share", "30d", delay="7d", prior=0.1, prior_weight=5)),
    "another prior": changed(5, merchant.fraud_share_smoothed("share", "30d", delay="7d", prior=0.2, prior_weight=5)),
    "a limit": changed(1, request.below_limit("hour", (5, 6))),
    "another limit": changed(1, request.below_limit("hour", (5, 7))),
    "what holds": changed(1, request.holds("hour", declined)),
    "what holds with another value": changed(1, request.holds("hour", channel == "ecom")),
    "categories": changed(1, request.category("hour", channel, ("ecom", "pos"))),
    "other categories": changed(1, request.category("hour", channel, ("ecom", "atm"))),
    "the order of categories": changed(1, request.category("hour", channel, ("pos", "ecom"))),
    "what has categories": changed(1, request.category("hour", mcc, ("5411", "5812"))),
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
    named = Feature("x", "amount", "", "", "")
    assert plan_of(other, request.amount("x")).digest != plan_of(other, named).digest


def test_an_operation_is_not_taken_for_a_feature_of_its_name() -> None:
    hour = request.hour("hour")
    spoken = Feature("x", hour.value, "", "", "")
    assert plan_of(hour, spoken).digest != plan_of(hour, Feature("x", "hour", "", "", "")).digest


def test_meanings_and_units_do_not_change_the_digest() -> None:
    assert changed(1, replace(BASE_FEATURES[1], meaning="o'clock", unit="h")).digest == plan_of().digest


@pytest.mark.parametrize(
    "what",
    [
        *("a name", "a request value", "what is divided", "what it is divided by", "the order", "one feature more"),
        *("this payment", "a half-life", "a limit", "what holds", "categories"),
    ],
)
def test_the_state_digest_stays_while_tables_stay(what: str) -> None:
    # Stored profiles go on being used: only the vector has changed.
    assert state_digest(CHANGES[what]) == state_digest(plan_of())


@pytest.mark.parametrize(
    "what",
    [
        *("a window", "a hop", "a measure", "an entity", "a condition", "a sketch", "the size of a sketch"),
        *("what a sketch counts", "a memory", "the size of a memory"),
    ],
)
def test_the_state_digest_changes_with_the_tables(what: str) -> None:
    assert state_digest(CHANGES[what]) != state_digest(plan_of())


def test_the_state_digest_is_of_one_entity() -> None:
    assert state_digest(CHANGES["a delay"], entity=0) == state_digest(plan_of(), entity=0)
    assert state_digest(CHANGES["a delay"], entity=1) != state_digest(plan_of(), entity=1)


def test_a_window_inside_a_table_that_is_there_leaves_the_state_digest() -> None:
    more = plan_of(*BASE_FEATURES, card.count("count_5h", "5h"), card.count("count_6d", "6d"))
    assert state_digest(more) == state_digest(plan_of())


def test_a_table_reaches_to_the_end_of_its_longest_window() -> None:
    plan = plan_of(card.count("a", "1d"), card.count("b", "5h"), merchant.fraud_share("c", "7d", delay="7d"))
    assert plan.retention_ms == (DAY_MS + HOUR_MS, 14 * DAY_MS + 6 * HOUR_MS)
    assert plan.capacities == ((25,), (57, 57))


def test_an_entity_with_a_recency_is_kept_beyond_its_windows() -> None:
    # A store that forgot it with its windows would have it be new where a replay says how long it was away.
    plan = plan_of(card.count("a", "1d"), card.seconds_since_last("b"), merchant.count("c", "1d"))
    assert plan.retention_ms == (RECENCY_REACH_MS, DAY_MS + HOUR_MS)


def test_an_entity_with_a_memory_is_kept_beyond_its_windows() -> None:
    plan = plan_of(card.is_new("a", country), merchant.count("b", "1d"))
    assert plan.retention_ms == (RECENCY_REACH_MS, DAY_MS + HOUR_MS)
    assert plan.ttl_s(0) == RECENCY_REACH_MS // 1000 + 86_400


def test_a_window_longer_than_recency_reaches_decides() -> None:
    longest = card.count("a", "90d", delay="90d")
    assert plan_of(longest, card.seconds_since_last("b")).retention_ms[0] == RECENCY_REACH_MS
    assert plan_of(longest).retention_ms[0] == 181 * DAY_MS


# The attributes of a payment that features use. A scorer reads and codes only these.


def asked(*features: Feature) -> set[str]:
    return {attributes.ATTRIBUTES[column].name for column in plan_of(*features).attribute_columns} - {"event_time_ms"}


ASKED = {
    "a condition": (card.count("x", "1d", where=channel == "ecom"), {"channel"}),
    "a condition of a share": (card.share("x", "1d", of=declined), {"declined"}),
    "a condition of labels": (card.fraud_count("x", "1d", delay="1d", where=declined), {"declined"}),
    "a condition on the amount": (card.count("x", "1d", where=attributes.amount_minor < 5), {"amount_minor"}),
    "conditions joined": (
        card.count("x", "1d", where=(channel == "ecom") & ~(declined | (attributes.hour < 6))),
        {"channel", "declined", "utc_offset_minutes"},
    ),
    "what holds of joined conditions": (request.holds("x", (mcc == "5411") | declined), {"mcc", "declined"}),
    "what holds": (request.holds("x", mcc == "5411"), {"mcc"}),
    "a category": (request.category("x", mcc, ("5411",)), {"mcc"}),
    "a sketch": (card.distinct("x", mcc, "1d"), {"mcc"}),
    "buckets": (card.entropy("x", mcc, "1d"), {"mcc"}),
    "a memory": (card.is_new("x", country), {"country"}),
    "the latest payments": (card.last("x", 1, of=(mcc, attributes.amount))[0], {"mcc", "amount"}),
    "two fields": (request.equal("x", attributes.ip, attributes.device_id), {"ip", "device_id"}),
    "a journey": (card.travel_kmh("x"), {"country"}),
    "the last amount": (card.last_amount("x"), {"amount"}),
    "the amount": (request.amount("x"), {"amount"}),
    "the amount in a mean": (card.amount_mean("x", "1d", including_this=True), {"amount"}),
    "the hour": (request.hour("x"), {"utc_offset_minutes"}),
    "the night": (request.night("x"), {"utc_offset_minutes"}),
    "the day": (request.weekday("x"), {"utc_offset_minutes"}),
    "the weekend": (request.weekend("x"), {"utc_offset_minutes"}),
    "a streak": (merchant.fraud_streak("x", "7d", delay="1d"), set()),
    "a streak's amounts": (merchant.fraud_streak_amount_mean("x", "7d", delay="1d"), set()),
}


@pytest.mark.parametrize("what", list(ASKED))
def test_a_plan_says_which_attributes_its_features_ask_for(what: str) -> None:
    feature, wanted = ASKED[what]
    assert asked(feature) == wanted


def test_every_attribute_that_can_change_a_vector_is_among_those_asked_for() -> None:
    # Those that identify entities are read by their own name; times and amounts are always there.
    plan = compile_plan(every_word(DECLARED))
    names = {attributes.ATTRIBUTES[column].name for column in plan.attribute_columns}
    wanted = {"currency", "utc_offset_minutes", "declined", "mcc", "country", "channel", "merchant_id", "card_id"}
    assert wanted <= names


# The layout.


def test_measures_of_labels_stand_in_a_table_of_their_own() -> None:
    plan = plan_of(merchant.fraud_share("a", "7d", delay="7d"), merchant.amount_max("b", "1d", hop="6h"))
    tables = plan.shapes[1].tables
    assert [(table.hop_ms, table.is_label) for table in tables] == [(6 * HOUR_MS, False), (6 * HOUR_MS, True)]
    assert [len(table.columns) for table in tables] == [2, 1]


def test_tables_stand_by_ascending_hop() -> None:
    plan = plan_of(card.count("a", "30d"), card.count("b", "10m"), card.count("c", "1d"))
    assert [table.hop_ms for table in plan.shapes[0].tables] == [60_000, HOUR_MS, DAY_MS]


def test_the_order_of_features_leaves_the_shape() -> None:
    features = every_word(DECLARED).features
    entities = every_word(DECLARED).entities
    # Features made of others need these before them.
    made = ("ratio", "difference", "product")
    simple = [one for one in features if one.unit not in made and one.name != "fraud_share_learnt"]
    there, back = (compile_plan(Catalogue(entities, tuple(order))) for order in (simple, simple[::-1]))
    assert there.shapes == back.shapes
    assert there.capacities == back.capacities
    assert there.digest != back.digest


def test_a_profiles_working_form_has_room_for_what_it_may_hold() -> None:
    plan = compile_plan(every_word(DECLARED))
    for entity in range(plan.entity_count):
        shape, capacities = plan.shapes[entity], plan.capacities[entity]
        rows = sum(table.width * capacity for table, capacity in zip(shape.tables, capacities, strict=True))
        remembered = sum(2 * capacity for _, capacity in shape.memories)
        assert plan.number_count_max(entity) >= rows + remembered + 2 * kernel.SOURCES_MAX
        # And behind that for the largest of its columns, once more.
        largest = max([*capacities, *(capacity for _, capacity in shape.memories)])
        assert plan.word_count(entity) >= rows + remembered + 2 * kernel.SOURCES_MAX + largest
    assert plan.words.dtype == np.int64
