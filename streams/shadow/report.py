"""Compare challengers with their champions: from the rows of three topics to `compare_shadow` of models/rollout.

    shadow-decisions   both sides of each payment       ─┐
    decisions          its amount, and all the others    ├─► one comparison for each pair of champion and challenger
    outcomes           what it was, where that is known ─┘

1. A repeated shadow record counts once: `decision_id` and the challenger's name together name it.
2. Pairs are told apart by their digests. After a swap of the champion there are two, each with its own payments.
3. A record whose decision is not among the rows is left out and counted: without it nobody knows the amount.
4. The share of decisions with a partner is that among the champion's decisions between the first record and the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paywarden.features.profiles.money import RateTable
from paywarden.models.metrics.costs import CostSettings
from paywarden.models.policy.policy import ACTIONS
from paywarden.models.rollout.shadow import ShadowColumns, ShadowComparison, compare_shadow
from paywarden.schemas.errors import InvalidEvent, Misconfigured

SHADOW_COLUMNS = (
    *("decision_id", "card_id", "decided_time_ms", "challenger", "is_shadow_host"),
    *("champion_bundle_digest", "champion_policy_digest", "champion_score", "champion_action"),
    *("challenger_bundle_digest", "challenger_policy_digest", "challenger_score", "challenger_action"),
)
DECISION_COLUMNS = (
    *("decision_id", "payment_id", "event_time_ms", "decided_time_ms", "amount_minor", "currency"),
    *("bundle_digest", "policy_digest"),
)
OUTCOME_COLUMNS = ("payment_id", "outcome_time_ms", "label")
_PAIR = (
    *("challenger", "is_shadow_host", "champion_bundle_digest", "champion_policy_digest"),
    *("challenger_bundle_digest", "challenger_policy_digest"),
)


@dataclass(frozen=True)
class ComparedPair:
    """A champion and a challenger, by digests, and how they differ. Times are epoch milliseconds UTC."""

    challenger: str
    is_shadow_host: bool
    champion_bundle_digest: str
    champion_policy_digest: str
    challenger_bundle_digest: str
    challenger_policy_digest: str
    first_time_ms: int
    last_time_ms: int
    comparison: ShadowComparison


@dataclass(frozen=True)
class ShadowReport:
    """All pairs, the newest first. `without_decision`: shadow records whose decision is not among the rows."""

    pairs: tuple[ComparedPair, ...]
    without_decision: int


def shadow_report(
    shadow: pa.Table, decisions: pa.Table, outcomes: pa.Table, *, rates: RateTable, costs: CostSettings
) -> ShadowReport:
    """Returns the comparison of every pair. The tables have at least the columns above."""
    shadow = _first_of(shadow, ("decision_id", "challenger"))
    decisions = _first_of(decisions, ("decision_id",))
    place = pc.index_in(shadow["decision_id"], value_set=_whole(decisions["decision_id"]))
    is_known = pc.is_valid(place)
    left_out = len(shadow) - int(pc.sum(is_known).as_py() or 0)
    shadow, row = shadow.filter(is_known), np.asarray(place.drop_null().to_numpy(), dtype=np.int64)
    amount = _amounts(decisions, rates)[row]
    fraud = _frauds(decisions, outcomes)[row]
    pairs = [
        _compared(pair, shadow, rows, amount[rows], fraud[rows], decisions, costs) for pair, rows in _pairs(shadow)
    ]
    return ShadowReport(tuple(sorted(pairs, key=lambda one: (-one.last_time_ms, one.challenger))), left_out)


def _compared(
    pair: Sequence[object],
    shadow: pa.Table,
    rows: NDArray[np.int64],
    amount: NDArray[np.int64],
    fraud: NDArray[np.int8],
    decisions: pa.Table,
    costs: CostSettings,
) -> ComparedPair:
    own = shadow.take(pa.array(rows))
    times = np.asarray(own["decided_time_ms"].to_numpy(), dtype=np.int64)
    first_ms, last_ms = int(times.min()), int(times.max())
    names = dict(zip(_PAIR, pair, strict=True))
    columns = ShadowColumns(
        card=np.asarray(_whole(own["card_id"]).dictionary_encode().indices.to_numpy(), dtype=np.uint64),
        champion_score=np.asarray(own["champion_score"].to_numpy(), dtype=np.float64),
        challenger_score=np.asarray(own["challenger_score"].to_numpy(), dtype=np.float64),
        champion_action=_actions(own["champion_action"]),
        challenger_action=_actions(own["challenger_action"]),
        amount=amount,
        fraud=fraud,
    )
    is_champions = pc.and_(
        pc.equal(decisions["bundle_digest"], names["champion_bundle_digest"]),
        pc.equal(decisions["policy_digest"], names["champion_policy_digest"]),
    )
    decided_ms = np.asarray(decisions["decided_time_ms"].to_numpy(), dtype=np.int64)
    in_time = (decided_ms >= first_ms) & (decided_ms <= last_ms)
    count = max(len(rows), int(np.count_nonzero(in_time & np.asarray(is_champions.to_numpy(), dtype=np.bool_))))
    comparison = compare_shadow(columns, champion_payments=count, costs=costs)
    return ComparedPair(**names, first_time_ms=first_ms, last_time_ms=last_ms, comparison=comparison)  # type: ignore[arg-type]


def _pairs(shadow: pa.Table) -> list[tuple[tuple[object, ...], NDArray[np.int64]]]:
    """Returns each pair with the rows of its records."""
    code = np.zeros(len(shadow), dtype=np.int64)
    for name in _PAIR:
        values = np.asarray(_whole(shadow[name]).dictionary_encode().indices.to_numpy(), dtype=np.int64)
        _, code = np.unique(code * (int(values.max(initial=0)) + 1) + values, return_inverse=True)
    found = []
    for number in range(int(code.max(initial=-1)) + 1):
        rows = np.flatnonzero(code == number)
        found.append((tuple(shadow[name][int(rows[0])].as_py() for name in _PAIR), rows))
    return found


def _first_of(table: pa.Table, key: Sequence[str]) -> pa.Table:
    """Returns the rows without those that repeat the key of an earlier one."""
    joined = pc.binary_join_element_wise(*(table[name] for name in key), "\x1f")
    values = _whole(joined)
    place = pc.index_in(values, value_set=values)
    return table.filter(pc.equal(place, pa.array(np.arange(len(table)), pa.int32())))


def _amounts(decisions: pa.Table, rates: RateTable) -> NDArray[np.int64]:
    """Returns the amount of each decision in minor units of the reference currency; 0 where that is not known."""
    currencies = _whole(decisions["currency"]).dictionary_encode()
    try:
        amounts = rates.convert_columns(
            np.asarray(decisions["amount_minor"].to_numpy(), dtype=np.int64),
            np.asarray(currencies.indices.to_numpy(), dtype=np.int64),
            currencies.dictionary.to_pylist(),
            np.asarray(decisions["event_time_ms"].to_numpy(), dtype=np.int64),
        )
    except InvalidEvent as error:
        raise Misconfigured(f"decisions: {error}") from error
    return np.maximum(amounts, 0)


def _frauds(decisions: pa.Table, outcomes: pa.Table) -> NDArray[np.int8]:
    """Returns for each decision 1 for fraud, 0 for genuine, -1 where that is not known. The latest outcome counts."""
    newest = outcomes.sort_by([("outcome_time_ms", "descending")])
    place = pc.index_in(decisions["payment_id"], value_set=_whole(newest["payment_id"]))
    rows = np.asarray(pc.fill_null(place, -1).to_numpy(), dtype=np.int64)
    is_fraud = np.append(np.asarray(pc.equal(newest["label"], "fraud").to_numpy(), dtype=np.int8), np.int8(-1))
    return is_fraud[rows]


def _actions(column: pa.ChunkedArray) -> NDArray[np.int8]:
    return np.asarray(pc.index_in(column, value_set=pa.array(ACTIONS)).to_numpy(), dtype=np.int8)


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
