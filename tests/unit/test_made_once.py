"""A fixture that a run makes once is made by one process, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pytest

from tests.services import made_once
from tests.services.made_once import tables_made_once


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run's folder that is empty."""
    monkeypatch.setenv(made_once.VARIABLE, str(tmp_path))
    made_once.run_folder.cache_clear()
    yield tmp_path
    made_once.run_folder.cache_clear()


def test_the_first_of_several_callers_makes_it_and_all_get_it() -> None:
    together, made = Barrier(4), list[Path]()

    def make(path: Path) -> None:
        made.append(path)
        path.mkdir()
        (path / "file").write_text("content")

    def ask(_: int) -> str:
        together.wait()
        return (made_once.made_once("name", make) / "file").read_text()

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, range(4))) == ["content"] * 4
    assert len(made) == 1


def test_what_could_not_be_made_leaves_nothing_and_is_tried_again(home: Path) -> None:
    def fail(path: Path) -> None:
        path.mkdir()
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        made_once.made_once("name", fail)
    assert [path.name for path in home.iterdir()] == ["name.lock"]
    assert made_once.made_once("name", Path.mkdir) == home / "name"


def test_tables_from_files_equal_those_that_were_made() -> None:
    rows = pa.table({"n": pa.array([1, None], pa.int32()), "c": pa.array(["a", "b"]).dictionary_encode()})
    for _ in range(2):
        first, second = tables_made_once("tables", lambda: (rows, rows.slice(1)))
        assert first.equals(rows)
        assert second.equals(rows.slice(1))
        assert first.schema == rows.schema
