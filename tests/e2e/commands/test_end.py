"""The very end of a command: Python itself is not torn down while threads of Kafka's client live."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

# Objects that Python tears down at its end print this. Threads are joined and atexit functions run before.
_PROGRAM = """\
import atexit, sys, threading, time

class Left:
    def __del__(self):
        print("torn down", flush=True)

left = Left()
from paywarden.ops.entry import main
{imports}
# As modules do that the command line imports.
threading.Thread(target=lambda: (time.sleep(0.2), atexit.register(print, "tidied"), print("joined"))).start()
sys.argv = ["paywarden", {words}]
main()
"""


@pytest.mark.parametrize(("words", "status"), [('"--version"', 0), ('"no-such-command"', 2)])
@pytest.mark.parametrize(("imports", "ends"), [("import confluent_kafka", []), ("", ["torn down"])])
def test_a_command_with_kafkas_client_ends_before_python_is_torn_down(
    tmp_path: Path, words: str, status: int, imports: str, ends: list[str]
) -> None:
    """A thread of the client handed over an answer meanwhile: a companion that had ended in order crashed."""
    program = _PROGRAM.format(imports=imports, words=words)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    lines = [line for line in done.stdout.splitlines() if not line.startswith("paywarden, version")]
    assert (done.returncode, lines) == (status, ["joined", "tidied", *ends]), done.stderr


def test_a_process_that_crashes_leaves_no_core_dump(tmp_path: Path) -> None:
    """It would hold cards, secrets and keys. The hard limit stays, for who looks for a crash."""
    program = (
        "import atexit, resource, sys; from paywarden.ops.entry import main; sys.argv = ['paywarden', '--version']; "
        "atexit.register(lambda: print(resource.getrlimit(resource.RLIMIT_CORE))); main()"
    )
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    allowed = ["prlimit", f"--core={hard if hard >= 0 else 'unlimited'}", sys.executable, "-c", program]
    done = subprocess.run(allowed, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert done.stdout.splitlines()[-1] == str((0, hard))
