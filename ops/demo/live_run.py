"""The live part of `paywarden demo`: the embedded broker, the processes, the payments and the results.

World (a prepared past) ─► broker, stream, companion, serve ─► load ─► metrics of each process ─► summary
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from confluent_kafka import Consumer, Producer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from paywarden.ops.demo.processes import Parts, Patience, running_parts
from paywarden.ops.demo.verdict import MetricsReading, SentPayments, WorkDone, require_all_done, unfinished
from paywarden.ops.loadgen.load_run import LoadAnswer
from paywarden.ops.loadgen.traffic import run
from paywarden.ops.times import now_ms
from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.schemas.payment_fields import TABLE_ALONE, PaymentFields
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.schemas.request_proto import request_class
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.embedded_broker import EmbeddedBroker
from paywarden.streams.kafka.producers import make_producer
from paywarden.streams.kafka.reading import consume, make_consumer

LIVE_PREFIX = "live-"
"""Prefix of the ids of live payments."""
AGAIN = "~"
"""Stands in the id of a payment that is sent again, before the number of the round."""
# In reality an outcome comes days after its payment.
_OUTCOME_AFTER_S = 2.0
# One payment in this many has its outcome sent, together with one outcome of the history: in reality, too, there are
# fewer outcomes than payments. The outcomes of frauds are all sent.
_PAYMENTS_PER_OUTCOME = 10
# Counts are saved every two seconds. A busy machine takes longer, so this is how long nothing more was done.
_SETTLE_TIMEOUT_S = 60.0
_FLUSH_TIMEOUT_S = 300.0
_LOOK_EVERY_S = 0.25
_FLAGGED_MAX = 3

LOCAL_CONFIG = """\
[store]
kind = "lmdb"
[lmdb]
path = "{folder}/store"
[mirror]
path = "{memory}/mirror"
[outbox]
directory = "{folder}/outbox"
[answered]
path = "{memory}/answered"
{answered}[serve]
bundle = "{folder}/bundle"
metrics = "{memory}/metrics"
runtime = "{folder}/serve"
[http]
port = 0
[grpc]
port = 0
[kafka]
bootstrap = "{bootstrap}"
"""
"""Settings of all processes on one machine. It ends in the section of Kafka, so that more settings may follow.

`folder` holds a bundle and a store, `memory` is in memory. `answered` are lines of that section.
"""

# The overlay has room for the payments of two of its lifetimes, and a quarter more. A container has 64 MB of /dev/shm.
_PENDING_S, _PENDING_MIN = 25.0, 10_000
# All processes share the cores of one machine. The long deadlines keep payments from being refused while others use the
# cores. The stream reports its progress more often than usual, because that interval is most of a profile's age.
_MORE_CONFIG = """\
check_crcs = false
[stream]
progress_every_ms = 200
[overlay]
enabled = true
path = "{memory}/overlay"
payments_max = {payments_max}
marks_max = {marks_max}
[admission]
deadline_ms = 2000
wait_ms_max = 1000
"""


@dataclass(frozen=True)
class DemoWorld:
    """The live part of a simulation. Its past is already a bundle and a store in a folder.

    `outcomes` are those of past payments, in order. `labels` are those of live payments, by payment id. `fields` are
    the fields of a payment; `catalogue_file` declares some of them, for the processes. `later` has the payments of the
    days after the start, for a demonstration that is kept running.
    """

    requests: list[ScoreRequest]
    outcomes: list[dict[str, Any]]
    labels: dict[str, str]
    native_model: bool
    profiles: int
    fields: PaymentFields = TABLE_ALONE
    catalogue_file: Path | None = None
    later: pa.Table | None = None


@dataclass(frozen=True)
class LiveSystem:
    """The processes of a live demonstration. `config` is the configuration file of all of them.

    `flagged` are the ids of some payments that were not approved.
    """

    world: DemoWorld
    kafka: KafkaSettings
    parts: Parts
    config: Path
    flagged: Sequence[str]


@dataclass(frozen=True)
class LiveLoad:
    """The payments a second to send, and the number of seconds."""

    rate: float
    seconds: int


@dataclass(frozen=True)
class Kept:
    """The additions to a demonstration that is kept running.

    `settings` begin with further lines of the section [drift]. `prepare` is called with the configuration file before
    the processes start, `afterwards` with the summary while all still runs.
    """

    settings: str
    prepare: Callable[[Path], object]
    afterwards: Callable[[LiveSystem, dict[str, Any]], object]


def run_live(
    world: DemoWorld,
    folder: Path,
    memory: Path,
    *,
    load: LiveLoad,
    console: Console,
    say: Callable[[str], object],
    kept: Kept | None = None,
) -> dict[str, Any]:
    """Run the live part on the bundle and the store in `folder`; returns the summary. `memory` is a folder in memory.

    Raises TemporaryFailure naming the part that did not do its work, with its last log line.
    """
    broker = EmbeddedBroker()
    try:
        config = folder / "paywarden.toml"
        text = LOCAL_CONFIG.format(
            bootstrap=broker.bootstrap, folder=folder, memory=memory, answered="payments_max = 1_000_000\n"
        )
        payments_max = max(_PENDING_MIN, int(_PENDING_S * load.rate))
        text += _MORE_CONFIG.format(memory=memory, payments_max=payments_max, marks_max=2 * payments_max)
        text += kept.settings if kept is not None else ""
        if world.catalogue_file is not None:
            # JSON writes a text as TOML does.
            text += f"[features]\ncatalogue = {json.dumps(str(world.catalogue_file.absolute()))}\n"
        config.write_text(text, encoding="utf-8")
        if kept is not None:
            kept.prepare(config)
        say("starting the stream, the companion and a scoring worker")
        with running_parts(config, folder) as parts:
            parts.wait_until_ready(say)
            say(f"sending {load.rate:g} payments a second for {load.seconds} s to {parts.target}")
            kafka = KafkaSettings(bootstrap=broker.bootstrap)
            summary, flagged = _send_live(world, kafka, parts, load, console, say)
            if kept is not None:
                kept.afterwards(LiveSystem(world, kafka, parts, config, flagged), summary)
            return summary
    finally:
        broker.close()


@dataclass
class _Tally:
    """The answers and decisions so far. The load's thread and the reader's each write their own fields."""

    answered: set[str] = field(default_factory=set)
    actions: dict[str, int] = field(default_factory=dict)
    ages_ms: list[int] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    decided: set[str] = field(default_factory=set)
    flagged: list[str] = field(default_factory=list)


def _send_live(
    world: DemoWorld,
    kafka: KafkaSettings,
    parts: Parts,
    load: LiveLoad,
    console: Console,
    say: Callable[[str], object],
) -> tuple[dict[str, Any], Sequence[str]]:
    tally = _Tally()
    ids = LocalSchemaIds(fields=world.fields)
    stop = threading.Event()
    publisher = Publisher(make_producer(kafka, linger_ms=5), ids, world)
    decisions = make_consumer(kafka, group_id="paywarden-demo")
    reader = threading.Thread(target=_read_decisions, args=(decisions, Decoder("decisions", ids), tally, stop))
    reader.start()

    def on_answer(answer: LoadAnswer) -> None:
        if answer.status == 200:
            response = ScoreResponse.FromString(answer.body)
            tally.answered.add(response.decision_id)
            tally.actions[response.action] = tally.actions.get(response.action, 0) + 1
            tally.latencies_ms.append(answer.latency_ms)
            if response.action != "approve" and len(tally.flagged) < _FLAGGED_MAX:
                tally.flagged.append(response.payment_id)
            if response.HasField("profile_age_ms"):
                tally.ages_ms.append(response.profile_age_ms)
            publisher.publish(answer.request)

    view = threading.Thread(target=_show, args=(tally, console, stop))
    view.start()
    try:
        # The load ends when a process ends.
        bodies = takewhile(lambda _: parts.all_run(), (request.SerializeToString() for request in world.requests))
        report = run(parts.target, bodies, rate=load.rate, seconds=load.seconds, on_answer=on_answer)
        publisher.finish()
        sent, readings = _settled(tally, publisher, parts, report.sent, load.seconds, say)
    finally:
        stop.set()
        reader.join()
        view.join()
        decisions.close()
    done = require_all_done(sent, readings)
    summary = {
        "payments_sent": report.sent,
        "answers": report.ok,
        "decisions_on_topic": len(tally.decided),
        "lost": sent.lost + report.errors + report.shed,
        "p50_ms": report.p50_ms,
        "p99_ms": report.p99_ms,
        "p999_ms": report.p999_ms,
        "mirror_hit_ratio": _mirror_hit_ratio(readings),
        "profile_age_p99_ms": sent.profile_age_p99_ms,
        "native_model": world.native_model,
        "max_ms": report.max_ms,
        "profiles_at_start": world.profiles,
        "outcomes_sent": publisher.outcomes_sent,
        **asdict(done),
        **{f"{action}d" if action.endswith("e") else f"{action}ed": n for action, n in sorted(tally.actions.items())},
    }
    return summary, tally.flagged


def _settled(
    tally: _Tally,
    publisher: Publisher,
    parts: Parts,
    payments: int,
    seconds: float,
    say: Callable[[str], object],
) -> tuple[SentPayments, list[MetricsReading]]:
    """Returns the sent counts and the processes' reports, once all work is done or no more of it gets done."""
    patience = Patience(_SETTLE_TIMEOUT_S, say)
    while True:
        readings = parts.readings()
        sent = SentPayments(
            seconds=seconds,
            payments=payments,
            answered=len(tally.answered),
            published=publisher.payments_sent,
            live_outcomes=publisher.live_outcomes_sent,
            lost=len(tally.answered - tally.decided),
            profile_age_p99_ms=float(np.percentile(tally.ages_ms, 99)) if tally.ages_ms else None,
        )
        left = unfinished(sent, readings)
        if not left or not parts.all_run() or not patience.goes_on(left, (sent, WorkDone.of(readings))):
            return sent, readings
        time.sleep(_LOOK_EVERY_S)


class Publisher:
    """Plays the payment system: publishes the payment after its answer, and outcomes as they become known."""

    def __init__(self, producer: Producer, ids: LocalSchemaIds, world: DemoWorld) -> None:
        self._producer = producer
        self._payments = Encoder("payments", ids.id_of("payments"), schema=ids.current_schema("payments"))
        self._message = request_class(world.fields)
        self._outcomes = Encoder("outcomes", ids.id_of("outcomes"))
        self._of_history, self._labels = deque(world.outcomes), world.labels
        # Outcomes of live payments with the time at which each is due, in order.
        self._due: deque[tuple[float, str]] = deque()
        self.payments_sent = self.live_outcomes_sent = self.history_outcomes_sent = 0

    @property
    def outcomes_sent(self) -> int:
        """Returns the number of all outcomes sent."""
        return self.history_outcomes_sent + self.live_outcomes_sent

    def publish(self, body: bytes) -> None:
        """Queue the payment of this request, and the outcomes that are due."""
        request = self._message.FromString(body)
        record = {
            descriptor.name: getattr(request, descriptor.name)
            if not descriptor.has_presence or request.HasField(descriptor.name)
            else None
            for descriptor in self._message.DESCRIPTOR.fields
        }
        self._producer.produce("payments", self._payments.encode(record), key=request.card_id)
        self.payments_sent += 1
        is_due = self.payments_sent % _PAYMENTS_PER_OUTCOME == 0
        now = time.monotonic()
        label = self._label_of(request.payment_id)
        if label == "fraud" or (is_due and label is not None):
            self._due.append((now + _OUTCOME_AFTER_S, request.payment_id))
        if is_due and self._of_history:
            self._send_outcome(self._of_history.popleft())
            self.history_outcomes_sent += 1
        self._send_due(now)
        self._producer.poll(0)

    def finish(self) -> None:
        """Send the outcomes that are not due yet, and wait until the broker has everything."""
        self._send_due(math.inf)
        self._producer.flush(_FLUSH_TIMEOUT_S)

    def _label_of(self, payment_id: str) -> str | None:
        """Returns the label of a payment. One that is sent again has that of the payment it repeats."""
        return self._labels.get(payment_id.partition(AGAIN)[0])

    def _send_due(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            payment_id = self._due.popleft()[1]
            self._send_outcome({"payment_id": payment_id, "label": self._label_of(payment_id), "source": "analyst"})
            self.live_outcomes_sent += 1

    def _send_outcome(self, outcome: dict[str, Any]) -> None:
        value = self._outcomes.encode({**outcome, "outcome_time_ms": now_ms()})
        self._producer.produce("outcomes", value, key=outcome["payment_id"])


def _read_decisions(consumer: Consumer, decoder: Decoder, tally: _Tally, stop: threading.Event) -> None:
    consumer.subscribe(["decisions"])
    while not stop.is_set():
        for record in consume(consumer, 500, 0.1).records:
            assert record.value is not None
            tally.decided.add(decoder.decode(record.value)["decision_id"])


def _show(tally: _Tally, console: Console, stop: threading.Event) -> None:
    """Show a live table while payments are sent. Without a terminal shows nothing."""
    if not console.is_terminal:
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while not stop.wait(0.25):
            live.update(_table(tally))


def _table(tally: _Tally) -> Table:
    table = Table("answers", "p50 ms", "p99 ms", "approve", "review", "decline", "decisions on topic", "profile age ms")
    recent = tally.latencies_ms[-2000:]
    p50, p99 = np.percentile(recent, [50, 99]) if recent else (0.0, 0.0)
    actions = [str(tally.actions.get(action, 0)) for action in ("approve", "review", "decline")]
    age = str(tally.ages_ms[-1]) if tally.ages_ms else "-"
    table.add_row(str(len(tally.answered)), f"{p50:.2f}", f"{p99:.2f}", *actions, str(len(tally.decided)), age)
    return table


def _mirror_hit_ratio(readings: Sequence[MetricsReading]) -> float:
    """Returns the share of looked-up entities that had a profile, by the worker's metrics."""
    serve = next(reading for reading in readings if reading.name == "serve")
    hits, misses = (serve.total("paywarden_mirror_lookups_total", result) for result in ("hit", "miss"))
    return hits / (hits + misses) if hits + misses else 0.0
