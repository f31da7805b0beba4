"""Simulated rollouts: how often the analysis stops a candidate that differs in nothing, and how soon a bad one.

`--aa N`: N rollouts in which both arms are the same. Each is looked at every 10 seconds for seven days, and takes its
steps by the evidence, as `models/rollout/judgement.py` says. Beside them stands a common alternative: a z-test of the
declines of payments, looked at as often, that stops at |z| > 1.96.

`--harm`: candidates that decline 0.5 points more, give scores x 1.2, have twice the p99, or are broken in one segment,
in the second step: minutes until they are rolled back, infinite if that takes longer than `--days`.

A thousand rollouts take six minutes of two quiet cores.

    python -m perf.rollout [--aa N] [--harm] [--cards N] [--harm-cards N] [--rounds N] [--days N] [--json FILE]

The payments are made by a small model here: cards with heavy-tailed activity (the busiest of 20,000 pays some hundred
times as often as most), scores that belong to the card as much as to the payment, days and nights. The evidence is the
product's own code, and each run checks that the counts are those of `StepTally`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from paywarden.models.rollout.judgement import harm_evidence_of, mismatch_evidence, within_margin
from paywarden.models.rollout.plan import RolloutPlan
from paywarden.models.rollout.rollout_tally import DAY_MS, StepCounts, StepTally
from paywarden.models.rollout.shares import BASIS_POINTS, CANDIDATE, CHAMPION, CIRCLE, arms_at
from perf.tools.measuring import arguments_of, finish

LOOK_MS, DAYS, HOUR_MS, MINUTE_MS = 10_000, 7, 3_600_000, 60_000
_LOOKS = DAYS * DAY_MS // LOOK_MS
SEGMENTS = ("country=FR", "country=DE", "country=GB")
_SEGMENT_SHARES = (0.05, 0.25, 0.3)
# Payments that an average card makes a day.
_PAYMENTS_A_DAY = 1.5
# Shares of the champion's payments above each threshold of scores: of review, decline, `score_upper`, `score_top`.
_REVIEW_SHARE, _DECLINE_SHARE, _UPPER_SHARE, _TOP_SHARE = 0.05, 0.02, 0.1, 0.01
_SLOW_SHARE, _ERROR_SHARE, _FLAG_SHARE = 0.01, 0.0005, 0.01
# Spread of the logarithm of scores, among cards and among a card's payments, and of the logarithm of latencies.
_CARD_SPREAD, _PAYMENT_SPREAD, _LATENCY_SPREAD = 0.9, 1.0, 0.5
_Z_PEEKED = 1.96
# Most steps go on within this many looks; only the others are counted to their end.
_SOON_LOOKS = 36 * 3_600_000 // LOOK_MS


@dataclass(frozen=True)
class Payments:
    """Payments in order of time. All arrays: (payments,), but `positions` (cards,), from 0 to 1.

    `score`: the score's logarithm in standard deviations. `latency`: the same of the latency. `odds`: uniform numbers.
    """

    time_ms: NDArray[np.int64]
    card: NDArray[np.int64]
    positions: NDArray[np.float64]
    score: NDArray[np.float64]
    latency: NDArray[np.float64]
    odds: NDArray[np.float64]
    segment: NDArray[np.int64]
    # Declined whatever the score.
    declined: NDArray[np.bool_]


Harm = Callable[[Payments, NDArray[np.bool_]], Payments]


def simulated(seed: int, cards: int, days: float) -> Payments:
    """Return the payments of some days."""
    random = np.random.default_rng(seed)
    activity = np.minimum(random.pareto(1.5, cards) + 0.2, 200)
    count = random.poisson(activity / activity.mean() * _PAYMENTS_A_DAY * days)
    card = np.repeat(np.arange(cards), count)
    # Half of the payments come at any time, half around the afternoon.
    day = random.integers(0, max(1, math.ceil(days)), len(card)) * (days / max(1, math.ceil(days)))
    hour = np.where(random.random(len(card)) < 0.5, random.random(len(card)), random.normal(0.6, 0.12, len(card)) % 1)
    moment = ((day + hour * min(days, 1.0)) * DAY_MS).astype(np.int64)
    order = np.argsort(moment, kind="stable")
    card = card[order]
    spread = math.hypot(_CARD_SPREAD, _PAYMENT_SPREAD)
    score = (random.normal(0, _CARD_SPREAD, cards)[card] + random.normal(0, _PAYMENT_SPREAD, len(card))) / spread
    edges = np.cumsum(_SEGMENT_SHARES)
    return Payments(
        moment[order],
        card,
        random.random(cards),
        score,
        random.standard_normal(len(card)),
        random.random(len(card)),
        np.searchsorted(edges, random.random(cards), side="right")[card],
        np.zeros(len(card), dtype=bool),
    )


def declines_more(payments: Payments, is_candidate: NDArray[np.bool_]) -> Payments:
    """The candidate declines 0.5 points more, at random."""
    more = 0.005 / (1 - _DECLINE_SHARE)
    return replace(payments, declined=is_candidate & ((payments.odds * 1e6) % 1 < more))


def scores_rescaled(payments: Payments, is_candidate: NDArray[np.bool_], times: float = 1.2) -> Payments:
    """The candidate's scores are 1.2 times the champion's."""
    shift = math.log(times) / math.hypot(_CARD_SPREAD, _PAYMENT_SPREAD)
    return replace(payments, score=payments.score + shift * is_candidate)


def p99_doubled(payments: Payments, is_candidate: NDArray[np.bool_]) -> Payments:
    """The slowest 2 % of the candidate's answers take twice as long."""
    tail = is_candidate & (payments.latency > _quantile(0.02))
    return replace(payments, latency=payments.latency + tail * math.log(2) / _LATENCY_SPREAD)


def segment_broken(payments: Payments, is_candidate: NDArray[np.bool_]) -> Payments:
    """The candidate's scores are five times the champion's in the smallest segment, 5 % of the cards."""
    return scores_rescaled(payments, is_candidate & (payments.segment == 0), 5.0)


HARMS: Mapping[str, Harm] = {
    "declines": declines_more,
    "scores": scores_rescaled,
    "p99": p99_doubled,
    "segment": segment_broken,
}


def events_of(payments: Payments, plan: RolloutPlan) -> NDArray[np.bool_]:
    """Return which payment has which event, shape (measures, payments)."""
    score, odds = payments.score, payments.odds
    decline = (score >= _quantile(_DECLINE_SHARE)) | payments.declined
    review = (score >= _quantile(_REVIEW_SHARE)) & ~decline
    by_name = {
        "slow": payments.latency >= _quantile(_SLOW_SHARE),
        "error": odds < _ERROR_SHARE,
        "flag": (odds >= _ERROR_SHARE) & (odds < _ERROR_SHARE + _FLAG_SHARE),
        "review": review,
        "decline": decline,
        "score_upper": score >= _quantile(_UPPER_SHARE),
        "score_top": score >= _quantile(_TOP_SHARE),
    }
    for number, segment in enumerate(plan.segments):
        inside = payments.segment == number
        by_name |= {f"{name} {segment}": by_name[name] & inside for name in ("review", "decline", "score_upper")}
    return np.stack([by_name[measure.name] for measure in plan.measures])


def _quantile(share: float) -> float:
    """Return the value above which a standard normal number lies with this probability."""
    return NormalDist().inv_cdf(1 - share)


def counts_at(
    payments: Payments, events: NDArray[np.bool_], plan: RolloutPlan, step: int, looks_ms: NDArray[np.int64]
) -> StepCounts:
    """Return the counts at each look of a step, as StepTally makes them. The step begins one look before the first.

    `looks_ms`: the times of the looks; payments at or after a look's time are not in it.
    """
    start_ms = int(looks_ms[0]) - LOOK_MS
    before = plan.steps[step - 1] / BASIS_POINTS if step else 0.0
    position = payments.positions[payments.card]
    rows = np.flatnonzero((payments.time_ms >= start_ms) & (payments.time_ms < looks_ms[-1]) & (position >= before))
    card, moment, events = payments.card[rows], payments.time_ms[rows], events[:, rows]
    arm = (position[rows] < plan.steps[step] / BASIS_POINTS).astype(np.int64)
    day = (moment - start_ms) // DAY_MS
    day_of_look = (looks_ms - start_ms) // DAY_MS
    newest = _firsts(card)
    cards = _cumulated(moment[newest], arm[newest], looks_ms)
    # Looks lie next to each other in memory: everything runs along them.
    shape = (len(events), 2, len(looks_ms))
    first, of_step, of_day = (np.zeros(shape, dtype=np.int64).transpose(2, 0, 1) for _ in range(3))
    for index, had in enumerate(events):
        hit = newest[had[newest]]
        first[:, index] = _cumulated(moment[hit], arm[hit], looks_ms)
        hits = np.flatnonzero(had)
        hit = hits[_firsts(card[hits])]
        of_step[:, index] = _cumulated(moment[hit], arm[hit], looks_ms)
        hit = hits[_firsts(card[hits] * 64 + day[hits])]
        whole = _cumulated(moment[hit], arm[hit], looks_ms)
        # The counts from before the look's day began.
        begun = _cumulated(moment[hit], arm[hit], start_ms + day_of_look * DAY_MS)
        of_day[:, index] = whole - begun
    return StepCounts(cards, first, of_step, of_day, day_of_look + 1)


def _firsts(keys: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return the place of each key's first row, in order."""
    return np.sort(np.unique(keys, return_index=True)[1])


def _cumulated(moments: NDArray[np.int64], arms: NDArray[np.int64], looks_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many moments lie before each look, by arm, shape (looks, 2). `moments` rise."""
    both = [np.searchsorted(moments[arms == arm], looks_ms, side="left") for arm in (CHAMPION, CANDIDATE)]
    return np.stack(both).T


@dataclass(frozen=True)
class Ended:
    """How a simulated rollout ended: the look that stopped it, or None, by what, and the share that it reached."""

    stopped_ms: int | None
    by: str
    share: int
    is_peeked: bool


def rolled_out(payments: Payments, plan: RolloutPlan) -> Ended:
    """Return how a rollout of a candidate that differs in nothing ends, looked at every LOOK_MS."""
    events = events_of(payments, plan)
    looks_ms = np.arange(1, _LOOKS + 1, dtype=np.int64) * LOOK_MS
    step, begin, is_peeked = 0, 0, False
    while step < plan.last_step and begin < len(looks_ms):
        for length in (_SOON_LOOKS, len(looks_ms)):
            looks = looks_ms[begin : begin + length]
            counts = counts_at(payments, events, plan, step, looks)
            goes_on = within_margin(plan, step, counts)
            goes_on[: int(plan.step_hours[step] * HOUR_MS // LOOK_MS) - 1] = False
            if goes_on.any():
                break
        end = int(np.argmax(goes_on)) if goes_on.any() else len(looks) - 1
        seen = StepCounts(*(array[: end + 1] for array in vars(counts).values()))
        is_peeked = is_peeked or _is_peeked(payments, plan, step, looks[: end + 1])
        harms, mismatch = _harms(plan, step, seen), mismatch_evidence(plan, step, seen)
        stops = (harms >= 0).any(axis=1) | (mismatch >= 0)
        if stops.any():
            place = int(np.argmax(stops))
            name = "split" if mismatch[place] >= 0 else plan.measures[int(np.argmax(harms[place]))].name
            return Ended(int(looks[place]), name, plan.steps[step], is_peeked)
        begin += end + 1
        step += 1 if goes_on.any() else 0
    return Ended(None, "", plan.steps[step], is_peeked)


def _harms(plan: RolloutPlan, step: int, counts: StepCounts) -> NDArray[np.float64]:
    """Return the evidence of harm, (looks, measures). It is computed where counts change, which is far from all."""
    harms = np.empty(counts.step.shape[:2])
    for index in range(len(plan.measures)):
        changed = np.ones(len(harms), dtype=bool)
        columns = (*counts.step[:, index].T, *counts.day[:, index].T, counts.day_number)
        changed[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
        of_step, of_day, day = (
            array[changed] for array in (counts.step[:, index], counts.day[:, index], counts.day_number)
        )
        found, _ = harm_evidence_of(plan, step, index, of_step, of_day, day)
        harms[:, index] = found[np.cumsum(changed) - 1]
    return harms


def _is_peeked(payments: Payments, plan: RolloutPlan, step: int, looks_ms: NDArray[np.int64]) -> bool:
    """Return whether a z-test of the declines of the step's payments rejects at any look."""
    start_ms = int(looks_ms[0]) - LOOK_MS
    rows = np.flatnonzero((payments.time_ms >= start_ms) & (payments.time_ms < looks_ms[-1]))
    arm = (payments.positions[payments.card[rows]] < plan.steps[step] / BASIS_POINTS).astype(np.int64)
    moment, declined = payments.time_ms[rows], payments.score[rows] >= _quantile(_DECLINE_SHARE)
    every = np.maximum(_cumulated(moment, arm, looks_ms), 1).astype(np.float64)
    declines = _cumulated(moment[declined], arm[declined], looks_ms)
    pooled = declines.sum(axis=1) / every.sum(axis=1)
    sd = np.sqrt(pooled * (1 - pooled) * (1 / every).sum(axis=1))
    difference = np.diff(declines / every, axis=1)[:, 0]
    is_known = (every.min(axis=1) >= 100) & (sd > 0)
    return bool((is_known & (np.abs(difference) > _Z_PEEKED * sd)).any())


def _aa_ended(seed: int, cards: int) -> Ended:
    return rolled_out(simulated(seed, cards, DAYS), RolloutPlan(segments=SEGMENTS))


def aa_figures(rollouts: int, cards: int, processes: Executor) -> dict[str, float]:
    """Return the shares of rollouts that were stopped although nothing differs; print a line for each of them."""
    found = list(processes.map(_aa_ended, range(rollouts), repeat(cards)))
    stopped = [ended for ended in found if ended.stopped_ms is not None]
    for ended in stopped:
        print(f"a rollout was stopped by {ended.by} after {(ended.stopped_ms or 0) / HOUR_MS:.1f} h")
    return {
        "rollouts": float(rollouts),
        "looks": float(_LOOKS),
        "cards": float(cards),
        "false_rollback_share": len(stopped) / rollouts,
        "peeked_z_test_share": sum(ended.is_peeked for ended in found) / rollouts,
        "reached_share_mean": sum(ended.share for ended in found) / rollouts / BASIS_POINTS,
    }


def harm_figures(rounds: int, cards: int, days: int, processes: Executor) -> dict[str, float]:
    """Return the minutes until rollback at the second step's share, the median of some rounds, by harm."""
    figures: dict[str, float] = {}
    for name in HARMS:
        minutes = list(processes.map(partial(_minutes_to_rollback, cards=cards, name=name, days=days), range(rounds)))
        figures[f"minutes_to_rollback_{name}"] = float(np.median(minutes))
    return figures


def _minutes_to_rollback(seed: int, *, cards: int, name: str, days: int) -> float:
    """Return the minutes from the step's start to the look that finds harm; infinite if none of `days` does."""
    plan, step = RolloutPlan(segments=SEGMENTS), 1
    # Half a day first: most harm shows by then, and fewer payments are to be made.
    for length in (0.5, float(days)):
        payments = simulated(seed, cards, length)
        is_candidate = payments.positions[payments.card] < plan.steps[step] / BASIS_POINTS
        changed = HARMS[name](payments, is_candidate)
        looks_ms = np.arange(1, int(length * DAY_MS // LOOK_MS) + 1, dtype=np.int64) * LOOK_MS
        counts = counts_at(changed, events_of(changed, plan), plan, step, looks_ms)
        stops = (_harms(plan, step, counts) >= 0).any(axis=1)
        if stops.any():
            return float(looks_ms[int(np.argmax(stops))]) / MINUTE_MS
    return math.inf


def check_counts() -> None:
    """Check on a small example that `counts_at` counts as the product does."""
    plan, step = RolloutPlan(segments=SEGMENTS), 1
    payments = simulated(1, 2_000, 3)
    events = events_of(payments, plan)
    looks_ms = np.arange(1, 3 * DAY_MS // LOOK_MS + 1, dtype=np.int64) * LOOK_MS
    series, tally = counts_at(payments, events, plan, step, looks_ms), StepTally(plan, step, 0)
    positions = (payments.positions[payments.card] * CIRCLE).astype(np.uint64)
    arms = arms_at(positions, plan.steps[step])
    bits = (events.astype(np.uint64) << np.arange(len(events), dtype=np.uint64)[:, None]).sum(axis=0, dtype=np.uint64)
    begin = 0
    for look in range(800, len(looks_ms), 800):
        end = int(np.searchsorted(payments.time_ms, looks_ms[look]))
        rows = slice(begin, end)
        tally.add(positions[rows], arms[rows], bits[rows], payments.time_ms[rows])
        begin = end
        for name, counts in vars(tally.counts(int(looks_ms[look]))).items():
            assert np.array_equal(counts, getattr(series, name)[look]), (name, look)


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--aa", {"type": int, "default": 0, "metavar": "N", "help": "rollouts in which nothing differs"}),
        ("--harm", {"action": "store_true", "help": "minutes until a harmful candidate is rolled back"}),
        ("--cards", {"type": int, "default": 20_000, "help": "cards of the rollouts in which nothing differs"}),
        ("--harm-cards", {"type": int, "default": 500_000, "help": "cards of the harmful candidates"}),
        ("--rounds", {"type": int, "default": 5, "help": "simulations of each harm; their median counts"}),
        ("--days", {"type": int, "default": 2, "help": "days after which a harm counts as not found"}),
    )
    check_counts()
    figures: dict[str, float] = {}
    with ProcessPoolExecutor() as processes:
        if arguments.aa or not arguments.harm:
            figures |= aa_figures(arguments.aa or 100, arguments.cards, processes)
        if arguments.harm:
            figures |= harm_figures(arguments.rounds, arguments.harm_cards, arguments.days, processes)
    finish(figures, arguments.json)


if __name__ == "__main__":
    main()
