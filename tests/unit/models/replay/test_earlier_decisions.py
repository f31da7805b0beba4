"""An earlier replay's file is used only if it has the same payments and the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paywarden.models.replay.earlier_decisions import EarlierDecisions, time_range_ms
from paywarden.schemas.errors import Misconfigured
from tests.worlds.small import small_world

FIRST, LAST, FEATURES = 500, 2300, 3
RANDOM = np.random.default_rng(1)
VECTORS = RANDOM.random((LAST - FIRST, FEATURES), dtype=np.float32)
SCORES = RANDOM.random(LAST - FIRST)


def decisions() -> pa.Table:
    payments = small_world.tables()[0].slice(FIRST, LAST - FIRST)
    return pa.table(
        {
            "payment_id": payments["payment_id"].cast(pa.string()),
            "event_time_ms": payments["event_time_ms"],
            "score": pa.array(SCORES),
            "model_version": pa.array(["m-1"] * (LAST - FIRST)),
            "vector": pa.array([vector.tobytes() for vector in VECTORS], pa.binary()),
        }
    )


def opened(folder: Path, table: pa.Table, model_version: str = "m-1", features: int = FEATURES) -> EarlierDecisions:
    pq.write_table(table, folder / "decisions.parquet", row_group_size=700)
    return EarlierDecisions(
        folder / "decisions.parquet", small_world.history(), model_version=model_version, feature_count=features
    )


def test_scores_and_vectors_come_back_as_they_were(tmp_path: Path) -> None:
    parts = list(opened(tmp_path, decisions()).chunks(FIRST, LAST))
    assert np.array_equal(np.concatenate([part.score for part in parts]), SCORES)
    vectors = np.concatenate([part.chunk.vectors for part in parts])
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, VECTORS)
    assert [parts[0].chunk.first, parts[-1].chunk.last] == [FIRST, LAST]


def test_payments_missing_in_the_file_are_refused(tmp_path: Path) -> None:
    earlier = opened(tmp_path, decisions())
    for first, last in ((FIRST - 1, LAST), (FIRST, LAST + 1)):
        with pytest.raises(Misconfigured, match="it is of other data or of another window"):
            list(earlier.chunks(first, last))


@pytest.mark.parametrize("column", ["payment_id", "event_time_ms"])
def test_other_payments_in_the_middle_are_other_data(column: str, tmp_path: Path) -> None:
    table = decisions()
    values = table[column].to_pylist()
    values[10], values[11] = values[11], values[10]
    place = table.column_names.index(column)
    swapped = table.set_column(place, column, pa.array(values, table[column].type))
    with pytest.raises(Misconfigured, match="it is of other data"):
        list(opened(tmp_path, swapped).chunks(FIRST, LAST))


def test_scores_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="its scores are of model m-1, the bundle is m-2"):
        list(opened(tmp_path, decisions(), model_version="m-2").chunks(FIRST, LAST))


def test_vectors_of_another_width_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="wanted vectors of 4 features"):
        list(opened(tmp_path, decisions(), features=4).chunks(FIRST, LAST))


def test_an_unreadable_reference_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="cannot be read as Parquet"):
        time_range_ms(tmp_path / "nowhere.parquet")
    (tmp_path / "text.parquet").write_text("payment_id", encoding="utf-8")
    with pytest.raises(Misconfigured, match="cannot be read as Parquet"):
        time_range_ms(tmp_path / "text.parquet")
    with pytest.raises(Misconfigured, match="column score is missing"):
        opened(tmp_path, decisions().drop_columns(["score"]))
    with pytest.raises(Misconfigured, match="holds no decision"):
        opened(tmp_path, decisions().slice(0, 0))


def test_its_time_is_that_of_its_first_and_last_payment(tmp_path: Path) -> None:
    opened(tmp_path, decisions())
    times = small_world.history().event_time_ms
    assert time_range_ms(tmp_path / "decisions.parquet") == (times[FIRST], times[LAST - 1])
