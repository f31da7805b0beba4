"""The gRPC front with real clients in Python, Go and Java."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from paywarden.schemas.proto import health_pb2
from paywarden.schemas.proto.scoring_pb2 import ScoreBatchRequest, ScoreBatchResponse, ScoreRequest, ScoreResponse
from paywarden.scoring.grpc.grpc_settings import GrpcSettings
from paywarden.scoring.net.tls import Tls, TlsSettings
from tests.patience import PATIENCE_S
from tests.services.clients.grpc_clients import go_client, java_client
from tests.services.fetch import tool
from tests.services.missing_tools import GO
from tests.services.product.processes import ROOT, wait_until
from tests.worlds.endpoint.grpc_served import GrpcServed, payment

SCORE = "/paywarden.scoring.v1.Scoring/Score"
BATCH = "/paywarden.scoring.v1.Scoring/ScoreBatch"
SERVICES = {
    "paywarden.scoring.v1.Scoring",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}


@pytest.fixture(scope="module")
def served() -> Iterator[GrpcServed]:
    with GrpcServed(GrpcSettings()) as one:
        yield one


@pytest.fixture
def channel(served: GrpcServed) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(served.target) as one:
        yield one


def score_stub(channel: grpc.Channel) -> Any:
    return channel.unary_unary(
        SCORE, request_serializer=ScoreRequest.SerializeToString, response_deserializer=ScoreResponse.FromString
    )


def run_client(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Python's


def test_the_python_client_scores_one_payment_and_many(channel: grpc.Channel) -> None:
    assert score_stub(channel)(payment("py"), timeout=PATIENCE_S).payment_id == "py"
    batch = channel.unary_unary(
        BATCH,
        request_serializer=ScoreBatchRequest.SerializeToString,
        response_deserializer=ScoreBatchResponse.FromString,
    )
    answer = batch(ScoreBatchRequest(requests=[payment("a"), payment("b")]))
    assert [response.payment_id for response in answer.responses] == ["a", "b"]


def test_the_python_client_gets_the_field_in_message_and_trailer(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        score_stub(channel)(payment(amount_minor=-1))
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith("amount_minor: is below 0; wanted ")
    assert dict(error.trailing_metadata())["paywarden-field"] == "amount_minor"


def test_the_python_client_may_watch_health(channel: grpc.Channel, served: GrpcServed) -> None:
    watch = channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    changes = watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
    assert next(changes).status == health_pb2.HealthCheckResponse.SERVING
    served.scorer.missing.append("no mirror")
    assert next(changes).status == health_pb2.HealthCheckResponse.NOT_SERVING
    served.scorer.missing.clear()
    assert next(changes).status == health_pb2.HealthCheckResponse.SERVING
    changes.cancel()


def test_grpcs_own_health_and_reflection_packages_work_with_us(served: GrpcServed) -> None:
    found = json.loads(run_client(sys.executable, "-m", "tests.clients.standard_services", served.target))
    assert (found["check"], found["watch"], found["unknown"]) == (1, 1, "NOT_FOUND")
    assert set(found["services"]) == SERVICES
    assert found["methods"] == ["Score", "ScoreBatch"]
    assert found["fields"] == ["payment_id", "event_time_ms", "card_id"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    chain, key = folder / "chain.pem", folder / "key.pem"
    run_client(
        *(tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        *("-keyout", str(key), "-out", str(chain)),
    )
    return chain, key


def test_the_python_client_uses_tls_and_a_client_without_h2_is_cut(certificate: tuple[Path, Path]) -> None:
    chain, key = certificate
    tls = Tls(TlsSettings(certificate=str(chain), key=str(key)))
    with GrpcServed(GrpcSettings(), tls=tls) as served:
        credentials = grpc.ssl_channel_credentials(chain.read_bytes())
        with grpc.secure_channel(f"localhost:{served.port}", credentials) as channel:
            assert score_stub(channel)(payment("t"), timeout=PATIENCE_S).payment_id == "t"
        client = ssl.create_default_context(cafile=str(chain))
        with (
            socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE_S) as raw,
            client.wrap_socket(raw, server_hostname="localhost") as wrapped,
        ):
            assert read_or_reset(wrapped) == b""


def read_or_reset(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1)
    except (ConnectionError, ssl.SSLError):
        return b""


def hand_over(calls: Callable[[str, threading.Event], None]) -> int:
    """Make calls while their server stops and another takes the port. Returns how many servers took some.

    The event is set when the other server has taken some. `calls` may go on for longer.
    """
    both = threading.Event()
    first = GrpcServed(GrpcSettings(), shared_port=0)
    thread = threading.Thread(target=calls, args=(first.target, both))
    thread.start()
    wait_until(lambda: bool(first.scorer.chunks), "the first server gets calls")
    with GrpcServed(GrpcSettings(), shared_port=first.port) as second:
        first.begin_stop()
        first.join()
        wait_until(lambda: bool(second.scorer.chunks) or not thread.is_alive(), "the second server gets calls")
        both.set()
        thread.join(PATIENCE_S)
        return bool(first.scorer.chunks) + bool(second.scorer.chunks)


def test_a_graceful_stop_fails_no_call_of_the_python_client() -> None:
    failures: list[str] = []

    def calls(target: str, both: threading.Event) -> None:
        with grpc.insecure_channel(target) as channel:
            score = score_stub(channel)
            while not both.is_set():
                futures = [score.future(payment(f"h{number}")) for number in range(16)]
                failures.extend(str(f.exception()) for f in futures if f.exception() is not None)

    assert hand_over(calls) == 2
    assert failures == []


# Go's


@pytest.fixture(scope="module")
def go() -> str:
    built = go_client()
    if built is None:
        pytest.skip(GO.reason)
    return str(built)


def test_the_go_client_passes_all_its_checks(served: GrpcServed, go: str) -> None:
    found = json.loads(run_client(go, "features", served.target))
    assert set(found.pop("services")) == SERVICES
    assert found.pop("wrong").startswith("InvalidArgument amount_minor: is below 0; wanted ")
    assert found.pop("late").startswith("DeadlineExceeded")
    assert found == {
        "health": "SERVING",
        "score": "OK go",
        "gzip": "OK go-gzip",
        "field": ["amount_minor"],
        "metadata": "OK go-metadata",
        "unknown": "Unimplemented",
        "parallel_ok": 5000,
    }


def test_a_graceful_stop_fails_no_call_of_the_go_client(go: str) -> None:
    printed: list[str] = []
    assert hand_over(lambda target, _: printed.append(run_client(go, "steady", target))) == 2
    found = json.loads(printed[0])
    assert found["failed"] == 0
    assert found["ok"] > 100


# Java's


def test_the_java_client_passes_all_its_checks(served: GrpcServed) -> None:
    right, wrong = payment("java"), payment("java", currency="")
    printed = run_client(
        tool("java"),
        *java_client(),
        served.target,
        right.SerializeToString().hex(),
        wrong.SerializeToString().hex(),
    )
    found = {what: rest for what, *rest in (line.split("\t") for line in printed.splitlines())}
    scored = ["OK", ScoreResponse(payment_id="java", score=0.5, action="approve").SerializeToString().hex()]
    assert found == {
        "score": scored,
        "gzip": scored,
        "deadline kept": scored,
        "late": ["DEADLINE_EXCEEDED", "null"],
        "wrong": ["INVALID_ARGUMENT", "currency"],
        "health": ["OK", "0801"],
        "unknown": ["UNIMPLEMENTED", "null"],
        "metadata": scored,
        "parallel": ["2000"],
    }
