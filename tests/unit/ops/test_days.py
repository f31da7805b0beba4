"""Days as options name them, and where the data starts and ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from paywarden.features.history.history import write_history
from paywarden.models.metrics.evaluation import date_of_day
from paywarden.ops.days import day_option
from paywarden.ops.histories import HistoryAsked
from paywarden.ops.times import now_ms
from paywarden.schemas.errors import Misconfigured
from tests.worlds.small import small_world
from tests.worlds.small.small_world import DAY_MS, DAYS, FIRST_DAY


def asked(data: Path | None) -> HistoryAsked:
    return HistoryAsked(None if data is None else str(data), data is None, None, None, None)


def test_relative_days_of_two_files_count_from_the_last_payment(tmp_path: Path) -> None:
    write_history(tmp_path, *small_world.tables())
    assert day_option("--from", "-0d", asked(tmp_path)) == FIRST_DAY + DAYS - 1
    assert day_option("--from", "-14d", asked(tmp_path)) == FIRST_DAY + DAYS - 15


def test_relative_days_of_an_archive_count_from_its_newest_folder(tmp_path: Path) -> None:
    for date in ("2026-03-09", "2026-03-11", "2026-03-10"):
        (tmp_path / "payments" / f"date={date}").mkdir(parents=True)
    day = day_option("--from", "-2d", asked(tmp_path))
    assert day is not None
    assert date_of_day(day) == "2026-03-09"


def test_relative_days_of_topics_count_from_today() -> None:
    before = now_ms() // DAY_MS
    day = day_option("--from", "-3d", asked(None))
    assert day in (before - 3, now_ms() // DAY_MS - 3)


def test_relative_days_of_data_without_an_end_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"a history needs the file .*payments\.parquet"):
        day_option("--from", "-3d", asked(tmp_path))
    payments, outcomes = small_world.tables()
    write_history(tmp_path / "empty", payments.slice(0, 0), outcomes.slice(0, 0))
    with pytest.raises(Misconfigured, match=r"payments\.parquet holds no payment"):
        day_option("--from", "-3d", asked(tmp_path / "empty"))
    (tmp_path / "archive/payments").mkdir(parents=True)
    with pytest.raises(Misconfigured, match="archive holds no payments: no day can be counted back"):
        day_option("--from", "-3d", asked(tmp_path / "archive"))
