"""Why rows are refused: the first reason of each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from paywarden.features.tables.columns.arrow_columns import Flags
from paywarden.features.tables.sources import TableRows


class Reason(NamedTuple):
    """Why a row is refused."""

    column: str
    field: str
    text: str

    def __str__(self) -> str:
        where = f"column {self.column}, " if self.column and self.column != self.field else ""
        return f"{where}{self.field}: {self.text}" if self.field else self.text


class Refused(NamedTuple):
    """A refused row: its file, its line there, and why."""

    file: int
    line: int
    reason: Reason


class RowReasons:
    """The first reason of each row."""

    def __init__(self, count: int) -> None:
        self.code = np.zeros(count, dtype=np.int32)
        self._reasons: list[Reason] = []

    @property
    def is_any(self) -> bool:
        return bool(self._reasons)

    def add(self, wrong: Flags, reason: Reason) -> None:
        fresh = wrong & (self.code == 0)
        if fresh.any():
            self._reasons.append(reason)
            self.code[fresh] = len(self._reasons)

    def refused(self, rows: TableRows) -> list[Refused]:
        places = np.flatnonzero(self.code)
        codes, lines = self.code[places].tolist(), rows.lines[places].tolist()
        return [Refused(rows.file, line, self._reasons[code - 1]) for code, line in zip(codes, lines, strict=True)]
