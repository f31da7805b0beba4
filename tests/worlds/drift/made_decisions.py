"""Make decisions of worlds that change slowly, suddenly or with the season, as counts by the hour.

A world has three channels and some countries and merchant categories, four features and a score. Its shares and values
follow the day and the hour: `weights` says how. Every draw comes from the seed, the hour and nothing else.

    world = MadeWorld(seed=1)
    world.channel = lambda day: {"web": 0.74 - 0.01 * day, "app": 0.26 + 0.01 * day}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from paywarden.models.drift.binning import DIMENSIONS, Binning
from paywarden.models.drift.counts import Counts, DecisionRows, count_rows
from paywarden.models.drift.detectors import DAY_MS, HOUR_MS, DetectorSettings
from paywarden.models.drift.reference import Reference
from paywarden.models.drift.reference_builder import PastDecisions, make_reference
from paywarden.models.drift.table_segments import TableSegments
from paywarden.models.drift.training_distance import DayRows, Subjects
from paywarden.streams.alerts.alerts import Alert, AlertSettings
from paywarden.streams.drift.backtest import VirtualDetection

VERSION = "m1"
FEATURES = ("amount", "velocity", "age", "risk", "kind")
KINDS = ("gift", "goods", "travel", "fuel")
TRAINING_DAYS, FIRST_DAY = 28, 19_726
"""Training begins on a Monday."""
THRESHOLDS = (0.5, 0.8)
Shares = Mapping[str, float]


def nothing(_: float) -> float:
    """An addition that is always 0."""
    return 0.0


def ramp(at: float, first: float, last: float, days: float) -> float:
    """Returns a number that goes from `first` to `last` in as many days, from day 0 on."""
    return first + (last - first) * min(max(at / days, 0.0), 1.0)


def steady(**shares: float) -> Callable[[float], Shares]:
    """Shares that never change."""
    return lambda _: shares


@dataclass
class MadeWorld:
    """A world. Functions take the day since the first live day, as a fraction; training days are negative."""

    seed: int = 1
    payments_a_day: int = 12_000
    channel: Callable[[float], Shares] = field(default_factory=lambda: steady(web=0.74, pos=0.2, app=0.06))
    country: Callable[[float], Shares] = field(default_factory=lambda: steady(DE=0.5, FR=0.3, ES=0.15, IT=0.05))
    mcc: Callable[[float], Shares] = field(default_factory=lambda: _mcc)
    growth: Callable[[float], float] = field(default_factory=lambda: lambda _: 1.0)
    """The payments of a day relative to `payments_a_day`."""
    score_added: Callable[[float], float] = nothing
    """Added to the score's log odds."""
    velocity_added: Callable[[float], float] = nothing
    kind: Callable[[float], Shares] = field(default_factory=lambda: steady(gift=0.74, goods=0.2, travel=0.06))
    """A declared category that the model uses: its feature is the value's place among KINDS, or behind the last."""
    amount_by_channel: Shares = field(default_factory=lambda: {"app": 0.4, "pos": -0.3})
    weekend: float = 0.25
    """How many payments fewer at weekends, and how much higher amounts are then."""
    batch: int = 0
    """Every fifth day sends this many payments more in one hour, all with the second channel."""

    def rows(self, day: int, hour: int) -> DecisionRows:
        """Returns the decisions of an hour. `day` counts from the first live day."""
        return self._drawn(day, np.array([hour]), np.random.default_rng([self.seed, day + 1000, hour]))

    def day(self, binning: Binning, day: int) -> Counts:
        """Returns the counts of a whole day, in which shares are those of noon."""
        return count_rows(binning, self._drawn(day, np.arange(24), np.random.default_rng([self.seed, day + 1000, 24])))

    def _drawn(self, day: int, hours: NDArray[np.int64], rng: np.random.Generator) -> DecisionRows:
        at = day + float(hours.mean()) / 24
        is_weekend = (FIRST_DAY + TRAINING_DAYS + day) % 7 in (2, 3)
        of_day = 1 + 0.8 * np.sin((hours - 9) / 24 * 2 * np.pi)
        mean = self.payments_a_day / 24 * self.growth(at) * (1 - self.weekend * is_weekend)
        by_hour = rng.poisson(mean * of_day)
        count, of_day = int(by_hour.sum()), np.repeat(of_day, by_hour)
        channel = _drawn(rng, self.channel(at), count)
        if self.batch and day % 5 == 0 and 3 in hours:
            channel = np.append(channel, [list(self.channel(at))[1]] * self.batch)
            count, of_day = count + self.batch, np.append(of_day, np.ones(self.batch))
        country = _drawn(rng, self.country(at), count)
        mcc = _drawn(rng, self.mcc(at), count)
        added = np.zeros(count)
        for name, more in self.amount_by_channel.items():
            added[channel == name] = more
        amount = rng.normal(3 + self.weekend * is_weekend + added, 1.0)
        velocity = rng.poisson(1.5 + 0.5 * of_day + max(self.velocity_added(at), 0.0)).astype(float)
        age = np.where(rng.random(count) < 0.03, np.nan, rng.exponential(30, count))
        risk = rng.normal(0, 1, count)
        kinds = _drawn(rng, self.kind(at), count).tolist()
        kind = np.array([KINDS.index(name) if name in KINDS else len(KINDS) for name in kinds])
        odds = -4 + 0.5 * amount + 0.2 * velocity + risk + self.score_added(at)
        score = 1 / (1 + np.exp(-odds))
        return DecisionRows(
            scores=score,
            actions=np.digitize(score, THRESHOLDS),
            vectors=np.stack([amount, velocity, age, risk, kind], axis=1).astype(np.float32),
            flags=[()] * count,
            ages_ms=rng.lognormal(np.log(400), 0.5, count).astype(np.int64),
            values=[column.tolist() for column in (channel, country, mcc)],
        )

    def reference_like(self, other: Reference) -> Reference:
        """Returns the other reference with the counts of this world's training days, and its old baseline.

        It takes a tenth of the time of `reference`, and is enough for the comparison with training.
        """
        subjects = Subjects(other.binning, other.feature_names)
        days = [(ms_of(day), self.day(other.binning, day)) for day in range(-TRAINING_DAYS, 0)]
        total, rows = Counts.empty(other.binning), DayRows(subjects, days)
        for _, counts in rows:
            total.add(counts)
        return replace(other, counts=total, natural=rows.natural())

    def reference(self) -> Reference:
        """Returns the reference of the training days, in which the world is as on negative days."""
        parts = [
            ((FIRST_DAY + TRAINING_DAYS + day) * DAY_MS + hour * HOUR_MS, self.rows(day, hour))
            for day in range(-TRAINING_DAYS, 0)
            for hour in range(24)
        ]
        times = [start + np.arange(len(rows.scores)) * (HOUR_MS // max(len(rows.scores), 1)) for start, rows in parts]
        values = tuple(
            np.array([value for _, rows in parts for value in rows.values[place]], dtype=object)
            for place in range(len(DIMENSIONS))
        )
        found = make_reference(
            PastDecisions(
                np.concatenate([rows.scores for _, rows in parts]),
                np.concatenate([rows.vectors for _, rows in parts]),
                TableSegments(np.concatenate(times), values),
            ),
            model_version=VERSION,
            feature_names=FEATURES,
            thresholds=THRESHOLDS,
        )
        assert found is not None
        return found


SMALL = 2_000
"""Payments a day of a world that is quick to make."""


@cache
def quiet_reference(seed: int = 1) -> Reference:
    """Returns the reference of a small world without a change. It is the same for all that changes only later."""
    if seed == 1:
        return MadeWorld(1, SMALL).reference()
    return MadeWorld(seed, SMALL).reference_like(quiet_reference())


def run(world: MadeWorld, days: int, reference: Reference | None = None) -> VirtualDetection:
    """Returns the detection after these live days, by the hour."""
    known = world.reference() if reference is None else reference
    detection = VirtualDetection({VERSION: known}, detectors=DetectorSettings(), alerts=AlertSettings())
    _, binning = detection.binnings.of(VERSION)
    for day in range(days):
        for hour in range(24):
            start_ms = (FIRST_DAY + TRAINING_DAYS + day) * DAY_MS + hour * HOUR_MS
            detection.take(start_ms, HOUR_MS, {VERSION: count_rows(binning, world.rows(day, hour))})
    return detection


def day_of(time_ms: int) -> float:
    """Returns the live day of a time."""
    return time_ms / DAY_MS - FIRST_DAY - TRAINING_DAYS


def ms_of(day: float) -> int:
    """Returns the time of a live day."""
    return int((FIRST_DAY + TRAINING_DAYS + day) * DAY_MS)


def told(detection: VirtualDetection) -> list[Alert]:
    """Returns every state of every alert."""
    return detection.told.alerts


_MCC = {str(5400 + number): 1 / (number + 2) for number in range(30)}


def _mcc(_: float) -> Shares:
    return _MCC


def _drawn(rng: np.random.Generator, shares: Shares, count: int) -> NDArray[np.object_]:
    weights = np.array([max(share, 0.0) for share in shares.values()])
    place = rng.choice(len(weights), size=count, p=weights / weights.sum())
    return np.array(list(shares), dtype=object)[place]
