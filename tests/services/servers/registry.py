"""A real schema registry for tests: Apicurio, in memory, which speaks Confluent's API."""

from __future__ import annotations

import http.client

from tests.services.fetch import registry_dir
from tests.services.ports import free_port
from tests.services.servers.java import JavaProcess, JavaService

_API = "/apis/ccompat/v7"
_JVM = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true")


class RegistryServer(JavaService):
    """One registry on 127.0.0.1. It forgets everything when it stops. A context manager.

    Its subjects have no compatibility rule until a test sets one (Confluent's own starts with BACKWARD).
    """

    @property
    def url(self) -> str:
        """The URL at which Confluent's API begins."""
        assert self._port, "the registry has not been started"
        return f"http://127.0.0.1:{self._port}{_API}"

    def _prepare(self) -> None:
        self._port = free_port()

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
        # Believe only this process's own log line: another registry may answer on a port that was taken.
        process.wait_until(
            lambda: b"Listening on:" in log.read_bytes() and _answers(self._port),
            what=f"the schema registry on {self.url}",
        )


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", f"{_API}/subjects")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()
