"""A worker follows the candidate's share, and a rollback waits for no other worker."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.server import rollout_share
from paywarden.scoring.server.deployment.releases import ReleaseOrders, Serving, orders_path, write_orders
from paywarden.scoring.server.rollout_share import RolloutShare

SALT = "00" * 16
HALF = ReleaseOrders("a", "", "c", "r", 5000, SALT)


def release(key: str) -> Any:
    return SimpleNamespace(
        key=key,
        bundles=(),
        policy=SimpleNamespace(policy=None),
        origins_in=lambda rollout, arm, share: f"{key}: {arm} of {rollout}, {share}",
        shown=lambda role: (role, key),
    )


class Worker:
    """A worker with a champion "a" and a candidate "c", and what its scorer was asked for last."""

    def __init__(self, folder: Path) -> None:
        self.path = orders_path(folder, 7)
        self.arms, self.shown = ["", ""], list[tuple[str, str]]()
        scorer: Any = SimpleNamespace(
            serving=SimpleNamespace(models=None),
            served=lambda _models, _policy, origins: origins,
            take_up=lambda served: self._set(0, served if isinstance(served, str) else "a"),
            divide=lambda served, *_: self._set(1, served or ""),
        )
        info: Any = SimpleNamespace(show=lambda releases: self.shown.__setitem__(slice(None), releases))
        serving = Serving(HALF, {key: release(key) for key in ("a", "c")})
        models = ModelMetrics.declare(MetricsRegistry())
        self.share = RolloutShare(scorer, serving, self.path, models=models, info=info)

    def _set(self, arm: int, served: str) -> None:
        self.arms[arm] = served

    def follow(self, orders: ReleaseOrders) -> list[str]:
        write_orders(self.path, orders)
        self.share.look()
        return self.arms


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setattr(rollout_share, "ModelChain", lambda *_, **__: "a chain")
    return Worker(tmp_path)


CHAMPION, CANDIDATE = "a: champion of r, 5000", "c: candidate of r, 5000"


def test_a_worker_gives_the_candidate_no_cards_before_it_has_read_orders(worker: Worker) -> None:
    worker.share.look()
    assert (worker.arms, worker.shown) == (["a", ""], [("active", "a")])
    assert worker.follow(HALF) == [CHAMPION, CANDIDATE]
    assert worker.shown == [("active", "a"), ("candidate", "c")]


@pytest.mark.parametrize(
    ("orders", "arms"),
    [
        (ReleaseOrders("a", "", "c", "r", 0, SALT), ["a: champion of r, 10000", ""]),
        (ReleaseOrders("a"), ["a", ""]),
        # The candidate is another one: it comes with the next generation.
        (ReleaseOrders("a", "", "d", "s", 100, SALT), ["a", ""]),
        # So does another champion. The candidate goes on only if it is named or promoted.
        (ReleaseOrders("b", "a", "c", "r", 100, SALT), [CHAMPION, CANDIDATE]),
        (ReleaseOrders("c", "a"), [CHAMPION, CANDIDATE]),
        (ReleaseOrders("b", "a"), ["a", ""]),
    ],
)
def test_a_worker_follows_another_share_and_drops_a_candidate(
    worker: Worker, orders: ReleaseOrders, arms: list[str]
) -> None:
    worker.follow(HALF)
    assert worker.follow(orders) == arms


def test_orders_that_cannot_be_read_change_nothing(worker: Worker) -> None:
    worker.follow(HALF)
    worker.path.write_bytes(b"{")
    with pytest.raises(Misconfigured, match="cannot be read"):
        worker.share.look()
    worker.share.look_at_once()
    worker.path.unlink()
    worker.share.look()
    assert worker.arms == [CHAMPION, CANDIDATE]
    assert worker.follow(ReleaseOrders("a", "", "c", "r", 100, SALT))[1] == "c: candidate of r, 100"
