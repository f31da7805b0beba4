"""The cost of the feature kernel alone: profile updates, one payment's vector, the training table.

Measured: `apply_events` over sorted batches of simulated payments with every entity (updates counted per payment
and entity), one vector of a payment with three known entities as a scoring worker makes it, and the point-in-time
vectors of a whole history through `PointInTimeReplay` (of the handbook's table with --data, else of a simulated one).
Nothing is stubbed; reading files is not included. Used for: noticing when a change makes the kernel slower.

    python -m perf.kernels [--data DIR] [--json FILE]
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.datasets.simulator import simulate
from paywarden.features.history.history import History, history_of_tables, read_history
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.profiles.engine import Events, FeatureEngine
from paywarden.features.profiles.money import load_rates
from perf.tools.measuring import arguments_of, finish

_CALLS = 50_000
_ROUNDS = 5


def main() -> None:
    arguments = arguments_of(
        __doc__, ("--data", {"help": "a history to run through (default: 5,000 simulated cards over 60 days)"})
    )
    history = (
        read_history(arguments.data) if arguments.data else history_of_tables(*simulate(cards=5000, days=60, seed=1))
    )
    engine = FeatureEngine()
    engine.warm_up()
    passage, seconds = _training_table(history, engine)
    figures = {
        "payments": len(history),
        "training_table_seconds": seconds,
        "training_table_payments_per_second": len(history) / seconds,
        **_updates(engine, passage),
        **_vectors(history, engine, passage),
    }
    finish(figures, arguments.json)


def _training_table(history: History, engine: FeatureEngine) -> tuple[PointInTimeReplay, float]:
    started = time.perf_counter()
    passage = PointInTimeReplay(history, engine, load_rates())
    rows = sum(len(chunk.vectors) for chunk in passage.chunks())
    seconds = time.perf_counter() - started
    assert rows == len(history)
    return passage, seconds


def _updates(engine: FeatureEngine, passage: PointInTimeReplay) -> dict[str, float]:
    """Return updates a second of each entity's profiles, starting empty, without roll-up: median of rounds."""
    figures, total_events, total_seconds = {}, 0, 0.0
    attributes = passage.rows.of(slice(None))
    for entity, name in enumerate(engine.plan.entity_names):
        codes = passage.entities[entity].codes
        order = np.argsort(codes, kind="stable")
        order = order[np.searchsorted(codes[order], 0) :]
        if len(order) == 0:
            continue  # the handbook's payments have no device
        groups = np.append(np.unique(codes[order], return_index=True)[1], len(order)).astype(np.int64)
        count = len(order)
        ones, none = np.ones(count, dtype=np.int64), np.full(count, -1, dtype=np.int64)
        events = Events(groups, np.zeros(count, dtype=np.uint8), order, ones, none, none, none)
        rounds = []
        for _ in range(_ROUNDS):
            started = time.perf_counter()
            result = engine.apply(entity, events, attributes, [None] * (len(groups) - 1), engine.new_slots(0))
            rounds.append(time.perf_counter() - started)
            assert result.applied.all()
        seconds = float(np.median(rounds))
        figures[f"profile_updates_per_second_{name}"] = count / seconds
        figures[f"profile_bytes_p50_{name}"] = float(np.median([len(state) for state in result.states]))
        total_events, total_seconds = total_events + count, total_seconds + seconds
    return {"profile_updates_per_second": total_events / total_seconds, **figures}


def _vectors(history: History, engine: FeatureEngine, passage: PointInTimeReplay) -> dict[str, float]:
    """Measure one payment with all its entities at a time, as a scoring worker calls the kernel."""
    rng = np.random.default_rng(7)
    everywhere = np.flatnonzero(np.all([column.codes >= 0 for column in passage.entities], axis=0))
    rows = everywhere if len(everywhere) else np.arange(len(history))
    chosen = rng.choice(rows, 2000).tolist()
    inputs = [_inputs(history, passage, row) for row in chosen]
    out = np.empty((1, engine.plan.feature_count), dtype=np.float32)
    calls = [engine.bind(*each, out) for each in inputs]
    latencies, nothing = np.empty(_CALLS), np.empty(_CALLS)
    for call in range(_CALLS):
        fill = calls[call % len(calls)]
        started = time.perf_counter()
        fill(1)
        latencies[call] = time.perf_counter() - started
        started = time.perf_counter()
        nothing[call] = time.perf_counter() - started
    # The cost of reading the clock is taken off.
    latencies -= np.median(nothing)
    p50, p99, p999 = np.percentile(latencies, [50, 99, 99.9]) * 1e6
    return {
        "vector_p50_us": float(p50),
        "vector_p99_us": float(p99),
        "vector_p999_us": float(p999),
        "vector_max_us": float(latencies.max() * 1e6),
        "vector_profile_bytes_p50": float(np.median([bounds[-1] for _, _, _, bounds in inputs])),
    }


Inputs = tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64]]


def _inputs(history: History, passage: PointInTimeReplay, row: int) -> Inputs:
    codes = [int(column.codes[row]) for column in passage.entities]
    states = [passage.profiles[entity][code] or b"" if code >= 0 else b"" for entity, code in enumerate(codes)]
    presence = np.array([kernel.KNOWN if state else kernel.ABSENT for state in states], dtype=np.uint8)
    bounds = np.concatenate(([0], np.cumsum([len(state) for state in states]))).astype(np.int64)
    request = passage.rows.of(np.array([row]))
    request[0, kernel.TIME_MS] = history.event_time_ms[-1]
    return request, presence, np.frombuffer(bytearray().join(states), dtype=np.uint8), bounds


if __name__ == "__main__":
    main()
