"""A process ends within its limit, in any state of its main thread: real processes and their exit status."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.patience import PATIENCE_S
from tests.services.product.processes import ROOT

# A process that prints "up" inside the block and then runs the inserted code.
PROGRAM = """
import asyncio, logging, sys, threading, time
from paywarden.schemas.errors import StoreUnavailable
from paywarden.streams.health.process_end import ProcessEnd

logging.basicConfig(format="%(levelname)s %(message)s")
with ProcessEnd("stream") as end:
    end.timeout_s = 0.5
    print("up", flush=True)
    {act}
"""
SLEEP_ON = "time.sleep(60)"
NON_DAEMON_THREAD = "threading.Thread(target=time.sleep, args=(60,)).start()"


def started(act: str) -> subprocess.Popen[str]:
    """Starts a process and waits until it prints "up"."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(act=act)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Returns the exit status and the lines on stderr."""
    try:
        _, errors = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    return process.returncode, errors.splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_the_process_to_stop(number: signal.Signals) -> None:
    process = started("end.stop.wait()")
    process.send_signal(number)
    assert ended(process) == (0, [])


def test_a_process_that_does_not_stop_is_ended_with_one_line() -> None:
    process = started(SLEEP_ON)
    process.send_signal(signal.SIGTERM)
    wanted = "paywarden: the stream did not stop within 0.5 s and is ended; its work in flight is abandoned"
    assert ended(process) == (1, [wanted])


def test_a_main_thread_stuck_in_c_code_does_not_keep_the_process() -> None:
    """The main thread takes a mutex twice. No signal wakes it, so it runs no Python code."""
    lock = "lock(mutex); print('stuck', flush=True); lock(mutex)"
    act = f"import ctypes; lock = ctypes.CDLL(None).pthread_mutex_lock; mutex = (ctypes.c_char * 64)(); {lock}"
    process = started(act)
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 1


def test_an_error_is_one_line_and_exit_status_1() -> None:
    assert ended(started("raise StoreUnavailable('the store is gone')")) == (1, ["paywarden: the store is gone"])


def test_a_bug_is_logged_in_full_and_reported_in_one_last_line() -> None:
    status, lines = ended(started("raise ZeroDivisionError('oh\\nno')"))
    assert (status, lines[-1]) == (1, "paywarden: a bug ended the stream: ZeroDivisionError: oh")
    assert lines[0] == "ERROR a bug ended the stream"
    assert "Traceback (most recent call last):" in lines


def test_the_first_failure_is_reported_when_the_stop_hangs() -> None:
    act = f"end.begin(StoreUnavailable('first')); end.begin(StoreUnavailable('second')); {SLEEP_ON}"
    assert ended(started(act)) == (1, ["paywarden: first"])


def test_threads_that_delay_a_clean_exit_are_ended_silently() -> None:
    process = started(f"{NON_DAEMON_THREAD}; end.stop.wait()")
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (0, [])


def test_a_second_signal_ends_the_process_at_once() -> None:
    process = started("end.timeout_s = 60; end.stop.wait(); print('stopping', flush=True); time.sleep(60)")
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == "stopping\n"
    process.send_signal(signal.SIGINT)
    assert ended(process) == (-signal.SIGINT, [])


@pytest.mark.parametrize("act", [SLEEP_ON, "end.begin(ZeroDivisionError('the log waits'))"])
def test_the_end_does_not_wait_for_a_reader_of_stderr(act: str) -> None:
    process = started(f"import os; [os.write(2, b'x' * 4096) for _ in range(16)]; {act}")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=PATIENCE_S) == 1
    process.communicate()


def test_a_failure_that_takes_longer_to_log_than_to_tidy_up_is_told() -> None:
    """As on a busy machine: a traceback's lines are read from files."""
    handler = "logging.getLogger().handlers[0].emit = lambda _: time.sleep(4)"
    status, lines = ended(started(f"end.timeout_s = 60; {handler}; raise ZeroDivisionError('oh')"))
    assert (status, lines) == (1, ["paywarden: a bug ended the stream: ZeroDivisionError: oh"])
