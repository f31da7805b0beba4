"""Train a bundle: point-in-time vectors, LightGBM, calibration, golden vectors, native library.

1. The history runs through the feature kernel up to the end of the training window; the window's payments give
   the rows. Labels are those known `label_delay_days` after the window; a payment without one counts as genuine.
2. The window is cut into `folds` blocks of whole days where it can be; a model trained on the others scores each.
   These out-of-fold scores fit the calibration, the default thresholds and the reported metrics.
3. A model trained on all rows goes into the bundle. The native library is compiled and must give LightGBM's own
   margins for every training row, random rows and the golden vectors, to the bit.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from features.engine import FeatureEngine
from features.history import History, labels_known_by
from features.money import RateTable
from features.passage import Passage
from models.bundle import (
    FORMAT,
    GOLDEN,
    MANIFEST,
    MODEL_TEXT,
    Manifest,
    build_native,
    calibrated,
    native_library,
    sha256_of,
)
from models.compiler import compiler_name
from models.evaluation import DAY_MS, Days, auc_roc, average_precision, date_of_day, day_of_time
from models.predictor import GtilPredictor, NativePredictor, Predictor
from schemas.errors import BundleRefused, Misconfigured

SCORE_BINS = 50
GOLDEN_ROWS = 512
RANDOM_ROWS = 4096


@dataclass(frozen=True)
class TrainingSettings:
    """How to train. LightGBM's own defaults lose badly on payments: sharp cuts need fine bins, rare frauds need
    shallow, regularised trees."""

    trees: int = 200
    learning_rate: float = 0.05
    max_depth: int = 4
    leaves: int = 15
    l2: float = 5.0
    min_sum_hessian: float = 1.0
    min_rows_in_leaf: int = 20
    # Shares of the features and of the rows that each tree is grown on.
    feature_fraction: float = 1.0
    bagging_fraction: float = 1.0
    max_bin: int = 4095
    folds: int = 3
    seed: int = 0
    threads: int = 2
    label_delay_days: int = 7
    # Share of payments whose score is at or above the bundle's default thresholds.
    review_share: float = 0.01
    decline_share: float = 0.002

    def lightgbm_parameters(self) -> dict[str, Any]:
        return {
            "objective": "binary",
            "learning_rate": self.learning_rate,
            "max_depth": self.max_depth,
            "num_leaves": self.leaves,
            "lambda_l2": self.l2,
            "min_sum_hessian_in_leaf": self.min_sum_hessian,
            "min_data_in_leaf": self.min_rows_in_leaf,
            "feature_fraction": self.feature_fraction,
            "bagging_fraction": self.bagging_fraction,
            # Rows are drawn anew for every tree.
            "bagging_freq": 1,
            "max_bin": self.max_bin,
            "min_data_in_bin": 1,
            "seed": self.seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": self.threads,
            "verbosity": -1,
        }


@dataclass(frozen=True)
class TrainingTable:
    """Point-in-time rows: `vectors` (rows, features) float32, `label` (rows,) 0 or 1, `day` (rows,) UTC days."""

    vectors: NDArray[np.float32]
    label: NDArray[np.int64]
    day: NDArray[np.int64]


def training_table(
    history: History,
    window: Days,
    *,
    engine: FeatureEngine,
    rates: RateTable,
    label_delay_days: int,
    progress: Callable[[int], object] | None = None,
) -> TrainingTable:
    """The rows of a window as they were seen when they happened. Raises Misconfigured for an unusable window."""
    first, last = np.searchsorted(history.event_time_ms, [window.first * DAY_MS, (window.last + 1) * DAY_MS]).tolist()
    if first == last:
        raise Misconfigured(f"there is no payment from {date_of_day(window.first)} to {date_of_day(window.last)}")
    vectors = np.empty((last - first, engine.plan.feature_count), dtype=np.float32)
    for chunk in Passage(history, engine, rates).chunks(first=first, last=last, progress=progress):
        vectors[chunk.first - first : chunk.last - first] = chunk.vectors
    known_by_ms = (window.last + 1 + label_delay_days) * DAY_MS
    label = (labels_known_by(history, known_by_ms)[first:last] == 1).astype(np.int64)
    return TrainingTable(vectors, label, day_of_time(history.event_time_ms[first:last]))


def train_bundle(
    table: TrainingTable,
    window: Days,
    destination: Path,
    *,
    engine: FeatureEngine,
    settings: TrainingSettings,
) -> Manifest:
    """Train and write a bundle; an existing one is replaced once the new one has passed the parity gate.

    Raises Misconfigured for settings, a window or a destination that cannot be used, BundleRefused by the gate.
    """
    _check(settings)
    destination = _checked_destination(destination)
    frauds = int(table.label.sum())
    if frauds < 2 or frauds == len(table.label):
        raise Misconfigured(f"the training window has {frauds} frauds in {len(table.label)} payments")
    margins = _out_of_fold_margins(table, settings)
    slope, intercept = _fit_calibration(margins, table.label)
    scores = calibrated(margins, slope, intercept)
    model = _fit(table.vectors, table.label, settings)
    unfinished = _made_anew(destination.with_name(f"{destination.name}.unfinished"))
    (unfinished / MODEL_TEXT).write_text(model.model_to_string(), encoding="utf-8")
    _write_golden(unfinished / GOLDEN, model, table.vectors, settings.seed)
    files = {name: sha256_of(unfinished / name) for name in (MODEL_TEXT, GOLDEN)}
    edges = np.linspace(0.0, 1.0, SCORE_BINS + 1)
    manifest = Manifest(
        format=FORMAT,
        model_version=_version(files[MODEL_TEXT], engine.plan.digest, slope, intercept),
        catalogue_digest=engine.plan.digest,
        feature_names=list(engine.plan.names),
        train_from=date_of_day(window.first),
        train_to=date_of_day(window.last),
        training_payments=len(table.label),
        training_frauds=frauds,
        parameters=asdict(settings),
        calibration_slope=slope,
        calibration_intercept=intercept,
        review_at=float(np.quantile(scores, 1 - settings.review_share)),
        decline_at=float(np.quantile(scores, 1 - settings.decline_share)),
        metrics={
            "auc_roc": auc_roc(table.label, scores),
            "average_precision": average_precision(table.label, scores),
        },
        score_edges=edges.tolist(),
        score_counts=np.histogram(scores, edges)[0].tolist(),
        files=files,
    )
    (unfinished / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    _compile_and_compare(unfinished, model, table.vectors, settings.seed)
    if destination.exists():
        shutil.rmtree(destination)
    unfinished.rename(destination)
    return manifest


def _check(settings: TrainingSettings) -> None:
    if settings.trees < 1:
        raise Misconfigured(f"training.trees: wanted at least 1, got {settings.trees}")
    if settings.folds < 2:
        raise Misconfigured(f"training.folds: wanted at least 2, got {settings.folds}")
    if not 0.0 < settings.decline_share <= settings.review_share < 1.0:
        raise Misconfigured(
            "training.decline_share: wanted above 0 and at most training.review_share, which must be below 1, "
            f"got {settings.decline_share} and {settings.review_share}"
        )


def _checked_destination(destination: Path) -> Path:
    """Where the bundle goes. What is there and is no bundle is somebody's data: it is not replaced."""
    destination = destination.resolve()
    if destination.is_dir():
        if any(destination.iterdir()) and not (destination / MANIFEST).is_file():
            raise Misconfigured(f"{destination} holds something that is no bundle: choose another place")
    elif destination.exists():
        raise Misconfigured(f"{destination} is a file: choose another place for the bundle")
    return destination


def _made_anew(folder: Path) -> Path:
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise Misconfigured(f"cannot write a bundle to {folder}: {error.strerror}") from error
    return folder


def _fit(vectors: NDArray[np.float32], label: NDArray[np.int64], settings: TrainingSettings) -> Any:
    parameters = settings.lightgbm_parameters()
    try:
        return lightgbm.train(parameters, lightgbm.Dataset(vectors, label), num_boost_round=settings.trees)
    except lightgbm.basic.LightGBMError as error:
        # What follows " at " is a line of LightGBM's own source.
        reason = str(error).partition(" at ")[0]
        raise Misconfigured(f"LightGBM cannot train with the [training] settings: {reason}") from error


def _out_of_fold_margins(table: TrainingTable, settings: TrainingSettings) -> NDArray[np.float64]:
    """Each row's margin by a model that did not see its block of days."""
    days = np.unique(table.day)
    # Too few days to cut by day: cut by row, which is still in time order.
    block_of = np.searchsorted(days, table.day) if len(days) >= settings.folds else np.arange(len(table.day))
    fold = block_of * settings.folds // (int(block_of.max()) + 1)
    margins = np.empty(len(table.label))
    for number in np.unique(fold):
        held_out = fold == number
        model = _fit(table.vectors[~held_out], table.label[~held_out], settings)
        margins[held_out] = model.predict(table.vectors[held_out], raw_score=True)
    return margins


def _fit_calibration(margins: NDArray[np.float64], label: NDArray[np.int64]) -> tuple[float, float]:
    """Platt scaling: slope and intercept that make margins log-odds (Platt 1999, without target smoothing)."""
    fitted = LogisticRegression(C=1e6).fit(margins.reshape(-1, 1), label)
    slope = float(fitted.coef_[0, 0])
    if slope <= 0.0:
        raise Misconfigured("the model ranks held-out payments no better than chance: there is nothing to calibrate")
    return slope, float(fitted.intercept_[0])


def _version(model_sha256: str, catalogue_digest: str, slope: float, intercept: float) -> str:
    """A name that follows from the content: the same data and settings give the same version."""
    content = f"{model_sha256} {catalogue_digest} {slope!r} {intercept!r}"
    return "m-" + hashlib.sha256(content.encode()).hexdigest()[:12]


def _random_rows(vectors: NDArray[np.float32], seed: int, count: int) -> NDArray[np.float32]:
    """Rows no payment had: each value drawn from its own column, and a tenth of them missing."""
    random = np.random.default_rng(seed)
    picked = random.integers(0, len(vectors), size=(count, vectors.shape[1]))
    rows = np.take_along_axis(vectors, picked, axis=0)
    rows[random.random(rows.shape) < 0.1] = np.nan
    return np.ascontiguousarray(rows)


def _write_golden(path: Path, model: Any, vectors: NDArray[np.float32], seed: int) -> None:
    step = max(1, len(vectors) // GOLDEN_ROWS)
    golden = np.concatenate((vectors[::step][:GOLDEN_ROWS], _random_rows(vectors, seed, GOLDEN_ROWS)))
    np.savez_compressed(path, vectors=golden, margins=model.predict(golden, raw_score=True))


def _compile_and_compare(bundle: Path, model: Any, vectors: NDArray[np.float32], seed: int) -> None:
    """The parity gate: a single row with another margin refuses the bundle."""
    rows = np.concatenate((vectors, _random_rows(vectors, seed + 1, RANDOM_ROWS)))
    wanted = model.predict(rows, raw_score=True)
    predictors: list[Predictor] = [GtilPredictor(bundle / MODEL_TEXT)]
    if compiler_name() is not None:
        build_native(bundle)
        predictors.append(NativePredictor(native_library(bundle), rows.shape[1]))
    for predictor in predictors:
        differing = int(np.count_nonzero(predictor.margins(rows) != wanted))
        if differing:
            kind = "native library" if predictor.native else "GTIL"
            raise BundleRefused(f"the {kind} scores {differing} of {len(rows)} rows unlike LightGBM")
