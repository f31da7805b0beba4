"""The life of the app around its pipeline, without Kafka: health, failures, stops, and the settings that Faust gets."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from faust.types import ProcessingGuarantee
from mode import Service
from prometheus_client import Counter

from paywarden.schemas.errors import BrokerUnavailable, Misconfigured, StoreUnavailable, TemporaryFailure
from paywarden.streams.faust.app import StreamApp, run
from paywarden.streams.health.health import metrics_registry
from paywarden.streams.health.process_end import ProcessEnd
from paywarden.streams.health.server import CONNECTIONS_MAX
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.profiles.settings import StreamSettings
from tests.patience import PATIENCE_S
from tests.services.product.processes import ROOT, wait_until


class FakePipeline:
    """A pipeline that runs until it is stopped or made to fail, and finishes only when `release` is set."""

    def __init__(self) -> None:
        self.missing: list[str] = []
        self.is_turning = True
        self.error: Exception | None = None
        self.release = threading.Event()
        self.release.set()
        self.finished = False

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(0.005):
            if self.error is not None:
                raise self.error
        self.release.wait()
        self.finished = True

    def problems(self) -> Sequence[str]:
        return self.missing

    def turns(self) -> bool:
        return self.is_turning


class World:
    """An app without Kafka, and the address it listens at."""

    def __init__(self, settings: StreamSettings | None = None) -> None:
        self.pipeline = FakePipeline()
        self.addresses: list[str] = []
        self.registry = metrics_registry()
        self.app = StreamApp(
            self.pipeline,
            kafka=KafkaSettings(bootstrap="127.0.0.1:1"),
            settings=settings or StreamSettings(),
            registry=self.registry,
            announce=self.addresses.append,
        )
        self.app.boot_strategy.enable_kafka = False

    def live(self, act: Callable[[World, asyncio.Event], Awaitable[None]]) -> None:
        """Run the app, and `act` once it is up. Raises the error that ended the app."""

        async def life() -> None:
            stop = asyncio.Event()
            running = asyncio.create_task(self.app.run_until(stop))
            while not running.done() and self.app.problems() and not self.pipeline.missing:
                await asyncio.sleep(0.01)
            if not running.done():
                await act(self, stop)
            await asyncio.wait_for(running, 30)

        try:
            asyncio.run(life())
        finally:
            # The loop of a consumer that was made but never started.
            self.app.consumer._thread.thread_loop.close()  # type: ignore[attr-defined]

    async def get(self, path: str) -> tuple[int, str]:
        return await asyncio.to_thread(self._get, path)

    def _get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.addresses[0] + path, timeout=PATIENCE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


async def stop_it(_: World, stop: asyncio.Event) -> None:
    stop.set()


def test_a_stop_lets_the_pipeline_finish_and_closes_the_server() -> None:
    world = World()
    world.live(stop_it)
    assert world.pipeline.finished
    assert len(world.addresses) == 1
    with pytest.raises(urllib.error.URLError):
        world._get("/livez")


def test_a_start_does_not_wait_for_tables_that_the_app_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faust gives tables a second to register, and joins the group only then."""
    world, recovered = World(), list[str]()
    consumer: Any = world.app.consumer

    async def unwanted(*_: object) -> None:
        raise AssertionError("the start sleeps")

    async def start(recovery: Service) -> None:
        recovered.append(type(recovery).__name__)

    async def check() -> None:
        tables: Any = world.app.tables
        monkeypatch.setattr(type(tables), "sleep", unwanted)
        monkeypatch.setattr(type(tables.recovery), "start", start)
        monkeypatch.setattr(world.app, "consumer", SimpleNamespace(assignment=set, pause_partitions=lambda _: None))
        await tables.on_start()
        await asyncio.wait_for(tables.wait_until_tables_registered(), PATIENCE_S)
        # Faust's services write warnings to the log, and this is one of them.
        assert tables.logger.name == "faust.services"

    try:
        asyncio.run(check())
    finally:
        consumer._thread.thread_loop.close()
    assert recovered == ["Recovery"]


def test_while_it_stops_it_is_live_but_not_ready() -> None:
    async def act(world: World, stop: asyncio.Event) -> None:
        world.pipeline.release.clear()
        stop.set()
        await asyncio.sleep(0.1)
        assert (await world.get("/livez"))[0] == 200
        status, body = await world.get("/readyz")
        assert (status, json.loads(body)["missing"]) == (503, ["the process is stopping"])
        world.pipeline.release.set()

    world = World()
    world.live(act)
    assert world.pipeline.finished


def test_a_pipeline_that_does_not_stop_in_time_is_abandoned_with_one_error() -> None:
    async def act(world: World, stop: asyncio.Event) -> None:
        world.pipeline.release.clear()
        stop.set()

    world = World(StreamSettings(stop_timeout_s=0))
    with pytest.raises(TemporaryFailure, match="in flight is abandoned"):
        world.live(act)
    world.pipeline.release.set()


def test_an_exception_of_the_pipeline_ends_the_app() -> None:
    async def act(world: World, _: asyncio.Event) -> None:
        world.pipeline.error = StoreUnavailable("the store is gone")

    with pytest.raises(StoreUnavailable, match="the store is gone"):
        World().live(act)


def test_a_bug_in_the_pipeline_is_raised_unchanged() -> None:
    async def act(world: World, _: asyncio.Event) -> None:
        world.pipeline.error = ZeroDivisionError("oh")

    with pytest.raises(ZeroDivisionError):
        World().live(act)


def test_an_exception_of_a_faust_service_stops_the_pipeline_and_the_app() -> None:
    async def act(world: World, _: asyncio.Event) -> None:
        async def broken() -> None:
            raise KafkaConnectionError("to 10.0.0.1")

        world.app.add_future(broken())

    world = World()
    with pytest.raises(BrokerUnavailable, match="KafkaConnectionError"):
        world.live(act)
    assert world.pipeline.finished


def test_readiness_follows_the_pipeline_and_names_what_is_missing() -> None:
    async def act(world: World, stop: asyncio.Event) -> None:
        assert await world.get("/readyz") == (200, '{"ready": true, "missing": []}')
        world.pipeline.missing = ["the store is away"]
        status, body = await world.get("/readyz")
        assert (status, json.loads(body)) == (503, {"ready": False, "missing": ["the store is away"]})
        assert (await world.get("/livez"))[0] == 200
        world.pipeline.is_turning = False
        assert (await world.get("/livez"))[0] == 503
        stop.set()

    World().live(act)


def test_the_metrics_page_shows_the_registry() -> None:
    async def act(world: World, stop: asyncio.Event) -> None:
        Counter("paywarden_test", "Of this test.", registry=world.registry).inc(3)
        status, body = await world.get("/metrics")
        assert status == 200
        assert "paywarden_test_total 3.0" in body
        assert "python_info" in body
        stop.set()

    World().live(act)


def test_a_host_of_another_machine_is_a_configuration_error() -> None:
    with pytest.raises(Misconfigured, match=r"\[stream\] http_host, http_port: cannot listen on 192\.0\.2\.1:0"):
        World(StreamSettings(http_host="192.0.2.1")).live(stop_it)


def test_faust_ignores_the_environment_and_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("BROKER_URL", "APP_DEBUG", "DEBUG", "TOPIC_ALLOW_DECLARE", "PROCESSING_GUARANTEE", "APP_DATADIR"):
        monkeypatch.setenv(name, "1")
    world = World(StreamSettings(group_id="g"))
    conf = world.app.conf
    assert [str(url) for url in conf.broker] == ["kafka://127.0.0.1:1"]
    assert conf.id == "g-faust"
    assert not conf.topic_allow_declare
    assert conf.topic_disable_leader
    assert conf.producer_compression_type == "gzip"
    assert str(conf.processing_guarantee) == str(ProcessingGuarantee.AT_LEAST_ONCE)
    world.live(stop_it)
    assert list(tmp_path.iterdir()) == []


SLOW_APP = """
from paywarden.streams.faust.app import run
from paywarden.streams.health.process_end import ProcessEnd
from paywarden.streams.health.server import CONNECTIONS_MAX
from tests.unit.streams.faust.test_app import World

world = World()
world.pipeline.release.clear()
world.app._announce = lambda _: print("up", flush=True)
with ProcessEnd("stream") as end:
    run(world.app, end)
"""


def test_an_agent_is_added_without_a_look_at_the_files_of_all_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python then asks the file system about thousands of files, at each start of a worker."""

    async def read(_: object) -> None: ...

    app, looked_up = World().app, list[object]()
    with monkeypatch.context() as patch:
        patch.setattr("inspect.getmodule", lambda found, *_: looked_up.append(found))
        app.add_agent(app.topic("payments"), "payments", read)
        app.add_task(lambda: read(None))
    assert not looked_up


def test_the_second_signal_ends_the_process_at_once() -> None:
    """The first signal waits for a batch that takes too long."""
    process = subprocess.Popen([sys.executable, "-c", SLOW_APP], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE_S) == -signal.SIGINT
    finally:
        process.kill()
        process.communicate()


def test_a_signal_from_before_the_start_ends_it_at_once() -> None:
    world, end = World(), ProcessEnd("stream")
    end.stop.set()
    run(world.app, end)
    assert world.addresses == []


def test_hanging_clients_keep_no_probe_out_of_the_stream() -> None:
    """Faust's own server bounds neither the connections nor the time of a request."""

    async def act(world: World, stop: asyncio.Event) -> None:
        host, port = world.addresses[0].removeprefix("http://").rsplit(":", 1)
        with ExitStack() as hanging:
            clients = [
                hanging.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE_S))
                for _ in range(3 * CONNECTIONS_MAX)
            ]
            for client in clients[::2]:
                client.sendall(b"GET /livez HTTP/1.1\r\nX: ")
            for _ in range(5):
                assert (await world.get("/livez"))[0] == 200
                assert (await world.get("/metrics"))[0] == 200
            # The oldest have made room.
            assert await asyncio.to_thread(is_cut, clients[0])
        stop.set()

    World().live(act)


def is_cut(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_an_event_loop_that_hangs_is_not_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """Health is served from threads, which answer although nothing else works."""
    monkeypatch.setattr("paywarden.streams.faust.app._TURN_S_MAX", 0.5)

    async def act(world: World, stop: asyncio.Event) -> None:
        def ask_until_dead() -> None:
            wait_until(lambda: world._get("/livez")[0] == 503, "it is not live", every_s=0.05)

        asking = threading.Thread(target=ask_until_dead)
        asking.start()
        # The loop waits for this thread and does nothing else.
        asking.join()
        stop.set()

    World().live(act)
