"""The probability that each payment of a history was let through: from its decisions, for training and measures.

    decision about p7    approve, reasons "exploration, score_at_or_above_decline_threshold", propensity 0.02
    history              p7 has propensity 0.02 and stands for 50 payments like it; every other payment has 1

Exploration (models/policy/exploration.py) approves a small random share of the payments that would be declined. Those
alone get another propensity than 1. In particular:

- A payment that the coin left declined stays at 1. The explored payments stand for it.
- A payment that somebody else declined after we had approved it stays at 1, since nothing was learnt from it.
- The share of a rollout's arm does not count: both arms keep their payments. If an arm explored, the chance of the
  action counts.

A payment may have several decisions. The earliest counts, as in comparisons of replays with live decisions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paywarden.features.catalogue.attributes import flag_code
from paywarden.features.history.history import History
from paywarden.models.policy.exploration import EXPLORED
from paywarden.schemas.avro import SchemaIds
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.archive.files import read_archive, topic_folder
from paywarden.streams.kafka.admin import topics_of
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.topic_rows import (
    OFFSET,
    PARTITION,
    TIMESTAMP,
    RowBuilder,
    TopicRows,
    read_topic,
    rows_schema,
)

COLUMNS = ("decided_time_ms", "payment_id", "action", "reasons", "score", "propensity", PARTITION, OFFSET, TIMESTAMP)
"""The columns of decisions that are read."""
_APPROVE = "approve"
_DECLINED = flag_code(True)
# A decision may reach Kafka before its payment does, or after it.
_APART_MS = 86_400_000


class Explored(NamedTuple):
    """Payments that exploration let through. All arrays: (payments,). `row`: their rows in the history."""

    row: NDArray[np.int64]
    propensity: NDArray[np.float64]
    score: NDArray[np.float64]


def archived_decisions_of(archive: Path, times_ms: tuple[int | None, int | None]) -> TopicRows | None:
    """Returns an archive's decisions about payments of a range of their own time; None without its folder of decisions.

    Raises the errors of `read_archive`.
    """
    if not topic_folder(archive, "decisions").is_dir():
        return None
    schema = _nullable(rows_schema("decisions", columns=COLUMNS))
    return read_archive(archive, "decisions", schema, times_ms=times_ms)


def topic_decisions(
    kafka: KafkaSettings,
    ids: SchemaIds,
    *,
    since_ms: int | None,
    until_ms: int | None,
    progress: Callable[[int, int], object] = lambda _count, _total: None,
) -> TopicRows | None:
    """Returns the decisions about payments that reached Kafka in a range of its own times; None without the topic.

    Raises the errors of `read_topic`.
    """
    if kafka.topic("decisions") not in topics_of(kafka):
        return None
    return read_topic(
        kafka,
        RowBuilder("decisions", ids, columns=COLUMNS),
        since_ms=None if since_ms is None else since_ms - _APART_MS,
        until_ms=None if until_ms is None else until_ms + _APART_MS,
        progress=progress,
    )


def with_propensities(history: History, decisions: TopicRows) -> History:
    """Returns the history with the propensities of its payments; without any if exploration let no payment through.

    `decisions` have at least COLUMNS. Raises Misconfigured for an explored payment that had no chance.
    """
    explored = explored_payments(history, decisions)
    if not len(explored.row):
        return history
    propensity = np.ones(len(history))
    propensity[explored.row] = explored.propensity
    return replace(history, propensity=propensity)


def explored_payments(history: History, decisions: TopicRows) -> Explored:
    """Returns the payments of a history that exploration let through. Raises as `with_propensities` does."""
    table = decisions.table
    is_coin = pc.less(table["propensity"], 1.0)
    chosen = table.filter(pc.fill_null(is_coin, False))["payment_id"].combine_chunks()
    table = table.filter(pc.is_in(table["payment_id"], value_set=chosen))
    table = table.sort_by([(name, "ascending") for name in ("decided_time_ms", PARTITION, OFFSET)])
    ids = table["payment_id"].combine_chunks()
    is_first = pc.equal(pc.index_in(ids, value_set=ids), np.arange(len(ids)))
    table = table.filter(pc.and_(is_first, pc.equal(table["action"], _APPROVE)))
    explored = [EXPLORED in reasons for reasons in table["reasons"].to_pylist()]
    table = table.filter(pa.array(explored, pa.bool_()))
    row = pc.index_in(table["payment_id"], value_set=history.payment_id)
    is_there = np.asarray(pc.is_valid(row).to_numpy(), dtype=np.bool_)
    rows = np.asarray(row.drop_null().to_numpy(), dtype=np.int64)
    shares, scores = (
        np.asarray(table[name].to_numpy(), dtype=np.float64)[is_there] for name in ("propensity", "score")
    )
    if wrong := int(np.count_nonzero(shares <= 0.0)):
        raise Misconfigured(
            f"decisions: wanted propensities above 0 of explored payments, {wrong} of them have 0 or less"
        )
    is_let_through = history.declined_code[rows] != _DECLINED
    return Explored(rows[is_let_through], shares[is_let_through], scores[is_let_through])


def _nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(True) for field in schema])
