"""A scoring host that does what a test says: answers, breaks, hangs, closes, or speaks no HTTP.

with ScriptedHost("break", "answer") as host:     the first request breaks, every other one is answered
    host.url
    host.requests                                 what arrived: path, headers, body, and the connection's number
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from tests.services.hosts.hostile_answers import HOSTILE, Hostile


@dataclass(frozen=True)
class ArrivedRequest:
    """A request as it arrived. `connection` counts the host's connections from 0."""

    path: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def payment(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


class ScriptedHost:
    """Serves until the block ends. Each request takes the next word of the script; the last word stays."""

    def __init__(self, *script: str | int, tls: ssl.SSLContext | None = None) -> None:
        """Words: `answer`, a status, `break`, `hang`, `half`, `say_close`, `then_close`, `chunked`, `to_end`, `old`,
        `continue`, `junk`, `endless`, `other` (about another payment), `twice` (answered, then refused, unasked),
        `large`, `flood` (answered, then bytes without end), and those of hostile_answers.py. After `say_close` and
        `old` the host leaves it to the caller to close.
        """
        self._script = list(script or ("answer",))
        self._tls = tls
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.requests: list[ArrivedRequest] = []
        self.connections = 0
        # Requests whose word has been played to its end.
        self.played = 0
        # Bytes of answers that the host could send before the caller left.
        self.sent_bytes = 0
        # Connections that were used again after the host had left a request on them without an answer.
        self.disturbed = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def url(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    def script(self, *words: str | int) -> None:
        """Go on with another script."""
        with self._lock:
            self._script = list(words)

    def refuse(self) -> None:
        """Accept no connection from now on, and break those that are there."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.refuse()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(connection)
                number, self.connections = self.connections, self.connections + 1
            threading.Thread(target=self._serve, args=(connection, number), daemon=True).start()

    def _serve(self, raw: socket.socket, number: int) -> None:
        try:
            connection = raw if self._tls is None else self._tls.wrap_socket(raw, server_side=True)
        except OSError:
            raw.close()
            return
        with connection, contextlib.suppress(OSError):
            received = b""
            while True:
                request, received = _read_request(connection, received, number)
                if request is None:
                    return
                with self._lock:
                    self.requests.append(request)
                    word = self._script[0] if len(self._script) == 1 else self._script.pop(0)
                if word == "hang":
                    # Until the caller closes.
                    self.disturbed += bool(connection.recv(1))
                    return
                if word == "flood":
                    _play(connection, "answer", request)
                    self._flood(connection)
                hostile = HOSTILE.get(str(word))
                serves_on = self._play(connection, hostile, request) if hostile else _play(connection, word, request)
                with self._lock:
                    self.played += 1
                if not serves_on:
                    return

    def _flood(self, connection: socket.socket) -> None:
        part = b" " * 65_536
        while True:
            connection.sendall(part)
            with self._lock:
                self.sent_bytes += len(part)

    def _play(self, connection: socket.socket, hostile: Hostile, request: ArrivedRequest) -> bool:
        for part in hostile.parts(request.payment["payment_id"]):
            connection.sendall(part)
            with self._lock:
                self.sent_bytes += len(part)
        if hostile.then == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return hostile.then == "serve"


def _read_request(connection: socket.socket, data: bytes, number: int) -> tuple[ArrivedRequest | None, bytes]:
    def more() -> bytes:
        received = connection.recv(65536)
        if not received:
            raise EOFError
        return received

    try:
        while b"\r\n\r\n" not in data:
            data += more()
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        while len(data) < length:
            data += more()
    except EOFError:
        return None, b""
    return ArrivedRequest(first.split(" ")[1], headers, data[:length], number), data[length:]


def _play(connection: socket.socket, word: str | int, request: ArrivedRequest) -> bool:
    """Do what the script says. Returns whether the connection serves on."""
    payment_id = "another" if word == "other" else request.payment["payment_id"]
    body = json.dumps(
        {
            "payment_id": payment_id,
            "decision_id": f"d-{payment_id}",
            "score": 0.25,
            "action": "approve",
            "reasons": [],
            "model_version": "m-1",
            "flags": [],
            "profile_age_ms": 7,
            "later": {"nobody": "knows"},
        }
    ).encode()
    length = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    if isinstance(word, int):
        body = b'{"error":{"code":"some_code","field":"some_field","message":"is wrong"}}'
        connection.sendall(b"HTTP/1.1 %d Some Words\r\nContent-Length: %d\r\n\r\n%b" % (word, len(body), body))
        return True
    chunks = b"%x;a=b\r\n%b\r\n%x\r\n%b\r\n0\r\nTrailer: x\r\n\r\n" % (10, body[:10], len(body) - 10, body[10:])
    answers = {
        "answer": b"HTTP/1.1 200 OK\r\n" + length + b"\r\n" + body,
        "break": b"",
        "half": b"HTTP/1.1 200 OK\r\n" + length + b"\r\n" + body[:20],
        "say_close": b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + length + b"\r\n" + body,
        "then_close": b"HTTP/1.1 200 OK\r\n" + length + b"\r\n" + body,
        "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks,
        "to_end": b"HTTP/1.1 200 OK\r\n\r\n" + body,
        "old": b"HTTP/1.0 200 OK\r\n" + length + b"\r\n" + body,
        "continue": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n" + length + b"\r\n" + body,
        "junk": b"+OK POP3 ready\r\n\r\n",
        "endless": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
        "other": b"HTTP/1.1 200 OK\r\n" + length + b"\r\n" + body,
    }
    if word == "large":
        body = body[:-1] + b', "filler": "%b"}' % (b"y" * 15_000)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        return True
    if word == "twice":
        # In two records of TLS, where there are any.
        connection.sendall(answers["answer"])
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        return True
    connection.sendall(answers[word])
    return word in ("answer", "chunked", "continue", "other", "say_close", "old")
