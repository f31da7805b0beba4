"""A worker's half of a swap: loads the ordered releases in a thread, and switches between two turns of its loop.

    orders ─► thread: map the library │ map arrays │ compile a condition │ … │ try golden vectors
                 │                    └────────────┴─ rests: the loop has the interpreter and the core
                 ▼  one turn of the loop
              scorer.take_up(served)      the next chunk is decided by it
                 │
                 ▼
              thread: show it in the metrics; close the libraries of what is ordered no more
                                               no call can be in them: calls do not outlive their turn

1. Releases that are ordered as previous or candidate stay loaded. A change to one of them happens in the turn that
   reads the orders.
2. If a release cannot be loaded, the present one goes on. The worker tries again a few times, with every look.
3. A worker that starts takes up the orders before it listens.
4. The thread and the loop share one interpreter, and often one core. To load takes a few milliseconds. Done in one go
   beside a busy loop, it took 30 to 130, and each call in that time waited. The thread therefore works for some tenths
   of a millisecond, then rests for several times as long. The loop itself reads the orders and changes one reference.
5. One thread does all of this, one thing after the other: the metrics show the releases of the last orders.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from paywarden.models.bundle.prepared_bundle import no_rest
from paywarden.models.rollout.shares import BASIS_POINTS
from paywarden.schemas.errors import Misconfigured, PaywardenError
from paywarden.schemas.file_state import FileState, file_state
from paywarden.scoring.engine.arms import ArmSplit
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.scorer import PaymentScorer
from paywarden.scoring.engine.served_model import Served
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.release import ReleaseInfo, ShownRelease, SwapMetrics
from paywarden.scoring.server.context import ServerContext
from paywarden.scoring.server.deployment.deployment_file import READY
from paywarden.scoring.server.deployment.releases import Release, ReleaseOrders, load_release, orders_path, read_orders
from paywarden.scoring.server.deployment.shared_lists import shared_list

_log = logging.getLogger(__name__)

# How often a worker tries to load the releases of one order.
_TRIES_MAX = 5
# While the thread works, it gives the interpreter back this often, so that no payment waits for it.
_SWITCH_INTERVAL_S = 0.0002
# How long the thread rests after each step: a multiple of the step, so that it has a fifth of a core at most.
_REST_SHARE = 4.0
_REST_MIN_S, _REST_MAX_S = 0.001, 0.05


class _Hot(NamedTuple):
    """A release in memory, ready to decide. A swap uses `served` as it is; an arm of a rollout has other origins."""

    release: Release
    served: Served


class ReleaseSwitch:
    """Switches one worker to other releases. Use it in the event loop."""

    def __init__(
        self,
        scorer: PaymentScorer,
        host: ServerContext,
        supervisor: int,
        *,
        models: ModelMetrics,
        metrics: SwapMetrics,
        info: ReleaseInfo,
    ) -> None:
        """`scorer` decides with the host's own release."""
        self._scorer, self._host, self._models, self._metrics, self._info = scorer, host, models, metrics, info
        self._supervisor = supervisor
        self._path, self._ready = orders_path(host.runtime, supervisor), host.runtime / READY
        self._hot = {host.release.key: _Hot(host.release, scorer.serving)}
        self._active = host.release.key
        self._seen: FileState | None = None
        self._orders = ReleaseOrders(0, self._active)
        # The orders that were applied last, and how many of their releases were not in memory then.
        self._applied = (self._orders, 0)
        self._tries, self._is_loading = 0, False
        self._chores = Chores()

    @property
    def active(self) -> Release:
        """The release that decides."""
        return self._hot[self._active].release

    def look(self) -> None:
        """Take up new orders, or begin to load their releases. Never raises."""
        if self._is_loading or not self._has_news():
            return
        missing = [key for key in self._orders.keys if key not in self._hot]
        if self._orders.active not in missing and self._applied != (self._orders, len(missing)):
            # A way back does not wait for a candidate that cannot be loaded.
            self._apply()
        if not missing:
            return
        if self._tries >= _TRIES_MAX:
            return
        self._tries += 1
        self._is_loading = True
        loop, orders = asyncio.get_running_loop(), self._orders
        self._chores.do(lambda rest: loop.call_soon_threadsafe(self._loaded, orders, self._load(orders, missing, rest)))

    def take_up_at_start(self) -> None:
        """Take up the present orders, before the worker listens. Never raises."""
        if self._has_news():
            missing = [key for key in self._orders.keys if key not in self._hot]
            self._finish(self._load(self._orders, missing, no_rest))
        else:
            self._show(self._shown())

    def _has_news(self) -> bool:
        """Read the orders if they were replaced; returns whether they are not taken up yet."""
        seen = file_state(self._path)
        if seen is None:
            return False
        if seen != self._seen:
            try:
                orders = read_orders(self._path)
            except Misconfigured as error:
                self._fail(error)
                return False
            self._seen, self._tries = seen, 0
            if orders == self._orders:
                return False
            self._orders = orders
            return True
        return set(self._orders.keys) != self._hot.keys() or self._applied != (self._orders, 0)

    def _load(self, orders: ReleaseOrders, keys: list[str], rest: Callable[[], object]) -> list[_Hot] | PaywardenError:
        """Load releases. Only reads fields that the loop does not change meanwhile."""
        try:
            return [self._load_one(orders, key, rest) for key in keys]
        except PaywardenError as error:
            return error
        except Exception as error:  # noqa: BLE001 - without an answer the worker would never take up anything again
            _log.exception("a bug ended the loading of a release")
            return Misconfigured(f"release {orders.active}: {type(error).__name__}")

    def _load_one(self, orders: ReleaseOrders, key: str, rest: Callable[[], object]) -> _Hot:
        host = self._host
        own = host.release
        release = load_release(
            key,
            self._ready,
            host.catalogue,
            fallbacks=own.bundles[1:],
            fallback_digests=[origin.bundle_digest for origin in own.origins[1:-1]],
            earlier=self.active.policy,
            rest=rest,
            shared=lambda digest: shared_list(orders.lists, self._supervisor, digest),
        )
        chain = ModelChain(release.bundles, metrics=self._models, settings=host.chain)
        rest()
        hot = _Hot(release, self._scorer.served(chain, release.policy.policy, release.origins, rest))
        # The loop takes it up with an interpreter that nobody else wants.
        rest()
        return hot

    def _loaded(self, orders: ReleaseOrders, result: list[_Hot] | PaywardenError) -> None:
        self._is_loading = False
        if orders is self._orders or not isinstance(result, PaywardenError):
            self._finish(result)
        # Other orders may have come meanwhile.
        self.look()

    def _finish(self, result: list[_Hot] | PaywardenError) -> None:
        if isinstance(result, PaywardenError):
            self._fail(result)
            return
        self._hot |= {hot.release.key: hot for hot in result}
        if self._orders.active in self._hot:
            self._apply()

    def _apply(self) -> None:
        """Switch to the ordered releases in this turn, and unload releases that are not ordered any more."""
        orders = self._orders
        hot = self._hot[orders.active]
        candidate = self._hot.get(orders.candidate)
        # Records name a rollout once its candidate is loaded. That shows the rollout's leader that this host is ready.
        rollout = orders.rollout if candidate is not None else ""
        self._scorer.take_up(self._served(hot, rollout, "champion", BASIS_POINTS - orders.share))
        if candidate is None or not orders.share:
            self._scorer.divide(None)
        else:
            served = self._served(candidate, rollout, "candidate", orders.share)
            self._scorer.divide(served, ArmSplit(bytes.fromhex(orders.salt), orders.share))
            _log.info("rollout %s: the candidate decides about %g %% of the cards", rollout, orders.share / 100)
        self._applied = orders, sum(key not in self._hot for key in orders.keys)
        if orders.active != self._active:
            self._active = orders.active
            self._metrics.swaps.add(1)
            self._metrics.time.set(time.time())
            origin = hot.release.origins[0]
            _log.info(
                "model %s decides from now on (bundle %s, policy %s)",
                hot.release.model_version,
                origin.bundle_digest[:16],
                origin.policy_digest[:16],
            )
        unused = [self._hot.pop(key) for key in [*self._hot] if key not in orders.keys]
        shown = self._shown()
        self._chores.do(lambda rest: self._tidy(shown, unused, rest))

    def _served(self, hot: _Hot, rollout: str, arm: str, share: int) -> Served:
        """Returns the served model of a release. An arm of a rollout is made anew, in a millisecond."""
        if not rollout:
            return hot.served
        origins = hot.release.origins_in(rollout, arm, share)
        return self._scorer.served(hot.served.models, hot.served.policy, origins)

    def _shown(self) -> list[ShownRelease]:
        return [hot.release.shown(self._orders.role_of(key)) for key, hot in self._hot.items()]

    def _tidy(self, shown: list[ShownRelease], unused: list[_Hot], rest: Callable[[], object]) -> None:
        """In the thread: show the releases that are in memory now, then unload the unused ones."""
        self._show(shown)
        while unused:
            rest()
            # Closing also drops the last references to the bundle's objects.
            unused.pop().release.bundles[0].close()

    def _show(self, shown: list[ShownRelease]) -> None:
        """Show releases in the metrics. It writes a small file on the metrics' memory file system, in a millisecond."""
        try:
            self._info.show(shown)
        except (Misconfigured, OSError) as error:
            _log.error("the metrics cannot show which bundle decides: %s", error)

    def _fail(self, error: Exception) -> None:
        self._metrics.failures.add(1)
        _log.error("a release cannot be taken up, and %s goes on: %s", self.active.model_version, error)


class Rests:
    """Lets a thread rest between two steps of its work. Not thread-safe."""

    def __init__(
        self, now_s: Callable[[], float] = time.perf_counter, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self._now_s, self._sleep = now_s, sleep
        self._began = now_s()

    def rest(self) -> None:
        """Sleep several times as long as the step took that has just ended."""
        took = self._now_s() - self._began
        self._sleep(min(max(_REST_SHARE * took, _REST_MIN_S), _REST_MAX_S))
        self._began = self._now_s()


class Chores:
    """Does work in a thread beside the loop, one thing after the other, in steps between which it rests."""

    def __init__(self) -> None:
        self._queue = queue.SimpleQueue[Callable[[Callable[[], object]], object]]()
        self._is_started = False

    def do(self, work: Callable[[Callable[[], object]], object]) -> None:
        """Queue this work behind earlier work. It gets a function to call between two steps."""
        if not self._is_started:
            threading.Thread(target=self._run, name="release", daemon=True).start()
            self._is_started = True
        self._queue.put(work)

    def _run(self) -> None:
        while True:
            self._do(self._queue.get())

    def _do(self, work: Callable[[Callable[[], object]], object]) -> None:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        try:
            work(Rests().rest)
        except Exception:  # noqa: BLE001 - the top of the thread: later work must go on
            _log.exception("a bug ended the work on a release")
        finally:
            sys.setswitchinterval(interval)
