"""`paywarden decisions search` prints what the index finds, and refuses what makes no sense in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from paywarden.ops import wiring
from paywarden.ops.cli import cli
from paywarden.schemas.settings import read_source
from paywarden.streams.decision_index.index import Stored
from tests.unit.streams.decision_index.test_index import made


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of an index with 40 decisions."""
    file = tmp_path_factory.mktemp("index") / "paywarden.toml"
    file.write_text(f'[decision_index]\npath = "{file.parent / "made" / "d.duckdb"}"\n', encoding="utf-8")
    with wiring.decision_index(read_source(str(file), {})) as (index, _), index.database.transaction() as transaction:
        index.add_decisions(transaction, [Stored(made(number), b"") for number in range(40)])
    return file


def search(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--config", str(config), "decisions", "search", *arguments])


def test_search_prints_a_line_for_each_decision_and_where_to_go_on(config: Path) -> None:
    done = search(config, "--card", "c1", "--count", "2")
    lines = done.stdout.splitlines()
    assert [line.split()[-1] for line in lines[:2]] == ["p36", "p29"]
    assert lines[0].startswith("2024-01-01 01:30")
    assert "EUR" in lines[0]
    more = search(config, "--card", "c1", "--after", lines[2].split()[-1], "--json")
    told = json.loads(more.stdout)
    assert [row["payment_id"] for row in told["decisions"]] == ["p22", "p15", "p8", "p1"]
    assert told["next"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--score-min", "2"), "score_min: wanted a score from 0 to 1"),
        (("--after", "x"), "after: wanted a place that a page of results gave"),
        (("--count", "1000"), "count: wanted 1 to 200"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(config: Path, arguments: tuple[str, ...], said: str) -> None:
    done = search(config, *arguments)
    assert done.exit_code == 1
    assert said in str(done.exception)
