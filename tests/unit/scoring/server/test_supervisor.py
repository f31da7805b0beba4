"""The scoring host as a process: `python -m paywarden serve`, its parent and its workers."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreResponse
from paywarden.scoring.state.outbox import OutboxReader, OutboxWriter
from paywarden.streams.companion.mirror_writer import MirrorWriter
from tests.patience import PATIENCE_S
from tests.services.certificates import Authority
from tests.services.product import internals
from tests.services.product.processes import get, is_ready, post, run_paywarden, samples, wait_until
from tests.services.product.scoring_server import PAYMENT, Server
from tests.worlds.small import small_world


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as made:
        yield made


def refused(server: Server, *arguments: str) -> str:
    done = run_paywarden("--config", str(server.config), "serve", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_the_address_is_the_first_line_and_a_payment_is_answered(server: Server) -> None:
    server.start()
    assert server.target.startswith("http://127.0.0.1:")
    server.listening()
    status, body = post(f"{server.target}/v1/score", PAYMENT, "application/x-protobuf")
    assert status == 200
    assert list(ScoreResponse.FromString(body).flags) == ["mirror_absent"]


def test_workers_without_a_mirror_say_so_once_and_become_ready_with_one(server: Server) -> None:
    server.start("--workers", "2")
    server.listening(2)
    assert not is_ready(server.target)
    assert server.log().count(f"there is no mirror at {server.mirror.path} yet") == 1
    writer = MirrorWriter(server.mirror)
    writer.apply({}, {0: 1}, 1)
    writer.close()
    wait_until(lambda: is_ready(server.target), "the worker is ready")


def test_sigterm_ends_parent_and_workers_with_exit_code_0(server: Server) -> None:
    parent = server.start("--workers", "2")
    workers = server.listening(2)
    assert parent.stop() == 0
    assert not any(worker.is_running() for worker in workers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_at_any_moment_of_the_start_is_a_clean_stop(server: Server, number: signal.Signals) -> None:
    """A stop between the starts of two workers once left the second one running, and its parent waiting for it."""
    parent = server.start("--workers", "3")
    parent.process.send_signal(number)
    assert parent.process.wait(timeout=PATIENCE_S) == 0
    parent._close()


def test_a_worker_that_cannot_start_says_why_and_does_not_delay_a_stop(server: Server) -> None:
    taken = OutboxWriter(server.outbox, "worker-0")
    parent = server.start()
    wait_until(lambda: server.log().count("starting it again") >= 4, "the worker was started again and again")
    assert "worker 0: outbox" in server.log()
    assert "Traceback" not in server.log()
    parent.process.send_signal(signal.SIGTERM)
    assert parent.process.wait(timeout=PATIENCE_S) == 0
    parent._close()
    taken.close()


def test_a_worker_that_hangs_is_killed_and_the_stop_says_so(tmp_path: Path) -> None:
    internals.write(tmp_path, {"http": {"stop_timeout_ms": 100}, "grpc": {"stop_timeout_ms": 100}})
    with Server(tmp_path) as server:
        parent = server.start()
        (worker,) = server.listening()
        worker.suspend()
        parent.process.send_signal(signal.SIGTERM)
        assert parent.process.wait(timeout=PATIENCE_S) == 1
        assert server.log().splitlines()[-1] == "paywarden: workers did not stop within 5.1 s and were killed"
        assert not worker.is_running()
        parent._close()


def test_a_worker_whose_outbox_was_deleted_is_started_again(server: Server) -> None:
    """Nobody would ever read the decisions that it goes on writing."""
    server.start()
    (first,) = server.listening()
    shutil.rmtree(server.outbox.directory)
    wait_until(lambda: not first.is_running(), "the worker has ended")
    server.listening()
    assert "outbox: its files were deleted: stopping" in server.log()


def test_workers_end_when_their_parent_is_killed_and_the_port_is_free_again(server: Server) -> None:
    """Workers left behind would hold the port and the outbox, and keep `serve` from starting again."""
    parent = server.start("--workers", "2")
    workers = server.listening(2)
    parent.kill()
    wait_until(lambda: not any(worker.is_running() for worker in workers), "the workers are gone")
    port = int(server.target.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def status_over(raw: socket.socket, headers: str = "") -> int:
    """Ask for a score on a connection; 0 when it is closed without an answer."""
    head = f"POST /v1/score HTTP/1.1\r\nHost: test\r\nContent-Type: application/x-protobuf\r\n{headers}"
    raw.sendall(f"{head}Content-Length: {len(PAYMENT)}\r\n\r\n".encode() + PAYMENT)
    answer = raw.recv(65536)
    return int(answer.split()[1]) if answer else 0


def test_tls_and_tokens_are_required_and_reloaded_while_serving(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.sign("server")
    tokens = tmp_path / "tokens"
    tokens.write_text("checkout:first-token-0123456789\n")
    tokens.chmod(0o600)
    more = f'[tls]\ncertificate = "{certificate}"\nkey = "{key}"\n[auth]\ntokens_file = "{tokens}"\n'
    context = ssl.create_default_context(cafile=authority.path)
    with Server(tmp_path, more=more) as server:
        server.start()
        server.listening()
        address = urllib.parse.urlsplit(server.target)
        assert address.scheme == "https"
        assert address.port is not None

        def asked(token: str) -> tuple[int, str]:
            with (
                socket.create_connection(("127.0.0.1", address.port or 0), timeout=PATIENCE_S) as raw,
                context.wrap_socket(raw, server_hostname="127.0.0.1") as wrapped,
            ):
                shown = x509.load_der_x509_certificate(wrapped.getpeercert(binary_form=True) or b"")
                (name,) = shown.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
                return status_over(wrapped, f"Authorization: Bearer {token}\r\n"), str(name.value)

        assert asked("first-token-0123456789") == (200, "server")
        assert asked("other-token-0123456789") == (401, "server")
        tokens.write_text("wallet:other-token-0123456789\n")
        for new, old in zip(authority.sign("renewed"), (certificate, key), strict=True):
            shutil.copy(new, old)
        wait_until(lambda: asked("other-token-0123456789") == (200, "renewed"), "both are taken up")
        assert asked("first-token-0123456789") == (401, "renewed")
        log = server.log()
        records = [OutboxEntry.FromString(each) for _, each in OutboxReader(server.outbox, "worker-0").read(0, 100)]
    assert "0123456789" not in log
    # Both have asked about one payment id, and each has a decision of his own.
    assert [record.caller for record in records] == ["checkout", "wallet"]


def test_health_and_metrics_have_a_port_of_their_own_and_come_back(server: Server) -> None:
    serve = server.start()
    grpc, admin = serve.first_line(), serve.first_line().removeprefix("admin ")
    assert grpc.startswith("grpc://")
    (worker,) = server.listening()
    assert post(f"{server.target}/v1/score", PAYMENT, "application/x-protobuf")[0] == 200
    wait_until(lambda: answers(f"{admin}/livez"), "the admin process listens")
    assert not is_ready(admin)
    writer = MirrorWriter(server.mirror)
    writer.apply({}, {0: 1}, 1)
    writer.close()
    wait_until(lambda: is_ready(admin), "a worker is ready, and the admin process knows")
    scored = ("paywarden_decisions_total", "review")
    assert samples(admin)[scored] == samples(server.target)[scored] == 1
    (process,) = [child for child in psutil.Process(serve.pid).children() if child.pid != worker.pid]
    process.kill()
    # Payments are scored meanwhile, and the same port answers again.
    assert post(f"{server.target}/v1/score", PAYMENT, "application/x-protobuf")[0] == 200
    wait_until(lambda: is_ready(admin), "the admin process is started again")
    assert worker.is_running()
    assert "the admin process ended with -9" in server.log()


def answers(url: str) -> bool:
    try:
        return get(url)[0] == 200
    except OSError:
        return False


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ('[tls]\ncertificate = "/nowhere"\nkey = "/nowhere"\n', "[tls] certificate: cannot read /nowhere"),
        ('[tls]\nclient_ca = "/nowhere"\n', "[tls] certificate: wanted a file"),
        ('[auth]\ntokens_file = "/nowhere"\n', "[auth] tokens_file: cannot read /nowhere"),
        ("[admission]\ndeadline_ms = 0\n", "[admission] deadline_ms: wanted at least 1, got 0"),
        (
            "connections_max = 2_000_000_000\n",
            "a worker needs 2000004192 open files ([http] connections_max 2000000000 + ",
        ),
        ("idle_timeout_ms = 0\n", "[http] idle_timeout_ms: wanted at least 1, got 0"),
    ],
)
def test_a_wrong_setting_is_one_line_before_any_worker_starts(tmp_path: Path, more: str, named: str) -> None:
    assert refused(Server(tmp_path, more=more)).startswith(f"paywarden: {named}")


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused(Server(tmp_path, port=port))
    assert line.startswith(f"paywarden: cannot listen on 127.0.0.1:{port}: ")


def test_a_bundle_that_is_refused_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    bundle = small_world.copied_bundle(tmp_path / "b")
    os.truncate(bundle / "model.txt", 100)
    line = refused(Server(tmp_path, bundle=bundle))
    assert line == f"paywarden: bundle {bundle}: model.txt has a wrong checksum"


def test_no_workers_are_refused(server: Server) -> None:
    assert refused(server, "--workers", "0") == "paywarden: --workers: wanted at least 1, got 0"
