"""Train a bundle: parameters, calibration, model, golden vectors, native library.

How it works:

1. Early stopping on the window's last days chooses the number of trees. A search, if configured, chooses other
   parameters as well (models/training/search.py).
2. The window is cut into `folds` blocks of whole days, if it has enough days. A model trained on the other blocks
   scores each block. These out-of-fold scores determine the calibration, the default thresholds and the metrics. Small
   models of earlier days promise how far the scores of later days will be off (models/training/promise.py).
3. With a cascade, a small model gets out-of-fold margins the same way, and its thresholds are chosen
   (models/training/cascade_choice.py).
4. A model trained on all rows goes into the bundle, and its native library is compiled. The reference for drift says
   how this model would score unseen payments (models/drift/unseen_margins.py).
5. The library and GTIL must give LightGBM's own margins, to the bit, in every training row and in all rows of the
   parity gate (models/bundle/parity.py).

The same table, settings and seed give the same bundle, byte for byte, with any number of threads. The native library is
not part of the manifest and may differ between machines.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
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
from paywarden.models.drift.reference_builder import PastDecisions, make_reference
from paywarden.models.drift.unseen_margins import FoldMargins, as_of_one_model, unseen_margins
from paywarden.models.metrics.evaluation import Days, auc_roc, average_precision, date_of_day
from paywarden.models.metrics.value_detected import missed_frauds
from paywarden.models.training.boosting import OnTree, aged, binned, grow, model_text
from paywarden.models.training.calibration import fit_calibration, reliability
from paywarden.models.training.cascade_choice import Large, OutOfFold, choose_cascade
from paywarden.models.training.feature_ranges import clocks, drifting_features
from paywarden.models.training.progress import TrainingProgress, no_progress
from paywarden.models.training.promise import make_promise
from paywarden.models.training.search import MakeVectors, choose, try_delays
from paywarden.models.training.table import TrainingTable, blocks_of, require_both_kinds, require_categories
from paywarden.models.training.training_evidence import area_interval, label_delay, labels_record
from paywarden.models.training.training_settings import TrainingSettings, require_usable
from paywarden.schemas.errors import Misconfigured

SCORE_BINS = 50
GOLDEN_ROWS = 512
# At most about this many rows, evenly spaced, show how each model scores rows that it has seen.
_SEEN_ROWS_MAX = 200_000


def train_bundle(
    table: TrainingTable,
    window: Days,
    destination: Path,
    *,
    engine: FeatureEngine,
    settings: TrainingSettings,
    progress: TrainingProgress = no_progress,
    other_delays: Mapping[int, MakeVectors] | None = None,
) -> Manifest:
    """Train and write a bundle. It replaces an existing one only after it has passed the parity gate.

    `other_delays`: makes the vectors of the table's rows with other label delays of the catalogue, by days.

    Raises Misconfigured for unusable settings, window or destination, and BundleRefused if the parity gate refuses it.
    """
    names = list(engine.plan.names)
    require_usable(settings, names)
    destination = checked_destination(destination)
    require_both_kinds(table.label)
    settings = replace(settings, genuine_sample_share=1.0 if table.sample is None else table.sample.share)
    require_categories(table, settings, names)
    # A sample has too many frauds, but its genuine payments are like all of them.
    among = None if table.sample is None else table.label == 0
    drifting = drifting_features(table.vectors, table.day, names, settings.categorical, among)
    if settings.leave_out_clocks:
        settings = replace(settings, leave_out=tuple(dict.fromkeys((*settings.leave_out, *clocks(drifting)))))
    choice = choose(
        table, window, settings, names, progress=progress, codes=engine.plan.categories, growing=clocks(drifting)
    )
    delays = try_delays(table, other_delays or {}, choice, names)
    settings = choice.settings
    _require_larger(settings)
    fold = blocks_of(table.day, settings.folds)
    tree_count = (settings.folds + 1) * (settings.trees + (settings.cascade_trees if settings.cascade else 0))
    with progress("growing trees", tree_count) as on_tree:
        large = _grown(table, fold, settings, names, on_tree)
        first = _grown(table, fold, settings.of_the_first(), names, on_tree) if settings.cascade else None
    whole = table.whole
    slope, intercept = fit_calibration(large.margins, table.label, table.weight)
    margins, of_each, cascade = large.margins, large.of_each, None
    scores = calibrated(margins, slope, intercept)
    review_at, decline_at = (
        float(np.quantile(scores[whole], 1 - s)) for s in (settings.review_share, settings.decline_share)
    )
    if first is not None:
        blocks = blocks_of(table.day[whole], settings.folds)
        rows = OutOfFold(first.margins[whole], large.margins[whole], blocks, table.label[whole], table.weight_of(whole))
        of_the_large = Large(slope, intercept, review_at, decline_at)
        cascade = choose_cascade(rows, of_the_large, settings.cascade_disagreement_max)
        margins = cascade.margins_of(first.margins, large.margins, slope=slope, intercept=intercept)
        of_each = cascade.margins_of(first.of_each, large.of_each, slope=slope, intercept=intercept)
        scores = calibrated(margins, slope, intercept)
    trust = reliability(table.label, scores, table.weight)
    unfinished = _made_anew(destination.with_name(f"{destination.name}.unfinished"))
    models = {LARGE: large.model} | ({} if first is None else {FIRST: first.model})
    for part, model in models.items():
        (unfinished / part.model_text).write_text(model_text(model), encoding="utf-8")
        _write_golden(unfinished / part.golden, model, table.vectors, settings.seed)
    files = {name: sha256_of(unfinished / name) for part in models for name in (part.model_text, part.golden)}
    version = _version(files, engine.plan.digest, slope, intercept, cascade)
    if table.segments is not None:
        unseen = as_of_one_model(margins, fold, _unseen(of_each, fold))
        reference = make_reference(
            PastDecisions(
                calibrated(unseen[whole], slope, intercept), table.vectors_of(whole), table.segments.of(whole)
            ),
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
        identity_digest=engine.plan.key.digest,
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
            "auc_roc": auc_roc(table.label, scores, table.weight),
            "average_precision": average_precision(table.label, scores, table.weight),
            "brier": trust.brier,
            "expected_calibration_error": trust.expected_calibration_error,
        },
        reliability=trust.table(),
        score_edges=edges.tolist(),
        score_counts=np.histogram(scores[whole], edges)[0].tolist(),
        files=files,
        cascade={} if cascade is None else asdict(cascade),
        evidence={
            "labels": labels_record(table.label_counts, label_delay(table.fraud_delay_ms), engine.plan.label_delays_ms),
            "drifting": [feature.record() for feature in drifting],
            "promise": make_promise(table, window, settings, names, progress=progress).record(),
            "sampled": None if table.sample is None else table.sample.record(),
            "propensity": None if table.weight_counts is None else table.weight_counts.record(),
            "changes": None if choice.changes is None else choice.changes.record(),
            "label_delays": [asdict(one) for one in delays],
            "missed": None if (scored := table.scored(scores)) is None else missed_frauds(scored).record(),
            "auc_roc_interval": area_interval(table.label == 1, scores, table.weight),
        },
    )
    (unfinished / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    _compile_and_compare(unfinished, models, table.vectors, settings.seed, progress)
    if destination.exists():
        shutil.rmtree(destination)
    unfinished.rename(destination)
    return manifest


def checked_destination(destination: Path) -> Path:
    """Returns the absolute path. Raises Misconfigured if something other than a bundle is there: it may be data."""
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
    table: TrainingTable, used: NDArray[np.bool_], settings: TrainingSettings, names: list[str], on_tree: OnTree
) -> Any:
    label, weight = table.label[used], aged(table.weight_of(used), table.day[used], settings)
    parts = table.parts_of(used)
    data = binned(parts[0] if len(parts) == 1 else parts, label, settings, names, weight)
    return grow(data, settings, names, on_tree=on_tree)


def _require_larger(settings: TrainingSettings) -> None:
    """Raises Misconfigured if the first model is not smaller. Early stopping has decided the large model's size."""
    if settings.cascade and settings.cascade_trees >= settings.trees:
        raise Misconfigured(
            f"training.cascade: a first model of {settings.cascade_trees} trees saves nothing before one of "
            f"{settings.trees}: set training.cascade_trees lower, or train without"
        )


@dataclass(frozen=True)
class _Grown:
    """A model trained on all rows, and the out-of-fold margins, (rows,).

    `of_each`: the margins that each fold's model and, last, `model` give to every n-th row, (folds + 1, thinned rows).
    """

    model: Any
    margins: NDArray[np.float64]
    of_each: NDArray[np.float64]


def _grown(
    table: TrainingTable, fold: NDArray[np.int64], settings: TrainingSettings, names: list[str], on_tree: OnTree
) -> _Grown:
    margins, some = np.empty(len(table.label)), table.vectors[_thinned(len(fold))]
    of_each = []
    for number in np.unique(fold):
        held_out = fold == number
        model = _fit(table, ~held_out, settings, names, on_tree)
        margins[held_out] = model.predict(table.vectors_of(held_out), raw_score=True)
        of_each.append(model.predict(some, raw_score=True))
    model = _fit(table, np.ones(len(fold), dtype=np.bool_), settings, names, on_tree)
    return _Grown(model, margins, np.array([*of_each, model.predict(some, raw_score=True)]))


def _thinned(row_count: int) -> slice:
    return slice(None, None, max(1, -(-row_count // _SEEN_ROWS_MAX)))


def _unseen(of_each: NDArray[np.float64], fold: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns how the bundle's model would score unseen payments, as `unseen_margins` does. `of_each`: see _Grown."""
    *of_folds, own = of_each
    some = fold[_thinned(len(fold))]
    # A block of days with a handful of payments may have none among every n-th row: it tells nothing.
    folds = [
        FoldMargins(margins[some == number], margins[some != number])
        for number, margins in zip(np.unique(fold), of_folds, strict=True)
        if (some == number).any() and (some != number).any()
    ]
    return unseen_margins(own, folds)


def _version(
    files: dict[str, str], catalogue_digest: str, slope: float, intercept: float, cascade: Cascade | None
) -> str:
    """Returns a version computed from the content: the same data and settings give the same version."""
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
    """Compile the library, run the parity gate, and compare every payment of the window. Raises BundleRefused."""
    gates = {part: golden_gate(bundle, part) for part in models}
    compared = {"payments": vectors, "random rows": random_rows(vectors, seed + 1, RANDOM_ROWS)}
    has_compiler = compiler_name() is not None
    predictor_count = 2 if has_compiler else 1
    # Steps: the library; for each model, LightGBM's margins and each predictor's for the same rows.
    steps = has_compiler + len(models) * (1 + predictor_count * len(compared))
    with progress("compiling and checking", steps) as advance:
        if has_compiler:
            build_native(bundle, gates)
            advance(1)
        for part, model in models.items():
            more = [GateRows(kind, rows, margins_of(model, rows)) for kind, rows in compared.items()]
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
