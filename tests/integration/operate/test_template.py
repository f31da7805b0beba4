"""The forks that stand for Paywarden's processes in the tests are processes like any other."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.checkout import CHECKOUT
from tests.patience import PATIENCE_S
from tests.services.product import template
from tests.services.product.processes import PaywardenProcess, run_paywarden, run_program
from tests.services.shared import template_address

STATE = """
import json, os, resource, sys, threading
print(json.dumps({
    "arguments": sys.argv[1:],
    "folder": os.getcwd(),
    "variable": os.environ.get("PAYWARDEN_TEST_OF_FORKS"),
    "files": resource.getrlimit(resource.RLIMIT_NOFILE),
    "open": len(os.listdir("/proc/self/fd")),
    "threads": threading.active_count(),
    "pid": os.getpid(),
}), flush=True)
sys.stdin.read()
sys.stderr.write("to stderr\\n")
os._exit(int(sys.argv[1]))
"""
# Ends at a signal alone.
WAITING = "import threading; print('waits', flush=True); threading.Event().wait()"

# Another process of the run, which starts one and waits.
CALLER = """
import os, sys
from pathlib import Path
from tests.services.product import template
template.find_with(lambda: Path(sys.argv[1]))
with open(os.devnull, "wb") as nowhere:
    given = {"cwd": Path.cwd(), "environment": dict(os.environ), "stdout": nowhere, "stderr": nowhere}
    print(template.start([], program=sys.argv[2], **given).pid, flush=True)
sys.stdin.read()
"""


def test_a_fork_has_the_callers_folder_variables_limits_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The template, too, is a process with variables and limits. It starts with the first command.
    other = PaywardenProcess.of_program(tmp_path, STATE, "0")
    assert json.loads(other.first_line())["variable"] is None
    assert other.process.wait(timeout=PATIENCE_S) == other.stop() == 0
    monkeypatch.setenv("PAYWARDEN_TEST_OF_FORKS", "set")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        process = PaywardenProcess.of_program(tmp_path, STATE, "7", "more")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    state = json.loads(process.first_line())
    assert state.pop("pid") == process.pid != os.getpid()
    assert state == {
        "arguments": ["7", "more"],
        "folder": str(Path.cwd()),
        "variable": "set",
        "files": [soft - 1, hard],
        # stdin, stdout, stderr, and the folder that it lists.
        "open": 4,
        "threads": 1,
    }
    assert process.process.wait(timeout=PATIENCE_S) == process.stop() == 7
    assert process.log.read_text(encoding="utf-8") == "to stderr\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_end_of_a_fork_by_a_signal_is_seen(tmp_path: Path, number: signal.Signals) -> None:
    process = PaywardenProcess.of_program(tmp_path, WAITING, "x")
    assert process.first_line() == "waits"
    assert process.process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.process.wait(timeout=0)
    process.process.send_signal(number)
    assert process.process.wait(timeout=PATIENCE_S) == -number
    assert process.process.poll() == -number
    process.kill()


def test_what_a_process_has_started_ends_with_it(tmp_path: Path) -> None:
    """The template goes on for the other processes of the run."""
    process = PaywardenProcess.of_program(tmp_path, WAITING, "x")
    assert process.first_line() == "waits"
    with subprocess.Popen(
        [sys.executable, "-c", CALLER, str(template_address()), WAITING],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as caller:
        assert caller.stdout is not None
        started = psutil.Process(int(caller.stdout.readline()))
        assert started.is_running()
        caller.kill()
    started.wait(PATIENCE_S)
    assert process.process.poll() is None
    process.kill()


def test_a_fork_of_a_test_does_not_hold_its_connection_to_the_template() -> None:
    """The template would go on with what a process has started as long as any fork of it lives."""
    run_program("pass")
    (connection,) = template._connected
    pid = os.fork()
    if pid == 0:
        os._exit(0 if not template._connected and connection._control.fileno() == -1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert template._connected == [connection]
    assert run_program("pass").returncode == 0


def test_a_command_gives_its_output_and_status_as_one_of_its_own_does() -> None:
    for arguments in (("--version",), ("nonsense",), ("--config", "/none.toml", "serve")):
        fork, own = run_paywarden(*arguments), run_paywarden(*arguments, afresh=True)
        assert (fork.returncode, fork.stdout, fork.stderr) == (own.returncode, own.stdout, own.stderr)


def test_variables_that_are_read_at_the_start_need_a_process_of_its_own() -> None:
    variables = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    assert template.is_enough(variables)
    assert template.is_enough(variables | {"PAYWARDEN_KAFKA_BOOTSTRAP": "elsewhere"})
    for name in ("PYTHONHASHSEED", "NUMBA_BOUNDSCHECK", "PYTHONPATH"):
        assert not template.is_enough(variables | {name: "1"})
