"""Faust in its part of the process, without Kafka: the settings that it gets, its stop, and its failures."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import faust
import pytest
from aiokafka.errors import KafkaConnectionError
from faust.types import ProcessingGuarantee

from paywarden.schemas.errors import BrokerUnavailable
from paywarden.streams.faust.app import FaustAgents, app_options
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.profiles.stream_settings import StreamSettings
from tests.patience import PATIENCE_S

# What Faust leaves open when it has not reached Kafka ends with the process.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning"
)


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    yield
    gc.collect()


KAFKA = KafkaSettings(bootstrap="127.0.0.1:1")


def test_faust_ignores_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BROKER_URL", "APP_DEBUG", "DEBUG", "TOPIC_ALLOW_DECLARE", "PROCESSING_GUARANTEE", "APP_DATADIR"):
        monkeypatch.setenv(name, "1")
    conf = faust.App("g-faust", **app_options(KAFKA, StreamSettings())).conf
    assert [str(url) for url in conf.broker] == ["kafka://127.0.0.1:1"]
    assert not conf.topic_allow_declare
    assert not conf.web_enabled
    assert conf.producer_compression_type == "gzip"
    assert str(conf.processing_guarantee) == str(ProcessingGuarantee.AT_LEAST_ONCE)


def test_a_stop_ends_faust_soon_and_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    agents, stop = FaustAgents(KAFKA, StreamSettings(), []), threading.Event()
    assert agents.problems() == ("the agents have not started",)
    stop.set()
    began = time.monotonic()
    agents.run(stop)
    assert time.monotonic() - began < PATIENCE_S
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_fausts_start_is_raised_as_ours() -> None:
    def fail(app: faust.App) -> None:
        async def start() -> None:
            raise KafkaConnectionError("no broker")

        app.start = start  # type: ignore[method-assign]

    with pytest.raises(BrokerUnavailable, match="KafkaConnectionError"):
        FaustAgents(KAFKA, StreamSettings(), [fail]).run(threading.Event())
