"""A second `serve --take-over` takes the place of the first one, of another catalogue or not. No call is refused."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from paywarden.models.bundle.bundle import read_manifest
from paywarden.models.policy.policy import PolicySettings, policy_digest
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.server.deployment.deployment_file import DEPLOYMENT, Deployment, ReleasePaths, write_deployment
from paywarden.scoring.server.takeover import take_over
from paywarden.scoring.state.outbox import OutboxReader, workers
from paywarden.streams.companion.mirror_writer import MirrorWriter
from tests.patience import PATIENCE_S
from tests.services.product.processes import PaywardenProcess, run_paywarden, wait_for_listener, wait_until
from tests.services.product.scoring_server import PATIENT, PAYMENT, Server
from tests.worlds.small import small_world


class Caller:
    """Calls without a pause: on a connection that it keeps as long as it may, and on a new one each time."""

    def __init__(self, address: str) -> None:
        self._address, self._over = address, threading.Event()
        self.answers: dict[str, str] = {}
        self.model = ""
        self.trouble: list[str] = []
        self._threads = [threading.Thread(target=self._call, args=(name,)) for name in ("kept", "new")]

    def __enter__(self) -> Caller:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self, count: int) -> None:
        """Wait until this number of further calls were answered, or one was not."""
        before = len(self.answers)
        wait_until(lambda: bool(self.trouble) or len(self.answers) > before + count, "calls are answered")
        assert self.trouble == []

    def _call(self, name: str) -> None:
        connection: http.client.HTTPConnection | None = None
        number = 0
        while not self._over.is_set():
            number += 1
            connection = connection or http.client.HTTPConnection(self._address, timeout=PATIENCE_S)
            request = ScoreRequest.FromString(PAYMENT)
            request.payment_id = f"{name}-{number}"
            try:
                connection.request(
                    "POST", "/v1/score", request.SerializeToString(), {"content-type": "application/x-protobuf"}
                )
                response = connection.getresponse()
                body = response.read()
            except (OSError, http.client.HTTPException) as error:
                self.trouble.append(f"{name} {number}: {error!r}")
                break
            if response.status != 200:
                self.trouble.append(f"{name} {number}: {response.status} {body!r}")
            answer = ScoreResponse.FromString(body)
            self.answers[request.payment_id], self.model = answer.decision_id, answer.model_version
            if name == "new" or response.getheader("connection") == "close":
                connection.close()
                connection = None
        if connection is not None:
            connection.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, more=PATIENT) as made:
        yield made


def decided(server: Server) -> dict[str, str]:
    """Returns the decision of every payment in all outboxes; a payment that was decided twice fails."""
    found: dict[str, str] = {}
    for worker in workers(server.outbox):
        reader, position = OutboxReader(server.outbox, worker), 0
        while records := reader.read(position, 10_000):
            position = records[-1][0]
            for _, payload in records:
                entry = OutboxEntry.FromString(payload)
                assert found.setdefault(entry.request.payment_id, entry.response.decision_id)
                assert found[entry.request.payment_id] == entry.response.decision_id
    return found


def test_new_software_takes_the_ports_over_without_a_refused_call(server: Server, tmp_path: Path) -> None:
    first = server.start("--workers", "2")
    server.listening(2)
    address = urllib.parse.urlsplit(server.target).netloc
    parents = [first]
    with Caller(address) as caller:
        # Fewer workers than before, then more, then as many.
        for round_number, count in enumerate((1, 3, 3)):
            caller.goes_on(50)
            folder = tmp_path / f"round-{round_number}"
            folder.mkdir()
            parents.append(PaywardenProcess(folder, server.config, "serve", "--workers", str(count), "--take-over"))
            assert parents[-1].first_line() == server.target
            assert parents[-2].process.wait(timeout=PATIENCE_S) == 0
            parents[-2]._close()
            caller.goes_on(50)
    assert caller.trouble == []
    assert decided(server).items() >= caller.answers.items()
    last = parents[-1]
    (port,) = {urllib.parse.urlsplit(server.target).port}
    children = psutil.Process(last.pid).children()
    listening = [child for child in children if port in {each.laddr.port for each in child.net_connections("tcp")}]
    assert len(listening) == 3
    # A worker that is started again has a listener of its own.
    listening[0].kill()
    wait_until(lambda: not listening[0].is_running(), "the worker is gone")
    with Caller(address) as caller:
        caller.goes_on(100)
    assert caller.trouble == []
    assert last.stop() == 0


def test_a_host_that_is_given_up_by_the_new_one_goes_on(server: Server, tmp_path: Path) -> None:
    parent = server.start()
    server.listening()
    address = urllib.parse.urlsplit(server.target).netloc
    with Caller(address) as caller:
        for _ in range(3):
            taken = take_over(tmp_path / "serve")
            assert taken is not None
            assert taken.port_of("http") == int(address.split(":")[1])
            for listener in (one for found in taken.sockets.values() for one in found):
                listener.close()
            taken.connection.close()
            caller.goes_on(20)
        # One that dies while it holds the sockets.
        other = PaywardenProcess(tmp_path / "serve", server.config, "serve", "--take-over")
        other.process.send_signal(signal.SIGKILL)
        other.process.wait(timeout=PATIENCE_S)
        other._close()
        caller.goes_on(50)
    assert caller.trouble == []
    assert parent.process.poll() is None


def test_a_port_that_the_host_does_not_have_is_refused(server: Server, tmp_path: Path) -> None:
    server.start()
    server.listening()
    other = tmp_path / "other.toml"
    other.write_text(server.config.read_text(encoding="utf-8").replace("[http]\nport = 0", "[http]\nport = 1"), "utf-8")
    done = run_paywarden("--config", str(other), "serve", "--take-over")
    assert done.returncode == 1
    assert "[http] port: wanted" in done.stderr
    assert server.parent.process.poll() is None


def test_without_a_host_it_starts_as_usual(server: Server) -> None:
    server.start("--take-over")
    server.listening()
    assert "there is no host to take over" in server.log()


# A version takes the digest of its catalogue from its first argument. All else of the two is in their configurations.
PROGRAM = """
import sys
from paywarden.ops.cli import main
from paywarden.scoring.server.context import ServerContext
name = sys.argv.pop(1)
ServerContext.catalogue_digest = property(lambda _: name)
main()
"""
BUNDLES = {"blue": small_world.trained_bundle, "green": small_world.other_bundle}


class Versions:
    """Two versions with own catalogues, mirrors and outboxes, which share runtime, ports and decision cache."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runtime = folder, folder / "serve"
        self.servers = {name: Server(self._made(name), bundle=BUNDLES[name](), more=PATIENT) for name in BUNDLES}
        self.processes: list[PaywardenProcess] = []
        for server in self.servers.values():
            text = server.config.read_text(encoding="utf-8")
            for shared in ("serve", "answered"):
                text = text.replace(f"{server.folder / shared}", f"{folder / shared}")
            server.config.write_text(text, encoding="utf-8")
            writer = MirrorWriter(server.mirror)
            writer.apply({}, {0: 1}, 1)
            writer.close()

    def _made(self, name: str) -> Path:
        (self.folder / name).mkdir()
        return self.folder / name

    def start(self, name: str) -> PaywardenProcess:
        config = str(self.servers[name].config)
        arguments = ("--config", config, "serve", "--take-over")
        self.processes.append(PaywardenProcess.of_program(self.folder, PROGRAM, name, *arguments))
        return self.processes[-1]

    def refused(self, name: str) -> str:
        """Start a version that does not take over; returns its error."""
        process = self.start(name)
        assert process.process.wait(timeout=PATIENCE_S) == 1
        return process.log.read_text(encoding="utf-8").splitlines()[-1]

    def order(self, name: str) -> None:
        bundle = BUNDLES[name]()
        paths = ReleasePaths(str(bundle), "", read_manifest(bundle).digest, policy_digest(PolicySettings(), {}))
        self.runtime.mkdir(mode=0o700, exist_ok=True)
        write_deployment(self.runtime / DEPLOYMENT, Deployment(paths, catalogue=name))

    def model_of(self, name: str) -> str:
        return read_manifest(BUNDLES[name]()).model_version


@pytest.fixture
def versions(tmp_path: Path) -> Iterator[Versions]:
    made = Versions(tmp_path)
    yield made
    for process in made.processes:
        process.stop()


def test_a_version_of_another_catalogue_takes_over_and_back_without_a_refused_call(versions: Versions) -> None:
    versions.order("blue")
    address = urllib.parse.urlsplit(versions.start("blue").first_line()).netloc
    wait_for_listener(address)
    with Caller(address) as caller:
        caller.goes_on(5)
        for name in ("green", "blue"):
            versions.order(name)
            before = versions.processes[-1]
            assert versions.start(name).first_line() == f"http://{address}"
            wait_until(lambda name=name: caller.model == versions.model_of(name), f"{name} decides")  # type: ignore[misc]
            assert before.process.wait(timeout=PATIENCE_S) == 0
            caller.goes_on(5)
    assert caller.trouble == []


def test_a_version_takes_over_only_with_a_mirror_and_when_its_catalogue_is_named(versions: Versions) -> None:
    versions.order("blue")
    address = urllib.parse.urlsplit(versions.start("blue").first_line()).netloc
    wait_for_listener(address)
    with Caller(address) as caller:
        caller.goes_on(5)
        assert "deployment.json lets the catalogue blue decide, and this host's is green" in versions.refused("green")
        versions.order("green")
        mirror = versions.servers["green"].mirror.data_file
        os.rename(mirror, mirror.with_suffix(".away"))
        assert f"there is no mirror at {mirror.parent} yet" in versions.refused("green")
        caller.goes_on(5)
    assert caller.trouble == []
    assert caller.model == versions.model_of("blue")
