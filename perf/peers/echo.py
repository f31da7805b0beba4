"""A bare HTTP server on a uvloop protocol that answers every request with the same bytes.

Its cost is that of the kernel, the event loop and Python's part of a front, without any work. The answer is as long as
one of ours.

    python -m perf.peers.echo          prints its address, serves until SIGTERM
"""

from __future__ import annotations

import asyncio
from typing import cast

import uvloop

BODY_BYTES = 150
_ANSWER = (
    b"HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Type: application/x-protobuf\r\n"
    b"Content-Length: %d\r\n\r\n" % BODY_BYTES
) + b"\0" * BODY_BYTES


class Echo(asyncio.Protocol):
    """Counts the requests that it reads by their lengths, and writes as many answers."""

    def __init__(self) -> None:
        self._rest = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        position = count = 0
        while (end := data.find(b"\r\n\r\n", position)) >= 0:
            at = data.find(b"Content-Length: ", position, end) + 16
            after = end + 4 + int(data[at : data.find(b"\r", at)])
            if after > len(data):
                break
            position, count = after, count + 1
        self._rest = data[position:]
        if count:
            self._transport.write(_ANSWER * count)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
