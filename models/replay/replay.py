"""Replay a history through the feature code, the model and the policy that serve, and measure the decisions.

The same kernel, the same bundle and the same policy as a scoring worker's: a payment replayed gets the vector,
the score and the action it would have had if the profiles were up to the moment. Rules and segments of the policy are
asked about each payment; flags, which speak of the live mirror and models, are not there.

A challenger (another model, another policy, or both) decides about the same vectors in the same pass:

    history ──► passage ──► vectors ──► champion's score, action ──────► decisions.parquet
       or earlier decisions    └──────► challenger's score, action ─┬──► differences.parquet
                                                                    └──► metrics.json, report.html

The same input gives the same bytes of every file, but for `payments_per_second` in metrics.json, and however many
threads share the work. With columns in files (features/history/mapped.py, MmapAllocator) memory holds the profiles, two
chunks, a label of each payment, and in the end what measuring takes of each payment of the window.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paywarden.features.history.columns import ColumnAllocator, MemoryAllocator
from paywarden.features.history.history import UNKNOWN, History, final_labels, parts_of
from paywarden.features.history.point_in_time import Chunk, PointInTimeReplay, reference_amounts
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
from paywarden.models.replay.earlier_decisions import EarlierDecisions
from paywarden.models.replay.files import DECISIONS, ReplayFiles, require_free_names, write_whole
from paywarden.models.replay.measures import (
    Contestant,
    MeasuredPayments,
    ReplayFacts,
    ReplayResults,
    compare,
    count_actions,
    measure_contestant,
)
from paywarden.models.replay.replayed_policy import Decisions, ReplayedPolicy
from paywarden.models.replay.report.report import report_html
from paywarden.schemas.errors import Misconfigured

METRICS, REPORT = "metrics.json", "report.html"


@dataclass(frozen=True)
class _Scored:
    """A chunk of payments; `scores` are the champion's, and the challenger's where there is one."""

    chunk: Chunk
    scores: list[NDArray[np.float64]]


def replay(
    history: History,
    *,
    engine: FeatureEngine,
    rates: RateTable,
    champion: Contestant,
    challenger: Contestant | None = None,
    window: Days,
    label_delay_days: int,
    costs: CostSettings | None = None,
    destination: Path,
    with_vectors: bool = False,
    with_features: bool = False,
    earlier: Path | None = None,
    threads: int = 1,
    room: ColumnAllocator | None = None,
    progress: Callable[[int], object] | None = None,
) -> ReplayResults:
    """Write decisions.parquet, metrics.json and report.html to `destination`, with a challenger differences.parquet.

    `with_vectors` and `with_features` keep each payment's features in decisions.parquet, as bytes and as columns.
    `earlier` is the decisions.parquet of a replay of this history with the champion's model: its scores and vectors
    are used instead of computing them again. `threads` change nothing but the time it takes; `room` is for columns as
    long as the history. Raises Misconfigured for a window in which nothing can be measured.
    """
    costs, room = costs or CostSettings(), room or MemoryAllocator()
    first, last = np.searchsorted(history.event_time_ms, [window.first * DAY_MS, (window.last + 1) * DAY_MS]).tolist()
    if first == last:
        raise Misconfigured(f"there is no payment from {date_of_day(window.first)} to {date_of_day(window.last)}")
    feature_names = champion.bundle.manifest.feature_names if with_features else []
    require_free_names(feature_names)
    started = time.perf_counter()
    contestants = [champion] if challenger is None else [champion, challenger]
    with ThreadPool(threads) as crew:
        if earlier is None:
            passage = PointInTimeReplay(history, engine, rates, room=room, crew=crew)
            amounts, replayed = passage.amounts, last
            scored = _scored_by_passage(passage, contestants, first, last, crew, progress)
        else:
            if earlier.resolve() == (destination / DECISIONS).resolve():
                raise Misconfigured(f"{earlier} would be replaced by the results: choose another folder for them")
            reused = _earlier(earlier, history, contestants, with_vectors or with_features)
            amounts, replayed = reference_amounts(history, rates, room), last - first
            scored = _scored_earlier(reused, contestants, first, last, crew, progress)
        labels = final_labels(history)
        room.release()
        measured = _measured(
            history, labels, amounts, slice(first, last), window, label_delay_days, champion.bundle.manifest, room
        )
        policies = [ReplayedPolicy(one.policy, history, amounts) for one in contestants]
        _make_folder(destination)
        decided = [Decisions.empty(last - first, room) for _ in policies]
        version = champion.bundle.manifest.model_version
        with ReplayFiles(
            destination,
            history,
            labels=labels,
            amounts=amounts,
            model_version=version,
            with_vectors=with_vectors,
            feature_names=feature_names,
            with_differences=challenger is not None,
        ) as files:
            _decide(scored, policies, decided, first, files, crew, room)
    per_second = replayed / (time.perf_counter() - started)
    facts = _facts(measured, labels, window, label_delay_days, replayed, last - first, rates, costs)
    results = _results(facts, measured, contestants, policies, decided, first)
    write_whole(destination / METRICS, results.to_json(per_second))
    write_whole(destination / REPORT, report_html(results))
    return results


def _scored_by_passage(
    passage: PointInTimeReplay,
    contestants: list[Contestant],
    first: int,
    last: int,
    crew: ThreadPool,
    progress: Callable[[int], object] | None,
) -> Iterator[_Scored]:
    for chunk in passage.chunks(first=first, last=last, progress=progress):
        champion = _score(contestants[0].bundle, chunk.vectors, crew)
        yield _Scored(chunk, _scores(contestants, chunk.vectors, champion, crew))


def _scored_earlier(
    earlier: EarlierDecisions,
    contestants: list[Contestant],
    first: int,
    last: int,
    crew: ThreadPool,
    progress: Callable[[int], object] | None,
) -> Iterator[_Scored]:
    for part in earlier.chunks(first, last):
        yield _Scored(part.chunk, _scores(contestants, part.chunk.vectors, part.score, crew))
        if progress is not None:
            progress(len(part.score))


def _scores(
    contestants: list[Contestant], vectors: NDArray[np.float32], champion: NDArray[np.float64], crew: ThreadPool
) -> list[NDArray[np.float64]]:
    """Everyone's scores, given the champion's: the same model is not asked twice."""
    own = contestants[0].bundle
    return [
        champion,
        *(champion if one.bundle is own else _score(one.bundle, vectors, crew) for one in contestants[1:]),
    ]


def _score(bundle: Bundle, vectors: NDArray[np.float32], crew: ThreadPool) -> NDArray[np.float64]:
    """The model's scores; each thread asks it about a run of the payments, of which each has a score of its own."""
    shares = parts_of(len(vectors), -(-len(vectors) // crew.threads))
    return np.concatenate(crew.each(lambda share: bundle.score(vectors[share]), shares))


def _earlier(path: Path, history: History, contestants: list[Contestant], with_vectors: bool) -> EarlierDecisions:
    manifest = contestants[0].bundle.manifest
    earlier = EarlierDecisions(
        path, history, model_version=manifest.model_version, feature_count=len(manifest.feature_names)
    )
    asks = with_vectors or any(
        one.policy.has_conditions or one.bundle is not contestants[0].bundle for one in contestants
    )
    if asks and not earlier.has_vectors:
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
    crew: ThreadPool,
    room: ColumnAllocator,
) -> None:
    """Let every policy decide about every chunk, into `decided`, and write the chunk while the next one is made."""
    written: Callable[[], object] = int
    for part in scored:
        here = slice(part.chunk.first - first, part.chunk.last - first)
        parts = [whole.of(here) for whole in decided]
        for its, policy, score in zip(parts, policies, part.scores, strict=True):
            made = policy.decide(part.chunk, score)
            its.score[:], its.action[:], its.cause[:] = made.score, made.action, made.cause
        written()
        room.release()
        written = crew.beside(partial(files.write, part.chunk, parts, policies[0].causes))
    written()


def _measured(
    history: History,
    labels: NDArray[np.int8],
    amounts: NDArray[np.int64],
    asked_for: slice,
    window: Days,
    label_delay_days: int,
    manifest: Manifest,
    room: ColumnAllocator,
) -> MeasuredPayments:
    """The window's payments without those of cards known to be compromised, where the window is after the training's.

    `asked_for` are the window's rows. Who is known follows from the champion's training days, and holds for both. A
    label never known counts as genuine, as in training.
    """
    train = Days(day_of_date(manifest.train_from), day_of_date(manifest.train_to))
    split = None if window.first <= train.last else Split(train, window, label_delay_days)
    frauds = np.concatenate([np.flatnonzero(labels[part] == 1) + part.start for part in parts_of(len(labels))])
    row, count = room.new(asked_for.stop - asked_for.start, np.int64), 0
    for part in parts_of(asked_for.stop, first=asked_for.start):
        found = _not_known(history, frauds, part, split) + part.start
        row[count : count + len(found)] = found
        count += len(found)
    if count == 0:
        days_text = f"{date_of_day(window.first)} to {date_of_day(window.last)}"
        raise Misconfigured(f"every payment from {days_text} is of a card known to be compromised: none is measured")
    day, fraud, amount_minor = (room.new(count, kind) for kind in (np.int64, np.bool_, np.int64))
    has_outcomes, row = False, row[:count]
    for part in parts_of(count):
        label = labels[row[part]]
        day[part], fraud[part] = day_of_time(history.event_time_ms[row[part]]), label == 1
        amount_minor[part] = amounts[row[part]]
        has_outcomes |= bool((label != UNKNOWN).any())
    room.release()
    return MeasuredPayments(history, row, day, fraud, amount_minor, has_outcomes=has_outcomes)


def _not_known(history: History, frauds: NDArray[np.int64], part: slice, split: Split | None) -> NDArray[np.int64]:
    """Places in a part of the history of payments whose cards are not known to be compromised; all without a split."""
    rows = np.arange(part.start, part.stop)
    if split is None:
        return np.arange(len(rows))
    # What is known follows from the frauds alone: a part needs no other payment beside its own.
    both = np.concatenate((frauds, rows))
    is_fraud = np.arange(len(both)) < len(frauds)
    days = day_of_time(history.event_time_ms[both])
    asked = exclude_known_compromised(days, history.card.codes[both], is_fraud.astype(np.int64), split)
    places: NDArray[np.int64] = np.flatnonzero(asked[len(frauds) :])
    return places


def _facts(
    measured: MeasuredPayments,
    labels: NDArray[np.int8],
    window: Days,
    label_delay_days: int,
    replayed: int,
    in_window: int,
    rates: RateTable,
    costs: CostSettings,
) -> ReplayFacts:
    return ReplayFacts(
        first_day=date_of_day(window.first),
        last_day=date_of_day(window.last),
        payments=len(measured.row),
        frauds=int(measured.fraud.sum()),
        without_outcome=int((labels[measured.row] == UNKNOWN).sum()),
        amount_minor=int(measured.amount_minor.sum()),
        fraud_minor=int(measured.amount_minor[measured.fraud].sum()),
        payments_replayed=replayed,
        excluded_known_compromised=in_window - len(measured.row),
        label_delay_days=label_delay_days,
        reference_currency=rates.reference_currency,
        costs=costs,
    )


def _results(
    facts: ReplayFacts,
    measured: MeasuredPayments,
    contestants: list[Contestant],
    policies: list[ReplayedPolicy],
    decided: list[Decisions],
    first: int,
) -> ReplayResults:
    # Where all are measured nothing is copied.
    is_whole = len(measured.row) == len(decided[0].score)
    of_measured = decided if is_whole else [whole.of(measured.row - first) for whole in decided]
    measures = [
        measure_contestant(
            contestant, measured, made, causes=policy.causes, actions=count_actions(whole.action), costs=facts.costs
        )
        for contestant, policy, whole, made in zip(contestants, policies, decided, of_measured, strict=True)
    ]
    if len(measures) == 1:
        return ReplayResults(facts, measures[0], None, None)
    return ReplayResults(facts, measures[0], measures[1], compare(measured, of_measured[0], of_measured[1]))


def _make_folder(destination: Path) -> None:
    try:
        destination.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(f"cannot write results to {destination}: {error.strerror}") from error
