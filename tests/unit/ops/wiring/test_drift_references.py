"""Drift references: the command writes one from an archive, and a configured file replaces the bundle's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paywarden.models.drift.reference import REFERENCE, read_reference
from paywarden.models.metrics.evaluation import date_of_day
from paywarden.ops.wiring import drift_references
from paywarden.schemas.settings import Source
from paywarden.streams.drift.drift_settings import DriftSettings
from tests.services.product.processes import run_paywarden
from tests.worlds.small import small_world
from tests.worlds.small.decision_archive import DAYS, FIRST_DAY, PER_HOUR, manifest, write_decision_archive


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_decision_archive(folder)
    return folder


def test_the_command_writes_a_file_that_replaces_the_bundles_reference(archive: Path, tmp_path: Path) -> None:
    out, days = tmp_path / "well.npz", ("--from", date_of_day(FIRST_DAY), "--to", date_of_day(FIRST_DAY + 2))
    bundle = str(small_world.trained_bundle())
    done = run_paywarden("drift", "reference", "--archive", str(archive), "--bundle", bundle, *days, "--out", str(out))
    assert done.stdout.startswith(f"{out}: model {manifest().model_version}, {DAYS * 24 * PER_HOUR} decisions"), (
        done.stderr
    )
    source = Source({"drift": {"bundles": [bundle], "references": [str(out)]}}, {})
    found = drift_references(source, source.section("drift", DriftSettings))
    assert found.keys() == {manifest().model_version}
    assert found[manifest().model_version].digest == read_reference(out).digest
    own = drift_references(source, DriftSettings(bundles=(bundle,)))
    assert own[manifest().model_version].digest != found[manifest().model_version].digest
    refused = run_paywarden(
        "drift", "reference", "--archive", str(tmp_path), "--bundle", bundle, *days, "--out", str(out)
    )
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "paywarden admin archive --topic decisions" in refused.stderr


def test_a_log_says_that_a_bundle_without_a_reference_is_watched_less(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    record = json.loads(manifest().to_json())
    del record["files"][REFERENCE]
    (bundle / "manifest.json").write_text(json.dumps(record))
    assert drift_references(Source({}, {}), DriftSettings(bundles=(str(bundle),))) == {}
    assert "has no reference" in caplog.text
