"""A step of `paywarden stream` that fails ends the process: one line, exit status 1, within the stop timeout.

The process is the real one, on the embedded broker. An error is put into one of its steps, by the step's name.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.embedded_broker import EmbeddedBroker
from paywarden.streams.kafka.producers import make_transactional_producer
from tests.services.processes import Deployment, _environment, is_ready, samples, wait_until

STOP_TIMEOUT_S = 6
# `paywarden stream` in which a step raises as soon as a file is there.
PROGRAM = """
import asyncio, importlib, os, sys
module, owner, step, error, switch, config = sys.argv[1:]
owner = getattr(importlib.import_module(module), owner)
works = getattr(owner, step)

async def broken(*arguments, **options):
    if os.path.exists(switch):
        raise {"cancelled": asyncio.CancelledError, "error": RuntimeError}[error]("injected")
    return await works(*arguments, **options)

setattr(owner, step, broken)
sys.argv = ["paywarden", "--config", config, "stream"]
from paywarden.ops.cli import main
main()
"""
ERRORS = ["cancelled", "error"]
IN_A_START = [
    ("paywarden.streams.faust.web", "HealthWeb", "start_server"),
    ("paywarden.streams.faust.consumer", "_ConsumerThread", "on_start"),
    ("paywarden.streams.faust.consumer", "HoldingConsumer", "on_start"),
    ("paywarden.streams.faust.partition_agent", "PartitionAgent", "_taken"),
]
IN_A_RUN = [
    ("paywarden.streams.faust.partition_agent", "PartitionAgent", "save"),
    ("paywarden.streams.faust.partition_agent", "PartitionAgent", "_save_partition"),
    ("paywarden.streams.faust.consumer", "HoldingConsumer", "commit_offsets"),
    ("paywarden.streams.faust.consumer", "HoldingConsumer", "_getmany"),
]
IN_A_STOP = [
    ("paywarden.streams.faust.supervised", "SupervisedThread", "on_stop"),
    ("paywarden.streams.faust.partition_agent", "PartitionAgent", "_save_last"),
    ("paywarden.streams.faust.partition_agent", "PartitionAgent", "save"),
    ("paywarden.streams.faust.app", "StreamApp", "on_stop"),
]


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    embedded = EmbeddedBroker()
    yield embedded
    embedded.close()


@pytest.fixture
def deployment(tmp_path: Path, broker: EmbeddedBroker) -> Deployment:
    made = Deployment(tmp_path, broker.bootstrap, "")
    made.configure("stream", f"stop_timeout_s = {STOP_TIMEOUT_S}\n")
    made.configure("kafka", "check_crcs = false\n")
    return made


class BrokenStream:
    """A stream with a step that fails once `break_it` is called."""

    def __init__(
        self, deployment: Deployment, step: tuple[str, str, str], error: str, *, at_once: bool = False
    ) -> None:
        self._switch = deployment.folder / "broken"
        if at_once:
            self.break_it()
        arguments = [*step, error, str(self._switch), str(deployment.config)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(),
        )
        self.address = self._first_line()

    def break_it(self) -> None:
        self._switch.touch()

    def ended(self) -> tuple[int, str]:
        """Exit status and last line on stderr."""
        try:
            _, errors = self.process.communicate(timeout=60)
        finally:
            self.process.kill()
        return self.process.returncode, errors.splitlines()[-1]

    def _first_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def names(steps: list[tuple[str, str, str]]) -> list[str]:
    return [f"{owner}.{step}" for _, owner, step in steps]


def decide(broker: EmbeddedBroker) -> None:
    """A transaction on decisions, as the companion writes them; these records are not readable."""
    settings, host = KafkaSettings(bootstrap=broker.bootstrap), f"test-{time.monotonic_ns()}"
    producer = make_transactional_producer(settings, host, linger_ms=0, transaction_timeout_ms=10_000)
    producer.init_transactions(10)
    producer.begin_transaction()
    for number in range(20):
        producer.produce("decisions", b"not avro", key=str(number))
    producer.commit_transaction(10)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("step", IN_A_START, ids=names(IN_A_START))
def test_a_step_of_the_start_that_fails_ends_the_process(
    step: tuple[str, str, str], error: str, deployment: Deployment
) -> None:
    stream = BrokenStream(deployment, step, error, at_once=True)
    status, line = stream.ended()
    assert (status, line.startswith("paywarden: ")) == (1, True), line


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("step", IN_A_RUN, ids=names(IN_A_RUN))
def test_a_step_of_the_run_that_fails_ends_the_process(
    step: tuple[str, str, str], error: str, deployment: Deployment, broker: EmbeddedBroker
) -> None:
    stream = BrokenStream(deployment, step, error)
    wait_until(lambda: is_ready(stream.address), "the stream is ready")
    stream.break_it()
    decide(broker)
    status, line = stream.ended()
    assert (status, line.startswith("paywarden: ")) == (1, True), line


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("step", IN_A_STOP, ids=names(IN_A_STOP))
def test_a_step_of_the_stop_that_fails_ends_the_process(
    step: tuple[str, str, str], error: str, deployment: Deployment
) -> None:
    stream = BrokenStream(deployment, step, error)
    wait_until(lambda: is_ready(stream.address), "the stream is ready")
    stream.break_it()
    stream.process.send_signal(signal.SIGTERM)
    status, line = stream.ended()
    assert (status, line.startswith("paywarden: ")) == (1, True), line


def test_decisions_in_transactions_are_read_from_the_embedded_broker(
    deployment: Deployment, broker: EmbeddedBroker
) -> None:
    with deployment:
        stream = deployment.start("stream")
        address = stream.first_line()
        decide(broker)
        wait_until(lambda: ("paywarden_drift_undecodable_total",) in samples(address), "decisions are read")
        assert stream.stop() == 0
        assert "Traceback" not in stream.log.read_text(encoding="utf-8")


def test_a_record_with_a_wrong_checksum_ends_the_process(deployment: Deployment, broker: EmbeddedBroker) -> None:
    """The markers of the embedded broker's transactions have one; on a real broker the record would be damaged."""
    text = deployment.config.read_text(encoding="utf-8")
    deployment.config.write_text(text.replace("check_crcs = false\n", ""), encoding="utf-8")
    with deployment:
        stream = deployment.start("stream")
        decide(broker)
        assert stream.process.wait(timeout=60) == 1
        lines = stream.log.read_text(encoding="utf-8").splitlines()
        assert lines[-1].startswith("paywarden: Kafka gave a record with a wrong checksum")
        assert not [line for line in lines if "Traceback" in line]
