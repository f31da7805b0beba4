"""A scorer in this process, built from a configuration file like that of a worker of `paywarden serve`.

It has no decision cache: the same requests are scored again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paywarden.models.policy.policy import flags_of
from paywarden.ops import wiring
from paywarden.schemas.settings import read_source
from paywarden.scoring.engine import chunk_frame
from paywarden.scoring.engine.batching.batcher import Chunk, Refusal
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.scorer import PaymentScorer, ScorerOptions
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker import ScoringMetrics
from paywarden.scoring.requests import fast_requests
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.server.context import ServerContext
from paywarden.scoring.state import mirror
from paywarden.scoring.state.outbox import OutboxWriter


@dataclass(frozen=True)
class ScorerInProcess:
    """The scorer, its parts and its outbox."""

    host: ServerContext
    intake: RequestDecoder
    scorer: PaymentScorer
    outbox: OutboxWriter

    def score(self, bodies: Sequence[bytes], now_ms: int) -> Sequence[bytes | Refusal]:
        """Scores serialised requests as a worker does."""
        return self.scorer.score(Chunk(bodies), now_ms)


def open_scorer(config: Path, worker: str) -> ScorerInProcess:
    """Open the scorer of a world, with an outbox of this name. Once in a process: LMDB allows no second."""
    host = wiring.scoring_host(read_source(str(config)), None)
    host.engine.warm_up()
    fast_requests.warm_up()
    mirror.warm_up()
    chunk_frame.warm_up()
    entities = host.engine.plan.entity_names
    outbox = OutboxWriter(host.outbox, worker)
    intake = RequestDecoder(host.engine.plan, host.rates, host.limits)
    scorer = PaymentScorer(
        engine=host.engine,
        intake=intake,
        models=ModelChain(host.bundles, metrics=ModelMetrics.declare(MetricsRegistry()), settings=host.chain),
        policy=host.policy,
        mirror=host.mirror,
        outbox=outbox,
        metrics=ScoringMetrics.declare(MetricsRegistry(), flags=flags_of(entities), entities=entities),
        options=ScorerOptions(origins=host.release.origins),
    )
    return ScorerInProcess(host, intake, scorer, outbox)
