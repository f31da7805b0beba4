"""The files of a table, CSV or Parquet, and their rows in parts.

    files = TableFiles("exports/", form, wanted)      checks every file's head, and reads nothing else
    for rows in files.parts(): ...                    in order

Python's csv module finds rows and cells: a cell that begins with a quote goes on to the next quote that is not doubled,
over delimiters and line ends. Blank lines are no rows. Compressed files are decompressed as they are read.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paywarden.features.history.history import first_line
from paywarden.features.tables.mapping import InputForm
from paywarden.schemas import arrow_files
from paywarden.schemas.errors import Misconfigured

# A text of Parquet, and a row of CSV, that is longer is no part of a table: perhaps a quote was not closed.
_TEXT_SIZE_MAX = 1 << 20
_PART_ROWS = 1 << 17
# More rows at a time would live until Python has searched their cells for garbage, which takes as long as to read them.
_CSV_ROWS = 512
_CSV_CHARACTERS = 1 << 22
_CSV_PIECES = 32
# A column may have this many bytes of text in `_PART_ROWS` rows. Arrow takes twice as many.
_TEXT_BYTES_MAX = 1 << 30
# A file's first bytes tell its encoding.
_HEAD_BYTES = 1 << 16
_CSV_ENDINGS, _PARQUET_ENDINGS = (".csv", ".tsv", ".txt"), (".parquet", ".pq")
_COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
_BOMS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip", b"PAR1": "parquet"}

Int64Array = NDArray[np.int64]


@dataclass(frozen=True)
class TableRows:
    """Rows of one file.

    `numbers` are their positions among all rows of all files, and `lines` their lines, or rows, in their file. Columns
    of CSV are texts. `torn` are the lines of rows with another number of cells, and what is wrong with each. `size` is
    how much of the table's bytes all these rows are, about.
    """

    file: int
    numbers: Int64Array
    lines: Int64Array
    columns: Mapping[str, pa.Array]
    torn: Sequence[tuple[int, str]] = ()
    size: int = 0

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def count(self) -> int:
        """Return how many rows were read, torn ones too."""
        return len(self.numbers) + len(self.torn)


def joined(parts: Sequence[TableRows]) -> TableRows:
    """Return rows of parts, whose columns have the same types, as rows of the first one's file."""
    if len(parts) == 1:
        return parts[0]
    numbers, lines = (np.concatenate([getattr(rows, name) for rows in parts]) for name in ("numbers", "lines"))
    columns = {name: pa.concat_arrays([rows.columns[name] for rows in parts]) for name in parts[0].columns}
    torn = [one for rows in parts for one in rows.torn]
    return TableRows(parts[0].file, numbers, lines, columns, torn, sum(rows.size for rows in parts))


class TableFiles:
    """The files of a table, in order of their names."""

    def __init__(self, table: str | Path, form: InputForm, wanted: Sequence[str], *, mapping: str = "the mapping"):
        """Raises Misconfigured if a file cannot be read or lacks one of the columns `wanted`."""
        self.paths = files_of(Path(table))
        self._form, self.format = form, form.format or _format_of(self.paths)
        self.names = [str(path) for path in self.paths]
        self.heads = [self._head(path) for path in self.paths]
        for name, head in zip(self.names, self.heads, strict=True):
            wrong = [
                f"{'has two columns' if column in head else 'has no column'} {column!r}"
                for column in wanted
                if head.count(column) != 1
            ]
            if wrong:
                raise Misconfigured(f"{name}: {' and '.join(wrong)}, which {mapping} names; it has {_listed(head)}")
        self._wanted = list(wanted)

    @property
    def size(self) -> int:
        """Returns how many bytes the files have."""
        return sum(path.stat().st_size for path in self.paths)

    def parts(self) -> Iterator[TableRows]:
        """Yield the rows in order. Raises Misconfigured with file and line."""
        first = 0
        for file in range(len(self.paths)):
            pieces = self._csv_pieces(file, first) if self.format == "csv" else self._parquet_parts(file, first)
            while some := list(islice(pieces, _CSV_PIECES if self.format == "csv" else 1)):
                yield joined(some)
                first += sum(rows.count for rows in some)

    def first_rows(self, count: int) -> TableRows:
        """Returns about `count` rows from the start of the table, of as many files as it takes, or all it has."""
        parts: list[TableRows] = []
        for rows in self.parts():
            kinds = {name: column.type for name, column in rows.columns.items()}
            # Parquet files may differ in their types.
            if parts and kinds != {name: column.type for name, column in parts[0].columns.items()}:
                break
            parts.append(rows)
            if sum(map(len, parts)) >= count:
                break
        if not parts:
            raise Misconfigured(f"{self.names[0]} holds no row")
        rows = joined(parts)
        columns = {name: column[:count] for name, column in rows.columns.items()}
        return replace(rows, numbers=rows.numbers[:count], lines=rows.lines[:count], columns=columns)

    def unreadable_columns(self) -> dict[str, str]:
        """Returns the types of the first Parquet file's columns whose rows are no text, number or time."""
        if self.format != "parquet":
            return {}
        with pq.ParquetFile(self.paths[0]) as source:
            kinds = {field.name: field.type for field in source.schema_arrow}
            binary = [name for name, kind in kinds.items() if _is_binary(kind)]
            rows = next(source.iter_batches(batch_size=_PART_ROWS, columns=binary), None) if binary else None
            texts = set()
            for name in binary:
                if rows is not None:
                    _require_short(str(self.paths[0]), name, rows.column(name))
                if rows is None or _texts_of_binary(rows.column(name)) is not None:
                    texts.add(name)
        return {name: str(kind) for name, kind in kinds.items() if name not in texts and not _is_plain(kind)}

    def _head(self, path: Path) -> list[str]:
        try:
            if self.format == "parquet":
                return list(pq.read_schema(path).names)
            return _csv_head(path, self._form)
        except (*arrow_files.UNREADABLE, EOFError) as error:
            kind = "Parquet" if self.format == "parquet" else "CSV"
            raise Misconfigured(f"{path} cannot be read as {kind}: {first_line(error)}") from error

    def _csv_pieces(self, file: int, first: int) -> Iterator[TableRows]:
        form, head = self._form, self.heads[file]
        with closing(_CsvFile(self.paths[file], form)) as source:
            if not form.columns:
                source.head()
            while read := source.rows(_CSV_ROWS):
                rows, lines = read
                numbers, torn = np.arange(first, first + len(rows)), list[tuple[int, str]]()
                first += len(rows)
                counts = np.fromiter(map(len, rows), np.int64, len(rows))
                if not (whole := counts == len(head)).all():
                    torn = [(int(lines[place]), _torn(counts[place], len(head))) for place in np.flatnonzero(~whole)]
                    numbers, lines = numbers[whole], lines[whole]
                    rows = [cells for cells in rows if len(cells) == len(head)]
                cells = list(zip(*rows, strict=True)) or [()] * len(head)
                columns = {name: pa.array(cells[head.index(name)], pa.string()) for name in self._wanted}
                yield TableRows(file, numbers, lines, columns, torn, source.passed())

    def _parquet_parts(self, file: int, first: int) -> Iterator[TableRows]:
        path, name = self.paths[file], self.names[file]
        line = 0
        try:
            with pq.ParquetFile(path) as source:
                total = max(1, source.metadata.num_rows)
                for batch in source.iter_batches(batch_size=_PART_ROWS, columns=self._wanted):
                    columns = {
                        field.name: _plain_column(name, field, column)
                        for field, column in zip(batch.schema, batch.columns, strict=True)
                    }
                    places = line + np.arange(len(batch))
                    # Rows of Parquet are counted from 1, as lines are.
                    size = path.stat().st_size * len(batch) // total
                    yield TableRows(file, first + places, places + 1, columns, size=size)
                    line += len(batch)
        except arrow_files.UNREADABLE as error:
            raise Misconfigured(f"{path} cannot be read as Parquet: {first_line(error)}") from error


def _torn(count: int, wanted: int) -> str:
    return f"has {count} cell{'' if count == 1 else 's'}; wanted {wanted}"


def _plain_column(path: str, field: pa.Field, column: pa.Array) -> pa.Array:
    """Return a column of texts, numbers or times. Raises Misconfigured for any other."""
    _require_short(path, field.name, column)
    # Some programs write texts without saying that they are texts.
    texts = _texts_of_binary(column) if _is_binary(field.type) else column if _is_plain(field.type) else None
    if texts is None:
        what = f"{field.type} that is no UTF-8 text" if _is_binary(field.type) else field.type
        raise Misconfigured(f"{path}: column {field.name} is {what}; wanted texts, numbers or times")
    _require_utf8(path, field.name, texts)
    return texts


def value_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type of a column's values, also where they stand in a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_plain(kind: pa.DataType) -> bool:
    """Returns whether values of a type are texts, numbers or times."""
    kind, types = value_type(kind), pa.types
    return not (_is_binary(kind) or types.is_nested(kind) or types.is_duration(kind) or types.is_interval(kind)
                or types.is_fixed_size_binary(kind))  # fmt: skip


def _is_binary(kind: pa.DataType) -> bool:
    kind = value_type(kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _require_short(path: str, name: str, column: pa.Array) -> None:
    """Raises Misconfigured for texts that no table of payments has, before a dictionary of them is written out.

    A file of a kilobyte can hold one text of megabytes, and name it in every row.
    """
    kind = value_type(column.type)
    if not (_is_binary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return
    is_dictionary = pa.types.is_dictionary(column.type)
    sizes = pc.binary_length(column.dictionary if is_dictionary else column)
    if (longest := pc.max(sizes).as_py() or 0) > _TEXT_SIZE_MAX:
        raise Misconfigured(
            f"{path}: column {name} holds a text of {longest} bytes; wanted texts of at most {_TEXT_SIZE_MAX} bytes"
        )
    if is_dictionary and (total := pc.sum(sizes.take(column.indices)).as_py() or 0) > _TEXT_BYTES_MAX:
        raise Misconfigured(
            f"{path}: column {name} holds {total} bytes of text in {len(column)} rows; wanted at most {_TEXT_BYTES_MAX}"
        )


def _require_utf8(path: str, name: str, column: pa.Array) -> None:
    """Raise Misconfigured for a column that says it is text and is not: nobody has looked at it when it was read."""
    texts = column.dictionary if pa.types.is_dictionary(column.type) else column
    if pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type):
        try:
            texts.validate(full=True)
        except pa.ArrowInvalid as error:
            raise Misconfigured(f"{path}: column {name} holds a text that is not UTF-8") from error


def _texts_of_binary(column: pa.Array) -> pa.Array | None:
    """Returns bytes as texts; None if they are not UTF-8."""
    try:
        return column.cast(value_type(column.type)).cast(pa.string())
    except pa.ArrowInvalid:
        return None


class _CsvFile:
    """The rows of a CSV file, in its own encoding."""

    def __init__(self, path: Path, form: InputForm) -> None:
        self._path, self._form = path, form
        self._open = ExitStack()
        self._raw = self._open.enter_context(path.open("rb"))
        source = self._open.enter_context(closing(_decompressed(path, self._raw)))
        # ASCII is read as UTF-8.
        self._encoding = "utf-8" if _is_utf8(form.encoding) else form.encoding
        self._text = io.TextIOWrapper(source, encoding=self._encoding, newline="")
        # The last line of the row before, and the characters of this row so far.
        self._last_line, self._row_size, self._position = 0, 0, 0
        csv.field_size_limit(max(csv.field_size_limit(), _TEXT_SIZE_MAX))
        self._reader = csv.reader(
            self._lines(),
            delimiter=form.delimiter,
            quotechar=form.quote or None,
            quoting=csv.QUOTE_MINIMAL if form.quote else csv.QUOTE_NONE,
        )

    def head(self) -> list[str]:
        """Return the first row that is not blank, empty if there is none. Raises as `rows` does."""
        read = self.rows(1)
        return read[0][0] if read else []

    def rows(self, most: int) -> tuple[list[list[str]], Int64Array] | None:
        """Return the next rows without blank ones and the line on which each begins; None at the end.

        Raises Misconfigured with file and line.
        """
        rows: list[list[str]] = []
        ends, size = [self._last_line], 0
        try:
            for cells in self._reader:
                size += self._row_size
                self._last_line, self._row_size = self._reader.line_num, 0
                if cells:
                    rows.append(cells)
                    ends.append(self._last_line)
                    if len(rows) == most or size > _CSV_CHARACTERS:
                        break
                else:
                    ends[-1] = self._last_line
        except UnicodeError as error:
            # Not every encoding says where.
            before = error.object[: error.start] if isinstance(error, UnicodeDecodeError) else b""
            line = self._reader.line_num + 1 + before.count(b"\n")
            hint = '; [input] encoding says which, as in encoding = "cp1252"' if self._encoding == "utf-8" else ""
            raise Misconfigured(f"{self._path}, line {line}: is not {self._encoding.upper()} text{hint}") from error
        except (*arrow_files.UNREADABLE, EOFError) as error:
            raise Misconfigured(f"{self._path}: cannot be read: {first_line(error)}") from error
        return (rows, np.array(ends[: len(rows)]) + 1) if rows else None

    def passed(self) -> int:
        """Return how many bytes of the file were read since the last call."""
        before, self._position = self._position, self._raw.tell()
        return self._position - before

    def _lines(self) -> Iterator[str]:
        while line := self._text.readline(_TEXT_SIZE_MAX + 1):
            self._row_size += len(line)
            if self._row_size > _TEXT_SIZE_MAX:
                if len(line) < self._row_size:
                    raise self._open_quote(f"within {_TEXT_SIZE_MAX} characters")
                wanted = "wanted a table with line ends, and the right quote and delimiter"
                where = f"{self._path}, line {self._last_line + 1}"
                raise Misconfigured(f"{where}: is longer than {_TEXT_SIZE_MAX} characters; {wanted}")
            yield line if self._last_line else line.removeprefix("\ufeff")
        if self._row_size:
            raise self._open_quote("before the end of the file")

    def _open_quote(self, where: str) -> Misconfigured:
        return Misconfigured(f"{self._path}, line {self._last_line + 1}: a quote is opened and not closed {where}")

    def close(self) -> None:
        self._open.close()


def _decompressed(path: Path, raw: BinaryIO) -> BinaryIO:
    kind = _COMPRESSED.get(path.suffix.lower(), "")
    source: BinaryIO = pa.CompressedInputStream(pa.PythonFile(raw, "r"), kind) if kind else raw
    return source


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name in ("utf-8", "ascii")


def files_of(table: Path) -> list[Path]:
    """Returns the files of a table in order of their names. Raises Misconfigured if there are none."""
    if table.is_dir():
        endings = (*_CSV_ENDINGS, *_PARQUET_ENDINGS)
        found = [
            path
            for path in sorted(table.iterdir())
            if path.is_file() and path.name[0] not in "._" and _ending(path) in endings
        ]
        if not found:
            raise Misconfigured(f"{table} holds no file that ends in {', '.join(endings)}")
        return found
    if not table.is_file():
        raise Misconfigured(f"the table {table} is not there")
    return [table]


def is_csv(path: Path) -> bool:
    """Returns whether a file is CSV by its name, compressed or not."""
    return _ending(path) in _CSV_ENDINGS


def first_bytes(path: Path, count: int) -> bytes:
    """Returns the first bytes of a file, decompressed, in its own encoding. Raises Misconfigured."""
    try:
        with path.open("rb") as raw, closing(_decompressed(path, raw)) as source:
            return source.read(count)
    except (*arrow_files.UNREADABLE, EOFError) as error:
        raise Misconfigured(f"{path}: cannot be read: {first_line(error)}") from error


def _ending(path: Path) -> str:
    name = path.with_suffix("") if path.suffix.lower() in _COMPRESSED else path
    return name.suffix.lower()


def _format_of(paths: Sequence[Path]) -> str:
    formats = {"parquet" if _ending(path) in _PARQUET_ENDINGS else "csv" for path in paths}
    if len(formats) > 1:
        raise Misconfigured(f"{paths[0].parent} holds CSV and Parquet files; a table is of one kind")
    return formats.pop()


def _csv_head(path: Path, form: InputForm) -> list[str]:
    """Returns the names of a CSV file's columns. Raises Misconfigured for a file that is not CSV."""
    with path.open("rb") as file:
        raw = file.read(8)
    kind = next((kind for magic, kind in _MAGIC.items() if raw.startswith(magic)), "")
    if kind and kind != _COMPRESSED.get(path.suffix.lower(), ""):
        wanted = (
            '[input] format = "parquet"'
            if kind == "parquet"
            else "unpack it"
            if kind == "zip"
            else (f"let its name end in {next(ending for ending, name in _COMPRESSED.items() if name == kind)}")
        )
        raise Misconfigured(f"{path}: is no CSV file but {kind}: {wanted}")
    data = first_bytes(path, _HEAD_BYTES)
    if not data:
        raise Misconfigured(f"{path} is empty")
    if _is_utf8(form.encoding):
        found = next((name for bom, name in _BOMS.items() if data.startswith(bom)), "")
        if found:
            raise Misconfigured(f'{path}, line 1: is {found} text; say so: [input] encoding = "{found}"')
        # A NUL here and there makes a row wrong. A third of all bytes is another encoding.
        if data.count(0) * 3 > len(data):
            wanted = '[input] encoding = "utf-16-le" or -be'
            raise Misconfigured(f"{path}, line 1: holds NUL bytes, as UTF-16 has: {wanted}")
    with closing(_CsvFile(path, form)) as source:
        head = source.head()
    if form.columns:
        return list(form.columns)
    if not head:
        raise Misconfigured(f"{path} holds no line with text")
    return [name.strip() for name in head]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:30])
    return shown if len(names) <= 30 else f"{shown} and {len(names) - 30} more"
