"""What training chooses by itself, and whether its promise holds, on made tables that nobody tuned on.

Each seed makes a world: cards that are attacked, a category of 166 values of which some are bad, a feature that grows
with calendar time, a window that is still filling, a prior of fraud that changes from week to week or at one day, and
reviewers who leave a part of the payments without a label. Vectors are made, not computed: no feature code takes part.

    choices     average precision in the 30 days after the window of the settings, and of the settings with the changes
                that `train` takes, on the same payments
    coverage    in how many of the months after the window the mean score divided by the share of frauds lies in the
                interval that training promises (models/training/later_days.py)

    python -m perf.training [--worlds 4] [--months 100] [--json FILE]
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from paywarden.models.bundle.bundle import calibrated
from paywarden.models.metrics.evaluation import Days, average_precision
from paywarden.models.training.boosting import aged, binned, grow
from paywarden.models.training.feature_ranges import clocks, drifting_features, growing
from paywarden.models.training.later_days import ORIGINS, Calibration, blocks_ahead, calibrate
from paywarden.models.training.progress import no_progress
from paywarden.models.training.search import choose
from paywarden.models.training.settings import TrainingSettings
from paywarden.models.training.table import TrainingTable, blocks_of
from perf.tools.measuring import arguments_of, finish

NAMES = ("amount", "speed", "distance", "share", "category", "since_start", "filling", "noise_a", "noise_b", "noise_c")
CATEGORY_COUNT = 166
MONTH = 30
# Trees that fit many small tables within minutes.
SETTINGS = TrainingSettings(trees=100, learning_rate=0.1, threads=1)
QUICK = TrainingSettings(
    trees=40, learning_rate=0.15, max_bin=63, early_stopping_rounds=0, leave_out=("since_start",), threads=1
)
# Seeds of the worlds that figures are stated of. Lower seeds are free for tuning.
FIRST_SEED = 1000
KINDS = ("steady", "walk", "step", "reviewed")
"""How the prior of fraud changes, and whether reviewers see only a part of the payments."""


@dataclass(frozen=True)
class World:
    """The table of the window, and of the month after it."""

    window: TrainingTable
    month: TrainingTable
    days: Days


def make_world(seed: int, *, days: int = 90, daily: int = 400) -> World:
    """Returns the world of a seed; its kind is the seed's place in KINDS, repeated."""
    random, kind = np.random.default_rng((7919, seed)), KINDS[seed % len(KINDS)]
    rows = (days + MONTH) * daily
    day = np.repeat(np.arange(days + MONTH), daily)
    card = random.integers(0, rows // 20, rows)
    vectors = random.normal(size=(rows, len(NAMES))).astype(np.float32)
    of_code = np.where(random.random(CATEGORY_COUNT) < 0.12, random.uniform(1.5, 3.0, CATEGORY_COUNT), 0.0)
    popularity = random.dirichlet(np.full(CATEGORY_COUNT, 0.5))
    code = random.choice(CATEGORY_COUNT, rows, p=popularity)
    vectors[:, 4] = code
    # The card's age: most cards are there from the first day, and it says nothing but the day.
    vectors[:, 5] = day + random.random(rows) - np.where(card % 5 == 0, random.random(rows) * day, 0.0)
    size = random.lognormal(0.0, 1.0, rows // 20)[card]
    vectors[:, 6] = random.poisson(size * np.minimum(day, MONTH))
    prior = {
        "steady": np.zeros(days + MONTH),
        "walk": np.repeat(np.cumsum(random.normal(0.0, 0.12, (days + MONTH) // 7 + 1)), 7)[: days + MONTH],
        "step": np.where(np.arange(days + MONTH) >= random.integers(days // 2, days - 10), np.log(1.8), 0.0),
        "reviewed": np.repeat(np.cumsum(random.normal(0.0, 0.06, (days + MONTH) // 7 + 1)), 7)[: days + MONTH],
    }[kind]
    attacked = random.random((rows // 20, (days + MONTH) // 10 + 1)) < 0.01
    log_odds = -6.0 + prior[day] + 1.5 * vectors[:, 0] + 1.5 * vectors[:, 1] * (vectors[:, 2] > 0) + of_code[code]
    log_odds += 2.5 * attacked[card, day // 10]
    label = (random.random(rows) < 1.0 / (1.0 + np.exp(-log_odds))).astype(np.int64)
    known = np.ones(rows, dtype=np.bool_)
    if kind == "reviewed":
        known = random.random(rows) < np.where(vectors[:, 0] > 1.0, 0.9, 0.5)

    def part(rows_of: NDArray[np.bool_]) -> TrainingTable:
        return TrainingTable(vectors[rows_of], label[rows_of], day[rows_of], card=card[rows_of].astype(np.int32))

    # Labels that are not known are left out, as `unknown_labels` does; the month is like the window.
    return World(part(known & (day < days)), part(known & (day >= days)), Days(0, days - 1))


def chosen_settings(world: World, settings: TrainingSettings) -> tuple[TrainingSettings, list[str]]:
    """Returns the settings that training grows with, and its words."""
    table = world.window
    drifting = drifting_features(table.vectors, table.day, NAMES)
    settings = replace(settings, leave_out=tuple(clocks(drifting)))
    choice = choose(
        table, world.days, settings, NAMES, progress=no_progress, codes=("category",), growing=growing(drifting)
    )
    return choice.settings, [] if choice.changes is None else choice.changes.in_words()


def precision_after(world: World, settings: TrainingSettings) -> float:
    """Returns the average precision in the month after the window of a model of the whole window."""
    table = world.window
    weight = aged(table.weight, table.day, settings)
    model = grow(binned(table.vectors, table.label, settings, NAMES, weight), settings, NAMES)
    return average_precision(world.month.label, model.predict(world.month.vectors))


def promise_of(world: World) -> tuple[Calibration, float]:
    """Returns what training promises of the month, and its true mean score divided by its share of frauds."""
    table = world.window
    fold, block = blocks_of(table.day, QUICK.folds), blocks_ahead(table.day)
    margins, ahead = np.empty(len(table.label)), np.full(len(table.label), np.nan)
    for number in range(QUICK.folds):
        margins[fold == number] = _margins(table, fold != number, table.vectors[fold == number])
    for number in range(ORIGINS):
        ahead[block == number] = _margins(table, block < number, table.vectors[block == number])
    found = calibrate(margins, table.label, table.day, ahead)
    score = calibrated(_margins(table, fold >= 0, world.month.vectors), found.slope, found.intercept)
    return found, float(score.mean() / world.month.label.mean())


def _margins(table: TrainingTable, rows: NDArray[np.bool_], of: NDArray[np.float32]) -> NDArray[np.float64]:
    model = grow(binned(table.vectors[rows], table.label[rows], QUICK, NAMES), QUICK, NAMES)
    return np.asarray(model.predict(of, raw_score=True), dtype=np.float64)


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--worlds", {"type": int, "default": 4, "help": "worlds to choose in"}),
        ("--months", {"type": int, "default": 100, "help": "worlds whose month is promised"}),
        ("--seed", {"type": int, "default": FIRST_SEED, "help": "the first world's seed"}),
    )
    figures: dict[str, float] = {}
    for seed in range(arguments.seed, arguments.seed + arguments.worlds):
        world = make_world(seed, daily=250)
        without, _ = chosen_settings(world, replace(SETTINGS, choose_seconds=0.0))
        chosen, words = chosen_settings(world, replace(SETTINGS, choose_seconds=3600.0))
        name = f"{KINDS[seed % len(KINDS)]}_{seed}"
        figures[f"{name}_average_precision"] = precision_after(world, without)
        figures[f"{name}_average_precision_chosen"] = precision_after(world, chosen)
        print(name, *words, sep="\n  ", flush=True)
    held: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    widths, named = [], dict.fromkeys(KINDS, 0)
    for seed in range(arguments.seed, arguments.seed + arguments.months):
        kind = KINDS[seed % len(KINDS)]
        found, ratio = promise_of(make_world(seed, daily=150))
        named[kind] += found.prior_shift is not None
        if found.later is not None:
            held[kind].append(found.later.low <= ratio <= found.later.high)
            widths.append(found.later.high / found.later.low)
            print(f"{kind}_{seed}: {ratio:.2f}, {found.later.in_words()}", flush=True)
    for kind, of_kind in held.items():
        figures |= {f"{kind}_months": len(of_kind), f"{kind}_held": sum(of_kind), f"{kind}_shifts": named[kind]}
    figures["held_of_100"] = 100 * sum(map(sum, held.values())) / max(1, len(widths))
    figures["interval_width_median"] = float(np.median(widths)) if widths else float("nan")
    finish(figures, arguments.json)


if __name__ == "__main__":
    main()
