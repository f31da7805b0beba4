"""Searches choose parameters on days held out after a gap, with the labels known then, and on nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from paywarden.models.metrics.evaluation import DAY_MS, Days, date_of_day
from paywarden.models.training import search
from paywarden.models.training.boosting import HeldOut
from paywarden.models.training.progress import no_progress
from paywarden.models.training.search import Choice, FoldResult, candidate_parameters, choose, validation_splits
from paywarden.models.training.table import TableOutcomes, TrainingTable
from paywarden.models.training.training_settings import TrainingSettings
from paywarden.schemas.errors import Misconfigured
from tests.worlds.small.synthetic_rows import WINDOW, synthetic_table

NAMES = ("steep", "gentle", "noise_a", "noise_b")
SETTINGS = TrainingSettings(trees=40, learning_rate=0.2, max_bin=255, early_stopping_rounds=10)
TABLE = synthetic_table()


def chosen(table: TrainingTable = TABLE, settings: TrainingSettings = SETTINGS) -> Choice:
    return choose(table, WINDOW, settings, NAMES, progress=no_progress)


# Days


def test_the_last_fifth_is_held_out_after_the_label_delay() -> None:
    (split,) = validation_splits(Days(100, 129), SETTINGS)
    assert (split.train, split.test) == (Days(100, 116), Days(124, 129))


def test_each_folds_days_are_those_before_the_next_ones() -> None:
    settings = replace(SETTINGS, validation_days=4, validation_folds=3, label_delay_days=2)
    assert [(split.train, split.test) for split in validation_splits(Days(100, 129), settings)] == [
        (Days(100, 115), Days(118, 121)),
        (Days(100, 119), Days(122, 125)),
        (Days(100, 123), Days(126, 129)),
    ]


def test_as_many_days_are_trained_on_as_are_held_out_or_there_is_no_fold() -> None:
    settings = replace(SETTINGS, validation_days=5, label_delay_days=7)
    assert validation_splits(Days(100, 116), settings)[0].train == Days(100, 104)
    with pytest.raises(Misconfigured, match="16 days are too short to hold 1 × 5 out, with 7 days of label delay"):
        validation_splits(Days(100, 115), settings)


# Choosing


def test_without_a_search_only_the_number_of_trees_is_chosen() -> None:
    choice = chosen()
    (one,) = choice.tried
    assert choice.settings == replace(SETTINGS, trees=one.folds[0].trees)
    assert choice.settings.trees < SETTINGS.trees
    assert choice.left_out == ""


def test_a_search_takes_the_highest_mean_average_precision() -> None:
    choice = chosen(settings=replace(SETTINGS, search_budget=5, validation_folds=2))
    means = [one.average_precision for one in choice.tried]
    assert len(set(means)) > 1
    assert choice.chosen == int(np.argmax(means))
    best = choice.tried[choice.chosen]
    assert choice.settings.trees == round(float(np.mean([fold.trees for fold in best.folds])))
    assert {name: getattr(choice.settings, name) for name in best.parameters} == dict(best.parameters)


def test_a_search_begins_with_the_settings_and_its_seed_draws_the_rest() -> None:
    settings = replace(SETTINGS, search_budget=6, l2=3.5)
    candidates = candidate_parameters(settings)
    assert len(candidates) == 6
    assert (candidates[0]["learning_rate"], candidates[0]["l2"]) == (0.2, 3.5)
    assert candidate_parameters(settings) == candidates
    assert candidate_parameters(replace(settings, seed=1))[1:] != candidates[1:]


def test_a_search_without_early_stopping_keeps_the_number_of_trees() -> None:
    choice = chosen(settings=replace(SETTINGS, trees=5, early_stopping_rounds=0, search_budget=3))
    assert {fold.trees for one in choice.tried for fold in one.folds} == {5}
    assert choice.settings.trees == 5


# Labels that may be used


def test_held_out_rows_come_after_the_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    held_out: list[HeldOut] = []
    grown_from: list[int] = []

    def remembering(data: object, one: HeldOut, *_: object) -> FoldResult:
        held_out.append(one)
        grown_from.append(data.num_data())  # type: ignore[attr-defined]
        return FoldResult(7, 0.5, 0.5, 0.5, 0.5)

    monkeypatch.setattr(search, "_result", remembering)
    chosen(settings=SETTINGS)
    is_last = TABLE.day >= 124
    assert held_out[0].vectors.tobytes() == TABLE.vectors[is_last].tobytes()
    assert held_out[0].label.tolist() == TABLE.label[is_last].tolist()
    assert grown_from[0] == (TABLE.day <= 116).sum()


def with_outcomes(known_on_day: int) -> TrainingTable:
    """Returns the same table with all frauds found on one morning."""
    row = np.flatnonzero(TABLE.label)
    times = np.full(len(row), known_on_day * DAY_MS)
    return replace(TABLE, outcomes=TableOutcomes(row, times, np.ones(len(row), dtype=np.bool_)))


def test_frauds_known_after_the_held_out_days_began_do_not_train() -> None:
    assert chosen(with_outcomes(124)).left_out == ""
    late = chosen(with_outcomes(125))
    assert late.left_out.startswith("there are 0 known frauds in ")
    assert f"from {date_of_day(100)} to {date_of_day(116)}" in late.left_out
    assert late.settings == SETTINGS


def test_a_correction_that_came_later_does_not_train_for_them() -> None:
    """Frauds that were corrected to genuine after the held-out days began still count as frauds on that morning."""
    row = np.flatnonzero(TABLE.label & (TABLE.day <= 116))
    morning, later = np.full(len(row), 124 * DAY_MS), np.full(len(row), 125 * DAY_MS)
    label = np.where(TABLE.day <= 116, 0, TABLE.label)
    others = np.flatnonzero(label)
    outcomes = TableOutcomes(
        np.concatenate((row, others, row)),
        np.concatenate((morning, np.full(len(others), 124 * DAY_MS), later)),
        np.repeat([True, True, False], [len(row), len(others), len(row)]),
    )
    corrected = TrainingTable(TABLE.vectors, label, TABLE.day, outcomes)
    assert corrected.label_known_by(126 * DAY_MS).tolist() == label.tolist()
    assert chosen(corrected).tried == chosen().tried


# Without folds


def test_a_window_too_short_for_folds_keeps_the_settings_and_says_why() -> None:
    short = Days(100, 107)
    choice = choose(TABLE, short, SETTINGS, NAMES, progress=no_progress)
    assert choice.settings == SETTINGS
    assert "8 days are too short" in choice.left_out
    assert choice.record()["tried"] == []


def test_a_search_in_a_window_that_is_too_short_is_refused() -> None:
    with pytest.raises(Misconfigured, match="parameters cannot be searched: 8 days are too short"):
        choose(TABLE, Days(100, 107), replace(SETTINGS, search_budget=2), NAMES, progress=no_progress)


# Changes


def test_changes_that_held_out_days_gain_by_are_in_the_chosen_settings() -> None:
    choice = chosen(settings=replace(SETTINGS, choose_seconds=600.0))
    assert choice.changes is not None
    assert choice.changes.not_tried == ()
    settings = choice.settings
    for one in choice.changes.taken:
        assert one.change.applied(settings) == settings
    off = chosen(settings=replace(SETTINGS, choose_seconds=0.0))
    assert off.changes is None
    assert off.settings.max_bin == SETTINGS.max_bin
