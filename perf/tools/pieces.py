"""Counts of long measurements, in pieces of a minute or so whose counts add up, kept in a file between runs.

A thousand kills take longer than a machine is often free. A benchmark that counts, and times nothing, may stop after
each piece and go on another day: `python -m perf.gateway --only kills --kills 1000 --append counts.json --minutes 8`,
again and again, until the file holds a thousand.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

# The counts of a piece, by name. The counts of all pieces are added up.
Counts = Mapping[str, int]


class Pieces:
    """The pieces of one or several measurements, each under its name. Without a file they last as long as the run."""

    def __init__(self, file: Path | None = None, minutes: float | None = None) -> None:
        """Go on after the pieces that `file` holds. No piece begins after `minutes`."""
        self._file = file
        self._until = None if minutes is None else time.monotonic() + minutes * 60
        self._pieces: dict[str, list[dict[str, int]]] = {}
        if file is not None and file.exists():
            self._pieces = json.loads(file.read_text(encoding="utf-8"))

    def measure(
        self, name: str, counted: str, wanted: int, piece_max: int, measure_piece: Callable[[int, int], Counts]
    ) -> dict[str, int]:
        """Measure until `wanted` of `counted` are there, at most `piece_max` a piece; returns the sums of all pieces.

        `measure_piece(seed, count)` measures one piece. No two pieces of a name have the same seed. A piece that fails
        raises its error, and is not counted: the pieces before it are kept.
        """
        while (left := wanted - self.sums(name)[counted]) > 0 and not self._is_over():
            pieces = self._pieces.setdefault(name, [])
            pieces.append(dict(measure_piece(len(pieces), min(left, piece_max))))
            self._save()
            sums = self.sums(name)
            print(f"{name}: {sums[counted]} of {wanted} {counted}: {dict(sums)}", flush=True)
            if not pieces[-1][counted]:
                raise RuntimeError(f"{name}: a piece has counted no {counted}")
        return dict(self.sums(name)) or {counted: 0}

    def sums(self, name: str) -> Counter[str]:
        """Returns the counts of all pieces of a measurement, added up."""
        sums: Counter[str] = Counter()
        for piece in self._pieces.get(name, ()):
            sums.update(piece)
        return sums

    def _is_over(self) -> bool:
        return self._until is not None and time.monotonic() >= self._until

    def _save(self) -> None:
        if self._file is None:
            return
        # A run that is ended while it writes must not lose the pieces of the runs before.
        new = self._file.with_name(self._file.name + ".new")
        new.write_text(json.dumps(self._pieces, indent=2) + "\n", encoding="utf-8")
        os.replace(new, self._file)
