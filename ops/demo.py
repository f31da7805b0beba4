"""`paywarden demo`: the whole product on one machine, with real processes and nothing to install.

1. simulate a world; train and compile a model on its past; load the past into an LMDB store
2. start the embedded broker here, and `stream`, `companion` and `serve` as processes of their own
3. send live payments to the endpoint at a fixed rate; each answered one goes onto the topic `payments`, as an
   authorisation service would do; outcomes that become known go onto `outcomes`
4. read `decisions` and hold them against the answers
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import Consumer, Producer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.live import Live
from rich.table import Table

from features.engine import FeatureEngine
from features.history import History, history_of_tables
from features.lmdb_store import LmdbSettings, LmdbStore
from features.money import load_rates
from models.bundle import Manifest, load_bundle
from models.evaluation import Days, day_of_time
from models.training import train_bundle
from models.training_settings import TrainingSettings
from models.training_table import training_table
from ops.progress import progress_bar
from ops.times import now_ms
from ops.traffic import requests_of, run, stamped
from schemas.avro import Decoder, Encoder, LocalSchemaIds
from schemas.errors import TemporaryFailure
from schemas.scoring_pb2 import ScoreRequest, ScoreResponse
from scoring.load import Answer
from streams.backfill import backfill
from streams.broker import EmbeddedBroker
from streams.kafka import KafkaSettings, consume, make_consumer, make_producer
from streams.simulator import simulate, split_at

HISTORY_DAYS = 45
# Somebody is waiting. 14 days instead of 28 and 60 trees instead of 200 train in a quarter of the time, and the average
# precision is 0.65 instead of 0.69. To choose the number of trees would cost another training. One thread: LightGBM's
# threads wait for each other, and burn a core each, where anything else runs.
TRAINING_DAYS = 14
TRAINING = TrainingSettings(label_delay_days=7, trees=60, learning_rate=0.1, early_stopping_rounds=0, threads=1)
CARDS_MIN = 3_000
# Of the simulator's, on average; the live part must not run out.
_PAYMENTS_PER_CARD_DAY = 1.5
_START_TIMEOUT_S = 120.0
_DECISIONS_TIMEOUT_S = 20.0
_DAY_MS = 86_400_000

# All of it shares the cores of one machine, so nothing is refused for a while that others need them.
_CONFIG = """\
[kafka]
bootstrap = "{bootstrap}"
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
    """The live part of the simulation, and what the past became."""

    requests: list[ScoreRequest]
    outcomes: list[dict[str, Any]]
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
    """Run it all; returns the summary. Raises PaywardenError in one line when a part does not come up."""
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
        target = _start_processes(stack, config, folder)
        _say(console, f"sending {rate:g} payments a second for {seconds} s to {target}")
        return _send_live(world, KafkaSettings(bootstrap=broker.bootstrap), target, rate, seconds, console)


def _prepare(folder: Path, *, seconds: int, rate: float, seed: int, console: Console) -> _World:
    """Simulate, train, compile and load the past."""
    wanted = int(rate * seconds * 1.2) + 100
    cards = max(CARDS_MIN, int(wanted / _PAYMENTS_PER_CARD_DAY))
    now = now_ms()
    _say(console, f"simulating {HISTORY_DAYS} days of {cards} cards")
    past, live = split_at(*simulate(cards=cards, days=HISTORY_DAYS + 1, seed=seed, end_time_ms=now + _DAY_MS), now)
    history = history_of_tables(*past)
    _say(console, "loading the feature kernel (the first time it is compiled, which takes half a minute)")
    engine = FeatureEngine()
    engine.warm_up()
    _say(console, f"training on {TRAINING_DAYS} days, compiling the model, and loading {len(history)} payments")
    with ThreadPoolExecutor(1) as pool:
        # The training leaves Python to the other thread most of the time.
        filling = pool.submit(_fill_store, history, folder / "store")
        manifest = _train(history, folder / "bundle", engine)
        profiles = filling.result()
    _say(
        console,
        f"model {manifest.model_version}: {manifest.training_payments} payments, {manifest.training_frauds} frauds, "
        f"average precision {manifest.metrics['average_precision']:.3f} out of fold",
    )
    bundle = load_bundle(folder / "bundle", catalogue_digest=engine.plan.digest)
    _say(console, f"{len(history)} payments of history are {profiles} profiles in the store")
    return _World(
        requests_of(live[0].slice(0, wanted), id_prefix="live-"),
        _outcomes(live[1], now),
        bundle.predictor.native,
        profiles,
    )


def _train(history: History, bundle: Path, engine: FeatureEngine) -> Manifest:
    """A bundle of the last days whose labels are known."""
    last_day = int(day_of_time(history.event_time_ms[-1:])[0]) - TRAINING.label_delay_days
    window = Days(last_day - TRAINING_DAYS + 1, last_day)
    table = training_table(
        history, window, engine=engine, rates=load_rates(), label_delay_days=TRAINING.label_delay_days
    )
    return train_bundle(table, window, bundle, engine=engine, settings=TRAINING, progress=progress_bar)


def _fill_store(history: History, path: Path) -> int:
    """The profiles of the whole past into a store; returns how many. In a thread of its own: so is its engine."""
    with closing(LmdbStore.from_settings(LmdbSettings(path=str(path)))) as store:
        return backfill(history, store, engine=FeatureEngine(), rates=load_rates(), outcome_days=30)


def _outcomes(outcomes: pa.Table, start_ms: int) -> list[dict[str, Any]]:
    """Outcomes of past payments that become known in the next simulated day, in order."""
    soon = outcomes.filter(pc.less(outcomes["outcome_time_ms"], start_ms + _DAY_MS))
    rows: list[dict[str, Any]] = soon.to_pylist()
    return rows


def _start_processes(stack: ExitStack, config: Path, folder: Path) -> str:
    """Start the three processes; returns the endpoint's address once it is ready."""
    children: dict[str, subprocess.Popen[str]] = {}
    for name in ("stream", "companion", "serve"):
        children[name] = stack.enter_context(_process(name, config, folder))
    output = children["serve"].stdout
    assert output is not None
    target = output.readline().strip()
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not (target and _is_ready(target)):
        for name, child in children.items():
            if child.poll() is not None:
                raise TemporaryFailure(f"demo: `paywarden {name}` ended: {_last_line(folder / f'{name}.log')}")
        if time.monotonic() > deadline:
            raise TemporaryFailure(f"demo: the scoring worker is not ready after {_START_TIMEOUT_S:.0f} s")
        time.sleep(0.1)
    return target


@contextmanager
def _process(name: str, config: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A Paywarden process from start to a clean stop."""
    with (folder / f"{name}.log").open("w", encoding="utf-8") as log:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "ops", "--config", str(config), name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            yield child
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(timeout=15)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _is_ready(target: str) -> bool:
    try:
        with urllib.request.urlopen(f"{target}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8").splitlines()
    return lines[-1] if lines else "it said nothing"


def _send_live(
    world: _World, kafka: KafkaSettings, target: str, rate: float, seconds: int, console: Console
) -> dict[str, Any]:
    tally = _Tally()
    ids = LocalSchemaIds()
    stop = threading.Event()
    publisher = _Publisher(make_producer(kafka, linger_ms=5), ids, world.outcomes, seconds)
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
        report = run(target, stamped(iter(world.requests)), rate=rate, seconds=seconds, on_answer=on_answer)
        publisher.flush()
        deadline = time.monotonic() + _DECISIONS_TIMEOUT_S
        while tally.answered - tally.decided and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        stop.set()
        reader.join()
        view.join()
        decisions.close()
    return {
        "payments_sent": report.sent,
        "answers": report.ok,
        "decisions_on_topic": len(tally.decided),
        "lost": len(tally.answered - tally.decided) + report.errors + report.shed,
        "p50_ms": report.p50_ms,
        "p99_ms": report.p99_ms,
        "p999_ms": report.p999_ms,
        "mirror_hit_ratio": _mirror_hit_ratio(target),
        "profile_age_p99_ms": float(np.percentile(tally.ages_ms, 99)) if tally.ages_ms else None,
        "native_model": world.native_model,
        "max_ms": report.max_ms,
        "profiles_at_start": world.profiles,
        "outcomes_sent": publisher.outcomes_sent,
        **{f"{action}d" if action.endswith("e") else f"{action}ed": n for action, n in sorted(tally.actions.items())},
    }


class _Publisher:
    """What the payment system does after an answer: the payment onto its topic; and the outcomes as they come."""

    def __init__(self, producer: Producer, ids: LocalSchemaIds, outcomes: list[dict[str, Any]], seconds: int) -> None:
        self._producer = producer
        self._payments = Encoder("payments", ids.id_of("payments"))
        self._outcomes = Encoder("outcomes", ids.id_of("outcomes"))
        self._waiting = outcomes
        self._started = time.monotonic()
        self._seconds = seconds
        self.outcomes_sent = 0

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
        # A simulated day's outcomes are spread over the demonstration.
        due = int(len(self._waiting) * min(1.0, (time.monotonic() - self._started) / self._seconds))
        for outcome in self._waiting[self.outcomes_sent : due]:
            value = self._outcomes.encode({**outcome, "outcome_time_ms": now_ms()})
            self._producer.produce("outcomes", value, key=outcome["payment_id"])
        self.outcomes_sent = max(self.outcomes_sent, due)
        self._producer.poll(0)

    def flush(self) -> None:
        """Wait until the broker has everything."""
        self._producer.flush(10)


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


def _mirror_hit_ratio(target: str) -> float:
    """Share of looked-up entities that had a profile, by the worker's own metrics."""
    answer: IO[bytes] = urllib.request.urlopen(f"{target}/metrics", timeout=5)
    with answer:
        text = answer.read().decode()
    counts = {"hit": 0.0, "miss": 0.0}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "paywarden_mirror_lookups_total":
                counts[sample.labels["result"]] += sample.value
    total = sum(counts.values())
    return counts["hit"] / total if total else 0.0


def _say(console: Console, line: str) -> None:
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {line}", highlight=False)
