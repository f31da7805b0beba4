"""The line at the end of a run about tools that were missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S
from tests.services.missing_tools import GO, PROMTOOL, missing_line, pytest_terminal_summary
from tests.services.product.processes import ROOT

# Plugins that take seconds to import.
WITHOUT = [f"-pno:{name}" for name in ("cacheprovider", "schemathesis", "hypothesispytest", "anyio")]


def test_a_line_names_each_missing_tool_with_its_tests_and_where_to_get_it() -> None:
    skipped = [("a", f"Skipped: {GO.reason}"), ("b", GO.reason), ("b", GO.reason), ("c", PROMTOOL.reason)]
    assert missing_line(skipped) == (
        "skipped for a missing tool: Go 1.26 (2 tests; https://go.dev/dl, with `go` on PATH), "
        "promtool (1 test; apt-get install prometheus)"
    )


def test_a_test_skipped_for_another_reason_is_no_missing_tool() -> None:
    assert missing_line([("a", "Skipped: root may write everywhere"), ("b", "it needs care")]) == ""


def test_our_own_runs_say_it(pytestconfig: pytest.Config) -> None:
    hooks = pytestconfig.hook.pytest_terminal_summary.get_hookimpls()
    assert pytest_terminal_summary in [hook.function for hook in hooks]


@pytest.mark.parametrize("processes", ["0", "2"])
def test_a_run_ends_with_that_line_in_one_process_and_in_several(tmp_path: Path, processes: str) -> None:
    (tmp_path / "conftest.py").write_text(
        "from tests.services.missing_tools import pytest_terminal_summary\n", encoding="utf-8"
    )
    (tmp_path / "test_some.py").write_text(
        "import pytest\nfrom tests.services.missing_tools import GO\n\n"
        "@pytest.mark.skipif(True, reason=GO.reason)\ndef test_a(): ...\n\n"
        "def test_b(): pytest.skip(GO.reason)\n\ndef test_c(): ...\n",
        encoding="utf-8",
    )
    bytecode = {name: value for name, value in os.environ.items() if name == "PYTHONPYCACHEPREFIX"}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-ra", f"-n{processes}", *WITHOUT, str(tmp_path)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **bytecode},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    *_, line, passed = ran.stdout.splitlines()
    assert line.startswith("skipped for a missing tool: Go 1.26 (2 tests; ")
    assert "1 passed" in passed
