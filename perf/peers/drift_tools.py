"""Evidently and NannyML with their defaults, each in an environment of its own: when would they have raised an alarm?

Both compare a table with a reference table. They get blocks of an hour of decisions, with score and features. Their
reference is the first weeks of the same stream, which is more than our own detection gets: it has only the training
window. Each tool defines its own alarm: for Evidently half of the columns or the score have drifted, for NannyML any
column of a block is outside its threshold. Consecutive hours with an alarm are one alarm, so that a tool that is in
alarm before a change does not find the change.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paywarden.models.drift.detectors import HOUR_MS
from perf.peers.environments import interpreter_of
from perf.worlds.drift_world import Decisions

# Rows of the reference, drawn at random: more rows would take minutes and change nothing.
_REFERENCE_ROWS = 5_000
# These variables turn off their telemetry.
_QUIET = {"NML_DISABLE_USAGE_LOGGING": "1", "DO_NOT_TRACK": "1"}
# Packages that they need and do not declare.
TOOLS = {
    "evidently": ("evidently==0.7.23", "pandas<3"),
    "nannyml": ("nannyml==0.13.1", "statsmodels"),
}


@dataclass(frozen=True)
class Tool:
    """One of the two, installed. `python` is the interpreter of its environment."""

    name: str
    python: Path
    reference: Decisions
    names: tuple[str, ...]

    def alarms(self, decisions: Decisions) -> list[int]:
        """Return the ends of the hours in which an alarm begins, in epoch ms."""
        with tempfile.TemporaryDirectory(prefix="paywarden-drift-") as folder:
            path = Path(folder) / "rows.npz"
            rng = np.random.default_rng(0)
            chosen = rng.choice(
                len(self.reference), size=min(_REFERENCE_ROWS, len(self.reference)), replace=False, shuffle=False
            )
            np.savez(
                path,
                names=np.array(self.names),
                reference=_table(self.reference.rows(np.sort(chosen))),
                rows=_table(decisions),
                hour=decisions.time_ms // HOUR_MS,
            )
            child = Path(__file__).with_name("drift_tools_child.py")
            command = [str(self.python), str(child), self.name, str(path)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=os.environ | _QUIET)
        hours = [int(line) for line in done.stdout.split()]
        begun = [hour for place, hour in enumerate(hours) if place == 0 or hours[place - 1] < hour - 1]
        return [(hour + 1) * HOUR_MS for hour in begun]


def tool(name: str, reference: Decisions, names: tuple[str, ...]) -> Tool:
    """Install the tool if it is not there yet. `names` are those of the features."""
    return Tool(name, interpreter_of(name, TOOLS[name]), reference, names)


def _table(decisions: Decisions) -> np.ndarray:
    """Return a table with the score, then the features."""
    return np.column_stack([decisions.score, decisions.vectors.astype(np.float64)])
