"""`paywarden simulate`: where the stream ends."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from paywarden.features.catalogue.loading import load_catalogue
from paywarden.features.datasets.shop_situations import SECURE
from paywarden.features.datasets.simulator import DEFAULT_START_MS
from paywarden.features.history.history import read_history
from paywarden.ops.cli import cli
from paywarden.ops.commands.data.init import make_project
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


def test_a_date_is_where_the_stream_ends(tmp_path: Path) -> None:
    run(tmp_path, "--end", "2024-03-01")
    history = read_history(tmp_path)
    end_ms = DEFAULT_START_MS + 60 * DAY_MS
    assert end_ms - DAY_MS < history.event_time_ms[-1] < end_ms
    assert history.outcome_time_ms[-1] < end_ms


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


def test_the_shop_needs_a_project_with_its_fields(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"--world shop: .* declares none of its fields: customer_id, .* init DIR"):
        run(tmp_path / "data", "--world", "shop")
    assert not (tmp_path / "data").exists()


def test_a_history_of_the_shop_has_what_is_declared_and_its_truth(tmp_path: Path) -> None:
    make_project(tmp_path / "shop")
    words = (tmp_path / "shop" / "payment.py").read_text(encoding="utf-8")
    other = words.replace('flag("is_gift", 8)', 'flag("is_a_gift", 8)').replace(
        "    is_gift,\n", "    is_gift, height,\n"
    )
    other = other.replace("PAYMENT = ", 'height = integer("height", 30, unit="cm", least=0)\nPAYMENT = ')
    (tmp_path / "shop" / "payment.py").write_text(other, encoding="utf-8")
    fields = load_catalogue(tmp_path / "shop" / "catalogue.py").payment.fields
    arguments = ["--config", str(tmp_path / "shop" / "paywarden.toml"), "simulate", "--world", "shop", "--seed", "2"]
    result = CliRunner().invoke(cli, [*arguments, "--cards", "50", "--days", "9", "--out", str(tmp_path / "data")])
    assert result.exit_code == 0, result.output
    history = read_history(tmp_path / "data", fields)
    table = pq.read_table(tmp_path / "data" / "payments.parquet")
    assert {"is_a_gift", "height", "customer_id", "three_d_secure"} <= set(table.column_names)
    assert "is_gift" not in table.column_names
    assert set(pc.unique(table["three_d_secure"].cast("string")).to_pylist()) <= set(SECURE)
    truth = pq.read_table(tmp_path / "data" / "truth.parquet")
    assert truth["payment_id"].cast("string").equals(table["payment_id"].cast("string"))
    assert len(truth) == len(history)
