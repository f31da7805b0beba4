"""A whole worker behind its HTTP front, in the event loop of a test, and callers with connections to it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paywarden.models.policy.policy import FLAGS, Policy, PolicySettings
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.engine.batching.batcher import AdmissionSettings, MicroBatcher
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.scorer import PaymentScorer, ScorerOptions
from paywarden.scoring.http.http_connection import HttpConnection
from paywarden.scoring.http.http_front import HttpServer
from paywarden.scoring.http.http_settings import HttpSettings
from paywarden.scoring.idempotency import decision_cache
from paywarden.scoring.idempotency.decision_cache import DecisionCache, DecisionCacheMetrics, DecisionCacheSettings
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker_metrics import HttpMetrics, ScoringMetrics
from paywarden.scoring.net.tokens import Tokens
from paywarden.scoring.requests.validation import RequestLimits
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.scoring.state.outbox import OutboxReader, OutboxSettings, OutboxWriter
from paywarden.streams.companion.mirror_writer import MirrorWriter
from tests.oracles.step_decoder import StepDecoder
from tests.patience import PATIENCE_S
from tests.worlds.endpoint.http_world import PATIENT, Reply, post
from tests.worlds.endpoint.requests import requests_of
from tests.worlds.small import small_world
from tests.worlds.small.small_history import profiles

PLAN = small_world.engine().plan
NOW_MS = int(small_world.history().event_time_ms[-1]) + 1000
KNOWN = requests_of(small_world.tables()[0].slice(0, 100), id_prefix="fast-")
UNHURRIED = AdmissionSettings(deadline_ms=60_000, wait_ms_max=60_000)


SHOP, BANK = "shop-0123456789abcdef", "bank-0123456789abcdef"


class Worker:
    """A whole worker's parts and its HTTP front, in the event loop of the test."""

    def __init__(
        self,
        folder: Path,
        admission: AdmissionSettings = UNHURRIED,
        tokens: Tokens | None = None,
        http: HttpSettings = PATIENT,
        scorer: type[PaymentScorer] = PaymentScorer,
    ) -> None:
        self.where = OutboxSettings(directory=str(folder / "outbox"), fsync="never")
        table = DecisionCacheSettings(path=str(folder / "answered"), payments_max=4096)
        decision_cache.prepare(table)
        mirror = MirrorSettings(path=str(folder / "mirror"), size_mb=64)
        if not Path(mirror.path).exists():
            writer = MirrorWriter(mirror)
            writer.apply(dict(profiles()), {0: 1}, NOW_MS)
            writer.close()
        registry = MetricsRegistry()
        self.outbox = OutboxWriter(self.where, "worker-0")
        self.cache = DecisionCache(table, self.where, 0, DecisionCacheMetrics.declare(registry))
        bundle = small_world.loaded_bundle()
        intake = StepDecoder(PLAN, small_world.rates(), RequestLimits())
        self.scorer = scorer(
            engine=small_world.engine(),
            intake=intake,
            models=ModelChain((bundle,), metrics=ModelMetrics.declare(registry)),
            policy=Policy(PolicySettings(), review_at=bundle.manifest.review_at, decline_at=bundle.manifest.decline_at),
            mirror=mirror,
            outbox=self.outbox,
            metrics=ScoringMetrics.declare(registry, flags=FLAGS, entities=PLAN.entity_names),
            options=ScorerOptions(answered=self.cache),
        )
        self.batcher = MicroBatcher(
            self.scorer,
            intake=intake,
            settings=admission,
            now_ms=lambda: NOW_MS,
        )
        self.metrics = HttpMetrics.declare(registry)
        self.callers: list[Caller] = []
        self.server = HttpServer(
            self.batcher,
            http,
            metrics=self.metrics,
            metrics_text=lambda: b"",
            tokens=tokens,
            now_ms=lambda: NOW_MS,
        )
        self.server.loop = asyncio.get_running_loop()

    async def connect(self, *, send_buffer: int = 0, token: str = "") -> Caller:
        """Open a connection on which a payment was answered already."""
        theirs, ours = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        if send_buffer:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        loop = asyncio.get_running_loop()
        _, connection = await loop.connect_accepted_socket(lambda: HttpConnection(self.server), ours)
        caller = Caller(theirs, connection)
        self.callers.append(caller)
        first = request(len(KNOWN) - 1, f"first-{len(self.callers)}", token=token)
        assert (await caller.ask(first)).status == 200
        return caller

    def payment_ids(self) -> list[str]:
        """Returns the ids of all payments with a record, in order."""
        return [record.request.payment_id for record in self.records()]

    def records(self) -> list[OutboxEntry]:
        reader = OutboxReader(self.where, "worker-0")
        return [OutboxEntry.FromString(payload) for _, payload in reader.read(0, 10_000)]

    def hang_up(self) -> None:
        for caller in self.callers:
            caller.connection.abort()
            caller.raw.close()
        self.callers.clear()

    def close(self) -> None:
        self.hang_up()
        self.cache.close()
        self.outbox.close()
        self.scorer.close_mirror()

    def counted(self) -> int:
        return self.metrics.requests["score", 200].value


class Caller:
    """The other end of a connection."""

    def __init__(self, raw: socket.socket, connection: HttpConnection) -> None:
        self.raw, self.connection, self._data = raw, connection, b""

    def send(self, data: bytes) -> None:
        self.raw.sendall(data)

    async def reply(self) -> Reply:
        loop = asyncio.get_running_loop()
        while True:
            head, found, rest = self._data.partition(b"\r\n\r\n")
            reply = Reply(head, b"") if found else None
            size = 0 if reply is None else int(reply.headers["content-length"])
            if reply is not None and len(rest) >= size:
                reply.body, self._data = rest[:size], rest[size:]
                return reply
            data = await asyncio.wait_for(loop.sock_recv(self.raw, 65536), PATIENCE_S)
            assert data, "the server has closed the connection"
            self._data += data

    async def all_replies(self) -> list[Reply]:
        """Returns all replies until the server ends the connection."""
        loop, replies = asyncio.get_running_loop(), list[Reply]()
        while data := await asyncio.wait_for(loop.sock_recv(self.raw, 65536), PATIENCE_S):
            self._data += data
        while self._data:
            replies.append(await self.reply())
        return replies

    async def is_reset(self) -> bool:
        """Return whether the server has closed the connection without a reply."""
        try:
            return not await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.raw, 1), PATIENCE_S)
        except ConnectionResetError:
            return True

    def take_in(self, data: bytes) -> None:
        """Note bytes that were received besides."""
        self._data += data

    async def ask(self, data: bytes) -> Reply:
        self.send(data)
        return await self.reply()


def request(place: int, payment_id: str, *, token: str = "", **changes: Any) -> bytes:
    """Returns a request over HTTP for a usual payment."""
    message = ScoreRequest()
    message.CopyFrom(KNOWN[place])
    message.event_time_ms, message.payment_id = NOW_MS, payment_id
    for name, value in changes.items():
        setattr(message, name, value)
    headers = f"Authorization: Bearer {token}\r\n" if token else ""
    return post(message.SerializeToString(), content_type="application/x-protobuf", headers=headers)


def answered(reply: Reply) -> ScoreResponse:
    assert reply.status == 200
    return ScoreResponse.FromString(reply.body)


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it does not come"
        await asyncio.sleep(0.001)
