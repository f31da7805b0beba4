"""The command line as a whole: what its start costs."""

from __future__ import annotations

import subprocess
import sys

_HEAVY = ("confluent_kafka", "faust", "google.protobuf", "jinja2", "lmdb", "numba", "numpy", "pyarrow", "scipy", "ssl")


def test_the_command_line_imports_no_heavy_package_by_itself() -> None:
    """Each command imports what it needs when it runs: numba alone takes a second, and `--help` needs none of it."""
    program = f"import sys, paywarden.ops.cli; print([name for name in {_HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
