"""No feature's range grows with the age of the data: the same last weeks give the same vectors after years.

A week of payments repeats for 65 weeks, which is longer than any window with its delay, or for 260 weeks. Between
their ends are whole hops of every window, so that both last weeks begin at the same place of a tile. One card pays in
the first week and in the last one alone. The vectors of the last week must be the same, but for counters without
end.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paywarden.features.catalogue.entity import Catalogue, grows_with_age
from paywarden.features.catalogue.expressions import Feature, Neighbours, stored_values
from paywarden.features.catalogue.windows import DAY_MS
from paywarden.features.profiles.engine import FeatureEngine
from tests.parity.features_worlds import (
    DECLARED,
    FIELDS,
    OWN,
    Heard,
    Payment,
    change_of,
    declared_row,
    every_word,
    own_fields_words,
    payment_of,
    payments_in,
)
from tests.parity.test_own_fields_against_naive import keys_of
from tests.unit.features.kernel.profiles import events_of

WEEK_MS, WEEKS, TIMES = 7 * DAY_MS, 65, 4
LANGUAGES = (every_word, own_fields_words)
WEEKS_OF_PAYMENTS = st.lists(
    st.tuples(payments_in(WEEK_MS - 1, st.builds(lambda one, own: {**one, **own}, FIELDS, OWN)), st.booleans()),
    min_size=1,
    max_size=6,
)


@cache
def read(written: Callable[[Any], Any], seconds_most: str) -> tuple[Catalogue, FeatureEngine]:
    """Returns a catalogue with a bound of seconds, and its engine."""
    language = types.SimpleNamespace(**vars(DECLARED))
    language.Catalogue = partial(Catalogue, seconds_most=seconds_most)
    catalogue: Catalogue = written(language)
    return catalogue, FeatureEngine(catalogue)


def has_no_end(feature: Feature) -> bool:
    """Returns whether a feature counts from the beginning of the data."""
    if isinstance(feature.value, Neighbours):
        return False
    return any(stored.window.is_ever for stored in stored_values(feature.value) if hasattr(stored, "window"))


def moved(payment: Payment, weeks: int) -> Payment:
    """Returns the payment some weeks later. The moments that it names stay."""
    return replace(payment, time_ms=payment.time_ms + weeks * WEEK_MS)


def last_week(engine: FeatureEngine, week: Sequence[tuple[Payment, bool]], weeks: int) -> NDArray[np.float32]:
    """Returns the vectors of the last week: payments, and the card that pays in the first week and the last alone."""
    rare = payment_of(week[0][0].time_ms, card_id="rare", opened=week[0][0].fields["opened"])
    heard: list[Heard] = []
    for number in range(weeks):
        often = [(moved(payment, number), is_fraud) for payment, is_fraud in week]
        if number in (0, weeks - 1):
            often.append((moved(rare, number), False))
        often.sort(key=lambda one: one[0].time_ms)
        heard += [Heard(payment) for payment, _ in often]
        if number < weeks - 1:
            heard += [Heard(payment, 1) for payment, is_fraud in often if is_fraud]
    changes = [change_of(event, declared=declared_row(engine.plan.fields)) for event in heard]
    rows = np.array([change.row for change in changes], dtype=np.int64)
    first = len(heard) - len(week) - 1
    slots = engine.new_slots(len(heard) - first)
    keys = [keys_of(engine, event.payment) for event in heard]
    for number, entity in enumerate(engine.plan.entity_names):
        own: dict[bytes, list[int]] = {}
        for place, of_event in enumerate(keys):
            if (key := of_event.get(entity)) is not None:
                own.setdefault(key, []).append(place)
        places = np.array([place for group in own.values() for place in group], dtype=np.int64)
        events = events_of([[changes[place] for place in group] for group in own.values()])
        events = events._replace(payment=places, row=np.maximum(places - first, -1))
        engine.apply(number, events, rows, [None] * len(own), slots)
    return engine.vectors_of_slots(np.ascontiguousarray(rows[first:]), slots)


@pytest.mark.parametrize("written", LANGUAGES)
@settings(max_examples=8)
@given(week=WEEKS_OF_PAYMENTS)
def test_no_word_gives_more_when_the_data_is_four_times_as_old(
    written: Callable[[Any], Any], week: list[tuple[Payment, bool]]
) -> None:
    catalogue, engine = read(written, "2d")
    assert not [feature.name for feature in catalogue.features if grows_with_age(feature)]
    young, old = (last_week(engine, week, weeks) for weeks in (WEEKS, TIMES * WEEKS))
    # Deviations of ages are differences of large numbers.
    for place, feature in enumerate(catalogue.features):
        if not has_no_end(feature):
            np.testing.assert_allclose(old[:, place], young[:, place], rtol=1e-4, err_msg=feature.name)


@pytest.mark.parametrize("written", LANGUAGES)
def test_what_grows_without_a_bound_is_known_to_grow(written: Callable[[Any], Any]) -> None:
    catalogue, engine = read(written, "")
    shop = {"shop_latitude": 1.0, "shop_longitude": 2.0}
    own: dict[str, Any] = {
        "product": "book",
        "billed_to": "Ann",
        "device_id": "d1",
        "basket_kg": 2.5,
        "tip": 10,
        **shop,
    }
    week = [
        (payment_of(1_530_403_200_000 + day * DAY_MS, opened=1_530_000_000_000, **own), day == 1) for day in range(3)
    ]
    young, old = (last_week(engine, week, weeks) for weeks in (WEEKS, TIMES * WEEKS))
    grown = {name for place, name in enumerate(catalogue.names) if (old[:, place] > 2 * young[:, place]).any()}
    said = {feature.name for feature in catalogue.features if grows_with_age(feature) or has_no_end(feature)}
    assert grown <= said
    wanted = {"since_last", "since_first", "before_1_seconds"}
    if written is own_fields_words:
        wanted = {"account_age", "age_mean_30d", "age_max_7d", "age_before", "before_1_seconds", "before_1_opened"}
    assert wanted <= grown
