"""A failing step of `paywarden stream` ends the process with one line and exit status 1, soon enough.

A failing step of a `companion` stops its own part only, until the process ends. The processes are real and use the
embedded broker. The test replaces one step of a process, by its name, with one that fails.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.state.outbox import OutboxSettings, OutboxWriter
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.embedded_broker import EmbeddedBroker
from paywarden.streams.kafka.producers import Sender, make_transactional_producer
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.services.product.processes import PaywardenProcess, get, is_ready, samples, wait_until

STOP_TIMEOUT_S = 6
# Runs a command in which a step raises, or never ends, once a file exists.
PROGRAM = """
import asyncio, importlib, inspect, os, sys, time
command, module, owner, step, fault, switch, config = sys.argv[1:]
owner = getattr(importlib.import_module(module), owner)
works = getattr(owner, step)

def fail():
    if os.path.exists(switch):
        if fault == "hang":
            time.sleep(60)
        raise {"cancelled": asyncio.CancelledError, "error": RuntimeError}[fault]("injected")

def broken(*arguments, **options):
    fail()
    return works(*arguments, **options)

async def broken_coroutine(*arguments, **options):
    fail()
    return await works(*arguments, **options)

setattr(owner, step, broken_coroutine if inspect.iscoroutinefunction(works) else broken)
sys.argv = ["paywarden", "--config", config, command]
from paywarden.ops.cli import main
main()
"""
# A process takes seconds to start, so each step fails in one of the ways.
ERRORS = ["cancelled", "error", "cancelled", "error"]
WORKER = ("paywarden.streams.counts.partition_worker", "PartitionWorker")
CONSUMER = ("paywarden.streams.kafka.group_consumer", "BatchConsumer")
AGENTS = ("paywarden.streams.faust.app", "FaustAgents")
IN_A_START = [
    ("paywarden.streams.health.parts", "Parts", "run"),
    (*CONSUMER, "subscribe"),
    (*AGENTS, "_run"),
    (*WORKER, "_take_over"),
]
IN_A_RUN = [
    (*WORKER, "step"),
    (*WORKER, "_save"),
    (*CONSUMER, "_commit"),
    (*AGENTS, "_look"),
]
IN_A_STOP = [
    (*WORKER, "_save"),
    (*CONSUMER, "close"),
]


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    embedded = EmbeddedBroker()
    yield embedded
    embedded.close()


@pytest.fixture
def deployment(tmp_path: Path, broker: EmbeddedBroker) -> Deployment:
    made = Deployment(tmp_path, broker.bootstrap, "")
    made.configure_internally("stream", stop_timeout_s=STOP_TIMEOUT_S)
    made.configure("companion", "fill_from_store = false\n")
    made.configure_internally("companion", stop_timeout_s=STOP_TIMEOUT_S)
    made.configure("kafka", "check_crcs = false\n")
    return made


class Broken:
    """A command with a step that fails once `break_it` is called."""

    def __init__(
        self,
        deployment: Deployment,
        step: tuple[str, str, str],
        fault: str,
        *,
        at_once: bool = False,
        command: str = "stream",
    ) -> None:
        self._switch = deployment.folder / "broken"
        if at_once:
            self.break_it()
        arguments = [command, *step, fault, str(self._switch), str(deployment.config)]
        self._process = PaywardenProcess.of_program(deployment.folder, PROGRAM, *arguments)
        self.process = self._process.process
        self.address = self._process.first_line()

    def break_it(self) -> None:
        self._switch.touch()

    def repair(self) -> None:
        self._switch.unlink()

    def ended(self) -> tuple[int, str]:
        """Returns exit status and last line on stderr."""
        status = self.process.wait(timeout=PATIENCE_S)
        lines = self._process.log.read_text(encoding="utf-8").splitlines()
        return status, lines[-1]

    def kill(self) -> None:
        self._process.kill()


Begin = Callable[..., Broken]


@pytest.fixture
def begin(deployment: Deployment) -> Iterator[Begin]:
    """Returns a function that starts a command with a failing step. The command ends with the test."""
    running: list[Broken] = []

    def begin_one(step: tuple[str, str, str], fault: str, **options: Any) -> Broken:
        running.append(Broken(deployment, step, fault, **options))
        return running[-1]

    yield begin_one
    for one in running:
        one.kill()


def names(steps: list[tuple[str, str, str]]) -> list[str]:
    return [f"{owner}.{step}" for _, owner, step in steps]


def decide(broker: EmbeddedBroker, topic: str = "decisions") -> None:
    """Write a transaction on a topic, as the companion does on decisions. These records cannot be decoded."""
    settings, host = KafkaSettings(bootstrap=broker.bootstrap), f"test-{time.monotonic_ns()}"
    producer = make_transactional_producer(settings, host, linger_ms=0, transaction_timeout_ms=600_000)
    producer.init_transactions(PATIENCE_S)
    producer.begin_transaction()
    for number in range(20):
        producer.produce(topic, b"not avro", key=str(number))
    producer.commit_transaction(PATIENCE_S)


@pytest.mark.parametrize(("step", "error"), list(zip(IN_A_START, ERRORS, strict=True)), ids=names(IN_A_START))
def test_a_failing_step_of_the_start_ends_the_process(step: tuple[str, str, str], error: str, begin: Begin) -> None:
    stream = begin(step, error, at_once=True)
    status, line = stream.ended()
    assert (status, line.startswith("paywarden: ")) == (1, True), line


@pytest.mark.parametrize(("step", "error"), list(zip(IN_A_RUN, ERRORS, strict=True)), ids=names(IN_A_RUN))
def test_a_failing_step_of_the_run_ends_the_process(
    step: tuple[str, str, str], error: str, begin: Begin, broker: EmbeddedBroker
) -> None:
    stream = begin(step, error)
    wait_until(lambda: is_ready(stream.address), "the stream is ready")
    stream.break_it()
    decide(broker)
    status, line = stream.ended()
    assert (status, line.startswith("paywarden: ")) == (1, True), line


@pytest.mark.parametrize(("step", "error"), list(zip(IN_A_STOP, ERRORS, strict=False)), ids=names(IN_A_STOP))
def test_a_failing_step_of_the_stop_ends_the_process(step: tuple[str, str, str], error: str, begin: Begin) -> None:
    stream = begin(step, error)
    wait_until(lambda: is_ready(stream.address), "the stream is ready")
    stream.break_it()
    stream.process.send_signal(signal.SIGTERM)
    status, line = stream.ended()
    assert (status, line.startswith("paywarden: ")) == (1, True), line


@pytest.mark.parametrize("step", IN_A_STOP[:2], ids=names(IN_A_STOP[:2]))
def test_a_stop_that_hangs_is_ended_within_the_stop_timeout(step: tuple[str, str, str], begin: Begin) -> None:
    stream = begin(step, "hang")
    wait_until(lambda: is_ready(stream.address), "the stream is ready")
    stream.break_it()
    stream.process.send_signal(signal.SIGTERM)
    wanted = f"paywarden: the stream did not stop within {STOP_TIMEOUT_S} s and is ended"
    status, line = stream.ended()
    assert (status, line.partition(";")[0]) == (1, wanted)


@pytest.mark.parametrize(
    ("step", "fault", "wanted"),
    [
        (
            ("paywarden.streams.companion.shipping", "Shipper", "drain"),
            "error",
            "a bug ended the companion: RuntimeError",
        ),
        (
            ("paywarden.streams.companion.shipping", "Shipper", "drain"),
            "hang",
            "the companion did not stop within 6 s and is ended",
        ),
    ],
)
def test_a_companion_that_cannot_ship_the_last_decisions_ends_and_says_so(
    step: tuple[str, str, str], fault: str, wanted: str, begin: Begin
) -> None:
    companion = begin(step, fault, command="companion", at_once=True)
    wait_until(lambda: b"has not started" not in get(f"{companion.address}/readyz")[2], "the companion works")
    companion.process.send_signal(signal.SIGTERM)
    status, line = companion.ended()
    assert (status, line.startswith(f"paywarden: {wanted}")) == (1, True), line


APPLIED, WAITING = "paywarden_companion_profiles_applied_total", "paywarden_companion_outbox_waiting_bytes"


@pytest.mark.parametrize(
    "step",
    [
        ("paywarden.streams.companion.companion", "Companion", "_start_following"),
        ("paywarden.streams.companion.companion", "Companion", "step"),
        ("paywarden.streams.companion.shipping", "Shipper", "advance"),
    ],
    ids=["start", "mirror", "shipping"],
)
def test_a_failed_part_of_the_companion_ends_it_and_the_next_goes_on(
    deployment: Deployment, broker: EmbeddedBroker, begin: Begin, step: tuple[str, str, str]
) -> None:
    leave_a_decision(deployment)
    send_a_profile(broker)
    companion = begin(step, "error", command="companion", at_once=True)
    status, line = companion.ended()
    assert (status, line) == (1, "paywarden: a bug ended the companion: RuntimeError: injected")
    companion.repair()
    companion = begin(step, "error", command="companion")
    wait_until(lambda: samples(companion.address).get((APPLIED,), 0) >= 1, "the profile is in the mirror")
    wait_until(
        lambda: samples(companion.address, zeros=True).get((WAITING, "worker-0"), 1) == 0, "the decision is shipped"
    )
    companion.process.send_signal(signal.SIGTERM)
    assert companion.ended()[0] == 0


def leave_a_decision(deployment: Deployment) -> None:
    """Write a decision into an outbox, as a scoring worker does."""
    writer = OutboxWriter(OutboxSettings(directory=str(deployment.outbox)), "worker-0")
    entry = OutboxEntry(
        request=ScoreRequest(payment_id="p", card_id="c", merchant_id="m", currency="EUR"),
        response=ScoreResponse(payment_id="p", decision_id="d", action="approve"),
        decided_time_ms=1,
    )
    writer.append(entry.SerializeToString())
    writer.close()


def send_a_profile(broker: EmbeddedBroker) -> None:
    """Write a state to the changelog, as a stream worker does."""
    record = {"entity": "card", "state": b"a state", "written_time_ms": 1}
    sender = Sender(KafkaSettings(bootstrap=broker.bootstrap), linger_ms=0)
    value = Encoder("profiles", LocalSchemaIds().id_of("profiles")).encode(record)
    sender.send("profiles", value, key=b"card:c")
    sender.flush(PATIENCE_S)


def test_a_record_with_a_wrong_checksum_ends_the_process(deployment: Deployment, broker: EmbeddedBroker) -> None:
    """The markers of the embedded broker's transactions have a wrong checksum. On a real broker it means damage."""
    text = deployment.config.read_text(encoding="utf-8")
    deployment.config.write_text(text.replace("check_crcs = false\n", ""), encoding="utf-8")
    with deployment:
        stream = deployment.start("stream")
        decide(broker, "dead-letters")
        assert stream.process.wait(timeout=PATIENCE_S) == 1
        lines = stream.log.read_text(encoding="utf-8").splitlines()
        assert lines[-1].startswith("paywarden: Kafka gave a record with a wrong checksum")
        assert not [line for line in lines if "Traceback" in line]
