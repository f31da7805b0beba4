"""A real console, and a client that holds 260 connections to it and comes again whenever one ends."""

from __future__ import annotations

from contextlib import closing, suppress
from pathlib import Path

import httpx2
import pytest

from tests.patience import PATIENCE_S
from tests.services.hosts.flood import flooded
from tests.services.product.console import csrf_of
from tests.services.product.processes import PaywardenProcess

_CONNECTIONS = 260
# A connection of the flood's own address may end before its request is read, and a browser then tries again.
_TRIES = 10


class _Analyst:
    """A person at a browser with this address."""

    def __init__(self, console: str, address: str) -> None:
        transport = httpx2.HTTPTransport(local_address=address, retries=0)
        self._client = httpx2.Client(base_url=console, transport=transport, timeout=PATIENCE_S)

    def close(self) -> None:
        self._client.close()

    def get(self, path: str) -> httpx2.Response:
        return self._again("GET", path)

    def log_in(self) -> None:
        form = {"csrf": csrf_of(self.get("/login").text), "name": "demo-analyst"}
        assert self._again("POST", "/login", form).status_code == 303

    def _again(self, method: str, path: str, form: dict[str, str] | None = None) -> httpx2.Response:
        for _ in range(_TRIES):
            with suppress(httpx2.TransportError):
                return self._client.request(method, path, data=form)
        raise AssertionError(f"{method} {path}: {_TRIES} connections ended without an answer")


@pytest.mark.parametrize("address", ["127.0.0.2", "127.0.0.1"])
def test_a_flood_of_connections_keeps_no_analyst_out(tmp_path: Path, address: str) -> None:
    """Everybody got 503: two hundred connections were as many as there may be, and the log had a line for each."""
    config = tmp_path / "paywarden.toml"
    config.write_text(
        f'[kafka]\nbootstrap = "127.0.0.1:1"\n[console]\nport = 0\nfolder = "{tmp_path / "console"}"\n'
        f'[decision_index]\npath = "{tmp_path / "index.duckdb"}"\n',
        encoding="utf-8",
    )
    console = PaywardenProcess(tmp_path, config, "console")
    try:
        url = console.first_line()
        with flooded(url, "/login", _CONNECTIONS) as flood, closing(_Analyst(url, address)) as analyst:
            while flood.made < 2 * _CONNECTIONS:
                assert analyst.get("/login").status_code == 200
            analyst.log_in()
            for _ in range(20):
                assert analyst.get("/inbox").status_code == 200
        lines = [line for line in console.log.read_text().splitlines() if "connections without a login" in line]
        assert 1 <= len(lines) <= 1 + PATIENCE_S / 60, "a line a minute"
    finally:
        console.stop()
