"""The supervisor with workers of a few lines: hangs, crash loops, failed forks. One process of Python for all of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.services.product.processes import run_program

# Workers tell what they do in lines on stdout. If what a mode waits for does not come in TURNS_MAX turns of worker 1,
# which is a minute and more, the run ends with what there is: the test then says what is missing.
RUN = """
import ctypes, errno, json, logging, os, signal, sys, time
from types import SimpleNamespace
from paywarden.schemas.errors import PaywardenError
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.server import hang_ups
from paywarden.scoring.server.places import Places
from paywarden.scoring.server.supervisor import HostParts, Supervisor, SupervisorMetrics

logging.basicConfig(stream=sys.stderr, format="%(message)s")
TURNS_MAX = 1200
mode = sys.argv[1]
metrics = SupervisorMetrics.declare(MetricsRegistry())
failed_forks = [errno.EAGAIN, errno.EAGAIN, errno.ENOMEM] if mode == "fork" else []
pids = open(sys.argv[2], "a")


def fork():
    if failed_forks:
        raise OSError(failed_forks.pop(0), "no process")
    return os.fork()


def starts(number):
    return [int(line.split()[1]) for line in open(sys.argv[2]) if line.startswith(f"{number} ")]


def work(worker, beat):
    number = worker.number
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    with open(sys.argv[2], "a") as file:
        file.write(f"{number} {os.getpid()}\\n")
    beat()
    if number == 0 and mode == "crash":
        return 1
    turns = 0
    while True:
        turns += 1
        hangs = number == 0 and mode in ("native", "stop") and len(starts(0)) == 1
        if hangs and mode == "native":
            while True:
                # PyDLL keeps the interpreter's lock, as a loop in native code would, and leaves the core to others.
                ctypes.PyDLL(None).sleep(600)
        if hangs:
            os.kill(os.getpid(), signal.SIGSTOP)
        beat()
        time.sleep(0.05)
        if number == 1 and mode == "crash" and len(starts(0)) == 7 and len(starts(1)) == 1:
            os._exit(70)
        enough = {"crash": len(starts(1)) == 2, "fork": len(starts(0)) == 1}.get(mode, len(starts(0)) == 2)
        if number == 1 and (enough or turns == TURNS_MAX):
            os.kill(os.getppid(), signal.SIGTERM)


serving = SimpleNamespace(orders=None, covers=lambda _: True)
parts = HostParts(work, Places(2, {}))
supervisor = Supervisor(2, parts, stop_s=30, hang_timeout_s=4, metrics=metrics, serving=serving, fork=fork)
# A reload while the process starts, as `serve` holds it.
hang_ups.hold()
os.kill(os.getpid(), signal.SIGHUP)
heeded, supervisor._hang_up = [], lambda *_: heeded.append(1)
supervisor.heed_signals()
assert heeded == [1] and not hang_ups.held()
try:
    supervisor.run()
except PaywardenError as error:
    # A worker that hangs and was not replaced does not stop either.
    print(error, file=sys.stderr)
print(json.dumps({
    "starts": [len(starts(0)), len(starts(1))],
    "restarts": {reason: counter.value for reason, counter in metrics.restarts.items() if counter.value},
    "fork_failures": metrics.fork_failures.value,
}))
"""


def supervised(tmp_path: Any, mode: str) -> tuple[dict[str, Any], list[str]]:
    done = run_program(RUN, mode, str(tmp_path / "starts"))
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result, done.stderr.splitlines()


@pytest.mark.parametrize("mode", ["native", "stop"])
def test_a_worker_that_hangs_is_killed_and_replaced(tmp_path: Any, mode: str) -> None:
    """A native call that does not return and a stopped process look alike: the heart does not beat."""
    result, log = supervised(tmp_path, mode)
    assert result == {"starts": [2, 1], "restarts": {"hung": 1}, "fork_failures": 0}
    assert log == [
        "worker 0 has not turned for 4 s: killing it",
        "worker 0 ended with -9; starting it again in 0.1 s",
    ]


def test_a_worker_in_a_crash_loop_does_not_delay_the_others(tmp_path: Any) -> None:
    """Worker 1 dies while worker 0 has to wait for 6.4 s, and is back before."""
    result, log = supervised(tmp_path, "crash")
    assert result == {"starts": [7, 2], "restarts": {"failed": 7, "bug": 1}, "fork_failures": 0}
    pauses_of_0 = [float(line.split()[-2]) for line in log if line.startswith("worker 0")]
    assert pauses_of_0 == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4]
    assert [line for line in log if line.startswith("worker 1")] == [
        "worker 1 ended with 70; starting it again in 0.1 s"
    ]


def test_a_fork_that_fails_is_tried_again(tmp_path: Any) -> None:
    result, log = supervised(tmp_path, "fork")
    assert result == {"starts": [1, 1], "restarts": {}, "fork_failures": 3}
    assert log == [
        "worker 0 cannot be forked, which is tried again: no process",
        "worker 1 cannot be forked, which is tried again: no process",
    ]
