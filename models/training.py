"""Train a bundle: parameters, calibration, model, golden vectors, native library.

1. The number of trees, and other parameters where a search is asked for, are chosen on the last days of the window
   (models/search.py).
2. The window is cut into `folds` blocks of whole days where it can be; a model trained on the others scores each.
   These out-of-fold scores fit the calibration, the default thresholds and the reported metrics. They see all rows,
   whatever share of the genuine ones the trees are grown on.
3. A model trained on all rows goes into the bundle. The native library is compiled; it and GTIL must give LightGBM's
   own margins in every training row and in all rows of the parity gate (models/parity.py), to the bit.

The same table, settings and seed give the same bundle: its files and manifest have the same bytes, whatever the number
of threads. Only the native library, which is no part of that, may differ from machine to machine.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.engine import FeatureEngine
from models.backtest import Progress, unheard
from models.boosting import OnTree, binned, grow, grown_on, model_text
from models.bundle import (
    FORMAT,
    GOLDEN,
    MANIFEST,
    MODEL_TEXT,
    Manifest,
    build_native,
    calibrated,
    golden_gate,
    native_library,
    sha256_of,
)
from models.calibration import fit_calibration, reliability
from models.compiler import compiler_name
from models.evaluation import Days, auc_roc, average_precision, date_of_day
from models.parity import RANDOM_ROWS, GateRows, margins_of, random_rows, require_same_bits
from models.predictor import GtilPredictor, NativePredictor, Predictor
from models.search import choose
from models.training_settings import TrainingSettings, require_usable
from models.training_table import TrainingTable, require_both_kinds
from schemas.errors import Misconfigured

SCORE_BINS = 50
GOLDEN_ROWS = 512


def train_bundle(
    table: TrainingTable,
    window: Days,
    destination: Path,
    *,
    engine: FeatureEngine,
    settings: TrainingSettings,
    progress: Progress = unheard,
) -> Manifest:
    """Train and write a bundle; an existing one is replaced once the new one has passed the parity gate.

    Raises Misconfigured for settings, a window or a destination that cannot be used, BundleRefused by the gate.
    """
    names = list(engine.plan.names)
    require_usable(settings, names)
    destination = checked_destination(destination)
    require_both_kinds(table.label)
    choice = choose(table, window, settings, names, progress=progress)
    settings = choice.settings
    with progress("growing trees", (settings.folds + 1) * settings.trees) as on_tree:
        margins = _out_of_fold_margins(table, settings, names, on_tree)
        slope, intercept = fit_calibration(margins, table.label)
        model = _fit(table.vectors, table.label, grown_on(table.label, settings), settings, names, on_tree)
    scores = calibrated(margins, slope, intercept)
    trust = reliability(table.label, scores)
    unfinished = _made_anew(destination.with_name(f"{destination.name}.unfinished"))
    (unfinished / MODEL_TEXT).write_text(model_text(model), encoding="utf-8")
    _write_golden(unfinished / GOLDEN, model, table.vectors, settings.seed)
    files = {name: sha256_of(unfinished / name) for name in (MODEL_TEXT, GOLDEN)}
    edges = np.linspace(0.0, 1.0, SCORE_BINS + 1)
    manifest = Manifest(
        format=FORMAT,
        model_version=_version(files[MODEL_TEXT], engine.plan.digest, slope, intercept),
        catalogue_digest=engine.plan.digest,
        feature_names=names,
        importance_gain=model.feature_importance("gain").tolist(),
        importance_split=model.feature_importance("split").tolist(),
        train_from=date_of_day(window.first),
        train_to=date_of_day(window.last),
        training_payments=len(table.label),
        training_frauds=int(table.label.sum()),
        parameters=settings.of_the_model(),
        validation=choice.record(),
        calibration_slope=slope,
        calibration_intercept=intercept,
        review_at=float(np.quantile(scores, 1 - settings.review_share)),
        decline_at=float(np.quantile(scores, 1 - settings.decline_share)),
        metrics={
            "auc_roc": auc_roc(table.label, scores),
            "average_precision": average_precision(table.label, scores),
            "brier": trust.brier,
            "expected_calibration_error": trust.expected_calibration_error,
        },
        reliability=trust.table(),
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


def checked_destination(destination: Path) -> Path:
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


def _fit(
    vectors: NDArray[np.float32],
    label: NDArray[np.int64],
    used: NDArray[np.bool_],
    settings: TrainingSettings,
    names: list[str],
    on_tree: OnTree,
) -> Any:
    # A mask copies: the table may be most of the memory there is.
    rows = slice(None) if used.all() else used
    return grow(binned(vectors[rows], label[rows], settings), settings, names, on_tree=on_tree)


def _out_of_fold_margins(
    table: TrainingTable, settings: TrainingSettings, names: list[str], on_tree: OnTree
) -> NDArray[np.float64]:
    """Each row's margin by a model that did not see its block of days."""
    days = np.unique(table.day)
    # Too few days to cut by day: cut by row, which is still in time order.
    block_of = np.searchsorted(days, table.day) if len(days) >= settings.folds else np.arange(len(table.day))
    fold = block_of * settings.folds // (int(block_of.max()) + 1)
    sample = grown_on(table.label, settings)
    margins = np.empty(len(table.label))
    for number in np.unique(fold):
        held_out = fold == number
        model = _fit(table.vectors, table.label, sample & ~held_out, settings, names, on_tree)
        margins[held_out] = model.predict(table.vectors[held_out], raw_score=True)
    return margins


def _version(model_sha256: str, catalogue_digest: str, slope: float, intercept: float) -> str:
    """A name that follows from the content: the same data and settings give the same version."""
    content = f"{model_sha256} {catalogue_digest} {slope!r} {intercept!r}"
    return "m-" + hashlib.sha256(content.encode()).hexdigest()[:12]


def _write_golden(path: Path, model: Any, vectors: NDArray[np.float32], seed: int) -> None:
    step = max(1, len(vectors) // GOLDEN_ROWS)
    golden = np.concatenate((vectors[::step][:GOLDEN_ROWS], random_rows(vectors, seed, GOLDEN_ROWS)))
    np.savez_compressed(path, vectors=golden, margins=model.predict(golden, raw_score=True))


def _compile_and_compare(bundle: Path, model: Any, vectors: NDArray[np.float32], seed: int) -> None:
    """The parity gate, and every payment of the window: a single row with another margin refuses the bundle."""
    gate = golden_gate(bundle)
    tried = {"payments": vectors, "random rows": random_rows(vectors, seed + 1, RANDOM_ROWS)}
    more = [GateRows(kind, rows, margins_of(model, rows)) for kind, rows in tried.items()]
    predictors: list[Predictor] = [GtilPredictor(bundle / MODEL_TEXT)]
    if compiler_name() is not None:
        build_native(bundle, gate)
        predictors.append(NativePredictor(native_library(bundle), vectors.shape[1]))
    for predictor in predictors:
        if not predictor.native:
            gate.require(predictor)
        for part in more:
            require_same_bits(predictor, part)
