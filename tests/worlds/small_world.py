"""A small simulated past and a small model trained on it, for tests that need a real bundle.

    history()         30 days of 300 cards, about 13,000 payments
    trained_bundle()  a bundle on days 2 to 19 of it, 20 trees, compiled where there is a compiler: two seconds

Both are made once in a process and shared: copy a bundle (`copied_bundle`) before you change a file of it.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import pyarrow as pa

from paywarden.features.datasets.simulator import DEFAULT_START_MS, simulate
from paywarden.features.history.history import History, history_of_tables
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RateTable, load_rates
from paywarden.models.bundle.bundle import Bundle, load_bundle
from paywarden.models.metrics.evaluation import Days
from paywarden.models.training.settings import TrainingSettings
from paywarden.models.training.table import TrainingTable, training_table
from paywarden.models.training.training import train_bundle

DAY_MS = 86_400_000
CARDS, DAYS, SEED = 300, 30, 2
FIRST_DAY = DEFAULT_START_MS // DAY_MS
TRAINING_DAYS = Days(FIRST_DAY + 2, FIRST_DAY + 19)
LABEL_DELAY_DAYS = 7
# Few and coarse trees; thresholds that a small world has payments above.
SETTINGS = TrainingSettings(
    trees=20,
    max_bin=255,
    min_rows_in_leaf=10,
    early_stopping_rounds=0,
    review_share=0.05,
    decline_share=0.01,
    label_delay_days=LABEL_DELAY_DAYS,
    # More would wait for one another longer than they grow so small a tree.
    threads=1,
)
# A small world is no place for a tolerance of one in ten thousand.
CASCADE_SETTINGS = replace(SETTINGS, cascade=True, cascade_trees=6, cascade_leaves=7, cascade_disagreement_max=0.01)


@cache
def tables() -> tuple[pa.Table, pa.Table]:
    """(payments, outcomes) as `simulate` gives them."""
    return simulate(cards=CARDS, days=DAYS, seed=SEED)


@cache
def history() -> History:
    """The same, read."""
    return history_of_tables(*tables())


@cache
def engine() -> FeatureEngine:
    """Of the project's own catalogue, warm. Like any engine, not for two threads."""
    warm = FeatureEngine()
    warm.warm_up()
    return warm


@cache
def rates() -> RateTable:
    """The example rates that come with the package."""
    return load_rates()


@cache
def table() -> TrainingTable:
    """The rows that the bundle is trained on."""
    return training_table(history(), TRAINING_DAYS, engine=engine(), rates=rates(), label_delay_days=LABEL_DELAY_DAYS)


@cache
def trained_bundle() -> Path:
    """The folder of the bundle. Leave it as it is."""
    folder = Path(tempfile.mkdtemp(prefix="paywarden-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    train_bundle(table(), TRAINING_DAYS, folder / "bundle", engine=engine(), settings=SETTINGS)
    return folder / "bundle"


@cache
def loaded_bundle() -> Bundle:
    """The bundle, loaded and checked."""
    return load_bundle(trained_bundle(), catalogue_digest=engine().plan.digest)


@cache
def other_bundle() -> Path:
    """The folder of another bundle of the same rows, with fewer trees: a challenger. Leave it as it is."""
    folder = Path(tempfile.mkdtemp(prefix="paywarden-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    train_bundle(table(), TRAINING_DAYS, folder / "other", engine=engine(), settings=replace(SETTINGS, trees=6))
    return folder / "other"


@cache
def other_loaded_bundle() -> Bundle:
    """The other bundle, loaded and checked."""
    return load_bundle(other_bundle(), catalogue_digest=engine().plan.digest)


@cache
def cascade_bundle() -> Path:
    """The folder of a bundle of the same rows that asks six trees first. Leave it as it is."""
    folder = Path(tempfile.mkdtemp(prefix="paywarden-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    train_bundle(table(), TRAINING_DAYS, folder / "cascade", engine=engine(), settings=CASCADE_SETTINGS)
    return folder / "cascade"


def copied_bundle(folder: Path, bundle: Path | None = None) -> Path:
    """A copy of the bundle, or of this one, in `folder`, to break."""
    copy = folder / "bundle"
    shutil.copytree(bundle or trained_bundle(), copy)
    return copy
