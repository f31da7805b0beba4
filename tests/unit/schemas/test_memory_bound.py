"""A process that runs code of others gets so much memory and no more, and nobody else pays for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from paywarden.schemas.memory_bound import free_memory
from tests.patience import PATIENCE_S

# The bound counts from what the process has, however much that is.
_PROGRAM = """
from paywarden.schemas.memory_bound import bound_memory
had = bytearray(2**27)
bound_memory(2**26)
print(open("/proc/self/oom_score_adj").read().strip())
few = bytearray(2**24)
try:
    bytearray(2**27)
except MemoryError:
    print("refused")
import subprocess, sys
child = "try:\\n bytearray(2**29)\\nexcept MemoryError:\\n print('refused to a child')"
subprocess.run([sys.executable, "-S", "-c", child], check=True)
"""


def test_what_is_beyond_the_bound_is_refused_to_the_process_and_its_children() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert done.stdout.splitlines() == ["1000", "refused", "refused to a child"]


def test_free_memory_is_the_rest_of_a_containers_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paywarden.schemas.memory_bound._CONTAINER", tmp_path)
    machine = free_memory()
    assert machine is not None
    for name, text in (
        ("memory.max", "5000"),
        ("memory.current", "3000"),
        ("memory.stat", "anon 7\ninactive_file 40\n"),
    ):
        (tmp_path / name).write_text(text, encoding="ascii")
    assert free_memory() == 2_040
    (tmp_path / "memory.max").write_text("max", encoding="ascii")
    assert (free_memory() or 0) > 2_040
