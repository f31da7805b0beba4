"""The cost of the gRPC front alone: CPU time of the serving process per request.

Measured: HTTP/2, framing, MicroBatcher, parse, validate, count and render, with 1, 8 and 16 streams at once on one
connection, through each library that speaks HTTP/2. Stubbed: the scorer, which answers a constant. Used for: noticing
when the front becomes dearer, and the price of each library. The figures are CPU time, not throughput. The least of the
rounds is the cost of the code; the rest is other work of the machine. The client is ngh2 over a raw socket, and checks
the status of every answer.

    python -m perf.bench_grpc [--json FILE]
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
from multiprocessing.connection import Connection
from pathlib import Path

import ngh2
import uvloop

from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.engine.batching.batcher import AdmissionSettings, MicroBatcher
from paywarden.scoring.grpc.front import GrpcServer
from paywarden.scoring.grpc.messages import frame
from paywarden.scoring.grpc.metrics import GrpcMetrics
from paywarden.scoring.grpc.settings import LIBRARIES, GrpcSettings
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from perf.worlds.constant_scorer import ConstantScorer, euro_intake

_REQUESTS_PER_ROUND = {"ngh2": 16_000, "h2": 1_600}
_ROUNDS = 9
_STREAMS = (1, 8, 16)
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
# The headers that Python's client sends.
_HEADERS = (
    (b":scheme", b"http"),
    (b":method", b"POST"),
    (b":authority", b"localhost"),
    (b":path", b"/paywarden.scoring.v1.Scoring/Score"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
    (b"user-agent", b"grpc-python/1.85 grpc-c/50 (linux; chttp2)"),
    (b"grpc-accept-encoding", b"identity, deflate, gzip"),
    (b"grpc-timeout", b"1S"),
)


async def _serve(parent: Connection, run_directory: str, library: str) -> None:
    registry = MetricsRegistry()
    metrics = GrpcMetrics.declare(registry)
    registry.open(Path(run_directory), library)
    # Deadlines so long that none is missed on a busy machine.
    admission = AdmissionSettings(deadline_ms=10_000, wait_ms_max=5_000)
    turns = MicroBatcher(ConstantScorer(), intake=euro_intake(), settings=admission)
    server = GrpcServer(turns, settings=GrpcSettings(library=library), metrics=metrics)
    listener = socket.create_server(("127.0.0.1", 0))
    await server.start(listener)
    loop = asyncio.get_running_loop()
    # The answer to any message of the parent is the CPU time that this process has used.
    loop.add_reader(parent.fileno(), _tell_cpu_seconds, parent)
    parent.send(listener.getsockname()[1])
    await loop.create_future()


def _tell_cpu_seconds(parent: Connection) -> None:
    parent.recv()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    parent.send(usage.ru_utime + usage.ru_stime)


def _serve_process(parent: Connection, run_directory: str, library: str) -> None:
    uvloop.run(_serve(parent, run_directory, library))


class _Client:
    """One connection, many streams."""

    def __init__(self, raw: socket.socket, message: bytes) -> None:
        self._raw, self._message = raw, message
        self._connection = ngh2.Connection(ngh2.Role.CLIENT)
        self._connection.initiate_connection()
        # With this window no round has one WINDOW_UPDATE of ours more than another.
        self._connection.set_local_window_size(2**30)

    def ask(self, stream_count: int) -> None:
        """Send this many calls in one write; return when all are answered with status 0."""
        connection = self._connection
        for _ in range(stream_count):
            stream_id = connection.send_request(_HEADERS)
            connection.send_data(stream_id, self._message, end_stream=True)
        self._raw.sendall(connection.data_to_send())
        answered = 0
        while answered < stream_count:
            connection.receive_data(self._raw.recv(1 << 18))
            for event in connection.events():
                if isinstance(event, ngh2.TrailersReceived):
                    assert event.headers == ((b"grpc-status", b"0"),), event.headers
                    answered += 1
                assert not isinstance(event, ngh2.StreamReset | ngh2.GoAwayReceived)


def _measure(server: Connection, port: int, requests_per_round: int, stream_count: int) -> list[float]:
    """Returns CPU microseconds of the server per request, one value for each round."""
    message = frame(ScoreRequest(**_PAYMENT).SerializeToString())  # type: ignore[arg-type]
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = _Client(raw, message)
        client.ask(stream_count)
        rounds = []
        for _ in range(_ROUNDS):
            server.send(None)
            before = server.recv()
            for _ in range(requests_per_round // stream_count):
                client.ask(stream_count)
            server.send(None)
            rounds.append((server.recv() - before) / requests_per_round * 1e6)
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results: dict[str, float] = {}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as run_directory:
        for library in LIBRARIES:
            here, there = context.Pipe()
            process = context.Process(target=_serve_process, args=(there, run_directory, library), daemon=True)
            process.start()
            port = here.recv()
            for stream_count in _STREAMS:
                rounds = _measure(here, port, _REQUESTS_PER_ROUND[library], stream_count)
                key = f"{library}_streams_{stream_count}"
                results[f"{key}_cpu_min_us"] = min(rounds)
                results[f"{key}_cpu_median_us"] = statistics.median(rounds)
                results[f"{key}_cpu_max_us"] = max(rounds)
                print(
                    f"{key:18} least {min(rounds):7.2f} µs   median {statistics.median(rounds):7.2f} µs"
                    f"   max {max(rounds):7.2f} µs"
                )
            process.kill()
            process.join()
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
