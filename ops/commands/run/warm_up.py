"""Compile all numba code and Python modules, part by part in parallel: processes that start afterwards only load them.

On one core the features take half a minute, the scoring code twelve seconds, the modules ten. Each part is a process of
its own. A part that was compiled before is only loaded, and its process ends at once.

The processes write byte code even where PYTHONDONTWRITEBYTECODE is set, as in many images: `serve` would otherwise
compile all of its modules at each start, and take twice as long.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from paywarden.schemas.errors import TemporaryFailure


@dataclass(frozen=True)
class WarmUpPart:
    """Code that one process compiles: Python statements, which load and call it once."""

    name: str
    statements: str


# Imports every module of the services. Those of an extra that is missing, or is just being installed, are left out.
_IMPORT_SERVICES = """
import contextlib, importlib, pkgutil
import paywarden.ops.entry, paywarden.ops.cli
for root in ("paywarden.scoring", "paywarden.streams", "paywarden.ops.wiring"):
    for module in pkgutil.walk_packages(importlib.import_module(root).__path__, f"{root}.", lambda _: None):
        with contextlib.suppress(Exception):
            importlib.import_module(module.name)
"""
# The first two import no package that is not in the base installation.
PARTS = (
    WarmUpPart("features", "from paywarden.features.profiles.engine import FeatureEngine; FeatureEngine().warm_up()"),
    WarmUpPart(
        "scoring",
        "from paywarden.scoring.engine import chunk_frame; "
        "from paywarden.scoring.idempotency import decision_cache; "
        "from paywarden.scoring.requests import fast_requests; "
        "from paywarden.scoring.state import mirror_look_up; "
        "from paywarden.streams.companion import mirror_writer; "
        "from paywarden.scoring.state.neighbours import hops; "
        "from paywarden.streams.profiles import fast_intake; "
        "decision_cache.warm_up(); fast_requests.warm_up(); "
        "mirror_look_up.warm_up(); mirror_writer.warm_up(); hops.warm_up(); chunk_frame.warm_up(); "
        "fast_intake.warm_up()",
    ),
    WarmUpPart("modules", _IMPORT_SERVICES),
)


def warm_up() -> Iterator[str]:
    """Compile all parts at once; gives the name of each when it is done. Raises TemporaryFailure when one fails."""
    writing = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with ExitStack() as stack:
        running: list[tuple[str, subprocess.Popen[str]]] = []
        for part in PARTS:
            command = [sys.executable, "-P", "-c", part.statements]
            process = stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=writing))
            # If another part fails, this one is killed.
            stack.callback(process.kill)
            running.append((part.name, process))
        # The last part takes the least time.
        for name, process in reversed(running):
            _, errors = process.communicate()
            if process.returncode != 0:
                last = (errors.strip().splitlines() or [f"it ended with {process.returncode}"])[-1]
                raise TemporaryFailure(f"cannot compile {name}: {last}")
            yield name
