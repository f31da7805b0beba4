"""How long tests wait for what must come.

A test that passes waits no longer for a longer limit. A limit that fits a quiet machine fails on a busy one: six test
processes and their services share two cores, and a start that takes 3 seconds alone has taken 40. Every wait for what
must come takes this one limit. A test whose subject is time has numbers of its own.
"""

from __future__ import annotations

# Below pytest's limit of a test (`timeout` in pyproject.toml), so that the test itself says what did not come.
PATIENCE_S = 240.0
