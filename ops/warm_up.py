"""Compile what numba compiles, side by side: whatever starts afterwards only loads it.

    features   0.3 s to load, half a minute to compile, and most of it is one function after the other
    scoring    a quarter of that

Each part is a process of its own. What a part has compiled before it loads, and then it ends at once.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from schemas.errors import TemporaryFailure


@dataclass(frozen=True)
class Part:
    """Code that one process compiles: Python statements, which load and call it once."""

    name: str
    statements: str


# None of these imports a package that is not in the base installation.
PARTS = (
    Part("features", "from features.engine import FeatureEngine; FeatureEngine().warm_up()"),
    Part(
        "scoring",
        "from scoring import answered, fast_requests, records; from streams import fast_intake; "
        "answered.warm_up(); fast_requests.warm_up(); records.warm_up(); fast_intake.warm_up()",
    ),
)


def warm_up() -> Iterator[str]:
    """Compile all parts at once; gives the name of each when it is done. Raises TemporaryFailure when one fails."""
    command = [sys.executable, "-P", "-c"]
    running = [
        (part.name, subprocess.Popen([*command, part.statements], stderr=subprocess.PIPE, text=True)) for part in PARTS
    ]
    try:
        for name, process in reversed(running):
            _, errors = process.communicate()
            if process.returncode != 0:
                last = (errors.strip().splitlines() or [f"it ended with {process.returncode}"])[-1]
                raise TemporaryFailure(f"cannot compile {name}: {last}")
            yield name
    finally:
        for _, process in running:
            if process.poll() is None:
                process.kill()
                process.communicate()
