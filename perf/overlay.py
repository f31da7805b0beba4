"""The overlay: does a payment see the one before it, what does that cost, and is any bit ever wrong?

Measured:
- `seen_share`: pairs of payments of a new card over HTTP to `paywarden serve --workers 2`. The second leaves one
  millisecond after the first was answered, on another connection. It has seen the first if it lacks the flag
  unknown_card. `other_worker_share` says how many pairs had two workers. The marks are those of a companion whose
  stream has brought nothing yet.
- `added_us_p50`: two scorers of one process decide about the same payments in turns, one at a time, one of them with an
  overlay; the difference of the medians. `pending_us_p50` is that of a payment right after another one of its card,
  merchant and device, `hot_us_p50` of one whose merchant has more pending payments than are added. The first tenth is
  not counted: it touches the table's memory for the first time.
- `wrong_bits`: random steps of answers, a stream that lags, late, repeated and lost payments, kills, older streams and
  companions, and `forget`; each vector is held against an oracle's (tests/worlds/overlay_world.py).
Used for: whether the overlay may be on.

    python -m perf.overlay [--pairs N] [--steps N] [--json FILE]
"""

from __future__ import annotations

import http.client
import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.models.bundle.bundle import load_bundle
from paywarden.models.policy.policy import Policy, PolicySettings, flags_of
from paywarden.models.training.settings import TrainingSettings
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.scorer import ROWS_MAX, PaymentScorer
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.shared import Registry
from paywarden.scoring.metrics.worker import ScoringMetrics
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.requests.validation import RequestLimits
from paywarden.scoring.state.overlay import Overlay, OverlaySettings, prepare
from paywarden.scoring.state.overlay_marks import OverlayMarks
from perf.measuring import arguments_of, finish
from perf.scoring_world import World, WorldSize, built_world
from perf.servers import pin_load, running, server_core
from tests.worlds.overlay_world import OverlayWorld

# The model takes its time with and without an overlay: a small one is trained in seconds.
_SIZE = WorldSize(
    cards=2000,
    days=20,
    training_cards=1000,
    training_days=5,
    training=TrainingSettings(trees=50, leaves=15, early_stopping_rounds=0, threads=1),
)
_LIFETIME_MS = 2000
# The benchmark lets the stream lag so far behind the scorers that it times.
_LAG_MS = 100
# More transactions than the mirror will ever have: the marks are complete, since no profile gets a payment.
_ALL_TRANSACTIONS = 1 << 60
_CONNECTIONS = 16
_STEPS_EACH = 2000


def main() -> None:
    arguments = arguments_of(
        __doc__,
        ("--pairs", {"type": int, "default": 10_000, "help": "of payments"}),
        ("--steps", {"type": int, "default": 1_000_000, "help": "of the oracle's worlds"}),
        ("--entities", {"type": int, "default": 30_000, "help": "in the mirror, at least"}),
        ("--payments", {"type": int, "default": 20_000, "help": "for the time a payment takes"}),
    )
    figures = _against_oracle(arguments.steps)
    pin_load()
    with built_world(arguments.entities, _SIZE) as world:
        figures |= _pairs(world, arguments.pairs) | _times(world, arguments.payments)
    finish(figures, arguments.json)


def _against_oracle(steps: int) -> dict[str, float]:
    scores = folded = wrong = unsure = 0
    for seed in range(max(1, steps // _STEPS_EACH)):
        with tempfile.TemporaryDirectory(prefix="paywarden-overlay-") as folder:
            world = OverlayWorld(Path(folder), seed=seed)
            world.run(min(steps, _STEPS_EACH))
        scores, folded = scores + world.scores, folded + world.folded
        wrong, unsure = wrong + world.wrong, unsure + world.unsure
    print(
        f"oracle: {scores:,} scores, {folded:,} pending payments added, {unsure:,} without the overlay, {wrong} wrong"
    )
    return {"scores": scores, "folded": folded, "unsure_share": unsure / scores, "wrong_bits": wrong}


@contextmanager
def _marked(world: World, engine: FeatureEngine, name: str, lifetime_ms: int) -> Iterator[OverlaySettings]:
    """Give the settings of an overlay whose marks are trusted."""
    with tempfile.TemporaryDirectory(prefix="paywarden-overlay-", dir=Path(world.mirror.path).parent) as folder:
        settings = OverlaySettings(enabled=True, path=f"{folder}/{name}", lifetime_ms=lifetime_ms, marks_max=10_000)
        marks = OverlayMarks(settings, engine.plan, world.mirror.path)
        marks.open_mirror(_ALL_TRANSACTIONS)
        while marks.is_unsure:
            time.sleep(0.1)
        yield settings


def _pairs(world: World, count: int) -> dict[str, float]:
    with ExitStack() as stack:
        settings = stack.enter_context(_marked(world, FeatureEngine(), "served", _LIFETIME_MS))
        environment = {
            "PAYWARDEN_OVERLAY_ENABLED": "true",
            "PAYWARDEN_OVERLAY_PATH": settings.path,
            "PAYWARDEN_OVERLAY_LIFETIME_MS": str(settings.lifetime_ms),
            "PAYWARDEN_OVERLAY_MARKS_MAX": str(settings.marks_max),
        }
        arguments = ("--config", str(world.config), "serve", "--workers", "2")
        server = stack.enter_context(
            running("paywarden", *arguments, ready_path="/readyz", environment=environment, core=server_core())
        )
        address = urlsplit(server.http).netloc
        connections = [http.client.HTTPConnection(address) for _ in range(_CONNECTIONS)]
        turns = itertools.cycle(connections)
        like = world.requests[0]
        seen = other = 0
        for number in range(count):
            first = _ask(next(turns), like, number, 0)
            time.sleep(0.001)
            second = _ask(next(turns), like, number, 1)
            assert "unknown_card" in first.flags
            seen += "unknown_card" not in second.flags and "overlay_absent" not in second.flags
            # The ids of a worker's decisions begin alike.
            other += first.decision_id[:16] != second.decision_id[:16]
        for connection in connections:
            connection.close()
    print(f"{seen:,} of {count:,} second payments saw the first; {other:,} pairs had two workers")
    return {"seen_share": seen / count, "other_worker_share": other / count}


def _ask(connection: http.client.HTTPConnection, like: ScoreRequest, number: int, place: int) -> ScoreResponse:
    request = ScoreRequest()
    request.CopyFrom(like)
    request.payment_id, request.card_id = f"pair-{number}-{place}", f"pair-{number}"
    request.event_time_ms = time.time_ns() // 1_000_000
    connection.request("POST", "/v1/score", request.SerializeToString(), {"content-type": "application/x-protobuf"})
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, body
    return ScoreResponse.FromString(body)


class _Nowhere:
    """An outbox that keeps nothing."""

    position = 0

    def append_frames(self, frames: bytes) -> int:
        return len(frames)

    def trouble(self) -> str:
        return ""


def _times(world: World, count: int) -> dict[str, float]:
    engine = FeatureEngine()
    engine.warm_up()
    bundle = load_bundle(world.bundle, catalogue_digest=engine.plan.digest, identity_digest=engine.plan.key.digest)
    with _marked(world, engine, "timed", _LAG_MS) as settings:
        prepare(settings, engine.plan)
        # LMDB may be open once in a process.
        copies = [replace(world.mirror, path=f"{settings.path}-mirror-{number}") for number in range(2)]
        for copy in copies:
            shutil.copytree(world.mirror.path, copy.path)

        def scorer(overlay: Overlay | None) -> PaymentScorer:
            entities = engine.plan.entity_names
            return PaymentScorer(
                engine=engine.clone_for_thread(),
                models=ModelChain((bundle,), metrics=ModelMetrics.declare(Registry())),
                policy=Policy(PolicySettings(), review_at=1.0, decline_at=1.0),
                mirror=copies[overlay is not None],
                outbox=_Nowhere(),
                metrics=ScoringMetrics.declare(Registry(), flags=flags_of(entities), entities=entities),
                overlay=overlay,
            )

        overlaid = scorer(Overlay(settings, engine.clone_for_thread(), rows_max=ROWS_MAX))
        scorers = {"plain": scorer(None), "overlay": overlaid}
        intake = RequestDecoder(engine.plan, load_rates(), RequestLimits())
        taken: dict[str, list[float]] = {"plain": [], "overlay": [], "pending": [], "hot": []}

        def score(name: str, request: ScoreRequest, payment_id: str) -> None:
            now_ms = time.time_ns() // 1_000_000
            request.payment_id, request.event_time_ms = payment_id, now_ms
            payments, _ = intake.read([request.SerializeToString()], now_ms)
            began = time.perf_counter()
            scorers.get(name, overlaid).score_many(payments, now_ms)
            taken[name].append(time.perf_counter() - began)

        for number in range(count):
            request = world.requests[number % len(world.requests)]
            for name in ("plain", "overlay") if number % 2 else ("overlay", "plain"):
                score(name, request, f"timed-{number}")
            score("pending", request, f"pending-{number}")
        hot = world.requests[0].merchant_id
        for number in range(count // 4):
            request = world.requests[number % len(world.requests)]
            request.merchant_id = hot
            score("hot", request, f"hot-{number}")
        for each in scorers.values():
            each.close_mirror()
    medians = {name: statistics.median(each[len(each) // 10 :]) * 1e6 for name, each in taken.items()}
    print(", ".join(f"{name} {median:.1f} µs" for name, median in medians.items()))
    return {
        "plain_us_p50": medians["plain"],
        "added_us_p50": medians["overlay"] - medians["plain"],
        "pending_us_p50": medians["pending"] - medians["plain"],
        "hot_us_p50": medians["hot"] - medians["plain"],
    }


if __name__ == "__main__":
    main()
