"""MLflow records: what they contain, and that a missing or failing MLflow does not affect the bundle."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paywarden.models.bundle.bundle import Manifest, read_manifest
from paywarden.models.training.experiments import record_training
from paywarden.schemas.errors import TemporaryFailure
from tests.services.missing_tools import MLFLOW
from tests.worlds.small import small_world


class FakeMlflow:
    """Records all calls. It takes MLflow's place in sys.modules."""

    class MlflowException(Exception):  # as MLflow calls it
        pass

    def __init__(self) -> None:
        self.exceptions = SimpleNamespace(MlflowException=self.MlflowException)
        self.experiment = self.run_name = self.uri = ""
        self.parameters: dict[str, Any] = {}
        self.tags: dict[str, str] = {}
        self.metrics: list[tuple[int | None, dict[str, float]]] = []
        self.artifacts: list[tuple[str, str]] = []
        self.failure: Exception | None = None

    def set_tracking_uri(self, uri: str) -> None:
        self.uri = uri

    def get_tracking_uri(self) -> str:
        return self.uri

    def set_experiment(self, name: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.experiment = name

    @contextlib.contextmanager
    def start_run(self, *, run_name: str) -> Iterator[Any]:
        self.run_name = run_name
        yield SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    def log_params(self, parameters: Mapping[str, Any]) -> None:
        self.parameters.update(parameters)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.tags.update(tags)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics.append((step, metrics))

    def log_artifacts(self, folder: str, artifact_path: str) -> None:
        self.artifacts.append((folder, artifact_path))


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeMlflow:
    fake = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    return fake


def manifest() -> Manifest:
    """The small world's manifest, as if it had been validated on two folds."""
    folds = [{"trees": 7, "average_precision": 0.5}, {"trees": 9, "average_precision": 0.6}]
    others = [{"trees": 1, "average_precision": 0.1}] * 2
    tried = [{"parameters": {}, "folds": others}, {"parameters": {}, "folds": folds}]
    content = json.loads(read_manifest(small_world.trained_bundle()).to_json())
    return Manifest(**(content | {"validation": {"left_out": "", "days": [], "tried": tried, "chosen": 1}}))


def test_a_run_holds_settings_metrics_tags_and_the_bundle(mlflow: FakeMlflow) -> None:
    of, bundle = manifest(), small_world.trained_bundle()
    line = record_training("night", of, bundle)
    assert (mlflow.experiment, mlflow.run_name) == ("night", of.model_version)
    assert mlflow.parameters["trees"] == 20
    assert mlflow.parameters["monotone"] == "{}"
    assert mlflow.tags["bundle_digest"] == of.digest
    assert mlflow.tags["train_to"] == of.train_to
    assert mlflow.artifacts == [(str(bundle), "bundle")]
    assert line.startswith("experiment night: run r1 at ")


@pytest.mark.parametrize("kind", [FakeMlflow.MlflowException, OSError])
def test_an_mlflow_that_fails_is_one_line_that_says_the_bundle_is_there(
    mlflow: FakeMlflow, kind: type[Exception]
) -> None:
    mlflow.failure = kind("no such host\nand much more")
    with pytest.raises(TemporaryFailure, match="the bundle is written, but MLflow did not record") as caught:
        record_training("night", manifest(), small_world.trained_bundle())
    assert str(caught.value).endswith("experiment night: no such host")


def test_without_mlflow_a_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    line = record_training("night", manifest(), small_world.trained_bundle())
    assert line == "experiment night: not recorded, MLflow is not installed (pip install 'paywarden[mlflow]')"


def test_mlflow_itself_reads_what_was_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    real = pytest.importorskip("mlflow", reason=MLFLOW.reason)
    monkeypatch.chdir(tmp_path)
    of = manifest()
    record_training("night", of, small_world.trained_bundle())
    client = real.MlflowClient((tmp_path / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("night").experiment_id])
    assert run.data.params["trees"] == "20"
    assert run.data.tags["bundle_digest"] == of.digest
    assert run.data.metrics["brier"] == pytest.approx(of.metrics["brier"])
    history = client.get_metric_history(run.info.run_id, "validation_average_precision")
    assert [(one.step, one.value) for one in history] == [(0, 0.5), (1, 0.6)]
    assert "bundle/manifest.json" in {one.path for one in client.list_artifacts(run.info.run_id, "bundle")}
