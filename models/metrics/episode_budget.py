"""The alarm that a budget of false alarms gives: `episode` features measured on a history.

1. Every payment gets its values, as a replay gives them.
2. For each alarm of a grid, episodes are cut. One is false if its entity had no known fraud from the window's begin to
   the episode's end. Episodes of all features count together: the budget is one for all of them.
3. False episodes become rarer with each nat of alarm. A history is shorter than the budget asks for, so the count at an
   alarm is bounded from above, and continued with a slope of _SLOPE a nat. Made worlds fall faster. The suggestion is
   the smallest alarm that keeps the budget in this way, from the last alarm on that has _SEEN_MIN false episodes.

    alarm    false episodes of 5,000 merchant-months    bound    budget 0.5 is kept from
    8        50                                         67       not asked: 10 has enough, too
    10       8                                          17       10 + ln(17 / 0.5) / 0.5 = 17.0
    16       0                                          3        16 + ln(3 / 0.5) / 0.5 = 19.6
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.catalogue.entity_words.episodes import alarm_of, is_episode
from paywarden.features.catalogue.expressions import Feature, WindowedMeasure, stored_values
from paywarden.features.history.entity_columns import entity_column
from paywarden.features.history.history import History, final_labels
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RateTable
from paywarden.models.metrics.episodes import Episodes, are_without, entity_times, episodes_of
from paywarden.models.metrics.evaluation import DAY_MS
from paywarden.schemas.errors import Misconfigured

MERCHANTS, MONTH_DAYS = 10_000, 30
"""The budget is one false alarm in this many days of this many merchants."""
_GRID = tuple(range(4, 61))
_SLOPE = 0.5
# From this many on, false episodes are counted and not guessed.
_SEEN_MIN = 5


@dataclass(frozen=True)
class MeasuredFeature:
    """The episodes of a feature with the alarm that it declares. `with_fraud`: those with a known fraud."""

    name: str
    alarm: float
    episodes: int
    with_fraud: int
    payments: int


@dataclass(frozen=True)
class EpisodeBudget:
    """What a history says about the `episode` features of a catalogue.

    `false_a_month`: false episodes of all features with the declared alarms, in a month of MERCHANTS merchants.
    `alarm`: the one that keeps a false alarm a month.
    """

    merchant_months: float
    features: tuple[MeasuredFeature, ...]
    false_a_month: float
    alarm: float


@dataclass(frozen=True)
class _Evidence:
    """The payments for which a feature has enough evidence for any alarm: entity, time and nats, all (payments,).

    `known`: the `entity_times` of the known frauds.
    """

    name: str
    alarm: float
    reach_ms: int
    entity: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    nats: NDArray[np.float32]
    known: NDArray[np.int64]

    def found(self, alarm: float) -> tuple[Episodes, NDArray[np.bool_]]:
        """Returns the episodes with an alarm, and which of them are false."""
        nothing = np.zeros(len(self.entity), dtype=np.int64)
        value = self.nats / np.float32(alarm)
        found = episodes_of(self.entity, self.time_ms, value, nothing.astype(np.bool_), nothing)
        return found, are_without(self.known, found.entity, found.begin_ms - self.reach_ms, found.end_ms)


def measure_budget(history: History, catalogue: Catalogue, engine: FeatureEngine, rates: RateTable) -> EpisodeBudget:
    """Measure the `episode` features of a catalogue on a history. Raises Misconfigured if it declares none."""
    places = [place for place, feature in enumerate(catalogue.features) if is_episode(feature)]
    if not places:
        raise Misconfigured("the catalogue declares no `episode` feature")
    chunks = PointInTimeReplay(history, engine, rates).chunks()
    values = np.concatenate([np.ascontiguousarray(chunk.vectors[:, places]) for chunk in chunks])
    keys = {entity.name: entity.keys for entity in catalogue.entities}
    frauds = np.flatnonzero(final_labels(history) == 1)
    evidence = []
    for number, place in enumerate(places):
        feature = catalogue.features[place]
        codes = entity_column(history, feature.entity, keys[feature.entity], key=engine.plan.key).codes
        evidence.append(_evidence(history, feature, codes.astype(np.int64), values[:, number], frauds))
    days = (int(history.event_time_ms[-1]) - int(history.event_time_ms[0])) / DAY_MS
    months = len(np.unique(history.merchant.codes)) * max(days, 1.0) / MONTH_DAYS
    measured, false_now = [], 0
    for one in evidence:
        found, is_false = one.found(one.alarm)
        false_now += int(is_false.sum())
        size, with_fraud = int(found.payments.sum()), int((~is_false).sum())
        measured.append(MeasuredFeature(one.name, one.alarm, len(found), with_fraud, size))
    counts = [sum(int(one.found(alarm)[1].sum()) for one in evidence) for alarm in _GRID]
    return EpisodeBudget(
        merchant_months=months,
        features=tuple(measured),
        false_a_month=false_now * MERCHANTS / months,
        alarm=suggested_alarm(counts, months / MERCHANTS),
    )


def suggested_alarm(false_episodes: Sequence[int], budget: float) -> float:
    """Returns the smallest alarm that keeps the budget of a history, from its false episodes at each of the grid."""
    # A tail may be heavier than the slope says, as far as there are episodes that show it.
    seen = max((place for place, count in enumerate(false_episodes) if count >= _SEEN_MIN), default=0)
    kept = []
    for alarm, count in list(zip(_GRID, false_episodes, strict=True))[seen:]:
        bound = count + 2 * math.sqrt(count) + 3
        kept.append(alarm + max(0.0, math.log(bound / budget) / _SLOPE))
    return math.ceil(2 * min(kept)) / 2


def _evidence(
    history: History,
    feature: Feature,
    entity: NDArray[np.int64],
    value: NDArray[np.float32],
    frauds: NDArray[np.int64],
) -> _Evidence:
    alarm, time_ms = alarm_of(feature), history.event_time_ms
    nats = value * np.float32(alarm)
    rows = np.flatnonzero((entity >= 0) & (nats >= min(alarm, _GRID[0])))
    of_entity = frauds[entity[frauds] >= 0]
    known = entity_times(entity[of_entity], time_ms[of_entity])
    return _Evidence(feature.name, alarm, _reach_ms(feature), entity[rows], time_ms[rows], nats[rows], known)


def _reach_ms(feature: Feature) -> int:
    """Returns how long the feature's window is."""
    return min(one.window.length_ms for one in stored_values(feature.value) if isinstance(one, WindowedMeasure))
