"""A scorer in this process, with what a worker of `paywarden serve` has, from a configuration file.

It remembers no answered payments: the same requests are scored again and again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ops import wiring
from schemas.settings import read_source
from scoring.host import Host
from scoring.metrics import Registry
from scoring.model_chain import ModelChain
from scoring.model_metrics import ModelMetrics
from scoring.outbox import OutboxWriter
from scoring.policy import flags_of
from scoring.scorer import PaymentScorer
from scoring.worker_metrics import ScoringMetrics


@dataclass(frozen=True)
class ScorerInProcess:
    """The scorer, what it was made of, and its outbox."""

    host: Host
    scorer: PaymentScorer
    outbox: OutboxWriter


def open_scorer(config: Path, worker: str) -> ScorerInProcess:
    """The scorer of a world, with an outbox of this name. One to a process: LMDB is opened once."""
    host = wiring.scoring_host(read_source(str(config)), None)
    host.engine.warm_up()
    entities = host.engine.plan.entity_names
    outbox = OutboxWriter(host.outbox, worker)
    scorer = PaymentScorer(
        engine=host.engine,
        rates=host.rates,
        models=ModelChain(host.bundles, metrics=ModelMetrics.declare(Registry()), settings=host.chain),
        policy=host.policy,
        mirror=host.mirror,
        outbox=outbox,
        metrics=ScoringMetrics.declare(Registry(), flags=flags_of(entities), entities=entities),
    )
    return ScorerInProcess(host, scorer, outbox)
