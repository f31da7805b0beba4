"""`paywarden simulate`: where the stream ends."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from paywarden.features.catalogue.loading import load_catalogue
from paywarden.features.datasets.simulator import DEFAULT_START_MS
from paywarden.features.history.history import read_history
from paywarden.ops.cli import cli
from paywarden.ops.commands.init import make_project
from paywarden.schemas.errors import Misconfigured

DAY_MS = 86_400_000


def run(out: Path, *options: str) -> str:
    arguments = ["simulate", "--cards", "60", "--days", "20", "--seed", "3", "--out", str(out), *options]
    result = CliRunner().invoke(cli, arguments, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_a_stream_that_ends_now_knows_no_outcome_of_the_future(tmp_path: Path) -> None:
    before_ms = time.time_ns() // 1_000_000
    run(tmp_path, "--end", "now")
    after_ms = time.time_ns() // 1_000_000
    history = read_history(tmp_path)
    assert before_ms - 20 * DAY_MS - 1000 <= history.event_time_ms[0]
    assert before_ms - DAY_MS < history.event_time_ms[-1] < after_ms
    assert 0 < history.outcome_time_ms[-1] < after_ms
    known = pc.count_distinct(pq.read_table(tmp_path / "outcomes.parquet")["payment_id"]).as_py()
    assert known < len(history), "payments of the last days have no outcome yet"


def test_the_printed_end_gives_the_same_stream_again(tmp_path: Path) -> None:
    said = run(tmp_path / "a", "--end", "now")
    end = said.rsplit(", up to ", 1)[1].removesuffix(" UTC\n")
    run(tmp_path / "b", "--end", end)
    for name in ("payments.parquet", "outcomes.parquet"):
        assert pq.read_table(tmp_path / "a" / name).equals(pq.read_table(tmp_path / "b" / name))


def test_a_date_is_where_the_stream_ends(tmp_path: Path) -> None:
    run(tmp_path, "--end", "2024-03-01")
    history = read_history(tmp_path)
    end_ms = DEFAULT_START_MS + 60 * DAY_MS
    assert end_ms - DAY_MS < history.event_time_ms[-1] < end_ms
    assert history.outcome_time_ms[-1] < end_ms


def test_without_an_end_the_stream_starts_on_a_fixed_day_with_all_outcomes(tmp_path: Path) -> None:
    run(tmp_path)
    history = read_history(tmp_path)
    assert DEFAULT_START_MS <= history.event_time_ms[0] < DEFAULT_START_MS + DAY_MS
    assert set(history.outcome_payment.tolist()) == set(range(len(history)))


@pytest.mark.parametrize("end", ["tomorrow", "2999-01-01", "1.3.2024"])
def test_an_impossible_end_is_refused_and_nothing_is_written(end: str, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=f"--end: wanted now.*got '{end}'"):
        run(tmp_path / "data", "--end", end)
    assert not (tmp_path / "data").exists()


def test_the_payments_of_a_project_have_its_fields(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    make_project(shop)
    fields = load_catalogue(shop / "catalogue.py").payment.fields
    asked = ["--config", str(shop / "paywarden.toml"), "simulate", "--cards", "20", "--days", "2", "--out"]
    for out in ("a", "b"):
        result = CliRunner().invoke(cli, [*asked, str(tmp_path / out)])
        assert result.exit_code == 0, result.output
    assert len(read_history(tmp_path / "a", fields)) > 20
    table = pq.read_table(tmp_path / "a" / "payments.parquet")
    assert {field.name for field in fields.declared} <= set(table.column_names)
    assert table.equals(pq.read_table(tmp_path / "b" / "payments.parquet"))
