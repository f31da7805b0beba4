"""A small simulated past and what computes its features, for tests that need no model.

    history()         30 days of 300 cards, about 13,000 payments
    engine()          an engine that is warm
    profiles()        the packed profile of each entity after the whole history, by its key in the store

Each is made once per process and shared; the payments are made once per run. tests/worlds/small/small_world.py has a
model trained on this history.
"""

from __future__ import annotations

from functools import cache

import pyarrow as pa

from paywarden.features.datasets.simulator import DEFAULT_START_MS, simulate
from paywarden.features.history.history import History, history_of_tables
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RateTable, load_rates
from tests.services.made_once import tables_made_once

DAY_MS = 86_400_000
CARDS, DAYS, SEED = 300, 30, 2
FIRST_DAY = DEFAULT_START_MS // DAY_MS


@cache
def tables() -> tuple[pa.Table, pa.Table]:
    """Returns (payments, outcomes) from `simulate`."""
    return tables_made_once("small_history", lambda: simulate(cards=CARDS, days=DAYS, seed=SEED))


@cache
def history() -> History:
    """Returns the tables as a history."""
    return history_of_tables(*tables())


@cache
def engine() -> FeatureEngine:
    """Returns a warm engine of the project's own catalogue. Like any engine, it is not thread-safe."""
    warm = FeatureEngine()
    warm.warm_up()
    return warm


@cache
def rates() -> RateTable:
    """Returns the example rates that come with the package."""
    return load_rates()


@cache
def profiles() -> dict[bytes, bytes | None]:
    """Returns the profile of every entity after the whole history, as a backfill writes them."""
    passage = PointInTimeReplay(history(), engine(), rates())
    for _ in passage.chunks():
        pass
    passage.finish()
    return {
        key: state
        for entity, states in zip(passage.entities, passage.profiles, strict=True)
        for key, state in zip(entity.store_keys(), states, strict=True)
    }
