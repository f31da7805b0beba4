"""A small simulated past and a small model trained on it, for tests that need a real bundle.

    history()         30 days of 300 cards, about 13,000 payments
    trained_bundle()  a bundle trained on days 2 to 19, 20 trees, compiled if there is a compiler; takes two seconds

One process of a run makes a bundle, and all use it. Copy it with `copied_bundle` before you change one of its files.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

from paywarden.models.bundle.bundle import Bundle, load_bundle
from paywarden.models.metrics.evaluation import Days
from paywarden.models.training.table import LabelRules, TrainingTable, training_table
from paywarden.models.training.training import train_bundle
from paywarden.models.training.training_settings import TrainingSettings
from tests.services.made_once import made_once
from tests.worlds.small.small_history import CARDS, DAY_MS, DAYS, FIRST_DAY, SEED, engine, history, rates, tables

__all__ = [
    "CARDS",
    "CASCADE_SETTINGS",
    "DAYS",
    "DAY_MS",
    "FIRST_DAY",
    "LABEL_DELAY_DAYS",
    "SEED",
    "SETTINGS",
    "TRAINING_DAYS",
    "cascade_bundle",
    "copied_bundle",
    "engine",
    "history",
    "loaded_bundle",
    "other_bundle",
    "other_loaded_bundle",
    "rates",
    "table",
    "tables",
    "trained_bundle",
]

TRAINING_DAYS = Days(FIRST_DAY + 2, FIRST_DAY + 19)
LABEL_DELAY_DAYS = 7
# Few and coarse trees, and thresholds that some payments of a small world exceed.
SETTINGS = TrainingSettings(
    trees=20,
    max_bin=255,
    min_rows_in_leaf=10,
    early_stopping_rounds=0,
    review_share=0.05,
    decline_share=0.01,
    label_delay_days=LABEL_DELAY_DAYS,
    # More threads would wait for each other longer than a small tree takes to grow.
    threads=1,
)
# The default tolerance, one in ten thousand, is too small for this few payments.
CASCADE_SETTINGS = replace(SETTINGS, cascade=True, cascade_trees=6, cascade_leaves=7, cascade_disagreement_max=0.01)


@cache
def table() -> TrainingTable:
    """Returns the rows that the bundle is trained on."""
    return training_table(history(), TRAINING_DAYS, engine=engine(), rates=rates(), labels=LabelRules(LABEL_DELAY_DAYS))


@cache
def trained_bundle() -> Path:
    """Returns the folder of the bundle. Do not change it."""
    return _trained("bundle", SETTINGS)


def _trained(name: str, settings: TrainingSettings) -> Path:
    return made_once(
        name, lambda folder: train_bundle(table(), TRAINING_DAYS, folder, engine=engine(), settings=settings)
    )


@cache
def loaded_bundle() -> Bundle:
    """Returns the bundle, loaded and checked."""
    return load_bundle(trained_bundle(), catalogue_digest=engine().plan.digest)


@cache
def other_bundle() -> Path:
    """Returns the folder of a challenger: a bundle trained on the same rows, with fewer trees. Do not change it."""
    return _trained("other", replace(SETTINGS, trees=6))


@cache
def other_loaded_bundle() -> Bundle:
    """Returns the challenger's bundle, loaded and checked."""
    return load_bundle(other_bundle(), catalogue_digest=engine().plan.digest)


@cache
def cascade_bundle() -> Path:
    """Returns the folder of a bundle with a cascade, whose first model has six trees. Do not change it."""
    return _trained("cascade", CASCADE_SETTINGS)


def copied_bundle(folder: Path, bundle: Path | None = None) -> Path:
    """Copy `bundle` (default: the trained bundle) into `folder`, so that a test can damage it."""
    copy = folder / "bundle"
    shutil.copytree(bundle or trained_bundle(), copy)
    return copy
