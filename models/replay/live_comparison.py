"""Compare live decisions with those of a replay about the same payments.

How it works:

1. Live decisions are an archive's rows of the topic decisions.
2. A payment may have several: a retry on another host decides again, and a record may be written twice. The earliest
   counts, by time of decision, then by partition and offset.
3. Live and replayed decisions are joined by payment id, and their actions and scores compared.

Example: of 1,000 joined payments, 997 have the same action and 988 exactly the same score. Two of the three others had
the live flag mirror_absent. The replay cannot know that flag: it always has up-to-date profiles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paywarden.models.metrics.comparison import DIFFERENCE_EDGES
from paywarden.models.policy.policy import ACTIONS

FIELDS = ("decided_time_ms", "payment_id", "event_time_ms", "score", "action", "flags", "model_version")
"""The fields of a live decision that the comparison needs."""


@dataclass(frozen=True)
class LiveAgreement:
    """How far both agree about a set of payments. Shares are divided by `payments`, and None if that is 0."""

    payments: int
    """Payments decided both live and by the replay."""
    equal_actions: float | None
    """Share with the same action."""
    equal_scores: float | None
    """Share with the same score, to the bit."""
    score_difference_max: float | None
    """The largest difference of two scores."""
    flagged_of_other_action: int
    """Payments with another action that had a live flag, such as mirror_absent."""


@dataclass(frozen=True)
class LiveComparison:
    """Where live decisions and those of a replay agree and differ. Counts are payments unless stated otherwise."""

    decisions: int
    """Live decisions about payments of the window."""
    decisions_not_decoded: int
    """Records that cannot be read as decisions."""
    repeated: int
    """Later live decisions about one payment, which are not compared."""
    only_live: int
    """Payments decided only live."""
    only_replayed: int
    """Payments decided only by the replay."""
    whole: LiveAgreement
    """The agreement about all payments. In metrics.json its values stand beside these."""
    actions: list[list[int]]
    """`actions[i][j]` payments got action i live and j from the replay (0 approve, 1 review, 2 decline)."""
    score_differences: list[int]
    """Payments by replayed score minus live score: element i lies between edges i and i + 1 of DIFFERENCE_EDGES in
    models/metrics/comparison.py.
    """
    flags_of_other_action: dict[str, int]
    """Payments with another action by live flag, the most frequent first."""
    by_model_version: dict[str, LiveAgreement]
    """The agreement by the model version that decided live."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the section of metrics.json."""
        counts = {name: value for name, value in vars(self).items() if name not in ("whole", "by_model_version")}
        versions = {version: vars(agreement) for version, agreement in self.by_model_version.items()}
        return counts | vars(self.whole) | {"by_model_version": versions}


@dataclass(frozen=True)
class LiveDecisions:
    """Live decisions. `table` has the columns FIELDS and `order`; `order` sorts decisions made at the same time."""

    table: pa.Table
    not_decoded: int
    order: tuple[str, ...]


def compare_with_live(live: LiveDecisions, replayed: pa.Table) -> LiveComparison:
    """Compare live with replayed decisions. `replayed` has the columns payment_id, score and action."""
    first = _first_decisions(live)
    row = pc.index_in(first["payment_id"], value_set=_text(replayed["payment_id"]))
    is_both = pc.is_valid(row)
    both, rows = first.filter(is_both), row.filter(is_both)
    other = replayed.take(rows)
    actions, replayed_actions = _text(both["action"]), _text(other["action"])
    rise = pc.subtract(other["score"], both["score"])
    columns = {
        "version": both["model_version"],
        "is_same_action": pc.equal(actions, replayed_actions),
        "difference": pc.abs(rise),
        "is_flagged": pc.greater(pc.list_value_length(both["flags"]), 0),
    }
    joined = pa.table(columns)
    versions = sorted(pc.unique(joined["version"]).to_pylist())
    return LiveComparison(
        decisions=len(live.table),
        decisions_not_decoded=live.not_decoded,
        repeated=len(live.table) - len(first),
        only_live=len(first) - len(joined),
        only_replayed=len(replayed) - len(joined),
        whole=_agreement(joined),
        actions=_pairs(actions, replayed_actions),
        score_differences=_histogram(rise),
        flags_of_other_action=_counted(both["flags"].filter(pc.invert(joined["is_same_action"])).to_pylist()),
        by_model_version={
            version: _agreement(joined.filter(pc.equal(joined["version"], version))) for version in versions
        },
    )


def replayed_decisions(path: Path) -> pa.Table:
    """Returns the columns that `compare_with_live` needs from a replay's decisions.parquet."""
    return pq.read_table(path, columns=["payment_id", "score", "action"])


def _first_decisions(live: LiveDecisions) -> pa.Table:
    """Returns the earliest decision about each payment."""
    keys = [(name, "ascending") for name in ("decided_time_ms", *live.order)]
    table = live.table.sort_by(keys)
    ids = _text(table["payment_id"])
    first = pc.index_in(ids, value_set=ids).to_numpy(zero_copy_only=False)
    return table.filter(pa.array(first == np.arange(len(table))))


def _agreement(joined: pa.Table) -> LiveAgreement:
    count = len(joined)
    if count == 0:
        return LiveAgreement(0, None, None, None, 0)
    is_other = pc.invert(joined["is_same_action"])
    return LiveAgreement(
        payments=count,
        equal_actions=(count - pc.sum(is_other).as_py()) / count,
        equal_scores=pc.sum(pc.equal(joined["difference"], 0.0)).as_py() / count,
        score_difference_max=pc.max(joined["difference"]).as_py(),
        flagged_of_other_action=pc.sum(pc.and_(is_other, joined["is_flagged"])).as_py(),
    )


def _pairs(live: pa.Array, replayed: pa.Array) -> list[list[int]]:
    """Count payments by pairs of actions: first index live, second index replayed."""
    names, size = pa.array(ACTIONS), len(ACTIONS)
    places = [pc.index_in(actions, value_set=names).to_numpy(zero_copy_only=False) for actions in (live, replayed)]
    cells = np.bincount((places[0] * size + places[1]).astype(np.int64), minlength=size * size)
    pairs: list[list[int]] = cells.reshape(size, size).tolist()
    return pairs


def _histogram(rise: pa.ChunkedArray) -> list[int]:
    place = np.searchsorted(DIFFERENCE_EDGES[1:-1], rise.to_numpy(), side="right")
    counts: list[int] = np.bincount(place, minlength=len(DIFFERENCE_EDGES) - 1).tolist()
    return counts


def _counted(flags: Iterable[list[str]]) -> dict[str, int]:
    counts = Counter(flag for of_payment in flags for flag in of_payment)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _text(column: pa.ChunkedArray) -> pa.Array:
    whole = column.cast(pa.string()).combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole
