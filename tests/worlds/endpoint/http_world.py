"""Runs a real HTTP front in a thread, with a scorer that a test controls and a client of raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import uvloop
from google.protobuf.message import Message

from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.engine.batching.batcher import AdmissionSettings, MicroBatcher, Refusal, Scorer
from paywarden.scoring.http.http_front import HttpServer
from paywarden.scoring.http.http_settings import HttpSettings
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker_metrics import HttpMetrics
from paywarden.scoring.net.listeners import open_listener, reserve_port
from paywarden.scoring.net.tls import Tls
from paywarden.scoring.net.tokens import Tokens
from paywarden.scoring.requests.validation import RequestLimits
from tests.oracles.reading import ReadsFirst
from tests.oracles.step_decoder import CheckedPayments, StepDecoder
from tests.patience import PATIENCE_S
from tests.worlds.endpoint.payments import euro_intake

NOW_MS = 1_700_000_000_000
# Limits that no test reaches, however busy the machine is.
UNHURRIED = AdmissionSettings(deadline_ms=60_000, wait_ms_max=60_000)
# Timeouts that no test reaches. A test that needs one lowers it.
PATIENT = HttpSettings(port=0)
WAIT_SECONDS = PATIENCE_S


class FakeScorer(ReadsFirst):
    """Scores every payment 0.5, or raises or refuses as a test has set."""

    def __init__(self) -> None:
        self.intake = euro_intake()
        self.raises: Exception | None = None
        self.refuses: dict[str, Refusal] = {}
        self.missing: list[str] = []
        self.takes_s = 0.0
        self.seen: list[str] = []
        self.callers: list[bytes] = []
        self.traces: list[bytes] = []
        self.action = "approve"

    def score_many(
        self,
        payments: CheckedPayments,
        now_ms: int,
        batches: Sequence[range] = (),  # noqa: ARG002
    ) -> list[bytes | Refusal]:
        assert now_ms == NOW_MS
        time.sleep(self.takes_s)
        if self.raises is not None:
            raise self.raises
        self.callers += payments.callers
        self.traces += payments.traces or [b""] * len(payments)
        return [self._score(request) for request in payments]

    def _score(self, request: ScoreRequest) -> bytes | Refusal:
        refusal = self.refuses.get(request.payment_id)
        if refusal is not None:
            return refusal
        self.seen.append(request.payment_id)
        return ScoreResponse(payment_id=request.payment_id, score=0.5, action=self.action).SerializeToString()

    def readiness(self) -> list[str]:
        return self.missing


class Served:
    """A server in a thread with its own event loop."""

    def __init__(
        self,
        settings: HttpSettings = PATIENT,
        metrics_text: bytes = b"# metrics\n",
        *,
        admission: AdmissionSettings = UNHURRIED,
        tokens: Tokens | None = None,
        metrics_need_token: bool = False,
        tls: Tls | None = None,
        scorer: Scorer | None = None,
        limits: RequestLimits | None = None,
        intake: StepDecoder | None = None,
        clock_ms: Callable[[], int] = lambda: NOW_MS,
    ) -> None:
        """`scorer` takes the place of the FakeScorer, `intake` that of a decoder of the packaged catalogue."""
        self.scorer = FakeScorer()
        self.scorer.intake = intake = intake or euro_intake(limits or RequestLimits(batch_size_max=4))
        self.metrics = HttpMetrics.declare(MetricsRegistry())
        self.metrics_text = metrics_text
        self.batcher = MicroBatcher(
            scorer or self.scorer,
            intake=intake,
            settings=admission,
            now_ms=clock_ms,
        )
        self.server = HttpServer(
            self.batcher,
            settings,
            metrics=self.metrics,
            metrics_text=lambda: self.metrics_text,
            tokens=tokens,
            metrics_need_token=metrics_need_token,
            now_ms=clock_ms,
        )
        self._tls, self._is_taken_over = tls, False
        self._stop = asyncio.Event()
        self._started: Future[tuple[int, asyncio.AbstractEventLoop]] = Future()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve()))
        self._thread.start()
        self.port, self.loop = self._started.result(WAIT_SECONDS)

    async def _serve(self) -> None:
        with reserve_port("127.0.0.1", 0) as held:
            port = held.getsockname()[1]
            await self.server.start(open_listener("127.0.0.1", port, backlog=64), self._tls)
            self._started.set_result((port, asyncio.get_running_loop()))
            await self._stop.wait()
            await self.server.stop(is_taken_over=self._is_taken_over)

    def begin_stop(self, *, is_taken_over: bool = False) -> None:
        self._is_taken_over = is_taken_over
        self.loop.call_soon_threadsafe(self._stop.set)

    def join(self) -> None:
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive(), "the server did not stop"

    def run_in_loop(self) -> None:
        """Wait until the loop has run all callbacks scheduled so far."""
        done = threading.Event()
        self.loop.call_soon_threadsafe(done.set)
        assert done.wait(WAIT_SECONDS)

    def counted(self, route: str, code: int) -> int:
        return self.metrics.requests[route, code].value

    @contextlib.contextmanager
    def connected(self) -> Iterator[Client]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_SECONDS) as raw:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield Client(raw)


class Reply:
    def __init__(self, head: bytes, body: bytes) -> None:
        status_line, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(status_line.split()[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        self.body = body

    @property
    def json(self) -> dict[str, object]:
        loaded = json.loads(self.body)
        assert isinstance(loaded, dict)
        return loaded

    @property
    def error(self) -> dict[str, str]:
        error = self.json["error"]
        assert isinstance(error, dict)
        return error


class Client:
    """A raw socket with just enough HTTP to read answers."""

    def __init__(self, raw: socket.socket) -> None:
        self.raw = raw
        self._buffer = b""

    def send(self, data: bytes) -> None:
        self.raw.sendall(data)

    def ask(self, data: bytes) -> Reply:
        self.send(data)
        return self.reply()

    def until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            data = self.raw.recv(65536)
            assert data, f"closed after {self._buffer!r}"
            self._buffer += data
        found, _, self._buffer = self._buffer.partition(end)
        return found

    def reply(self, *, to_head: bool = False) -> Reply:
        reply = Reply(self.until(b"\r\n\r\n"), b"")
        size = 0 if to_head else int(reply.headers.get("content-length", 0))
        while len(self._buffer) < size:
            data = self.raw.recv(65536)
            assert data, "closed in a body"
            self._buffer += data
        reply.body, self._buffer = self._buffer[:size], self._buffer[size:]
        return reply

    @property
    def buffered(self) -> bytes:
        """The bytes that were read and not yet returned."""
        return self._buffer

    def rest(self) -> bytes:
        """Read until the server closes. Returns all bytes that were not returned yet."""
        with contextlib.suppress(ConnectionResetError):
            while data := self.raw.recv(65536):
                self._buffer += data
        return self._buffer

    def is_closed_by_server(self) -> bool:
        """Wait for the server to close. Returns False if a byte arrives instead."""
        with contextlib.suppress(ConnectionResetError):
            return self._buffer == b"" and self.raw.recv(1) == b""
        return True


@contextlib.contextmanager
def serving(settings: HttpSettings = PATIENT, metrics_text: bytes = b"# metrics\n", **more: Any) -> Iterator[Served]:
    served = Served(settings, metrics_text, **more)
    try:
        yield served
    finally:
        served.begin_stop()
        served.join()


def payment(payment_id: str = "p-1", **changes: object) -> dict[str, object]:
    return {
        "payment_id": payment_id,
        "event_time_ms": NOW_MS,
        "card_id": "c-1",
        "merchant_id": "m-1",
        "amount_minor": 1000,
        "currency": "EUR",
    } | changes


def post(body: bytes, *, path: str = "/v1/score", content_type: str = "application/json", headers: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: {content_type}\r\n"
    return f"{head}{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def post_json(value: object, *, path: str = "/v1/score", headers: str = "") -> bytes:
    return post(json.dumps(value).encode(), path=path, headers=headers)


def post_protobuf(message: Message, *, path: str = "/v1/score") -> bytes:
    return post(message.SerializeToString(), path=path, content_type="application/x-protobuf")


def get(path: str, method: str = "GET", headers: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n".encode()


def payment_ids(client: Client, count: int) -> list[object]:
    return [client.reply().json["payment_id"] for _ in range(count)]
