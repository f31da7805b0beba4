"""Answers questions to a memory: the last value, whether a value is new, the speed of travel between two countries.

For example, a card's memory of countries holds DE (seen at 14:00) and FR (seen at 9:00). A payment at 15:00 is in SE:

    LAST_VALUE   DE          SINCE_SAME   missing: SE is not in the memory
    IS_NEW       1           TRAVEL_KMH   the distance between the middles of DE and SE, in km, divided by 1 hour
"""

from __future__ import annotations

import math

import numpy as np

from paywarden.features.kernel.distance import great_circle_km
from paywarden.features.kernel.layout import (
    AMOUNT_MINOR,
    COUNTRY_CODES,
    F64,
    HOUR_MS,
    I64,
    IS_NEW,
    JOURNEY_MS_MIN,
    LAST_VALUE,
    SINCE_SAME,
    TIME_MS,
)
from paywarden.features.kernel.plan_schema import HEAD, MEMORY, RECOLLECTION, RECOLLECTION_SIZE
from paywarden.features.kernel.toolkit.jit import compiled, inlined


@inlined
def recollect(plan: I64, where: int, words: I64, items: int, attributes: I64, slots: F64) -> None:
    """Answer the questions to a memory about a payment. Only values seen by the time of the payment count."""
    as_of_ms = attributes[TIME_MS]
    value = attributes[plan[where + MEMORY.identity]]
    is_there = value > 0 or (value == 0 and plan[where + MEMORY.attribute] <= AMOUNT_MINOR)
    values = words[plan[where + MEMORY.values_at] :]
    times_ms = values[plan[where + MEMORY.capacity] :]
    newest = 0
    while newest < items and times_ms[newest] > as_of_ms:
        newest += 1
    same = newest
    while same < items and values[same] != value:
        same += 1
    for number in range(plan[where + MEMORY.recollection_count]):
        at = plan[where + MEMORY.recollections_at] + number * RECOLLECTION_SIZE
        kind = plan[at + RECOLLECTION.kind]
        result = np.nan
        if kind == LAST_VALUE:
            if newest < items:
                result = values[newest]
        elif kind == IS_NEW:
            if is_there:
                result = 1.0 if same == items else 0.0
        elif kind == SINCE_SAME:
            if is_there and same < items:
                result = (as_of_ms - times_ms[same]) / 1000.0
        elif is_there and newest < items:
            if values[newest] == value:
                result = 0.0
            else:
                hours = max(as_of_ms - times_ms[newest], JOURNEY_MS_MIN) / HOUR_MS
                result = _distance_km(plan, values[newest], value) / hours
        slots[plan[at + RECOLLECTION.slot]] = result


@compiled()
def _distance_km(plan: I64, origin: int, destination: int) -> float:
    """Returns the great-circle distance of two countries' middles (haversine formula); NaN for an unknown country."""
    if not 0 < origin <= COUNTRY_CODES or not 0 < destination <= COUNTRY_CODES:
        return np.nan
    at, to = plan[HEAD.places_at] + 2 * origin, plan[HEAD.places_at] + 2 * destination
    # Latitudes and longitudes are in tenths of a degree, plus 10,000. 0 means that there is no such country.
    if plan[at] == 0 or plan[to] == 0:
        return np.nan
    unit = math.pi / 1800.0
    latitude, longitude = (plan[at] - 10_000) * unit, (plan[at + 1] - 10_000) * unit
    other_latitude, other_longitude = (plan[to] - 10_000) * unit, (plan[to + 1] - 10_000) * unit
    return float(great_circle_km(latitude, longitude, other_latitude, other_longitude))
