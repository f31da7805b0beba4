"""One broker, one registry and one template of processes (template.py) for all processes of a run.

pytest's workers ask the process that leads the run (xdist's controller, or pytest itself) through a socket in the run's
folder. That process starts each service when the first worker asks, and stops them at its end.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, TypeVar

from tests.services.fetch import ServiceMissing
from tests.services.made_once import VARIABLE
from tests.services.product.template import TemplateServer
from tests.services.servers.java import JavaService, StartFailed
from tests.services.servers.kafka import KafkaServer
from tests.services.servers.registry import RegistryServer

Service = TypeVar("Service", bound=JavaService)

_SOCKET = "services"
_KINDS: dict[str, type[JavaService]] = {kind.__name__: kind for kind in (KafkaServer, RegistryServer)}
_STOP, _TEMPLATE, _WORKERS = "", "template", "workers"
_log = logging.getLogger(__name__)


class SharedServices:
    """Starts services on demand, in a thread of the process that leads the run. `folder` is the run's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listener = Listener(str(folder / _SOCKET), "AF_UNIX", backlog=16)
        self._started: dict[str, JavaService] = {}
        self._template: TemplateServer | None = None
        self._thread = threading.Thread(target=self._serve, name="shared-services", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End every service that was started. Their files are thrown away, so they need not end in order."""
        with Client(str(self._folder / _SOCKET), "AF_UNIX") as connection:
            connection.send(_STOP)
        self._thread.join()
        self._listener.close()
        if self._template is not None:
            self._template.stop()
        for service in self._started.values():
            service.kill()

    def template(self, paths: Sequence[str] = ()) -> TemplateServer:
        """Returns the run's template. The first call starts it; with `paths` of tests, one for workers besides."""
        if self._template is None:
            workers = self._folder / _WORKERS if paths else None
            self._template = TemplateServer(self._folder / _TEMPLATE, workers, paths)
        return self._template

    def _serve(self) -> None:
        # One caller after the other: the second waits until the first one's service has started.
        while True:
            with self._listener.accept() as connection:
                try:
                    name = connection.recv()
                    if name == _STOP:
                        return
                    self._answer(connection, name)
                except (EOFError, OSError):
                    # The worker has ended meanwhile.
                    _log.warning("a worker left before it had its service", exc_info=True)

    def _answer(self, connection: Connection, name: str) -> None:
        if name == _TEMPLATE:
            connection.send(self.template().address)
            return
        service = self._started.get(name)
        if service is None:
            service = _KINDS[name](self._folder / name)
            try:
                service.start()
            except (ServiceMissing, StartFailed) as error:
                connection.send(str(error))
                return
            self._started[name] = service
        connection.send((service.folder, service.port))


def shared(kind: type[Service]) -> Service:
    """Returns the run's service of this kind, as its clients see it: only the leading process can stop it.

    Raises ServiceMissing if the service cannot be had.
    """
    answer = _asked(kind.__name__)
    if isinstance(answer, str):
        raise ServiceMissing(answer)
    return kind.of_another_process(*answer)


def template_address() -> Path:
    """Returns the address of the run's template. The first call starts it."""
    address: Path = _asked(_TEMPLATE)
    return address


def _asked(name: str) -> Any:
    with Client(str(Path(os.environ[VARIABLE]) / _SOCKET), "AF_UNIX") as connection:
        connection.send(name)
        return connection.recv()
