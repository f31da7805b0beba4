"""The asyncio client after its event loop has stood still."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

from paywarden_client import AsyncClient, ClientSettings, Hooks, Payment
from tests.patience import PATIENCE_S

_CONNECT_TIMEOUT_MS = 50
_STALL_S = 0.2
_ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 42\r\n\r\n{"payment_id": "p-1", "action": "approve"}'


def _answer_once(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65_536)
        connection.sendall(_ANSWER)
        # Until the client ends.
        connection.recv(1)


def test_a_connection_that_was_made_while_the_loop_stood_still_counts_as_made() -> None:
    attempts: list[tuple[str, int]] = []

    async def call() -> bool:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        settings = ClientSettings(url, deadline_ms=20_000, connect_timeout_ms=_CONNECT_TIMEOUT_MS)
        hooks = Hooks(on_call=lambda _operation, outcome, _seconds, count: attempts.append((outcome, count)))
        async with AsyncClient(settings, hooks) as client:
            payment = Payment("p-1", time.time_ns() // 1_000_000, "card-1", "merchant-1", 100, "EUR")
            scored = asyncio.ensure_future(client.score(payment))
            # Some turns until the client waits for its connection.
            for _ in range(3):
                await asyncio.sleep(0)
            time.sleep(_STALL_S)
            decision = await scored
        return decision.stand_in

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=_answer_once, args=(listener,))
        server.start()
        assert asyncio.run(call()) is False
        server.join(PATIENCE_S)
    assert attempts == [("answered", 1)]
