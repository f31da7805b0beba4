"""A warm engine compiles nothing more, whether a stream, a replay or a scoring worker uses it.

The test runs in a process of its own, because all tests of one process share the compiled code.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from paywarden.features import kernel
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.models.policy.policy import FLAGS, Policy, PolicySettings
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.scorer import PaymentScorer
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker_metrics import ScoringMetrics
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.requests.validation import RequestLimits
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.streams.companion.mirror_writer import MirrorWriter
from paywarden.streams.profiles import events as batch
from paywarden.streams.profiles.events import OutcomeEvent
from paywarden.streams.profiles.payment_columns import PaymentEvent, Position
from tests.checkout import CHECKOUT
from tests.patience import PATIENCE_S
from tests.unit.features.history.test_point_in_time import RATES, history
from tests.unit.features.kernel.profiles import apply, payment, row
from tests.worlds.endpoint.payments import score_many
from tests.worlds.stream.joined import apply as apply_batch
from tests.worlds.stream.packed import resealed

NOON_MS = 1_530_446_400_000
# The functions that Python calls. The rest of the kernel is compiled into these.
ENTRANCES = ("apply_events", "assemble_rows", "fill_vectors", "fill_bound_vectors", "decode", "migrate", "pack")


def compiled() -> dict[str, int]:
    """How many kinds of arguments each entrance has been compiled, or loaded, for."""
    return {name: len(getattr(kernel, name).signatures) for name in ENTRANCES}


def score_through_a_mirror(warm: FeatureEngine, state: bytes, folder: Path) -> None:
    """As a scoring worker does: with the mirror, without it, and with a profile that cannot be read."""
    manifest = SimpleNamespace(model_version="m", calibration_slope=1.0, calibration_intercept=0.0)
    bundle: Any = SimpleNamespace(
        manifest=manifest,
        predictor=SimpleNamespace(margins=lambda _: np.array([-9.0])),
        explainer=SimpleNamespace(reasons=lambda *_: []),
    )
    request = ScoreRequest(payment_id="p", event_time_ms=NOON_MS, card_id="c", merchant_id="m", amount_minor=5)
    request.currency = "EUR"

    def score(number: int, profiles: dict[bytes, bytes | None]) -> list[str]:
        # LMDB does not let one process open one mirror twice: each has a folder, and its writer goes first.
        settings = MirrorSettings(path=str(folder / str(number)), size_mb=8)
        if profiles:
            writer = MirrorWriter(settings)
            writer.apply(profiles, {}, NOON_MS)
            writer.close()
        scorer = PaymentScorer(
            engine=warm,
            intake=RequestDecoder(warm.plan, load_rates(), RequestLimits()),
            models=ModelChain((bundle,), metrics=ModelMetrics.declare(MetricsRegistry())),
            policy=Policy(PolicySettings(), review_at=0.5, decline_at=0.9),
            mirror=settings,
            outbox=SimpleNamespace(append_frames=lambda _: 0, position=0),
            metrics=ScoringMetrics.declare(MetricsRegistry(), flags=FLAGS, entities=warm.plan.entity_names),
        )
        (result,) = score_many(scorer, [request], NOON_MS)
        assert isinstance(result, ScoreResponse)
        return list(result.flags)

    assert score(0, {}) == ["mirror_absent"]
    assert score(1, {b"card:c": state, b"merchant:m": b"\2" + bytes(9)}) == ["profile_unreadable"]
    assert score(2, {b"card:c": state}) == ["unknown_merchant"]
    # A profile with another digest but the same shape, so that all of it is migrated.
    assert score(3, {b"card:c": resealed(state[:1] + bytes(4) + state[5:])}) == ["unknown_merchant"]


def work_through_a_stream(warm: FeatureEngine) -> bytes:
    """As the stream does: a payment, its outcome, and both again. Returns the card's profile."""

    keys = tuple(f"{name}:1".encode() for name in warm.plan.entity_names)
    paid = PaymentEvent(Position(0, 1), "p", row(NOON_MS, 5, merchant_id="m"), keys)
    told = OutcomeEvent(Position(1, 1), "p", is_fraud=True)
    records: dict[bytes, bytes] = {}
    profiles: dict[bytes, bytes] = {}
    for _ in range(2):
        joined = batch.join([paid], [told], records, warm.plan.entity_count)
        records |= joined.records
        profiles |= apply_batch(joined, profiles, warm).profiles
    return profiles[b"card:1"]


def pass_through_histories(warm: FeatureEngine) -> None:
    """As training and replay do, down to an empty history and chunks of one payment."""

    for times_ms in ([], [NOON_MS], [NOON_MS, NOON_MS + 1, NOON_MS + 2]):
        for rows in (1, 2, 1000):
            passage = PointInTimeReplay(history(times_ms, [(0, NOON_MS + 1, True)] if times_ms else ()), warm, RATES)
            assert len(list(passage.chunks(rows=rows))) == -(-len(times_ms) // rows)
            passage.finish()


def run_after_warming_up(folder: str) -> None:
    """Fails when anything is compiled, or loaded, after `warm_up`."""
    warm = FeatureEngine()
    warm.warm_up()
    assert compiled() == dict.fromkeys(ENTRANCES, 1)
    state = work_through_a_stream(warm)
    apply(warm, "card", [payment(NOON_MS, 1)], resealed(state[:1] + bytes(4) + state[5:]))
    pass_through_histories(warm)
    score_through_a_mirror(warm, state, Path(folder))
    assert compiled() == dict.fromkeys(ENTRANCES, 1)


def test_nothing_is_left_to_compile_after_warming_up(tmp_path: Path) -> None:
    # Profiles came from read-only memory when warming up and from writable memory when scoring: to numba two
    # types, so a worker's first payment used to wait for a compilation.
    code = f"from {__name__} import run_after_warming_up; run_after_warming_up({str(tmp_path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(os.environ),
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
