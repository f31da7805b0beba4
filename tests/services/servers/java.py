"""A Java process that the tests start, watch and stop. A failed start quotes the file with its output."""

from __future__ import annotations

import atexit
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.patience import PATIENCE_S
from tests.services.fetch import tool

_STOP_TIMEOUT_S = 60.0
# Two runs may choose the same port at the same moment. Three times in a row is another fault.
_START_ATTEMPTS = 3
_POLL_S = 0.05
_LOG_TAIL_LINES = 30


class StartFailed(RuntimeError):
    """A service did not come up. The message ends with the end of its log."""


class JavaProcess:
    """One run of a Java program, which ends with this Python process at the latest.

    At a normal exit or an exception, `atexit` stops the program. If this process is killed, a shell that waits
    on a pipe from it sees the pipe close and kills the program.
    """

    def __init__(self, arguments: Sequence[str], *, log: Path, cwd: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [tool("java"), *arguments],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for pytest alone; the fixtures then stop the service in order.
                start_new_session=True,
            )
        self._guard = guard(self._process.pid)
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        """The pid of the Java process itself."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.poll() is None

    def wait_until(self, ready: Callable[[], bool], *, what: str) -> None:
        """Wait until `ready()` is true. If the process ends or never gets ready, stop it and raise StartFailed."""
        deadline = time.monotonic() + PATIENCE_S
        while not ready():
            if not self.running:
                self.stop()
                raise StartFailed(f"{what} ended with status {self._process.returncode}\n{self.log_tail()}")
            if time.monotonic() > deadline:
                self.stop()
                raise StartFailed(f"{what} did not answer in {PATIENCE_S:.0f} s\n{self.log_tail()}")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Ask the process to end (SIGTERM), and kill it if it does not. Safe to call twice."""
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._ended()

    def kill(self) -> None:
        """Send SIGKILL, as a crash would end it."""
        self._process.kill()
        self._ended()

    def log_tail(self) -> str:
        """Returns the last lines of the output."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(["...", *lines[-_LOG_TAIL_LINES:], f"(whole log: {self.log})"])

    def _ended(self) -> None:
        # A guard that stays would one day kill the process that has this pid by then.
        dismiss(self._guard)
        self._process.wait()
        atexit.unregister(self.stop)


class JavaService(ABC):
    """A server for the tests on free ports of 127.0.0.1, with its files under a folder.

    A context manager, which starts it and kills it in the end. Only one thread at a time may use it. Any process may
    connect as a client.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: JavaProcess | None = None
        self._port = 0
        self._starts = 0

    @classmethod
    def of_another_process(cls, folder: Path, port: int) -> Self:
        """Returns a server that runs already, and that another process stops."""
        server = cls(folder)
        server._port = port
        return server

    @property
    def folder(self) -> Path:
        """Where the server has its files."""
        return self._folder

    @property
    def port(self) -> int:
        """The port at which clients find the server; 0 before the first start."""
        return self._port

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Nobody needs its files any more. A broker takes seconds to end in order.
        self.kill()

    def start(self) -> None:
        """Start with fresh files on free ports. Returns when the server answers."""
        for attempt in range(1, _START_ATTEMPTS + 1):
            self._prepare()
            try:
                self._run()
            except StartFailed as error:
                if attempt == _START_ATTEMPTS or "already in use" not in str(error):
                    raise
            else:
                return

    def stop(self) -> None:
        """Shut down in order. Safe to call if the server is down."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """Send SIGKILL, as a crash would end it. The files stay."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def restart(self) -> None:
        """Start again on the same ports with the same files. Stops the server first if it runs."""
        self.stop()
        self._run()

    @abstractmethod
    def _prepare(self) -> None:
        """Choose free ports and make fresh files."""

    @abstractmethod
    def _run(self) -> None:
        """Start the process and wait until it answers. Raises StartFailed."""


def guard(pid: int) -> subprocess.Popen[bytes]:
    """Start a shell that kills a process as soon as this process has ended, in any way."""
    shell = shutil.which("sh") or "/bin/sh"
    script = f"read -r _; kill -{signal.SIGKILL.value} {pid}"
    return subprocess.Popen(
        [shell, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def dismiss(guard: subprocess.Popen[bytes]) -> None:
    """End a guard whose process has ended."""
    if guard.poll() is None:
        guard.kill()
    guard.wait()
    if guard.stdin is not None:
        guard.stdin.close()
