"""`paywarden admin schemas` without a broker."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from paywarden.ops.cli import cli
from paywarden.streams.kafka.schemas.remembered_schemas import KafkaRememberedSchemas


def test_schemas_are_exported_without_asking_a_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waited 13 s for a broker at the default address, and then wrote the same files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(KafkaRememberedSchemas, "read", lambda _: pytest.fail("a broker was asked"))
    done = CliRunner().invoke(cli, ["admin", "schemas", "--export", "schemas"], catch_exceptions=False)
    assert (done.exit_code, done.stderr) == (0, "")
    assert {"payments.avsc", "decisions.avsc", "schemas.json"} <= {path.name for path in Path("schemas").iterdir()}
