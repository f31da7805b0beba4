"""`paywarden admin outbox` on a folder in which a companion has set something aside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from paywarden.ops.cli import cli
from paywarden.scoring.state.outbox import OutboxWriter
from tests.unit.streams.companion.test_set_aside_entries import shipping_bug
from tests.worlds.stream.shipped import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A host with a record that can be shipped now, and one that cannot."""
    built = World(tmp_path / "outbox")
    (tmp_path / "paywarden.toml").write_text(f'[outbox]\ndirectory = "{tmp_path / "outbox"}"\n', encoding="utf-8")
    built.decide("p")
    with closing(OutboxWriter(built.settings, "worker-1")) as other:
        other.append(b"no decision")
    with shipping_bug():
        built.settle()
    yield built
    built.writer.close()


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--config", str(folder / "paywarden.toml"), "admin", "outbox", *arguments])


def test_the_list_says_what_can_be_shipped_and_why_the_rest_cannot(world: World, tmp_path: Path) -> None:
    lines = run(tmp_path).output.splitlines()
    assert [line.split()[:4] for line in lines] == [
        ["worker-0/0", "record", str(world.writer.position), "bytes"],
        ["worker-1/0", "record", "19", "bytes"],
    ]
    assert lines[0].endswith("can be shipped: run `paywarden admin outbox --retry`")
    assert lines[1].endswith("it is no decision that protobuf can parse")
    rows = json.loads(run(tmp_path, "--json").output)
    assert [row["id"] for row in rows] == ["worker-0/0", "worker-1/0"]
    assert Path(rows[1]["file"]).read_bytes() == b"no decision"


def test_a_retry_ships_what_it_can_and_fails_with_the_reason_of_the_rest(world: World, tmp_path: Path) -> None:
    done = run(tmp_path, "--retry", "--all")
    assert done.exit_code == 1
    assert "worker-0/0: 1 decision handed to the companion" in done.output
    assert "worker-1/0: it is no decision that protobuf can parse" in done.output
    assert "1 of them stay set aside" in done.output
    world.settle()
    assert world.broker.decisions == ["p"]
    assert [line.split()[0] for line in run(tmp_path).output.splitlines()] == ["worker-1/0"]
    assert run(tmp_path, "--discard", "worker-1/0").output == "worker-1/0: deleted\n"
    assert run(tmp_path).output == "nothing is set aside\n"


def test_only_what_is_set_aside_can_be_named(world: World, tmp_path: Path) -> None:
    done = run(tmp_path, "--retry", "worker-0/5")
    assert (done.exit_code, "nothing is set aside as worker-0/5" in done.output) == (1, True)
    assert run(tmp_path, "--retry").exit_code == run(tmp_path, "--retry", "worker-0/0", "--all").exit_code == 2
    assert run(tmp_path, "--retry", "worker-0/0").exit_code == 0
    assert world.shipper.set_aside()["worker-0"] == (0, 0)


def test_a_host_without_an_outbox_has_nothing_set_aside(tmp_path: Path) -> None:
    (tmp_path / "paywarden.toml").write_text(f'[outbox]\ndirectory = "{tmp_path / "none"}"\n', encoding="utf-8")
    assert run(tmp_path).output == "nothing is set aside\n"
