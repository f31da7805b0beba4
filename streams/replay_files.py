"""What a replay writes payment by payment: decisions.parquet, and with a challenger differences.parquet.

decisions.parquet holds the champion's decision about every payment of the window, differences.parquet the payments that
champion and challenger decide differently about, with what both say of them and the label that was known in the end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.history import LABELS, UNKNOWN, History
from features.passage import Chunk
from scoring.policy import ACTIONS
from streams.replayed_policy import Decisions

DECISIONS, DIFFERENCES = "decisions.parquet", "differences.parquet"


class ReplayFiles:
    """decisions.parquet and differences.parquet while they are written: in their places only when they are whole."""

    def __init__(
        self,
        folder: Path,
        history: History,
        *,
        labels: NDArray[np.int8],
        amounts: NDArray[np.int64],
        model_version: str,
        with_vectors: bool,
        with_differences: bool,
    ) -> None:
        """`labels` as `final_labels` gives them, `amounts` in minor units of the reference currency: (payments,)."""
        self._folder, self._history, self._labels, self._amounts = folder, history, labels, amounts
        self._version, self._with_vectors = model_version, with_vectors
        schemas = {DECISIONS: _decisions_schema(with_vectors)}
        if with_differences:
            schemas[DIFFERENCES] = _differences_schema()
        self._writers = {
            name: pq.ParquetWriter(_unfinished(folder, name), schema, compression="zstd")
            for name, schema in schemas.items()
        }

    def __enter__(self) -> ReplayFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for name, writer in self._writers.items():
            writer.close()
            if kind is None:
                _unfinished(self._folder, name).replace(self._folder / name)
            else:
                _unfinished(self._folder, name).unlink()
        if kind is None and DIFFERENCES not in self._writers:
            # Of an earlier replay with a challenger: it would speak of other decisions than those beside it.
            (self._folder / DIFFERENCES).unlink(missing_ok=True)

    def write(self, chunk: Chunk, decided: list[Decisions]) -> None:
        """The decisions of each contestant about a chunk; chunks come in order."""
        self._writers[DECISIONS].write_table(self._decisions(chunk, decided[0]))
        if DIFFERENCES in self._writers:
            self._writers[DIFFERENCES].write_table(self._differences(chunk, decided[0], decided[1]))

    def _decisions(self, chunk: Chunk, decided: Decisions) -> pa.Table:
        history, rows = self._history, slice(chunk.first, chunk.last)
        codes = np.zeros(chunk.last - chunk.first, dtype=np.int8)
        columns: dict[str, Any] = {
            "payment_id": history.payment_id[rows].cast(pa.string()),
            "event_time_ms": pa.array(history.event_time_ms[rows]),
            "card_id": history.card.names.take(pa.array(history.card.codes[rows])),
            "merchant_id": history.merchant.names.take(pa.array(history.merchant.codes[rows])),
            "score": pa.array(decided.score),
            "action": _named(decided.action),
            "model_version": pa.DictionaryArray.from_arrays(pa.array(codes), pa.array([self._version])),
        }
        if self._with_vectors:
            columns["vector"] = _packed(chunk.vectors)
        return pa.table(columns, schema=_decisions_schema(self._with_vectors))

    def _differences(self, chunk: Chunk, champion: Decisions, challenger: Decisions) -> pa.Table:
        """The payments of the chunk that the two decide differently about."""
        changed = np.flatnonzero(champion.action != challenger.action)
        rows = chunk.first + changed
        history, taken = self._history, pa.array(rows)
        label = self._labels[rows]
        names = pa.array(LABELS).take(pa.array(label, mask=label == UNKNOWN))
        columns = {
            "payment_id": history.payment_id.take(taken).cast(pa.string()),
            "event_time_ms": pa.array(history.event_time_ms[rows]),
            "card_id": history.card.names.take(pa.array(history.card.codes[rows])),
            "merchant_id": history.merchant.names.take(pa.array(history.merchant.codes[rows])),
            "amount_reference_minor": pa.array(self._amounts[rows]),
            "champion_score": pa.array(champion.score[changed]),
            "challenger_score": pa.array(challenger.score[changed]),
            "champion_action": _named(champion.action[changed]),
            "challenger_action": _named(challenger.action[changed]),
            "label": names,
        }
        return pa.table(columns, schema=_differences_schema())


def write_whole(path: Path, text: str) -> None:
    """Write a text so that the file is in its place only when it is whole."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _unfinished(folder: Path, name: str) -> Path:
    return (folder / name).with_suffix(".unfinished")


_ACTION_TYPE = pa.dictionary(pa.int8(), pa.string())


def _decisions_schema(with_vectors: bool) -> pa.Schema:
    fields = [
        ("payment_id", pa.string()),
        ("event_time_ms", pa.int64()),
        ("card_id", pa.string()),
        ("merchant_id", pa.string()),
        ("score", pa.float64()),
        ("action", _ACTION_TYPE),
        ("model_version", pa.dictionary(pa.int8(), pa.string())),
    ]
    return pa.schema(fields + ([("vector", pa.binary())] if with_vectors else []))


def _differences_schema() -> pa.Schema:
    """`label` is null where no outcome is known."""
    return pa.schema(
        [
            ("payment_id", pa.string()),
            ("event_time_ms", pa.int64()),
            ("card_id", pa.string()),
            ("merchant_id", pa.string()),
            ("amount_reference_minor", pa.int64()),
            ("champion_score", pa.float64()),
            ("challenger_score", pa.float64()),
            ("champion_action", _ACTION_TYPE),
            ("challenger_action", _ACTION_TYPE),
            ("label", pa.string()),
        ]
    )


def _named(action: NDArray[np.int8]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(action), pa.array(ACTIONS))


def _packed(vectors: NDArray[np.float32]) -> pa.Array:
    """Each vector's bytes, without a Python object for each."""
    count, width = len(vectors), vectors.shape[1] * vectors.itemsize
    offsets = np.arange(count + 1, dtype=np.int32) * np.int32(width)
    content = pa.py_buffer(np.ascontiguousarray(vectors))
    return pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), content])
