"""Runs a gRPC front in a thread with its own event loop, with a scorer that a test controls."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Self

import uvloop

from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.engine.batching.batcher import AdmissionSettings, MicroBatcher, Refusal
from paywarden.scoring.grpc.grpc_front import GrpcServer
from paywarden.scoring.grpc.grpc_settings import GrpcSettings
from paywarden.scoring.grpc.metrics import GrpcMetrics
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.net.tls import Tls
from paywarden.scoring.requests.validation import RequestLimits
from tests.oracles.reading import ReadsFirst
from tests.oracles.step_decoder import CheckedPayments
from tests.patience import PATIENCE_S
from tests.worlds.endpoint.payments import euro_intake

NOW_MS = 1_700_000_000_000
WAIT_S = PATIENCE_S
# A deadline that no test reaches on a busy machine. A test that needs one lowers it.
PATIENT = AdmissionSettings(deadline_ms=20_000, wait_ms_max=10_000)


class FakeScorer(ReadsFirst):
    """Scores every payment 0.5, except the payments in `refuses`."""

    def __init__(self) -> None:
        self.intake = euro_intake()
        self.refuses: dict[str, Refusal] = {}
        self.missing: list[str] = []
        self.chunks: list[list[str]] = []
        self.callers: list[bytes] = []
        self.traces: list[bytes] = []

    def score_many(
        self,
        payments: CheckedPayments,
        now_ms: int,
        batches: Sequence[range] = (),  # noqa: ARG002
    ) -> list[bytes | Refusal]:
        assert now_ms == NOW_MS
        requests = list(payments)
        self.callers += payments.callers
        self.traces += payments.traces or [b""] * len(payments)
        self.chunks.append([request.payment_id for request in requests])
        return [
            self.refuses.get(request.payment_id)
            or ScoreResponse(payment_id=request.payment_id, score=0.5, action="approve").SerializeToString()
            for request in requests
        ]

    def readiness(self) -> list[str]:
        return self.missing

    @property
    def scored(self) -> list[str]:
        """The ids of all scored payments, in order."""
        return [payment_id for chunk in self.chunks for payment_id in chunk]


class GrpcServed:
    """A server in a thread. Leaving the `with` block stops it."""

    def __init__(
        self,
        settings: GrpcSettings,
        *,
        admission: AdmissionSettings = PATIENT,
        caller_of: Callable[[bytes | None], bytes | None] | None = None,
        tls: Tls | None = None,
        shared_port: int | None = None,
    ) -> None:
        """`shared_port`: a port that several servers may listen on at once; 0 finds one."""
        self.scorer = FakeScorer()
        self.metrics = GrpcMetrics.declare(MetricsRegistry())
        self.batcher = MicroBatcher(
            self.scorer,
            intake=euro_intake(RequestLimits(batch_size_max=4)),
            settings=admission,
            now_ms=lambda: NOW_MS,
        )
        self.server = GrpcServer(self.batcher, settings=settings, metrics=self.metrics, caller_of=caller_of)
        self._tls, self._shared_port = tls, shared_port
        self._stop = asyncio.Event()
        self._started: Future[tuple[int, asyncio.AbstractEventLoop]] = Future()
        self.errors: list[str] = []
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve()))
        self._thread.start()
        self.port, self.loop = self._started.result(WAIT_S)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.errors.append(str(context)))
        listener = socket.create_server(("127.0.0.1", self._shared_port or 0), reuse_port=self._shared_port is not None)
        await self.server.start(listener, self._tls)
        self._started.set_result((listener.getsockname()[1], loop))
        await self._stop.wait()
        await self.server.stop()

    def begin_stop(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)

    def join(self) -> None:
        """Wait until the server has stopped. Asserts that no callback of the loop has failed."""
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "the server did not stop"
        assert self.errors == []

    def counted(self, method: str, code: str) -> int:
        return self.metrics.requests[method, code].value

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.begin_stop()
        self.join()


def payment(payment_id: str = "p1", **values: object) -> ScoreRequest:
    """Returns a valid request with `values`."""
    fields: dict[str, object] = {
        "event_time_ms": NOW_MS,
        "card_id": "card",
        "merchant_id": "merchant",
        "amount_minor": 1,
        "currency": "EUR",
    }
    return ScoreRequest(payment_id=payment_id, **(fields | values))  # type: ignore[arg-type]
