"""A replay over an engine: vectors, scores and decisions are made in its partitions, and measured here.

    events ─ vectors ─ Decided ─┬─► decisions.parquet, a folder of files in order of time
                                └─► a few columns of the window's payments, streamed here ─► metrics.json, report.html

The measures are computed by the code of a replay on one machine (models/replay/measures.py), from the same columns in
the same order. Therefore metrics.json and report.html have the same bytes. Those columns lie in files beside the
results while the measures are computed: about 120 bytes a payment of the window.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paywarden.features.dataflow.column_files import MmapAllocator
from paywarden.features.dataflow.dataflow_engine import RowsT, require_local
from paywarden.features.dataflow.fold import Window
from paywarden.features.dataflow.vectors import Passage, ZippedPayments
from paywarden.features.dataflow.window_history import GenuineDelays, OtherFrauds, WindowHistory, read_columns_of
from paywarden.features.history.point_in_time import Chunk
from paywarden.models.bundle.shipping import ShippedBundle
from paywarden.models.metrics.costs import CostSettings
from paywarden.models.metrics.evaluation import Days, date_of_day
from paywarden.models.metrics.labels import mature_of_delays, sampled_every
from paywarden.models.policy.policy import ACTIONS, Policy
from paywarden.models.replay.files import (
    DIFFERENCE_SCHEMA,
    DIFFERENCES,
    DecisionTables,
    require_free_names,
    write_whole,
)
from paywarden.models.replay.measures import Contestant, ReplayResults
from paywarden.models.replay.replay import (
    METRICS,
    REPORT,
    ReplayOptions,
    facts_of,
    measured_payments,
    results_of,
)
from paywarden.models.replay.replayed_policy import ActionReasons, Decisions, ReplayedPolicy
from paywarden.models.replay.report.report import report_html
from paywarden.schemas.errors import Misconfigured

_FETCHED = (
    *("payment_id", "event_time_ms", "card_id", "merchant_id", "amount_minor", "amount_reference_minor"),
    *("score", "label"),
)
_SEPARATOR = "\x1f"


@dataclass(frozen=True)
class SentContestant:
    """A contestant as it travels to workers."""

    bundle: ShippedBundle
    policy: Policy


@dataclass(frozen=True)
class Decided:
    """Finishes payments with the decisions of one or two contestants."""

    contestants: tuple[SentContestant, ...]
    catalogue_digest: str
    tables: DecisionTables
    columns: pa.Schema

    @cached_property
    def decisions_schema(self) -> pa.Schema:
        """Returns the columns of decisions.parquet, without dictionaries: an engine may not know them."""
        return pa.schema([(field.name, _plain(field.type)) for field in self.tables.schema])

    @cached_property
    def schema(self) -> pa.Schema:
        own = [(f"_{name}", self.columns.field(name).type) for name in read_columns_of(self.columns)]
        causes = [("_cause", pa.string())]
        if len(self.contestants) > 1:
            causes += [("_other_score", pa.float64()), ("_other_cause", pa.string())]
        return pa.schema([*self.decisions_schema, ("_label", pa.int8()), *own, *causes])

    @property
    def fetched(self) -> list[str]:
        """Returns the columns that measures need."""
        return [name for name in self.schema.names if name.startswith("_") or name in _FETCHED]

    def finish(self, zipped: ZippedPayments) -> pa.RecordBatch:
        history, amounts = zipped.payments.history, zipped.payments.amounts
        chunk = Chunk(0, len(history), zipped.vectors, 0)
        decided, causes = [], []
        scores: dict[str, Any] = {}
        for one in self.contestants:
            if one.bundle.digest not in scores:
                scores[one.bundle.digest] = one.bundle.open(self.catalogue_digest).score(zipped.vectors)
            policy = ReplayedPolicy(one.policy, history, amounts)
            decided.append(policy.decide(chunk, scores[one.bundle.digest]))
            causes.append(policy.causes)
        table = self.tables.decisions(history, zipped.label, amounts, chunk, decided[0], causes[0])
        columns = table.cast(self.decisions_schema).combine_chunks().to_batches()
        arrays = list(columns[0].columns) if columns else [pa.array([], field.type) for field in self.decisions_schema]
        arrays += [pa.array(zipped.label), *(zipped.batch[name] for name in read_columns_of(self.columns))]
        arrays.append(_cause_texts(decided[0], causes[0]))
        if len(decided) > 1:
            arrays += [pa.array(decided[1].score), _cause_texts(decided[1], causes[1])]
        return pa.record_batch(arrays, schema=self.schema)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _cause_texts(decided: Decisions, causes: Sequence[ActionReasons]) -> pa.Array:
    texts = pa.array([_SEPARATOR.join((action, *reasons)) for action, reasons in causes], pa.string())
    return texts.take(pa.array(decided.cause))


class _Causes:
    """Numbers the causes of a contestant as they arrive."""

    def __init__(self) -> None:
        self.causes: list[ActionReasons] = []
        self._numbers: dict[str, int] = {}

    def numbers_of(self, texts: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.int32]]:
        encoded = texts.combine_chunks().dictionary_encode()
        encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
        texts = encoded.dictionary.to_pylist()
        for text in texts:
            if text not in self._numbers:
                self._numbers[text] = len(self._numbers)
                action, *reasons = text.split(_SEPARATOR)
                self.causes.append(ActionReasons(action, tuple(reasons)))
        number_of = np.array([self._numbers[text] for text in texts], dtype=np.int32)
        found: np.ndarray[Any, np.dtype[np.int32]] = number_of[encoded.indices.to_numpy()]
        return found

    def actions(self) -> np.ndarray[Any, np.dtype[np.int8]]:
        return np.array([ACTIONS.index(action) for action, _ in self.causes], dtype=np.int8)


def replay_on(
    passage: Passage[RowsT],
    *,
    contestants: Sequence[tuple[Contestant, Path]],
    destination: Path,
    decisions: str,
    options: ReplayOptions,
    say: Callable[[str], object],
) -> ReplayResults:
    """Write metrics.json and report.html to `destination`, and the folder `decisions`; return the results.

    `contestants`: the champion with its bundle's folder, then the challenger. `say` gets a line for each stage. Raises
    Misconfigured as a replay on one machine does, and for options that only such a replay has.
    """
    require_local({"--lag": options.staleness is not None, "--decisions": options.earlier is not None})
    days, places = options.window, passage.places
    first, last = places.rows_of(days.first, days.last)
    if first == last:
        raise Misconfigured(f"there is no payment from {date_of_day(days.first)} to {date_of_day(days.last)}")
    champion = contestants[0][0]
    feature_names = champion.bundle.manifest.feature_names if options.with_features else []
    require_free_names(feature_names, with_vectors=options.with_vectors)
    tables = DecisionTables(champion.bundle.manifest.model_version, options.with_vectors, tuple(feature_names))
    shipped = {folder: ShippedBundle.of(folder) for _, folder in contestants}
    sent = tuple(SentContestant(shipped[folder], contestant.policy) for contestant, folder in contestants)
    work = Decided(sent, passage.features.plan.digest, tables, passage.columns)
    say(f"payments {first} to {last - 1} of {places.payments} are scored, after {first} that only fill profiles")
    started = time.perf_counter()
    with ExitStack() as files:
        folder = Path(files.enter_context(TemporaryDirectory(prefix=".window-", dir=destination)))
        rows = passage.finished(Window(first, last), work)
        streamed = passage.engine.split(rows, decisions, work.decisions_schema.names, work.fetched)
        others = OtherFrauds(passage.columns, places, Window(first, last))
        made = _WindowColumns(passage, folder, destination, others, len(contestants), files)
        for table in streamed:
            made.add(table)
        say("the decisions are measured")
        results = made.results([contestant for contestant, _ in contestants], options, last)
    per_second = last / (time.perf_counter() - started)
    write_whole(destination / METRICS, results.to_json(per_second))
    write_whole(destination / REPORT, report_html(results))
    return results


class _WindowColumns:
    """The columns that measures need, of the window's payments in order."""

    def __init__(
        self,
        passage: Passage[Any],
        folder: Path,
        destination: Path,
        others: OtherFrauds,
        contestants: int,
        files: ExitStack,
    ) -> None:
        self._passage, self._folder, self._destination = passage, folder, destination
        self._room, count = MmapAllocator(folder), others.window.last - others.window.first
        self._history = WindowHistory(passage, self._room, others, files)
        frauds = self._history.frauds
        self._label = self._room.new(count + frauds, np.int8)
        self._label[:] = 1
        self._amount = self._room.new(count + frauds, np.int64)
        self._decided = [Decisions.empty(count, self._room.new) for _ in range(contestants)]
        self._causes = [_Causes() for _ in range(contestants)]
        self._differences: pq.ParquetWriter | None = None
        if contestants > 1:
            self._differences = files.enter_context(pq.ParquetWriter(folder / DIFFERENCES, DIFFERENCE_SCHEMA))

    def add(self, table: pa.Table) -> None:
        """Take further payments."""
        of_all = self._history.add(table)
        before = self._history.rows.start
        rows = slice(of_all.start - before, of_all.stop - before)
        self._label[of_all] = table["_label"].to_numpy()
        self._amount[of_all] = table["amount_reference_minor"].fill_null(-1).to_numpy()
        for number, (score, cause) in enumerate(
            (("score", "_cause"), ("_other_score", "_other_cause"))[: len(self._decided)]
        ):
            decided, causes = self._decided[number], self._causes[number]
            decided.score[rows], decided.cause[rows] = table[score].to_numpy(), causes.numbers_of(table[cause])
            decided.action[rows] = causes.actions()[decided.cause[rows]]
        if self._differences is not None:
            self._differences.write_table(self._changed(table, rows))
        self._room.release()

    def _changed(self, table: pa.Table, rows: slice) -> pa.Table:
        champion, challenger = (decided.of(rows) for decided in self._decided)
        changed = np.flatnonzero(champion.action != challenger.action)
        taken = table.take(pa.array(changed))
        names = pa.array(ACTIONS)
        columns = {field.name: taken[field.name] for field in DIFFERENCE_SCHEMA if field.name in taken.column_names} | {
            "champion_score": pa.array(champion.score[changed]),
            "challenger_score": pa.array(challenger.score[changed]),
            "champion_action": pa.DictionaryArray.from_arrays(pa.array(champion.action[changed]), names),
            "challenger_action": pa.DictionaryArray.from_arrays(pa.array(challenger.action[changed]), names),
        }
        return pa.table([columns[name] for name in DIFFERENCE_SCHEMA.names], schema=DIFFERENCE_SCHEMA)

    def results(self, contestants: Sequence[Contestant], options: ReplayOptions, replayed: int) -> ReplayResults:
        """Measure the decisions, once all payments are there."""
        rows = self._history.rows
        assert rows.stop - rows.start == len(self._decided[0].score), "a payment of the window is missing"
        history = self._history.whole()
        measured, label_counts = measured_payments(
            history,
            self._label,
            self._amount,
            rows,
            options,
            contestants[0].bundle.manifest,
            mature_ms=self._mature_ms(),
            new=self._room.new,
        )
        currency = self._passage.rates.reference_currency
        costs = options.costs or CostSettings()
        facts = facts_of(measured, self._label, label_counts, options, replayed, currency, costs)
        causes = [one.causes for one in self._causes]
        results = results_of(facts, measured, list(contestants), causes, self._decided, rows.start)
        if self._differences is not None:
            self._differences.close()
            (self._folder / DIFFERENCES).replace(self._destination / DIFFERENCES)
        else:
            (self._destination / DIFFERENCES).unlink(missing_ok=True)
        return results

    def _mature_ms(self) -> int:
        engine, places = self._passage.engine, self._passage.places
        work = GenuineDelays(places, sampled_every(places.outcomes))
        tables = engine.tables(engine.map(self._passage.events, work))
        delays = [np.zeros(0, dtype=np.int64), *(table["delay_ms"].to_numpy() for table in tables)]
        return mature_of_delays(places.last_ms, np.concatenate(delays))


def days_of(passage: Passage[Any]) -> Days:
    """Returns the first and the last UTC day with a payment."""
    return Days(min(passage.places.by_day), max(passage.places.by_day))
