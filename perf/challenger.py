"""A challenger's CPU time a decision, by parts: reading the outbox, deciding and writing records, sending them.

In one process and on a real Kafka: payments of a small simulated past are decided by the workers' scorer, with the
model of 300 trees that the published figures have. A challenger of the same size then takes them from the outbox, as
the process of `paywarden shadow run` does. CPU time is that of all threads, so sending includes the client's own.

    python -m perf.challenger [--decisions N] [--turns N] [--batch N] [--rule] [--compression KIND] [--json FILE]

`cpu_us` is the median of the turns, `cpu_us_least` the least of them, which other work on the machine disturbs least.
`read_us` and `round_us` are without the client's threads mostly, `flush_us` is the wait for Kafka with them.
`single_share` is that of decisions that went one by one in the last turn: not approved, or with a flag that asks for an
action. With `--rule` the policy has a condition, and is asked about all.

Needs the services that `make services` fetches.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from paywarden.models.bundle.bundle import Bundle, load_bundle
from paywarden.models.policy.policy import FLAGS, ConfiguredRule, Policy, PolicySettings
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.scoring.engine.challenger import Evaluated, VectorChallenger
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.records import Origin
from paywarden.scoring.engine.scorer import PaymentScorer
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker import ScoringMetrics
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.requests.validation import RequestLimits
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.scoring.state.mirror_writer import MirrorWriter
from paywarden.scoring.state.outbox import OutboxSettings, OutboxWriter
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.topics import TopicSettings, create_topics
from paywarden.streams.shadow.evaluation import ShadowEvaluator
from paywarden.streams.shadow.record_writer import SHADOW_TOPIC
from paywarden.streams.shadow.settings import ShadowSettings
from perf.swap import renamed
from perf.tools.measuring import arguments_of, finish
from perf.worlds.scoring_world import WorldSize, bundle_of
from tests.services.servers.kafka import PRODUCTION_JVM, KafkaServer
from tests.worlds.endpoint.requests import requests_of
from tests.worlds.small import small_world
from tests.worlds.small.small_history import profiles

PLAN = small_world.engine().plan
NOW_MS = int(small_world.history().event_time_ms[-1]) + 1000
_RULE = PolicySettings(rules=(ConfiguredRule("large", "amount > 1_000_000_00", "review"),))
_AT_ONCE = 32
_FLUSH_S = 30.0


class _Workers:
    """Decides about payments without end, and appends the decisions to an outbox."""

    def __init__(self, folder: Path, bundle: Bundle, settings: OutboxSettings) -> None:
        manifest = bundle.manifest
        policy = Policy(PolicySettings(), review_at=manifest.review_at, decline_at=manifest.decline_at)
        mirror = MirrorSettings(path=str(folder / "mirror"), size_mb=64)
        writer = MirrorWriter(mirror)
        writer.apply(profiles(), {0: 1}, NOW_MS)
        writer.close()
        self.outbox = OutboxWriter(settings, "worker-0")
        self._scorer = PaymentScorer(
            engine=small_world.engine(),
            models=ModelChain((bundle,), metrics=ModelMetrics.declare(MetricsRegistry())),
            policy=policy,
            mirror=mirror,
            outbox=self.outbox,
            metrics=ScoringMetrics.declare(MetricsRegistry(), flags=FLAGS, entities=PLAN.entity_names),
            origins=(Origin(manifest.digest, policy.digest), Origin("", policy.digest)),
        )
        self._scorer.open_mirror()
        self._decoder = RequestDecoder(PLAN, small_world.rates(), RequestLimits())
        self._requests = requests_of(small_world.tables()[0], id_prefix="")[-5000:]
        self._numbers = count()

    def decide(self, decisions: int) -> None:
        done = 0
        while done < decisions:
            size = min(_AT_ONCE, decisions - done)
            bodies = []
            for _ in range(size):
                number = next(self._numbers)
                request = self._requests[number % len(self._requests)]
                request.payment_id, request.event_time_ms = f"payment-{number:012d}", NOW_MS
                bodies.append(request.SerializeToString())
            payments, wrong = self._decoder.read(bodies, NOW_MS)
            assert not wrong
            self._scorer.score_many(payments, NOW_MS)
            done += size


class _Source:
    """Gives one challenger, and counts the decisions that are given to it one by one."""

    def __init__(self, make: Callable[[], VectorChallenger]) -> None:
        self._challenger = make()
        self._evaluate = self._challenger.evaluate
        self._challenger.evaluate = self._counted  # type: ignore[method-assign]
        self.asked = 0

    def load(self) -> VectorChallenger:
        return self._challenger

    def has_changed(self) -> bool:
        return False

    def _counted(self, entries: Sequence[OutboxEntry]) -> Evaluated:
        self.asked += len(entries)
        return self._evaluate(entries)


class _Timed:
    """Adds up the CPU time of calls of a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self.cpu_s = function, 0.0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        began = time.process_time()
        try:
            return self._function(*arguments, **named)
        finally:
            self.cpu_s += time.process_time() - began


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--decisions", {"type": int, "default": 20_000, "help": "in a turn"}),
        ("--turns", {"type": int, "default": 5, "help": "behind one that does not count"}),
        ("--batch", {"type": int, "default": 2_000, "help": "decisions at a time"}),
        ("--rule", {"action": "store_true", "help": "let the challenger's policy have a condition"}),
        ("--compression", {"default": ShadowSettings().compression, "help": "of the records"}),
    )
    with tempfile.TemporaryDirectory(prefix="paywarden-perf-") as name, tempfile.TemporaryDirectory() as kafka_folder:
        folder = Path(name)
        path = bundle_of(small_world.engine(), WorldSize())
        champion = load_bundle(path, catalogue_digest=PLAN.digest)
        own = load_bundle(renamed(path, folder / "challenger"), catalogue_digest=PLAN.digest)
        outbox = OutboxSettings(directory=str(folder / "outbox"))
        workers = _Workers(folder, champion, outbox)
        with KafkaServer(Path(kafka_folder) / "kafka", jvm=PRODUCTION_JVM) as kafka:
            settings = KafkaSettings(bootstrap=kafka.bootstrap, compression=arguments.compression)
            create_topics(settings, TopicSettings(), [])
            policy = Policy(
                _RULE if arguments.rule else PolicySettings(),
                review_at=own.manifest.review_at,
                decline_at=own.manifest.decline_at,
            )
            make = partial(
                VectorChallenger, "copy", own, policy, catalogue_digest=PLAN.digest, rates=small_world.rates()
            )
            figures = _measured(workers, _Source(make), outbox, KafkaClients.of(settings), arguments)
        workers.outbox.close()
    finish(figures, arguments.json)


def _measured(
    workers: _Workers, source: _Source, outbox: OutboxSettings, clients: KafkaClients, arguments: Any
) -> dict[str, float]:
    sender, ids = clients.sender(linger_ms=5), LocalSchemaIds()
    evaluator = ShadowEvaluator(
        "copy",
        source,
        outbox=outbox,
        settings=ShadowSettings(batch_max=arguments.batch),
        sender=sender,
        topic=clients.topic(SHADOW_TOPIC),
        encoder=Encoder(SHADOW_TOPIC, ids.id_of(SHADOW_TOPIC)),
    )
    workers.decide(1)
    evaluator.look_around()
    turns: list[dict[str, float]] = []
    for turn in range(arguments.turns + 1):
        workers.decide(arguments.decisions)
        (tail,) = evaluator._tails.values()
        tail.read = read = _Timed(type(tail).read.__get__(tail))  # type: ignore[method-assign]
        asked = source.asked
        before, began, round_s = evaluator.status()["evaluated"], time.process_time(), 0.0
        while tail.waiting_bytes():
            round_began = time.process_time()
            evaluator.round()
            round_s += time.process_time() - round_began
            sender.flush(_FLUSH_S)
        whole_s = time.process_time() - began
        assert evaluator.status()["evaluated"] - before == arguments.decisions, evaluator.status()
        if turn:
            turns.append({"cpu_us": whole_s, "read_us": read.cpu_s, "round_us": round_s, "flush_us": whole_s - round_s})
        asked = source.asked - asked
    figures = {name: statistics.median(turn[name] for turn in turns) / arguments.decisions * 1e6 for name in turns[0]}
    least = min(turn["cpu_us"] for turn in turns) / arguments.decisions * 1e6
    return figures | {
        "cpu_us_least": least,
        "single_share": asked / arguments.decisions,
        "decisions": arguments.decisions,
        "turns": arguments.turns,
    }


if __name__ == "__main__":
    main()
