"""Serving with an overlay gives the vectors of a replay with a lag and an overlay, to the bit."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.features import kernel
from paywarden.features.history.history import History, history_of_tables
from paywarden.features.history.overlay import HistoryOverlay
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.history.staleness import Staleness
from tests.worlds.small import small_history
from tests.worlds.stream.overlay_world import START_MS, Made, OverlayWorld

COUNT = 60
LIFETIME_MS, EVENTS_MAX = 3000, 4


def made_history(seed: int) -> History:
    """Payments of a few cards within a minute; the issuer declined some, which no scoring host knew."""
    rng = np.random.default_rng(seed)
    times = START_MS + 20_000 + np.cumsum(rng.choice([0, 1, 40, 300, 2000], COUNT))

    def names(prefix: str, count: int) -> pa.Array:
        return pa.array([f"{prefix}{number}" for number in rng.integers(0, count, COUNT)], pa.string())

    columns = {
        "payment_id": pa.array([f"p{row}" for row in range(COUNT)], pa.string()),
        "event_time_ms": pa.array(times, pa.int64()),
        "card_id": names("c", 3),
        "merchant_id": names("m", 2),
        "device_id": names("d", 3),
        "amount_minor": pa.array(rng.integers(1, 90_000, COUNT), pa.int64()),
        "currency": pa.array(["EUR"] * COUNT, pa.string()),
        "channel": pa.array(["ecom"] * COUNT, pa.string()),
        "declined": pa.array(rng.random(COUNT) < 0.3, pa.bool_()),
        **{name: pa.nulls(COUNT, pa.string()) for name in ("ip", "mcc", "country")},
    }
    nothing: list[str] = []
    outcomes = {
        "payment_id": pa.array(nothing, pa.string()),
        "outcome_time_ms": pa.array([], pa.int64()),
        "label": pa.array(nothing, pa.string()),
        "source": pa.array(nothing, pa.string()),
    }
    return history_of_tables(pa.table(columns), pa.table(outcomes))


@given(st.integers(0, 2**32), st.sampled_from([1, 40, 500, 5000]), st.integers(1, COUNT))
@settings(max_examples=6, deadline=None)
def test_serving_and_replay_give_the_same_vectors(seed: int, lag_ms: int, rows: int) -> None:
    history, engine = made_history(seed), small_history.engine()
    lag, overlay = Staleness.read(f"{lag_ms}ms"), HistoryOverlay(1, LIFETIME_MS, EVENTS_MAX)
    replay = PointInTimeReplay(history, engine, small_history.rates(), staleness=lag, overlay=overlay)
    wanted = np.concatenate([chunk.vectors for chunk in replay.chunks(rows=rows)])
    attributes = replay.rows.of(np.arange(COUNT))
    keys = [[*entities.store_keys()] for entities in replay.entities]
    times = history.event_time_ms.tolist()
    with TemporaryDirectory() as folder:
        world = OverlayWorld(Path(folder), seed=1, lifetime_ms=LIFETIME_MS, events_max=EVENTS_MAX)
        topic = world.topics[0]
        for row in range(COUNT):
            as_asked = attributes[row].copy()
            as_asked[kernel.DECLINED] = 0
            of_row = [names[column.codes[row]] for names, column in zip(keys, replay.entities, strict=True)]
            made = Made(b"p%d" % row, as_asked.tolist(), of_row, 0, row + 1, attributes[row].tolist())
            world.payments.append(made)
            topic.records.append(row)
        for row, time_ms in enumerate(times):
            world.now_ms = time_ms - START_MS
            in_profiles = sum(other <= time_ms - lag_ms for other in times[:row])
            for entity in range(engine.plan.entity_count):
                world.read(entity, topic, in_profiles)
            world.apply(len(world.changelog))
            world.check(row, worker=row % 2)
            assert world._readers[row % 2].out.tobytes() == wanted[row].tobytes()
            world.answer(row, worker=row % 2)
    assert world.unsure == 0


def test_a_payment_is_pending_on_its_own_host_alone() -> None:
    history = made_history(3)
    asked = (history, small_history.engine(), small_history.rates())
    lag = Staleness.read("1h")

    def counts(name: str, hosts: int) -> list[float]:
        overlay = HistoryOverlay(hosts, 600_000, 64) if hosts else None
        replay = PointInTimeReplay(*asked, staleness=lag, overlay=overlay)
        (chunk,) = replay.chunks()
        found: list[float] = chunk.vectors[:, asked[1].plan.names.index(name)].tolist()
        return found

    (plain,) = PointInTimeReplay(*asked).chunks()
    of_card, of_merchant = (asked[1].plan.names.index(name) for name in ("card_count_1h", "merchant_count_1h"))
    assert counts("card_count_1h", 7) == counts("card_count_1h", 1) == plain.vectors[:, of_card].tolist()
    assert counts("merchant_count_1h", 1) == plain.vectors[:, of_merchant].tolist()
    assert sum(counts("merchant_count_1h", 2)) < sum(counts("merchant_count_1h", 1))
    assert sum(counts("card_count_1h", 0)) == 0
