"""Past decisions for a backtest of drift detection: read from a replay or an archive, and changed on purpose.

    decisions.parquet of `paywarden replay --vectors` ─┐
                                                       ├─► PastPart, in order of time ─► Injections ─► backtest.py
    decisions of `paywarden admin archive`, a day at a time ─┘

A replay has no flags and no ages of profiles. An archive has the live decisions, with variants.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paywarden.models.drift.binning import DIMENSIONS
from paywarden.models.drift.counts import DecisionRows
from paywarden.models.drift.signals import FEATURE_PREFIX, TRAFFIC
from paywarden.models.metrics.evaluation import DAY_MS, Days, day_of_date
from paywarden.models.policy.policy import ACTIONS, MODEL_ABSENT
from paywarden.schemas import arrow_files
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.archive.files import read_archive
from paywarden.streams.drift.reference import decisions_of_days
from paywarden.streams.kafka.topic_rows import OFFSET, PARTITION, rows_schema

_ROWS = 65_536
_REPLAYED = ("event_time_ms", "score", "action", "model_version", "vector", *DIMENSIONS)
_INJECTION = re.compile(r"([^=@]+)=([^@]*)@([0-9-]+)(?:\+([0-9]{1,4})d)?")


@dataclass(frozen=True)
class PastPart:
    """Decisions in order of time. `time_ms`: (rows,); `versions`: (rows,), with variants, as the stream counts them.

    `widths`: (rows,), how many features each decision's vector has. Behind these, its row of `rows.vectors` has NaN.
    """

    time_ms: NDArray[np.int64]
    versions: NDArray[np.object_]
    widths: NDArray[np.int64]
    rows: DecisionRows

    def part(self, chosen: NDArray[np.intp] | slice) -> DecisionRows:
        """Returns some of the rows, in the given order."""
        rows, places = self.rows, np.arange(len(self.time_ms))[chosen]
        return DecisionRows(
            rows.scores[places],
            rows.actions[places],
            rows.vectors[places],
            [rows.flags[place] for place in places],
            rows.ages_ms[places],
            [[column[place] for place in places] for column in rows.values],
        )


def replayed(path: Path, window: Days | None) -> Iterator[PastPart]:
    """Yield the decisions of a replay's decisions.parquet.

    Raises Misconfigured for a file that cannot be read, has no vectors or channels, or is not in order of time.
    """
    try:
        file = pq.ParquetFile(path)
        missing = [name for name in _REPLAYED if name not in file.schema_arrow.names]
    except arrow_files.UNREADABLE as error:
        raise Misconfigured(f"{path}: wanted the decisions.parquet of a replay: {error}") from error
    if missing:
        raise Misconfigured(f"{path}: it has no column {missing[0]}: `paywarden replay --vectors` writes it")
    newest_ms = 0
    for batch in file.iter_batches(batch_size=_ROWS, columns=list(_REPLAYED)):
        table = _within(pa.table(batch), "event_time_ms", window)
        if len(table) == 0:
            continue
        part = _part_of(path, table, "event_time_ms", [()] * len(table), np.full(len(table), -1, dtype=np.int64))
        if part.time_ms[0] < newest_ms or (np.diff(part.time_ms) < 0).any():
            raise Misconfigured(f"{path}: its decisions are not in order of event_time_ms")
        newest_ms = int(part.time_ms[-1])
        yield part


def archived(archive: Path, window: Days | None) -> Iterator[PastPart]:
    """Yield the decisions of an archive, a day at a time and each decision once.

    It takes as much memory as a day's vectors. Raises Misconfigured as `read_archive` does.
    """
    for day in range(*_days_of(archive, window)):
        table = decisions_of_days(archive, Days(day, day), variant=True)
        if len(table) == 0:
            continue
        flags = table["flags"].to_pylist()
        part = _part_of(archive, table, "decided_time_ms", flags, pc.fill_null(table["profile_age_ms"], -1).to_numpy())
        part.rows.scores[[MODEL_ABSENT in names for names in flags]] = np.nan
        variants = table["variant"].to_pylist()
        for place, variant in enumerate(variants):
            if variant:
                part.versions[place] = f"{part.versions[place]}/{variant}"
        yield part


def _days_of(archive: Path, window: Days | None) -> tuple[int, int]:
    """Return the first day to read and the day after the last."""
    if window is not None:
        return window.first, window.last + 1
    schema = rows_schema("decisions", columns=("decided_time_ms", PARTITION, OFFSET))
    times = pc.min_max(read_archive(archive, "decisions", schema).table["decided_time_ms"]).as_py()
    if times["min"] is None:
        raise Misconfigured(f"{archive} holds no decisions")
    return times["min"] // DAY_MS, times["max"] // DAY_MS + 1


def _within(table: pa.Table, name: str, window: Days | None) -> pa.Table:
    if window is None:
        return table
    after = pc.greater_equal(table[name], window.first * DAY_MS)
    return table.filter(pc.and_(after, pc.less(table[name], (window.last + 1) * DAY_MS)))


def _part_of(
    path: Path, table: pa.Table, time_name: str, flags: Sequence[Sequence[str]], ages_ms: NDArray[np.int64]
) -> PastPart:
    sizes = pc.fill_null(pc.binary_length(table["vector"]), 0).to_numpy()
    if (sizes % 4).any():
        raise Misconfigured(f"{path}: wanted vectors of float32, got one of {int(sizes[sizes % 4 > 0][0])} bytes")
    widths = sizes.astype(np.int64) // 4
    vectors = np.full((len(table), int(widths.max(initial=0))), np.nan, dtype=np.float32)
    for width in np.unique(widths):
        of_width = widths == width
        content = b"".join(table["vector"].filter(pa.array(of_width)).to_pylist())
        vectors[of_width, :width] = np.frombuffer(content, dtype="<f4").reshape(-1, width) if width else 0
    actions = {name: number for number, name in enumerate(ACTIONS)}
    return PastPart(
        table[time_name].to_numpy(),
        np.array(table["model_version"].to_pylist(), dtype=object),
        widths,
        DecisionRows(
            table["score"].to_numpy().copy(),
            np.array([actions[name] for name in table["action"].to_pylist()], dtype=np.int64),
            vectors,
            flags,
            ages_ms,
            [table[name].to_pylist() for name in DIMENSIONS],
        ),
    )


@dataclass(frozen=True)
class Injection:
    """A change made on purpose: payments get `value` from `at_ms` on.

    `what`: score (its value is then multiplied), feature:NAME, or one of DIMENSIONS. Over `days` the share of changed
    payments grows from none to all; with 0 days all change at once. Nothing is computed again after the change: a
    feature moves without the score, a score without the action.
    """

    text: str
    what: str
    value: str
    at_ms: int
    days: int

    @classmethod
    def of(cls, text: str) -> Injection:
        """Return the injection of a text such as `score=0.4@2026-03-01` or `channel=app@2026-03-01+30d`.

        Raises Misconfigured saying what was wanted.
        """
        match = _INJECTION.fullmatch(text)
        what = match[1] if match else ""
        if match is None or not (what in ("score", *DIMENSIONS) or what.startswith(FEATURE_PREFIX)):
            raise Misconfigured(
                f"--inject: wanted score=FACTOR@DAY, feature:NAME=NUMBER@DAY or one of {', '.join(DIMENSIONS)} as "
                f"channel=VALUE@DAY, each with +30d for a slow change, got {text!r}"
            )
        if what not in DIMENSIONS:
            try:
                float(match[2])
            except ValueError as error:
                raise Misconfigured(f"--inject {text}: wanted a number after =, got {match[2]!r}") from error
        return cls(text, what, match[2], day_of_date(match[3]) * DAY_MS, int(match[4] or 0))

    def is_about(self, subject: str, segment: str) -> bool:
        """Whether an alert of this subject and segment names the change."""
        if self.what in DIMENSIONS:
            return subject == TRAFFIC and segment.startswith(f"{self.what}=")
        return subject == self.what

    def changed(self, part: PastPart, feature_names: Sequence[str], rng: np.random.Generator) -> PastPart:
        """Return the part with the change. Raises Misconfigured for a feature that the model does not have."""
        share = np.clip((part.time_ms - self.at_ms) / (max(self.days, 1) * DAY_MS), 0.0, 1.0)
        if not self.days:
            share = (part.time_ms >= self.at_ms).astype(np.float64)
        hit = rng.random(len(share)) < share
        rows = part.rows
        if self.what == "score":
            return replace(part, rows=replace(rows, scores=np.where(hit, rows.scores * float(self.value), rows.scores)))
        if self.what in DIMENSIONS:
            values = list(rows.values)
            place = DIMENSIONS.index(self.what)
            values[place] = [
                (self.value or None) if is_hit else value for is_hit, value in zip(hit, values[place], strict=True)
            ]
            return replace(part, rows=replace(rows, values=values))
        name = self.what.removeprefix(FEATURE_PREFIX)
        if name not in feature_names:
            raise Misconfigured(f"--inject {self.text}: the model has no feature {name!r}")
        vectors = rows.vectors.copy()
        vectors[hit, list(feature_names).index(name)] = float(self.value)
        return replace(part, rows=replace(rows, vectors=vectors))


def injected(
    parts: Iterable[PastPart], injections: Sequence[Injection], feature_names: Sequence[str], seed: int
) -> Iterator[PastPart]:
    """Yield the parts with all injections, in their order; the same for the same seed."""
    rng = np.random.default_rng(seed)
    for part in parts:
        for injection in injections:
            part = injection.changed(part, feature_names, rng)
        yield part
