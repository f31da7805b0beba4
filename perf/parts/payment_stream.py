"""Payments of a few cards, over HTTP and gRPC and on their topic, at a steady rate: what faults are injected into."""

from __future__ import annotations

import http.client
import itertools
import threading
import time
import urllib.parse
from contextlib import suppress

import grpc

from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.proto.scoring_pb2 import ScoreBatchRequest, ScoreRequest
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import make_producer

_CARDS = 40
_PROTOBUF = {"Content-Type": "application/x-protobuf"}
_TIMEOUT_S = 5.0


class PaymentStream:
    """A payment of the rate each 1 / rate seconds, the first half over HTTP and every fourth over gRPC.

    Errors are counted and do not end it. The attributes may be changed while it runs.
    """

    def __init__(self, kafka: KafkaSettings, http_url: str, grpc_target: str, rate: float) -> None:
        self.rate = rate
        # Of the HTTP requests, how many in a hundred are of cards that never pay on the topic.
        self.unknown_share = 0.0
        # What the HTTP request is: one payment, or a batch of this many.
        self.batch = 0
        self.token = ""
        self.errors = 0
        self.cards = [f"c-{number}" for number in range(_CARDS)]
        self._host, self._grpc_target = urllib.parse.urlsplit(http_url).netloc, grpc_target
        self._kafka, self._stopped = kafka, threading.Event()
        self._numbers = itertools.count()
        ids = LocalSchemaIds()
        self._encoders = {name: Encoder(name, ids.id_of(name)) for name in ("payments", "outcomes")}
        self._producer = make_producer(kafka, linger_ms=20)
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin, unless it runs."""
        if not self._threads:
            self._threads = [
                threading.Thread(target=run, daemon=True) for run in (self._run_http, self._run_grpc, self._run_topic)
            ]
            for thread in self._threads:
                thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(2 * _TIMEOUT_S)

    def request(self, card: str = "") -> ScoreRequest:
        """Returns a payment that is new."""
        number = next(self._numbers)
        return ScoreRequest(
            payment_id=f"p-{number}",
            event_time_ms=time.time_ns() // 1_000_000,
            card_id=card or self.cards[number % len(self.cards)],
            merchant_id=f"m-{number % 5}",
            amount_minor=100 + number % 900,
            currency="EUR",
        )

    def pay(self, request: ScoreRequest, **changes: object) -> None:
        """Write a payment to its topic."""
        record = {field.name: getattr(request, field.name) or None for field in request.DESCRIPTOR.fields}
        self.send("payments", self._encoders["payments"].encode({**record, **changes}), request.card_id)

    def send(self, topic: str, value: bytes, key: str) -> None:
        """Write bytes to a topic."""
        while True:
            try:
                self._producer.produce(self._kafka.topic(topic), value, key=key)
                self._producer.poll(0)
            except BufferError:
                self._producer.poll(0.1)
            else:
                return

    def flush(self) -> None:
        self._producer.flush(60)

    def _pause(self, began: float, every_s: float) -> None:
        self._stopped.wait(max(0.0, every_s - (time.monotonic() - began)))

    def _run_http(self) -> None:
        client = http.client.HTTPConnection(self._host, timeout=_TIMEOUT_S)
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                self._ask(client)
            except (OSError, http.client.HTTPException):
                self.errors += 1
                client.close()
            self._pause(began, max(1, self.batch) / self.rate)

    def _ask(self, client: http.client.HTTPConnection) -> None:
        headers = {**_PROTOBUF, **({"Authorization": f"Bearer {self.token}"} if self.token else {})}
        if self.batch:
            body = ScoreBatchRequest(requests=[self.request() for _ in range(self.batch)]).SerializeToString()
            client.request("POST", "/v1/score:batch", body, headers)
        else:
            number = next(self._numbers)
            card = f"stranger-{number}" if number % 100 < 100 * self.unknown_share else ""
            client.request("POST", "/v1/score", self.request(card).SerializeToString(), headers)
        client.getresponse().read()

    def _run_grpc(self) -> None:
        metadata = [("authorization", f"Bearer {self.token}")] if self.token else []
        with grpc.insecure_channel(self._grpc_target) as channel:
            call = channel.unary_unary("/paywarden.scoring.v1.Scoring/Score")
            while not self._stopped.is_set():
                began = time.monotonic()
                try:
                    call(self.request().SerializeToString(), timeout=_TIMEOUT_S, metadata=metadata)
                except grpc.RpcError:
                    self.errors += 1
                self._pause(began, 0.25)

    def _run_topic(self) -> None:
        while not self._stopped.is_set():
            began = time.monotonic()
            with suppress(Exception):
                request = self.request()
                self.pay(request)
                outcome = {
                    "payment_id": request.payment_id,
                    "label": "genuine",
                    "source": "analyst",
                    "outcome_time_ms": time.time_ns() // 1_000_000,
                }
                if int(request.payment_id[2:]) % 20 == 0:
                    self.send("outcomes", self._encoders["outcomes"].encode(outcome), request.payment_id)
            self._pause(began, 0.1)
