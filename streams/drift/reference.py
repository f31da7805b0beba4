"""Make a reference from an archive of live decisions, of days that an analyst considers usual."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paywarden.models.bundle.bundle import Manifest
from paywarden.models.drift.binning import DIMENSIONS
from paywarden.models.drift.reference import Reference
from paywarden.models.drift.reference_builder import DAYS_MIN, Live, PastDecisions, make_reference
from paywarden.models.drift.table_segments import TableSegments
from paywarden.models.metrics.evaluation import DAY_MS, Days, date_of_day
from paywarden.models.policy.policy import ACTIONS, FLAGS, MODEL_ABSENT
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.archive.files import read_archive
from paywarden.streams.kafka.topic_rows import OFFSET, PARTITION, rows_schema

_FIELDS = ("decision_id", "decided_time_ms", "score", "action", "flags", "model_version", "vector", "profile_age_ms")
_COLUMNS = (*_FIELDS, *DIMENSIONS, PARTITION, OFFSET)


def live_reference(archive: Path, manifest: Manifest, window: Days) -> Reference:
    """Return the reference of a model's decisions on these days, each counted once.

    It takes as much memory as the decisions' vectors. Raises Misconfigured as `read_archive` does, for decisions of
    fewer than DAYS_MIN days, and for decisions of another catalogue.
    """
    table = _decisions(archive, manifest.model_version, window)
    feature_count = len(manifest.feature_names)
    if pc.any(pc.not_equal(pc.binary_length(table["vector"]), 4 * feature_count)).as_py():
        raise Misconfigured(
            f"{archive}: decisions of model {manifest.model_version} have no vectors of its {feature_count} features"
        )
    flags = table["flags"].to_pylist()
    scores = table["score"].to_numpy().copy()
    scores[[MODEL_ABSENT in names for names in flags]] = np.nan
    past = PastDecisions(
        scores,
        np.frombuffer(b"".join(table["vector"].to_pylist()), dtype="<f4").reshape(len(table), feature_count),
        TableSegments(
            table["decided_time_ms"].to_numpy(),
            tuple(np.array(table[name].to_pylist(), dtype=object) for name in DIMENSIONS),
        ),
        Live(
            np.array([ACTIONS.index(action) for action in table["action"].to_pylist()], dtype=np.int64),
            flags,
            pc.fill_null(table["profile_age_ms"], -1).to_numpy(),
        ),
    )
    reference = make_reference(
        past,
        model_version=manifest.model_version,
        feature_names=manifest.feature_names,
        thresholds=(manifest.review_at, manifest.decline_at),
        flags=FLAGS,
    )
    if reference is None:
        raise Misconfigured(f"{archive}: wanted decisions of {DAYS_MIN} days or more, got fewer")
    return reference


def _decisions(archive: Path, version: str, window: Days) -> pa.Table:
    table = decisions_of_days(archive, window, version=version)
    if len(table) == 0:
        days = f"{date_of_day(window.first)} to {date_of_day(window.last)}"
        raise Misconfigured(f"{archive} holds no decision of model {version} from {days}")
    return table


def decisions_of_days(archive: Path, window: Days, *, version: str = "", variant: bool = False) -> pa.Table:
    """Return the decisions made on these days, in order of time and each once.

    `version`: those of one model alone. `variant`: with the column of that name. Raises Misconfigured as `read_archive`
    does.
    """
    first_ms, end_ms = window.first * DAY_MS, (window.last + 1) * DAY_MS
    names = (*_COLUMNS, "variant") if variant else _COLUMNS
    schema = rows_schema("decisions", columns=names)
    # An archive sorts its files by the payment's time, which may be on the day before the decision.
    table = read_archive(archive, "decisions", schema, times_ms=(first_ms - DAY_MS, end_ms)).table
    time_ms = table["decided_time_ms"]
    is_wanted = pc.and_(pc.greater_equal(time_ms, first_ms), pc.less(time_ms, end_ms))
    if version:
        is_wanted = pc.and_(is_wanted, pc.equal(pc.cast(table["model_version"], pa.string()), version))
    table = table.filter(is_wanted)
    table = table.sort_by([(name, "ascending") for name in ("decided_time_ms", PARTITION, OFFSET)])
    # A record that was sent twice is one decision.
    ids = table["decision_id"].combine_chunks()
    first_of = np.unique(pc.index_in(ids, value_set=pc.unique(ids)).to_numpy(), return_index=True)[1]
    return table.take(np.sort(first_of))
