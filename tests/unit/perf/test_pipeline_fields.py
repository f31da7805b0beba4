"""The cost of a declared field in the stream: the measurement takes the same steps as a worker."""

from __future__ import annotations

import pytest

from perf.parts import pipeline_fields


def test_declared_fields_are_measured_in_each_step_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else calls it: when a frame's sender got a callback, it stopped with a TypeError, and nobody saw."""
    for name, few in (("PAYMENTS", 60), ("BATCH", 25), ("PASSES", 1)):
        monkeypatch.setattr(pipeline_fields, name, few)
    figures = pipeline_fields.measured()
    worlds = ("packaged", "fields", "features")
    for world in worlds:
        steps = [figures[f"fields_{world}_{step}_us_per_payment"] for step in pipeline_fields.STEPS]
        assert min(steps) > 0
        assert figures[f"fields_{world}_us_per_payment"] == pytest.approx(sum(steps))
    more = figures["fields_fields_us_per_payment"] - figures["fields_packaged_us_per_payment"]
    assert figures["fields_us_per_field"] == pytest.approx(more / len(pipeline_fields.DECLARED))
