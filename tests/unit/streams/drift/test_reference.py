"""A reference made from archived decisions has those of one model on some days, each once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from paywarden.models.drift.detectors import DAY_MS, HOUR_MS
from paywarden.models.drift.reference import REFERENCE, read_reference
from paywarden.models.drift.signal_layout import Kinds
from paywarden.models.metrics.evaluation import Days, date_of_day
from paywarden.ops.wiring import drift_references
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source
from paywarden.streams.archive.archive import Archiver
from paywarden.streams.drift.reference import live_reference
from paywarden.streams.drift.settings import DriftSettings
from tests.fakes.topic_memory import IDS, MemoryTopic
from tests.services.processes import run_paywarden
from tests.worlds import small_world
from tests.worlds.small_decisions import SmallDecisions

FIRST_DAY = 19_730
MANIFEST = small_world.loaded_bundle().manifest
DAYS, PER_HOUR = 3, 20


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of three days. Each hour has a decision twice, one of another model, and one that is too late."""
    folder = tmp_path_factory.mktemp("archive")
    topic, decisions = MemoryTopic("decisions", batch=500), SmallDecisions()
    for hour in range(DAYS * 24):
        start_ms = FIRST_DAY * DAY_MS + hour * HOUR_MS
        records = list(decisions.records(start_ms, PER_HOUR, HOUR_MS))
        # The payment was made the day before.
        records[0]["event_time_ms"] = records[0]["decided_time_ms"] - 10
        other = {**records[1], "decision_id": f"o{hour}", "model_version": "m-other", "vector": b""}
        late = {**records[2], "decision_id": f"l{hour}", "decided_time_ms": (FIRST_DAY + DAYS) * DAY_MS}
        for number, record in enumerate([*records, records[3], other, late]):
            topic.append(number % 2, record, start_ms)
    archiver = Archiver(topic, IDS, "decisions", folder)
    archiver.run(archiver.wanted(None, None), Event(), lambda _: None)
    return folder


def test_a_reference_has_the_models_decisions_on_these_days(archive: Path) -> None:
    made = live_reference(archive, MANIFEST, Days(FIRST_DAY, FIRST_DAY + DAYS - 1))
    assert made.model_version == MANIFEST.model_version
    assert made.counts.payments[0] == DAYS * 24 * PER_HOUR
    assert made.kinds == Kinds.SCORE | Kinds.INPUTS | Kinds.QUALITY
    # The reference knows ages and actions.
    assert made.counts.ages[0, :-1].sum() == made.counts.payments[0]
    assert made.counts.actions[0, 1:].sum() > 0
    fewer = live_reference(archive, MANIFEST, Days(FIRST_DAY, FIRST_DAY + 1))
    assert fewer.counts.payments[0] == 2 * 24 * PER_HOUR


def test_days_without_decisions_and_too_few_days_are_refused(archive: Path) -> None:
    with pytest.raises(Misconfigured, match=r"holds no decision of model m-\w+ from"):
        live_reference(archive, MANIFEST, Days(FIRST_DAY + 20, FIRST_DAY + 30))
    with pytest.raises(Misconfigured, match="wanted decisions of 2 days or more"):
        live_reference(archive, MANIFEST, Days(FIRST_DAY, FIRST_DAY))


def test_decisions_of_another_catalogue_are_refused(archive: Path) -> None:
    manifest = replace(MANIFEST, model_version="m-other")
    with pytest.raises(Misconfigured, match="decisions of model m-other have no vectors of its"):
        live_reference(archive, manifest, Days(FIRST_DAY, FIRST_DAY + 1))


def test_the_command_writes_a_file_that_replaces_the_bundles_reference(archive: Path, tmp_path: Path) -> None:
    out, days = tmp_path / "well.npz", ("--from", date_of_day(FIRST_DAY), "--to", date_of_day(FIRST_DAY + 2))
    bundle = str(small_world.trained_bundle())
    done = run_paywarden("drift", "reference", "--archive", str(archive), "--bundle", bundle, *days, "--out", str(out))
    assert done.stdout.startswith(f"{out}: model {MANIFEST.model_version}, {DAYS * 24 * PER_HOUR} decisions"), (
        done.stderr
    )
    source = Source({"drift": {"bundles": [bundle], "references": [str(out)]}}, {})
    found = drift_references(source, source.section("drift", DriftSettings))
    assert found.keys() == {MANIFEST.model_version}
    assert found[MANIFEST.model_version].digest == read_reference(out).digest
    own = drift_references(source, DriftSettings(bundles=(bundle,)))
    assert own[MANIFEST.model_version].digest != found[MANIFEST.model_version].digest
    refused = run_paywarden(
        "drift", "reference", "--archive", str(tmp_path), "--bundle", bundle, *days, "--out", str(out)
    )
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "paywarden archive --topic decisions" in refused.stderr


def test_a_log_says_that_a_bundle_without_a_reference_is_watched_less(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    record = json.loads(MANIFEST.to_json())
    del record["files"][REFERENCE]
    (bundle / "manifest.json").write_text(json.dumps(record))
    assert drift_references(Source({}, {}), DriftSettings(bundles=(str(bundle),))) == {}
    assert "has no reference" in caplog.text
