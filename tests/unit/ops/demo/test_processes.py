"""How long a demonstration waits for its processes, and what it says meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from paywarden.ops.demo.processes import DemoPart
from tests.services.product.processes import wait_until

# A process that heeds no SIGTERM, and its worker, whose id it prints.
_STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker = os.fork()
if worker:
    print(worker, flush=True)
time.sleep(3600)
"""


def test_a_frozen_worker_ends_with_its_process(tmp_path: Path) -> None:
    """Killed alone, `serve` left a worker behind that could not see that its parent was gone."""
    process = subprocess.Popen([sys.executable, "-c", _STUBBORN], stdout=subprocess.PIPE, text=True, process_group=0)
    assert process.stdout is not None
    worker = psutil.Process(int(process.stdout.readline()))
    os.kill(worker.pid, signal.SIGSTOP)
    part = DemoPart("serve", process, tmp_path / "log")
    part.ask_to_stop()
    part.wait(0.1)
    assert part.has_ended()
    wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, "the worker has ended")
