"""What was decided live against what a replay decides about the same payments.

Live decisions are an archive's rows of the topic decisions. Of several about one payment, as a retry on another host or
a record sent twice makes, the first counts: by the time it was made, then by partition and offset.
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
"""What a comparison needs to know of a live decision."""


@dataclass(frozen=True)
class LiveAgreement:
    """Of payments decided both live and by the replay. Shares are of `payments`; None where there are none.

    `flagged_of_other_action`: how many of those with another action had a flag live, such as a mirror that was absent.
    """

    payments: int
    """Payments decided both live and by the replay."""
    equal_actions: float | None
    """Share of them with the same action."""
    equal_scores: float | None
    """Share of them with the same score, to the bit."""
    score_difference_max: float | None
    """The largest difference of two scores."""
    flagged_of_other_action: int
    """Payments with another action that had a flag live, such as a mirror that was absent."""


@dataclass(frozen=True)
class LiveComparison:
    """What live decisions and a replay's have in common. Counts are of payments, but for the first two.

    `actions[i][j]` got action i live and j from the replay. `score_differences[i]` have a replayed score less the live
    one between edges i and i + 1 of DIFFERENCE_EDGES. `flags_of_other_action`: how many of those with another action
    had each flag live, most frequent first.
    """

    decisions: int
    """Live decisions in the archive about payments of the window."""
    decisions_not_decoded: int
    """Records of the archive that are no decision."""
    repeated: int
    """Live decisions about a payment that had one before."""
    only_live: int
    """Payments that were decided live alone."""
    only_replayed: int
    """Payments that the replay alone decided."""
    whole: LiveAgreement
    """How far the two agree; its values stand beside these."""
    actions: list[list[int]]
    """`actions[i][j]` payments got action i live and j from the replay (0 approve, 1 review, 2 decline)."""
    score_differences: list[int]
    """Payments by replayed score less live one: element i lies between edges i and i + 1 of DIFFERENCE_EDGES in
    models/metrics/comparison.py.
    """
    flags_of_other_action: dict[str, int]
    """How many payments with another action had each flag live, the most frequent first."""
    by_model_version: dict[str, LiveAgreement]
    """The same by the version that decided live."""

    def to_dict(self) -> dict[str, Any]:
        """As metrics.json has it."""
        of_all = {name: value for name, value in vars(self).items() if name not in ("whole", "by_model_version")}
        versions = {version: vars(agreement) for version, agreement in self.by_model_version.items()}
        return of_all | vars(self.whole) | {"by_model_version": versions}


@dataclass(frozen=True)
class LiveDecisions:
    """Decisions as they were made: FIELDS and the columns of `order`, which tell decisions of one time apart."""

    table: pa.Table
    not_decoded: int
    order: tuple[str, ...]


def compare_with_live(live: LiveDecisions, replayed: pa.Table) -> LiveComparison:
    """The section `archived_decisions` of a replay's results; `replayed` has payment_id, score and action."""
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
    """What `compare_with_live` takes, from a replay's decisions.parquet."""
    return pq.read_table(path, columns=["payment_id", "score", "action"])


def _first_decisions(live: LiveDecisions) -> pa.Table:
    """The first decision about each payment."""
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
    """How many payments got each action live and each from the replay."""
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
    counts = Counter(flag for of_one in flags for flag in of_one)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _text(column: pa.ChunkedArray) -> pa.Array:
    whole = column.cast(pa.string()).combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole
