"""Ctrl-C while a command starts: it ends at once, with the status that shells expect, and prints no traceback.

Moments are counted in imported modules, which Python tells one by one (`-X importtime`), and not in seconds: a busy
machine interrupts at the same moments.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = {
    "serve": ["serve"],
    "stream": ["stream"],
    "companion": ["companion"],
    "console": ["console", "--port", "0"],
    "demo": ["demo", "--seconds", "1"],
}
ENTRY, COMMAND_LINE = "paywarden.ops.entry", "paywarden.ops.cli"
# The command line's own import takes some 580 modules, and each of these commands imports 250 or more besides.
MODULES_MAX = 800
# The pipe and its reader hold this number of lines: the command may be as far ahead when the signal comes.
AHEAD_MAX = 200
MOMENTS = 3


def interrupted(command: list[str], modules: int, folder: Path) -> tuple[int, list[str], bool]:
    """Interrupt a command when it has imported `modules` modules, the entry among them.

    Returns its exit status, what else it printed on stderr, and whether the command line may have been there by then.
    """
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "paywarden", *command],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A test that gets no processor for a while must hold the command up, not find it far ahead.
        pipesize=resource.getpagesize(),
        # A shell gives Ctrl-C to the whole group.
        start_new_session=True,
    )
    assert process.stderr is not None
    printed, seen, after_entry, has_command_line = [], 0, False, False
    with process:
        for line in process.stderr:
            if not line.startswith("import time:"):
                printed.append(line)
                continue
            name = line.rpartition("|")[2].strip()
            after_entry = after_entry or name == ENTRY
            seen += after_entry
            if seen <= modules + AHEAD_MAX:
                has_command_line = has_command_line or name == COMMAND_LINE
            if seen == modules:
                os.killpg(process.pid, signal.SIGINT)
    return process.returncode, printed, has_command_line


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_while_a_command_starts_prints_no_traceback(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    # Early ones, in which no handler of the command's own can be there, and one anywhere.
    for modules in [2, *(rng.randrange(3, 500) for _ in range(MOMENTS - 1)), rng.randrange(500, MODULES_MAX)]:
        status, printed, has_command_line = interrupted(COMMANDS[name], modules, tmp_path)
        assert not [line for line in printed if "Traceback" in line], (modules, printed)
        assert len([line for line in printed if " INFO " not in line]) <= 1, (modules, printed)
        # Later a service ends in order, or says what kept it from starting.
        assert status == 130 or has_command_line, (modules, status, printed)


def test_ctrl_c_that_a_shell_has_turned_off_stays_off(tmp_path: Path) -> None:
    """As for `paywarden … &` in a script: the terminal's Ctrl-C is not meant for it."""
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); from paywarden.ops.entry import main; "
    told = "import atexit; atexit.register(lambda: print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)); "
    done = subprocess.run(
        [sys.executable, "-c", program + told + "sys.argv[1:] = ['--version']; main()"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "True"
