"""What the HTTP front alone costs: CPU time of the serving process per request.

Measured: parse, validate, route, count and render, with protobuf and JSON bodies; one request a read, and 16
at once on a connection. Stubbed: the scorer, which answers a constant. For: noticing when the front becomes
dearer. CPU time, not throughput. Look at depth 16 first: with one request at a time the process sleeps and
wakes for each, and on a virtual machine what that costs differs from run to run (20 to 56 µs were seen for
the same code, where depth 16 stayed within 12 to 16). The first answer's status and all answers' lengths are
checked.

    python -m perf.bench_http [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import socket
import statistics
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop

from schemas.scoring_pb2 import ScoreRequest, ScoreResponse
from scoring.http import HttpServer, HttpSettings, open_listener, reserve_port
from scoring.metrics import HttpMetrics, Registry
from scoring.wire import RequestLimits

_REQUESTS_PER_ROUND = 16_000
_ROUNDS = 7
_PAYMENT: dict[str, str | int] = {
    "payment_id": "pay-00000000000000000001",
    "event_time_ms": 1_700_000_000_000,
    "card_id": "card-0000000001",
    "merchant_id": "merchant-000001",
    "amount_minor": 12_345,
    "currency": "EUR",
    "mcc": "5411",
    "country": "DE",
}


class _ConstantScorer:
    def score(self, request: ScoreRequest, now_ms: int) -> ScoreResponse:  # noqa: ARG002
        return ScoreResponse(
            payment_id=request.payment_id,
            decision_id="0123456789abcdef0123456789abcdef",
            score=0.0123,
            action="approve",
            model_version="v1",
        )

    def score_batch(self, requests: Sequence[ScoreRequest], now_ms: int) -> list[ScoreResponse]:
        return [self.score(request, now_ms) for request in requests]

    def readiness(self) -> list[str]:
        return []


async def _serve(parent: Connection, run_directory: str) -> None:
    registry = Registry()
    metrics = HttpMetrics.declare(registry)
    registry.open(Path(run_directory), "w0")
    server = HttpServer(
        _ConstantScorer(),
        HttpSettings(),
        limits=RequestLimits(),
        currencies=frozenset({"EUR"}),
        metrics=metrics,
        metrics_text=lambda: b"",
    )
    with reserve_port("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        await server.start(open_listener("127.0.0.1", port, backlog=16))
        loop = asyncio.get_running_loop()
        # Whatever the parent sends, it is told how much CPU time this process has used.
        loop.add_reader(parent.fileno(), _tell_cpu_seconds, parent)
        parent.send(port)
        await loop.create_future()


def _tell_cpu_seconds(parent: Connection) -> None:
    parent.recv()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    parent.send(usage.ru_utime + usage.ru_stime)


def _serve_process(parent: Connection, run_directory: str) -> None:
    uvloop.run(_serve(parent, run_directory))


def _request(content_type: str, body: bytes) -> bytes:
    head = f"POST /v1/score HTTP/1.1\r\nHost: bench\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _ask(client: socket.socket, requests: bytes, answer_bytes: int) -> None:
    client.sendall(requests)
    received = b""
    while len(received) < answer_bytes:
        received += client.recv(1 << 18)
    # The answers are constant, so a single one of another kind would have another length.
    assert len(received) == answer_bytes


def _measure(server: Connection, port: int, request: bytes, depth: int) -> list[float]:
    """CPU microseconds of the server per request, one value a round."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(request)
        answer = client.recv(1 << 18)
        assert answer.startswith(b"HTTP/1.1 200 OK"), answer[:80]
        rounds = []
        for _ in range(_ROUNDS):
            server.send(None)
            before = server.recv()
            for _ in range(_REQUESTS_PER_ROUND // depth):
                _ask(client, request * depth, len(answer) * depth)
            server.send(None)
            rounds.append((server.recv() - before) / _REQUESTS_PER_ROUND * 1e6)
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    bodies = {
        "protobuf": _request("application/x-protobuf", ScoreRequest(**_PAYMENT).SerializeToString()),  # type: ignore[arg-type]
        "json": _request("application/json", json.dumps(_PAYMENT).encode()),
    }
    results: dict[str, float] = {}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as run_directory:
        here, there = context.Pipe()
        process = context.Process(target=_serve_process, args=(there, run_directory), daemon=True)
        process.start()
        port = here.recv()
        for name, request in bodies.items():
            for depth in (1, 16):
                rounds = _measure(here, port, request, depth)
                key = f"{name}_depth_{depth}"
                results[f"{key}_cpu_median_us"] = statistics.median(rounds)
                results[f"{key}_cpu_max_us"] = max(rounds)
                print(f"{key:20} median {statistics.median(rounds):6.2f} µs   max {max(rounds):6.2f} µs")
        process.kill()
        process.join()
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
