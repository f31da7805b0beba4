"""`paywarden demo`: the whole product on one machine, with real processes and nothing to install.

1. simulate a world; train and compile a model on its past; load the past into an LMDB store
2. start the embedded broker here, and `stream`, `companion` and `serve` as processes of their own
3. when all of them are ready, send live payments to the endpoint at a fixed rate; each answered one goes onto the topic
   `payments`, as an authorisation service would do; outcomes that become known go onto `outcomes`: of payments of the
   history, and after a simulated delay of some that were decided here
4. read `decisions` and hold them against the answers; ask every process what it has done (ops/demo_verdict.py)
"""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import Consumer, Producer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from features.engine import FeatureEngine
from features.history import history_of_tables
from features.lmdb_store import LmdbSettings, LmdbStore
from features.money import load_rates
from models.bundle import load_bundle
from models.evaluation import Days, day_of_time
from models.training import train_bundle
from models.training_settings import TrainingSettings
from models.training_table import training_table
from ops.demo_processes import Parts, running_parts
from ops.demo_verdict import Reading, Sent, require_all_done, trouble_of
from ops.traffic import now_ms, requests_of, run, stamped
from schemas.avro import Decoder, Encoder, LocalSchemaIds
from schemas.scoring_pb2 import ScoreRequest, ScoreResponse
from scoring.load import Answer
from streams.backfill import backfill
from streams.broker import EmbeddedBroker
from streams.kafka import KafkaSettings, consume, make_consumer, make_producer
from streams.simulator import simulate, split_at

HISTORY_DAYS = 45
TRAINING_DAYS = 28
LABEL_DELAY_DAYS = 7
CARDS_MIN = 3_000
# Of the simulator's, on average; the live part must not run out.
_PAYMENTS_PER_CARD_DAY = 1.5
_LIVE_PREFIX = "live-"
# In life an outcome comes days after its payment.
_OUTCOME_AFTER_S = 2.0
# Counts are saved every two seconds; a busy machine takes longer.
_SETTLE_TIMEOUT_S = 30.0
_LOOK_EVERY_S = 0.25
_DAY_MS = 86_400_000

# All of it shares the cores of one machine, so nothing is refused for a while that others need them.
_CONFIG = """\
[kafka]
bootstrap = "{bootstrap}"
check_crcs = false
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
payments_max = 1_000_000
[serve]
bundle = "{folder}/bundle"
metrics = "{memory}/metrics"
[http]
port = 0
[grpc]
port = 0
[admission]
deadline_ms = 2000
wait_ms_max = 1000
"""


@dataclass(frozen=True)
class _World:
    """The live part of the simulation, and what the past became.

    `outcomes`: of past payments, in order. `labels`: of live payments whose outcome becomes known one day.
    """

    requests: list[ScoreRequest]
    outcomes: list[dict[str, Any]]
    labels: dict[str, str]
    native_model: bool
    profiles: int


@dataclass
class _Tally:
    """What has come back so far. Written by the load's thread and the reader's, each its own fields."""

    answered: set[str] = field(default_factory=set)
    actions: dict[str, int] = field(default_factory=dict)
    ages_ms: list[int] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    decided: set[str] = field(default_factory=set)


def run_demo(*, seconds: int, rate: float, seed: int) -> dict[str, Any]:
    """Run it all; returns the summary. Raises PaywardenError naming the part that did not do its work."""
    console = Console(stderr=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paywarden-demo-")))
        in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        memory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paywarden-demo-", dir=in_memory)))
        world = _prepare(folder, seconds=seconds, rate=rate, seed=seed, console=console)
        broker = EmbeddedBroker()
        stack.callback(broker.close)
        config = folder / "paywarden.toml"
        config.write_text(_CONFIG.format(bootstrap=broker.bootstrap, folder=folder, memory=memory), encoding="utf-8")
        _say(console, "starting the stream, the companion and a scoring worker")
        parts = stack.enter_context(running_parts(config, folder))
        parts.wait_until_ready()
        _say(console, f"sending {rate:g} payments a second for {seconds} s to {parts.target}")
        return _send_live(world, KafkaSettings(bootstrap=broker.bootstrap), parts, rate, seconds, console)


def _prepare(folder: Path, *, seconds: int, rate: float, seed: int, console: Console) -> _World:
    """Simulate, train, compile and load the past."""
    wanted = int(rate * seconds * 1.2) + 100
    cards = max(CARDS_MIN, int(wanted / _PAYMENTS_PER_CARD_DAY))
    now = now_ms()
    _say(console, f"simulating {HISTORY_DAYS} days of {cards} cards")
    past, live = split_at(*simulate(cards=cards, days=HISTORY_DAYS + 1, seed=seed, end_time_ms=now + _DAY_MS), now)
    history = history_of_tables(*past)
    engine, rates = FeatureEngine(), load_rates()
    engine.warm_up()
    _say(console, f"training on {TRAINING_DAYS} of them, compiling the model")
    last_day = int(day_of_time(history.event_time_ms[-1:])[0]) - LABEL_DELAY_DAYS
    window = Days(last_day - TRAINING_DAYS + 1, last_day)
    # Choosing the number of trees would cost a training, and somebody is waiting.
    settings = TrainingSettings(label_delay_days=LABEL_DELAY_DAYS, early_stopping_rounds=0)
    table = training_table(history, window, engine=engine, rates=rates, label_delay_days=LABEL_DELAY_DAYS)
    manifest = train_bundle(table, window, folder / "bundle", engine=engine, settings=settings)
    _say(
        console,
        f"model {manifest.model_version}: {manifest.training_payments} payments, {manifest.training_frauds} frauds, "
        f"average precision {manifest.metrics['average_precision']:.3f} out of fold",
    )
    bundle = load_bundle(folder / "bundle", catalogue_digest=engine.plan.digest)
    store = LmdbStore.from_settings(LmdbSettings(path=str(folder / "store")))
    profiles = backfill(history, store, engine=engine, rates=rates, outcome_days=30)
    store.close()
    _say(console, f"{len(history)} payments of history are {profiles} profiles in the store")
    return _World(
        requests_of(live[0].slice(0, wanted), id_prefix=_LIVE_PREFIX),
        _outcomes(live[1], now),
        _labels(live[1]),
        bundle.predictor.native,
        profiles,
    )


def _outcomes(outcomes: pa.Table, start_ms: int) -> list[dict[str, Any]]:
    """Outcomes of past payments that become known in the next simulated day, in order."""
    soon = outcomes.filter(pc.less(outcomes["outcome_time_ms"], start_ms + _DAY_MS))
    rows: list[dict[str, Any]] = soon.to_pylist()
    return rows


def _labels(outcomes: pa.Table) -> dict[str, str]:
    """By the id of a live payment. Those of past payments are among them, and are asked for by nobody."""
    ids, labels = outcomes["payment_id"].to_pylist(), outcomes["label"].to_pylist()
    return {_LIVE_PREFIX + payment_id: label for payment_id, label in zip(ids, labels, strict=True)}


def _send_live(
    world: _World, kafka: KafkaSettings, parts: Parts, rate: float, seconds: int, console: Console
) -> dict[str, Any]:
    tally = _Tally()
    ids = LocalSchemaIds()
    stop = threading.Event()
    publisher = _Publisher(make_producer(kafka, linger_ms=5), ids, world, seconds)
    decisions = make_consumer(kafka, group_id="paywarden-demo")
    reader = threading.Thread(target=_read_decisions, args=(decisions, Decoder("decisions", ids), tally, stop))
    reader.start()

    def on_answer(answer: Answer) -> None:
        if answer.status == 200:
            response = ScoreResponse.FromString(answer.body)
            tally.answered.add(response.decision_id)
            tally.actions[response.action] = tally.actions.get(response.action, 0) + 1
            tally.latencies_ms.append(answer.latency_ms)
            if response.HasField("profile_age_ms"):
                tally.ages_ms.append(response.profile_age_ms)
            publisher.publish(answer.request)

    view = threading.Thread(target=_show, args=(tally, console, stop))
    view.start()
    try:
        # A part that has ended ends the load.
        bodies = takewhile(lambda _: parts.all_run(), stamped(iter(world.requests)))
        report = run(parts.target, bodies, rate=rate, seconds=seconds, on_answer=on_answer)
        publisher.finish()
        sent, readings = _settled(tally, publisher, parts, report.sent)
    finally:
        stop.set()
        reader.join()
        view.join()
        decisions.close()
    done = require_all_done(sent, readings)
    return {
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


def _settled(tally: _Tally, publisher: _Publisher, parts: Parts, payments: int) -> tuple[Sent, list[Reading]]:
    """What was sent and what the parts say, once they have done all of it, or do not come further in time."""
    deadline = time.monotonic() + _SETTLE_TIMEOUT_S
    while True:
        readings = parts.readings()
        sent = Sent(
            payments=payments,
            answered=len(tally.answered),
            published=publisher.payments_sent,
            live_outcomes=publisher.live_outcomes_sent,
            lost=len(tally.answered - tally.decided),
            profile_age_p99_ms=float(np.percentile(tally.ages_ms, 99)) if tally.ages_ms else None,
        )
        if not trouble_of(sent, readings) or not parts.all_run() or time.monotonic() > deadline:
            return sent, readings
        time.sleep(_LOOK_EVERY_S)


class _Publisher:
    """What the payment system does after an answer: the payment onto its topic; and the outcomes as they come."""

    def __init__(self, producer: Producer, ids: LocalSchemaIds, world: _World, seconds: int) -> None:
        self._producer = producer
        self._payments = Encoder("payments", ids.id_of("payments"))
        self._outcomes = Encoder("outcomes", ids.id_of("outcomes"))
        self._of_history, self._labels = world.outcomes, world.labels
        self._started = time.monotonic()
        self._seconds = seconds
        self._history_sent = 0
        # Outcomes of payments decided here with the moment each is due, in order.
        self._due: deque[tuple[float, str]] = deque()
        self.payments_sent = self.live_outcomes_sent = 0

    @property
    def outcomes_sent(self) -> int:
        """All of them."""
        return self._history_sent + self.live_outcomes_sent

    def publish(self, body: bytes) -> None:
        """Queue the payment of this request, and the outcomes that are due by now."""
        request = ScoreRequest.FromString(body)
        record = {
            descriptor.name: getattr(request, descriptor.name)
            if not descriptor.has_presence or request.HasField(descriptor.name)
            else None
            for descriptor in ScoreRequest.DESCRIPTOR.fields
        }
        self._producer.produce("payments", self._payments.encode(record), key=request.card_id)
        self.payments_sent += 1
        now = time.monotonic()
        if request.payment_id in self._labels:
            self._due.append((now + _OUTCOME_AFTER_S, request.payment_id))
        # A simulated day's outcomes are spread over the demonstration.
        self._send_history(int(len(self._of_history) * min(1.0, (now - self._started) / self._seconds)))
        self._send_due(now)
        self._producer.poll(0)

    def finish(self) -> None:
        """Send the outcomes that are not due yet, too, and wait until the broker has everything."""
        self._send_due(math.inf)
        self._producer.flush(10)

    def _send_history(self, count: int) -> None:
        for outcome in self._of_history[self._history_sent : count]:
            self._send_outcome(outcome)
        self._history_sent = max(self._history_sent, count)

    def _send_due(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            payment_id = self._due.popleft()[1]
            self._send_outcome({"payment_id": payment_id, "label": self._labels[payment_id], "source": "analyst"})
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
    """A table that lives while payments are sent; where there is no terminal, nothing."""
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


def _mirror_hit_ratio(readings: Sequence[Reading]) -> float:
    """Share of looked-up entities that had a profile, by the worker's own metrics."""
    serve = next(reading for reading in readings if reading.name == "serve")
    hits, misses = (serve.total("paywarden_mirror_lookups_total", result) for result in ("hit", "miss"))
    return hits / (hits + misses) if hits + misses else 0.0


def _say(console: Console, line: str) -> None:
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {line}", highlight=False)
