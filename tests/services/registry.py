"""A real schema registry for tests: Apicurio, in memory, which speaks Confluent's API."""

from __future__ import annotations

import http.client
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.services.fetch import registry_dir
from tests.services.java import JavaProcess, StartFailed, free_port

_START_ATTEMPTS = 3
_API = "/apis/ccompat/v7"
_JVM = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true")


class RegistryServer:
    """One registry on 127.0.0.1; it forgets everything when it stops. A context manager.

    Its subjects have no compatibility rule until a test sets one (Confluent's own starts with BACKWARD).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: JavaProcess | None = None
        self._port = 0
        self._starts = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where Confluent's API begins."""
        assert self._port, "the registry has not been started"
        return f"http://127.0.0.1:{self._port}{_API}"

    def start(self) -> None:
        """Starts it on a free port; returns when it answers."""
        for attempt in range(1, _START_ATTEMPTS + 1):
            self._port = free_port()
            try:
                self._run()
            except StartFailed as error:
                if attempt == _START_ATTEMPTS or "already in use" not in str(error):
                    raise
            else:
                return

    def stop(self) -> None:
        """Stops it. Safe to call when it is down."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """SIGKILL, as in a crash."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def restart(self) -> None:
        """Starts it again on the same port, empty."""
        self.stop()
        self._run()

    def _run(self) -> None:
        self._starts += 1
        home = registry_dir()
        jar = next(home.glob("*-runner.jar"))
        arguments = [
            *_JVM,
            "-Dquarkus.http.host=127.0.0.1",
            f"-Dquarkus.http.port={self._port}",
            '-Dquarkus.log.category."io.quarkus".level=INFO',
            "-jar",
            str(jar),
        ]
        log = self._folder / f"registry-{self._starts}.log"
        self._folder.mkdir(parents=True, exist_ok=True)
        process = JavaProcess(arguments, log=log, cwd=self._folder)
        self._process = process
        # Only this process's own word that it listens: another one may answer on a port that was taken.
        process.wait_until(
            lambda: b"Listening on:" in log.read_bytes() and _answers(self._port),
            what=f"the schema registry on {self.url}",
        )


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        connection.request("GET", f"{_API}/subjects")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()
