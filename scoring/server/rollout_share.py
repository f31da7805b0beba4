"""Divides the cards between the champion and the candidate of a rollout, as the supervisor's orders say.

    orders-PID.json: share, salt ── SIGHUP, or twice a second ──► one turn of the loop: the next chunk is divided so

1. A worker inherits its releases from the supervisor. Only the candidate's share may change in its lifetime, and a
   candidate may be dropped: its share is 0 from then on. That is a rollback, and it waits for nobody.
2. Orders for another active release are for the next generation of workers. This one goes on as it is, but a candidate
   that they neither name nor promote gets no cards any more.
3. A file that cannot be read changes nothing. A worker that starts without one gives the candidate no cards.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from paywarden.models.rollout.shares import BASIS_POINTS
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import FileState, file_state
from paywarden.scoring.engine.arms import ArmSplit
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.scorer import PaymentScorer
from paywarden.scoring.engine.served_model import Served
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.release import ReleaseInfo
from paywarden.scoring.server.deployment.releases import Release, ReleaseOrders, Serving, read_orders

_log = logging.getLogger(__name__)


class RolloutShare:
    """Follows the orders in one worker. Use it in the event loop."""

    def __init__(
        self,
        scorer: PaymentScorer,
        serving: Serving,
        orders: Path,
        *,
        models: ModelMetrics,
        info: ReleaseInfo,
    ) -> None:
        """`scorer` decides with the active release of `serving`. `orders`: the file to follow."""
        self._scorer, self._serving, self._path, self._info = scorer, serving, orders, info
        self._champion = scorer.serving
        self._candidate: ModelChain | None = None
        if (candidate := serving.releases.get(serving.orders.candidate)) is not None:
            self._candidate = ModelChain(candidate.bundles, metrics=models)
        self._seen: FileState | None = None
        self._follow(ReleaseOrders(serving.orders.active, serving.orders.previous))

    def look(self) -> None:
        """Follow the orders if they have changed. Raises Misconfigured if they cannot be read."""
        seen = file_state(self._path)
        if seen is None or seen == self._seen:
            return
        orders = read_orders(self._path)
        self._seen = seen
        own = self._serving.orders
        if orders.active == own.active:
            self._follow(orders)
        elif own.candidate not in (orders.active, orders.candidate):
            self._follow(ReleaseOrders(own.active, own.previous))

    def look_at_once(self) -> None:
        """Do the same after a signal. The worker's watch tries again if the file cannot be read."""
        with suppress(Misconfigured):
            self.look()

    def _follow(self, orders: ReleaseOrders) -> None:
        active, candidate = self._serving.active, self._serving.releases.get(orders.candidate)
        chain = self._candidate if orders.candidate == self._serving.orders.candidate else None
        # Records name a rollout once its candidate is loaded. That shows the rollout's leader that this host is ready.
        rollout = "" if candidate is None or chain is None else orders.rollout
        champion = self._champion
        if rollout:
            champion = self._arm(active, champion.models, rollout, "champion", BASIS_POINTS - orders.share)
        self._scorer.take_up(champion)
        if candidate is None or chain is None or not orders.share:
            self._scorer.divide(None)
        else:
            served = self._arm(candidate, chain, rollout, "candidate", orders.share)
            self._scorer.divide(served, ArmSplit(bytes.fromhex(orders.salt), orders.share))
            _log.info("rollout %s: the candidate decides about %g %% of the cards", rollout, orders.share / 100)
        self._show(orders)

    def _arm(self, release: Release, models: ModelChain, rollout: str, arm: str, share: int) -> Served:
        """Returns a release as an arm of a rollout: a millisecond."""
        return self._scorer.served(models, release.policy.policy, release.origins_in(rollout, arm, share))

    def _show(self, orders: ReleaseOrders) -> None:
        """Show releases in the metrics: a small file on the metrics' memory file system, in a millisecond."""
        known = self._serving.releases
        try:
            self._info.show(known[key].shown(orders.role_of(key)) for key in orders.keys if key in known)
        except (Misconfigured, OSError) as error:
            _log.error("the metrics cannot show which bundle decides: %s", error)
