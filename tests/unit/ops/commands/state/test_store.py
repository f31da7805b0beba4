"""`paywarden doctor --only store` and `paywarden admin store`: what they print, and their exit status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from paywarden.features.stores.lmdb import LmdbStore
from paywarden.ops.cli import cli
from paywarden.schemas.errors import Misconfigured
from tests.services.product import internals
from tests.standin.aerospike_server import StandIn


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def check(*arguments: str) -> Result:
    return run("doctor", "--only", "store", "--write", *arguments)


def use(folder: Path, server: StandIn, more: str = "") -> None:
    text = f'[store]\nkind = "aerospike"\n[aerospike]\nhosts = ["{server.address}"]\n{more}'
    (folder / "paywarden.toml").write_text(text, encoding="utf-8")


def test_a_development_server_has_warnings_and_status_0(folder: Path, server: StandIn) -> None:
    use(folder, server)
    done = check()
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.output.splitlines()] == ["warning", "warning"]
    assert "a record has a single copy" in done.output
    assert "there is no login" in done.output
    assert server.records.by_digest == {}


def test_an_error_is_status_1_and_every_finding_is_printed(folder: Path, server: StandIn) -> None:
    server.records.expiry_allowed = False
    server.records.resolves_by_generation = True
    # Also where processes refuse to start with such a cluster.
    use(folder, server, 'cluster_check = "require"\n')
    done = check("--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    # The record that could not be written, and the setting that is to blame.
    assert [one["state"] for one in found] == ["error", "error", "warning", "warning", "warning"]
    assert all("nsup-period is 0" in one["seen"] for one in found[:2])


def test_a_cluster_that_is_away_is_an_error_in_one_line(folder: Path, server: StandIn) -> None:
    internals.write(folder, {"aerospike": {"connect_timeout_ms": 200}})
    use(folder, server)
    server.stop()
    done = check()
    assert done.exit_code == 1
    assert "no Aerospike server answers" in done.output.splitlines()[0]


def test_an_embedded_store_that_answers_has_nothing_wrong(folder: Path) -> None:
    LmdbStore(folder / ".paywarden" / "store", map_size_bytes=1 << 20).close()
    done = check()
    assert done.exit_code == 0, done.output
    assert "the lmdb store answers" in done.output


@pytest.mark.usefixtures("folder")
def test_a_time_that_is_none_is_refused() -> None:
    done = run("admin", "store", "verify", "--since", "yesterday")
    assert isinstance(done.exception, Misconfigured)
    assert "--since" in str(done.exception)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("since", [(), ("--since", "2026-10-01T12:01:00Z")])
def test_an_end_needs_an_earlier_beginning(since: tuple[str, ...]) -> None:
    done = run("admin", "store", "verify", *since, "--until", "2026-10-01T12:00:00Z")
    assert isinstance(done.exception, Misconfigured)
    assert "--until needs --since" in str(done.exception)
