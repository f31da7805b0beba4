"""A worker takes up what is ordered, also after an attempt that ended in a way that nobody foresaw."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paywarden.scoring.metrics.release import SwapMetrics
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.server import worker_swap
from paywarden.scoring.server.deployment.releases import ReleaseOrders, orders_path, write_orders
from paywarden.scoring.server.worker_swap import ReleaseSwitch
from tests.patience import PATIENCE_S

SUPERVISOR = 7


def release(key: str) -> Any:
    origin = SimpleNamespace(bundle_digest=key, policy_digest=key)
    return SimpleNamespace(
        key=key,
        model_version=key,
        bundles=(SimpleNamespace(close=lambda: None),),
        origins=(origin, origin),
        policy=SimpleNamespace(policy=None),
        shown=lambda role: role,
    )


def test_a_loading_that_a_bug_ends_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker took the loading for one that goes on, and took up nothing any more."""
    tries: list[str] = []

    def load(key: str, *_: object, **__: object) -> Any:
        tries.append(key)
        if len(tries) == 1:
            raise ZeroDivisionError
        return release(key)

    monkeypatch.setattr(worker_swap, "load_release", load)
    monkeypatch.setattr(worker_swap, "ModelChain", lambda *_, **__: None)
    scorer: Any = SimpleNamespace(serving="a", served=lambda *_: "b", take_up=lambda _: None, divide=lambda *_: None)
    host: Any = SimpleNamespace(release=release("a"), runtime=tmp_path, catalogue=None, chain=None)
    metrics = SwapMetrics.declare(MetricsRegistry())
    info: Any = SimpleNamespace(show=lambda _: None)
    models: Any = None
    write_orders(orders_path(tmp_path, SUPERVISOR), ReleaseOrders(1, "b"))

    async def run() -> str:
        switch = ReleaseSwitch(scorer, host, SUPERVISOR, models=models, metrics=metrics, info=info)
        async with asyncio.timeout(PATIENCE_S):
            while switch.active.key != "b":
                switch.look()
                await asyncio.sleep(0.01)
        return switch.active.key

    caplog.set_level(logging.ERROR)
    assert asyncio.run(run()) == "b"
    assert (tries, metrics.failures.value, metrics.swaps.value) == (["b", "b"], 1, 1)
    assert "cannot be taken up, and a goes on: release b: ZeroDivisionError" in caplog.text
