"""A running `paywarden serve` with its configuration, without Kafka."""

from __future__ import annotations

import time
import urllib.parse
from pathlib import Path
from typing import Self

import psutil

from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.scoring.state.outbox import OutboxSettings
from tests.services.product.processes import PaywardenProcess, wait_until
from tests.worlds.small import small_world

# The current time, because the endpoint refuses old payments.
PAYMENT = ScoreRequest(
    payment_id="p",
    event_time_ms=time.time_ns() // 1_000_000,
    card_id="c",
    merchant_id="m",
    amount_minor=1,
    currency="EUR",
).SerializeToString()

PATIENT = "[admission]\ndeadline_ms = 60000\nwait_ms_max = 50000\n"
"""Settings of a server that refuses no call for being late, however slow the machine is."""


class Server:
    """A running `serve` with its configuration. Leaving the `with` block ends it."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        bundle: Path | None = None,
        more: str = "",
        serve: str = "",
        answered_max: int = 1000,
    ) -> None:
        """`more` is appended to the configuration; it begins with further settings of [http]. `serve`: of [serve]."""
        self.folder = folder
        self.mirror = MirrorSettings(path=str(folder / "mirror"), size_mb=16)
        self.outbox = OutboxSettings(directory=str(folder / "outbox"))
        self.config = folder / "paywarden.toml"
        self.config.write_text(
            f'[serve]\nbundle = "{bundle or small_world.trained_bundle()}"\nmetrics = "{folder / "metrics"}"\n'
            f'runtime = "{folder / "serve"}"\n{serve}'
            f'[mirror]\npath = "{self.mirror.path}"\nsize_mb = {self.mirror.size_mb}\n'
            f'[outbox]\ndirectory = "{self.outbox.directory}"\n'
            f'[answered]\npath = "{folder / "answered"}"\npayments_max = {answered_max}\n'
            f"[grpc]\nport = 0\n[http]\nport = {port}\n{more}",
            encoding="utf-8",
        )
        self.workers: list[psutil.Process] = []

    def start(self, *arguments: str) -> PaywardenProcess:
        self.parent = PaywardenProcess(self.folder, self.config, "serve", *arguments)
        self.target = self.parent.first_line()
        return self.parent

    def listening(self, count: int = 1) -> list[psutil.Process]:
        """Returns the workers, once `count` of them listen at the address."""
        parent, port = psutil.Process(self.parent.pid), urllib.parse.urlsplit(self.target).port

        def found() -> bool:
            # A worker opens its port for gRPC first.
            self.workers = [child for child in parent.children() if port in _ports_of(child)]
            return len(self.workers) == count

        wait_until(found, f"{count} workers listen")
        return self.workers

    def log(self) -> str:
        return self.parent.log.read_text(encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "parent") and self.parent.process.poll() is None:
            self.parent.stop()


def _ports_of(process: psutil.Process) -> set[int]:
    """Returns the TCP ports of a process; none of one that has ended meanwhile."""
    try:
        return {connection.laddr.port for connection in process.net_connections("tcp")}
    except psutil.NoSuchProcess:
        return set()
