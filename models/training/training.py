"""Train a bundle: parameters, calibration, model, golden vectors, native library.

1. The number of trees, and other parameters where a search is asked for, are chosen on the last days of the window
   (models/training/search.py).
2. The window is cut into `folds` blocks of whole days where it can be; a model trained on the others scores each.
   These out-of-fold scores fit the calibration, the default thresholds and the reported metrics. They see all rows,
   whatever share of the genuine ones the trees are grown on.
   With a cascade a small model's margins are made the same way, and its thresholds chosen
   (models/training/cascade_choice.py).
3. A model trained on all rows goes into the bundle. The native library is compiled; it and GTIL must give LightGBM's
   own margins in every training row and in all rows of the parity gate (models/bundle/parity.py), to the bit.

The same table, settings and seed give the same bundle: its files and manifest have the same bytes, whatever the number
of threads. Only the native library, which is no part of that, may differ from machine to machine.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.features.profiles.engine import FeatureEngine
from paywarden.models.bundle.bundle import (
    FIRST,
    FORMAT,
    LARGE,
    MANIFEST,
    MODEL_TEXT,
    Manifest,
    ModelPart,
    build_native,
    calibrated,
    golden_gate,
    native_library,
    sha256_of,
)
from paywarden.models.bundle.cascade import Cascade
from paywarden.models.bundle.compiler import compiler_name
from paywarden.models.bundle.parity import RANDOM_ROWS, GateRows, margins_of, random_rows, require_same_bits
from paywarden.models.bundle.predictor import GtilPredictor, NativePredictor, Predictor
from paywarden.models.drift.reference import REFERENCE
from paywarden.models.drift.reference_builder import PastDecisions, as_of_one_model, make_reference
from paywarden.models.metrics.evaluation import Days, auc_roc, average_precision, date_of_day
from paywarden.models.training.boosting import OnTree, binned, grow, grown_on, model_text
from paywarden.models.training.calibration import fit_calibration, reliability
from paywarden.models.training.cascade_choice import Large, OutOfFold, choose_cascade
from paywarden.models.training.progress import TrainingProgress, no_progress
from paywarden.models.training.search import choose
from paywarden.models.training.settings import TrainingSettings, require_usable
from paywarden.models.training.table import TrainingTable, require_both_kinds, require_categories
from paywarden.schemas.errors import Misconfigured

SCORE_BINS = 50
GOLDEN_ROWS = 512


def train_bundle(
    table: TrainingTable,
    window: Days,
    destination: Path,
    *,
    engine: FeatureEngine,
    settings: TrainingSettings,
    progress: TrainingProgress = no_progress,
) -> Manifest:
    """Train and write a bundle; an existing one is replaced once the new one has passed the parity gate.

    Raises Misconfigured for settings, a window or a destination that cannot be used, BundleRefused by the gate.
    """
    names = list(engine.plan.names)
    require_usable(settings, names)
    destination = checked_destination(destination)
    require_both_kinds(table.label)
    require_categories(table, settings, names)
    choice = choose(table, window, settings, names, progress=progress)
    settings = choice.settings
    _require_larger(settings)
    fold = _folds(table, settings)
    tree_count = settings.trees + (settings.cascade_trees if settings.cascade else 0)
    with progress("growing trees", (settings.folds + 1) * tree_count) as on_tree:
        large = _grown(table, fold, settings, names, on_tree)
        first = _grown(table, fold, settings.of_the_first(), names, on_tree) if settings.cascade else None
    slope, intercept = fit_calibration(large.margins, table.label)
    margins, cascade = large.margins, None
    scores = calibrated(margins, slope, intercept)
    review_at, decline_at = (float(np.quantile(scores, 1 - s)) for s in (settings.review_share, settings.decline_share))
    if first is not None:
        rows = OutOfFold(first.margins, large.margins, fold, table.label)
        calibration = Large(slope, intercept, review_at, decline_at)
        cascade, margins = choose_cascade(rows, calibration, settings.cascade_disagreement_max)
        scores = calibrated(margins, slope, intercept)
    trust = reliability(table.label, scores)
    unfinished = _made_anew(destination.with_name(f"{destination.name}.unfinished"))
    models = {LARGE: large.model} | ({} if first is None else {FIRST: first.model})
    for part, model in models.items():
        (unfinished / part.model_text).write_text(model_text(model), encoding="utf-8")
        _write_golden(unfinished / part.golden, model, table.vectors, settings.seed)
    files = {name: sha256_of(unfinished / name) for part in models for name in (part.model_text, part.golden)}
    version = _version(files, engine.plan.digest, slope, intercept, cascade)
    if table.segments is not None:
        reference = make_reference(
            PastDecisions(as_of_one_model(scores, fold), table.vectors, table.segments),
            model_version=version,
            feature_names=names,
            thresholds=(review_at, decline_at),
        )
        if reference is not None:
            reference.save(unfinished / REFERENCE)
            files[REFERENCE] = sha256_of(unfinished / REFERENCE)
    edges = np.linspace(0.0, 1.0, SCORE_BINS + 1)
    manifest = Manifest(
        format=FORMAT,
        model_version=version,
        catalogue_digest=engine.plan.digest,
        feature_names=names,
        importance_gain=large.model.feature_importance("gain").tolist(),
        importance_split=large.model.feature_importance("split").tolist(),
        train_from=date_of_day(window.first),
        train_to=date_of_day(window.last),
        training_payments=len(table.label),
        training_frauds=int(table.label.sum()),
        parameters=settings.of_the_model(),
        validation=choice.record(),
        calibration_slope=slope,
        calibration_intercept=intercept,
        review_at=review_at,
        decline_at=decline_at,
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
        cascade={} if cascade is None else asdict(cascade),
    )
    (unfinished / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    _compile_and_compare(unfinished, models, table.vectors, settings.seed, progress)
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
    return grow(binned(vectors[rows], label[rows], settings, names), settings, names, on_tree=on_tree)


def _require_larger(settings: TrainingSettings) -> None:
    """Said before the trees are grown: how many the large model has follows from early stopping."""
    if settings.cascade and settings.cascade_trees >= settings.trees:
        raise Misconfigured(
            f"training.cascade: a first model of {settings.cascade_trees} trees saves nothing before one of "
            f"{settings.trees}: set training.cascade_trees lower, or train without"
        )


@dataclass(frozen=True)
class _Grown:
    """A model of all rows, and each row's margin by one that did not see its fold."""

    model: Any
    margins: NDArray[np.float64]


def _grown(
    table: TrainingTable,
    fold: NDArray[np.int64],
    settings: TrainingSettings,
    names: list[str],
    on_tree: OnTree,
) -> _Grown:
    sample = grown_on(table.label, settings)
    margins = np.empty(len(table.label))
    for number in np.unique(fold):
        held_out = fold == number
        model = _fit(table.vectors, table.label, sample & ~held_out, settings, names, on_tree)
        margins[held_out] = model.predict(table.vectors[held_out], raw_score=True)
    return _Grown(_fit(table.vectors, table.label, sample, settings, names, on_tree), margins)


def _folds(table: TrainingTable, settings: TrainingSettings) -> NDArray[np.int64]:
    """By row: the number of its block of whole days."""
    days = np.unique(table.day)
    # Too few days to cut by day: cut by row, which is still in time order.
    block_of = np.searchsorted(days, table.day) if len(days) >= settings.folds else np.arange(len(table.day))
    return np.asarray(block_of * settings.folds // (int(block_of.max()) + 1), dtype=np.int64)


def _version(
    files: dict[str, str], catalogue_digest: str, slope: float, intercept: float, cascade: Cascade | None
) -> str:
    """A name that follows from the content: the same data and settings give the same version."""
    content = f"{files[MODEL_TEXT]} {catalogue_digest} {slope!r} {intercept!r}"
    if cascade is not None:
        content += f" {files[FIRST.model_text]} {cascade!r}"
    return "m-" + hashlib.sha256(content.encode()).hexdigest()[:12]


def _write_golden(path: Path, model: Any, vectors: NDArray[np.float32], seed: int) -> None:
    step = max(1, len(vectors) // GOLDEN_ROWS)
    golden = np.concatenate((vectors[::step][:GOLDEN_ROWS], random_rows(vectors, seed, GOLDEN_ROWS)))
    np.savez_compressed(path, vectors=golden, margins=model.predict(golden, raw_score=True))


def _compile_and_compare(
    bundle: Path, models: Mapping[ModelPart, Any], vectors: NDArray[np.float32], seed: int, progress: TrainingProgress
) -> None:
    """The parity gate, and every payment of the window: a single row with another margin refuses the bundle."""
    gates = {part: golden_gate(bundle, part) for part in models}
    tried = {"payments": vectors, "random rows": random_rows(vectors, seed + 1, RANDOM_ROWS)}
    has_compiler = compiler_name() is not None
    predictor_count = 2 if has_compiler else 1
    # Steps: the library, and for each model its margins and what each predictor gives for the same rows.
    steps = has_compiler + len(models) * (1 + predictor_count * len(tried))
    with progress("compiling and checking", steps) as advance:
        if has_compiler:
            build_native(bundle, gates)
            advance(1)
        for part, model in models.items():
            more = [GateRows(kind, rows, margins_of(model, rows)) for kind, rows in tried.items()]
            interpreter = GtilPredictor(bundle / part.model_text)
            gates[part].require(interpreter)
            advance(1)
            predictors: list[Predictor] = [interpreter]
            if has_compiler:
                predictors.append(NativePredictor(native_library(bundle, part), vectors.shape[1]))
            for predictor in predictors:
                for rows in more:
                    require_same_bits(predictor, rows)
                    advance(1)
