"""The cost of the HTTP front: CPU time of the serving process per request.

Measured, with protobuf bodies (`whole` with JSON, too):

    front    reading, routing, counting and writing; the body is neither parsed nor scored
    whole    the same with `MicroBatcher` before a scorer that answers a constant: parse, validate and render, too

Each runs in three ways: one request at a time on one connection, one at a time on each of 16 connections, and 16 at
once on a connection. Used for: noticing when the front becomes dearer. The figures are CPU time, not throughput. Look
at the smallest of the rounds, and at the last two ways. In the first way the process sleeps and wakes for each
request; on a virtual machine that cost varies more than everything else together. The status of the first answer and
the length of all answers are checked.

    python -m perf.bench_http [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import resource
import socket
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop

from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.engine.batching.batcher import AdmissionSettings, Call, MicroBatcher
from paywarden.scoring.http.front import HttpServer
from paywarden.scoring.http.settings import HttpSettings
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker import HttpMetrics
from paywarden.scoring.net.listeners import open_listener, reserve_port
from perf.worlds.constant_scorer import ConstantScorer, constant_answer, euro_intake

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


class _ConstantTurns(MicroBatcher):
    """Answers a constant after the turn of the loop, without reading the request."""

    def __init__(self) -> None:
        super().__init__(ConstantScorer(), intake=euro_intake(), settings=AdmissionSettings())
        self._body = constant_answer(str(_PAYMENT["payment_id"]).encode())
        self._calls: list[Call] = []

    def submit(self, call: Call) -> None:
        if not self._calls:
            asyncio.get_running_loop().call_soon(self._answer_all)
        self._calls.append(call)

    def _answer_all(self) -> None:
        calls, self._calls = self._calls, []
        for call in calls:
            call.answer(self._body)
        for connection in dict.fromkeys(call.connection for call in calls):
            connection.flush()


async def _serve(parent: Connection, run_directory: str, kind: str) -> None:
    registry = MetricsRegistry()
    metrics = HttpMetrics.declare(registry)
    registry.open(Path(run_directory), kind)
    if kind == "front":
        turns: MicroBatcher = _ConstantTurns()
    else:
        turns = MicroBatcher(
            ConstantScorer(),
            # Deadlines so long that none is missed on a busy machine: a refusal would be cheaper than an answer.
            settings=AdmissionSettings(deadline_ms=60_000, wait_ms_max=60_000),
            intake=euro_intake(),
        )
    server = HttpServer(turns, HttpSettings(), metrics=metrics, metrics_text=lambda: b"")
    with reserve_port("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        await server.start(open_listener("127.0.0.1", port, backlog=16))
        gc.collect()
        gc.freeze()
        loop = asyncio.get_running_loop()
        # The answer to any message of the parent is the CPU time that this process has used.
        loop.add_reader(parent.fileno(), _tell_cpu_seconds, parent)
        parent.send(port)
        await loop.create_future()


def _tell_cpu_seconds(parent: Connection) -> None:
    parent.recv()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    parent.send(usage.ru_utime + usage.ru_stime)


def _serve_process(parent: Connection, run_directory: str, kind: str) -> None:
    uvloop.run(_serve(parent, run_directory, kind))


def _request(content_type: str, body: bytes) -> bytes:
    head = f"POST /v1/score HTTP/1.1\r\nHost: bench\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _ask(clients: Sequence[socket.socket], requests: bytes, answer_bytes: int) -> None:
    for client in clients:
        client.sendall(requests)
    for client in clients:
        received = 0
        while received < answer_bytes:
            received += len(client.recv(1 << 18))
        # The answers are constant: an answer of another kind would have another length.
        assert received == answer_bytes


def _measure(server: Connection, port: int, request: bytes, *, connections: int, depth: int) -> list[float]:
    """Returns CPU microseconds of the server per request, one value for each round."""
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(connections)]
        for client in clients:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(request)
            answer = client.recv(1 << 18)
            assert answer.startswith(b"HTTP/1.1 200 OK"), answer[:80]
        rounds = []
        for _ in range(_ROUNDS):
            server.send(None)
            before = server.recv()
            for _ in range(_REQUESTS_PER_ROUND // (depth * connections)):
                _ask(clients, request * depth, len(answer) * depth)
            server.send(None)
            rounds.append((server.recv() - before) / _REQUESTS_PER_ROUND * 1e6)
    return rounds


def _measure_kind(kind: str, bodies: Mapping[str, bytes], run_directory: str) -> dict[str, float]:
    results: dict[str, float] = {}
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve_process, args=(there, run_directory, kind), daemon=True)
    process.start()
    port = here.recv()
    for name, request in bodies.items():
        for connections, depth in ((1, 1), (16, 1), (1, 16)):
            rounds = _measure(here, port, request, connections=connections, depth=depth)
            key = f"{kind}_{name}_{connections}x{depth}"
            results[f"{key}_cpu_min_us"] = min(rounds)
            results[f"{key}_cpu_median_us"] = statistics.median(rounds)
            results[f"{key}_cpu_max_us"] = max(rounds)
            print(
                f"{key:20} min {min(rounds):6.2f} µs   median {statistics.median(rounds):6.2f} µs   "
                f"max {max(rounds):6.2f} µs"
            )
    process.kill()
    process.join()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    protobuf = _request("application/x-protobuf", ScoreRequest(**_PAYMENT).SerializeToString())  # type: ignore[arg-type]
    as_json = _request("application/json", json.dumps(_PAYMENT).encode())
    with tempfile.TemporaryDirectory() as run_directory:
        results = _measure_kind("front", {"protobuf": protobuf}, run_directory)
        results |= _measure_kind("whole", {"protobuf": protobuf, "json": as_json}, run_directory)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
