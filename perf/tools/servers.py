"""Starts the measured server processes on a core of their own, waits until they are ready, and stops them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from urllib.parse import urlsplit

import psutil

_ROOT = Path(__file__).resolve().parents[2]
_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 15.0


def server_core() -> int:
    """Returns the core of the servers: the last one."""
    return max(os.sched_getaffinity(0) if _pinned is None else {_pinned[1]})


def pin_load() -> None:
    """Pin this process, the load, to a core without servers. With a single core they share it."""
    global _pinned
    if _pinned is None:
        cores = sorted(os.sched_getaffinity(0))
        _pinned = cores[0], cores[-1]
        os.sched_setaffinity(0, {cores[0]})


_pinned: tuple[int, int] | None = None


@dataclass(frozen=True)
class Server:
    """A running server: its addresses by scheme, and its process."""

    addresses: dict[str, str]
    process: subprocess.Popen[str]

    @property
    def http(self) -> str:
        """Returns the address of the HTTP front."""
        return self.addresses["http"]

    @property
    def grpc(self) -> str | None:
        """Returns the address of the gRPC front, if there is one."""
        return self.addresses.get("grpc")

    def cpu_seconds(self) -> float:
        """Returns the CPU time that the process and its children have used, in seconds."""
        parent = psutil.Process(self.process.pid)
        times = [each.cpu_times() for each in (parent, *parent.children(recursive=True))]
        return float(sum(each.user + each.system for each in times))

    def core_wait_seconds(self) -> float:
        """Returns how long the workers' threads have been ready to run without a core; 0 if the system does not say."""
        return sum(map(core_wait_seconds, self.worker_pids()))

    def worker_pids(self) -> list[int]:
        """Returns the processes it has forked that listen at its address, else itself."""
        address = self.addresses.get("http") or self.addresses["grpc"]
        port = urlsplit(address if "//" in address else f"//{address}").port
        children = psutil.Process(self.process.pid).children()
        workers = [child.pid for child in children if port in {c.laddr.port for c in child.net_connections("tcp")}]
        return workers or [self.process.pid]


def core_wait_seconds(pid: int) -> float:
    """Returns how long a process's threads have been ready to run without a core; 0 if the system does not say."""
    waited_ns = 0
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            told = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text(encoding="ascii")
            waited_ns += int(told.split()[1])
    return waited_ns / 1e9


@contextmanager
def running(
    module: str,
    *arguments: str,
    ready_path: str = "",
    environment: dict[str, str] | None = None,
    core: int | None = None,
) -> Iterator[Server]:
    """Run `python -m module …` on the servers' core, or another. It prints each of its addresses on a line.

    Waits until `ready_path` answers 200, if one is given. Raises RuntimeError when it does not come up.
    """
    with _started(module, arguments, environment or {}, server_core() if core is None else core) as process:
        server = Server(_addresses(process), process)
        if ready_path:
            wait_until_ready(server, ready_path)
        yield server


@contextmanager
def serving(config: Path, *, environment: dict[str, str] | None = None) -> Iterator[Server]:
    """Run `paywarden serve` until it is ready."""
    with running(
        "paywarden", "--config", str(config), "serve", ready_path="/readyz", environment=environment
    ) as server:
        yield server


def wait_until_ready(server: Server, path: str) -> None:
    """Wait until `path` answers 200. Raises RuntimeError when the server ends or takes too long."""
    until = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < until:
        if server.process.poll() is not None:
            raise RuntimeError(f"a server ended with {server.process.returncode}: its last words are above")
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(server.http + path, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.005)
    raise RuntimeError("a server does not get ready")


def metrics_text(server: Server) -> str:
    """Returns the text of /metrics."""
    with urllib.request.urlopen(f"{server.http}/metrics", timeout=5) as answer:
        text: str = answer.read().decode()
    return text


@contextmanager
def _started(
    module: str, arguments: Sequence[str], environment: dict[str, str], core: int
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=_ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _addresses(process: subprocess.Popen[str]) -> dict[str, str]:
    """Returns the addresses printed up to a moment after the first line, by scheme."""
    addresses: dict[str, str] = {}
    has_first = Event()

    def read() -> None:
        assert process.stdout is not None
        with suppress(ValueError):
            for line in process.stdout:
                addresses[line.partition(":")[0]] = line.strip()
                has_first.set()

    Thread(target=read, daemon=True).start()
    until = time.monotonic() + _START_TIMEOUT_S
    while not has_first.wait(0.1):
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"a server does not start (exit status {process.poll()})")
    time.sleep(0.01)
    return addresses
