from __future__ import annotations

from pathlib import Path

import pytest

from paywarden.scoring.metrics import exposition
from paywarden.scoring.metrics.exposition import RENDER_EVERY_S, MetricsRenderer


def test_the_metrics_are_rendered_at_most_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, texts = [100.0], [f"text {number}".encode() for number in range(3)]
    monkeypatch.setattr(exposition, "render", lambda _: texts.pop(0))
    renderer = MetricsRenderer(tmp_path, lambda: now[0])
    assert [renderer.text() for _ in range(100)] == [b"text 0"] * 100
    now[0] += RENDER_EVERY_S / 2
    assert renderer.text() == b"text 0"
    now[0] += RENDER_EVERY_S / 2
    assert [renderer.text() for _ in range(10)] == [b"text 1"] * 10
