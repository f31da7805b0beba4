"""The comparison of table converters goes on where it ended, and says what each of them took."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from perf import tables

ROWS = 2000


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["perf.tables", "--rows", str(ROWS), "--shuffled", *arguments])
    tables.main()


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The converters that were run. Each took one second, and the second one fails at first."""
    names: list[str] = []

    def measure(name: str, table: Path, mapping: Path, folder: Path, memory: str) -> dict[str, float]:
        names.append(name)
        assert table.exists()
        assert mapping.parent == folder
        assert memory == "1GB"
        if name == "duckdb" and names.count("duckdb") == 1:
            raise tables.ConverterFailed("duckdb: no room")
        return {"seconds": 1.0, "cpu_seconds": 2.0, "peak_mb": 3.0, "disk_mb": 4.0, "rows": ROWS}

    monkeypatch.setattr(tables, "measure", measure)
    return names


def test_a_kept_comparison_runs_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    keep = ("--keep", str(tmp_path / "kept"), "--memory", "1GB", "--with", "duckdb")
    run(monkeypatch, *keep)
    assert "duckdb: no room" in capsys.readouterr().out
    table = (tmp_path / "kept" / "table.csv").stat()
    run(monkeypatch, *keep)
    assert ran == ["paywarden", "duckdb", "duckdb"]
    assert (tmp_path / "kept" / "table.csv").stat().st_mtime_ns == table.st_mtime_ns
    assert "1.0 times the time, 1.0 times the CPU and 1.0 times the memory of duckdb" in capsys.readouterr().out


def test_a_kept_comparison_of_another_table_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: list[str]
) -> None:
    run(monkeypatch, "--keep", str(tmp_path), "--memory", "1GB", "--with", "")
    monkeypatch.setattr(sys, "argv", ["perf.tables", "--rows", "99", "--keep", str(tmp_path)])
    told = "'rows': 2000, 'shuffled': True}, wanted {'rows': 99, 'shuffled': False}"
    with pytest.raises(SystemExit, match=re.escape(told)):
        tables.main()
    assert ran == ["paywarden"]


def test_a_table_that_was_cut_short_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("transaction,local_time\ntx0,2024")
    table, kept = tables.kept_table(tmp_path, ROWS, shuffled=False)
    assert len(table.read_text().splitlines()) == ROWS + 1
    assert kept == {}
    assert json.loads((tmp_path / "results.json").read_text())["table"] == {"rows": ROWS, "shuffled": False}


def test_a_converter_is_measured_alone_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """The memory of the process that starts it does not count: ru_maxrss of a child begins with its parent's."""
    ballast = bytearray(600_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    table, _ = tables.kept_table(tmp_path, ROWS, shuffled=True)
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(tables._MAPPING)
    (tmp_path / "duckdb.spill").mkdir()
    found = tables.measure("duckdb", table, mapping, tmp_path)
    assert found["rows"] == ROWS
    assert 0 < found["peak_mb"] < len(ballast) / 2**20
    assert {path.name for path in tmp_path.iterdir() if "duckdb" in path.name} == set()
