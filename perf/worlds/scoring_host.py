"""The scorer of a worker in this process, without a front.

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
from paywarden.scoring.engine.batching.batcher import Chunk
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.scorer import PaymentScorer, ScorerOptions
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker_metrics import ScoringMetrics
from paywarden.scoring.requests import fast_requests
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.server.context import ServerContext
from paywarden.scoring.state import mirror_look_up
from paywarden.scoring.state.outbox import OutboxWriter
from paywarden.scoring.state.overlay.overlay import Overlay


@dataclass(frozen=True)
class ScorerInProcess:
    """A scorer with its decoder, and the compiled call of whole chunks."""

    intake: RequestDecoder
    scorer: PaymentScorer

    def score(self, bodies: Sequence[bytes], now_ms: int) -> list[bytes]:
        """Score serialised requests as a worker does. All of them must be valid, and are answered."""
        answers = [result for result in self.scorer.score(Chunk(bodies), now_ms) if isinstance(result, bytes)]
        assert len(answers) == len(bodies)
        return answers


def open_host(config: Path) -> ServerContext:
    """Return the parts of the scorer of a configuration of `paywarden serve`, compiled."""
    host = wiring.scoring_host(read_source(str(config)), None)
    host.engine.warm_up()
    for module in (fast_requests, mirror_look_up, chunk_frame):
        module.warm_up()
    return host


def scorer_of(host: ServerContext, worker: str, overlay: Overlay | None = None) -> ScorerInProcess:
    """Return a scorer of a host, with an outbox of this name."""
    entities, registry = host.engine.plan.entity_names, MetricsRegistry()
    intake = RequestDecoder(host.engine.plan, host.rates, host.limits)
    scorer = PaymentScorer(
        engine=host.engine,
        intake=intake,
        models=ModelChain(host.bundles, metrics=ModelMetrics.declare(registry)),
        policy=host.policy,
        mirror=host.mirror,
        outbox=OutboxWriter(host.outbox, worker),
        metrics=ScoringMetrics.declare(registry, flags=flags_of(entities), entities=entities),
        options=ScorerOptions(overlay=overlay, origins=host.release.origins),
    )
    return ScorerInProcess(intake, scorer)
