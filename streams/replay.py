"""Replay a history through the feature code, the model and the policy that serve, and measure the decisions.

The same kernel, the same bundle and the same policy as a scoring worker's: a payment replayed gets the vector,
the score and the action it would have had if the profiles were up to the moment. Rules and segments of the policy are
asked about each payment; flags, which speak of the live mirror and models, are not there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.engine import FeatureEngine
from features.history import History, final_labels
from features.money import RateTable
from features.passage import Chunk, Passage
from models.bundle import Bundle
from models.evaluation import (
    DAY_MS,
    Days,
    Split,
    auc_roc,
    average_precision,
    card_precision_at_k,
    date_of_day,
    day_of_date,
    day_of_time,
    exclude_known_compromised,
)
from schemas.errors import Misconfigured
from scoring.policy import ACTIONS, Policy
from streams.replayed_policy import ReplayedPolicy

CARDS_A_DAY = 100


@dataclass(frozen=True)
class ReplayMetrics:
    """What metrics.json holds. A metric that cannot be computed (no fraud among the payments) is null there.

    `payments` and `frauds` are those that were measured: the window's, less those of cards known to be
    compromised. `payments_per_second` is over all that were run through, warming the profiles up included.
    """

    auc_roc: float
    average_precision: float
    card_precision_at_100: float
    payments: int
    frauds: int
    payments_per_second: float
    payments_replayed: int
    excluded_known_compromised: int
    actions: dict[str, int]
    card_precision_per_day: list[float]
    model_version: str

    def to_json(self) -> str:
        values = {
            name: None if isinstance(value, float) and not np.isfinite(value) else value
            for name, value in asdict(self).items()
        }
        return json.dumps(values, indent=2) + "\n"


@dataclass(frozen=True)
class _Decided:
    score: NDArray[np.float64]
    action: NDArray[np.int8]


def replay(
    history: History,
    *,
    engine: FeatureEngine,
    rates: RateTable,
    bundle: Bundle,
    policy: Policy,
    window: Days,
    label_delay_days: int,
    destination: Path,
    with_vectors: bool = False,
    progress: Callable[[int], object] | None = None,
) -> ReplayMetrics:
    """Write decisions.parquet and metrics.json to `destination`. Raises Misconfigured for an empty window."""
    first, last = np.searchsorted(history.event_time_ms, [window.first * DAY_MS, (window.last + 1) * DAY_MS]).tolist()
    if first == last:
        raise Misconfigured(f"there is no payment from {date_of_day(window.first)} to {date_of_day(window.last)}")
    started = time.perf_counter()
    decided = _Decided(np.empty(last - first), np.empty(last - first, dtype=np.int8))
    try:
        destination.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(f"cannot write results to {destination}: {error.strerror}") from error
    unfinished = destination / "decisions.unfinished"
    with pq.ParquetWriter(unfinished, _schema(with_vectors), compression="zstd") as writer:
        passage = Passage(history, engine, rates)
        replayed = ReplayedPolicy(policy, history, passage.amounts)
        for chunk in passage.chunks(first=first, last=last, progress=progress):
            score = bundle.score(chunk.vectors)
            part = _Decided(score, replayed.actions(chunk, score))
            here = slice(chunk.first - first, chunk.last - first)
            decided.score[here], decided.action[here] = part.score, part.action
            writer.write_table(_table(history, chunk, part, bundle, with_vectors))
    unfinished.replace(destination / "decisions.parquet")
    per_second = last / (time.perf_counter() - started)
    metrics = _measure(history, decided, first, last, window, label_delay_days, per_second, bundle)
    (destination / "metrics.json").write_text(metrics.to_json(), encoding="utf-8")
    return metrics


def _schema(with_vectors: bool) -> pa.Schema:
    fields = [
        ("payment_id", pa.string()),
        ("event_time_ms", pa.int64()),
        ("card_id", pa.string()),
        ("merchant_id", pa.string()),
        ("score", pa.float64()),
        ("action", pa.dictionary(pa.int8(), pa.string())),
        ("model_version", pa.dictionary(pa.int8(), pa.string())),
    ]
    return pa.schema(fields + ([("vector", pa.binary())] if with_vectors else []))


def _table(history: History, chunk: Chunk, decided: _Decided, bundle: Bundle, with_vectors: bool) -> pa.Table:
    rows = slice(chunk.first, chunk.last)
    count = chunk.last - chunk.first
    version = pa.array([bundle.manifest.model_version])
    columns: dict[str, Any] = {
        "payment_id": history.payment_id[rows],
        "event_time_ms": pa.array(history.event_time_ms[rows]),
        "card_id": history.card.names.take(pa.array(history.card.codes[rows])),
        "merchant_id": history.merchant.names.take(pa.array(history.merchant.codes[rows])),
        "score": pa.array(decided.score),
        "action": pa.DictionaryArray.from_arrays(pa.array(decided.action), pa.array(ACTIONS)),
        "model_version": pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, dtype=np.int8)), version),
    }
    if with_vectors:
        columns["vector"] = pa.array([row.tobytes() for row in chunk.vectors], pa.binary())
    return pa.table(columns, schema=_schema(with_vectors))


def _measure(
    history: History,
    decided: _Decided,
    first: int,
    last: int,
    window: Days,
    label_delay_days: int,
    per_second: float,
    bundle: Bundle,
) -> ReplayMetrics:
    all_days, all_cards = day_of_time(history.event_time_ms), history.card.codes
    # Never known counts as genuine, as in training.
    all_labels = (final_labels(history) == 1).astype(np.int64)
    asked = _asked_about(all_days, all_cards, all_labels, window, label_delay_days, bundle)[first:last]
    day, card, label = all_days[first:last][asked], all_cards[first:last][asked], all_labels[first:last][asked]
    score = decided.score[asked]
    precision = card_precision_at_k(day, card, label, score, CARDS_A_DAY)
    return ReplayMetrics(
        auc_roc=auc_roc(label, score),
        average_precision=average_precision(label, score),
        card_precision_at_100=precision.mean,
        payments=len(label),
        frauds=int(label.sum()),
        payments_per_second=per_second,
        payments_replayed=last,
        excluded_known_compromised=int((~asked).sum()),
        actions={name: int((decided.action == number).sum()) for number, name in enumerate(ACTIONS)},
        card_precision_per_day=precision.per_day.tolist(),
        model_version=bundle.manifest.model_version,
    )


def _asked_about(
    day: NDArray[np.int64],
    card: NDArray[np.int32],
    label: NDArray[np.int64],
    window: Days,
    label_delay_days: int,
    bundle: Bundle,
) -> NDArray[np.bool_]:
    """Rows that are measured: without cards known to be compromised, where the window is after the training's."""
    train = Days(day_of_date(bundle.manifest.train_from), day_of_date(bundle.manifest.train_to))
    if window.first <= train.last:
        return window.contains(day)
    return exclude_known_compromised(day, card, label, Split(train, window, label_delay_days))
