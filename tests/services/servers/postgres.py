"""A throw-away PostgreSQL, reached by a socket in its own folder: no port, no user of the machine's own server."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.services.missing_tools import Tool
from tests.services.servers.java import dismiss, guard

POSTGRES = Tool("PostgreSQL", "apt-get install postgresql")
_START_TIMEOUT_S = "60"


def programs() -> Path | None:
    """Returns the folder of PostgreSQL's programs; None if it is not installed."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(folders, default=None)


class PostgresServer:
    """A running server. `address` is what a client connects to."""

    def __init__(self, folder: Path, bin_folder: Path) -> None:
        self._data, self._bin, self._folder = folder / "data", bin_folder, folder
        # PostgreSQL refuses to run as root.
        self._user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(folder, self._user, -1)
        options = ("-U", "paywarden", "-A", "trust", "--no-sync", "-E", "UTF8", "--no-locale")
        self._run("initdb", "-D", str(self._data), *options)
        self.start()

    @property
    def address(self) -> str:
        return f"postgresql://paywarden@/postgres?host={self._folder}"

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories='{self._folder}'"
        options += " -c fsync=off -c shared_buffers=32MB"
        log = str(self._folder / "log")
        self._run("pg_ctl", "-D", str(self._data), "-l", log, "-o", options, "-w", "-t", _START_TIMEOUT_S, "start")
        # A test process that is killed leaves no server: its other processes end with the first one.
        self._guard = guard(self._first_pid())

    def _first_pid(self) -> int:
        lines = (self._data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        return int(lines[0])

    def _processes(self) -> list[psutil.Process]:
        """Returns all of its processes. The first one starts the others."""
        postmaster = psutil.Process(self._first_pid())
        return [postmaster, *postmaster.children(recursive=True)]

    def freeze(self) -> None:
        """Stop all of its processes as they are: connections stay, and nobody answers."""
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def thaw(self) -> None:
        """Let them go on."""
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def kill(self) -> None:
        """Kill -9 all of its processes."""
        processes = self._processes()
        # The first of the processes first, or it would start others again.
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes)
        dismiss(self._guard)

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self._data), "-m", "immediate", "-w", "stop")
        dismiss(self._guard)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._bin / program), *arguments],
            user=self._user,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Starts a server, and removes it at the end."""
    found = programs()
    assert found is not None
    folder = Path(tempfile.mkdtemp(prefix="paywarden-pg-"))
    try:
        server = PostgresServer(folder, found)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
