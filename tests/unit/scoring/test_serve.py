"""The scoring host as a process: `python -m ops serve`, its parent and its workers."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from schemas.scoring_pb2 import ScoreRequest, ScoreResponse
from scoring.mirror import MirrorSettings, MirrorWriter
from scoring.outbox import OutboxSettings, OutboxWriter
from tests import small_world
from tests.processes import PaywardenProcess, is_ready, post, run_paywarden, wait_until


class Server:
    """A configured `serve`; `with` ends it."""

    def __init__(self, folder: Path, *, port: int = 0, bundle: Path | None = None) -> None:
        self.folder = folder
        self.mirror = MirrorSettings(path=str(folder / "mirror"), size_mb=16)
        self.outbox = OutboxSettings(directory=str(folder / "outbox"))
        self.config = folder / "paywarden.toml"
        self.config.write_text(
            f'[serve]\nbundle = "{bundle or small_world.trained_bundle()}"\nmetrics = "{folder / "metrics"}"\n'
            f'[mirror]\npath = "{self.mirror.path}"\nsize_mb = {self.mirror.size_mb}\n'
            f'[outbox]\ndirectory = "{self.outbox.directory}"\n'
            f"[http]\nport = {port}\n[grpc]\nport = 0\n"
            f'[answered]\npath = "{folder / "answered"}"\npayments_max = 1000\n',
            encoding="utf-8",
        )
        self.workers: list[psutil.Process] = []

    def start(self, *arguments: str) -> PaywardenProcess:
        self.parent = PaywardenProcess(self.folder, self.config, "serve", *arguments)
        self.target = self.parent.first_line()
        return self.parent

    def listening(self, count: int = 1) -> list[psutil.Process]:
        """The workers, once as many listen."""
        parent = psutil.Process(self.parent.pid)

        def found() -> bool:
            self.workers = [child for child in parent.children() if child.net_connections("tcp")]
            return len(self.workers) == count

        wait_until(found, f"{count} workers listen")
        return self.workers

    def log(self) -> str:
        return self.parent.log.read_text(encoding="utf-8")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "parent") and self.parent.process.poll() is None:
            self.parent.stop()


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
    request = ScoreRequest(
        payment_id="p", event_time_ms=1, card_id="c", merchant_id="m", amount_minor=1, currency="EUR"
    )
    status, body = post(f"{server.target}/v1/score", request.SerializeToString(), "application/x-protobuf")
    assert status == 200
    assert list(ScoreResponse.FromString(body).flags) == ["mirror_absent"]


def test_a_worker_becomes_ready_when_a_companion_has_filled_the_mirror(server: Server) -> None:
    server.start()
    server.listening()
    assert not is_ready(server.target)
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
    assert parent.process.wait(timeout=30) == 0
    parent._close()


def test_a_killed_worker_is_started_again_on_the_same_port(server: Server) -> None:
    server.start()
    (first,) = server.listening()
    first.kill()
    wait_until(lambda: not first.is_running(), "the worker is gone")
    (second,) = server.listening()
    assert second.pid != first.pid
    request = ScoreRequest(
        payment_id="p", event_time_ms=1, card_id="c", merchant_id="m", amount_minor=1, currency="EUR"
    )
    assert post(f"{server.target}/v1/score", request.SerializeToString(), "application/x-protobuf")[0] == 200
    assert "worker 0 ended with -9; starting it again" in server.log()


def test_a_worker_that_cannot_start_says_why_and_a_stop_does_not_wait_for_its_pause(server: Server) -> None:
    taken = OutboxWriter(server.outbox, "worker-0")
    parent = server.start()
    wait_until(lambda: server.log().count("starting it again") >= 4, "the worker was started again and again")
    assert "worker 0: outbox" in server.log()
    assert "Traceback" not in server.log()
    parent.process.send_signal(signal.SIGTERM)
    assert parent.process.wait(timeout=30) == 0
    parent._close()
    taken.close()


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
