"""Replay a history through the feature code, the model and the policy that serve, and measure the decisions.

How it works:

1. The point-in-time replay computes each payment's vector from the payments before it. With decisions of an earlier
   replay (`earlier`), the vectors and the champion's scores are read from its file instead.
2. The bundle scores the vectors, and the policy decides. Kernel, bundle and policy are those of a scoring worker. A
   replayed payment therefore gets the vector, score and action that it would have got live with up-to-date profiles,
   or with profiles that lag behind as far as one says (`staleness`). Live flags, such as a stale mirror, do not exist
   in a replay.
3. A challenger (another model, another policy, or both) decides about the same vectors in the same pass.
4. Each chunk of decisions is written while the next chunk is computed.
5. The decisions about the window's payments are measured against the labels known in the end. All payments with a
   label are measured. The protocol of the Fraud Detection Handbook leaves out payments of cards that were already known
   to be compromised; it is an option (`protocol`).

    history ──► point in time ──► vectors ──► champion's score, action ──────► decisions.parquet
       or earlier decisions          └──────► challenger's score, action ─┬──► differences.parquet
                                                                          └──► metrics.json, report.html

Example: a history has 70,000 payments on 30 days, and the window is its last 6 days with 14,000 payments. The replay
computes all 70,000 vectors, because the earlier payments fill the profiles. It writes 14,000 decisions and measures
them all. With the handbook's protocol, and 200 of them about cards known to be compromised, it measures 13,800.

The same input gives the same bytes of every file, whatever the number of threads. The only exception is
`payments_per_second` in metrics.json. A history that does not fit memory is replayed by models/replay/passage.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paywarden.features.catalogue.attributes import flag_code
from paywarden.features.history.history import UNKNOWN, History, final_labels, parts_of
from paywarden.features.history.overlay import HistoryOverlay
from paywarden.features.history.point_in_time import Chunk, PointInTimeReplay, reference_amounts
from paywarden.features.history.staleness import Staleness
from paywarden.features.history.thread_pool import ThreadPool
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RateTable
from paywarden.models.bundle.bundle import Bundle, Manifest
from paywarden.models.metrics.costs import CostSettings
from paywarden.models.metrics.evaluation import (
    DAY_MS,
    Days,
    Split,
    date_of_day,
    day_of_date,
    day_of_time,
    exclude_known_compromised,
)
from paywarden.models.metrics.first_strikes import strikes_of
from paywarden.models.metrics.labels import AUTO, LabelCounts, end_of_labels_ms, kept_labels, mature_before_ms
from paywarden.models.replay.earlier_decisions import EarlierDecisions
from paywarden.models.replay.files import DECISIONS, ReplayFiles, require_free_names, write_whole
from paywarden.models.replay.measures import (
    ALL_PAYMENTS,
    HANDBOOK,
    PROTOCOLS,
    Contestant,
    MeasuredPayments,
    ReplayFacts,
    ReplayResults,
    compare,
    count_actions,
    measure_contestant,
)
from paywarden.models.replay.replayed_policy import ActionReasons, Decisions, NewColumn, ReplayedPolicy
from paywarden.models.replay.report.report import report_html
from paywarden.schemas.errors import Misconfigured

METRICS, REPORT = "metrics.json", "report.html"


@dataclass(frozen=True)
class ReplayOptions:
    """The options of a replay: its measures, files and inputs.

    `window`: the UTC days to decide about and measure. `costs`: the stated costs; None stands for the defaults.

    `protocol`: which payments are measured. ALL_PAYMENTS measures all; HANDBOOK leaves out payments of cards with a
    known fraud, as the Fraud Detection Handbook does. `label_delay_days`: with HANDBOOK, after how many days a fraud
    counts as known. `unknown_labels`: the meaning of a payment without an outcome (models/metrics/labels.py).
    `propensity_weight_max`: the largest weight that a propensity gives, 0 for none (models/metrics/propensity.py).

    `staleness`: how far profiles lag behind the payments (features/history/staleness.py); None for not at all.
    `overlay`: which of the payments that lag scoring hosts see (features/history/overlay.py); None: no payment.

    `with_vectors` and `with_features` keep each payment's features in decisions.parquet, as bytes and as columns.
    `earlier`: the decisions.parquet of a replay of the same history with the champion's model. The replay reads scores
    and vectors from it instead of computing them again.

    `threads` changes only the time a replay takes.
    """

    window: Days
    label_delay_days: int
    protocol: str = ALL_PAYMENTS
    unknown_labels: str = AUTO
    propensity_weight_max: float = 20.0
    costs: CostSettings | None = None
    with_vectors: bool = False
    with_features: bool = False
    earlier: Path | None = None
    staleness: Staleness | None = None
    overlay: HistoryOverlay | None = None
    threads: int = 1


@dataclass(frozen=True)
class _Scored:
    """A chunk of payments with one array of scores for each contestant, the champion's first."""

    chunk: Chunk
    scores: list[NDArray[np.float64]]


def replay(
    history: History,
    *,
    engine: FeatureEngine,
    rates: RateTable,
    champion: Contestant,
    challenger: Contestant | None = None,
    destination: Path,
    options: ReplayOptions,
    progress: Callable[[int], object] | None = None,
) -> ReplayResults:
    """Write decisions.parquet, metrics.json and report.html to `destination`; return the results.

    With a challenger, also write differences.parquet. `progress` is called with the number of further payments done.
    Raises Misconfigured where the window holds no payment to measure, and where `destination` or
    `options.earlier` cannot be used.
    """
    window, earlier = options.window, options.earlier
    if options.protocol not in PROTOCOLS:
        raise Misconfigured(f"protocol: wanted one of {', '.join(PROTOCOLS)}, got {options.protocol!r}")
    costs = options.costs or CostSettings()
    if earlier is not None and options.staleness is not None:
        raise Misconfigured(f"{earlier} has scores of another lag: a replay with a lag computes them again")
    first, last = np.searchsorted(history.event_time_ms, [window.first * DAY_MS, (window.last + 1) * DAY_MS]).tolist()
    if first == last:
        raise Misconfigured(f"there is no payment from {date_of_day(window.first)} to {date_of_day(window.last)}")
    feature_names = champion.bundle.manifest.feature_names if options.with_features else []
    require_free_names(feature_names, with_vectors=options.with_vectors)
    started = time.perf_counter()
    contestants = [champion] if challenger is None else [champion, challenger]
    with ThreadPool(options.threads) as pool:
        if earlier is None:
            point_in_time = PointInTimeReplay(
                history,
                engine,
                rates,
                crew=pool,
                staleness=options.staleness,
                overlay=options.overlay,
            )
            amounts, replayed = point_in_time.amounts, last
            scored = _scored_point_in_time(point_in_time, contestants, first, last, pool, progress)
        else:
            if earlier.resolve() == (destination / DECISIONS).resolve():
                raise Misconfigured(f"{earlier} would be replaced by the results: choose another folder for them")
            reused = _earlier(earlier, history, contestants, options.with_vectors or options.with_features)
            amounts, replayed = reference_amounts(history, rates), last - first
            scored = _scored_earlier(reused, contestants, first, last, pool, progress)
        labels = final_labels(history)
        measured, label_counts = measured_payments(
            history,
            labels,
            amounts,
            slice(first, last),
            options,
            champion.bundle.manifest,
            mature_ms=mature_before_ms(history, end_of_labels_ms(history)),
        )
        policies = [ReplayedPolicy(contestant.policy, history, amounts) for contestant in contestants]
        _make_folder(destination)
        decided = [Decisions.empty(last - first) for _ in policies]
        version = champion.bundle.manifest.model_version
        with ReplayFiles(
            destination,
            history,
            labels=labels,
            amounts=amounts,
            model_version=version,
            with_vectors=options.with_vectors,
            feature_names=feature_names,
            with_differences=challenger is not None,
        ) as files:
            _decide(scored, policies, decided, first, files, pool)
    per_second = replayed / (time.perf_counter() - started)
    facts = facts_of(measured, labels, label_counts, options, replayed, rates.reference_currency, costs)
    results = results_of(facts, measured, contestants, [policy.causes for policy in policies], decided, first)
    write_whole(destination / METRICS, results.to_json(per_second))
    write_whole(destination / REPORT, report_html(results))
    return results


def _scored_point_in_time(
    point_in_time: PointInTimeReplay,
    contestants: list[Contestant],
    first: int,
    last: int,
    pool: ThreadPool,
    progress: Callable[[int], object] | None,
) -> Iterator[_Scored]:
    for chunk in point_in_time.chunks(first=first, last=last, progress=progress):
        champion = _score(contestants[0].bundle, chunk.vectors, pool)
        yield _Scored(chunk, _scores(contestants, chunk.vectors, champion, pool))


def _scored_earlier(
    earlier: EarlierDecisions,
    contestants: list[Contestant],
    first: int,
    last: int,
    pool: ThreadPool,
    progress: Callable[[int], object] | None,
) -> Iterator[_Scored]:
    for part in earlier.chunks(first, last):
        yield _Scored(part.chunk, _scores(contestants, part.chunk.vectors, part.score, pool))
        if progress is not None:
            progress(len(part.score))


def _scores(
    contestants: list[Contestant], vectors: NDArray[np.float32], champion: NDArray[np.float64], pool: ThreadPool
) -> list[NDArray[np.float64]]:
    """Returns the scores of each contestant. A challenger with the champion's model reuses the champion's scores."""
    own = contestants[0].bundle
    return [
        champion,
        *(champion if other.bundle is own else _score(other.bundle, vectors, pool) for other in contestants[1:]),
    ]


def _score(bundle: Bundle, vectors: NDArray[np.float32], pool: ThreadPool) -> NDArray[np.float64]:
    """Returns the model's scores, (rows,). Each thread scores one run of rows; no row's score depends on the others."""
    shares = parts_of(len(vectors), -(-len(vectors) // pool.threads))
    return np.concatenate(pool.each(lambda share: bundle.score(vectors[share]), shares))


def _earlier(path: Path, history: History, contestants: list[Contestant], with_vectors: bool) -> EarlierDecisions:
    manifest = contestants[0].bundle.manifest
    earlier = EarlierDecisions(
        path, history, model_version=manifest.model_version, feature_count=len(manifest.feature_names)
    )
    needs_vectors = with_vectors or any(
        contestant.policy.has_conditions or contestant.bundle is not contestants[0].bundle for contestant in contestants
    )
    if needs_vectors and not earlier.has_vectors:
        raise Misconfigured(
            f"{path} holds no vectors, which rules, segments and other models need: replay with --vectors"
        )
    return earlier


def _decide(
    scored: Iterator[_Scored],
    policies: list[ReplayedPolicy],
    decided: list[Decisions],
    first: int,
    files: ReplayFiles,
    pool: ThreadPool,
) -> None:
    """Let every policy decide about every chunk, and write each chunk while the next one is computed.

    The decisions go into `decided`, one element for each policy.
    """
    wait_until_written: Callable[[], object] = int
    for part in scored:
        here = slice(part.chunk.first - first, part.chunk.last - first)
        parts = [whole.of(here) for whole in decided]
        for target, policy, score in zip(parts, policies, part.scores, strict=True):
            decisions = policy.decide(part.chunk, score)
            target.score[:], target.action[:], target.cause[:] = decisions.score, decisions.action, decisions.cause
        wait_until_written()
        wait_until_written = pool.beside(partial(files.write, part.chunk, parts, policies[0].causes))
    wait_until_written()


def _split(manifest: Manifest, options: ReplayOptions) -> Split | None:
    """Training days and window as the handbook's split.

    None with another protocol, and where the window does not come after the training days.
    """
    train, window = Days(day_of_date(manifest.train_from), day_of_date(manifest.train_to)), options.window
    if options.protocol != HANDBOOK or window.first <= train.last:
        return None
    return Split(train, window, options.label_delay_days)


def measured_payments(
    history: History,
    labels: NDArray[np.int8],
    amounts: NDArray[np.int64],
    window_rows: slice,
    options: ReplayOptions,
    manifest: Manifest,
    *,
    mature_ms: int,
    new: NewColumn = np.zeros,
) -> tuple[MeasuredPayments, LabelCounts]:
    """Returns the payments to measure, and the labels of all payments of the window.

    With the handbook's protocol, the champion's training days (`manifest`) decide which cards are known, for the
    challenger as well. `mature_ms`: payments before that time are mature (models/metrics/labels.py). `new`
    makes a column of zeros. Raises Misconfigured where no payment remains.
    """
    split, days = _split(manifest, options), options.window
    days_text = f"{date_of_day(days.first)} to {date_of_day(days.last)}"
    is_declined = history.declined_code[window_rows] == flag_code(True)
    is_mature = history.event_time_ms[window_rows] < mature_ms
    never = None if history.never_labelled is None else history.never_labelled[window_rows]
    has_label, counts = kept_labels(labels[window_rows], is_declined, is_mature, options.unknown_labels, never)
    if counts.left_out == counts.payments:
        raise Misconfigured(f"no payment from {days_text} has a label, and those without one are left out")
    frauds = np.concatenate([np.flatnonzero(labels[part] == 1) + part.start for part in parts_of(len(labels))])
    row, count = new(window_rows.stop - window_rows.start, np.int64), 0
    for part in parts_of(window_rows.stop, first=window_rows.start):
        is_kept = has_label[part.start - window_rows.start : part.stop - window_rows.start]
        if split is not None:
            is_kept = is_kept & _not_known(history, frauds, part, split)
        kept = np.flatnonzero(is_kept) + part.start
        row[count : count + len(kept)] = kept
        count += len(kept)
    if count == 0:
        raise Misconfigured(f"every payment from {days_text} is of a card known to be compromised: none is measured")
    day, fraud, amount_minor = (new(count, kind) for kind in (np.int64, np.bool_, np.int64))
    has_outcomes, row = False, row[:count]
    for part in parts_of(count):
        rows = row[part]
        label = labels[rows]
        day[part], fraud[part] = day_of_time(history.event_time_ms[rows]), label == 1
        # An amount that is not known counts for none.
        amount_minor[part] = np.maximum(amounts[rows], 0)
        has_outcomes |= bool((label != UNKNOWN).any())
    measured = MeasuredPayments(
        history,
        row,
        day,
        fraud,
        amount_minor,
        strikes_of(history, frauds, row, fraud),
        has_outcomes=has_outcomes,
        propensity_weight_max=options.propensity_weight_max,
    )
    return measured, counts


def _not_known(history: History, frauds: NDArray[np.int64], part: slice, split: Split) -> NDArray[np.bool_]:
    """Returns which payments of a part of the history have cards that are not known to be compromised."""
    # Only frauds make a card known: a part needs all frauds of the history, but no other payment outside itself.
    both = np.concatenate((frauds, np.arange(part.start, part.stop)))
    is_fraud = np.arange(len(both)) < len(frauds)
    days = day_of_time(history.event_time_ms[both])
    return exclude_known_compromised(days, history.card.codes[both], is_fraud.astype(np.int64), split)[len(frauds) :]


def facts_of(
    measured: MeasuredPayments,
    labels: NDArray[np.int8],
    label_counts: LabelCounts,
    options: ReplayOptions,
    replayed: int,
    reference_currency: str,
    costs: CostSettings,
) -> ReplayFacts:
    """Returns the facts of a replay. `labels`: of all payments of the history; `replayed`: how many were replayed."""
    return ReplayFacts(
        first_day=date_of_day(options.window.first),
        last_day=date_of_day(options.window.last),
        payments=len(measured.row),
        frauds=int(measured.fraud.sum()),
        without_outcome=int((labels[measured.row] == UNKNOWN).sum()),
        amount_minor=int(measured.amount_minor.sum()),
        fraud_minor=int(measured.amount_minor[measured.fraud].sum()),
        payments_replayed=replayed,
        protocol=options.protocol,
        left_out_unknown=label_counts.left_out,
        excluded_known_compromised=label_counts.payments - label_counts.left_out - len(measured.row),
        label_delay_days=options.label_delay_days,
        reference_currency=reference_currency,
        costs=costs,
        profile_lag="0" if options.staleness is None else options.staleness.name,
        overlay_hosts=0 if options.overlay is None else options.overlay.hosts,
    )


def results_of(
    facts: ReplayFacts,
    measured: MeasuredPayments,
    contestants: list[Contestant],
    causes: Sequence[Sequence[ActionReasons]],
    decided: list[Decisions],
    first: int,
) -> ReplayResults:
    """Measure what each contestant has decided about the window, whose first payment is `first`."""
    # Nothing is copied if every payment is measured.
    is_whole = len(measured.row) == len(decided[0].score)
    of_measured = decided if is_whole else [whole.of(measured.row - first) for whole in decided]
    measures = [
        measure_contestant(
            contestant,
            measured,
            decisions,
            causes=of_policy,
            actions=count_actions(whole.action),
            costs=facts.costs,
        )
        for contestant, of_policy, whole, decisions in zip(contestants, causes, decided, of_measured, strict=True)
    ]
    if len(measures) == 1:
        return ReplayResults(facts, measures[0], None, None)
    comparison = compare(measured, of_measured[0], of_measured[1], facts.costs)
    return ReplayResults(facts, measures[0], measures[1], comparison)


def _make_folder(destination: Path) -> None:
    try:
        destination.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(f"cannot write results to {destination}: {error.strerror}") from error
