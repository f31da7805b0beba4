"""Write a replay's decisions payment by payment: decisions.parquet, and with a challenger differences.parquet.

How it works:

1. decisions.parquet holds the champion's decision about every payment of the window, in order of time.
2. differences.parquet holds the payments for which champion and challenger take different actions: both scores, both
   actions, and the label known in the end.
3. Each file is written under the name NAME.unfinished. It gets its own name only when the replay has succeeded.
4. DECISION_COLUMNS and DIFFERENCE_COLUMNS describe every column.

Example: of 14,000 payments, champion and challenger disagree about 120. decisions.parquet has 14,000 rows and
differences.parquet 120.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paywarden.features.history.history import LABELS, UNKNOWN, History
from paywarden.features.history.point_in_time import Chunk
from paywarden.models.policy.policy import ACTIONS
from paywarden.models.replay.replayed_policy import ActionReasons, Decisions
from paywarden.schemas.errors import Misconfigured

DECISIONS, DIFFERENCES = "decisions.parquet", "differences.parquet"
PAYMENT_ID, VECTOR = "payment_id", "vector"
_TEXT, _ACTION_TYPE = pa.string(), pa.dictionary(pa.int8(), pa.string())


class OutputColumn(NamedTuple):
    """A column of a file, with the text of the data dictionary (docs/reference/data.md)."""

    name: str
    kind: pa.DataType
    meaning: str


_PAYMENT = (
    OutputColumn(PAYMENT_ID, _TEXT, "The payment's id, unique per attempt."),
    OutputColumn("event_time_ms", pa.int64(), "When the payment was attempted."),
    OutputColumn("card_id", _TEXT, "The token that stands for the card."),
    OutputColumn("merchant_id", _TEXT, "The payee."),
)
_REFERENCE_AMOUNT = OutputColumn(
    "amount_reference_minor",
    pa.int64(),
    "The amount at the rate of the payment's time; null without a rate.",
)
_LABEL = OutputColumn("label", _TEXT, "fraud or genuine, by the last known outcome; null without an outcome.")

DECISION_COLUMNS = (
    *_PAYMENT,
    OutputColumn("amount_minor", pa.int64(), "The amount as it was paid, in minor units of `currency`."),
    OutputColumn("currency", pa.dictionary(pa.int32(), pa.string()), "ISO 4217 code of the amount."),
    _REFERENCE_AMOUNT,
    OutputColumn("score", pa.float64(), "The champion's probability of fraud."),
    OutputColumn("action", _ACTION_TYPE, "approve, review or decline."),
    OutputColumn(
        "reasons",
        pa.list_(pa.string()),
        "The thresholds and rules (as `rule:NAME`) that asked for this action. A replay names no features.",
    ),
    OutputColumn("model_version", pa.dictionary(pa.int8(), pa.string()), "The bundle that scored the payment."),
    _LABEL,
)
VECTOR_COLUMN = OutputColumn(
    VECTOR, pa.binary(), "With `--vectors`: all features, float32, little endian, in the order of the catalogue."
)
_CODED = pa.dictionary(pa.int32(), pa.string())
# Written with vectors: drift detection reads them together (`paywarden drift backtest`).
SEGMENT_COLUMNS = (
    OutputColumn("channel", _CODED, "With `--vectors`: the payment's channel."),
    OutputColumn("country", _CODED, "With `--vectors`: the payment's country."),
    OutputColumn("mcc", _CODED, "With `--vectors`: the payment's merchant category."),
)
DIFFERENCE_COLUMNS = (
    *_PAYMENT,
    _REFERENCE_AMOUNT,
    OutputColumn("champion_score", pa.float64(), "The champion's score."),
    OutputColumn("challenger_score", pa.float64(), "The challenger's score."),
    OutputColumn("champion_action", _ACTION_TYPE, "The champion's action."),
    OutputColumn("challenger_action", _ACTION_TYPE, "The challenger's action."),
    _LABEL,
)

DIFFERENCE_SCHEMA = pa.schema([(column.name, column.kind) for column in DIFFERENCE_COLUMNS])


@dataclass(frozen=True)
class DecisionTables:
    """Makes the tables of decisions.parquet and differences.parquet.

    `feature_names`: the names of all features, to write each as a column; empty to write none.
    """

    model_version: str
    with_vectors: bool
    feature_names: tuple[str, ...] = ()

    @property
    def schema(self) -> pa.Schema:
        """Returns the schema of decisions.parquet."""
        vector = [(VECTOR, VECTOR_COLUMN.kind), *_fields(SEGMENT_COLUMNS)] if self.with_vectors else []
        features = [(name, pa.float32()) for name in self.feature_names]
        return pa.schema([*_fields(DECISION_COLUMNS), *vector, *features])

    def decisions(
        self,
        history: History,
        labels: NDArray[np.int8],
        amounts: NDArray[np.int64],
        chunk: Chunk,
        decided: Decisions,
        causes: Sequence[ActionReasons],
    ) -> pa.Table:
        """Returns the decisions about a chunk. `labels`, `amounts`: of all payments of the history."""
        rows = slice(chunk.first, chunk.last)
        codes = np.zeros(chunk.last - chunk.first, dtype=np.int8)
        columns: dict[str, Any] = {
            PAYMENT_ID: history.payment_id[rows].cast(pa.string()),
            "event_time_ms": pa.array(history.event_time_ms[rows]),
            "card_id": history.card.names.take(pa.array(history.card.codes[rows])),
            "merchant_id": history.merchant.names.take(pa.array(history.merchant.codes[rows])),
            "amount_minor": pa.array(history.amount_minor[rows]),
            "currency": pa.DictionaryArray.from_arrays(pa.array(history.currency.codes[rows]), history.currency.names),
            "amount_reference_minor": _known(amounts[rows]),
            "score": pa.array(decided.score),
            "action": _named(decided.action),
            "reasons": pa.array([cause.reasons for cause in causes], pa.list_(pa.string())).take(
                pa.array(decided.cause)
            ),
            "model_version": pa.DictionaryArray.from_arrays(pa.array(codes), pa.array([self.model_version])),
            "label": _label_names(labels[rows]),
        }
        if self.with_vectors:
            columns[VECTOR] = _packed(chunk.vectors)
            columns |= {column.name: _coded(history, column.name, rows) for column in SEGMENT_COLUMNS}
        for place, name in enumerate(self.feature_names):
            # A missing value is NaN in a vector, and null in a column.
            columns[name] = pa.array(chunk.vectors[:, place], from_pandas=True)
        return pa.table(columns, schema=self.schema)

    def differences(
        self,
        history: History,
        labels: NDArray[np.int8],
        amounts: NDArray[np.int64],
        chunk: Chunk,
        champion: Decisions,
        challenger: Decisions,
    ) -> pa.Table:
        """Returns the payments of the chunk for which the two take different actions."""
        changed = np.flatnonzero(champion.action != challenger.action)
        rows = chunk.first + changed
        columns = {
            PAYMENT_ID: history.payment_id.take(pa.array(rows)).cast(pa.string()),
            "event_time_ms": pa.array(history.event_time_ms[rows]),
            "card_id": history.card.names.take(pa.array(history.card.codes[rows])),
            "merchant_id": history.merchant.names.take(pa.array(history.merchant.codes[rows])),
            "amount_reference_minor": _known(amounts[rows]),
            "champion_score": pa.array(champion.score[changed]),
            "challenger_score": pa.array(challenger.score[changed]),
            "champion_action": _named(champion.action[changed]),
            "challenger_action": _named(challenger.action[changed]),
            "label": _label_names(labels[rows]),
        }
        return pa.table(columns, schema=DIFFERENCE_SCHEMA)


class ReplayFiles:
    """Writes decisions.parquet and differences.parquet. A context manager: leaving without an error renames them."""

    def __init__(
        self,
        folder: Path,
        history: History,
        *,
        labels: NDArray[np.int8],
        amounts: NDArray[np.int64],
        model_version: str,
        with_vectors: bool,
        feature_names: Sequence[str] = (),
        with_differences: bool,
    ) -> None:
        """Open the files in `folder`.

        `labels`: from `final_labels`. `amounts`: minor units of the reference currency. Both: (payments,).
        `feature_names`: the names of all features, to write each as a column; empty to write none.
        """
        self._folder, self._history, self._labels, self._amounts = folder, history, labels, amounts
        self._tables = DecisionTables(model_version, with_vectors, tuple(feature_names))
        schemas = {DECISIONS: self._tables.schema}
        if with_differences:
            schemas[DIFFERENCES] = DIFFERENCE_SCHEMA
        self._writers = {
            name: pq.ParquetWriter(_unfinished(folder, name), schema, **_encodings(schema))
            for name, schema in schemas.items()
        }

    def __enter__(self) -> ReplayFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for name, writer in self._writers.items():
            writer.close()
            if kind is None:
                if (self._folder / name).is_dir():
                    # An engine has written a folder of files.
                    shutil.rmtree(self._folder / name)
                _unfinished(self._folder, name).replace(self._folder / name)
            else:
                _unfinished(self._folder, name).unlink()
        if kind is None and DIFFERENCES not in self._writers:
            # A differences.parquet of an earlier replay does not belong to the new decisions.parquet.
            (self._folder / DIFFERENCES).unlink(missing_ok=True)

    def write(self, chunk: Chunk, decided: list[Decisions], causes: Sequence[ActionReasons]) -> None:
        """Write one chunk; chunks must come in order.

        `decided`: each contestant's decisions, the champion's first. `causes`: the champion's causes so far.
        """
        of_history, tables = (self._history, self._labels, self._amounts), self._tables
        self._writers[DECISIONS].write_table(tables.decisions(*of_history, chunk, decided[0], causes))
        if DIFFERENCES in self._writers:
            self._writers[DIFFERENCES].write_table(tables.differences(*of_history, chunk, decided[0], decided[1]))


def _known(amounts: NDArray[np.int64]) -> pa.Array:
    return pa.array(amounts, mask=amounts < 0)


@contextmanager
def results_folder(folder: Path) -> Iterator[None]:
    """Make a folder for results if it is missing, and be the only replay that writes there.

    The lock is on the folder itself: it leaves no file, and ends with the process. A folder that was made for nothing
    is removed. Raises Misconfigured if another replay writes there, or the folder cannot be made.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
    except BlockingIOError:
        raise Misconfigured(
            f"another replay is writing to {folder}: wait until it has ended, or choose another folder"
        ) from None
    except OSError as error:
        raise Misconfigured(f"cannot write results to {folder}: {error.strerror}") from error
    try:
        yield
    finally:
        if is_new:
            # It fails if there are results, as it should.
            with suppress(OSError):
                folder.rmdir()
        os.close(descriptor)


def require_free_names(feature_names: Sequence[str], *, with_vectors: bool) -> None:
    """Raises Misconfigured if a feature has the name of another column of decisions.parquet."""
    segments = SEGMENT_COLUMNS if with_vectors else ()
    column_names = {column.name for column in (*DECISION_COLUMNS, VECTOR_COLUMN, *segments)}
    for name in feature_names:
        if name in column_names:
            raise Misconfigured(f"--features: feature {name} has the name of a column of {DECISIONS}")


def write_whole(path: Path, text: str) -> None:
    """Write a text file atomically: under another name first, then renamed."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _unfinished(folder: Path, name: str) -> Path:
    return (folder / name).with_suffix(".unfinished")


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    """Returns how Parquet keeps the columns of a file: fast to write, small, and readable for every reader.

    A dictionary is worth it for texts that many payments share. Numbers and payment ids hardly repeat: looking each up
    in a dictionary takes two or three times as long as writing it, and the file becomes larger. Whole numbers are
    written as differences. Only columns that a reader may search by range have statistics.
    """
    shared, whole_numbers, searched = [], [], []
    for field in schema:
        if pa.types.is_int64(field.type):
            whole_numbers.append(field.name)
        elif pa.types.is_list(field.type):
            shared.append(f"{field.name}.list.element")
        elif pa.types.is_dictionary(field.type) or (pa.types.is_string(field.type) and field.name != PAYMENT_ID):
            shared.append(field.name)
        if field.name == PAYMENT_ID or pa.types.is_int64(field.type) or pa.types.is_floating(field.type):
            searched.append(field.name)
    return {
        "compression": "zstd",
        "use_dictionary": shared,
        "column_encoding": dict.fromkeys(whole_numbers, "DELTA_BINARY_PACKED"),
        "write_statistics": searched,
    }


def _fields(columns: Sequence[OutputColumn]) -> list[tuple[str, pa.DataType]]:
    return [(column.name, column.kind) for column in columns]


def _label_names(label: NDArray[np.int8]) -> pa.Array:
    return pa.array(LABELS).take(pa.array(label, mask=label == UNKNOWN))


def _named(action: NDArray[np.int8]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(action), pa.array(ACTIONS))


def _coded(history: History, name: str, rows: slice) -> pa.DictionaryArray:
    """Returns rows of a text column of the history. Code -1 means no text."""
    column = history.coded(name)
    codes = column.codes[rows].astype(np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), column.names.cast(pa.string()))


def _packed(vectors: NDArray[np.float32]) -> pa.Array:
    """Returns each vector's bytes as an Arrow array, without making a Python object for each."""
    count, width = len(vectors), vectors.shape[1] * vectors.itemsize
    offsets = np.arange(count + 1, dtype=np.int32) * np.int32(width)
    content = pa.py_buffer(np.ascontiguousarray(vectors))
    return pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), content])
