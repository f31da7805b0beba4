"""The simulated rollouts count as the product counts, and find what the product finds."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paywarden.models.rollout.judgement import Finding, judge
from paywarden.models.rollout.plan import RolloutPlan
from paywarden.models.rollout.shares import CIRCLE, arm_edges, arms_at
from paywarden.models.rollout.tally import DAY_MS, StepCounts, StepTally
from perf import rollout
from perf.rollout import (
    HARMS,
    LOOK_MS,
    Ended,
    aa_figures,
    counts_at,
    events_of,
    no_harm,
    rolled_out,
    simulated,
)
from perf.tools.pieces import Pieces

PLAN = RolloutPlan(segments=("country=FR", "country=DE"))


def test_counts_of_many_looks_are_those_of_a_tally_that_looks_as_often() -> None:
    step, every = 1, 800
    payments, declined = no_harm(found := simulated(1, 2_000, 3), np.zeros(len(found.card), dtype=bool))
    events = events_of(payments, declined, PLAN)
    looks_ms = np.arange(1, 3 * DAY_MS // LOOK_MS + 1, dtype=np.int64) * LOOK_MS
    series = counts_at(payments, events, PLAN, step, looks_ms)
    tally = StepTally(PLAN, step, 0)
    positions = (payments.positions[payments.card] * CIRCLE).astype(np.uint64)
    arms = arms_at(positions, arm_edges([PLAN.steps[step]]))
    bits = (events.astype(np.uint64) << np.arange(len(events), dtype=np.uint64)[:, None]).sum(axis=0, dtype=np.uint64)
    begin = 0
    for look in range(every, len(looks_ms), every):
        end = int(np.searchsorted(payments.time_ms, looks_ms[look]))
        rows = slice(begin, end)
        tally.add(positions[rows], arms[rows], bits[rows], payments.time_ms[rows])
        counts, begin = tally.counts(int(looks_ms[look])), end
        for name, array in vars(counts).items():
            assert np.array_equal(array, getattr(series, name)[look]), (name, look)


def test_each_harm_is_found_and_no_difference_is_not() -> None:
    step, hour = 4, 3_600_000 // LOOK_MS
    payments = simulated(2, 60_000, 0.5)
    is_candidate = payments.positions[payments.card] < PLAN.steps[step] / 10_000
    looks_ms = np.arange(1, 12 * hour + 1, dtype=np.int64)[-1:] * LOOK_MS
    looks_ms = np.array([LOOK_MS, int(looks_ms[0])])
    found = {}
    for name, harm in {**HARMS, "none": no_harm}.items():
        changed, declined = harm(payments, is_candidate)
        series = counts_at(changed, events_of(changed, declined, PLAN), PLAN, step, looks_ms)
        found[name] = judge(PLAN, step, StepCounts(*(array[-1] for array in vars(series).values()))).finding
    assert found.pop("none") is not Finding.HARM
    # Half a point of declines takes longer than half a day of this traffic.
    del found["declines"]
    assert set(found.values()) == {Finding.HARM}


def test_a_rollout_of_the_same_model_takes_its_steps() -> None:
    ended = rolled_out(simulated(3, 60_000, 1), PLAN, days=1)
    assert ended.stopped_ms is None
    assert ended.share > PLAN.steps[0]


class _Here(Executor):
    """Runs everything in this process."""

    def map(self, fn: Any, *iterables: Any, **_: Any) -> Iterator[Any]:
        return map(fn, *iterables)


def test_rollouts_in_pieces_are_those_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def ended(seed: int, cards: int) -> Ended:
        seeds.append(seed)
        assert cards == 70
        return Ended(3_600_000 if seed % 3 == 0 else None, "decline", 10_000 if seed % 2 else 500, seed % 5 == 0)

    monkeypatch.setattr(rollout, "_aa_ended", ended)
    whole = aa_figures(120, 70, _Here(), Pieces())
    assert seeds == list(range(120))
    seeds.clear()
    file = tmp_path / "counts.json"
    for wanted in (50, 100, 120):
        figures = aa_figures(wanted, 70, _Here(), Pieces(file))
    assert (figures, seeds) == (whole, list(range(120)))
    assert whole["false_rollback_share"] == 40 / 120
    assert whole["reached_100_percent_share"] == 60 / 120
    assert aa_figures(120, 70, _Here(), Pieces(tmp_path / "new.json", minutes=-1.0))["rollouts"] == 0
