"""A simulated stream of decisions, with a change from some day on.

    history ─┬─ training window ─► bundle, with its reference
             └─ the days after it ─ features, score, policy ─► decisions, their labels
                                        ▲
                                     a change: of scores, one feature, a segment's traffic, the fraud, the profiles

Every payment goes through the product's own features, model and thresholds. Only Kafka is left out, so that months take
minutes. Changes are made to the model's input or scores, never to the statistics of the detection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.features.datasets.simulator import simulate
from paywarden.features.history.history import final_labels, history_of_tables
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.models.bundle.bundle import Bundle, load_bundle
from paywarden.models.drift.binning import DIMENSIONS
from paywarden.models.metrics.evaluation import DAY_MS, Days
from paywarden.models.training.table import LabelRules, training_table
from paywarden.models.training.training import train_bundle
from paywarden.models.training.training_settings import TrainingSettings

HOUR_MS = 3_600_000
_LABEL_DELAY_DAYS = 7
# Profiles reach back a month: they must be full before the first training day.
_WARM_DAYS = 31


@dataclass(frozen=True)
class Decisions:
    """Decisions in order of time. Each array has shape (rows,), `vectors` has (rows, features)."""

    time_ms: NDArray[np.int64]
    vectors: NDArray[np.float32]
    score: NDArray[np.float64]
    action: NDArray[np.int64]
    """0 approve, 1 review, 2 decline."""
    dimensions: tuple[NDArray[np.object_], ...]
    """The value, or None, for each of DIMENSIONS."""
    profile_age_s: NDArray[np.float64]
    fraud: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.time_ms)

    def rows(self, chosen: NDArray[np.integer] | slice) -> Decisions:
        """Return some of the rows, in the given order."""
        return _of_columns(lambda column: column[chosen], self)

    def cut_at(self, time_ms: int) -> int:
        """Return the first row that is not before this time."""
        return int(np.searchsorted(self.time_ms, time_ms))


def _of_columns(make: Callable[..., Any], *parts: Decisions) -> Decisions:
    """Return the decisions whose columns `make` makes of those of the parts."""
    names = [field.name for field in fields(Decisions) if field.name != "dimensions"]
    columns = {name: make(*(getattr(part, name) for part in parts)) for name in names}
    dimensions = zip(*(part.dimensions for part in parts), strict=True)
    return Decisions(dimensions=tuple(make(*each) for each in dimensions), **columns)


@dataclass(frozen=True)
class DriftWorld:
    """A bundle, and its decisions about the days after its training."""

    bundle: Bundle
    folder: Path
    engine: FeatureEngine
    live: Decisions

    def decided(self, decisions: Decisions) -> Decisions:
        """Return the same payments, scored again after a change of their vectors."""
        score = self.bundle.score(np.ascontiguousarray(decisions.vectors))
        return self.with_scores(decisions, score)

    def with_scores(self, decisions: Decisions, score: NDArray[np.float64]) -> Decisions:
        """Return the same payments with these scores, and the actions that follow from them."""
        manifest = self.bundle.manifest
        action = np.digitize(score, [manifest.review_at, manifest.decline_at])
        return replace(decisions, score=score, action=action)


def simulated_world(folder: Path, *, cards: int, live_days: int, training_days: int = 28, seed: int = 1) -> DriftWorld:
    """Make a simulated world, in which nothing changes but the hour and the day of the week.

    The training days begin a month after its first day.
    """
    history = history_of_tables(*simulate(cards=cards, days=_WARM_DAYS + training_days + live_days, seed=seed))
    engine = FeatureEngine()
    engine.warm_up()
    first_day = int(history.event_time_ms[0]) // DAY_MS + _WARM_DAYS
    window = Days(first_day, first_day + training_days - 1)
    # Any model will do: nobody looks at how good it is. With its defaults, `train` would take as long as all the rest.
    settings = TrainingSettings(
        threads=1,
        label_delay_days=_LABEL_DELAY_DAYS,
        seed=seed,
        trees=120,
        early_stopping_rounds=0,
        folds=2,
        genuine_sample_share=0.25,
    )
    table = training_table(history, window, engine=engine, rates=load_rates(), labels=LabelRules.of(settings))
    _stop_ageing(engine, table.vectors)
    train_bundle(table, window, folder, engine=engine, settings=settings)
    bundle = load_bundle(folder, catalogue_digest=engine.plan.digest)
    first = int(np.searchsorted(history.event_time_ms, (window.last + 1) * DAY_MS))
    chunks = PointInTimeReplay(history, engine, load_rates()).chunks(first=first, last=len(history))
    vectors = np.empty((len(history) - first, engine.plan.feature_count), dtype=np.float32)
    for chunk in chunks:
        vectors[chunk.first - first : chunk.last - first] = chunk.vectors
    _stop_ageing(engine, vectors)
    empty = np.zeros(len(vectors))
    undecided = Decisions(
        history.event_time_ms[first:],
        vectors,
        empty,
        empty.astype(np.int64),
        tuple(history.texts(name, slice(first, None)) for name in DIMENSIONS),
        np.random.default_rng(seed).lognormal(np.log(0.5), 0.4, len(vectors)),
        final_labels(history)[first:] == 1,
    )
    world = DriftWorld(bundle, folder, engine, undecided)
    return replace(world, live=world.decided(undecided))


def _stop_ageing(engine: FeatureEngine, vectors: NDArray[np.float32]) -> None:
    """Age the cards and devices, which all begin with the history: features that reach back a month do not see it."""
    for column, name in enumerate(engine.plan.names):
        if name.endswith("seconds_since_first"):
            np.minimum(vectors[:, column], _WARM_DAYS * DAY_MS / 1000, out=vectors[:, column])


# Changes of payments. Where a change takes time, it began at the first of them.

Change = Callable[[DriftWorld, Decisions], Decisions]


def changed_from(world: DriftWorld, decisions: Decisions, at_ms: int, change: Change) -> Decisions:
    """Return the decisions with the change from this time on."""
    cut = decisions.cut_at(at_ms)
    return _joined(decisions.rows(slice(0, cut)), change(world, decisions.rows(slice(cut, None))))


def _joined(*parts: Decisions) -> Decisions:
    return _of_columns(lambda *columns: np.concatenate(columns), *parts)


def scores_rescaled(world: DriftWorld, decisions: Decisions) -> Decisions:
    """A wrong calibration goes live: all scores are 0.4 of the right ones."""
    return world.with_scores(decisions, decisions.score * 0.4)


def feature_at_default(name: str) -> Change:
    """A feature's source is gone: the feature has the value of an unknown card."""

    def change(world: DriftWorld, decisions: Decisions) -> Decisions:
        vectors = decisions.vectors.copy()
        vectors[:, world.engine.plan.names.index(name)] = 0.0
        return world.decided(replace(decisions, vectors=vectors))

    return change


def traffic_doubled(dimension: str, value: str) -> Change:
    """A segment has twice as many payments: each comes again minutes later."""

    def change(world: DriftWorld, decisions: Decisions) -> Decisions:  # noqa: ARG001
        again = decisions.rows(np.flatnonzero(decisions.dimensions[DIMENSIONS.index(dimension)] == value))
        both = _joined(decisions, replace(again, time_ms=again.time_ms + 7 * 60_000))
        return both.rows(np.argsort(both.time_ms, kind="stable"))

    return change


def fraud_moved(world: DriftWorld, decisions: Decisions) -> Decisions:
    """Fraudsters have learnt: half of the frauds look like a genuine payment of the same hour, to the last feature."""
    rng = np.random.default_rng(3)
    frauds, genuine = np.flatnonzero(decisions.fraud), np.flatnonzero(~decisions.fraud)
    moved = frauds[rng.random(len(frauds)) < 0.5]
    nearest = genuine[np.minimum(np.searchsorted(genuine, moved), len(genuine) - 1)]
    vectors = decisions.vectors.copy()
    vectors[moved] = decisions.vectors[nearest]
    return world.decided(replace(decisions, vectors=vectors))


def profiles_stale(world: DriftWorld, decisions: Decisions) -> Decisions:
    """The stream has stopped: profiles grow old, and windows of an hour become empty."""
    vectors = decisions.vectors.copy()
    since_ms = decisions.time_ms - decisions.time_ms[0]
    for column, name in enumerate(world.engine.plan.names):
        if "_count_1h" in name or "_amount_1h" in name:
            vectors[since_ms > HOUR_MS, column] = 0.0
    return world.decided(replace(decisions, vectors=vectors, profile_age_s=since_ms / 1000 + 0.5))
