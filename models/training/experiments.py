"""Record trainings as MLflow runs, if MLflow is installed.

MLflow is an extra (`pip install 'paywarden[mlflow]'`). Only this module imports it, and only to record a training. Runs
go to MLFLOW_TRACKING_URI, or without it into the folder `mlruns` of the working directory. A run holds:

    parameters   the settings
    metrics      the out-of-fold metrics, and those of each validation fold with the fold as the step
    tags         version, digests and training data of the bundle
    artifacts    the bundle's folder
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

from paywarden.models.bundle.bundle import Manifest
from paywarden.schemas.errors import TemporaryFailure

MODULE = "mlflow"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
_FOLDER = "mlruns"
# A newer MLflow writes files only with this variable. Its default, a database, needs more than MLflow's client.
_FILES_VARIABLE = "MLFLOW_ALLOW_FILE_STORE"


def record_training(experiment: str, manifest: Manifest, bundle: Path) -> str:
    """Record a training and return a line that says where, or that MLflow is not installed.

    Raises TemporaryFailure if MLflow fails. The bundle is already written then.
    """
    mlflow = _imported()
    if mlflow is None:
        return f"experiment {experiment}: not recorded, MLflow is not installed (pip install 'paywarden[mlflow]')"
    try:
        return _recorded(mlflow, experiment, manifest, bundle)
    # MLflow's client raises its own exceptions and those of requests, which are OSErrors.
    except (mlflow.exceptions.MlflowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TemporaryFailure(
            f"the bundle is written, but MLflow did not record experiment {experiment}: {reason}"
        ) from error


def _imported() -> Any:
    try:
        return importlib.import_module(MODULE)
    except ModuleNotFoundError as error:
        if error.name != MODULE:
            raise
        return None


def _recorded(mlflow: Any, experiment: str, manifest: Manifest, bundle: Path) -> str:
    if not os.environ.get(TRACKING_VARIABLE):
        os.environ.setdefault(_FILES_VARIABLE, "true")
        mlflow.set_tracking_uri(Path(_FOLDER).absolute().as_uri())
    mlflow.set_experiment(experiment)
    with mlflow.start_run(run_name=manifest.model_version) as run:
        mlflow.log_params({name: _parameter(value) for name, value in manifest.parameters.items()})
        mlflow.set_tags(_tags(manifest))
        mlflow.log_metrics(manifest.metrics)
        for step, metrics in enumerate(_fold_metrics(manifest)):
            mlflow.log_metrics(metrics, step=step)
        mlflow.log_artifacts(str(bundle), artifact_path="bundle")
        return f"experiment {experiment}: run {run.info.run_id} at {mlflow.get_tracking_uri()}"


def _parameter(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else value


def _tags(manifest: Manifest) -> dict[str, str]:
    return {
        "model_version": manifest.model_version,
        "bundle_digest": manifest.digest,
        "catalogue_digest": manifest.catalogue_digest,
        "train_from": manifest.train_from,
        "train_to": manifest.train_to,
        "training_payments": str(manifest.training_payments),
        "training_frauds": str(manifest.training_frauds),
    }


def _fold_metrics(manifest: Manifest) -> list[dict[str, float]]:
    """Returns the chosen candidate's metrics on each validation fold; empty without folds."""
    tried = manifest.validation["tried"]
    if not tried:
        return []
    folds = tried[manifest.validation["chosen"]]["folds"]
    return [{f"validation_{name}": float(value) for name, value in fold.items()} for fold in folds]
