"""A scorer in this process, with what a worker of `paywarden serve` has, from a configuration file.

It remembers no answered payments: the same requests are scored again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ops import wiring
from schemas.settings import read_source
from scoring import fast_requests, records
from scoring.host import Host
from scoring.intake import Intake
from scoring.metrics import Registry
from scoring.model_chain import ModelChain
from scoring.model_metrics import ModelMetrics
from scoring.outbox import OutboxWriter
from scoring.policy import flags_of
from scoring.scorer import PaymentScorer
from scoring.turns import Refusal
from scoring.worker_metrics import ScoringMetrics


@dataclass(frozen=True)
class ScorerInProcess:
    """The scorer, what it was made of, and its outbox."""

    host: Host
    intake: Intake
    scorer: PaymentScorer
    outbox: OutboxWriter

    def score(self, bodies: Sequence[bytes], now_ms: int) -> Sequence[bytes | Refusal]:
        """What a worker does with serialised requests, all of which must be right."""
        payments, wrong = self.intake.read(bodies, now_ms)
        assert not wrong
        return self.scorer.score_many(payments, now_ms)


def open_scorer(config: Path, worker: str) -> ScorerInProcess:
    """The scorer of a world, with an outbox of this name. One to a process: LMDB is opened once."""
    host = wiring.scoring_host(read_source(str(config)), None)
    host.engine.warm_up()
    fast_requests.warm_up()
    records.warm_up()
    entities = host.engine.plan.entity_names
    outbox = OutboxWriter(host.outbox, worker)
    scorer = PaymentScorer(
        engine=host.engine,
        models=ModelChain(host.bundles, metrics=ModelMetrics.declare(Registry()), settings=host.chain),
        policy=host.policy,
        mirror=host.mirror,
        outbox=outbox,
        metrics=ScoringMetrics.declare(Registry(), flags=flags_of(entities), entities=entities),
    )
    return ScorerInProcess(host, Intake(host.engine.plan, host.rates, host.limits), scorer, outbox)
