"""YDF and oneDAL with LightGBM's trees, each a process in an environment of its own, measured round by round."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perf.peers.environments import interpreter_of

PACKAGES = {
    "ydf": ("ydf==0.16.1", "lightgbm==4.7.0"),
    # With it comes daal4py, which converts the trees.
    "onedal": ("scikit-learn-intelex==2026.2.0", "lightgbm==4.7.0"),
}


@dataclass(frozen=True)
class TreeEngine:
    """A process that waits for the next round. `about`: how far its scores are from LightGBM, and more of YDF."""

    process: subprocess.Popen[str]
    about: dict[str, Any]

    def round(self) -> tuple[NDArray[np.float64], float]:
        """Return the seconds of each row alone, and of all rows together."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        measured = _line(self.process)
        return np.array(measured["alone"]), measured["together"]


@contextmanager
def tree_engine(
    name: str, model: Path, rows: NDArray[np.float32], wanted: NDArray[np.float64], singles: int
) -> Iterator[TreeEngine]:
    """Run an engine on a model's text. `wanted`: LightGBM's margins; `singles`: how many rows are asked alone."""
    python = interpreter_of(name, PACKAGES[name])
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(file, rows=rows, wanted=wanted)
        file.flush()
        command = [str(python), str(Path(__file__).with_name("tree_engines_child.py")), name, str(model), file.name]
        with subprocess.Popen(
            [*command, str(singles)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            yield TreeEngine(process, _line(process))


def _line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the engine ended: its words are above"
    found: dict[str, Any] = json.loads(line)
    return found
